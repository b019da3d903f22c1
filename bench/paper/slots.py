"""Slot errors of E2E texts: what a text leaves out, gets wrong or adds to the attributes of its input.

The idea is that of the E2E challenge's slot error rate (Dušek et al. 2020, "Evaluating the state-of-the-art of
end-to-end natural language generation") and of their slot aligner: regular expressions find which values a text
expresses. The expressions here are written for this project, on the training file; `slot_words.py` has them all.

An attribute of the input that the text expresses with the allowed values alone is right; with any other value, also
beside an allowed one, it is wrong; not expressed at all it is missing. An attribute that the text expresses and the input lacks is added.
"Restaurant" is what people call any of these places, so it neither adds a type nor is it a wrong one.
The rate is (missing + wrong + added) / attributes of the inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.paper.slot_words import NAMES, PLACES, VALUES, mentions, same

GENERIC = "restaurant"
PROPER = ("name", "near")  # where one more is another place, and counts as added


@dataclass(frozen=True, slots=True)
class Errors:
    """Attributes of one text, by name."""

    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    added: tuple[str, ...]
    slots: int

    @property
    def count(self) -> int:
        """All errors together."""
        return len(self.missing) + len(self.wrong) + len(self.added)


def meaning(prompt: str) -> dict[str, str]:
    """Attributes of an input `name : Aromi | area : riverside`.

    Raises:
        ValueError: it is not such an input.
    """
    found = {}
    for part in prompt.split(" | "):
        attribute, colon, value = part.partition(" : ")
        if not colon:
            raise ValueError("the input is no E2E meaning: expected `attribute : value | ...`")
        found[attribute.strip()] = value.strip()
    return found


def errors(prompt: str, text: str) -> Errors:
    """What is wrong with a text."""
    wanted, said = meaning(prompt), expressed(text, meaning(prompt))
    missing, wrong = [], []
    for attribute, value in wanted.items():
        found = said.get(attribute, frozenset()) - ({GENERIC} - {value})
        if not found:
            missing.append(attribute)
        elif _contradicted(attribute, value, found):
            wrong.append(attribute)
    added = [name for name, found in said.items() if name not in wanted and found - {GENERIC}]
    for attribute in PROPER:  # a second place beside the one that was asked for
        own, found = wanted.get(attribute), said.get(attribute, frozenset())
        if own in found and found - {own, GENERIC}:
            added.append(attribute)
    return Errors(tuple(missing), tuple(wrong), tuple(added), len(wanted))


def _contradicted(attribute: str, wanted: str, found: frozenset[str]) -> bool:
    """Whether the values found say something else than the one wanted."""
    right = [same(attribute, wanted, other) for other in found]
    return not (any(right) if attribute in PROPER else all(right))


def expressed(text: str, wanted: dict[str, str] | None = None) -> dict[str, frozenset[str]]:
    """Values that a text expresses, by attribute; only attributes of which there are any.

    `wanted` says which of the names is the place's own and which lies near, where a text has both.
    """
    found = {attribute: mentions(text, patterns) for attribute, patterns in VALUES.items()}
    near = mentions(text, PLACES)
    names = mentions(text, NAMES)
    own = (wanted or {}).get("name")
    neighbour = (wanted or {}).get("near")
    if neighbour in names and neighbour != own:  # The Rice Boat is a name and a place
        names, near = names - {neighbour}, near | {neighbour}
    if own in near and own != neighbour:
        near = near - {own}
    found |= {"name": names, "near": near}
    return {attribute: values for attribute, values in found.items() if values}


def rates(prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Percent of the inputs' attributes: all errors, and each kind."""
    found = [errors(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    slots = sum(one.slots for one in found)
    return {
        "slot_error": 100.0 * sum(one.count for one in found) / slots,
        "slots_missing": 100.0 * sum(len(one.missing) for one in found) / slots,
        "slots_wrong": 100.0 * sum(len(one.wrong) for one in found) / slots,
        "slots_added": 100.0 * sum(len(one.added) for one in found) / slots,
    }
