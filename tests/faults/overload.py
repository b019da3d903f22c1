"""Five times what one service can do: what it still answers, how soon it refuses the rest, and what that costs in memory.

Peak and flood are told apart by goodput: generated tokens of answers that came whole and right, a second. The generator
is a process of its own, and takes processor from the service where both share it. So the peak is taken twice: with a
closed loop alone, and with one that also burns as much processor as the flood's generator did; each flood is held
against such a peak right behind it, since machines are not equally fast for long, and the median of three is told.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import httpx2
from real_processes import Machine
from trainer_making import base_folder

from faults import flood
from faults.flood import PROMPTS, at, body
from service.cli.children import free_port

TIMES = 5  # what is offered, as a multiple of the peak
TENANTS = 5  # the first asks for as much as all others together
CLIENTS_A_ROW = 2
SHAPE = {"positions": 256, "width": 256, "layers": 4, "heads": 4, "spread": 0.05}
# No prompt is kept: a flood's tenants are served more evenly than a closed loop's, so that they find fewer of their own.
SETTINGS = {
    "rows": 16,
    "threads": 1,
    "kv_bytes": 64 << 20,
    "pool_bytes": 16 << 20,
    "queue_tokens": 16384,
    "prompt_cache_seconds": 0,
}
QUICK_MS = 50


def measure(home, say, *, seconds=60, rounds=3, idle=5000, seed=1):
    """Hold so many connections open that ask nothing, then flood the service, `rounds` times; what was counted, by name."""
    home = Path(home)
    metrics = free_port()
    settings = SETTINGS | {"base_model": base_folder(home / "base", **SHAPE)}
    with Machine(home, **settings) as machine:
        machine.environment["PREFIX_METRICS_PORT"] = str(metrics)
        service = machine.serve()
        tenants = [machine.tenant(f"tenant {n}") for n in range(TENANTS)]
        model = tenants[0].get("/v1/models").json()["data"][0]["id"]
        right = [_alone(tenants[0], model, prompt) for prompt in PROMPTS]
        asked = {"port": machine.port, "keys": [t.key for t in tenants], "model": model, "right": right}
        clients = CLIENTS_A_ROW * SETTINGS["rows"]
        loop = {**asked, "clients": clients, "seconds": max(3.0, seconds / 4), "seed": seed}
        generate({**loop, "seconds": 3.0})  # warm
        beside = _beside_idle(
            idle, service.pid, machine.port, lambda prompt: _alone(tenants[0], model, prompt), right
        )
        say(f"{idle} connections that ask nothing: {beside}")
        quiet = generate(loop)
        say(
            f"peak, generator idle: {quiet['goodput']:.0f} tokens/s, {quiet['cpu']:.2f} processors of its own"
        )
        rate = TIMES * quiet["answered"] / quiet["seconds"]
        floods, peaks = [], []
        with Memory(service.pid) as memory:
            for turn in range(rounds):
                over = generate({**asked, "rate": rate, "seconds": seconds, "seed": seed + turn})
                say(f"flood of {rate:.0f} requests/s: {over['goodput']:.0f} tokens/s, {over['statuses']}")
                busy = generate({**loop, "burn": max(0.0, over["cpu"] - quiet["cpu"])})
                say(f"peak, generator as busy: {busy['goodput']:.0f} tokens/s")
                floods.append(over)
                peaks.append(busy)
        inside = _inside(metrics)
        assert service.poll() is None, machine.said("service")[-3000:]
    times = sorted(ms for over in floods for ms in over["refusals_ms"])
    shares = [_percent(over["goodput"], busy["goodput"]) for over, busy in zip(floods, peaks, strict=True)]
    closed = [quiet, *peaks]
    return {
        "seconds": seconds,
        "rounds": rounds,
        "idle": idle,
        **beside,
        "offered": _sum(floods, "sent"),
        "answered": _sum(floods, "answered"),
        "goodput, % of the peak behind it": median(shares),
        "goodput of each flood, %": shares,
        "goodput, % of peak with an idle generator": _percent(
            median(over["goodput"] for over in floods), quiet["goodput"]
        ),
        "peak tokens/s": round(median(busy["goodput"] for busy in peaks)),
        "refused": len(times),
        "refused without Retry-After": _sum(floods, "silent"),
        "refusal p50 ms": at(times, 0.5),
        "refusal p99 ms": at(times, 0.99),
        "refusal max ms": at(times, 1.0),
        "refusals over 50 ms": sum(t > QUICK_MS for t in times),
        "refusals over 50 ms inside the service": inside,
        "generator late p99 ms": max(over["late_ms"] for over in floods),
        "memory, % more at most": memory.growth(),
        "memory, % more in the second half": memory.drift(),
        "wrong": _sum([*floods, *closed], "wrong"),
        "lost": _sum([*floods, *closed], "lost"),
        "other answers": _sum([*floods, *closed], "other"),
        "refused in the closed loops": sum(len(loop["refusals_ms"]) for loop in closed),
    }


def _beside_idle(count, pid, port, ask, right):
    """Open so many connections that ask nothing, and ask on others meanwhile; what became of these."""
    times, wrong = [], 0
    with Memory(pid) as memory, contextlib.ExitStack() as opened:
        for _ in range(count):
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        for prompt, expected in zip(PROMPTS, right, strict=True):
            began = time.monotonic()
            wrong += ask(prompt) != expected
            times.append(1000 * (time.monotonic() - began))
        time.sleep(0.5)  # for a last look at the memory
    return {
        "wrong beside idle connections": wrong,
        "slowest answer beside idle connections, ms": round(max(times)),
        "memory beside idle connections, % more": memory.growth(),
    }


def generate(asked):
    """Run the generator as a process of its own; what it counted."""
    command = [sys.executable, flood.__file__]
    data = json.dumps(asked).encode()
    ran = subprocess.run(
        command, input=data, capture_output=True, timeout=asked["seconds"] + 600, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[-3000:]
    return json.loads(ran.stdout)


class Memory(threading.Thread):
    """Resident bytes of a process, looked at four times a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self._before = self._now()
        self.seen = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()

    def run(self):
        while not self._over.wait(0.25):
            with contextlib.suppress(OSError):
                self.seen.append(self._now())

    def growth(self):
        """Percent by which the most was over what there was before."""
        return _percent(max([self._before, *self.seen]) - self._before, self._before)

    def drift(self):
        """Percent by which the most of the second half was over the most of the first."""
        half = len(self.seen) // 2
        first = max([self._before, *self.seen[:half]])
        return _percent(max([first, *self.seen[half:]]) - first, first)

    def _now(self):
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def _alone(client, model, prompt):
    """What the service answers when nobody else asks."""
    answer = client.post("/v1/completions", json=body(model, prompt))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def _inside(port):
    """Refusals that took the service itself over 50 ms, by its own histogram."""
    with httpx2.Client(trust_env=False) as client:
        lines = client.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines if line.startswith("prefix_refusal_seconds_"))
    return int(
        float(told["prefix_refusal_seconds_count"]) - float(told['prefix_refusal_seconds_bucket{le="0.05"}'])
    )


def _sum(runs, what):
    return sum(run[what] for run in runs)


def _percent(part, whole):
    return round(100 * part / whole, 1)
