"""A real service whose engine hangs inside a library: it says so, fails its requests and ends."""

import contextlib
import json
import os
import re
import threading
import time

import httpx2
import pytest
from real_processes import Machine, ended
from service_making import complete, error_of, events
from waiting import wait_until

pytestmark = pytest.mark.timeout(600)
# A fault of a library, not of ours: torch's own context, entered at each step, does not come back on the engine's
# thread. Python runs this file before anything else when its folder is on PYTHONPATH.
SITE = """
import ctypes, os, sys, threading, time

def hang():
    while not hasattr(sys.modules.get("torch"), "inference_mode"):
        time.sleep(0.01)
    mode = sys.modules["torch"].inference_mode
    enter, seen = mode.__enter__, []

    def stuck(self):
        if threading.current_thread().name == "prefix-engine" and os.path.exists(os.environ["HANG"]):
            seen.append(None)
            if len(seen) > 6:
                ctypes.{library}(None).sleep(100000)
        return enter(self)

    mode.__enter__ = stuck

threading.Thread(target=hang, daemon=True).start()
"""


@pytest.fixture
def hanging(tmp_path):
    """Starts a service; its engine hangs a few steps after the function that is returned was called."""
    machines = []

    def start(library):
        site = tmp_path / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(library=library))
        machine = Machine(tmp_path, stuck_seconds=4)
        machines.append(machine)
        trigger = tmp_path / "hang"
        machine.environment |= {
            "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "HANG": str(trigger),
        }
        return machine, machine.serve(), trigger.touch

    yield start
    for machine in machines:
        machine.__exit__()


def test_a_stuck_engine_is_not_ready_fails_its_requests_and_ends_the_process(hanging):
    machine, process, hang = hanging("CDLL")  # the interpreter's lock is free meanwhile
    client = machine.tenant()
    assert complete(client, "gpt2-mini", "wombat").status_code == 200
    whole, streamed, statuses = [], [], set()
    body = {"model": "gpt2-mini", "prompt": "wombat", "max_tokens": 400, "min_tokens": 400}

    def read():
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            streamed.extend(events(response.iter_lines()))

    threads = [
        threading.Thread(target=read),
        threading.Thread(target=lambda: whole.append(client.post("/v1/completions", json=body))),
    ]
    threads[0].start()
    wait_until(lambda: streamed)  # or, where steps are short, the other one has all that are left
    hang()
    threads[1].start()
    give_up = time.monotonic() + 120
    with httpx2.Client(base_url=machine.url, trust_env=False) as probe:
        while process.poll() is None:
            assert time.monotonic() < give_up
            with contextlib.suppress(httpx2.TransportError):
                statuses.add((probe.get("/livez").status_code, probe.get("/readyz").status_code))
            time.sleep(0.1)
    for thread in threads:
        thread.join(120)
    assert process.returncode == 75
    assert (200, 503) in statuses  # not ready before it counts as stuck
    assert whole[0].status_code == 503
    assert "stuck" in error_of(whole[0])["message"]
    assert int(whole[0].headers["retry-after"]) > 0
    assert "choices" in streamed[0]
    assert "stuck" in streamed[-1]["error"]["message"]
    lines = [json.loads(line) for line in machine.said("service").splitlines()]
    (stuck,) = [line for line in lines if line["event"] == "engine.stuck"]
    assert "loop.py" in stuck["threads"]["prefix-engine"]
    assert re.search(r"sitecustomize.py:\d+ stuck$", stuck["threads"]["prefix-engine"])
    assert "wombat" not in machine.said("service")
    assert machine.serve().poll() is None  # as its supervisor would


def test_a_library_that_keeps_the_interpreter_to_itself_ends_the_process_too(hanging):
    machine, process, hang = hanging("PyDLL")  # no thread of Python runs any more
    client = machine.tenant()
    assert complete(client, "gpt2-mini", "wombat").status_code == 200
    hang()
    with pytest.raises(httpx2.TransportError):
        complete(client, "gpt2-mini", "wombat", max_tokens=400, min_tokens=400)
    assert ended(process, 120) == 1
    said = machine.said("service")
    assert "in stuck" in said
    assert "wombat" not in said
