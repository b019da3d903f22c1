"""What the papers print, to stand beside our figures: cited, not measured here.

Source: Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", table 1 (E2E, WebNLG)
and tables 4 and 5 (E2E ablations). WebNLG's METEOR and TER are printed there from 0 to 1 and stand here times 100,
as ours do. TER: lower is better. The paper scores E2E and WebNLG by their official scripts on their test sets; E2E's
takes BLEU in lower case. Of DART the paper's figures are left out: its test set could not be had, and what is scored
here is a part of its development set.
"""

from collections.abc import Sequence

SOURCE = "Li & Liang 2021, table 1"
ABLATIONS = "Li & Liang 2021, ablations on E2E"

_E2E = ("bleu_uncased", "nist", "meteor", "rouge_l", "cider")
_ROWS: dict[tuple[str, str, str, str], tuple[Sequence[str], Sequence[float]]] = {}


def _e2e(base: str, method: str, *values: float, source: str = SOURCE) -> None:
    _ROWS[base, "e2e", "all", method] = (_E2E, values)
    _SOURCES[base, "e2e", "all", method] = source


def _webnlg(
    base: str, method: str, bleu: Sequence[float], meteor: Sequence[float], ter: Sequence[float]
) -> None:
    for place, group in enumerate(("seen", "unseen", "all")):
        values = (bleu[place], meteor[place], ter[place])
        _ROWS[base, "webnlg", group, method] = (("bleu", "meteor", "ter"), values)


_SOURCES: dict[tuple[str, str, str, str], str] = {}
MEDIUM, LARGE = "gpt2-medium", "gpt2-large"

_e2e(MEDIUM, "fine-tuning", 68.2, 8.62, 46.2, 71.0, 2.47)
_e2e(MEDIUM, "ft-top2", 68.1, 8.59, 46.0, 70.8, 2.41)
_e2e(MEDIUM, "adapter-3", 68.9, 8.71, 46.1, 71.3, 2.47)
_e2e(MEDIUM, "adapter-0.1", 66.3, 8.41, 45.0, 69.8, 2.40)
_e2e(MEDIUM, "prefix", 69.7, 8.81, 46.1, 71.4, 2.49)
_e2e(LARGE, "fine-tuning", 68.5, 8.78, 46.0, 69.9, 2.45)
_e2e(LARGE, "prefix", 70.3, 8.85, 46.2, 71.7, 2.47)
_e2e(MEDIUM, "emb-1", 48.1, 3.33, 32.1, 60.2, 1.10, source=ABLATIONS)
_e2e(MEDIUM, "emb-10", 62.2, 6.70, 38.6, 66.4, 1.75, source=ABLATIONS)
_e2e(MEDIUM, "emb-20", 61.9, 7.11, 39.3, 65.6, 1.85, source=ABLATIONS)
_e2e(MEDIUM, "infix-1", 67.9, 8.63, 45.8, 69.4, 2.42, source=ABLATIONS)
_e2e(MEDIUM, "infix-10", 67.2, 8.48, 45.8, 69.9, 2.40, source=ABLATIONS)
_e2e(MEDIUM, "infix-20", 66.7, 8.47, 45.8, 70.0, 2.42, source=ABLATIONS)

_webnlg(MEDIUM, "fine-tuning", (64.2, 27.7, 46.5), (45, 30, 38), (33, 76, 53))
_webnlg(MEDIUM, "ft-top2", (53.6, 18.9, 36.0), (38, 23, 31), (49, 99, 72))
_webnlg(MEDIUM, "adapter-3", (60.4, 48.3, 54.9), (43, 38, 41), (35, 45, 39))
_webnlg(MEDIUM, "adapter-0.1", (54.5, 45.1, 50.2), (39, 36, 38), (40, 46, 43))
_webnlg(MEDIUM, "prefix", (62.9, 45.6, 55.1), (44, 38, 41), (35, 49, 41))
_webnlg(LARGE, "fine-tuning", (65.3, 43.1, 55.5), (46, 38, 42), (33, 53, 42))
_webnlg(LARGE, "prefix", (63.4, 47.7, 56.3), (45, 39, 42), (34, 48, 40))


def cited(base: str, task: str, group: str, method: str) -> tuple[dict[str, float], str] | None:
    """The paper's scores of a method and where they stand; None if it has none.

    Args:
        base: name of a checkpoint; the paper has gpt2-medium and gpt2-large.
        task: by name; only `webnlg` is printed by seen and unseen categories.
        group: `all`, or a group of the task's inputs. The inputs of WebNLG's main run are all of seen categories.
        method: by name.
    """
    key = (base, task, group, method)
    if key not in _ROWS:
        return None
    names, values = _ROWS[key]
    return dict(zip(names, values, strict=True)), _SOURCES.get(key, SOURCE)
