"""No cross-tenant read: many tenants ask many things while the site is hurt, and every byte they get is looked at.

An answer is right, a refusal that says so (429, 503, no answer), or wrong; wrong is counted as foreign if it holds
what another tenant's prefix says, or a word of another tenant's dataset.
"""

import collections
import random
import re
import socket
import threading
import time

from faults.history import History
from faults.nemesis import Nemesis
from faults.site import Site
from faults.voices import Voices

CLIENTS = 8
KINDS = ["kill", "restart_postgres", "cut_database", "restart_redis", "cut_redis", "pause"]
PATIENCE_S = 3600.0
CANARY = re.compile(r"canary\d{6}")


def measure(home, say, *, requests=50_000, tenants=200, faults=100, seed=1):
    """Ask, hurt, compare; what was counted, by name."""
    with Site(home, workers=0) as site:
        history = History(home / "requests.jsonl")
        voices = Voices(site, history, tenants)
        say(f"{tenants} tenants are there")
        asking = [_Asking(voices, random.Random(seed * 1000 + n)) for n in range(CLIENTS)]
        threads = [
            threading.Thread(target=one.run, args=(requests // CLIENTS + (n < requests % CLIENTS),))
            for n, one in enumerate(asking)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        nemesis = Nemesis(site, history, seed)
        for n in range(faults):
            while (done := sum(one.done for one in asking)) < (n + 0.5) * requests / faults:
                assert time.monotonic() < began + PATIENCE_S
                time.sleep(0.05)
            nemesis.any_of(KINDS)
            _rude(site, n)
            if n % 10 == 0:
                say(f"{done} of {requests} requests, {nemesis.counts}")
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        history.close()
        errors = [one.error for one in asking if one.error]
        assert not errors, errors
        counts = sum((one.counts for one in asking), collections.Counter())
        gone = [
            name
            for name, process in site.processes.items()
            if name != "migrate" and process.poll() is not None
        ]
    kinds = ("right", "wrong", "foreign", "refused", "lost", "other status")
    return {
        "requests": requests,
        **{kind: counts[kind] for kind in kinds},
        "foreign ids": counts["foreign ids"],
        "answered otherwise than absent ones": counts["told apart"],
        "processes gone": len(gone),
        "seconds": round(seconds),
        "faults": nemesis.counts,
    }


class _Asking:
    """One client thread of everybody's: each request is another tenant's."""

    def __init__(self, voices, chosen):
        self._voices, self._random = voices, chosen
        self.counts = collections.Counter()
        self.done = 0
        self.error = None

    def run(self, count):
        try:
            for _ in range(count):
                own, other = self._random.sample(self._voices.all, 2)
                ask = self._random.choices([self._complete, self._look, self._pry], [8, 1, 1])[0]
                self.counts[ask(own, other)] += 1
                self.done += 1
        except Exception as error:  # noqa: BLE001 - the harness's own fault, told where it is looked at
            self.error = repr(error)
            self.done += count

    def _complete(self, own, _):
        prompt = self._random.randrange(len(self._voices.prompts))
        asked = self._voices.asked(prompt, model=own.model)
        answer = own.user.once("POST", "/v1/completions", json=asked)
        return self._judge(answer, own, lambda: answer.json()["choices"][0]["text"] == own.texts[prompt])

    def _look(self, own, _):
        path = self._random.choice(
            [f"/v1/files/{own.file}/content", "/v1/models", "/v1/files", "/v1/prefixes"]
        )
        answer = own.user.once("GET", path)
        return self._judge(answer, own, lambda: path[-7:] != "content" or own.canary in answer.text)

    def _pry(self, own, other):
        """Somebody else's id is answered exactly as one that is nobody's."""
        path = self._random.choice(["/v1/files/{}", "/v1/files/{}/content"])
        absent = "file-" + "0" * (len(other.file) - 5)
        answer, same = (own.user.once("GET", path.format(of)) for of in (other.file, absent))
        told = self._judge(answer, own, lambda: answer.status_code == 404)
        if answer is not None and same is not None and answer.status_code == same.status_code == 404:
            self.counts["foreign ids"] += 1
            if answer.text.replace(other.file, "<id>") != same.text.replace(absent, "<id>"):
                self.counts["told apart"] += 1
        elif answer is not None and answer.status_code == 200:
            self.counts["told apart"] += 1
        return told

    def _judge(self, answer, own, right):
        if answer is None:
            return "lost"
        if self._foreign(answer, own):
            return "foreign"
        if answer.status_code in {429, 503}:
            return "refused"
        if answer.status_code not in {200, 404}:
            return "other status"
        return "right" if right() else "wrong"

    def _foreign(self, answer, own):
        """Whether it holds another's canary, or is what another's prefix says."""
        if any(word != own.canary for word in CANARY.findall(answer.text)):
            return True
        if answer.status_code != 200 or "choices" not in (told := answer.json()):
            return False
        return any(self._voices.whose(choice["text"]) not in {None, own} for choice in told["choices"])


def _rude(site, number):
    """One who leaves in the middle: before the head, the body or the answer is whole."""
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\nauthorization: Bearer x\r\n\r\n{"
    )
    name = site.services[number % len(site.services)]
    try:
        with socket.create_connection(("127.0.0.1", site.ports[name]), 5) as rude:
            rude.sendall(head[: number * 7 % len(head)])
    except OSError:
        pass  # it is being started again
