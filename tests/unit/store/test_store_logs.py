"""One chain for every log of a process; run in a process of its own, since it takes all logs over."""

import json
import subprocess
import sys

PROGRAM = """
import asyncio, logging, sys, threading, warnings
import structlog
from prefix_store.logs import write_logs

write_logs(*sys.argv[1:])
log = structlog.get_logger("service")
log.debug("quiet.word", number=1)
log.info("some.word", number=2)
with structlog.contextvars.bound_contextvars(request_id="req_1"):
    try:
        raise ValueError("canary")
    except ValueError:
        log.exception("a.failure")
        logging.getLogger("uvicorn.error").exception("it failed\\ncanary")
for name in ("python_multipart", "sqlalchemy.engine"):
    logging.getLogger(name).debug("canary")
    logging.getLogger(name).info("canary")
logging.getLogger("asyncio").error("Task exception was never retrieved\\nfuture: canary")
logging.getLogger("prefix_engine.pool").info("prefix.word error=%s", "KeyError")
warnings.warn("look here", stacklevel=1)
thread = threading.Thread(target=lambda: int("canary"))
thread.start()
thread.join()

class Unwell:
    def __del__(self):
        raise ValueError("canary")

Unwell()
raise RuntimeError("canary")
"""


def run(*how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *how], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "canary" not in done.stderr
    return done.stderr


def test_all_logs_and_what_nobody_caught_are_lines_of_json_without_any_message_of_an_error():
    lines = [json.loads(line) for line in run("json", "info").splitlines()]
    told = [line["event"] for line in lines]
    assert told == [
        "some.word", "a.failure", "it failed", "Task exception was never retrieved", "prefix.word error=KeyError",
        told[5], "thread.failed", "error.unraisable", "process.failed",
    ]  # fmt: skip
    assert "look here" in told[5]
    failure = lines[1]
    assert failure["request_id"] == "req_1"
    assert failure["exception"] == "ValueError at <string>:12 <module>"
    assert lines[2]["request_id"] == "req_1"
    assert [line["level"] for line in lines[-3:]] == ["error", "error", "critical"]


def test_the_level_is_that_of_our_own_events():
    quiet = [json.loads(line)["event"] for line in run("json", "error").splitlines()]
    assert quiet[0] == "a.failure"
    loud = [json.loads(line)["event"] for line in run("json", "debug").splitlines()]
    assert loud[0] == "quiet.word"


def test_text_is_for_people():
    first = run("text", "info").splitlines()[0]
    assert "some.word" in first
    assert "number=2" in first
