"""This project's engine through its public face: submit, the scheduler, the step loop and the sinks."""

from dataclasses import fields, replace
from typing import Any

from bench.contestant import Missing, Stopwatch, serve
from bench.contestants.tensors import prefix_tensor
from bench.workload import Workload
from prefix_engine import Engine, EngineConfig, Failed, Prefix, Request, load_base
from prefix_engine.testing import Collected


class Contestant:
    """One base, and an engine over it as the last `open` asked."""

    def load(self, folder: str, **settings: Any) -> None:
        """Load the base and start an engine; see `engine_config` for the settings."""
        self._base = load_base(folder, "cpu")
        self._engine = Engine(self._base, engine_config(settings), self._prefix)
        self._engine.start()

    def run(self, workload: Workload) -> dict[str, Any]:
        """Serve a workload; `times` are the seconds from its start at which each token came."""
        requests = self._requests(workload)
        watch = Stopwatch()
        sinks = [self._submit(request, watch) for request in requests]
        for sink in sinks:
            sink.wait()
        return {
            "seconds": watch(),
            "tokens": [list(sink.collected.tokens) for sink in sinks],
            "times": [sink.times for sink in sinks],
        }

    def margins(self, workload: Workload) -> dict[str, Any]:
        """Nats between the best two tokens at each place of each text."""
        requests = [replace(request, logprobs=2) for request in self._requests(workload)]
        sinks = [self._submit(request, Stopwatch()) for request in requests]
        for sink in sinks:
            sink.wait()
        tops = [[info.top for info in sink.collected.infos] for sink in sinks]
        return {"margins": [[best[2] - second[2] for best, second in text] for text in tops]}

    def _requests(self, workload: Workload) -> list[Request]:
        return [
            Request(
                tuple(prompt),
                workload.new,
                None,
                prefix_id=f"{workload.m}/{number % workload.prefixes}" if workload.m else None,
            )
            for number, prompt in enumerate(workload.prompts(self._base.config.vocab))
        ]

    def _submit(self, request: Request, watch: Stopwatch) -> "TimedSink":
        sink = TimedSink(watch)
        self._engine.submit(request, sink)
        return sink

    def _prefix(self, prefix_id: str) -> Prefix:
        """The engine's loader."""
        m, number = map(int, prefix_id.split("/"))
        config = self._base.config
        tensor = prefix_tensor(config.layers, config.heads, config.head_dim, m, number)
        return Prefix(tensor, m, self._base.fingerprint)


class TimedSink:
    """Keeps a request's tokens and when they came."""

    def __init__(self, watch: Stopwatch) -> None:
        self.collected = Collected()
        self.times: list[float] = []
        self._watch = watch

    def __call__(self, event: Any) -> None:
        """Take one event."""
        now = self._watch()
        self.times += [now] * len(getattr(event, "tokens", ()))
        self.collected(event)

    def wait(self) -> None:
        """Until the request has ended.

        Raises:
            RuntimeError: it failed.
        """
        last = self.collected.wait(600)
        if isinstance(last, Failed):
            raise RuntimeError(f"{last.code}: {last.message}")  # noqa: TRY004 - a request failed, no type is wrong


def engine_config(settings: dict[str, Any]) -> EngineConfig:
    """An EngineConfig of these settings.

    Raises:
        Missing: the engine has no such setting, and it is not what the engine does anyway.
    """
    anyway = {"weights": "fp32", "kv": "fp32"}
    known = {field.name for field in fields(EngineConfig)}
    for name, value in settings.items():
        if name not in known and anyway.get(name) != value:
            raise Missing(f"not built: the engine has no {name}={value}")
    return EngineConfig(**{name: value for name, value in settings.items() if name in known})


if __name__ == "__main__":
    serve(Contestant())
