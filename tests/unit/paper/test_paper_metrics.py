"""Metric wrappers against values that their libraries publish, and what is said where a library is missing."""

import importlib.util
import math
import shutil

import pytest

from bench.paper import metrics, neural
from bench.paper.metrics import Missing, bleu, measure, need, nist, streams, ter
from bench.paper.nist import penalty, score


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
REFERENCE = "It is a guide to action that ensures that the military will forever heed Party commands"
GOOD = "It is a guide to action which ensures that the military always obeys the commands of the party"
BAD = "It is to insure the troops forever hearing the activity guidebook that party direct"


def test_nist_prefers_the_better_text_and_does_not_mind_case():
    assert nist([GOOD], [[REFERENCE]]) > nist([BAD], [[REFERENCE]]) > 0
    assert nist([GOOD.upper()], [[REFERENCE]]) == nist([GOOD], [[REFERENCE]])


def test_nist_worked_by_hand_over_references_of_unequal_length():
    # References "a b" and "a c d e": 6 words, of which a twice, the others once; every pair once.
    # Text "a b c": a weighs log2(6/2), b and c log2(6/1); "a b" log2(2/1), the count of a over its own; "b c" is in none.
    # 3 words against (2 + 4) / 2 of the references: no penalty.
    words = (math.log2(3) + 2 * math.log2(6)) / 3
    pairs = math.log2(2) / 2
    assert nist(["a b c"], [["a b", "a c d e"]]) == pytest.approx(words + pairs)
    # "a" alone is a third of the mean length: exp(ln(1/2) * (ln(1/3) / ln(3/2))^2).
    short = math.exp(math.log(0.5) * (math.log(1 / 3) / math.log(1.5)) ** 2)
    assert nist(["a"], [["a b", "a c d e"]]) == pytest.approx(math.log2(3) * short)


def test_nist_clips_by_the_reference_that_has_a_word_most_often():
    # References "a a" and "a b": a weighs log2(4/3). Of three a's in the text two count, not one and not three.
    found = score([["a", "a", "a"]], [[["a", "a"], ["a", "b"]]], most=1)
    assert found == pytest.approx(2 * math.log2(4 / 3) / 3)


def test_nist_takes_what_different_references_give():
    # Each half stands in another reference: nothing is lost against one that has both, but its pair.
    both = score([["a", "b"]], [[["a", "c"], ["d", "b"]]], most=1)
    assert both == pytest.approx(2 * math.log2(4 / 1) / 2)


def test_nist_counts_references_of_all_texts():
    # Over both: a twice, b, c, d: 5 words in all.
    found = score([["a"], ["a"]], [[["a", "b"]], [["a", "c", "d"]]], most=1)
    assert found == pytest.approx(math.log2(5 / 2) * penalty(2 / 5))


def test_nist_penalty_is_a_half_at_two_thirds_of_the_length():
    assert penalty(2 / 3) == pytest.approx(0.5)
    assert (penalty(0), penalty(1), penalty(2)) == (0, 1, 1)


def test_nist_of_empty_texts_is_0():
    assert nist(["", ""], [["a b c d e f"], ["a b"]]) == 0


def test_bleu_without_case_is_that_of_lower_case():
    said, wanted = ["AROMI is a PUB by the River."], [["Aromi is a pub by the river."]]
    assert metrics.bleu_uncased(said, wanted) == pytest.approx(100)
    assert bleu(said, wanted) < 50


def test_scores_of_one_kind_of_task_are_taken_for_no_other():
    assert "bleu_uncased" in metrics.names("e2e")
    assert not {"rouge_1", "rouge_2", "rouge_l_stems"} & set(metrics.names("webnlg"))
    assert {"rouge_1", "rouge_2", "rouge_l_stems", "rouge_l"} < set(metrics.names("scitldr"))
    assert set(metrics.VERSIONS) <= {
        *metrics.METRICS,
        "slot_error",
        "slots_missing",
        "slots_wrong",
        "slots_added",
    }


@wants("rouge_score")
def test_rouge_of_summaries_worked_by_hand():
    # 6 of 8 words and of 9, 2 of 7 pairs and of 8, a common subsequence of 5: "the quick brown jumps the".
    said, wanted = (
        "The quick brown dog jumps on the log.",
        "The quick brown fox jumps over the lazy dog",
    )
    assert metrics.rouge_1([said], [[wanted]]) == pytest.approx(100 * 2 * 6 / 17)
    assert metrics.rouge_2([said], [[wanted]]) == pytest.approx(100 * 2 * 2 / 15)
    assert metrics.rouge_l_stems([said], [[wanted]]) == pytest.approx(100 * 2 * 5 / 17)


@wants("rouge_score")
def test_rouge_of_summaries_takes_stems_and_the_best_reference():
    assert metrics.rouge_1(["running models"], [["nothing alike", "runs model"]]) == pytest.approx(100)
    assert metrics.rouge_1(["a b", "x"], [["a b"], ["y"]]) == pytest.approx(50)


@wants("pycocoevalcap", java=True)
def test_meteor_rouge_and_cider_of_a_perfect_text_are_the_highest_they_give():
    refs = [["The Punter is a cheap pub by the river."], ["Aromi serves French food in the city centre."]]
    texts = [one[0] for one in refs]
    assert metrics.meteor(texts, refs) == pytest.approx(100, abs=0.1)
    assert metrics.rouge_l(texts, refs) == pytest.approx(100)
    assert metrics.cider(texts, refs) == pytest.approx(10)


@wants("pycocoevalcap", java=True)
def test_meteor_rouge_and_cider_are_those_that_nlg_eval_publishes():
    # README and examples/ of Maluuba/nlg-eval (Sharma et al. 2017), whose metrics are the COCO caption code too.
    said = [
        "this is the model generated sentence1 which seems good enough",
        "this is sentence2 which has been generated by your model",
    ]
    wanted = [
        ["this is one reference sentence for sentence1", "this is one more reference sentence for sentence1"],
        [
            "this is a reference sentence for sentence2 which was generated by your model",
            "this is the second reference sentence for sentence2",
        ],
    ]
    assert metrics.meteor(said, wanted) == pytest.approx(29.5797, abs=1e-4)
    assert metrics.rouge_l(said, wanted) == pytest.approx(52.2104, abs=1e-4)
    assert metrics.cider(said, wanted) == pytest.approx(1.242192, abs=1e-6)


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
    scores, missing = measure(["a"], [["a"]], ("rouge_1", "meteor", "bertscore"))
    assert scores == {}
    assert missing["rouge_1"] == "rouge_score not installed; install with `make bench-paper-deps`"
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
