"""What clients and the nemesis did, one JSON line each, in the order in which it ended: a run can be read afterwards."""

import json
import threading
import time


class History:
    """A file of operations.

    A line is `{"op", "began", "ended", "result", ...}`; times are seconds of the harness's own clock. `result` is
    `ok`, a refusal's status, or `lost` where no answer came: such an operation may have happened or not.
    """

    def __init__(self, path):
        self.path = path
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self.began = time.monotonic()

    def note(self, op, began, result, **more):
        line = {
            "op": op,
            "began": round(began - self.began, 4),
            "ended": round(self.now(), 4),
            "result": result,
        }
        with self._lock:
            self._file.write(json.dumps(line | more) + "\n")
            self._file.flush()

    def now(self):
        return time.monotonic() - self.began

    def close(self):
        self._file.close()

    def lines(self, op=None):
        """What was noted so far."""
        with self.path.open(encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        return [line for line in found if op is None or line["op"] == op]
