"""What a page may show of a text: secrets masked, characters that mislead the reader made visible.

HTML escaping is the template's work (Jinja2, autoescape on); what is here is about characters that are harmless to a
parser and harmful to a reader: an override of the writing direction shows "txt.exe" as "exe.txt".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mitigate.detection.audit import Audit

BULLET = "•"
_LEAST = 4  # letters and digits of the shortest secret that is searched for outside its own place
_LEAST_PIECE = 5  # same for one word of a secret, with a digit or an @ in it


class Mask:
    """Hides the text of found and known spans and what an erasure request was looked up by, wherever it turns up.

    Every character of a span becomes a bullet. The span's whole text (4 letters and digits or more), and each of its
    words of 5 characters or more that holds a digit or an @, is also hidden in all other documents and strings, with
    case and kinds of white space ignored.
    """

    def __init__(self, audits: Iterable[Audit], *, show_text: bool) -> None:
        self.show_text = show_text
        self._ranges: dict[str, set[tuple[int, int]]] = defaultdict(set)
        self._secrets: dict[str, list[str]] = defaultdict(list)
        if show_text:
            return
        texts: dict[str, str] = {}
        for audit in audits:
            for row in audit.documents.select(["doc_id", "text", "known_spans"]).to_pylist():
                texts[row["doc_id"]] = row["text"]
                self._ranges[row["doc_id"]] |= {(span["start"], span["end"]) for span in row["known_spans"] or ()}
            for row in audit.spans.select(["doc_id", "char_start", "char_end"]).to_pylist():
                self._ranges[row["doc_id"]].add((row["char_start"], row["char_end"]))
            for doc_id, start, end in (audit.metadata.get("erasure") or {}).get("matches", ()):
                self._ranges[doc_id].add((start, end))
        secrets: set[str] = set()
        for doc_id, ranges in self._ranges.items():
            for start, end in ranges:
                secrets |= _searchable(texts.get(doc_id, "")[start:end])
        for secret in secrets:
            self._secrets[secret[:_LEAST]].append(secret)

    def hidden(self, text: str, *, doc_id: str | None = None) -> np.ndarray:
        """(len(text),) bool: characters that must not be shown."""
        hidden = np.zeros(len(text), dtype=bool)
        for start, end in self._ranges.get(doc_id, ()) if doc_id is not None else ():
            hidden[max(0, start) : max(0, end)] = True
        if self._secrets:
            folded = _folded(text)
            for at in range(len(folded) - _LEAST + 1):
                for secret in self._secrets.get(folded[at : at + _LEAST], ()):
                    if folded.startswith(secret, at):
                        hidden[at : at + len(secret)] = True
        return hidden

    def text(self, text: str, *, doc_id: str | None = None) -> str:
        """`text` with a bullet for each character that must not be shown."""
        hidden = self.hidden(text, doc_id=doc_id)
        return "".join(BULLET if hide else char for char, hide in zip(text, hidden, strict=True))

    def span(self, text: str) -> str:
        """The text of a found or known span."""
        return text if self.show_text else BULLET * len(text)

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


def visible(text: str) -> str:
    """`text` with control, direction and invisible characters replaced by visible signs.

    Tab, newline and the joiners inside emoji and scripts (U+200C, U+200D, variation selectors) stay.
    """
    return text.translate(_SIGNS)


def _searchable(secret: str) -> set[str]:
    folded = _folded(secret).strip()
    words = {word.strip(".,;:!?()[]<>\"'") for word in folded.split()}
    found = {word for word in words if len(word) >= _LEAST_PIECE and any(c.isdigit() or c == "@" for c in word)}
    return found | {folded} if sum(map(str.isalnum, folded)) >= _LEAST else found


def _folded(text: str) -> str:
    """Lower case with plain spaces, character for character."""
    return "".join(" " if char.isspace() else low if len(low := char.lower()) == 1 else char for char in text)


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
