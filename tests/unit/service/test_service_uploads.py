"""The multipart parser gives the file's bytes whatever pieces the network makes of them."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ApiError
from service.uploads import Form

BOUNDARY = "xYz"
KIND = f"multipart/form-data; boundary={BOUNDARY}"


def form_of(parts):
    body = b""
    for name, filename, data in parts:
        shown = f'; filename="{filename}"' if filename is not None else ""
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'.encode()
        body += data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


@given(
    data=st.binary(max_size=300) | st.text("\r\n-xYz", max_size=80).map(str.encode),
    cuts=st.lists(st.integers(0, 600), max_size=12),
    file_first=st.booleans(),
)
def test_any_pieces_give_the_same_file(data, cuts, file_first):
    if f"\r\n--{BOUNDARY}".encode() in b"\r\n" + data:
        return
    parts = [("file", "a.jsonl", data), ("purpose", None, b"fine-tune")]
    body = form_of(parts if file_first else parts[::-1])
    edges = sorted({0, len(body), *(cut % len(body) for cut in cuts)})
    form = Form(KIND)
    got = b"".join(form.feed(body[a:b]) for a, b in pairwise(edges))
    assert got == data
    assert form.fields == {"purpose": "fine-tune"}
    assert form.filename == "a.jsonl"
    assert form.done


@given(st.binary(max_size=200))
def test_noise_is_refused_or_incomplete_and_never_an_error_of_ours(noise):
    form = Form(KIND)
    with suppress(ApiError):
        form.feed(noise)
    assert not form.done


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("file", "a", b"x"), ("file", "b", b"y")], "file"),
        ([("purpose", None, b"a"), ("purpose", None, b"b")], "purpose"),
        ([("purpose", None, b"\xff")], "purpose"),
        ([("purpose", None, b"x" * 2000)], "purpose"),
        ([("other", None, b"x")], "other"),
        ([("", None, b"x")], ""),
    ],
)
def test_a_form_that_says_too_much_names_the_part(parts, param):
    with pytest.raises(ApiError) as refused:
        Form(KIND).feed(form_of(parts))
    assert refused.value.param == param


@pytest.mark.parametrize("shown", ["../../etc/passwd", "C:\\data\\passwd", "/etc/passwd", "passwd"])
def test_a_filename_keeps_no_path(shown):
    form = Form(KIND)
    form.feed(form_of([("file", shown, b"x")]))
    assert form.filename == "passwd"
