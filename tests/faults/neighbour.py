"""Another process's part, played on a thread beside a story that waits somewhere: upkeep, looks, and a second worker."""

import threading
import time

from sqlalchemy import func, select
from store_making import trained

from faults.story import TRAININGS
from faults.told import Told
from prefix_store import open_store
from prefix_store.db import db_now
from prefix_store.errors import LeaseLost, Unavailable
from prefix_store.named_files import whole
from prefix_store.publish import ResultFile
from prefix_store.tables import jobs

HOLD_S = 0.7
_PAUSE_S = 0.05


class Neighbour:
    """Sweeps, goes on with erasures and looks; takes over what another's lease ran out on."""

    def __init__(self, settings, home):
        self._settings, self._home = settings, home
        self.wrong, self.taken = [], 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _live(self):
        store = open_store(self._settings)
        try:
            while not self._over.wait(_PAUSE_S):
                try:
                    self._once(store)
                except Unavailable:
                    continue
                except Exception as error:  # noqa: BLE001 - told with the story's own
                    self.wrong.append(f"neighbour: {type(error).__name__}: {error}")
                    return
        finally:
            store.close()

    def _once(self, store):
        store.erasure.resume()
        store.janitor.sweep()
        found = store.fsck.look(deep=True)
        if not found.sound:
            self.wrong.append(f"beside it: missing {found.missing}, damaged {found.damaged}")
        with whole(store.fsck._owner) as connection:
            late = (jobs.c.status == "running", jobs.c.lease_until <= db_now())
            stale = connection.execute(select(func.count()).where(*late)).scalar_one()
        if stale:
            self._take_over(store)

    def _take_over(self, store):
        claim = store.jobs.claim("neighbour")
        if claim is None:
            return
        told = Told(self._home / "story.jsonl")
        name = next((name for name in TRAININGS if told.done.get(f"job {name}") == claim.job_id), None)
        if name is None or claim.attempt == 1:
            store.jobs.release(claim)
            return
        give_up = time.monotonic() + HOLD_S  # until the sleeper has woken up and tried to go on
        while time.monotonic() < give_up:
            if store.jobs.heartbeat(claim) != "continue":
                self.wrong.append(f"job {name} was taken from under its holder")
                return
            time.sleep(_PAUSE_S)
        live = store.jobs.live(claim)
        made = trained(TRAININGS[name][2], [ResultFile("step_metrics.csv", b"step,loss\n")])
        try:
            store.jobs.complete(
                claim, made, promote=True, compared_with=None if live is None else live.version_id, reason="y"
            )
            self.taken += 1
        except LeaseLost:
            self.wrong.append(f"job {name} was published from under its holder")
