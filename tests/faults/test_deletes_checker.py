"""The checker of `deletes`, fed with streams and answers that a broken service could give."""

import random
from types import SimpleNamespace

import pytest

from faults import deletes
from faults.answering import Says, broken, person


class Stands:
    """A stream that is at one of its ends."""

    def __init__(self, *, whole, after=0, blind=False):
        self.whole, self.told_to_retry, self.ended, self.ended_at = whole, not whole, False, 0.0
        self.blind = blind
        self.known, self._after = None, after

    def arrived(self):
        return 0

    def join(self, _):
        pass

    def tokens(self, _):
        return self._after


def deleting(monkeypatch, answer, *, neighbour_whole=True, after=0, blind=False):
    """One thread's counts after four deletions that are answered so."""

    def opened(asked):
        *own, _ = asked
        return [*(Stands(whole=False, after=after) for _ in own), Stands(whole=neighbour_whole, blind=blind)]

    monkeypatch.setattr(deletes, "opened", opened)
    monkeypatch.setattr(deletes._Deleting, "_again", lambda *_: None)
    site = SimpleNamespace(services=["a", "b"], ports={"a": 1, "b": 2})
    owners = [person(3, answer) for _ in range(deletes.USERS)]
    for one in owners:
        one.tenant.key = "k"
    voices = SimpleNamespace(all=owners, asked=lambda *_, **more: more)
    one = deletes._Deleting(site, None, voices, 0, random.Random(1))
    one.run(4, print)
    assert one.error is None, one.error
    return deletes.told([one], 0)


def deleted(path):
    return {"deleted": True} if path != "/v1/completions" else (404, {})


class Later:
    """202 for each deletion, and done at the second look at its erasure."""

    def __init__(self):
        self.looks = 0

    def __call__(self, path):
        if path == "/v1/completions":
            return 404, {}
        if path.startswith("/v1/erasures/"):
            self.looks += 1
            return {"deleted": self.looks % 2 == 0}
        return 202, {}


@pytest.fixture
def located(monkeypatch):
    """Answers of the stub name their erasure, as 202 does."""
    once = Says.once

    def located_once(self, method, path, **options):
        answer = once(self, method, path, **options)
        answer.headers["location"] = "/v1/erasures/era-1"
        return answer

    monkeypatch.setattr(Says, "once", located_once)
    monkeypatch.setattr(deletes, "AGAIN_S", 0.0, raising=False)


def test_deletions_that_are_acknowledged_at_once_are_well(monkeypatch):
    found = deleting(monkeypatch, deleted)
    assert found["deletes"] == 4
    assert found["streams cut"] == 16
    assert broken("deletes", found) == set()


@pytest.mark.usefixtures("located")
def test_deletions_that_are_all_acknowledged_later_are_not(monkeypatch):
    later = Later()
    found = deleting(monkeypatch, later)
    assert later.looks == 8
    assert found["acknowledged later (202)"] == 4
    assert broken("deletes", found) == {"acknowledged later, beyond one in a hundred"}


@pytest.mark.usefixtures("located")
def test_tokens_after_a_late_acknowledgement_count(monkeypatch):
    assert "tokens after acknowledgement" in broken("deletes", deleting(monkeypatch, Later(), after=1))


@pytest.mark.usefixtures("located")
def test_a_deletion_that_is_never_acknowledged_is_an_error(monkeypatch):
    monkeypatch.setattr(deletes, "PATIENCE_S", 0.0)
    never = Later()
    with pytest.raises(AssertionError, match="never acknowledged"):
        deleting(monkeypatch, lambda path: {"deleted": False} if "erasures" in path else never(path))


def test_one_late_acknowledgement_in_a_hundred_is_allowed():
    def beyond(deletions, later):
        one = SimpleNamespace(waits=[0.1] * deletions, revoked=[], later=later)
        for name in ("cut", "early", "after", "accepted", "broken", "retried", "stale", "blind"):
            setattr(one, name, 0)
        return deletes.told([one], 0)["acknowledged later, beyond one in a hundred"]

    assert [beyond(8, 1), beyond(8, 2), beyond(1000, 10), beyond(1000, 11)] == [0, 1, 0, 1]


def test_a_neighbours_stream_that_is_ended_is_not_excused(monkeypatch):
    found = deleting(monkeypatch, deleted, neighbour_whole=False)
    assert broken("deletes", found) == {"neighbours' streams ended, to be sent again"}


def test_a_neighbours_stream_of_a_service_that_lost_sight_of_the_database_is_told_apart(monkeypatch):
    found = deleting(monkeypatch, deleted, neighbour_whole=False, blind=True)
    assert broken("deletes", found) == set()
    assert found["neighbours' streams ended by a process that saw no database for 2 s"] == 4
