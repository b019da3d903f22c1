"""Every method reads and writes as it should: equal to what it stands for, alone and in any batch."""

import pytest
import torch

from bench.paper import decoding
from bench.paper.decoding import write
from bench.paper.fitting import fit
from bench.paper.host import open_host
from bench.paper.methods.adapter import Adapter, bottleneck
from bench.paper.methods.infix import Infix
from bench.paper.methods.plain import Bare, FineTuning, TopTwo
from bench.paper.methods.prefix import ProductPrefix
from bench.paper.methods.soft import Soft
from bench.paper.methods.words import Search, Words
from prefix_engine.prefix import Prefix
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.evaluate import score
from trainer_worker.pieces import at_once
from trainer_worker.plan import resolve
from trainer_worker.rows import Row, encode
from trainer_worker.texts import Prompt, Writer
from trainer_worker.texts import write as written_by_the_engine

PROMPTS = (
    "name : Aromi | area : riverside",
    "name : Blue Spice | Type : coffee shop | food : French | near : Ranch",
    "name : Cocum",
)
TEXTS = ("Aromi lies by the river.", "Blue Spice is a French coffee shop near Ranch.", "This is Cocum.")
WORDS = "describe the restaurant"


@pytest.fixture(scope="module")
def host():
    return open_host("gpt2-mini", "cpu")


@pytest.fixture(scope="module")
def rows(host):
    given = [Row(prompt, text, "rows", 1) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    return at_once(encode(given, host.template, host.base.tokenizer))


def prefix_of(host, m, offset):
    config = host.base.config
    generator = torch.Generator().manual_seed(m)
    shape = (config.layers, 2, config.heads, m, config.head_dim)
    return Prefix(torch.randn(shape, generator=generator), offset, host.base.fingerprint)


def moved(method):
    """The method as after some training: its tensors are no longer where they began."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in method.kept.values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return method


def cost(method, rows):
    with torch.no_grad():
        return float(method.loss(rows)[0])


MAKERS = {
    "base": Bare,
    "prefix, text at m": lambda host: ProductPrefix(host, prefix_of(host, 5, 5)),
    "prefix, text at 0": lambda host: ProductPrefix(host, prefix_of(host, 5, 0)),
    "infix": lambda host: Infix(host, 4, WORDS),
    "soft": lambda host: Soft(host, 5, WORDS),
    "words": lambda host: Words(host, host.encode("Describe it:\n")),
    "search": lambda host: Search(host, 4, WORDS),
    "adapter": lambda host: Adapter(host, 0.03, 0),
    "top two": TopTwo,
    "fine-tuning": FineTuning,
}
BEGIN_AS_THE_BASE = ("adapter", "top two", "fine-tuning")


@pytest.mark.parametrize("name", BEGIN_AS_THE_BASE)
def test_what_changes_the_model_begins_as_the_base(host, rows, name):
    assert MAKERS[name](host).score(rows) == pytest.approx(Bare(host).score(rows), abs=1e-6)


@pytest.mark.parametrize("name", BEGIN_AS_THE_BASE)
def test_and_is_another_when_moved_while_the_base_stays(host, rows, name):
    before = Bare(host).score(rows)
    assert abs(moved(MAKERS[name](host)).score(rows) - before) > 1e-3
    assert Bare(host).score(rows) == before
    assert at_once(score(host.base, rows, None, 0)).loss == pytest.approx(before, abs=1e-5)


def test_the_harness_and_the_product_score_the_base_alike(host, rows):
    assert Bare(host).score(rows) == pytest.approx(at_once(score(host.base, rows, None, 0)).loss, abs=1e-5)


@pytest.mark.parametrize("offset", [0, 5])
def test_the_harness_and_the_product_score_a_prefix_alike(host, rows, offset):
    prefix = prefix_of(host, 5, offset)
    ours = at_once(score(host.base, rows, prefix.tensor, offset)).loss
    assert ProductPrefix(host, prefix).score(rows) == pytest.approx(ours, abs=1e-5)
    assert abs(ours - Bare(host).score(rows)) > 0.1


def test_a_row_costs_the_same_alone_and_in_a_batch(host, rows):
    for name, make in MAKERS.items():
        method = moved(make(host))
        together = cost(method, rows)
        alone = sum(cost(method, [row]) for row in rows)
        assert together == pytest.approx(alone, rel=1e-5), name


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_texts_are_the_same_alone_and_in_a_batch(host, name, beams):
    method = moved(MAKERS[name](host))
    together = write(method, PROMPTS, beams=beams, most=12)
    assert together == [write(method, [prompt], beams=beams, most=12)[0] for prompt in PROMPTS]
    assert any(together)


def test_a_cache_with_room_writes_what_transformers_own_does(host, monkeypatch):
    def own(cache, beams, most):
        cache.batch_repeat_interleave(beams)
        return cache

    methods = {name: moved(make(host)) for name, make in MAKERS.items()}
    roomy = {name: write(method, PROMPTS, beams=3, most=24) for name, method in methods.items()}
    monkeypatch.setattr(decoding, "roomy", own)
    assert roomy == {name: write(method, PROMPTS, beams=3, most=24) for name, method in methods.items()}


@pytest.mark.parametrize("offset", [0, 5])
def test_greedy_texts_are_those_of_the_serving_engine(host, offset):
    prefix = prefix_of(host, 5, offset)
    ours = write(ProductPrefix(host, prefix), PROMPTS, beams=1, most=10, line_breaks=True)
    prompts = [Prompt(text, ("",)) for text in PROMPTS]
    served = at_once(written_by_the_engine(host.base, Writer(prefix, host.template), prompts, 10))
    assert ours == [text.strip() for text in served]


def test_soft_prompts_are_transformers_inputs_embeds(host, rows):
    method = moved(Soft(host, 5, WORDS))
    row = rows[1]
    ids = torch.tensor([row.tokens])
    embeds = torch.cat([method.kept["embeddings"][None], host.model.transformer.wte(ids)], 1)
    with torch.no_grad():
        logits = host.model(inputs_embeds=embeds).logits[0, 5:]
    wanted = torch.tensor(row.tokens[row.loss_from :])
    found = torch.nn.functional.cross_entropy(logits[row.loss_from - 1 : -1], wanted, reduction="sum")
    assert cost(method, [row]) == pytest.approx(float(found), rel=1e-5)


def test_soft_prompts_of_real_words_are_these_words_as_text(host, rows):
    ids = host.encode(WORDS)
    assert Soft(host, len(ids), WORDS).score(rows) == pytest.approx(Words(host, ids).score(rows), abs=1e-6)


def test_words_before_the_input_are_what_the_base_reads_there(host, rows):
    ids = host.encode("Describe it: ")
    longer = [type(row)((*ids, *row.tokens), row.loss_from + len(ids)) for row in rows]
    assert Words(host, ids).score(rows) == pytest.approx(Bare(host).score(longer), abs=1e-5)


def test_an_infix_without_an_input_is_a_prefix(host):
    method = moved(Infix(host, 4, WORDS))
    prefix = Prefix(method.kept["infix"].detach(), 4, host.base.fingerprint)
    rows = [Row("", text, "rows", 1) for text in TEXTS]
    empty = at_once(encode(rows, host.template, host.base.tokenizer))
    assert all(row.loss_from == 1 for row in empty)
    assert method.score(empty) == pytest.approx(ProductPrefix(host, prefix).score(empty), abs=1e-6)


def test_the_input_does_not_see_the_infix_but_a_prefix(host):
    infix, prefix = Infix(host, 4, WORDS), ProductPrefix(host, prefix_of(host, 4, 4))
    ids = [host.encode(PROMPTS[1])]
    alone = Bare(host).context(ids).layers[-1][0]
    before, behind = (method.context(ids).layers[-1][0] for method in (infix, prefix))
    assert torch.allclose(before[:, :, : alone.shape[2]], alone)
    assert not torch.allclose(behind[:, :, 4:], alone, atol=1e-2)


def test_adapters_have_about_the_share_that_is_asked_for(host):
    for share, low, high in ((0.03, 0.028, 0.03), (0.001, 0.0008, 0.0012)):
        assert low <= Adapter(host, share, 0).trained / host.size <= high
    medium, blocks, width = 354_823_168, 24, 1024
    for share, low, high in ((0.03, 0.029, 0.03), (0.001, 0.0007, 0.001)):
        size = bottleneck(medium, blocks, width, share)
        count = blocks * (2 * width * size + size + 3 * width)
        assert low <= count / medium <= high


def test_what_is_trained_is_what_the_method_says(host):
    config = host.base.config
    block = sum(weight.numel() for weight in host.model.transformer.h[0].parameters())
    assert FineTuning(host).trained == host.size
    assert TopTwo(host).trained == 2 * block + 2 * config.width
    assert Soft(host, 10, WORDS).trained == 10 * config.width
    assert Infix(host, 10, WORDS).trained == 10 * config.layers * 2 * config.width
    assert (Words(host, [1, 2]).trained, Words(host, [1, 2]).stored_bytes) == (0, 8)


def fit_some(method, rows, rate, updates=12, held_out=None):
    wishes = Hyperparameters(learning_rate=rate, max_steps=updates, batch_size=4)
    plan = resolve(wishes, m=1, position_offset=0, rows=len(rows), seed=0)
    return fit(method, rows, held_out or rows, plan)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("infix", 3e-2),
        ("soft", 1e-1),
        ("adapter", 3e-3),
        ("top two", 1e-3),
        ("fine-tuning", 1e-3),
        ("search", 1.0),
    ],
)
def test_training_lowers_the_loss_and_leaves_the_method_at_its_best(host, rows, name, rate):
    method = MAKERS[name](host)
    before, base = method.score(rows), Bare(host).score(rows)
    fitted = fit_some(method, rows, rate)
    losses = dict(fitted.curve)
    assert method.score(rows) < before - 0.05
    assert method.score(rows) == pytest.approx(min(losses.values()), abs=1e-5)
    assert losses[fitted.best_update] == min(losses.values())
    assert Bare(host).score(rows) == base


def test_line_breaks_are_never_written(host):
    prefix = ProductPrefix(host, prefix_of(host, 5, 0))  # which writes them when it may
    assert any("\n" in text for text in write(prefix, PROMPTS, beams=1, most=10, line_breaks=True))
    assert not any("\n" in text for text in write(prefix, PROMPTS, beams=1, most=10))


def test_training_stops_after_looks_without_a_better_loss(host, rows):
    method = Soft(host, 2, WORDS)
    held_out = [
        type(row)((*row.tokens[: row.loss_from], *row.tokens[: row.loss_from]), row.loss_from) for row in rows
    ]
    before = method.score(held_out)  # rows that have nothing to do with those that are trained on
    fitted = fit_some(method, rows, 1.0, updates=40, held_out=held_out)
    assert fitted.updates == fitted.best_update + 16  # a tenth of the run apart, four of them
    assert method.score(held_out) <= before + 1e-6


def test_the_search_changes_one_token_at_a_time_and_never_to_the_end_token(host, rows):
    method = Search(host, 4, WORDS)
    before = method.kept["tokens"].clone()
    plan = resolve(Hyperparameters(max_steps=3), m=1, position_offset=0, rows=3, seed=0)
    mover = method.mover(plan, rows)
    first = method.score(rows)
    assert mover.update(rows, 0.0) == pytest.approx(first, abs=1e-5)
    assert int((method.kept["tokens"] != before).sum()) == 1
    assert method.score(rows) < first
    assert host.template.end_id not in method.kept["tokens"].tolist()


def test_the_search_judges_on_rows_that_gave_no_gradient(host, rows):
    method = Search(host, 4, WORDS)
    plan = resolve(Hyperparameters(max_steps=3), m=1, position_offset=0, rows=3, seed=0)
    given = [type(row)(row.tokens, row.loss_from) for row in rows * 14]
    judges = method.mover(plan, given)._judges(given[:4])
    assert len(judges) == 32
    assert len(set(map(id, judges))) == 32
    assert not set(map(id, judges)) & set(map(id, given[:4]))
    assert set(map(id, method.mover(plan, rows)._judges(rows))) == set(map(id, rows))


def test_the_products_trainer_makes_the_prefix(host, rows):
    given = [Row(prompt, text, "rows", 1) for prompt, text in zip(PROMPTS, TEXTS, strict=True)] * 4
    method = ProductPrefix(host)
    wishes = Hyperparameters(max_steps=6, prefix_length=3, init_text=WORDS)
    other = [Row(f"name : place {i}", "It is a place.", "rows", 1) for i in range(10)]
    trained = method.train(wishes, 0, given, other, "words")
    assert method.kept["prefix"].shape[3] == 3
    held_out = at_once(encode(other, host.template, host.base.tokenizer))
    assert method.score(held_out) == pytest.approx(trained.metrics["held_out_loss"], abs=1e-5)
    assert method.score(held_out) < Bare(host).score(held_out)


def test_a_uniform_start_lies_between_0_and_1(host):
    given = [Row(f"name : place {i}", "It is a place.", "rows", 1) for i in range(24)]
    method = ProductPrefix(host)
    wishes = Hyperparameters(max_steps=1, prefix_length=3, learning_rate=1e-8)
    method.train(wishes, 0, given[:12], given[12:], "uniform")
    values = method.kept["prefix"]
    assert 0 <= float(values.min()) < 0.01
    assert 0.99 < float(values.max()) <= 1


def test_an_infix_takes_the_positions_between_input_and_answer(host, rows):
    method = moved(Infix(host, 4, WORDS))
    empty = at_once(encode([Row("", TEXTS[0], "rows", 1)], host.template, host.base.tokenizer))
    together = cost(
        method, [*empty, rows[1]]
    )  # here the empty input stands behind pads, alone there are none
    assert together == pytest.approx(cost(method, empty) + cost(method, [rows[1]]), rel=1e-5)
