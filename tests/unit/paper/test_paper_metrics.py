"""Metric wrappers against values that their libraries publish, and what is said where a library is missing."""

import importlib
import importlib.util
import shutil

import pytest

from bench.paper import metrics, neural
from bench.paper.metrics import Missing, bleu, measure, need, nist, streams, ter


def wants(module, *, java=False):
    there = importlib.util.find_spec(module) is not None and (not java or shutil.which("java") is not None)
    return pytest.mark.skipif(not there, reason=f"{module} or java is not there: make bench-paper-deps")


# sacrebleu's README, "Using SacreBLEU from Python".
SAID = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
FIRST = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
SECOND = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]


def test_bleu_is_that_of_sacrebleus_own_example():
    assert bleu(SAID, list(zip(FIRST, SECOND, strict=True))) == pytest.approx(48.53, abs=0.005)


def test_bleu_takes_more_references_for_one_text_than_for_another():
    assert bleu(["a b c d e"] * 2, [["a b c d e"], ["x", "a b c d e"]]) == pytest.approx(100)
    assert streams([["a"], ["b", "c"]]) == [["a", "b"], [None, "c"]]


@pytest.mark.parametrize(
    ("said", "wanted", "score"),  # sacrebleu's own tests of TER
    [
        ("aaaa bbbb cccc dddd", "aaaa bbbb cccc dddd", 0),
        ("dddd eeee ffff", "aaaa bbbb cccc", 1),
        ("d e f g h a b c", "a b c d e f g h", 1 / 8),
    ],
)
def test_ter_is_that_of_sacrebleus_own_tests(said, wanted, score):
    assert ter([said], [[wanted]]) == pytest.approx(100 * score)


def test_ter_takes_the_nearest_reference():
    assert ter(["a b c d"], [["w x y z", "a b c e"]]) == pytest.approx(100 / 4, abs=8)


# The docstring of nltk's sentence_nist; Papineni et al. 2002 gave the sentences.
REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]
GOOD = "It is a guide to action which ensures that the military always obeys the commands of the party"
BAD = "It is to insure the troops forever hearing the activity guidebook that party direct"


@wants("nltk")
def test_nist_is_that_of_nltks_docstring():
    sentence_nist = importlib.import_module("nltk.translate.nist_score").sentence_nist
    split = [reference.split() for reference in REFERENCES]
    assert sentence_nist(split, GOOD.split()) == pytest.approx(3.3709, abs=1e-4)
    assert sentence_nist(split, BAD.split()) == pytest.approx(1.4619, abs=1e-4)
    # The wrapper takes lower case, so that "Party" and "party" are one word: it can only find more.
    lower = [reference.lower().split() for reference in REFERENCES]
    assert nist([GOOD], [REFERENCES]) == pytest.approx(sentence_nist(lower, GOOD.lower().split()))
    assert nist([GOOD], [REFERENCES]) > nist([BAD], [REFERENCES])


@wants("nltk")
def test_nist_of_texts_too_short_for_it_is_0():
    assert nist(["a"], [["a b c d e f"]]) == 0


@wants("pycocoevalcap", java=True)
def test_meteor_rouge_and_cider_of_a_perfect_text_are_the_highest_they_give():
    refs = [["The Punter is a cheap pub by the river."], ["Aromi serves French food in the city centre."]]
    texts = [one[0] for one in refs]
    assert metrics.meteor(texts, refs) == pytest.approx(100, abs=0.1)
    assert metrics.rouge_l(texts, refs) == pytest.approx(100)
    assert metrics.cider(texts, refs) == pytest.approx(10)


@wants("pycocoevalcap", java=True)
def test_rouge_l_is_its_formula():
    # Lin 2004: LCS of "police kill the gunman" with "police killed the gunman" is 3 of 4; precision equals recall.
    assert metrics.rouge_l(["police kill the gunman"], [["police killed the gunman"]]) == pytest.approx(75)


@wants("pycocoevalcap", java=True)
def test_meteor_counts_synonyms_and_stems_that_rouge_does_not():
    near, far = "the dogs were running", "seven blue unrelated things"
    wanted = [["the dog was running"]]
    assert metrics.meteor([near], wanted) > metrics.meteor([far], wanted) + 10


@wants("pycocoevalcap", java=True)
def test_texts_without_words_score_nothing_and_break_nothing():
    refs = [["Aromi is a pub."], ["Cocum is a cafe."], ["Strada is a pub."]]
    for name in ("meteor", "rouge_l", "cider"):
        found = metrics.METRICS[name](["Aromi is a pub.", "", "\n"], refs)
        assert 0 < found < 60, name


def test_a_missing_library_is_said_with_its_mend(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scores, missing = measure(["a"], [["a"]], ("nist", "meteor", "bertscore"))
    assert scores == {}
    assert missing["nist"] == "nltk not installed; install with `make bench-paper-deps`"
    assert missing["meteor"] == "pycocoevalcap not installed; install with `make bench-paper-deps`"
    assert missing["bertscore"] == "bert_score not installed; install with `make bench-paper-models`"


def test_a_missing_java_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Missing, match="java is not on PATH"):
        need(program="java")


def test_a_missing_model_is_said_by_name():
    def load():
        raise OSError("no such model in the cache")

    with pytest.raises(Missing, match="BERTScore's model roberta-large is not there"):
        neural.there("BERTScore", "roberta-large", load)
