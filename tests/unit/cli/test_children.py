"""Processes that the command starts: watched, stopped, and quoted when they fail."""

import os
import sys
import time

import pytest

from service.cli.children import Children, free_port
from service.cli.terminal import CommandError


@pytest.fixture
def modules(tmp_path):
    """Environment in which `python -m` finds small modules of this test."""
    (tmp_path / "sleeps.py").write_text("import time\nprint('awake', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "fails.py").write_text("raise SystemExit('the disk is full')\n")
    (tmp_path / "ready.py").write_text(
        "import os\nfrom http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class H(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n        self.end_headers()\n"
        "HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n"
    )
    return {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"], "PORT": str(free_port())}


def test_a_block_that_ends_stops_its_processes(modules, tmp_path):
    with Children(modules, tmp_path) as children:
        child = children.start("sleeper", "sleeps")
        assert child.process.poll() is None
    assert child.process.poll() is not None


def test_a_process_that_ends_by_itself_is_noticed_and_quoted(modules, tmp_path):
    with Children(modules, tmp_path) as children:
        children.start("worker", "fails")
        with pytest.raises(CommandError, match="the worker ended by itself"):
            children.wait()
        assert "--- worker\nthe disk is full" in children.tails()


def test_a_service_that_dies_before_it_is_ready_is_not_waited_for(modules, tmp_path):
    began = time.monotonic()
    with Children(modules, tmp_path) as children:
        children.start("service", "fails")
        with pytest.raises(CommandError, match="ended by itself"):
            children.wait_ready(f"http://127.0.0.1:{modules['PORT']}")
    assert time.monotonic() - began < 20


def test_ready_is_waited_for(modules, tmp_path):
    with Children(modules, tmp_path) as children:
        children.start("service", "ready")
        children.wait_ready(f"http://127.0.0.1:{modules['PORT']}", seconds=20)


def test_a_service_that_never_gets_ready_is_given_up(modules, tmp_path):
    with Children(modules, tmp_path) as children:
        children.start("service", "sleeps")
        with pytest.raises(CommandError, match="not ready"):
            children.wait_ready(f"http://127.0.0.1:{modules['PORT']}", seconds=0.5)


def test_the_interpreter_is_our_own(modules, tmp_path):
    with Children(modules, tmp_path) as children:
        assert children.start("sleeper", "sleeps").process.args[0] == sys.executable


def test_a_process_that_is_to_end_is_waited_for_and_not_missed_afterwards(modules, tmp_path):
    with Children(modules, tmp_path) as children:
        child = children.launch("migrate", [sys.executable, "-c", "print('done'); raise SystemExit(3)"], {})
        assert children.finish(child, 120) == 3
        assert child.tail() == "done"
        children.check()


def test_some_are_stopped_and_the_others_go_on(modules, tmp_path):
    with Children(modules, tmp_path) as children:
        first, second = children.start("first", "sleeps"), children.start("second", "sleeps")
        children.stop("first")
        assert first.process.poll() is not None
        assert second.process.poll() is None
