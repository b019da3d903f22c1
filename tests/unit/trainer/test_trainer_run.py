"""A run of one job: resumed it ends the same, it stops early, it keeps the best, it refuses to diverge."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load, save
from trainer_making import Recorder, dataset, order, train

from prefix_engine.prefix import Prefix
from prefix_engine.template import Template
from prefix_engine.testing import random_prefix, tiny_base
from trainer_worker import evaluate, updates
from trainer_worker.evaluate import score
from trainer_worker.gate import judge
from trainer_worker.order import Version
from trainer_worker.pieces import at_once
from trainer_worker.refusal import Refused
from trainer_worker.report import Stopped
from trainer_worker.rows import Encoded, check_lengths, encode, rows_of
from trainer_worker.training import Training

BASE = tiny_base()


def digest(trained):
    return hashlib.sha256(trained.prefix.to_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prepared(asked):
    training = Training(BASE, asked, Recorder())
    at_once(training.prepare())
    return training


def cut_and_resumed(asked, when):
    """Cut again and again, after so many more questions whether to stop; the end and the number of cuts."""
    checkpoint, cuts = None, 0
    while True:
        report = Recorder(lambda recorder: recorder.asked > when)
        try:
            return train(BASE, order_with(asked, checkpoint), report), cuts
        except Stopped:
            cuts += 1
            if report.checkpoints:
                checkpoint = report.checkpoints[-1][1]
        assert cuts < 100


def order_with(asked, checkpoint):
    return type(asked)(
        **{**{name: getattr(asked, name) for name in asked.__slots__}, "checkpoint": checkpoint}
    )


@pytest.mark.parametrize("form", ["mlp", "direct"])
@pytest.mark.parametrize("when", [3, 5, 9])
def test_a_run_cut_anywhere_ends_bit_for_bit_the_same(form, when):
    asked = order(wishes={"parametrization": form, "weight_decay": 0.01, "eval_steps": 3})
    whole = train(BASE, asked)
    resumed, cuts = cut_and_resumed(asked, when)
    assert cuts >= 2
    assert digest(resumed) == digest(whole)
    changing = {"seconds"}
    assert {k: v for k, v in resumed.metrics.items() if k not in changing} == {
        k: v for k, v in whole.metrics.items() if k not in changing
    }
    assert resumed.trained_tokens == whole.trained_tokens


@pytest.mark.parametrize("form", ["mlp", "direct"])
def test_a_run_with_dropout_cut_anywhere_ends_bit_for_bit_the_same(form):
    asked = order(wishes={"parametrization": form, "dropout": 0.3, "eval_steps": 3})
    whole = train(BASE, asked)
    resumed, cuts = cut_and_resumed(asked, 5)
    assert cuts >= 2
    assert digest(resumed) == digest(whole) == digest(train(BASE, asked))
    assert digest(whole) != digest(train(BASE, order(wishes={"parametrization": form, "eval_steps": 3})))
    assert whole.metrics["dropout"] == 0.3


def test_dropout_zeroes_a_share_of_the_prefix_and_enlarges_the_rest():
    learner = prepared(order(wishes={"dropout": 0.25, "prefix_length": 60}))._run._learner
    whole, dropped = learner.form.prefix().detach(), learner.prefix().detach()
    kept = dropped != 0
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
    assert torch.equal(learner.prefix(), dropped)
    learner.done += 1
    assert not torch.equal(learner.prefix() != 0, kept)


def test_dropout_is_for_updates_alone():
    """What is looked at, kept and served is whole."""
    report = Recorder()
    trained = train(BASE, order(wishes={"dropout": 0.5}), report)
    assert bool((trained.prefix.tensor != 0).all())
    looks = [told["valid_loss"] for told in report.metrics if "valid_loss" in told]
    assert looks[0] == train(BASE, order()).metrics["first_loss"]


def test_the_settings_are_told_before_the_first_update():
    class First(Recorder):
        def progress(self, fields):
            super().progress(fields)
            assert self.settings is not None

    report = First()
    train(BASE, order(wishes={"init": "random", "dropout": 0.1}), report)
    told = {"max_steps": 12, "batch_size": 8, "dropout": 0.1, "init": "random", "n_epochs": 3}
    assert report.settings | told == report.settings
    assert report.settings["learning_rate_multiplier"] == 1.0


def test_a_checkpoint_taken_on_the_way_leads_to_the_same_end():
    asked = order(checkpoint_seconds=0.0)
    report = Recorder()
    whole = train(BASE, asked, report)
    assert [update for update, _ in report.checkpoints] == list(range(12))
    for update, state in report.checkpoints[1::4]:
        again = Recorder()
        assert digest(train(BASE, order_with(asked, state), again)) == digest(whole)
        assert again.updates[0]["update"] == update + 1


def test_a_checkpoint_of_another_release_is_left_aside_and_the_run_begins_anew():
    asked = order(checkpoint_seconds=0.0)
    report = Recorder()
    whole = train(BASE, asked, report)
    tensors = load(report.checkpoints[5][1])
    told = json.loads(bytes(tensors["state"].tolist()))
    told["state"]["of_tomorrow"] = 1
    tensors["state"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    again = Recorder()
    assert digest(train(BASE, order_with(asked, save(tensors)), again)) == digest(whole)
    assert again.updates[0]["update"] == 1


def test_the_best_prefix_is_told_with_the_checkpoint_and_once_while_it_stays_the_best():
    told = []

    class Listing(Recorder):
        def best(self, fields, payload):
            super().best(fields, payload)
            told.append(fields["metrics"]["step"])

        def checkpoint(self, update, payload):
            super().checkpoint(update, payload)
            told.append((update, load(payload)["best"]))

    report = Listing()
    train(BASE, order(wishes={"eval_steps": 4}, checkpoint_seconds=0.0), report)
    looks = {event["step"]: event["valid_loss"] for event in report.metrics if "valid_loss" in event}
    steps = [entry for entry in told if isinstance(entry, int)]
    assert steps == sorted(set(steps))
    assert steps[:3] == [0, 4, 8]  # as long as the loss falls at every look
    for (fields, payload), step in zip(report.bests, steps, strict=True):
        assert fields["metrics"] == {"step": step, "valid_loss": looks[step]}
        prefix = Prefix.from_bytes(payload, BASE)
        assert (fields["m"], fields["position_offset"]) == (prefix.m, prefix.position_offset)
        update, best = told[told.index(step) + 1]  # the checkpoint that it goes with
        assert update == step
        assert torch.equal(prefix.tensor, best)
    cut = Recorder(lambda told: len(told.updates) == 7)
    with pytest.raises(Stopped):
        train(BASE, order(wishes={"eval_steps": 4}), cut)
    assert cut.checkpoints[-1][0] == 7
    assert cut.bests == [report.bests[1]]  # of the look before, not of the moment


def test_a_run_stopped_before_its_first_look_tells_no_prefix():
    report = Recorder(lambda told: True)
    with pytest.raises(Stopped):
        train(BASE, order(), report)
    assert report.bests == []


@pytest.mark.parametrize("change", [{"seed": 4}, {"wishes": {"max_steps": 13}}, {"data": dataset(seed=8)}])
def test_a_checkpoint_of_another_run_is_not_taken_over(change):
    report = Recorder()
    train(BASE, order(checkpoint_seconds=0.0), report)
    state = report.checkpoints[5][1]
    fresh, told = train(BASE, order(**change)), Recorder()
    assert digest(train(BASE, order(checkpoint=state, **change), told)) == digest(fresh)
    assert any("begins anew" in message for message in told.messages)


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("batches.POOL", 2),
        ("batches.SEED_MIX", 7),
        ("updates.CLIP", 0.5),
        ("adam.BETAS", (0.8, 0.999)),
        ("run.LOOK_TOKENS", 20),
        ("split.FEWEST", 9),
    ],
)
def test_a_checkpoint_of_a_trainer_with_other_constants_is_not_taken_over(monkeypatch, constant, value):
    report = Recorder()
    train(BASE, order(checkpoint_seconds=0.0), report)
    monkeypatch.setattr(f"trainer_worker.{constant}", value)
    fresh, told = train(BASE, order()), Recorder()
    assert digest(train(BASE, order(checkpoint=report.checkpoints[5][1]), told)) == digest(fresh)
    assert any("begins anew" in message for message in told.messages)


@pytest.mark.parametrize("state", [b"", b"nonsense", b"\x08" + bytes(7) + b"{}      "])
def test_a_damaged_checkpoint_costs_time_only(state):
    assert digest(train(BASE, order(checkpoint=state))) == digest(train(BASE, order()))


def test_the_same_seed_gives_the_same_prefix_and_another_another():
    assert digest(train(BASE, order())) == digest(train(BASE, order()))
    assert digest(train(BASE, order(seed=4))) != digest(train(BASE, order()))


@pytest.mark.parametrize("form", ["mlp", "direct"])
def test_training_lowers_the_held_out_loss(form):
    metrics = train(BASE, order(dataset(80), wishes={"max_steps": 60, "parametrization": form})).metrics
    assert metrics["held_out_loss"] < metrics["first_loss"]
    assert metrics["held_out_loss"] < 0.8 * metrics["base_loss"]


def test_it_ends_early_when_the_held_out_loss_rises_and_keeps_the_best():
    """Labels that cannot be learned: what falls in training does not fall on rows held out."""
    noise = dataset(24, seed=1, longest=3)
    wishes = {"max_steps": 3000, "eval_steps": 5, "prefix_length": 20, "parametrization": "direct"}
    report = Recorder()
    metrics = train(BASE, order(noise, wishes=wishes), report).metrics
    assert metrics["updates"] < 3000
    assert metrics["updates"] == metrics["best_update"] + 4 * 5
    looks = [told["valid_loss"] for told in report.metrics if "valid_loss" in told]
    assert metrics["held_out_loss"] == pytest.approx(min(looks), abs=1e-6)


def test_a_run_that_diverges_is_refused_with_the_mend():
    with pytest.raises(Refused) as refused:
        train(BASE, order(wishes={"learning_rate": 10.0, "warmup_steps": 0, "max_steps": 400}, start=_huge()))
    assert (refused.value.code, refused.value.param) == ("diverged", "hyperparameters.learning_rate")


def _huge():
    prefix = random_prefix(BASE, 4, spread=1e30)
    return Version("ver-1", prefix.to_bytes(), Template.of(BASE.tokenizer))


def test_the_live_version_is_scored_on_the_same_rows():
    first = train(BASE, order())
    live = Version("ver-1", first.prefix.to_bytes(), first.template)
    metrics = train(BASE, order(live=live, seed=9)).metrics
    assert metrics["live_loss"] == pytest.approx(first.metrics["held_out_loss"], abs=1e-6)


def fresh(count):
    """Rows with prompts that `dataset` never makes."""
    rows = ({"prompt": f"fresh {i}", "completion": f"ok {i}"} for i in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def live_version(prefix):
    return Version("v", prefix.to_bytes(), Template.of(BASE.tokenizer))


def test_a_live_version_that_can_serve_nobody_is_passed_over():
    report = Recorder()
    metrics = train(BASE, order(live=live_version(random_prefix(tiny_base(seed=5), 4))), report).metrics
    assert metrics["live_loss"] is None
    assert metrics["compared_rows"] is None
    assert any("base_mismatch" in message for message in report.messages)


def test_rows_that_do_not_fit_behind_the_live_version_are_left_out_of_both_sides():
    """One long row must not let a worse version past the gate."""
    long = json.dumps({"prompt": "long", "completion": "x" * 60}).encode() + b"\n"
    held_out = fresh(9) + long
    live = random_prefix(BASE, 64, spread=0.1)
    report = Recorder()
    found = train(BASE, order(validation=("file-2", held_out), live=live_version(live)), report)
    metrics = found.metrics
    assert (metrics["held_out_rows"], metrics["compared_rows"]) == (10, 9)
    short = train(BASE, order(validation=("file-2", fresh(9)), live=live_version(live))).metrics
    assert metrics["live_loss"] == pytest.approx(short["live_loss"], abs=1e-6)
    rows = at_once(encode(at_once(rows_of([("f", fresh(9))])), found.template, BASE.tokenizer))
    own = at_once(score(BASE, rows, found.prefix.tensor, found.prefix.position_offset)).loss
    assert metrics["compared_loss"] == pytest.approx(own, abs=1e-6)
    assert any("do not fit behind the live version" in message for message in report.messages)
    assert b"live version, on 9 of 10 held out" in found.files["losses.svg"]


def test_a_live_version_that_fits_no_row_keeps_its_place():
    metrics = train(BASE, order(live=live_version(random_prefix(BASE, 126)))).metrics
    assert metrics["compared_rows"] == 0
    verdict = judge(metrics["held_out_loss"], metrics["base_loss"], None, metrics["compared_loss"], 0)
    assert not verdict.promote


def test_a_validation_file_is_the_held_out_set():
    few = dataset(3)
    metrics = train(BASE, order(few, validation=("file-2", dataset(5, seed=7)))).metrics
    assert (metrics["training_rows"], metrics["held_out_rows"]) == (3, 5)


def test_validation_rows_that_are_trained_on_are_not_scored():
    report = Recorder()
    mixed = dataset(30) + fresh(12)
    metrics = train(BASE, order(dataset(30), validation=("file-2", mixed)), report).metrics
    assert metrics["held_out_rows"] == 12
    assert any("30 of 42 validation rows are trained on" in message for message in report.messages)


def test_a_validation_file_that_is_the_training_file_is_refused():
    with pytest.raises(Refused) as refused:
        train(BASE, order(dataset(30), validation=("file-2", dataset(30))))
    assert (refused.value.code, refused.value.param) == ("validation_seen", "validation_file")


def test_a_start_version_and_words_to_start_from_exclude_each_other():
    start = live_version(random_prefix(BASE, 4))
    with pytest.raises(Refused) as refused:
        train(BASE, order(wishes={"init_text": "words"}, start=start))
    assert refused.value.param == "hyperparameters.init_text"


def test_pieces_of_an_update_add_up_to_the_whole(monkeypatch):
    whole = train(BASE, order(wishes={"max_steps": 6}))
    monkeypatch.setattr(updates, "PIECE_TOKENS", 40)
    pieces = train(BASE, order(wishes={"max_steps": 6}))
    assert torch.allclose(whole.prefix.tensor, pieces.prefix.tensor, atol=2e-4)
    assert whole.metrics["held_out_loss"] == pytest.approx(pieces.metrics["held_out_loss"], abs=1e-4)


def test_a_prefixs_positions_count_for_the_pieces_of_an_update_and_of_a_look():
    row = Encoded((1, 2, 3, 4), 1)
    long = updates.PIECE_TOKENS // 2 - 4
    pieces = updates._pieces([(0, row.behind(0, 0))] * 4 + [(1, row.behind(1, 0))] * 8, [long, 0])
    assert [[place for place, _ in piece] for piece in pieces] == [[0, 0], [0, 0], [1] * 8]
    batches = evaluate._batches([row] * 5, evaluate._BATCH_TOKENS // 2 - 4)
    assert [len(batch) for batch in batches] == [2, 2, 1]


@pytest.mark.parametrize("m", [10, 100])
def test_the_mlp_learns_at_every_length(m):
    """The fit must leave weights with which a step does not leap."""
    wishes = {"parametrization": "mlp", "prefix_length": m, "max_steps": 30, "eval_steps": 5}
    report = Recorder()
    metrics = train(BASE, order(dataset(60), wishes=wishes), report).metrics
    looks = [told["valid_loss"] for told in report.metrics if "valid_loss" in told]
    assert metrics["held_out_loss"] < metrics["first_loss"]
    assert max(looks) <= looks[0] + 0.2


def test_several_files_are_learned_from_together():
    metrics = train(BASE, order(training=[("a", dataset(20)), ("b", dataset(20, seed=5))])).metrics
    assert metrics["training_rows"] + metrics["held_out_rows"] == 40


def test_a_row_that_does_not_fit_is_refused_with_its_line():
    data = dataset(30) + b'\n{"prompt": "long", "completion": "' + b"x" * 120 + b'"}\n' + dataset(3)
    with pytest.raises(
        Refused, match=r"line 32 of file-1 is 126 tokens long, the model has room for 118"
    ) as refused:
        train(BASE, order(data, wishes={"prefix_length": 10, "text_start": "m"}))
    assert (refused.value.code, refused.value.param) == ("row_too_long", "training_file")
    train(BASE, order(data, wishes={"prefix_length": 10, "text_start": "0", "max_steps": 1}))


def test_a_validation_row_that_does_not_fit_names_that_file():
    data = b'{"prompt": "long", "completion": "' + b"x" * 140 + b'"}\n'
    with pytest.raises(Refused) as refused:
        train(BASE, order(validation=("file-2", data)))
    assert refused.value.param == "validation_file"
    assert "x" * 10 not in refused.value.message


def test_a_row_of_exactly_the_room_there_is_fits():
    rows = at_once(rows_of([("f", b'{"prompt": "p", "completion": "abc"}\n')]))
    codes = at_once(encode(rows, Template.of(BASE.tokenizer), BASE.tokenizer))
    assert len(codes[0].tokens) == 6
    assert BASE.tokenizer.decode(list(codes[0].tokens[codes[0].loss_from :])) == "abc"
    check_lengths(rows, codes, 10, 16, "training_file")
    with pytest.raises(Refused):
        check_lengths(rows, codes, 11, 16, "training_file")


def test_learners_side_by_side_move_as_each_alone():
    def learner(seed, form):
        asked = order(dataset(30, seed=seed), seed=seed, wishes={"parametrization": form})
        return prepared(asked)._run._learner

    made = [(1, "mlp"), (2, "direct"), (3, "direct")]
    together, alone = ([learner(*what) for what in made] for _ in range(2))
    for _ in range(3):
        joint = at_once(updates.update(BASE, together))
        for mine, theirs in zip(alone, joint, strict=True):
            (own,) = at_once(updates.update(BASE, [mine]))
            assert own.loss == pytest.approx(theirs.loss, abs=1e-5)
            assert (own.tokens, own.accuracy) == (theirs.tokens, pytest.approx(theirs.accuracy))
    for mine, theirs in zip(alone, together, strict=True):
        torch.testing.assert_close(mine.form.prefix(), theirs.form.prefix(), atol=1e-3, rtol=1e-3)


def test_progress_has_what_the_command_shows():
    report = Recorder()
    train(BASE, order(), report)
    assert [told["update"] for told in report.updates] == list(range(1, 13))
    for told in report.updates:
        assert told["updates"] == 12
        assert told["seconds_left"] >= 0
        assert told["train_loss"] > 0
        assert told["held_out_loss"] > 0


def test_metrics_events_use_the_names_of_openai():
    report = Recorder()
    train(BASE, order(), report)
    assert [told["step"] for told in report.metrics] == list(range(13))
    last = report.metrics[-1]
    assert {"train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy"} <= set(last)


def test_nothing_that_is_told_quotes_the_rows():
    report = Recorder()
    secret = b'{"prompt": "canary-seven", "completion": "parrot-nine"}\n'
    trained = train(BASE, order(dataset(30) + secret), report)
    told = f"{report.events} {report.updates} {trained.metrics}"
    assert "canary" not in told
    assert "parrot" not in told
