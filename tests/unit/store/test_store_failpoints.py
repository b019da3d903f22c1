"""Failpoints: every name stands exactly once in the code, and what cannot be armed refuses to start."""

import ast
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from prefix_store import StoreSettings
from prefix_store.failpoints import POINTS, arm, failpoint, passed
from prefix_store.failpoints import read as parsed

ROOT = Path(__file__).resolve().parents[3]
PRODUCT = ("prefix_store", "service", "trainer_worker", "prefix_engine")


@pytest.fixture(autouse=True)
def disarmed():
    yield
    arm("")


def uses():
    """The argument of every call of `failpoint` in the product."""
    paths = [path for package in PRODUCT for path in (ROOT / package).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return [ast.literal_eval(call.args[0]) for call in calls if getattr(call.func, "id", "") == "failpoint"]


def test_every_name_stands_exactly_once_in_the_code_and_every_use_is_a_name():
    assert sorted(uses()) == sorted(POINTS)


def test_nothing_happens_unless_it_is_armed_and_then_at_the_nth_passing_alone():
    for name in POINTS:
        failpoint(name)
    arm("ledger.after_sync=raise:3")
    for _ in range(2):
        failpoint("ledger.after_sync")
        failpoint("feed.read")
    with pytest.raises(OSError, match=r"ledger\.after_sync") as raised:
        failpoint("ledger.after_sync")
    assert raised.value.errno == errno.EIO
    failpoint("ledger.after_sync")
    assert passed() == {"ledger.after_sync": 4}
    arm("ledger.after_sync=raise:3")  # the same again
    assert passed() == {"ledger.after_sync": 4}
    arm("")
    assert passed() == {}


def test_what_is_raised_is_what_the_real_fault_raises():
    arm("feed.read=raise, object.after_put = raise".replace(" = ", "="))
    with pytest.raises(OperationalError):
        failpoint("feed.read")
    with pytest.raises(ConnectionError):
        failpoint("object.after_put")


def test_sleep_waits_for_so_many_seconds():
    arm("feed.read=sleep(0.15)")
    began = time.monotonic()
    failpoint("feed.read")
    assert 0.15 <= time.monotonic() - began < 60


def test_kill_is_a_sigkill():
    code = "from prefix_store.failpoints import arm, failpoint; arm('feed.read=kill:2')\n"
    code += "failpoint('feed.read'); print('once', flush=True); failpoint('feed.read'); print('twice')"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "once\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("publish.after_sael=kill", "no failpoint is named 'publish.after_sael'; there are: backup.after_"),
        ("feed.read", "feed.read cannot do ''; give kill, raise or sleep"),
        ("feed.read=explode", "feed.read cannot do 'explode'; give kill, raise or sleep"),
        ("feed.read=kill:0", "cannot do 'kill:0'"),
        ("feed.read=sleep(x)", "give kill, raise or sleep"),
        ("feed.read=kill,feed.read=raise", "feed.read is given twice"),
    ],
)
def test_what_cannot_be_armed_is_refused_with_its_mend(text, said, tmp_path):
    with pytest.raises(ValueError, match="failpoint"):
        parsed(text)
    with pytest.raises(ValidationError) as refused:
        StoreSettings(data_dir=tmp_path, failpoints=text)
    assert said in str(refused.value)


def test_a_process_warns_at_its_start_or_refuses_it(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFIX_")}
    own = kept | {"PREFIX_DATA_DIR": str(tmp_path)}

    def ran(text):
        command = [sys.executable, "-m", "trainer_worker"]
        given = {
            "env": own | {"PREFIX_FAILPOINTS": text},
            "cwd": ROOT,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        return subprocess.run(command, timeout=120, check=False, **given)

    refused = ran("nobody.knows=kill")
    assert refused.returncode == 1
    assert refused.stderr.startswith("PREFIX_FAILPOINTS: ")
    assert "no failpoint is named 'nobody.knows'" in refused.stderr
    killed = ran("database.before_commit=kill")
    assert killed.returncode == -signal.SIGKILL
    assert "failpoints are armed, this process is made to fail: database.before_commit" in killed.stderr
