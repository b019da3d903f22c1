import pytest

from prefix_store.errors import Invalid
from prefix_store.hyperparameters import Hyperparameters

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n_epochs", value) for value in (0, -1, 1.5, True, "3")),
        *(("batch_size", value) for value in (0, 257)),
        *(("prefix_length", value) for value in (0, 513)),
        *(("learning_rate", value) for value in (NAN, INFINITY, -1.0, 0)),
        *(
            ("learning_rate_multiplier", NAN),
            ("weight_decay", -0.1),
            ("dropout", -0.1),
            ("dropout", 1.0),
            ("dropout", True),
            ("warmup_steps", -1),
            ("max_steps", 0),
        ),
        *(("parametrization", value) for value in ("lora", ["mlp"], 3)),
        *(("init", "zeros"), ("text_start", 0), ("rank", 8)),
        *(("init_text", value) for value in ("", 3, "x" * 4001)),
    ],
)
def test_a_bad_value_names_its_field(name, value):
    with pytest.raises(Invalid) as caught:
        Hyperparameters.from_json({name: value})
    assert caught.value.param == f"hyperparameters.{name}"


def test_a_value_is_checked_also_when_built_directly():
    with pytest.raises(Invalid):
        Hyperparameters(learning_rate=NAN).check()


def test_auto_and_null_mean_that_the_trainer_chooses():
    assert Hyperparameters.from_json({"n_epochs": "auto", "batch_size": None}) == Hyperparameters()
    assert Hyperparameters().to_json() == {}


def test_two_learning_rates_exclude_each_other():
    with pytest.raises(Invalid):
        Hyperparameters.from_json({"learning_rate": 0.1, "learning_rate_multiplier": 2})


def test_what_is_written_reads_back():
    given = {"n_epochs": 3, "learning_rate": 0.05, "prefix_length": 20, "init_text": "as", "text_start": "0"}
    assert Hyperparameters.from_json(given).to_json() == given
