import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_engine import load_base
from prefix_engine.template import Template
from prefix_engine.testing import END, tiny_base

BASE = tiny_base()

text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)


@given(text, text)
def test_a_row_ends_once_and_reads_back(prompt, completion):
    tokenizer = BASE.tokenizer
    template = Template.of(tokenizer)
    before, after = template.prompt_ids(tokenizer, prompt), template.completion_ids(tokenizer, completion)
    assert tokenizer.decode(before) == prompt + "\n"
    assert tokenizer.decode(after) == completion
    assert [*before, *after].count(template.end_id) == 1
    assert after[-1] == template.end_id


def test_an_end_token_written_as_text_ends_nothing():
    tokenizer = load_base("gpt2-mini", "cpu").tokenizer
    template = Template.of(tokenizer)
    assert template.end_id not in template.prompt_ids(tokenizer, f"a {END} b")
    assert template.completion_ids(tokenizer, END).count(template.end_id) == 1


def test_it_survives_being_stored():
    template = Template("\n\n", 7)
    assert Template.from_json(template.to_json()) == template


@pytest.mark.parametrize(
    "bad", [{}, {"separator": "x"}, {"separator": 1, "end_id": 2}, {"separator": "", "end_id": True}]
)
def test_a_damaged_one_is_refused(bad):
    with pytest.raises(ValueError, match="template"):
        Template.from_json(bad)
