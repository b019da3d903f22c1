"""This project's engine through its public face: submit, the scheduler, the step loop and the sinks."""

import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from bench.contestant import Missing, Stopwatch, serve
from bench.contestants.engine_clock import ModelClock, at_once, read_apart
from bench.contestants.tensors import prefix_tensor
from bench.resident import memory
from bench.workload import Workload, uniform
from prefix_engine import Engine, EngineConfig, Failed, Prefix, Request, Sampling, load_base
from prefix_engine.testing import Collected


class Contestant:
    """One base and one engine over it."""

    _mapped = False

    def load(self, folder: str, device: str, **settings: Any) -> None:
        """Load the base and start an engine; see `engine_config` for the settings."""
        self._clock = ModelClock()
        base = load_base(folder, device)
        self._base, self._mapped = base.emptied(), base.mapping is not None
        config = engine_config(settings)
        self._page = config.page
        self._engine = Engine(base, config, self._prefix)
        self._engine.start()

    def run(self, workload: Workload) -> dict[str, Any]:
        """Serve a workload; `times` are the seconds from its start at which each token came."""
        requests = self._requests(workload)
        pages: list[int] = []
        watch = Stopwatch()
        sinks = self._submit_all(requests, watch)
        while not sinks[-1].collected.ended:
            pages.append(self._engine.stats().pages_used)
            time.sleep(0.05)
        for sink in sinks:
            sink.wait()
        return {
            "seconds": max(sink.times[-1] for sink in sinks),
            "tokens": [list(sink.collected.tokens) for sink in sinks],
            "times": [sink.times for sink in sinks],
            "most_pages": max(pages, default=0),
            "page": self._page,
            "prefix_bytes": self._engine.stats().resident_bytes,
        }

    def margins(self, workload: Workload) -> dict[str, Any]:
        """Nats between the best two tokens at each place of each text."""
        requests = [replace(request, logprobs=2) for request in self._requests(workload)]
        sinks = self._submit_all(requests, Stopwatch())
        for sink in sinks:
            sink.wait()
        tops = [[info.top for info in sink.collected.infos] for sink in sinks]
        return {"margins": [[best[2] - second[2] for best, second in text] for text in tops]}

    def parts(self, workload: Workload, *, sampled: bool = False) -> dict[str, Any]:
        """Median seconds of a decode step by part; see `ModelClock.stop`. Greedy, or of temperature 1 and top_p 0.9."""
        requests = self._requests(workload)
        if sampled:
            wishes = (Sampling(temperature=1.0, top_p=0.9, seed=number) for number in range(len(requests)))
            requests = [
                replace(request, sampling=wish) for request, wish in zip(requests, wishes, strict=True)
            ]
        watch = Stopwatch()
        sinks = self._submit_all(requests, watch)
        self._clock.start()
        for sink in sinks:
            sink.wait()
        return self._clock.stop()

    def arrival(self, workload: Workload, arriving: int, after: int) -> dict[str, Any]:
        """Let a prompt of `arriving` tokens come when every stream has `after` tokens; `times` as of `run`."""
        late = self._requests(uniform(1, arriving, 4, m=workload.m))[0]
        watch = Stopwatch()
        sinks = self._submit_all(self._requests(workload), watch)
        while min(len(sink.times) for sink in sinks) < after:
            time.sleep(0.001)
        came = watch()
        sink = self._submit(late, watch)
        for one in (sink, *sinks):
            one.wait()
        return {"came": came, "first": sink.times[0], "times": [stream.times for stream in sinks]}

    def kernels(self) -> dict[str, Any]:
        """What computes."""
        return {"kernels": self._engine.kernels}

    def memory(self, device: str) -> dict[str, Any]:
        """Resident bytes of this process now, those of the base's mapped file among them, and at most so far.

        On an accelerator what torch has allocated there.
        """
        if device != "cpu":
            module = torch.get_device_module(torch.device(device))
            now, most = module.memory_allocated(), module.max_memory_allocated()
            return {"resident": now, "of_base": 0, "peak": most, "mapped": False}
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now = memory(os.getpid())
        return {
            "resident": now["rss"],
            "of_base": now["map_rss"],
            "peak": int(lines["VmHWM"].split()[0]) * 1024,
            "mapped": self._mapped,
        }

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

    def _submit_all(self, requests: list[Request], watch: Stopwatch) -> list["TimedSink"]:
        with at_once(self._engine):
            return [self._submit(request, watch) for request in requests]

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
    """An EngineConfig of these settings; `shared_reads` is a switch of the bench's own.

    Prompts that come again with each round are computed again, unless the settings say otherwise.

    Raises:
        Missing: the engine has no such setting.
    """
    if not settings.pop("shared_reads", True):
        read_apart()
    unknown = settings.keys() - {field.name for field in fields(EngineConfig)}
    if unknown:
        raise Missing(f"not built: the engine has no {', '.join(unknown)}")
    return EngineConfig(**{"prompt_cache_s": 0.0, **settings})


if __name__ == "__main__":
    serve(Contestant())
