import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_engine.request import TokenInfo
from prefix_engine.testing import tiny_base
from prefix_engine.text import StopFilter, TextStream, token_text

TOKENIZER = tiny_base().tokenizer
END = 256

short = st.text(alphabet="abä€😀", max_size=12)
stops = st.lists(st.text(alphabet="abä€😀", min_size=1, max_size=4), max_size=3)


def cut_by_hand(text, stops):
    """The text before the stop string that ends first, the longest if two end there."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def stream_of(tokens, stops, *, min_tokens=0):
    stream, texts, infos = TextStream(TOKENIZER, stops), [], []
    for count, token in enumerate(tokens, 1):
        info = TokenInfo(token, token_text(TOKENIZER, token))
        text, told, stopped = stream.push(info, accept=count >= min_tokens)
        texts.append(text)
        infos += told
        if stopped:
            return texts, infos, True
    text, told, stopped = stream.finish()
    return [*texts, text], [*infos, *told], stopped


@given(short, stops, st.lists(st.integers(0, 12)))
def test_stop_strings_cut_a_text_alike_however_it_is_split(text, stops, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    watch, shown, stopped = StopFilter(stops), "", False
    for piece in pieces:
        more, stopped = watch.push(piece)
        shown += more
        if stopped:
            break
    shown += "" if stopped else watch.finish()
    assert (shown, stopped) == cut_by_hand(text, stops)


@given(short, stops)
def test_bytes_as_tokens_stream_to_the_same_text_cut_at_the_stop_string(text, stops):
    texts, infos, stopped = stream_of(list(text.encode()), stops)
    expected, cut = cut_by_hand(text, stops)
    assert ("".join(texts), stopped) == (expected, cut)
    assert all(stop not in "".join(texts) for stop in stops)
    shown = b"".join(TOKENIZER.token_bytes(info.id) for info in infos)
    assert shown == expected.encode()


@given(st.lists(st.integers(0, 256), max_size=30))
def test_any_tokens_stream_to_the_text_that_they_decode_to_at_once(tokens):
    texts, infos, _ = stream_of(tokens, [])
    assert "".join(texts) == TOKENIZER.decode(tokens)
    assert [info.id for info in infos] == tokens


def test_a_stop_string_is_held_back_only_while_it_could_become_one():
    stream = TextStream(TOKENIZER, ["abc"])
    shown = [stream.push(TokenInfo(byte, chr(byte)))[0] for byte in b"xabyab"]
    assert shown == ["x", "", "", "aby", "", ""]
    assert stream.finish()[0] == "ab"


def test_no_token_of_a_stop_string_is_told():
    texts, infos, stopped = stream_of(list(b"hi END"), [" END"])
    assert "".join(texts) == "hi"
    assert [info.text for info in infos] == ["h", "i"]
    assert stopped


def test_a_token_that_a_stop_string_cuts_keeps_only_the_part_before_it():
    word = next(i for i in range(256) if TOKENIZER.token_bytes(i) == b"a")
    stream = TextStream(TOKENIZER, ["b"])
    stream._decoder.push = lambda _: "aabaa"
    top = ((word, "aabaa", -1.0), (0, "x", -2.0))
    text, infos, stopped = stream.push(TokenInfo(word, "aabaa", -1.0, top))
    assert (text, stopped) == ("aa", True)
    assert infos == (TokenInfo(word, "aa", -1.0, top),)


@pytest.mark.parametrize(
    ("stop", "shown"), [("end", ["bytes:\\xe2", "bytes:\\x80"]), ("nd", ["bytes:\\xe2", "bytes:\\x80", "e"])]
)
def test_of_a_token_behind_an_unfinished_character_only_its_own_part_is_told(stop, shown):
    stream = TextStream(TOKENIZER, [stop])
    infos = []
    for byte in (0xE2, 0x80):
        token = next(i for i in range(256) if TOKENIZER.token_bytes(i) == bytes([byte]))
        infos += stream.push(TokenInfo(token, token_text(TOKENIZER, token)))[1]
    stream._decoder.push = lambda _: "\ufffdend"
    text, told, stopped = stream.push(TokenInfo(1, "end", -1.0))
    assert (text, stopped) == ("\ufffdend".removesuffix(stop), True)
    assert [info.text for info in [*infos, *told]] == shown


def test_before_min_tokens_a_stop_string_is_plain_text():
    texts, _, stopped = stream_of(list(b"xbxbx"), ["b"], min_tokens=3)
    assert ("".join(texts), stopped) == ("xbx", True)


def test_a_stop_string_begun_before_min_tokens_still_stops_and_is_not_shown():
    texts, _, stopped = stream_of(list(b"xabcx"), ["abc"], min_tokens=4)
    assert ("".join(texts), stopped) == ("x", True)


def test_a_character_cut_short_reads_as_the_replacement_character():
    texts, infos, stopped = stream_of(list("€".encode()[:2]), [])
    assert ("".join(texts), stopped) == ("\ufffd", False)
    assert [info.text for info in infos] == ["bytes:\\xe2", "bytes:\\x82"]


def test_the_end_may_complete_a_stop_string():
    assert stream_of(list(b"ab" + "€".encode()[:1]), ["b\ufffd"])[::2] == (["a", "", "", ""], True)


@pytest.mark.parametrize(("token", "text"), [(ord("a"), "a"), (0xE2, "bytes:\\xe2"), (END, ""), (9999, "")])
def test_a_token_by_itself_reads_as_its_text_or_its_bytes(token, text):
    assert token_text(TOKENIZER, token) == text
