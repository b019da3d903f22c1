"""The corpus by name, digest, source and licence; its files lie outside the project and are read here alone.

A text file is `*.txt.gz`, UTF-8: documents are separated by a blank line. Knows nothing of tokens.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LISTING = Path(__file__).with_name("corpus.json")


class CorpusError(Exception):
    """The folder does not hold the files of the listing; the message names the file and the mend."""


@dataclass(frozen=True, slots=True)
class Text:
    """One file of the corpus; sizes in bytes, `source` with the commit that it was cut from."""

    file: str
    sha256: str
    packed_bytes: int
    text_bytes: int
    documents: int
    what: str
    source: str
    licence: str

    @property
    def name(self) -> str:
        """Name of the source in tables and results."""
        return self.file.removesuffix(".txt.gz")


@dataclass(frozen=True, slots=True)
class Credits:
    """A list of authors that goes with a text file, and is never read as text."""

    file: str
    sha256: str
    what: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """What the listing names."""

    texts: tuple[Text, ...]
    credits: tuple[Credits, ...]

    @property
    def digest(self) -> str:
        """SHA-256 in hex over names and digests of the text files, in order: it names the whole text."""
        named = "".join(f"{text.file} {text.sha256}\n" for text in self.texts)
        return hashlib.sha256(named.encode()).hexdigest()

    def check(self, folder: Path) -> None:
        """Compare every file with the listing before any of it is read.

        Raises:
            CorpusError: a file is missing, or is another one.
        """
        for entry in (*self.texts, *self.credits):
            path = folder / entry.file
            if not path.is_file():
                raise CorpusError(
                    f"{entry.file} is not in {folder}: give --corpus the folder that holds every file of the "
                    f"listing (corpus.json says where each comes from), or --listing one of your own files"
                )
            found = sha256_of(path)
            if found != entry.sha256:
                raise CorpusError(
                    f"{entry.file} in {folder} has SHA-256 {found}, the listing says {entry.sha256}: "
                    f"copy the file again, or train on other text by a --listing of your own"
                )


def read_listing(path: Path = LISTING) -> Corpus:
    """The corpus that a listing (JSON, `texts` and `credits`) names."""
    said = json.loads(path.read_text(encoding="utf-8"))
    return Corpus(
        tuple(Text(**entry) for entry in said["texts"]),
        tuple(Credits(**entry) for entry in said.get("credits", [])),
    )


def documents(folder: Path, text: Text) -> Iterator[str]:
    """The documents of one checked file, in its order, without the blank lines around them.

    Raises:
        CorpusError: there are not as many as the listing says.
    """
    count = 0
    with gzip.open(folder / text.file, "rt", encoding="utf-8", newline="\n") as lines:
        held: list[str] = []
        for line in lines:
            if line.strip():
                held.append(line)
            elif held:
                count += 1
                yield "".join(held).rstrip("\n")
                held = []
        if held:
            count += 1
            yield "".join(held).rstrip("\n")
    if count != text.documents:
        raise CorpusError(f"{text.file} holds {count} documents, the listing says {text.documents}: mend it")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
