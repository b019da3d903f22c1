"""One service, spoken to over HTTP. Owns requests, pages, uploads and streams; refuses to know what they mean."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

import httpx2

from service.cli.terminal import CommandError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 600.0  # a long queue is waited for; the service's own deadline comes first

Json = dict[str, Any]


class Unreachable(CommandError):
    """No service answers at the address, or it went away in mid-answer."""


class Refused(CommandError):
    """The service answered with an error; `status` and `code` are its own."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        self.status, self.code, self.param = status, error.get("code"), error.get("param")
        text = str(error.get("message") or "the service gave no reason")
        super().__init__(f"{text} ({status}{f', {self.code}' if self.code else ''})")


class Connection:
    """Requests to one service with one key."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        except (httpx2.InvalidURL, ValueError) as error:
            raise CommandError(f"{url!r} is no address of a service: {error}") from error

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, **params: Any) -> Json:
        """The object at `path`; parameters that are None are left out."""
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """The answer to a JSON body; fields that are None are left out."""
        return self._call("POST", path, json={k: v for k, v in (body or {}).items() if v is not None})

    def delete(self, path: str, **params: Any) -> Json:
        """The receipt of a deletion."""
        return self._call("DELETE", path, params={k: v for k, v in params.items() if v is not None})

    def pages(self, path: str, **params: Any) -> Iterator[Json]:
        """Every entry of a list, page after page."""
        after = None
        while True:
            page = self.get(path, after=after, **params)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            after = page["data"][-1]["id"]

    def upload(self, filename: str, content: bytes, **fields: str | None) -> Json:
        """Send a training file."""
        data = {"purpose": "fine-tune"} | {k: v for k, v in fields.items() if v is not None}
        return self._call("POST", "/v1/files", data=data, files={"file": (filename, content)})

    def content(self, file_id: str) -> bytes:
        """A file's bytes."""
        return self._request("GET", f"/v1/files/{file_id}/content").content

    def stream(self, body: Mapping[str, Any]) -> Iterator[Json]:
        """The chunks of a streamed completion.

        Raises:
            Refused: before the first chunk, or in the middle of the stream.
            Unreachable: the stream ended without its end mark.
        """
        request = {k: v for k, v in body.items() if v is not None} | {"stream": True}
        try:
            with self._client.stream("POST", "/v1/completions", json=request) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refusal(response)
                yield from _chunks(response)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: str, **kwargs: Any) -> httpx2.Response:
        try:
            response = self._client.request(method, path, **kwargs)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise _refusal(response)
        return response

    def _call(self, method: str, path: str, **kwargs: Any) -> Json:
        response = self._request(method, path, **kwargs)
        try:
            answer: Json = response.json()
        except ValueError as error:
            raise CommandError(f"{self.url} does not answer like this service") from error
        return answer

    def _unreachable(self, error: Exception) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(f"no service answers at {self.url} ({reason}); start one with `make serve`")


def _chunks(response: httpx2.Response) -> Iterator[Json]:
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue  # comments keep the connection alive
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        chunk: Json = json.loads(data)
        if "error" in chunk:
            raise Refused(response.status_code, chunk["error"])
        yield chunk
    raise Unreachable("the stream broke off before its end")


def _refusal(response: httpx2.Response) -> Refused:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    return Refused(response.status_code, error if isinstance(error, dict) else {})
