"""The pipe between a worker and its training process, and what the process does when the other end goes."""

import io
import os
import subprocess
import sys
import time

import pytest
from trainer_making import base_folder, dataset, order

from prefix_engine.template import Template
from trainer_worker import frames
from trainer_worker.child_process import Child, Ended
from trainer_worker.faults import place_of
from trainer_worker.frames import Frame
from trainer_worker.order import Version, order_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("base"))


def test_frames_come_out_as_they_went_in():
    sent = [
        Frame("order", {"a": [1, None, "ü"]}),
        Frame("training", {"id": "f"}, bytes(range(256)) * 9),
        Frame("begin"),
    ]
    pipe = io.BytesIO()
    for frame in sent:
        frames.write(pipe, frame)
    pipe.seek(0)
    assert [frames.read(pipe) for _ in range(4)] == [*sent, None]


@pytest.mark.parametrize("cut", [1, 7, 8, 12, 30])
def test_a_frame_that_was_cut_off_is_the_end(cut):
    pipe = io.BytesIO()
    frames.write(pipe, Frame("checkpoint", {"update": 5}, b"x" * 40))
    assert frames.read(io.BytesIO(pipe.getvalue()[:cut])) is None


def test_what_is_no_frame_is_refused():
    with pytest.raises(ValueError, match="frame"):
        frames.read(io.BytesIO(b"\xff" * 100))


def test_an_order_crosses_the_pipe_whole():
    version = Version("ver-1", b"start", Template("\n\n", 7))
    live = Version("ver-2", b"live", Template("\n", 0))
    asked = order(validation=("file-9", b"v"), start=version, live=live, checkpoint=b"state", seed=5)
    *taken, last = asked.frames("gpt2", "f" * 64, 2, device="cuda:1")
    assert last.kind == "begin"
    assert (taken[0].fields["threads"], taken[0].fields["device"]) == (2, "cuda:1")
    assert order_of(taken) == asked
    assert order_of(order().frames("gpt2", "", None)[:-1]) == order()


def test_no_frame_shows_its_bytes():
    assert "secret" not in repr(Frame("training", {"id": "f"}, b"secret"))


def heard(child, seconds=60):
    told, give_up = [], time.monotonic() + seconds
    while True:
        assert time.monotonic() < give_up
        try:
            frame = child.hear(0.1)
        except Ended:
            return told
        if frame is not None:
            told.append(frame)


def test_a_child_trains_and_tells(folder):
    with Child(order().frames(folder, "", 1)) as child:
        told = [frame for frame in heard(child) if frame.kind not in {"progress", "alive"}]
    assert told[-1].kind == "trained"
    assert told[-1].fields["m"] == 10
    assert told[-1].payload


def test_a_child_asked_to_stop_tells_its_state_and_ends(folder):
    long = order(wishes={"max_steps": 1_000_000, "eval_steps": 1_000_000})
    with Child(long.frames(folder, "", 1)) as child:
        while (frame := child.hear(30)) is None or frame.kind != "progress":
            pass
        child.ask_to_stop()
        told = heard(child)
    assert [frame.kind for frame in told[-2:]] == ["checkpoint", "stopped"]


@pytest.mark.parametrize(
    ("base", "fingerprint", "kind"), [("no-such-base-anywhere/x", "", "no_base"), (None, "0" * 64, "refused")]
)
def test_a_base_that_is_missing_or_another_is_told(folder, base, fingerprint, kind, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with Child(order().frames(base or folder, fingerprint, 1)) as child:
        told = heard(child)
    assert told[-1].kind == kind


def test_a_killed_child_is_gone_before_kill_returns(folder):
    long = order(wishes={"max_steps": 1_000_000, "eval_steps": 1_000_000})
    with Child(long.frames(folder, "", 1)) as child:
        while (frame := child.hear(30)) is None or frame.kind != "progress":
            pass
        pid = child.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    child.kill()


@pytest.mark.parametrize("begun", [True, False])
def test_a_child_whose_worker_is_gone_ends(folder, begun):
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer_worker.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    long = order(dataset(40), wishes={"max_steps": 1_000_000, "eval_steps": 1_000_000})
    asked = long.frames(folder, "", 1)
    for frame in asked if begun else asked[:-1]:
        frames.write(process.stdin, frame)
    if begun:
        while frames.read(process.stdout).kind != "progress":
            pass
    process.stdin.close()
    assert process.wait(120) == 0
    process.stdout.close()


def test_an_error_is_told_without_its_message():
    with pytest.raises(ValueError, match="not a frame") as raised:
        frames.read(io.BytesIO(b"\xff" * 100))
    told = place_of(raised.value)
    assert told.startswith("ValueError\n")
    assert "test_trainer_process.py" in told
    assert "not a frame" not in told.splitlines()[0]
