from hypothesis import given
from hypothesis import strategies as st

from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.batches import Batches
from trainer_worker.plan import LEARNING_RATE, resolve


def plan(rows=1000, tokens=50_000, **wishes):
    asked = Hyperparameters.from_json(wishes)
    return resolve(asked, m=10, position_offset=10, rows=rows, tokens=tokens, seed=0)


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
        assert found.learning_rate == LEARNING_RATE[form] * 0.5
        assert plan(parametrization=form, learning_rate=0.25).learning_rate == 0.25


def test_epochs_count_passes_and_max_steps_bounds_them():
    assert plan(rows=100, batch_size=8, n_epochs=3).updates == 39
    assert plan(rows=100, batch_size=8, n_epochs=3, max_steps=20).updates == 20
    assert plan(max_steps=7).updates == 7
    assert plan(max_steps=1).warmup == 0


def test_auto_is_bounded_for_any_dataset():
    for rows in (2, 10, 1000, 200_000):
        found = plan(rows=rows, tokens=rows * 60)
        assert 200 <= found.updates <= 300
        assert found.batch_size == 16
    assert plan(rows=300, tokens=300 * 280).batch_size == 7


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
