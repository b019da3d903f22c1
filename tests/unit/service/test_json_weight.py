"""What a body will weigh is told from its bytes: the same however they are cut, and never less than it takes."""

import json
import tracemalloc

import pytest

from service.errors import ApiError
from service.json_weight import MOST_PARTS, JsonWeight

MOST = 20_000


def weighed(body, cut=1 << 16):
    weight = JsonWeight(MOST)
    for start in range(0, len(body), cut):
        weight.add(body[start : start + cut])
    return weight.expected


def parts_and_values(body):
    """The same counted from what was read."""
    parts = values = 0
    todo = [json.loads(body)]
    while todo:
        one = todo.pop()
        parts += isinstance(one, (str, list, dict))
        if isinstance(one, dict):
            todo += [*one, *one.values()]
        if isinstance(one, list):
            todo += one
        if isinstance(one, (list, dict)):
            values += max(0, len(one) - 1)
    return parts * 256 + values * 36


# With how wide a character of their texts may be; of an escape nobody looks which it is.
BODIES = [
    (b'{"model": "a:b", "prompt": [1, 2, 3], "logit_bias": {"5": 1, "6": -1}}', 1),
    (json.dumps({"prompt": 'quotes " and \\ and \\" and [{,]} at the end \\'}).encode(), 1),
    (json.dumps({"prompt": ["\\" * count + '"[u' for count in range(9)]}).encode(), 1),
    (json.dumps({"prompt": "ÄÖ €", 'a"b': ["\\\\", "]"]}, ensure_ascii=False).encode(), 2),
    (json.dumps({"prompt": "one \U0001f600"}, ensure_ascii=False).encode(), 4),
    (b'"\\u005b\\u0022["', 4),
]


@pytest.mark.parametrize(("body", "width"), BODIES)
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
def test_texts_are_told_from_what_stands_around_them_wherever_the_body_is_cut(body, width, cut):
    assert weighed(body, cut) == parts_and_values(body) + len(body) * width


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"-9," * 15_000 + b"0]",
        b"[" + b"0.1," * 15_000 + b"0]",
        b"[" + b"[]," * 4000 + b"0]",
        b"[" + b"{}," * 4000 + b"0]",
        b"[" + b'{"":0},' * 2000 + b"0]",
        b"{" + b",".join(b'"%d":0' % one for one in range(4000)) + b"}",
        b"[" + b",".join(b'"%d"' % one for one in range(1000, 5000)) + b"]",
        b"[" * 900 + b"]" * 900,
        ('{"user": "' + "a" * 100_000 + '\U0001f600"}').encode(),
        b'{"user": "' + b"a" * 100_000 + b'\\ud83d\\ude00"}',
        ('{"user": "' + "€" * 50_000 + '"}').encode(),
    ],
)
def test_reading_takes_no_more_than_was_told(body):
    told = weighed(body)
    tracemalloc.start()
    try:
        read = json.loads(body)
        taken, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read
    assert taken <= told + len(body)
    assert most <= 2 * told + 3 * len(body)  # the text that is read, and a list that grows


@pytest.mark.parametrize(
    ("piece", "count"),
    [(b"[", MOST_PARTS), (b"{", MOST_PARTS), (b'"",', MOST_PARTS), (b"1,", MOST)],
)
def test_the_most_passes_and_one_more_is_refused(piece, count):
    weight = JsonWeight(MOST)
    weight.add(piece * count)
    with pytest.raises(ApiError, match="more than") as refused:
        weight.add(piece)
    assert refused.value.status == 413
