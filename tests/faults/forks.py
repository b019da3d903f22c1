"""Processes that begin where one has imported everything already: `fork` of a server that has no threads and no store.

`python -m faults.forks` reads one JSON line a process from its stdin and answers with its exit status.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


class Forks:
    """The harness's side: starts stories, one after the other or beside something."""

    def __init__(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFIX_")}
        kept["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS), kept.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=kept,
            cwd=TESTS.parent,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def start(self, home, environment, *, copies):
        """Begin to tell the story of `home`; `ended` waits for it."""
        asked = {"home": str(home), "environment": environment, "copies": copies}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()

    def ended(self):
        """The exit status of the story that was started last; negative: the signal that ended it."""
        return json.loads(self._server.stdout.readline())


def _serve():
    from faults import story  # noqa: PLC0415 - the server's alone

    for line in sys.stdin:
        asked = json.loads(line)
        process = os.fork()
        if not process:
            status = 1
            try:
                os.environ.update(asked["environment"])
                home = Path(asked["home"])
                errors = os.open(home / "stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                os.dup2(errors, 2)
                story.main(home, copies=asked["copies"])
                status = 0
            except BaseException:  # noqa: BLE001 - told by the status and in the file
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    _serve()
