import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_making import rows

from prefix_store.errors import Invalid, TooLarge
from prefix_store.jsonl import LineChecker, read_rows

GOOD = b'{"prompt": "p", "completion": "c"}'
BAD = {
    "not JSON": b"{",
    "no object": b"[1]",
    "missing": b'{"prompt": "p"}',
    "empty": b'{"prompt": "p", "completion": ""}',
    "not text": b'{"prompt": "kingfisher", "completion": 3}',
    "NaN": b'{"prompt": "p", "completion": NaN}',
    "twice": b'{"prompt": "p", "prompt": "q", "completion": "c"}',
    "unknown": b'{"prompt": "p", "completion": "c", "user": "x"}',
    "utf-8": b'{"prompt": "\xff", "completion": "c"}',
    "surrogate": b'{"prompt": "\\ud800", "completion": "c"}',
    "long": b'{"prompt": "' + b"a" * 2000 + b'", "completion": "c"}',
    "deep": b"[" * 900,
}


def check(data, max_line=1000, max_rows=10):
    checker = LineChecker(max_line, max_rows)
    checker.push(data)
    checker.finish()
    return checker.rows


@pytest.mark.parametrize("name", BAD)
def test_bad_line_is_named(name):
    with pytest.raises(Invalid) as caught:
        check(GOOD + b"\n" + BAD[name] + b"\n")
    assert (caught.value.param, caught.value.line) == ("file", 2)
    assert "kingfisher" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "p", "references": ["r"]}', "'references' is for evaluation"),
        (b'{"prompt": "p", "completion": "c", "user": "x"}', "field 'user' is not known"),
        (b'{"prompt": "p", "completion": ""}', "field 'completion' must be a non-empty text"),
        (b'{"completion": "c"}', "field 'prompt' is missing"),
        (b'{"messages": []}', "field 'prompt' is missing"),
        (b'{"prompt": "p", "completion": "c"}}', "not valid JSON"),
    ],
)
def test_the_message_says_what_to_change(line, said):
    with pytest.raises(Invalid, match=said):
        check(line)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"])
def test_empty_file_is_refused(data):
    with pytest.raises(Invalid, match="empty"):
        check(data)


def test_blank_lines_and_windows_line_ends_are_passed_over():
    assert check(b"\r\n" + GOOD + b"\r\n\r\n" + GOOD) == 2


def test_too_many_rows_are_refused():
    with pytest.raises(TooLarge):
        check((GOOD + b"\n") * 3, max_rows=2)


def test_an_endless_line_is_refused_before_it_ends():
    checker = LineChecker(1000, 10)
    checker.push(b"a" * 600)
    with pytest.raises(TooLarge) as caught:
        checker.push(b"a" * 600)
    assert caught.value.line == 1


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5), st.data())
def test_any_cut_of_the_stream_reads_the_same(pairs, data):
    text = b"\xef\xbb\xbf" + rows(*pairs).replace(b"\n", b"\r\n")
    checker = LineChecker(100_000, 10)
    while text:
        cut = data.draw(st.integers(1, len(text)))
        checker.push(text[:cut])
        text = text[cut:]
    checker.finish()
    assert checker.rows == len(pairs)
    assert [(p, c) for _, p, c in read_rows(rows(*pairs))] == pairs
