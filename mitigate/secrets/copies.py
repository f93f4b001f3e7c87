"""The same secrets in other documents: what an erasure request selected may stand elsewhere, written in another way.

What is the same says `secrets.same`: 555-123-4567, (555) 123 4567 and +15551234567 are one. A secret must stand as
whole words, so 5551234 is not in 95551234.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mitigate.documents import Document, Documents
from mitigate.secrets.same import Finder, comparable, is_telling

LEAST_COPIED = 20  # of a whole span that nobody called sensitive: shorter words in a row are alike by chance
MOST_SHARE = 0.05  # of the documents may hold a string that nobody called sensitive, but
MOST_DOCUMENTS = (3, 50)  # not fewer and not more than these
_CLOCK_TIME = re.compile(r"\W*\d{1,2}:\d{2}:\d{2}\W*")  # six digits, but of the hour and not of a person


@dataclass(frozen=True)
class Sought:
    """Characters [char_start, char_end) of a document, to be looked for in others.

    `known` says that somebody called them sensitive, `label` what they are, `number` is the span's.
    """

    number: int
    doc_id: str
    char_start: int
    char_end: int
    label: str
    known: bool


@dataclass(frozen=True)
class Hit:
    """Characters [char_start, char_end) of a document that are also a secret of a requested one.

    `origins` are the span ids of that secret, `label` what it is.
    """

    doc_id: str
    char_start: int
    char_end: int
    origins: tuple[int, ...]
    label: str


@dataclass(frozen=True)
class Linked:
    """Where secrets stand outside the requested documents, and what was not looked for.

    Attributes:
        hits: by document, in the documents' order.
        secrets: different strings that were looked for and are not too common.
        too_short: spans with nothing in them long enough to look for.
        too_common: strings that nobody called sensitive and that many documents hold.
    """

    hits: tuple[Hit, ...]
    secrets: int
    too_short: int
    too_common: int


@dataclass
class _Secret:
    characters: str
    known: bool = False
    origins: set[int] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)


def find_linked(
    documents: Documents,
    requested: Collection[str],
    spans: Sequence[Sought],
    *,
    uncounted: Collection[str] = (),
) -> Linked:
    """Find the secrets of some documents in all others.

    A known sensitive span is looked for as a whole. So is a span that the detector found, if it has 20 letters and
    digits; and of either each number and address with an @ in it by itself, for what is found may hold more than the
    secret, or half a sentence around it. All need 6 letters and digits, and 8 bits (`is_telling`). What nobody called
    sensitive and more than 5 % of the other documents hold (and more than 3; or more than 50) is common, not secret. Of
    places within one another the longest counts.

    Args:
        documents: everything that was audited.
        requested: ids of the documents whose secrets are looked for.
        spans: the secrets; those of other documents are not looked for.
        uncounted (*optional*): ids of documents in which secrets are found, but do not count as common for that.
    """
    texts = {document.id: document.text for document in documents if document.id in requested}
    search = LinkedSearch(texts, spans, uncounted=uncounted)
    for document in documents:
        search.look(document)
    return search.linked()


class LinkedSearch:
    """`find_linked` of documents that are shown one after the other.

    Args:
        texts: of the requested documents, by their ids.
        spans, uncounted: as for `find_linked`.
    """

    def __init__(self, texts: Mapping[str, str], spans: Sequence[Sought], *, uncounted: Collection[str] = ()) -> None:
        self.texts, self.uncounted = texts, uncounted
        self._secrets, self._too_short = _secrets(texts, spans)
        self._finder = Finder(self._secrets)
        self._found: dict[str, list[tuple[int, int, _Secret]]] = {}
        self._frequency: Counter[str] = Counter()
        self._counted = 0

    def look(self, document: Document) -> None:
        """Look for the secrets in a document, unless it is a requested one, or was cut off."""
        if document.id in self.texts or document.is_tail:
            return
        places = [(start, end, self._secrets[text]) for start, end, text in self._finder.places(document.text)]
        if places:
            self._found[document.id] = places
        if document.id not in self.uncounted:
            self._counted += 1
            self._frequency.update({secret.characters for _, _, secret in places})

    def linked(self) -> Linked:
        """What was found in all documents that were shown."""
        most = np.clip(MOST_SHARE * self._counted, *MOST_DOCUMENTS)
        different = {secret.characters: secret for secret in self._secrets.values()}
        common = {name for name, secret in different.items() if not secret.known and self._frequency[name] > most}
        hits = [
            hit
            for doc_id, places in self._found.items()
            for hit in _longest(doc_id, [place for place in places if place[2].characters not in common])
        ]
        return Linked(tuple(hits), len(different) - len(common), self._too_short, len(common))


def _secrets(texts: Mapping[str, str], spans: Sequence[Sought]) -> tuple[dict[str, _Secret], int]:
    """What each string to look for is, one thing for all spellings, and how many spans are too short for that."""
    secrets: dict[str, _Secret] = {}
    by_text: dict[str, _Secret] = {}
    too_short = 0
    for span in spans:
        if span.doc_id not in texts:
            continue
        whole = texts[span.doc_id][span.char_start : span.char_end]
        looked_for = dict.fromkeys(whole[start:end] for start, end in identifiers(whole))
        if span.known or len(comparable(whole)) >= LEAST_COPIED:
            looked_for[whole] = None
        strings = {text: characters for text in looked_for if is_telling(characters := comparable(text))}
        too_short += not strings
        for text, characters in strings.items():
            secret = by_text[text] = secrets.setdefault(characters, _Secret(characters))
            secret.known |= span.known and text == whole
            secret.origins.add(span.number)
            secret.labels.add(span.label)
    return by_text, too_short


def _longest(doc_id: str, places: Sequence[tuple[int, int, _Secret]]) -> Iterator[Hit]:
    """The places that are in no longer one, in order."""
    reached = -1
    by_place: dict[tuple[int, int], list[_Secret]] = defaultdict(list)
    for start, end, secret in places:
        by_place[start, end].append(secret)
    for start, end in sorted(by_place, key=lambda place: (place[0], -place[1])):
        if end > reached:
            reached = end
            origins = sorted({number for secret in by_place[start, end] for number in secret.origins})
            labels = sorted({label for secret in by_place[start, end] for label in secret.labels if label})
            yield Hit(doc_id, start, end, tuple(origins), "+".join(labels))


def identifiers(text: str) -> Iterator[tuple[int, int]]:
    """Places of the words with an @, and of the runs of words with digits that no comma or semicolon parts.

    A time of day is no identifier.
    """
    run: list[re.Match[str]] = []
    for word in [*re.finditer(r"\S+", text), None]:
        numeric = word is not None and "@" not in word[0] and any(map(str.isdigit, word[0]))
        run += [word] if word is not None and numeric else []
        if run and (word is None or not numeric or word[0].endswith((",", ";"))):
            start, end = run[0].start(), run[-1].end()
            if not _CLOCK_TIME.fullmatch(text, start, end):
                yield start, end
            run = []
        if word is not None and "@" in word[0]:
            yield word.span()
