"""No cross-tenant read: many tenants ask many things while the site is hurt, and every byte they get is looked at.

An answer is right, a refusal that says so (429, 503, no answer), or wrong; wrong is counted as foreign if it holds
what another tenant's prefix says, a word of another tenant's dataset, or an id or a name that is not the asker's. A
list must hold what is the asker's, all of it and nothing else.
"""

import collections
import random
import socket
import threading
import time

from faults.history import History
from faults.nemesis import Nemesis
from faults.owned import BY_TENANT, BY_USER, absent, compared, foreign_word, lists
from faults.site import Site
from faults.voices import Voices

CLIENTS = 8
KINDS = ["kill", "restart_postgres", "cut_database", "restart_redis", "cut_redis", "pause"]
PATIENCE_S = 3600.0
REFUSED = {429, 503}


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
        "lists": counts["lists"],
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
        """A list, with the user's key or the tenant's, or the dataset's bytes."""
        wanted = lists(own, self._voices.base_name)
        path = self._random.choice([*wanted, "content"])
        if path == "content":
            answer = own.user.once("GET", f"/v1/files/{own.file}/content")
            return self._judge(answer, own, lambda: own.canary in answer.text)
        key = own.tenant if path == "/v1/users" else self._random.choice([own.user, own.tenant])
        answer = key.once("GET", path)
        told = self._judge(answer, own, lambda: True)
        if told != "right":
            return told
        self.counts["lists"] += 1
        return compared(answer.json(), wanted[path])

    def _pry(self, own, other):
        """Somebody else's id is answered exactly as one that is nobody's."""
        path, kind = self._random.choice(BY_USER + BY_TENANT)
        if getattr(own, kind) == getattr(other, kind):
            # Both are called alike, so that this name is the asker's own.
            path, kind = "/v1/files/{}", "file"
        key = own.tenant if (path, kind) in BY_TENANT else self._random.choice([own.user, own.tenant])
        theirs = getattr(other, kind)
        nobodys = absent(theirs, kind)
        answer, same = (self._named(key, path, of) for of in (theirs, nobodys))
        told = self._judge(answer, own, lambda: True, wanted=404, asked=theirs)
        if told not in {"lost", "refused"} and same is not None and same.status_code not in REFUSED:
            self.counts["foreign ids"] += 1
            said = [
                (one.status_code, one.text.replace(of, "<id>"))
                for one, of in ((answer, theirs), (same, nobodys))
            ]
            self.counts["told apart"] += said[0] != said[1]
        return told

    def _named(self, key, path, of):
        """An answer about an id, or with the prefix of a user."""
        if path == "/v1/completions":
            return key.once("POST", path, json=self._voices.asked(0, model=f"{of}:voice"))
        return key.once("GET", path.format(of))

    def _judge(self, answer, own, right, *, wanted=200, asked=""):
        """One word for an answer; `wanted` is the status that it must have, `asked` the id that it may repeat."""
        if answer is None:
            return "lost"
        if self._foreign(answer, own, asked) or (wanted == 404 and answer.status_code == 200):
            return "foreign"
        if answer.status_code in REFUSED:
            return "refused"
        if answer.status_code not in {200, 404}:
            return "other status"
        return "right" if answer.status_code == wanted and right() else "wrong"

    def _foreign(self, answer, own, asked):
        """Whether it holds a word that is another's, or is what another's prefix says."""
        if foreign_word(answer.text, own, asked):
            return True
        if answer.status_code != 200 or answer.request.url.path != "/v1/completions":
            return False
        return any(
            self._voices.whose(choice["text"]) not in {None, own} for choice in answer.json()["choices"]
        )


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
