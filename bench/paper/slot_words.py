"""By which words an E2E text expresses which value: regular expressions, without case, written on the training file.

Prices overlap as people use them: annotators call "less than £ 20" cheap and "more than £ 30" high or expensive, so
`same` lets the words of one stand for the other, and the figures for themselves alone. The same holds for ratings:
"5 out of 5" is high, "3 out of 5" is average, "1 out of 5" is low.
"""

import re
from collections.abc import Mapping

Patterns = Mapping[str, re.Pattern[str]]


def _any(*expressions: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{one})" for one in expressions), re.IGNORECASE)


def _literal(*texts: str) -> dict[str, re.Pattern[str]]:
    """A name with or without its article and its accents."""
    found = {}
    for text in texts:
        bare = re.escape(text.removeprefix("The ")).replace("é", "[eé]").replace("\\ ", r"[\s-]+")
        found[text] = _any(rf"\b{bare}\b")
    return found


NAMES: Patterns = _literal(
    "Alimentum", "Aromi", "Bibimbap House", "Blue Spice", "Browns Cambridge", "Clowns", "Cocum", "Cotto",
    "Fitzbillies", "Giraffe", "Green Man", "Loch Fyne", "Midsummer House", "Strada", "Taste of Cambridge",
    "The Cambridge Blue", "The Cricketers", "The Dumpling Tree", "The Eagle", "The Golden Curry",
    "The Golden Palace", "The Mill", "The Olive Grove", "The Phoenix", "The Plough", "The Punter", "The Rice Boat",
    "The Twenty Two", "The Vaults", "The Waterman", "The Wrestlers", "Travellers Rest Beefeater", "Wildwood",
    "Zizzi",
)  # fmt: skip
PLACES: Patterns = _literal(
    "All Bar One", "Avalon", "Burger King", "Café Adriatic", "Café Brazil", "Café Rouge", "Café Sicilia",
    "Clare Hall", "Crowne Plaza Hotel", "Express by Holiday Inn", "Rainbow Vegetarian Café", "Raja Indian Cuisine",
    "Ranch", "The Bakers", "The Portland Arms", "The Six Bells", "The Sorrento", "Yippee Noodle Bar",
) | {"Crowne Plaza Hotel": _any(r"\bcrowne? plaza\b")}  # fmt: skip

_RATE = r"(?:customer|costumer|user)?s?'?\s*(?:rating|review|score|satisfaction|approval|rat(?:ed|es?)|feedback)s?"
_LINK = r"(?:\s+(?:of|is|are|with|at|was|has|have|its|it|a|an|the|as|been|by|from|customers?|very|rather|quite))*\s+"


def _stars(number: int, word: str) -> re.Pattern[str]:
    """`3 out of 5`, `3/5`, `three stars`, `a rating of three`."""
    figure = rf"(?:{number}|{word})"
    return _any(
        rf"\b{figure}\s*(?:out\s+of|/|of|over)\s*(?:a possible )?(?:5|five)\b",
        rf"(?<!of )(?<!/)(?<!/ )\b{figure}[\s-]*stars?\b",
        rf"{_RATE}{_LINK}(?:only )?{figure}\b(?!\d)",
    )


def _rated(*words: str) -> tuple[str, ...]:
    """A quality before or behind the word for a rating."""
    quality = rf"(?:{'|'.join(words)})"
    return (
        rf"\b{quality}(?:ly)?[\s-]+(?:\w+\s+)?{_RATE}\b",
        rf"\b{_RATE}{_LINK}(?:\w+ )?{quality}\b",
        rf"\b{quality}(?:ly)?[\s-]+(?:rated|rating|reviewed|recommended|regarded)\b",
        rf"\b(?:rated|rates|ranked)\s+(?:as\s+)?(?:\w+ )?{quality}\b",
    )


_PRICE = r"(?:price|pric(?:ed|ing|ey)|cost|priced)s?"
_PRICED = r"[\s-]+(?:in\s+)?(?:price[ds]?|pricing|price[\s-]+range|cost)\b"
_NOT = r"(?:not?|non|isn'?t|aren'?t|n'?t|never|doesn'?t|don'?t|without|un)"
_FAMILY = r"(?:famil(?:y|ies)|kids?|child(?:ren)?)(?:'s)?"
_FRIENDLY = r"(?:[\s-]*(?:and\s+\w+[\s-]+)?(?:friendly|oriented|orientated|welcome|appropriate|suitable))"

VALUES: dict[str, Patterns] = {
    "Type": {
        "coffee shop": _any(r"\bcoffee[\s-]*(?:shop|house|bar|place|store)s?\b", r"\bcafe\b(?! (?:adriatic|brazil|rouge|sicilia))(?<!vegetarian cafe)"),
        "pub": _any(r"\bpubs?\b", r"\bpublic house\b", r"(?<!noodle )(?<!all )(?<!coffee )\bbars?\b(?! one)"),
        "restaurant": _any(r"\brestaurants?\b", r"\bdin(?:er|ing (?:place|establishment))\b", r"\bbistro\b"),
    },
    "food": {
        "Chinese": _any(r"\bchinese\b"),
        "English": _any(r"\benglish\b", r"\bbritish\b", r"\bbreakfasts?\b"),
        "Fast food": _any(r"\bfast[\s-]*food\b", r"\bburgers?\b(?! king)", r"\bfries\b", r"\btake[\s-]*(?:away|out)s?\b"),
        "French": _any(r"\bfrench\b", r"\bwines?\b", r"\bcheeses?\b"),
        "Indian": _any(r"(?<!raja )\bindian\b"),
        "Italian": _any(r"\bitalian\b", r"\bpasta\b"),
        "Japanese": _any(r"\bjapanese\b", r"\bsushi\b"),
    },
    "area": {
        "riverside": _any(r"\briver[\s-]*(?:side|bank|front)?\b"),
        "city centre": _any(r"\b(?:city|town)[\s-]*cent(?:re|er)\b", r"\bcent(?:re|er) of (?:the )?(?:city|town)\b", r"\bdowntown\b", r"\bin the cent(?:re|er)\b", r"\bcentral(?:ly)?\b", r"\bin (?:the |a )?city\b", r"\binner[\s-]city\b"),
    },
    "price": {
        "less than £ 20": _any(r"\b(?:less|lower|cheaper) than\s*£?\s*20\b", r"\b(?:under|below)\s*£?\s*20\b", r"\bup to\s*£?\s*20\b"),
        "£ 20 - 25": _any(r"£?\s*20\s*(?:pounds? )?(?:-|\u2013|to|and|through)\s*£?\s*25\b"),
        "more than £ 30": _any(r"\b(?:more|higher|greater) than\s*£?\s*30\b", r"\b(?:over|above)\s*£?\s*30\b", r"£\s*30\s*(?:\+|(?:and|or) (?:up|more|over|higher|above))"),
        "cheap": _any(r"\bcheap(?:er|ly)?\b(?! than)", r"\binexpensive\b", r"\blow(?:er)?(?:[\s-]+cost|" + _PRICED + ")", r"\blow\b(?:\s+\w+)?\s+price", r"\b" + _PRICE + _LINK + r"low\b", r"\baffordabl[ey]\b", r"\bbudget\b"),
        "moderate": _any(rf"\bmoderate(?:ly)?\b(?![\s-]+(?:\w+[\s-]+)?{_RATE})", r"\breasonabl[ey]\b", r"\b(?:mid|medium|middle|average|fair(?:ly)?)(?:[\s-]*(?:range|level))?" + _PRICED, r"\bmid[\s-]*(?:range|priced?)\b", r"\b" + _PRICE + _LINK + r"(?:average|medium|fair)\b"),
        "high": _any(r"\b(?<!in)expensive\b", r"\bhigh(?:er|ly)?(?:[\s-]+end)?(?:[\s-]+cost|" + _PRICED + ")", r"\bhigh\b(?:[\s-]+(?:average|customer))?[\s-]+pric", r"\b" + _PRICE + r"(?:[\s-]+ranges?)?" + _LINK + r"(?:high|above average)\b", r"\bpric(?:e?y)\b", r"\bupscale\b", r"\bhigh[\s-]*end\b"),
    },
    "customer rating": {
        "1 out of 5": _stars(1, "one"),
        "3 out of 5": _stars(3, "three"),
        "5 out of 5": _stars(5, "five"),
        "low": _any(*_rated("low(?:er|est)?", "poor", "bad", "terrible"), r"\b(?:not well|poorly)[\s-]+(?:rated|received|reviewed)\b", r"\bone of the lowest\b"),
        "average": _any(*_rated("average", "mediocre", "moderate", "decent", "ok", "okay", "middle")),
        "high": _any(*_rated("high(?:er|est)?", "good", "great", "excellent", "well", "top", "best", "perfect"), r"\bhighly\b(?![\s-]+pric)", r"\bloved by\b"),
    },
    "family friendly": {
        "no": _any(
            rf"\b{_NOT}\b(?:[\s-]+(?!(?:and|but)\b)\w+){{0,5}}?[\s-]+{_FAMILY}\b",
            rf"\b(?:non|un)[\s-]*{_FAMILY}", rf"\b(?:un|in)(?:suitable|friendly|welcom\w+|appropriate)(?:[\s-]+\w+){{0,3}}?[\s-]+{_FAMILY}\b",
            rf"\b{_FAMILY}[\s-]+(?:are|is)?\s*(?:not|un|isn'?t)[\s-]*\w*",
            r"\badults?\b", rf"\b{_FAMILY}[\s-]+unfriendly\b", rf"\b{_FAMILY}[\s-]+free\b",
        ),
        "yes": _any(
            rf"\b{_FAMILY}{_FRIENDLY}", rf"(?<!un)(?:welcom\w*|suit\w*|friendly|good|great|perfect|fun|appropriate|ideal|nice|place|for|bring\w*)\b(?:[\s-]+\w+){{0,3}}?[\s-]+{_FAMILY}\b",
            rf"\b{_FAMILY}[\s-]+(?:restaurant|pub|coffee|place|venue|establishment|atmosphere|environment|dining|are (?:very )?welcome)\b", r"\b(?:all|the whole) (?:ages?|family)\b",
        ),
    },
}  # fmt: skip

# Values that people write with each other's words; every other value stands for itself alone.
_ALIKE = {
    "price": ({"cheap", "less than £ 20"}, {"moderate", "£ 20 - 25"}, {"high", "more than £ 30"}),
    "customer rating": ({"low", "1 out of 5"}, {"average", "3 out of 5"}, {"high", "5 out of 5"}),
}


def same(attribute: str, wanted: str, said: str) -> bool:
    """Whether the value said stands for the one wanted."""
    return wanted == said or any({wanted, said} <= alike for alike in _ALIKE.get(attribute, ()))


def mentions(text: str, patterns: Patterns) -> frozenset[str]:
    """The values that a text mentions; where it denies a value ("not family-friendly") only the denial counts."""
    found = {value for value, pattern in patterns.items() if pattern.search(text)}
    if {"yes", "no"} <= found:
        found.discard("yes")
    return frozenset(found)
