"""What a guard is made from: the secrets of an audit or of a file, and a key that is kept apart from the guard.

Guard.make(secrets_in_file("secrets.jsonl"), key=new_key("guard.key")).save("guard.json")
"""

from __future__ import annotations

import logging
import secrets as randomness
from pathlib import Path

from mitigate.artifacts import new_file
from mitigate.detection.audit import Audit
from mitigate.documents import DocumentSource, read_documents
from mitigate.documents.rows import read_rows
from mitigate.errors import MitigateError, summarize
from mitigate.secrets.same import comparable
from mitigate.unlearning.guard import SHORTEST

logger = logging.getLogger(__name__)


def secrets_in_audit(audit: Audit, *, known: bool = False, shortest: int = SHORTEST) -> list[str]:
    """The texts of an audit's selected spans, or of the known sensitive spans of its forget set.

    Args:
        audit: supplies documents and spans.
        known (`bool`, *optional*, defaults to `False`): the known spans; of all documents but those of the sets retain
            and holdout, if none is in a forget set.
        shortest (`int`, *optional*, defaults to 4): spans of fewer letters and digits are left out, and counted in a
            warning.

    Raises:
        MitigateError: there is no such span.
    """
    texts = dict(zip(audit.documents["doc_id"].to_pylist(), audit.documents["text"].to_pylist(), strict=True))
    sets = audit.sets()
    wanted = "forget" if "forget" in sets.values() else None
    spans = [
        row
        for row in audit.spans.to_pylist()
        if (row["source"] == "known" and sets[row["doc_id"]] == wanted if known else row["selected"])
    ]
    if not spans:
        missing = "no known span in the documents to forget" if known else "no selected span"
        raise MitigateError(f"audit: it has {missing}, so there is nothing to guard; give the secrets as a file")
    found = [texts[row["doc_id"]][row["char_start"] : row["char_end"]] for row in spans]
    kept = [text for text in found if len(comparable(text)) >= shortest]
    if len(kept) < len(found):
        logger.warning(
            "%d of %d spans have fewer than %d letters and digits and are not guarded",
            len(found) - len(kept),
            len(found),
            shortest,
        )
    return kept


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
        raise MitigateError(f"{path}: no row has a field secret, and no document has spans; give one or the other")
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
