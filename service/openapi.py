"""The OpenAPI document: FastAPI's, and what it cannot know of the gate, of errors and of which answer leads where."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.shapes import ErrorAnswer

Json = dict[str, Any]

_WHEN: Final = {
    400: "The request can never work.",
    401: "No key, a wrong one, a revoked one.",
    403: "A good key without the scope, or of another kind.",
    404: "Absent, foreign or deleted.",
    408: "An upload of which nothing came for a while.",
    409: "The state of things forbids it.",
    413: "More bytes than the service takes.",
    422: "The idempotency key was used for another request.",
    429: "A limit or quota is used up, or too much is under way.",
    500: "Stored bytes are damaged, or a fault of the service.",
    503: "Overloaded, draining, or what it needs is away; try again.",
    507: "The server's disk is full, and nothing was stored.",
}
_ID: Final = "$response.body#/id"
_NAME: Final = "$response.body#/prefix"
# By the operation that answers: operations that go on from there, with what of the answer goes into address or body.
_LINKS: Final[dict[str, list[tuple[str, Json]]]] = {
    "create_user": [
        ("get_user", {"parameters": {"user_id": _ID}}),
        ("delete_user", {"parameters": {"user_id": _ID}}),
        ("usage", {"parameters": {"user": _ID}}),
        ("create_key", {"requestBody": {"user": _ID}}),
        ("upload", {"requestBody": {"user": _ID}}),
    ],
    "delete_user": [("get_erasure", {"parameters": {"erasure_id": "$response.body#/erasure"}})],
    "create_key": [("revoke_key", {"parameters": {"key_id": _ID}})],
    "upload": [
        ("get_file", {"parameters": {"file_id": _ID}}),
        ("get_content", {"parameters": {"file_id": _ID}}),
        ("delete_file", {"parameters": {"file_id": _ID}}),
        ("create_job", {"requestBody": {"training_file": _ID}}),
    ],
    "create_job": [
        ("get_job", {"parameters": {"job_id": _ID}}),
        ("cancel_job", {"parameters": {"job_id": _ID}}),
        ("list_events", {"parameters": {"job_id": _ID}}),
        ("list_checkpoints", {"parameters": {"job_id": _ID}}),
        ("get_prefix", {"parameters": {"name": _NAME}}),
    ],
    "get_job": [
        ("get_model", {"parameters": {"name": "$response.body#/fine_tuned_model"}}),
        ("complete", {"requestBody": {"model": "$response.body#/fine_tuned_model"}}),
    ],
    "list_checkpoints": [
        ("complete", {"requestBody": {"model": "$response.body#/data/0/fine_tuned_model_checkpoint"}}),
    ],
    "get_prefix": [
        ("get_model", {"parameters": {"name": _ID}}),
        ("complete", {"requestBody": {"model": _ID}}),
        ("promote", {"parameters": {"name": _ID}}),
        ("roll_back", {"parameters": {"name": _ID}}),
        ("delete_model", {"parameters": {"name": "$response.body#/versions/0/id"}}),
        ("delete_model", {"parameters": {"name": _ID}}),
    ],
}


def refusals(*statuses: int) -> dict[int | str, Json]:
    """Errors that an operation may answer with."""
    return {status: {"model": ErrorAnswer, "description": _WHEN[status]} for status in statuses}


def operation_id(route: APIRoute) -> str:
    """The function's name, by which generated clients call it."""
    return route.name


def describe(app: FastAPI) -> None:
    """Have the app tell the whole document."""
    made = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            _finish(made())
        return made()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way


def _finish(document: Json) -> None:
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # ours answer 400 in the envelope
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    for operations in document["paths"].values():
        for operation in operations.values():
            answers = operation["responses"]
            if "HTTPValidationError" in str(answers.get("422")):
                del answers["422"]
            for number, (target, leads) in enumerate(_LINKS.get(operation["operationId"], [])):
                links = answers["200"].setdefault("links", {})
                links[f"{target}_{number}"] = {"operationId": target, **leads}
            if operation["tags"] == ["health"]:
                operation["security"] = []
