"""What a guard is made from: the secrets of an audit or of a file, and a key that is kept apart from the guard.

Guard.make(secrets_in_file("secrets.jsonl"), key=new_key("guard.key")).save("guard.json")
"""

from __future__ import annotations

import logging
import secrets as randomness
from pathlib import Path

from mitigate.artifacts.files import new_file
from mitigate.detection.record import Audit
from mitigate.documents import DocumentSource, read_documents
from mitigate.documents.rows.reader import read_rows
from mitigate.errors import MitigateError, summarize
from mitigate.guard.guard import LONGEST, SHARE, SHORTEST
from mitigate.guard.parts import parts_of_spans
from mitigate.secrets.same import comparable

logger = logging.getLogger(__name__)


def secrets_in_audit(
    audit: Audit, *, known: bool = False, share: float = SHARE, shortest: int = SHORTEST, longest: int = LONGEST
) -> list[str]:
    """The texts of an audit's selected spans, or of the known sensitive spans of its forget set, then their parts.

    What in a span is sensitive by itself is a secret of its own (`guard_parts`): of "3554257252477856 for certain" the
    number.

    Args:
        audit: supplies documents and spans.
        known (`bool`, *optional*, defaults to `False`): the known spans; of all documents but those of the sets retain
            and holdout, if none is in a forget set.
        share, shortest, longest (*optional*): as `Guard.make` will be given them.

    Raises:
        MitigateError: there is no such span.
    """
    whole = spans_in_audit(audit, known=known, shortest=shortest)
    parts = parts_in_audit(audit, known=known, share=share, shortest=shortest, longest=longest)
    return [*whole, *parts]


def spans_in_audit(audit: Audit, *, known: bool = False, shortest: int = SHORTEST) -> list[str]:
    """The spans of `secrets_in_audit` without their parts.

    Spans of fewer letters and digits than `shortest` are left out, and counted in a warning.
    """
    found = [text[start:end] for text, ranges in _spans(audit, known).values() for start, end in ranges]
    kept = [text for text in found if len(comparable(text)) >= shortest]
    if len(kept) < len(found):
        logger.warning(
            "%d of %d spans have fewer than %d letters and digits and are not guarded",
            len(found) - len(kept),
            len(found),
            shortest,
        )
    return kept


def parts_in_audit(audit: Audit, *, known: bool, share: float, shortest: int, longest: int) -> list[str]:
    """The parts of the spans of `secrets_in_audit` that are not spans themselves."""
    spans = _spans(audit, known)
    whole = {comparable(text[start:end]) for text, ranges in spans.values() for start, end in ranges}
    parts, ordinary = parts_of_spans(audit, spans, share=share, shortest=shortest, longest=longest)
    if ordinary:
        logger.info(
            "%d names and numbers in spans are ordinary text (documents of others hold them, too) and are guarded "
            "only together with the rest of their span",
            ordinary,
        )
    return [part for part in parts if comparable(part) not in whole]


def _spans(audit: Audit, known: bool) -> dict[str, tuple[str, list[tuple[int, int]]]]:
    """Text and ranges of each document that has any."""
    wanted = "forget" if "forget" in audit.sets.values() else None
    spans: dict[str, tuple[str, list[tuple[int, int]]]] = {}
    for row in audit.span_rows:
        if row.source == "known" and audit.sets[row.doc_id] == wanted if known else row.selected:
            own = spans.setdefault(row.doc_id, (audit.texts[row.doc_id], []))
            own[1].append((row.char_start, row.char_end))
    if not spans:
        missing = "no known span in the documents to forget" if known else "no selected span"
        raise MitigateError(f"audit: it has {missing}, so there is nothing to guard; give the secrets as a file")
    return spans


def secrets_in_file(path: str | Path) -> list[str]:
    """Secrets from rows (JSONL, CSV, ...) with a field `secret`, or the known spans of rows with `text` and `spans`.

    A text file has a secret in each line that is not blank.

    Raises:
        MitigateError: the file is missing or empty, rows have no secret (all named), documents have no span.
    """
    rows = list(read_rows(DocumentSource(path=str(path))))
    if all(row.number == 0 for row in rows):
        return [line.strip() for row in rows for line in row.values["text"].split("\n") if line.strip()]
    if any("secret" in row.values for row in rows):
        given = [row.values.get("secret") for row in rows]
        if bad := [
            f"{row.where} ({row.problem or 'no text in the field secret'})"
            for row, secret in zip(rows, given, strict=True)
            if not isinstance(secret, str) or not secret.strip()
        ]:
            raise MitigateError(
                f"{path}: rows without a secret: {summarize(bad)}; give each row a field secret, as text"
            )
        return [str(secret) for secret in given]
    documents = read_documents(path)
    found = [document.text[span.start : span.end] for document in documents for span in document.spans]
    if not found:
        raise MitigateError(
            f"{path}: no row has a field secret, no document has spans, and nothing in them is known by its form; give "
            "one or the other"
        )
    return found


def new_key(path: str | Path) -> bytes:
    """Make a key of 32 random bytes and write it, in hexadecimal, to a file readable by its owner only."""
    key = randomness.token_bytes(32)
    with new_file(Path(path)) as temporary:
        temporary.write_text(key.hex() + "\n", encoding="ascii")
    return key


def read_key(path: str | Path) -> bytes:
    """Read what `new_key` wrote.

    Raises:
        MitigateError: the file is missing or holds no key.
    """
    try:
        key = bytes.fromhex(Path(path).read_text(encoding="ascii"))
    except OSError as error:
        raise MitigateError(f"{path}: the key cannot be read ({error.strerror}); correct the path") from None
    except ValueError:
        key = b""
    if not 16 <= len(key) <= 64:
        raise MitigateError(
            f"{path}: holds no key; a key is 16 to 64 bytes in hexadecimal, as `mitigate guard make` writes"
        )
    return key
