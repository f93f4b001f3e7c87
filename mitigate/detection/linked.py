"""The same secrets in other documents: what an erasure request selected may stand elsewhere, written in another way.

A secret is compared by its letters and digits alone, case ignored: 555-1234, (555) 1234 and 5551234 are one. It must
stand as whole words, so 5551234 is not in 95551234.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from mitigate.detection.verdicts import Verdict
from mitigate.documents import Documents
from mitigate.documents.folding import begins_word, fold, in_word
from mitigate.tokenization import span_tokens

LEAST_CHARACTERS = 6  # letters and digits of a secret that is looked for
LEAST_COPIED = 20  # of a whole span that nobody called sensitive: shorter words in a row are alike by chance
LEAST_BITS = 8.0  # characters × entropy of their distribution: 000000 has none
MOST_SHARE = 0.05  # of the documents may hold a string that nobody called sensitive, but
MOST_DOCUMENTS = (3, 50)  # not fewer and not more than these
_CLOCK_TIME = re.compile(r"\W*\d{1,2}:\d{2}:\d{2}\W*")  # six digits, but of the hour and not of a person
_GAP = 3  # other characters between two letters or digits of a secret, as in "(555) 1234"


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
    gap: int
    known: bool
    origins: set[int] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)


def with_linked(verdict: Verdict, documents: Documents) -> tuple[Verdict, dict[str, Any]]:
    """Add the linked places of the documents' erasure request to a verdict.

    Each becomes a span of the source `linked` with the label of its origin. It is selected, all its tokens whether
    memorized or not, if the request says so and the target was trained on the document (holdout text has nothing to
    forget and must stay what non-members are).

    Returns:
        the verdict with these spans last, and what an audit's metadata say of the request: the ids that it selected and
        touched, `matches` of its texts, how many secrets were looked for, and `linked`: for each place its span, the
        spans that it is linked to (`origins`), its tokens and how many of them are memorized.
    """
    erasure = documents.erasure
    assert erasure is not None
    linked = find_linked(documents, erasure.doc_ids, verdict.spans)
    numbers = {document.id: number for number, document in enumerate(documents)}
    starts = [0, *accumulate(len(tokens.ids) for tokens in verdict.tokenized)]
    rows: list[dict[str, Any]] = []
    listing = []
    for hit in linked.hits:
        number = numbers[hit.doc_id]
        own = verdict.tokenized[number]
        tokens = span_tokens(own.offsets, hit.char_start, hit.char_end)
        tokens = tokens[own.audited[tokens]]
        place = {"doc_id": hit.doc_id, "char_start": hit.char_start, "char_end": hit.char_end, "label": hit.label}
        listed = {**place, "span_id": None, "origins": list(hit.origins), "set": documents[number].set}
        listed |= {"tokens": len(tokens), "memorized_tokens": int(verdict.memorized[starts[number] + tokens].sum())}
        listed["selected"] = bool(tokens.size) and erasure.linked and documents[number].set != "holdout"
        if tokens.size:
            listed["span_id"] = len(verdict.spans) + len(rows)
            rows.append(
                {
                    **place,
                    "span_id": listed["span_id"],
                    "token_start": int(tokens[0]),
                    "token_end": int(tokens[-1]) + 1,
                    "source": "linked",
                    "score": float(np.nanmean(verdict.score[starts[number] + tokens])),
                    "probability": None,
                    "q": None,
                    "selected": listed["selected"],
                }
            )
        listing.append(listed)
    record = {
        "criteria": dict(erasure.criteria),
        "documents": list(erasure.doc_ids),
        "never_trained": list(erasure.never_trained),
        "same_group": list(erasure.same_group),
        "matches": [list(match) for match in erasure.matches],
        "select_linked": erasure.linked,
        "secrets": linked.secrets,
        "too_short": linked.too_short,
        "too_common": linked.too_common,
        "linked": listing,
    }
    return replace(verdict, spans=[*verdict.spans, *rows]), record


def find_linked(
    documents: Documents,
    requested: Collection[str],
    spans: Sequence[Mapping[str, Any]],
    *,
    uncounted: Collection[str] = (),
) -> Linked:
    """Find the secrets of some documents in all others.

    A known sensitive span is looked for as a whole. So is a span that the detector found, if it has 20 letters and
    digits; and of either each number and address with an @ in it by itself, for what is found may hold more than the
    secret, or half a sentence around it. All need 6 letters and digits, and 8 bits (characters × entropy of their
    distribution). What nobody called sensitive and more than 5 % of the other documents hold (and more than 3; or more
    than 50) is common, not secret. Of places within one another the longest counts.

    Args:
        documents: everything that was audited.
        requested: ids of the documents whose secrets are looked for.
        spans: rows of the span table; the selected and the known spans of the requested documents are secrets.
        uncounted (*optional*): ids of documents in which secrets are found, but do not count as common for that.
    """
    secrets, too_short = _secrets(documents, requested, spans)
    by_start: dict[str, list[_Secret]] = defaultdict(list)
    for secret in secrets:
        by_start[secret.characters[:LEAST_CHARACTERS]].append(secret)
    others = [document for document in documents if document.id not in requested and not document.is_tail]
    found = {document.id: list(_places(document.text, by_start)) for document in others} if by_start else {}
    frequency = Counter(
        secret.characters
        for doc_id, places in found.items()
        if doc_id not in uncounted
        for secret in {secret.characters: secret for _, _, secret in places}.values()
    )
    counted = sum(document.id not in uncounted for document in others)
    most = np.clip(MOST_SHARE * counted, *MOST_DOCUMENTS)
    common = {secret.characters for secret in secrets if not secret.known and frequency[secret.characters] > most}
    hits = [
        hit
        for doc_id, places in found.items()
        for hit in _longest(doc_id, [place for place in places if place[2].characters not in common])
    ]
    return Linked(tuple(hits), len(secrets) - len(common), too_short, len(common))


def _secrets(
    documents: Documents, requested: Collection[str], spans: Sequence[Mapping[str, Any]]
) -> tuple[list[_Secret], int]:
    """The different strings to look for, and how many spans are too short for that."""
    texts = {document.id: document.text for document in documents if document.id in requested}
    secrets: dict[str, _Secret] = {}
    too_short = 0
    for span in spans:
        known = span["source"] == "known"
        if span["doc_id"] not in texts or not (span["selected"] or known):
            continue
        whole = texts[span["doc_id"]][span["char_start"] : span["char_end"]]
        looked_for = dict.fromkeys(_identifiers(whole))
        if known or len(_Comparable(whole).characters) >= LEAST_COPIED:
            looked_for[whole] = None
        strings = {text: _Comparable(text) for text in looked_for}
        strings = {text: comparable for text, comparable in strings.items() if _is_long(comparable.characters)}
        too_short += not strings
        for text, comparable in strings.items():
            secret = secrets.setdefault(comparable.characters, _Secret(comparable.characters, _GAP, False))
            secret.gap = max(secret.gap, comparable.widest_gap(0, len(comparable.characters)))
            secret.known |= known and text == whole
            secret.origins.add(span["span_id"])
            secret.labels.add(span["label"])
    return list(secrets.values()), too_short


def _places(text: str, by_start: Mapping[str, Sequence[_Secret]]) -> Iterator[tuple[int, int, _Secret]]:
    """Every place where a secret stands in a text, as characters of the text."""
    comparable = _Comparable(text)
    for start in comparable.words:
        for secret in by_start.get(comparable.characters[start : start + LEAST_CHARACTERS], ()):
            end = start + len(secret.characters)
            if (
                comparable.characters.startswith(secret.characters, start)
                and (end in comparable.words or end == len(comparable.characters))
                and comparable.widest_gap(start, end) <= secret.gap
            ):
                yield (*comparable.original(start, end), secret)


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


def _identifiers(text: str) -> Iterator[str]:
    """The words with an @, and the runs of words with digits that no comma or semicolon parts; no time of day."""
    run: list[str] = []
    for word in [*text.split(), ""]:
        numeric = "@" not in word and any(map(str.isdigit, word))
        run += [word] if numeric else []
        if run and (not numeric or word.endswith((",", ";"))):
            joined = " ".join(run)
            if not _CLOCK_TIME.fullmatch(joined):
                yield joined
            run = []
        if "@" in word:
            yield word


class _Comparable:
    """A text's letters and digits, with their places in it."""

    def __init__(self, text: str) -> None:
        self._folded = fold(text)
        folded = self._folded.text
        self._at = [at for at, character in enumerate(folded) if in_word(character)]
        self.characters = "".join(folded[at] for at in self._at)
        spaced = folded.isascii()
        self.words = {  # where one begins; a dict, for its order
            number: None
            for number, (before, at) in enumerate(pairwise([-2, *self._at]))
            if at - before > 1 or (not spaced and begins_word(folded, at))
        }

    def widest_gap(self, start: int, end: int) -> int:
        """The most other characters between two neighbours of characters[start:end]."""
        return max((self._at[number + 1] - self._at[number] - 1 for number in range(start, end - 1)), default=0)

    def original(self, start: int, end: int) -> tuple[int, int]:
        return self._folded.original(self._at[start], self._at[end - 1] + 1)


def _is_long(characters: str) -> bool:
    counts = Counter(characters).values()
    bits = sum(count * math.log2(len(characters) / count) for count in counts)
    return len(characters) >= LEAST_CHARACTERS and bits >= LEAST_BITS
