import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_store.errors import Invalid
from prefix_store.names import ModelName, check_name, new_id, parse_model, parse_owner

GOOD = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@given(GOOD.filter(lambda name: name != "task"), GOOD, st.none() | st.integers(1, 10**9 - 1))
def test_a_written_name_reads_back(owner, prefix, number):
    text = f"{owner}:{prefix}" + ("" if number is None else f"@{number}")
    assert parse_model(text) == ModelName("user", owner, prefix, number)
    assert parse_model(text).bare == f"{owner}:{prefix}"


def test_a_tasks_prefix_has_the_tasks_name():
    assert parse_model("task:e2e@2") == ModelName("task", "e2e", "e2e", 2)
    assert parse_model("task:e2e").bare == "task:e2e"
    assert parse_owner("task:e2e") == ("task", "e2e")
    assert parse_owner("alice") == ("user", "alice")


def test_a_job_and_its_checkpoint_are_read_apart_from_a_version():
    job = new_id("ftjob")
    assert parse_model(f"alice:voice@{job}") == ModelName("user", "alice", "voice", None, job)
    name = parse_model(f"task:e2e@{job}-step-30")
    assert (name.version, name.job, name.step, name.bare) == (None, job, 30, "task:e2e")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "gpt2",
            "alice",
            ":voice",
            "alice:",
            "alice:voice@",
            "alice:voice@0",
            "alice:voice@-1",
            "Alice:voice",
        ),
        *(
            "alice:voice@1@2",
            "a/b:c",
            "../x:y",
            "alice:voice\n",
            "alice:voice@1\n",
            "alice:voice@\uff11",
            "alice:voice@ftjob-",
            "alice:voice@ftjob-a-step-",
            "alice:voice@ftjob-a-step-1x",
            "alice:voice@job-a",
            "alice:voice@1-step-2",
            "é:x",
        ),
        *("task:task:x", "a" * 65 + ":v", "alice:voice@9999999999", ""),
    ],
)
def test_what_is_no_prefix_name_is_none(text):
    assert parse_model(text) is None


@pytest.mark.parametrize(
    "text", ["", "../x", "A", "a b", "-a", "a" * 65, "a\n", "task", "gpt2", "a:b", "a@b"]
)
def test_a_name_that_may_not_be_given_names_its_field(text):
    with pytest.raises(Invalid) as caught:
        check_name(text, "id", frozenset({"gpt2"}))
    assert caught.value.param == "id"


def test_ids_are_file_names_and_do_not_repeat():
    ids = {new_id("ver") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(made) == 26 and made.replace("-", "").isalnum() for made in ids)
