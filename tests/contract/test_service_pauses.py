"""A process that stood still, and was counted dead meanwhile, sends nothing that was deleted without it."""

import pytest
from waiting import Hanging, wait_until

from prefix_store.errors import Unavailable
from service import revocation


class Pause:
    """The service sees no feed from `begin` to `end`, as where it stood still; its reads and beats can be watched."""

    def __init__(self, service, monkeypatch):
        self.feed, self.here = service.parts._system.feed, True
        self.at_read = self.at_beat = lambda: None
        self.reads = 0
        read, beat = self.feed.read, self.feed.beat

        def reading(*told):
            self.at_read()
            if not self.here:
                raise Unavailable("the database does not answer")
            found = read(*told)
            self.reads += 1
            return found

        def beating(*told):
            self.at_beat()
            beat(*told)

        monkeypatch.setattr(self.feed, "read", reading)
        monkeypatch.setattr(self.feed, "beat", beating)


@pytest.fixture
def acme(own_service):
    tenant = own_service.tenant()
    own_service.user(tenant, "alice")
    return tenant


@pytest.fixture
def ticket(own_service, acme):
    """An answer of alice's that is under way."""
    (owner,) = [o.owner for o in own_service.store.owners.list_users(acme.scope)]
    opened = own_service.parts.tickets.open_file(owner, None, "file-under-way")
    yield opened
    own_service.parts.tickets.end(opened)


@pytest.mark.usefixtures("soon_blind")
def test_after_a_pause_nothing_is_sent_before_what_was_deleted_meanwhile_is_stopped(
    own_service, acme, ticket, monkeypatch
):
    parts, pause = own_service.parts, Pause(own_service, monkeypatch)
    stopping = Hanging(parts.tickets.revoke)
    monkeypatch.setattr(parts.tickets, "revoke", stopping)
    pause.here = False
    wait_until(lambda: parts.revocation.stale)
    own_service.store.erasure.begin(acme.scope, "alice")  # as another process, which counts this one dead
    pause.here = True
    assert stopping.begun.wait(120)  # the change is read, and who acts comes to it late
    since = pause.reads
    sent = []

    def look():
        sent.append(not parts.revocation.stale and not ticket.revoked)
        return pause.reads > since + 10

    wait_until(look)
    assert not any(sent)
    stopping.go_on.set()
    wait_until(lambda: not parts.revocation.stale)
    assert ticket.revoked


@pytest.mark.usefixtures("soon_blind")
def test_after_a_pause_nothing_is_sent_by_what_was_read_before_others_heard_that_it_lives(
    own_service, acme, ticket, monkeypatch
):
    parts, pause = own_service.parts, Pause(own_service, monkeypatch)
    pause.here = False
    wait_until(lambda: parts.revocation.stale)
    deleted, sent = [], []

    def delete():  # between its read and its beat: others count it dead until then
        if not deleted:
            deleted.append(own_service.store.erasure.begin(acme.scope, "alice"))

    def look():
        if deleted:
            sent.append(not parts.revocation.stale and not ticket.revoked)

    pause.at_beat, pause.at_read, pause.here = delete, look, True
    wait_until(lambda: len(sent) > 3)
    assert not any(sent)
    wait_until(lambda: not parts.revocation.stale)
    assert ticket.revoked


def test_what_is_deleted_is_stopped_at_once_while_something_else_does_not_end(
    own_service, acme, ticket, monkeypatch
):
    parts = own_service.parts
    own_service.user(acme, "bob")
    owners = {o.owner.name: o.owner for o in own_service.store.owners.list_users(acme.scope)}
    other = parts.tickets.open_file(owners["bob"], None, "another")
    monkeypatch.setattr(revocation, "POLL_S", 3600.0)
    own_service.store.erasure.begin(acme.scope, "alice")

    def read(of):
        parts.revocation.look_now()
        return of.revoked

    wait_until(lambda: read(ticket))
    wait_until(lambda: not parts.revocation._work.is_set())
    own_service.store.erasure.begin(acme.scope, "bob")
    wait_until(lambda: read(other))
    parts.tickets.end(other)
