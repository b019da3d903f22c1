from hypothesis import given
from hypothesis import strategies as st

from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.auto import AUTOS, auto_for
from trainer_worker.batches import Batches
from trainer_worker.plan import resolve, resolved


def plan(rows=1000, **wishes):
    asked = Hyperparameters.from_json(wishes)
    return resolve(asked, m=10, position_offset=10, rows=rows, seed=0)


def test_the_rate_rises_then_falls_to_nothing():
    found = plan(max_steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [found.rate(i) for i in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] == 1.0
    assert 0 < rates[-1] < 0.02
    assert all(rate > 0 for rate in rates)


def test_the_multiplier_multiplies_what_auto_would_choose():
    for form in ("mlp", "direct"):
        found = plan(parametrization=form, learning_rate_multiplier=0.5)
        assert found.learning_rate == auto_for(1000).rate(form) * 0.5
        assert plan(parametrization=form, learning_rate=0.25).learning_rate == 0.25


def test_epochs_count_passes_and_max_steps_bounds_them():
    assert plan(rows=100, batch_size=8, n_epochs=3).updates == 39
    assert plan(rows=100, batch_size=8, n_epochs=3, max_steps=20).updates == 20
    assert plan(max_steps=7).updates == 7
    assert plan(max_steps=1).warmup == 0


def test_auto_is_bounded_for_any_dataset():
    for rows in (2, 10, 1000, 200_000):
        found, auto = plan(rows=rows), auto_for(rows)
        assert auto.fewest <= found.updates <= auto.most
        assert found.batch_size == auto.batch
        assert found.dropout == auto.dropout


def test_every_size_has_one_line_and_each_line_some_sizes():
    most = [auto.rows for auto in AUTOS]
    assert most == sorted(set(most))
    assert most[-1] == float("inf")
    for auto in AUTOS[:-1]:
        assert auto_for(int(auto.rows)) is auto
        assert auto_for(int(auto.rows) + 1) is not auto


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "n_epochs": st.integers(1, 50),
            "batch_size": st.integers(1, 64),
            "learning_rate_multiplier": st.floats(0.01, 10),
            "max_steps": st.integers(1, 1000),  # more would be more epochs than a request may ask for
            "warmup_steps": st.integers(0, 300),
            "dropout": st.floats(0, 0.9),
            "eval_steps": st.integers(1, 100),
            "parametrization": st.sampled_from(["mlp", "direct"]),
        },
    ),
    st.integers(2, 3000),
)
def test_what_is_told_of_a_plan_asks_for_the_same_plan(wishes, rows):
    asked = Hyperparameters.from_json(wishes)
    sizes = {"m": 10, "position_offset": 0, "rows": rows, "seed": 0}
    found = resolve(asked, **sizes)
    told = resolved(asked, found, rows=rows, init="words")
    assert resolve(Hyperparameters.from_json(told), **sizes) == found


def test_a_rate_that_was_asked_for_is_told_without_a_multiplier():
    asked = Hyperparameters(learning_rate=0.05)
    found = resolve(asked, m=10, position_offset=10, rows=100, seed=0)
    told = resolved(asked, found, rows=100, init=None)
    assert not {"learning_rate_multiplier", "init"} & told.keys()
    assert told["text_start"] == "m"
    Hyperparameters.from_json(told | asked.to_json())


@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 5))
def test_every_epoch_sees_every_row_once(rows, size, seed):
    batches = Batches([i % 7 for i in range(rows)], size, seed)
    for epoch in range(3):
        seen = [row for i in range(batches.per_epoch) for row in batches[epoch * batches.per_epoch + i]]
        assert sorted(seen) == list(range(rows))


def test_a_batch_does_not_depend_on_those_before_it():
    lengths = [i % 11 for i in range(100)]
    one, other = Batches(lengths, 8, 5), Batches(lengths, 8, 5)
    order = [one[i] for i in range(40)]
    assert [other[i] for i in reversed(range(40))] == order[::-1]
    assert order != [Batches(lengths, 8, 6)[i] for i in range(40)]


def test_rows_of_a_batch_are_of_like_length():
    lengths = [i * 37 % 100 for i in range(1600)]
    batches = Batches(lengths, 16, 0)
    spreads = [max(s) - min(s) for s in ([lengths[i] for i in batches[n]] for n in range(batches.per_epoch))]
    assert sum(spreads) / len(spreads) < 12
