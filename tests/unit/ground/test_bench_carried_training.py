"""The carried base's training: rates, windows, a run that was cut, and the folder that is left."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from carried_base_making import write_corpus
from safetensors import safe_open

from bench.carried_base import __main__ as command
from bench.carried_base import batches, card, compare, losses, model, state, tokens
from bench.carried_base.corpus import read_listing
from bench.carried_base.muon import Muon, orthogonal
from bench.carried_base.recipe import Recipe, from_json
from bench.carried_base.train import Run, RunError
from prefix_engine import load_base

TINY = Recipe(
    start="none", updates=8, blocks=2, block=32, window=8, long_every=3, warmup=2,
    layers=1, heads=2, width=16, vocab=300, matrices_rate=3e-3, rest_rate=3e-3,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are rounded the same way; the number is set back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, corpus, tokenizer and encoded documents of a small corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = read_listing(write_corpus(folder))
    tokenizer = tokens.train_tokenizer(folder, corpus, TINY.vocab)
    return folder, corpus, tokenizer, tokens.encode(folder, corpus, tokenizer, folder / "cache")


@pytest.fixture
def run(made, tmp_path):
    _, corpus, _, encoded = made
    return Run(tokens.stream(encoded, TINY.seed), corpus.digest, "", tmp_path, threads=1)


def weights(trained):
    return {name: weight.detach().clone() for name, weight in trained.named_parameters()}


def test_rates_warm_up_stay_and_fall_to_nothing_behind_the_last_update():
    recipe = replace(TINY, updates=100, warmup=10, decay=0.4)
    shares = [recipe.share(update) for update in range(101)]
    assert shares[:10] == pytest.approx([(at + 1) / 10 for at in range(10)])
    assert shares[9:60] == [1.0] * 51
    assert shares[60:] == pytest.approx([(100 - at) / 41 for at in range(60, 101)])
    assert shares[99] > shares[100] == 0


def test_a_run_shorter_than_its_warm_up_still_rises_and_falls():
    shares = [replace(TINY, updates=4, warmup=50).share(update) for update in range(4)]
    assert shares[0] < shares[1] > shares[2] > shares[3] > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"window": 7}, "window must divide block"), ({"decay": 0.0}, "decay must be above 0")],
)
def test_settings_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        replace(TINY, **wrong)


def test_a_recipe_comes_back_from_json():
    assert from_json(json.loads(json.dumps(TINY.as_json()))) == TINY


def test_an_epoch_reads_every_run_of_tokens_once_and_predicts_the_token_behind_each():
    stream = np.arange(1, 2000, dtype=np.uint16)
    a_epoch = ((len(stream) - 1) // TINY.block - 1) // TINY.blocks
    seen = []
    for update in range(a_epoch):
        found = batches.batch(stream, TINY, update)
        assert torch.equal(found.targets, found.ids + 1)
        assert found.ids.numel() == TINY.tokens
        seen += found.ids.flatten().tolist()
    assert len(seen) == len(set(seen)) >= len(stream) - 4 * TINY.block


def test_windows_reach_every_position_and_some_are_as_long_as_the_context():
    stream = np.ones(2000, dtype=np.uint16)
    found = [batches.batch(stream, TINY, update) for update in range(120)]
    assert {tuple(one.ids.shape) for one in found} == {(2, 32), (8, 8)}
    assert [one.ids.shape[1] for one in found[:6]] == [8, 8, 32, 8, 8, 32]
    short = [one.first for one in found if one.ids.shape[1] == 8]
    assert 0.3 < short.count(0) / len(short) < 0.75
    assert {at + place for at in short for place in range(8)} == set(range(32))


def test_a_corpus_shorter_than_an_update_is_refused():
    with pytest.raises(ValueError, match="an update takes 64"):
        batches.batch(np.ones(90, dtype=np.uint16), TINY, 0)


def test_gradients_made_piece_by_piece_are_those_of_transformers_own_loss(monkeypatch):
    monkeypatch.setattr(model, "PIECE", 7)
    stream = np.arange(2000, dtype=np.uint16) % 300
    taken = next(one for at in range(50) if (one := batches.batch(stream, TINY, at)).first > 0)
    parts, whole = model.fresh(TINY), model.fresh(TINY)
    loss = model.add_gradients(parts, taken, parts=2)
    positions = torch.arange(taken.first, taken.first + taken.ids.shape[1]).unsqueeze(0)
    logits = whole(input_ids=taken.ids, position_ids=positions).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), taken.targets.flatten())
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)])
def test_muon_in_float32_does_what_torchs_does(shape):
    torch.manual_seed(0)
    start, grads = torch.randn(shape), torch.randn(3, *shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    said = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    makers = Muon([ours], **said), torch.optim.Muon([theirs], **said)
    for grad in grads:
        for weight, maker in zip((ours, theirs), makers, strict=True):
            weight.grad = grad.clone()
            maker.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bfloat16 has 8 bits
    values = torch.linalg.svdvals(orthogonal(grads[0], (3.4445, -4.775, 2.0315), 5))
    assert 0.2 < values.min() <= values.max() < 1.3


def test_a_run_that_was_cut_and_went_on_has_the_bits_of_one_that_was_not(run, tmp_path_factory):
    through = model.fresh(TINY)
    before = weights(through)
    assert run.train(through, TINY) == TINY
    cut_run = replace(run, folder=tmp_path_factory.mktemp("cut"))
    for stop in (3, 5):
        cut_run.train(model.fresh(TINY), TINY, stop_after=stop)
    state.log(cut_run.folder, update=6, loss=1.0)  # logged, but the state was not kept before the cut
    resumed = model.fresh(TINY)
    cut_run.train(resumed, replace(TINY, updates=0))
    for name, weight in weights(through).items():
        assert torch.equal(weight, weights(resumed)[name]), name
        assert not torch.equal(weight, before[name]), name
    logs = [[e for e in state.read_log(one.folder) if "loss" in e] for one in (run, cut_run)]
    assert [e["update"] for e in logs[1]] == list(range(1, 9))
    for one, other in zip(*logs, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        }


def test_the_number_of_updates_may_change_while_the_rate_is_constant_and_not_later(run, tmp_path_factory):
    run.train(model.fresh(TINY), TINY, stop_after=3)
    other = replace(TINY, updates=6)
    assert run.train(model.fresh(TINY), other, stop_after=5) == other
    with pytest.raises(RunError, match="leave --updates and --minutes out"):
        run.train(model.fresh(TINY), TINY)
    straight = replace(run, folder=tmp_path_factory.mktemp("straight"))
    ends = [model.fresh(TINY), model.fresh(TINY)]
    run.train(ends[0], other)
    straight.train(ends[1], other)
    for name, weight in weights(ends[0]).items():
        assert torch.equal(weight, weights(ends[1])[name])


@pytest.mark.parametrize(
    "changed", [{"corpus": "of others"}, {"start": "of others"}, {"recipe": replace(TINY, clip=0.5)}]
)
def test_a_folder_with_another_run_is_left_alone(run, changed):
    run.train(model.fresh(TINY), TINY, stop_after=1)
    recipe = changed.pop("recipe", TINY)
    with pytest.raises(RunError, match="give --out a new folder"):
        replace(run, **changed).train(model.fresh(TINY), recipe)


def test_planning_gives_updates_for_the_minutes_and_leaves_the_weights_alone(run):
    start = model.fresh(TINY)
    before = weights(start)
    few, many = (run.planned(start, replace(TINY, updates=0), minutes).updates for minutes in (0.0001, 5))
    assert 1 <= few < many
    assert all(torch.equal(weight, before[name]) for name, weight in weights(start).items())
    assert [e["updates"] for e in state.read_log(run.folder)] == [few, many]


def test_losses_are_those_of_the_product_for_each_source(made):
    _, corpus, tokenizer, encoded = made
    start = model.fresh(TINY)
    said = losses.score(start, encoded, corpus, tokenizer)
    place = [text.name for text in corpus.texts].index("tales")
    nats, count, size = 0.0, 0, 0
    for at in np.flatnonzero(encoded.held_out & (encoded.sources == place)):
        ids = encoded.document(int(at))[: TINY.block].astype(np.int64)
        whole = torch.tensor([[tokens.END_ID, *ids.tolist()]])
        with torch.no_grad():
            logits = start(input_ids=whole[:, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, whole[0, 1:], reduction="sum").item()
        count += len(ids)
        size += len(tokenizer.decode(ids.tolist()).encode())
    found = said["by_source"]["tales"]
    assert found["tokens"] == count > 50
    assert found["loss"] == pytest.approx(nats / count, abs=1e-3)
    assert found["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, abs=1e-3)
    assert said["by_source"]["all"]["tokens"] == said["by_position"]["0 to 255"]["tokens"]


def test_the_command_says_what_is_wrong_with_the_corpus_and_makes_nothing(made, tmp_path, monkeypatch):
    listing, out = made[0] / "listing.json", tmp_path / "out"
    given = ["--corpus", str(tmp_path), "--listing", str(listing), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["carried_base", *given])
    with pytest.raises(SystemExit, match=r"notes\.txt\.gz is not in"):
        command.main()
    assert not out.exists()


def test_the_command_goes_on_from_the_carried_base_at_a_third_of_the_rate_it_began_with():
    given = ["--corpus", "texts", "--out", "new"]
    on = command.recipe_of(command.arguments([*given, "--minutes", "5"]))
    none = command.recipe_of(command.arguments([*given, "--from", "none", "--updates", "7"]))
    assert (on.start, on.updates, on.seed) == ("gpt2-mini", 0, Recipe().seed)
    assert (none.start, none.updates) == ("none", 7)
    assert on.matrices_rate == on.rest_rate == pytest.approx(none.rest_rate / 3)


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    """The folder of a base trained from none by the command itself, with its corpus."""
    folder = made[0]
    out = tmp_path_factory.mktemp("out") / "tiny"
    given = ["--corpus", str(folder), "--listing", str(folder / "listing.json"), "--out", str(out)]
    args = command.arguments([*given, "--from", "none", "--updates", "8", "--threads", "1"])
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "BUILD", folder)
        patched.setattr(command, "recipe_of", lambda _: TINY)
        command.make(args)
    torch.set_num_threads(threads)
    return folder, out


def test_the_engine_loads_what_a_run_leaves(finished):
    base = load_base(str(finished[1]), "cpu")
    assert (base.config.layers, base.config.width, base.config.positions, base.config.vocab) == (
        1,
        16,
        32,
        300,
    )
    assert base.config.end_id == tokens.END_ID
    with safe_open(finished[1] / state.STATE, "pt") as file:
        trained = file.get_tensor("weights/transformer.wte.weight")
    assert torch.equal(base.weights.tokens, trained.half().float())


def test_weights_are_float16_and_tied_embeddings_are_stored_once(finished):
    with safe_open(finished[1] / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F16"}
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    with safe_open(finished[1] / state.STATE, "pt") as file:
        assert not [name for name in file.keys() if "lm_head" in name]  # noqa: SIM118


def test_the_card_has_the_numbers_of_the_results_and_the_digests_of_the_corpus(finished):
    folder, out = finished
    text = (out / "README.md").read_text()
    held = json.loads((out / "heldout_loss.json").read_text())["after"]
    for name, said in held["by_source"].items():
        row = rf"^\| {name} \| {said['tokens']:,} \| {said['loss']:.3f} \| {said['bits_per_byte']:.3f} \|$"
        assert re.search(row, text, re.MULTILINE), name
    corpus = read_listing(folder / "listing.json")
    assert all(one.sha256 in text for one in (*corpus.texts, *corpus.credits))
    (out / "heldout_loss.json").write_text(
        json.dumps({"after": held | {"by_source": {"all": held["by_source"]["all"] | {"loss": 1.234}}}})
    )
    card.render(out, corpus)
    assert "| 1.234 |" in (out / "README.md").read_text()
    assert (out / "loss.svg").read_text().count("training loss, nats a token") == 1


def test_the_comparison_scores_both_on_the_same_rows_and_refuses_another_tokenizer(finished, monkeypatch):
    folder, out = finished
    monkeypatch.setattr(compare, "BUILD", folder)
    said = compare.compare([str(out), str(out)], folder, folder / "listing.json")
    assert "| all |" in said
    with pytest.raises(ValueError, match="different tokenizers"):
        compare.compare([str(out), "gpt2-mini"], folder, folder / "listing.json")
