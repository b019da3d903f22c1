"""Nothing after a deletion: no token of a deleted user's streams is sent, by any process, once it was acknowledged.

Also not by a process that was stopped meanwhile, which the others count as dead and which then goes on. While every
process runs, a deletion is acknowledged in its own answer, but for one in a hundred, and no neighbour's stream ends.
"""

import random
import threading
import time

from faults.clients import make_user
from faults.history import History
from faults.site import Site
from faults.streams import PATIENCE_S, opened
from faults.voices import Voices

TENANTS, USERS, STREAMS = 4, 8, 2
LONG = 900  # tokens of a stream, most of which never come
AGAIN_S = 0.1


def measure(home, say, *, deletes=1000, pauses=20, seed=1):
    """Delete users while they stream from both services; what was counted, by name."""
    # A tiny model is done before anybody could delete: one row a step at a time makes streams wait for each other.
    with Site(home, workers=0, rows=8) as site:
        history = History(home / "deletes.jsonl")
        voices = Voices(site, history, TENANTS, USERS, prompts=1)
        each = [
            _Deleting(site, history, voices, tenant, random.Random(seed + tenant))
            for tenant in range(TENANTS)
        ]
        threads = [
            threading.Thread(target=one.run, args=(deletes // TENANTS + (n < deletes % TENANTS), say))
            for n, one in enumerate(each)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for n in range(pauses):
            each[0].while_paused(each[0].own[n % USERS], site.services[n % 2], site.services[1 - n % 2])
            say(f"{n + 1} of {pauses} deletions while a service stood still")
        history.close()
    errors = [one.error for one in each if one.error]
    assert not errors, errors
    return told(each, pauses)


def told(each, pauses):
    """What the threads have counted together, by name."""
    waits = sorted(wait for one in each for wait in one.waits)
    later = sum(one.later for one in each)
    revoked = sorted(wait for one in each for wait in one.revoked)
    return {
        "deletes": len(waits),
        "pauses": pauses,
        "acknowledged later (202)": later,
        "acknowledged later, beyond one in a hundred": max(0, later - max(1, len(waits) // 100)),
        "streams cut": sum(one.cut for one in each),
        "streams that ended before": sum(one.early for one in each),
        "tokens after acknowledgement": sum(one.after for one in each),
        "accepted after acknowledgement": sum(one.accepted for one in each),
        "neighbours' streams broken": sum(one.broken for one in each),
        "neighbours' streams ended, to be sent again": sum(one.retried for one in each),
        "neighbours' streams ended by a process that saw no database for 2 s": sum(one.blind for one in each),
        "streams of a stopped process ended, to be sent again": each[0].stale,
        "ms until the user's last stream had ended": _spread(revoked),
        "ms until it was acknowledged, with files removed": _spread(waits),
    }


def _spread(seconds):
    if not seconds:
        return {}
    names = {"median": len(seconds) // 2, "p99": int(len(seconds) * 0.99) - 1, "longest": -1}
    return {name: round(1000 * seconds[max(place, -len(seconds))]) for name, place in names.items()}


class _Deleting:
    """One thread that deletes users of one tenant, one after the other, and makes them again."""

    def __init__(self, site, history, voices, tenant, chosen):
        self._site, self._history, self._voices, self._random = site, history, voices, chosen
        self.own = voices.all[tenant * USERS : (tenant + 1) * USERS]
        self.waits, self.revoked, self.error, self.stale = [], [], None, 0
        self.later = self.cut = self.early = self.after = self.accepted = self.broken = self.retried = 0
        self.blind = 0

    def run(self, count, say):
        try:
            for n in range(count):
                self._once(self.own[n % USERS], self.own[(n + 1) % USERS])
                if n % 25 == 24:
                    say(f"{n + 1} of {count} deletions of one tenant")
        except Exception as error:  # noqa: BLE001 - the harness's own fault, told where it is looked at
            self.error = repr(error)

    def while_paused(self, voice, stopped, other):
        """One service stands still while the other is asked to delete."""
        long = self._voices.asked(0, max_tokens=LONG, min_tokens=LONG)
        port = self._site.ports[stopped]
        own, beside = opened(
            [
                (port, voice.user.key, long | {"model": voice.model}),
                (port, voice.tenant.key, long | {"model": "base"}),
            ]
        )
        with self._site.stopped(stopped):
            voice.tenant.sure("delete", "DELETE", f"/v1/users/{voice.label}", service=other)
            known = own.arrived()
        for stream in (own, beside):
            stream.join(PATIENCE_S)
        self.after += own.tokens(known)
        self.stale += not beside.whole and beside.told_to_retry
        self._site.ready(stopped)
        asked = self._voices.asked(0, model=voice.model)
        for name in self._site.services:
            again = voice.tenant.once("POST", "/v1/completions", service=name, json=asked)
            self.accepted += again is None or again.status_code != 404
        self._again(voice)

    def _once(self, voice, neighbour):
        long = self._voices.asked(0, max_tokens=LONG, min_tokens=LONG)
        ports = [self._site.ports[name] for name in self._site.services]
        wanted = [
            (port, voice.user.key, long | {"model": voice.model}) for port in ports for _ in range(STREAMS)
        ]
        other = (self._random.choice(ports), neighbour.user.key, long | {"model": neighbour.model})
        *streams, beside = opened([*wanted, other])
        early = sum(stream.ended for stream in streams)
        began = time.monotonic()
        self._delete(voice)
        known = [stream.arrived() for stream in streams]
        self.waits.append(time.monotonic() - began)
        asked = self._voices.asked(0, model=voice.model)
        for name in self._site.services:
            for client in (voice.tenant, voice.user):
                again = client.once("POST", "/v1/completions", service=name, json=asked)
                self.accepted += again is None or again.status_code not in {401, 404}
        for stream, before in zip(streams, known, strict=True):
            stream.join(PATIENCE_S)
            self.after += stream.tokens(before)
            self.cut += not stream.whole
        if cut := [stream.ended_at for stream in streams if not stream.whole]:
            self.revoked.append(max(cut) - began)
        self.early += early
        beside.join(PATIENCE_S)
        self.blind += not beside.whole and beside.blind
        self.retried += not beside.whole and beside.told_to_retry and not beside.blind
        self.broken += not beside.whole and not beside.told_to_retry
        self._again(voice)

    def _delete(self, voice):
        """Until it is acknowledged: where the answer says later, as soon as the erasure says so."""
        answer = voice.tenant.sure("delete", "DELETE", f"/v1/users/{voice.label}", accept=(200, 202))
        if answer.status_code == 200:
            return
        self.later += 1
        give_up = time.monotonic() + PATIENCE_S
        while not voice.tenant.sure("erasure", "GET", answer.headers["location"]).json()["deleted"]:
            assert time.monotonic() < give_up, "a deletion was never acknowledged"
            time.sleep(AGAIN_S)

    def _again(self, voice):
        """The same name, another person."""
        voice.user = make_user(self._site, self._history, voice.tenant, voice.label)
        self._voices.furnish(voice, self._random.randrange(1 << 30))
