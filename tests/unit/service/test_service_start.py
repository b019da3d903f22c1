"""What a serving process does once, before its first request."""

import gc
import os
import resource
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from prefix_store import StoreSettings
from service.revocation import _LOOK_S, BEAT_S, DEAD_AFTER_S, GRACE_S, STALE_S
from service.start import keep_for_ever

ROOT = Path(__file__).resolve().parents[3]


class Ring:
    """Something that only the garbage collector can end."""

    def __init__(self):
        self.itself = self


def test_the_collector_walks_what_was_made_later_and_nothing_else():
    old = Ring()
    kept, gone = weakref.ref(old), weakref.ref(Ring())
    keep_for_ever()
    try:
        assert gone() is None
        assert gc.get_freeze_count() > 10_000
        assert all(found is not old for found in gc.get_objects())
        del old
        new = weakref.ref(Ring())
        gc.collect()
        assert kept() is not None
        assert new() is None
    finally:
        gc.unfreeze()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("module", ["service", "trainer_worker"])
def test_a_process_that_crashes_leaves_no_dump(module, tmp_path):
    """Neither does one that is wrongly set up, so early is it forbidden."""
    code = (
        "import resource, runpy, sys\n"
        "_, most = resource.getrlimit(resource.RLIMIT_CORE)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (most, most))\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__')\n"
        "finally:\n"
        "    print(resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    environment = {"PATH": os.environ["PATH"], "PREFIX_LOG_LEVEL": "none", "PREFIX_DATA_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "PREFIX_LOG_LEVEL" in ran.stderr
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    assert ran.stdout == ("(1, 1)\n" if most else "(0, 0)\n")  # a machine may forbid them already


def test_others_count_a_process_dead_only_when_it_has_cut_everybody_off():
    """Beat, reads without one, stale, a look that notices, the grace, a look that cuts."""
    assert BEAT_S + STALE_S + 2 * _LOOK_S + GRACE_S < DEAD_AFTER_S < StoreSettings().process_dead_after


@pytest.mark.parametrize("status", [0, 1])
def test_a_process_ends_though_a_route_waits_for_ever(status):
    """Its thread is none that the interpreter would end."""
    code = (
        "import anyio, threading\n"
        "from anyio import to_thread\n"
        "from service.start import leave\n"
        "async def serve():\n"
        "    with anyio.move_on_after(0.5):\n"
        "        await to_thread.run_sync(threading.Event().wait, abandon_on_cancel=True)\n"
        "anyio.run(serve)\n"
        f"leave({status})\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False, timeout=120
    )
    assert ran.returncode == status
    assert b"service.threads_left" in ran.stdout
