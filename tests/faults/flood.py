"""The generator of `overload`, run as a process of its own: what to send as JSON on standard input, what came of it as JSON.

Nothing but the standard library, and no HTTP client that costs more than the answers: it shares the processors with the
service that it floods.
"""

import asyncio
import json
import math
import random
import resource
import subprocess
import sys
import time

TOKENS = 64
PROMPTS = [f"prompt {n}: " + "word " * (4 * n) for n in range(1, 9)]
PATIENCE_S = 120.0
FRESH_S = 10.0  # a connection that has lain longer may be closed this moment


def body(model, prompt):
    """What every request asks for: so many tokens, chosen greedily, so that the answer is known."""
    return {"model": model, "prompt": prompt, "max_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 0}


def at(times, share):
    """The time below which this share of them lies; they are sorted."""
    return round(times[min(len(times) - 1, math.ceil(share * len(times)) - 1)], 1) if times else 0.0


class _Wire(asyncio.Protocol):
    """One connection: a request at a time, its answer and when it was whole."""

    def __init__(self):
        self.done = None
        self.used = time.monotonic()

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, payload):
        self._data, self._needed = b"", None
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(payload)
        return self.done

    def data_received(self, data):
        self._data += data
        if self._needed is None and (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].decode("latin-1").split("\r\n")
            self._status = int(head[0].split()[1])
            self._headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])
            }
            self._begin = end + 4
            self._needed = self._begin + int(self._headers["content-length"])
        if self._needed is not None and len(self._data) >= self._needed and not self.done.done():
            self.used = time.monotonic()
            self.done.set_result(
                (self._status, self._headers, self._data[self._begin : self._needed], self.used)
            )

    def connection_lost(self, error):
        if self.done is not None and not self.done.done():
            self.done.set_result(None)


class _Load:
    """Requests of one run and what became of each."""

    def __init__(self, asked):
        self._asked, self._random = asked, random.Random(asked["seed"])
        self._port, self._idle = asked["port"], []
        self._payloads = [[self._payload(key, prompt) for prompt in PROMPTS] for key in asked["keys"]]
        self.began = 0.0
        self.sent = self.answered = self.tokens = self.wrong = self.silent = self.other = 0
        self.refusals, self.late, self.statuses = [], [], {}

    def _payload(self, key, prompt):
        data = json.dumps(body(self._asked["model"], prompt)).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    async def one(self):
        """Send one request, of the first tenant in half of all cases; whether it was answered."""
        tenant = 0 if self._random.random() < 0.5 else self._random.randrange(1, len(self._payloads))
        which = self._random.randrange(len(PROMPTS))
        self.sent += 1
        wire = None
        try:
            wire = await self._wire()
            began = time.monotonic()
            told = await asyncio.wait_for(wire.ask(self._payloads[tenant][which]), PATIENCE_S)
        except (OSError, TimeoutError):
            told = None
        if told is None:
            return False
        status, headers, body, ended = told
        if headers.get("connection") != "close":
            self._idle.append(wire)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self._answer(json.loads(body), self._asked["right"][which], ended)
        elif status in {429, 503}:
            self.silent += not int(headers.get("retry-after", "0"))
            self.refusals.append(1000 * (ended - began))
        else:
            self.other += 1
        return status == 200

    def _answer(self, told, right, ended):
        self.answered += 1
        if told["choices"][0]["text"] != right:
            self.wrong += 1
        elif ended <= self.began + self._asked["seconds"]:
            self.tokens += told["usage"]["completion_tokens"]

    async def _wire(self):
        while self._idle:
            wire = self._idle.pop()
            if not wire.transport.is_closing() and time.monotonic() - wire.used < FRESH_S:
                return wire
            wire.transport.close()
        _, wire = await asyncio.get_running_loop().create_connection(_Wire, "127.0.0.1", self._port)
        return wire

    async def closed(self):
        """So many clients, each of which asks again when it was answered."""

        async def client():
            while time.monotonic() < self.began + self._asked["seconds"]:
                if not await self.one():
                    await asyncio.sleep(0.05)

        self.began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(self._asked["clients"])))

    async def open(self):
        """So many requests a second, whatever becomes of them, and then the answers that are still to come."""
        tasks, self.began = set(), time.monotonic()
        due = self.began
        while due < self.began + self._asked["seconds"]:
            now = time.monotonic()
            if now < due:
                await asyncio.sleep(due - now)
            self.late.append(1000 * max(0.0, time.monotonic() - due))
            task = asyncio.create_task(self.one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += self._random.expovariate(self._asked["rate"])
        self.cpu = _processor() / (time.monotonic() - self.began)
        while tasks:
            await asyncio.wait(tasks)


def _processor():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _burn(share):
    """A process that uses so much of a processor, until its parent closes its input."""
    program = (
        "import sys,threading,time,os\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()\n"
        f"share = {share!r}\n"
        "while True:\n"
        "    began = time.perf_counter()\n"
        "    while time.perf_counter() < began + 0.005 * share: pass\n"
        "    time.sleep(max(0.0001, 0.005 * (1 - share)))\n"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)


async def _generate(asked):
    load = _Load(asked)
    before = _processor()
    if "rate" in asked:
        await load.open()
        cpu = load.cpu - before / asked["seconds"]
    else:
        await load.closed()
        cpu = (_processor() - before) / asked["seconds"]
    return {
        "sent": load.sent,
        "answered": load.answered,
        "goodput": load.tokens / asked["seconds"],
        "seconds": asked["seconds"],
        "cpu": cpu,
        "refusals_ms": load.refusals,
        "silent": load.silent,
        "wrong": load.wrong,
        "lost": load.sent - load.answered - load.other - len(load.refusals),
        "other": load.other,
        "statuses": load.statuses,
        "late_ms": at(sorted(load.late), 0.99),
    }


def _main():
    asked = json.loads(sys.stdin.read())
    burner = _burn(min(1.0, asked["burn"])) if asked.get("burn") else None
    try:
        print(json.dumps(asyncio.run(_generate(asked))))
    finally:
        if burner is not None:
            burner.stdin.close()
            burner.wait(30)


if __name__ == "__main__":
    _main()
