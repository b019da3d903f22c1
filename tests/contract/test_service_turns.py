"""What one tenant's requests wait for holds up nobody else: threads and connections are shared."""

import threading

import pytest
from service_making import complete
from waiting import Hanging, wait_until

from service.turns import MOST

ASKED = 60


@pytest.fixture
def flood():
    """Sends many requests at once, each on a thread of its own; statuses as they come."""
    threads = []

    def begin(service, key, ask):
        statuses = []

        def one():
            with service.client(key) as client:
                statuses.append(ask(client).status_code)

        threads.extend(threading.Thread(target=one, daemon=True) for _ in range(ASKED))
        for thread in threads:
            thread.start()
        return statuses

    yield begin
    for thread in threads:
        thread.join(120)


def write(client):
    return client.post("/v1/keys", json={}, timeout=110)


def erase(client):
    return client.delete("/v1/users/nobody", timeout=110)


@pytest.mark.parametrize(
    ("part", "name", "ask"), [("keys", "issue", write), ("erasure", "begin", erase)], ids=["write", "erase"]
)
def test_writes_of_one_tenant_that_wait_leave_threads_to_others(
    own_service, monkeypatch, flood, part, name, ask
):
    acme, other = own_service.tenant(), own_service.tenant()
    owner = getattr(own_service.parts.store, part)
    writing = Hanging(getattr(owner, name))
    monkeypatch.setattr(owner, name, lambda *told, **more: writing(*told))
    statuses = flood(own_service, acme.key, ask)
    wait_until(lambda: own_service.parts.door._inside[acme.tenant_id] == ASKED and len(writing.calls) >= MOST)
    try:
        assert complete(other, "tiny").status_code == 200
        assert other.get("/v1/keys").status_code == 200
        assert complete(acme, "tiny").status_code == 200
        assert not statuses
        assert len(writing.calls) == MOST
    finally:
        writing.go_on.set()
    wait_until(lambda: len(statuses) == ASKED)
    assert len(writing.calls) == ASKED
