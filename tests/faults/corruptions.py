"""Damaged files are never served: a flipped bit, a cut, another's file in its place, in the bucket or in Redis.

A prefix whose file in the bucket is damaged is refused as `corrupt`, and that prefix alone. A damaged copy in Redis
is no harm: the bucket is asked. Prefixes are more than fit into memory, so that each request reads anew.
"""

import collections
import random
import time

from faults.history import History
from faults.site import Site
from faults.streams import LOST_SIGHT
from faults.voices import Voices

PREFIXES, M = 96, 64
PATIENCE_S, AGAIN_S = 30.0, 0.2
AGAIN = "asked again, as a service saw no database for 2 s"

COUNTS = (
    "in the bucket",
    "refused as corrupt",
    "in Redis",
    "served right from the bucket",
    "served from memory",
    "served wrong",
    "refused though the bucket is whole",
    "other answers",
    "neighbours' errors",
    AGAIN,
)


def measure(home, say, *, corruptions=10_000, seed=1):
    """Damage, ask, mend, ask a neighbour; what was counted, by name."""
    with Site(home, services=1, workers=0, pool_bytes=1 << 20) as site:
        history = History(home / "corruptions.jsonl")
        voices = Voices(site, history, 4, PREFIXES // 4, prompts=1, m=M)
        spoiling = _Spoiling(site, voices, random.Random(seed))
        for n in range(corruptions):
            spoiling.once(n)
            if n % 500 == 499:
                say(f"{n + 1} of {corruptions} files damaged, {dict(spoiling.counts)}")
        history.close()
    return {"corruptions": corruptions, **spoiling.counts}


class _Spoiling:
    """One who damages files and asks for what is in them."""

    def __init__(self, site, voices, chosen):
        self._store, self._bucket, self._voices, self._random = site.store(), site.bucket(), voices, chosen
        self._service = site.services[0]
        self._places = {
            voice: self._store.registry.resolve(voice.scope, voice.model).place for voice in voices.all
        }
        self._sealed = {place: self._bucket.read(place) for place in self._places.values()}
        self.counts = collections.Counter(dict.fromkeys(COUNTS, 0))

    def once(self, number):
        voice = self._voices.all[number % PREFIXES]
        kind = self._random.choice(["flip", "flip", "cut", "empty", "swap", "more"])
        in_redis = self._random.random() < 0.3
        place = self._places[voice]
        spoilt = self._spoilt(place, kind)
        if in_redis:
            self._cache(place, spoilt)
        else:
            self._cache(place, None)
            self._bucket.write(place, spoilt)
        answer = self._ask(voice)
        self.counts["in Redis" if in_redis else "in the bucket"] += 1
        self.counts[self._judge(answer, voice, in_redis)] += 1
        if not in_redis:
            self._bucket.write(place, self._sealed[place])
        neighbour = self._voices.all[(number + PREFIXES // 2) % PREFIXES]
        beside = self._ask(neighbour)
        if beside is None or beside.status_code != 200 or self._text(beside) != neighbour.texts[0]:
            self.counts["neighbours' errors"] += 1

    def _spoilt(self, place, kind):
        sealed = self._sealed[place]
        at = self._random.randrange(len(sealed))
        if kind == "flip":
            return sealed[:at] + bytes([sealed[at] ^ (1 << self._random.randrange(8))]) + sealed[at + 1 :]
        if kind == "swap":
            return self._sealed[self._random.choice([other for other in self._sealed if other != place])]
        return {"cut": sealed[:at], "empty": b"", "more": sealed + sealed[: at + 1]}[kind]

    def _cache(self, place, data):
        """Put a copy into Redis, or take it out."""
        link = self._store._core.link
        key = link.key("blobs", place.tenant_id, place.owner_id)
        give_up = time.monotonic() + PATIENCE_S
        while not self._told(link, key, place.object_id, data):
            # What comes next would be counted as a damage that was noticed, and there would be none.
            assert time.monotonic() < give_up, "Redis takes no damaged copy"
            time.sleep(AGAIN_S)

    @staticmethod
    def _told(link, key, field, data):
        """Whether Redis has done it; the store's own way to it brings None where it has not."""
        if data is None:
            return link.ask(lambda server: server.delete(key), None) is not None
        return link.ask(lambda server: server.hset(key, field, data), None) is not None

    def _ask(self, voice):
        asked = self._voices.asked(0, model=voice.model)
        give_up = time.monotonic() + PATIENCE_S
        while True:
            answer = voice.user.once("POST", "/v1/completions", service=self._service, json=asked)
            blind = answer is not None and answer.status_code == 503 and LOST_SIGHT in answer.text
            if not blind or time.monotonic() > give_up:
                return answer
            self.counts[AGAIN] += 1
            time.sleep(AGAIN_S)

    def _judge(self, answer, voice, in_redis):
        if answer is None:
            return "other answers"
        if answer.status_code == 200:
            if self._text(answer) != voice.texts[0]:
                return "served wrong"
            return "served right from the bucket" if in_redis else "served from memory"
        if in_redis:
            return "refused though the bucket is whole"
        return "refused as corrupt" if answer.json()["error"]["code"] == "corrupt" else "other answers"

    @staticmethod
    def _text(answer):
        return answer.json()["choices"][0]["text"]
