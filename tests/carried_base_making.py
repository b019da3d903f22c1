"""A small corpus with a listing of its own, for the tests of the carried base's recipe."""

import gzip
import hashlib
import json
import random


def listed():
    """Name and documents of each file; the same at every call."""
    draw = random.Random(7)
    words = [
        "".join(draw.choice("aeiou") + draw.choice("bdgklmnrst") for _ in range(draw.randint(1, 3)))
        for _ in range(60)
    ]

    def line():
        return " ".join(draw.choice(words) for _ in range(draw.randint(5, 30)))

    return [
        (name, ["\n".join(line() for _ in range(draw.randint(1, 4))) for _ in range(count)])
        for name, count in (("notes", 150), ("tales", 250))
    ]


def write_corpus(folder):
    """Write the files and their listing; the listing's path."""
    texts = []
    for name, documents in listed():
        raw = ("\n\n".join(documents) + "\n").encode()
        packed = gzip.compress(raw, mtime=0)
        (folder / f"{name}.txt.gz").write_bytes(packed)
        texts.append(
            {
                "file": f"{name}.txt.gz",
                "sha256": hashlib.sha256(packed).hexdigest(),
                "packed_bytes": len(packed),
                "text_bytes": len(raw),
                "documents": len(documents),
                "what": f"words of no language, {name}",
                "source": "made by a test",
                "licence": "CC0",
            }
        )
    raw = b"author\ttitle\nnobody\ttales\n"
    (folder / "CREDITS-tales.tsv").write_bytes(raw)
    entry = {"file": "CREDITS-tales.tsv", "sha256": hashlib.sha256(raw).hexdigest(), "what": "authors"}
    listing = folder / "listing.json"
    listing.write_text(json.dumps({"texts": texts, "credits": [entry]}))
    return listing
