"""The history of a story that may be cut anywhere: what was begun, what was acknowledged."""

import json
import os
import time

from prefix_store.errors import StoreError, Unavailable

TRIES, PAUSE_S = 12, 0.25  # the object storage is not asked again for a second after a failure


class Told:
    """The history of one story: what was acknowledged, by its name."""

    def __init__(self, path):
        self.done, self._begun = {}, set()
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                said = json.loads(line)
                self._begun.add(said["op"])
                if said["phase"] == "ended":
                    self.done[said["op"]] = said["result"]
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def line(self, op, phase, **more):
        said = {"op": op, "phase": phase, "at": round(time.monotonic(), 4), **more}
        os.write(self._file, json.dumps(said).encode() + b"\n")  # which outlives this process

    def do(self, op, act):
        """What `act` brings, asked for until it is acknowledged; `act` is told whether it may have happened."""
        if op in self.done:
            return self.done[op]
        again = op in self._begun
        for _ in range(TRIES):
            self.line(op, "began")
            try:
                result = act(again)
            except (Unavailable, OSError) as error:
                self.line(op, "failed", error=type(error).__name__)
                again = True
                time.sleep(PAUSE_S)
            else:
                self.line(op, "ended", result=result)
                self.done[op] = result
                return result
        raise StoreError(f"{op} failed {TRIES} times")
