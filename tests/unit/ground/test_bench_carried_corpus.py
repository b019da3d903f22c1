"""The carried base's corpus: files are what the listing says, held-out rows stay put, tokens are kept and in order."""

import json

import numpy as np
import pytest
from carried_base_making import listed, write_corpus

from bench.carried_base import tokens
from bench.carried_base.corpus import LISTING, CorpusError, documents, read_listing


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, listing, tokenizer and encoded documents of a small corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = read_listing(write_corpus(folder))
    tokenizer = tokens.train_tokenizer(folder, corpus, 300)
    return folder, corpus, tokenizer, tokens.encode(folder, corpus, tokenizer, folder / "cache")


def test_the_listing_of_the_project_names_every_file_with_digest_source_and_licence():
    corpus = read_listing(LISTING)
    assert len(corpus.texts) == 14
    for text in corpus.texts:
        assert len(bytes.fromhex(text.sha256)) == 32
        assert all((text.what, text.source, text.licence, text.documents, text.text_bytes))
    assert {f"CREDITS-{name}.tsv" for name in ("classic_fiction", "openstax_textbooks", "picture_books")} == {
        one.file for one in corpus.credits
    }


def test_a_file_that_is_missing_is_named_with_what_to_do(tmp_path):
    corpus = read_listing(write_corpus(tmp_path))
    (tmp_path / "tales.txt.gz").unlink()
    with pytest.raises(CorpusError, match=r"tales\.txt\.gz is not in .*: give --corpus the folder"):
        corpus.check(tmp_path)


@pytest.mark.parametrize("name", ["tales.txt.gz", "CREDITS-tales.tsv"])
def test_a_file_that_was_changed_is_named_with_both_digests_and_what_to_do(tmp_path, name):
    corpus = read_listing(write_corpus(tmp_path))
    corpus.check(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    with pytest.raises(
        CorpusError, match=rf"{name} in .* has SHA-256 [0-9a-f]{{64}}, .*: copy the file again"
    ):
        corpus.check(tmp_path)


def test_a_file_with_other_documents_than_listed_is_refused(tmp_path):
    listing = write_corpus(tmp_path)
    said = json.loads(listing.read_text())
    said["texts"][0]["documents"] += 1
    listing.write_text(json.dumps(said))
    corpus = read_listing(listing)
    with pytest.raises(CorpusError, match=r"notes\.txt\.gz holds 150 documents, the listing says 151"):
        list(documents(tmp_path, corpus.texts[0]))


def test_documents_come_back_as_they_were_written_from_the_tokens(made):
    folder, corpus, tokenizer, encoded = made
    read = [document for text in corpus.texts for document in documents(folder, text)]
    assert read == [document for _, written in listed() for document in written]
    found = [tokenizer.decode(encoded.document(place).tolist()) for place in range(len(read))]
    assert found == read
    assert encoded.ids.dtype == np.uint16


def test_an_end_token_written_in_a_text_is_text(made):
    _, _, tokenizer, _ = made
    assert tokens.END_ID not in tokenizer.encode(f"a {tokens.END} b").ids


def test_the_cache_is_read_again_and_is_another_one_for_another_tokenizer(made):
    folder, corpus, tokenizer, encoded = made
    (kept,) = (folder / "cache").iterdir()
    made_at = kept.stat().st_mtime_ns
    again = tokens.encode(folder, corpus, tokenizer, folder / "cache")
    assert np.array_equal(again.ids, encoded.ids)
    assert kept.stat().st_mtime_ns == made_at
    other = tokens.encode(folder, corpus, tokens.train_tokenizer(folder, corpus, 280), folder / "cache")
    assert len(other.ids) > len(encoded.ids)
    assert len(list((folder / "cache").iterdir())) == 2


def test_held_out_rows_go_by_their_text_alone_and_are_in_no_stream(made):
    folder, corpus, tokenizer, encoded = made
    held = {tuple(encoded.document(int(place))) for place in np.flatnonzero(encoded.held_out)}
    assert held
    for seed in (1, 2):
        stream = tokens.stream(encoded, seed)
        ends = np.flatnonzero(stream == tokens.END_ID)
        read = [tuple(part[part != tokens.END_ID]) for part in np.split(stream, ends + 1)][:-1]
        assert len(read) == len(encoded.held_out) - encoded.held_out.sum()
        assert not held & set(read)
    turned = type(corpus)(corpus.texts[::-1], corpus.credits)
    other = tokens.encode(folder, turned, tokenizer, folder / "turned")
    assert {tuple(other.document(int(place))) for place in np.flatnonzero(other.held_out)} == held


def test_the_order_of_the_documents_is_the_seeds(made):
    encoded = made[-1]
    assert np.array_equal(tokens.stream(encoded, 1), tokens.stream(encoded, 1))
    assert not np.array_equal(tokens.stream(encoded, 1), tokens.stream(encoded, 2))
