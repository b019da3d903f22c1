"""What hurts a site, chosen by a seed: the same seed makes the same choices in the same order."""

import random
import time

LEASE_AND_MORE_S = 6.0  # longer than the site's lease of 4 s


class Nemesis:
    """One who acts when told to.

    Args:
        site: that is hurt.
        history: where each act is noted.
        seed: of its choices.
    """

    def __init__(self, site, history, seed):
        self.site, self._history = site, history
        self._random = random.Random(seed)
        self.counts = {}

    def act(self, kind):
        """Do one of `kill`, `pause`, `restart_postgres`, `cut_database`, `restart_redis`, `cut_redis`."""
        began = time.monotonic()
        victim = getattr(self, f"_{kind}")()
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._history.note("fault", began, "ok", kind=kind, victim=victim)

    def any_of(self, kinds):
        """One of these, by the seed."""
        self.act(self._random.choice(kinds))

    def _kill(self):
        """A process and its children, or a worker's child alone; what was killed is started again at once."""
        name = self._random.choice(self.site.names)
        if name in self.site.workers and self._random.random() < 0.5 and self.site.kill_child(name):
            return f"{name}'s child"
        self.site.kill(name)
        self.site.start(name)
        if name in self.site.services:
            self.site.ready(name)
        return name

    def _pause(self):
        name = self._random.choice(self.site.names)
        self.site.pause(name, LEASE_AND_MORE_S)
        return name

    def _restart_postgres(self):
        self.site.restart_postgres()
        return "postgres"

    def _cut_database(self):
        self.site.cut_database()
        return "every connection to postgres"

    def _restart_redis(self):
        self.site.restart_redis()
        return "redis"

    def _cut_redis(self):
        self.site.cut_redis()
        return "every connection to redis"
