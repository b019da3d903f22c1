"""Clients that are answered what a test says, for the checkers: no service is there."""

import json
from types import SimpleNamespace

import httpx2

from faults import SCENARIOS
from faults.voices import Voice, label_of


class Says:
    """A client whose answers are told by path."""

    def __init__(self, answers):
        self._answers = answers

    def once(self, method, path, **_):
        found = self._answers(path)
        status, body = found if isinstance(found, tuple) else (200, found)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.Response(status, content=content, request=httpx2.Request(method, f"http://x{path}"))

    def sure(self, _op, method, path, **_):
        return self.once(method, path)


def person(number, answers):
    """A user of the tenant of this number, who is answered so with either key."""
    said = Says(answers)
    scope = SimpleNamespace(tenant_id=f"ten-{number}")
    more = {"file": f"file-{number}aaa", "texts": ["hm"], "version": None}
    made = Voice(said, said, scope, label_of(number, 0), f"canary{number:06d}", **more)
    made.job = f"ftjob-{number}aaa"
    return made


def broken(name, found):
    """What a scenario would be told by these counts."""
    return {what for what in SCENARIOS[name].nothing if found[what]}
