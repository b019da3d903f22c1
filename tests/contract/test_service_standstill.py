"""A database that stands still while its machine acknowledges: no answer ever comes, and no connection breaks."""

import pytest
import structlog
from service_making import Serving, complete, error_of
from waiting import Hanging, wait_until

from prefix_store.errors import Unavailable


@pytest.fixture
def acme(own_service):
    return own_service.tenant()


def gone(*_told):
    raise Unavailable("the database does not answer")


@pytest.fixture
def standstill(monkeypatch):
    """Has a call hang until the test ends."""
    held = []

    def hang(owner, name):
        made = Hanging(getattr(owner, name))
        held.append(made)
        monkeypatch.setattr(owner, name, made)
        return made

    yield hang
    for made in held:
        if not made.go_on.is_set():
            made._act = gone  # the store may be closed by now
            made.go_on.set()


def stand_still(service, hang):
    """Nothing that is asked of the database is answered from now on."""
    system = service.parts._system
    reading, asking = hang(system.feed, "read"), hang(system.keys, "verify")
    assert reading.begun.wait(120)
    wait_until(lambda: service.parts.revocation.stale)
    return asking


@pytest.mark.usefixtures("soon_blind")
def test_who_cannot_see_the_database_refuses_before_it_asks_whose_a_key_is(own_service, acme, standstill):
    asking = stand_still(own_service, standstill)
    for answer in (complete(acme, "tiny"), acme.get("/v1/keys"), acme.post("/v1/keys", json={})):
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
    assert not asking.calls
    anybody = own_service.client(None)
    assert anybody.get("/livez").status_code == 200
    assert anybody.get("/readyz").json()["status"] == "the change feed is not followed"
    assert anybody.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("what", ["key", "name"])
def test_a_look_up_that_never_ends_is_answered_and_holds_up_no_other(
    own_service, acme, standstill, monkeypatch, what
):
    parts = own_service.parts
    monkeypatch.setattr(parts.lookups, "seconds", 2.0)
    owner, name = (parts._system.keys, "verify") if what == "key" else (parts.store.tenants, "get")
    looking = standstill(owner, name)
    for _ in range(3):
        answer = complete(acme, "tiny")
        assert (answer.status_code, error_of(answer)["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    assert len(looking.calls) == 3
    monkeypatch.setattr(parts.lookups, "seconds", 120.0)
    looking.go_on.set()
    assert complete(acme, "tiny").status_code == 200


def test_a_process_ends_though_no_write_does_and_says_what_it_could_not_write(
    tmp_path, database_url, standstill, monkeypatch
):
    monkeypatch.setattr("service.upkeep._END_S", 1.0)
    monkeypatch.setattr("service.revocation._END_S", 1.0)
    service = Serving(tmp_path, database_url)
    service.start()
    acme = service.tenant()
    recording = standstill(service.parts.store.usage, "record")
    assert complete(acme, "tiny").status_code == 200
    assert recording.begun.wait(120)
    assert complete(acme, "tiny").status_code == 200
    leaving = standstill(service.parts._system.feed, "leave")
    with structlog.testing.capture_logs() as logs:
        service.stop()
    assert leaving.calls
    (lost,) = [event for event in logs if event["event"] == "usage.lost"]
    assert lost["requests"] == 2
