"""Jobs trained in one pass: each ends as if it were alone, and none sees more of another than that it is there."""

import gc
import json
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_making import Recorder, dataset, order, train

from prefix_engine.testing import tiny_base
from trainer_worker import together as together_module
from trainer_worker import updates as updates_module
from trainer_worker.pieces import at_once
from trainer_worker.refusal import Refused
from trainer_worker.report import Stopped
from trainer_worker.together import Together
from trainer_worker.training import Training

BASE = tiny_base()
TOLERANCE = 2e-5  # of a prefix after a dozen updates: sums of a batch of another shape round otherwise


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_together(orders, joins=None, after_step=lambda together, step, jobs: None, reports=None):
    """Ends of jobs by number; job i joins before step joins[i]."""
    together, ends, step, jobs = Together(BASE), {}, 0, {}
    waiting = dict(enumerate(joins or [0] * len(orders)))
    reports = reports or [Recorder() for _ in orders]
    while waiting or len(together):
        for number in [number for number, when in waiting.items() if when <= step]:
            del waiting[number]
            jobs[number] = Training(BASE, orders[number], reports[number])
            together.join(str(number), jobs[number].steps())
        ends |= together.step()
        after_step(together, step, jobs)
        step += 1
        assert step < 5000
    return ends


def close(one, other):
    torch.testing.assert_close(one.prefix.tensor, other.prefix.tensor, rtol=0, atol=TOLERANCE)
    assert one.trained_tokens == other.trained_tokens
    changing = {"seconds"}
    told, others = ({k: v for k, v in end.metrics.items() if k not in changing} for end in (one, other))
    assert told.keys() == others.keys()
    for name, value in told.items():
        assert value == (
            pytest.approx(others[name], abs=1e-4) if isinstance(value, float) else others[name]
        ), name


@settings(max_examples=15, deadline=None)
@given(chance=st.data())
def test_each_job_ends_as_it_does_alone_whoever_joins_and_leaves(chance):
    orders = [
        order(
            dataset(chance.draw(st.integers(20, 40)), seed=number),
            seed=number,
            wishes={
                "max_steps": chance.draw(st.integers(1, 9)),
                "batch_size": chance.draw(st.integers(1, 8)),
                "prefix_length": chance.draw(st.integers(1, 12)),
                "parametrization": chance.draw(st.sampled_from(["direct", "mlp"])),
                "learning_rate": 1e-2,
                "dropout": chance.draw(st.sampled_from([0.0, 0.2])),
                "eval_steps": chance.draw(st.integers(1, 5)),
                "text_start": chance.draw(st.sampled_from(["0", "m"])),
            },
        )
        for number in range(chance.draw(st.integers(2, 4)))
    ]
    joins = [chance.draw(st.integers(0, 6)) for _ in orders]
    ends = run_together(orders, joins)
    for number, asked in enumerate(orders):
        close(ends[str(number)], train(BASE, asked))


def lettered(letters, count=40, seed=0):
    """Rows of the same lengths, whatever the letters."""
    rng = random.Random(seed)
    rows = [(rng.choice("abcd"), number, rng.randint(1, 20)) for number in range(count)]
    table = str.maketrans("abcd", letters)
    lines = [
        {"prompt": f"{c}{n}".translate(table), "completion": (c * size).translate(table)}
        for c, n, size in rows
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_no_bit_changes_when_a_neighbours_text_does_at_equal_lengths():
    def end(letters):
        mine = order(dataset(seed=1), seed=1)
        # Files of its own for each side: which rows are held out follows from their text.
        other = order(lettered(letters), seed=2, validation=("held", lettered(letters, count=12, seed=9)))
        return run_together([mine, other])["0"]

    assert torch.equal(end("abcd").prefix.tensor, end("wxyz").prefix.tensor)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_job_that_diverges_ends_alone(broken):
    def break_it(together, step, jobs):
        if step == 3:
            with torch.no_grad():
                jobs[1]._run._learner.form.parameters["prefix"].fill_(broken)

    orders = [order(dataset(seed=number), seed=number) for number in range(3)]
    ends = run_together(orders, after_step=break_it)
    assert isinstance(ends["1"], Refused)
    assert ends["1"].code == "diverged"
    for number in (0, 2):
        close(ends[str(number)], train(BASE, orders[number]))


def test_a_dropped_job_leaves_the_others_as_they_were():
    orders = [order(dataset(seed=number), seed=number) for number in range(3)]
    ends = run_together(
        orders, after_step=lambda together, step, _: together.drop("1") if step == 4 else None
    )
    assert ends.keys() == {"0", "2"}
    for number in (0, 2):
        close(ends[str(number)], train(BASE, orders[number]))


def test_a_job_that_is_stopped_goes_on_alone_from_its_checkpoint():
    asked = [order(dataset(seed=number), seed=number) for number in range(2)]
    stopped = Recorder(lambda recorder: len(recorder.updates) >= 5)
    ends = run_together(asked, reports=[stopped, Recorder()])
    assert isinstance(ends["0"], Stopped)
    close(ends["1"], train(BASE, asked[1]))
    state = stopped.checkpoints[-1][1]
    again = type(asked[0])(
        **{name: getattr(asked[0], name) for name in asked[0].__slots__} | {"checkpoint": state}
    )
    close(train(BASE, again), train(BASE, asked[0]))


def test_a_long_look_of_one_job_keeps_no_other_waiting():
    """And a job may be dropped in the middle of it."""
    many = order(dataset(400, seed=1), seed=1, validation=("held", dataset(1500, seed=2, longest=60)))
    reports = [Recorder(), Recorder()]

    def watch(together, step, jobs):
        if len(reports[1].updates) == 3 and "0" in together._jobs:
            assert jobs[0]._run.state.base is None  # it still looks for the first time
            together.drop("0")

    ends = run_together([many, order(dataset(seed=3), seed=3)], after_step=watch, reports=reports)
    assert ends.keys() == {"1"}
    assert not reports[0].metrics
    close(ends["1"], train(BASE, order(dataset(seed=3), seed=3)))


@pytest.mark.parametrize("most", [1, 300, 1000])
def test_jobs_that_fill_a_pass_are_moved_one_after_another(most, monkeypatch):
    passes, update = [], together_module.update

    def counted(base, learners):
        passes.append([learner.next_tokens() for learner in learners])
        return update(base, learners)

    monkeypatch.setattr(together_module, "PASS_TOKENS", most)
    monkeypatch.setattr(together_module, "update", counted)
    orders = [order(dataset(seed=number), seed=number, wishes={"eval_steps": 12}) for number in range(4)]
    ends = run_together(orders)
    for number, asked in enumerate(orders):
        close(ends[str(number)], train(BASE, asked))
    shared = [tokens for tokens in passes if len(tokens) > 1]
    assert bool(shared) == (most > 1)
    assert all(sum(tokens) <= most for tokens in shared)


def test_large_batches_take_no_more_of_the_time_than_small_ones(monkeypatch):
    """By tokens: while the large one has its third update, the small ones have had dozens."""
    monkeypatch.setattr(together_module, "PASS_TOKENS", 100)
    reports = [Recorder() for _ in range(3)]
    wishes = [{"batch_size": size, "max_steps": 60, "eval_steps": 60} for size in (30, 1, 1)]
    orders = [order(dataset(seed=n), seed=n, wishes=asked) for n, asked in enumerate(wishes)]
    seen = []

    def watch(together, step, jobs):
        if len(reports[0].updates) == 3 and not seen:
            seen.extend(len(report.updates) for report in reports[1:])

    run_together(orders, after_step=watch, reports=reports)
    assert min(seen) >= 24


def test_a_drop_in_the_middle_of_an_update_moves_nobody_twice(monkeypatch):
    monkeypatch.setattr(updates_module, "PIECE_TOKENS", 40)
    orders = [order(dataset(seed=number), seed=number) for number in range(3)]
    dropped = []

    def drop(together, step, jobs):
        if not dropped and together._moving is not None and "1" in together._moving[0] and step > 10:
            assert len(together._moving[0]) > 1
            together.drop("1")
            dropped.append(step)

    ends = run_together(orders, after_step=drop)
    assert dropped
    assert ends.keys() == {"0", "2"}
    for number in (0, 2):
        close(ends[str(number)], train(BASE, orders[number]))


def test_who_waits_to_be_moved_stops_without_it(monkeypatch):
    monkeypatch.setattr(together_module, "PASS_TOKENS", 1)
    monkeypatch.setattr(updates_module, "PIECE_TOKENS", 40)
    stop = []
    reports = [Recorder(), Recorder(lambda recorder: bool(stop))]
    state = {}

    def watch(together, step, jobs):
        moving = [] if together._moving is None else together._moving[0]
        if not stop and reports[1].updates and moving == ["0"] and "1" in together._waiting:
            stop.append(step)
            state["updates"] = len(reports[1].updates)
        elif stop and step == stop[0] + 1:
            assert "1" not in together._jobs

    ends = run_together([order(dataset(seed=n), seed=n) for n in range(2)], after_step=watch, reports=reports)
    assert isinstance(ends["1"], Stopped)
    assert reports[1].checkpoints[-1][0] == state["updates"]
    close(ends["0"], train(BASE, order(dataset(seed=0), seed=0)))


def test_an_error_in_one_job_is_that_jobs_end():
    class Broken(Recorder):
        def progress(self, fields):
            raise OSError("disk")

    asked = [order(dataset(seed=number), seed=number) for number in range(2)]
    ends = run_together(asked, reports=[Broken(), Recorder()])
    assert isinstance(ends["0"], OSError)
    close(ends["1"], train(BASE, asked[1]))


@pytest.mark.parametrize("how", ["stopped", "diverged", "broken"])
def test_no_job_outlives_its_end_in_that_of_another(how):
    class Broken(Recorder):
        def progress(self, fields):
            super().progress(fields)
            if how == "broken" and len(self.updates) == 3:
                raise OSError("disk")

    report = Broken(lambda recorder: how == "stopped" and len(recorder.updates) >= 3)
    jobs = [Training(BASE, order(dataset(seed=n), seed=n), r) for n, r in enumerate((report, Recorder()))]
    for job in jobs:
        at_once(job.prepare())
    together, alive = Together(BASE), [weakref.ref(job._run._learner) for job in jobs]
    for number, job in enumerate(jobs):
        together.join(str(number), job.steps())
    form = jobs[0]._run._learner.form
    del jobs, job
    ends = {}
    gc.disable()
    try:
        for step in range(60):
            if how == "diverged" and step == 3:
                with torch.no_grad():
                    form.parameters["prefix"].fill_(float("nan"))
            ends |= together.step()
            if ends:
                break
        assert isinstance(ends["0"], Exception)
        together.drop("1")
        gc.collect()  # as the process does before it says so; the ends are still held
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()
