"""What a page may show of a text: secrets masked, characters that mislead the reader made visible.

HTML escaping is the template's work (Jinja2, autoescape on); what is here is about characters that are harmless to a
parser and harmful to a reader: an override of the writing direction shows "txt.exe" as "exe.txt".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mitigate.errors import MitigateError
from mitigate.mistakes import not_one_of
from mitigate.recognisers.values import sensitive_values
from mitigate.reporting.settings import ShownText
from mitigate.secrets.copies import identifiers
from mitigate.secrets.same import Finder, comparable, is_telling
from mitigate.text.stretches import widened

if TYPE_CHECKING:
    from mitigate.detection.record import Audit

BULLET = "•"
_LEAST = 4  # letters and digits of the shortest secret that is searched for outside its own place
_LEAST_WORD = 5  # same for one word of a secret, with a digit or an @ in it
_MARGIN = 3000  # characters on each side of what is shown in which a secret may begin or end
_ORDINARY = (10, 0.1)  # groups, and share of all, that hold what was found: more than that is ordinary text
_SAMPLED = (2000, 20_000)  # documents that are asked, and characters of each
_PLAIN_KEYS = ("fingerprints", "versions", "created", "seconds", "tokens_per_second")
_SURE_KINDS = ("email", "url", "iban", "ssn")  # what does not look like an id, a date or a fingerprint


class Mask:
    """Hides the text of found and known spans and what an erasure request was looked up by, wherever it turns up.

    Every character of a span becomes a bullet. In all other documents and strings is hidden what is the same secret
    (`secrets.same`) as a span, as a value in it that is sensitive by itself, or as a word in it with a digit or an @;
    and in text of documents every value that is sensitive by itself (`secrets.values`) and every name of two words or
    more, whether anyone found it or not.

    What the detector found, or what looks like a name, may be ordinary text. Of such a span the whole, and names, are
    not hidden elsewhere if documents of more than 10 groups and more than a tenth of all groups hold them. Known spans,
    what is linked to them, and values that are sensitive by themselves are never ordinary.

    Args:
        audits: of the documents that will be drawn.
        text: `masked`; `all` hides nothing; `none` hides as `masked` does, in what is no text of a document.
    """

    def __init__(self, audits: Iterable[Audit], *, text: str = "masked") -> None:
        if wrong := not_one_of(ShownText, text):
            raise MitigateError(f"report.text: {wrong}")
        self.shown = text
        self._ranges: dict[str, dict[tuple[int, int], bool]] = defaultdict(dict)
        self._texts: dict[str, str] = {}
        self._groups: dict[str, str] = {}
        if text == "all":
            return
        for audit in audits:
            for row in audit.documents.select(["doc_id", "text", "group", "known_spans"]).to_pylist():
                self._texts[row["doc_id"]], self._groups[row["doc_id"]] = row["text"], row["group"] or row["doc_id"]
                for known in row["known_spans"] or ():
                    self._ranges[row["doc_id"]][known["start"], known["end"]] = True
            for span in audit.span_rows:
                place = (span.char_start, span.char_end)
                ranges = self._ranges[span.doc_id]
                ranges[place] = span.source != "found" or ranges.get(place, False)
            erasure = audit.metadata.erasure
            for doc_id, start, end in erasure.matches if erasure is not None else ():
                self._ranges[doc_id][start, end] = True

    def hidden(
        self, text: str, *, doc_id: str | None = None, within: Sequence[tuple[int, int]] | None = None
    ) -> np.ndarray:
        """(len(text),) bool: characters of a document's text that must not be shown.

        Args:
            text: of a document.
            doc_id (*optional*): which one it is.
            within (*optional*): the characters that will be shown, if not all; of others nothing is said.
        """
        hidden = np.zeros(len(text), dtype=bool)
        if self.shown == "all":
            return hidden
        for start, end in self._ranges.get(doc_id, ()) if doc_id is not None else ():
            hidden[max(0, start) : max(0, end)] = True
        for low, high in widened([(0, len(text))] if within is None else within, _MARGIN, length=len(text)):
            part = text[low:high]
            places = [(start, end) for start, end, secret in self._finder.places(part) if not self._is_ordinary(secret)]
            places += [(value.start, value.end) for value in sensitive_values(part)]
            places += [place for place in _full_names(part) if not self._is_ordinary(part[slice(*place)])]
            for start, end in places:
                hidden[low + start : low + end] = True
        return hidden

    def text(self, text: str) -> str:
        """A string that is no document's text, such as an id or a note, with a bullet for each hidden character.

        An id of which something is hidden is followed by its place among the documents.
        """
        if self.shown == "all":
            return text
        hidden = np.zeros(len(text), dtype=bool)
        for start, end, secret in self._finder.places(text):
            if self._is_sought_everywhere(secret) and not self._is_ordinary(secret):
                hidden[start:end] = True
        for value in sensitive_values(text):
            international = value.kind == "phone" and text[value.start] == "+"
            if value.kind in _SURE_KINDS or international:
                hidden[value.start : value.end] = True
        masked = "".join(BULLET if hide else char for char, hide in zip(text, hidden, strict=True))
        return f"{masked} (document {self._numbers[text]})" if hidden.any() and text in self._numbers else masked

    def span(self, text: str) -> str:
        """The text of a found or known span."""
        return text if self.shown == "all" else BULLET * len(text)

    def deep(self, value: Any, *, keys: bool = False) -> Any:
        """A JSON-able value with every string in it masked.

        Args:
            value: anything.
            keys (`bool`, *optional*, defaults to `False`): keys too: where users name them, as in a recipe. The
                report's own may be words that a found span consists of, and are needed as they are.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)) if keys else key: self.deep(item, keys=keys) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.deep(item, keys=keys) for item in value]
        return value if value is None or isinstance(value, bool | int | float) else self.text(str(value))

    def report(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """The content of report.json with every string masked but those that say how it was made."""
        if self.shown == "all":
            return dict(report)
        masked = {
            key: value if key in _PLAIN_KEYS else self.deep(value, keys=key == "recipe")
            for key, value in report.items()
        }
        if masked.get("retrain"):
            masked["retrain"]["exact"] = report["retrain"]["exact"]  # our own sentence, whatever was found memorized
            masked["retrain"]["base"] = report["retrain"].get("base")  # a fingerprint
        return masked

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {doc_id: number for number, doc_id in enumerate(self._texts, 1)}

    @cached_property
    def _secrets(self) -> dict[str, bool]:
        """What is looked for, and whether it is a secret however many documents hold it."""
        pieces: dict[str, bool] = {}
        for doc_id, ranges in self._ranges.items():
            for (start, end), sure in ranges.items():
                piece = self._texts.get(doc_id, "")[start:end]
                pieces[piece] = sure or pieces.get(piece, False)
        secrets: dict[str, bool] = {}
        for piece, sure in pieces.items():
            for part, always in _parts(piece):
                secrets[part] = secrets.get(part, False) or always or (sure and part == piece)
        return secrets

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self._secrets, loose=True)

    def _is_sought_everywhere(self, secret: str) -> bool:
        """Whether a secret is sought in the report's own words: a word or a few digits that were found may be there."""
        several = len([*filter(comparable, secret.split())]) > 1 or any(map(str.isdigit, secret))  # a comma is no word
        return self._secrets[secret] or (several and is_telling(comparable(secret)))

    def _is_ordinary(self, secret: str) -> bool:
        if self._secrets.get(secret):
            return False
        if secret not in self._ordinary:
            sought = comparable(secret)
            holders = {group for group, text in self._sample if sought in text}
            least, share = _ORDINARY
            self._ordinary[secret] = len(holders) > max(least, share * len({group for group, _ in self._sample}))
        return self._ordinary[secret]

    @cached_property
    def _ordinary(self) -> dict[str, bool]:
        return {}

    @cached_property
    def _sample(self) -> list[tuple[str, str]]:
        """(group, what is compared of the text) of documents evenly spaced among all."""
        most, characters = _SAMPLED
        step = max(1, len(self._texts) // most)
        return [
            (self._groups[doc_id], comparable(text[:characters])) for doc_id, text in list(self._texts.items())[::step]
        ]


def visible(text: str) -> str:
    """`text` with control, direction and invisible characters replaced by visible signs.

    Tab, newline and the joiners inside emoji and scripts (U+200C, U+200D, variation selectors) stay.
    """
    return text.translate(_SIGNS)


def _parts(piece: str) -> Iterator[tuple[str, bool]]:
    """What of a span is looked for elsewhere, and whether it is sensitive by itself."""
    alone = {(value.start, value.end) for value in sensitive_values(piece)}
    inside = {(value.start, value.end) for value in sensitive_values(piece, spans=[(0, len(piece))])}
    for start, end in {(0, len(piece)), *alone, *inside, *identifiers(piece)}:
        if len(comparable(piece[start:end])) >= _LEAST:
            yield piece[start:end], (start, end) in alone
    for word in piece.split():
        bare = word.strip(".,;:!?()[]<>\"'")
        if len(bare) >= _LEAST_WORD and any(character.isdigit() or character == "@" for character in bare):
            yield bare, False


def _full_names(text: str) -> Iterator[tuple[int, int]]:
    """Places of what looks like a name of two words or more: capital letters tell, so there may be more than names."""
    for value in sensitive_values(text, spans=[(0, len(text))]):
        if value.kind == "name" and len(text[value.start : value.end].split()) > 1:
            yield value.start, value.end


def _named(code: int) -> str:
    return f"⟨U+{code:04X}⟩"


_SIGNS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "\u2421",
    **{code: _named(code) for code in range(0x80, 0xA0)},
    **{code: _named(code) for code in (0xAD, 0x061C, 0x180E, 0x200B, 0x200E, 0x200F, 0xFEFF, 0xFFFE, 0xFFFF)},
    **{code: _named(code) for code in (*range(0x2028, 0x202F), *range(0x2060, 0x2070), *range(0xFFF9, 0xFFFC))},
    **{code: _named(code) for code in (*range(0xD800, 0xE000), *range(0xE0000, 0xE0080))},
}
