"""What stands out of an audit by parts, as one audit: documents with spans found or selected, and controls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mitigate.detection.metadata import AuditMetadata, Calibration, Coverage, Extract, Fit, NonMembers, Shadows
from mitigate.detection.record import Audit
from mitigate.detection.spans.linked import sought_in, with_linked
from mitigate.detection.spans.row import SpanRow, span_table
from mitigate.documents.corpus import Corpus
from mitigate.documents.types import Erasure
from mitigate.secrets.copies import Hit, Linked, LinkedSearch, Sought


class Exposed:
    """Collects, part by part, the documents that stand out and those that they are compared with.

    Args:
        corpus: says which documents of the sets holdout and retain are taken.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.span_ids: list[dict[int, int]] = []  # of each part: span id there -> its id in the audit
        self.total = Extract(documents=0, tokens=0, parts=0, found=0, known=0, selected=0, exposed=0)
        self._compared = corpus.retained | {document.id for document in corpus.controls}
        self._named: set[str] = set()
        self._tokens: list[pa.Table] = []
        self._documents: list[pa.Table] = []
        self._spans: list[SpanRow] = []
        self._metadata: list[AuditMetadata] = []

    def add(self, part: Audit, also: Collection[str] = ()) -> None:
        """Count a part in, and keep what stands out of it, and documents that are named besides."""
        rows = part.span_rows
        exposed = {row.doc_id for row in rows if row.source == "found" or row.selected}
        total = self.total
        self.total = Extract(
            documents=total.documents + len(part.documents),
            tokens=total.tokens + len(part.tokens),
            parts=total.parts + 1,
            found=total.found + sum(row.source == "found" for row in rows),
            known=total.known + sum(row.source == "known" for row in rows),
            selected=total.selected + sum(row.selected for row in rows),
            exposed=total.exposed + len(exposed),
        )
        self._named |= {doc_id for doc_id in part.rows if doc_id in also}
        taken = exposed | self._compared | self._named
        ids = pa.array(sorted(taken), pa.string())
        kept = [row for row in rows if row.doc_id in taken]
        number = {row.span_id: place for place, row in enumerate(kept, start=len(self._spans))}
        self.span_ids.append(number)
        self._spans += [replace(row, span_id=number[row.span_id]) for row in kept]
        self._documents.append(part.documents.filter(pc.is_in(part.documents["doc_id"], ids)))
        tokens = part.tokens.filter(pc.is_in(part.tokens["doc_id"].cast(pa.string()), ids))
        own = [number.get(one) for one in tokens["span_id"].to_pylist()]
        place = tokens.column_names.index("span_id")
        self._tokens.append(tokens.set_column(place, "span_id", pa.array(own, pa.int32())))
        self._metadata.append(part.metadata)

    def audit(self) -> Audit | None:
        """One audit of what stands out; None where nothing does, and nothing was named."""
        if not self.total.exposed and not self._named:
            return None
        tokens = pa.concat_tables(self._tokens).unify_dictionaries().combine_chunks()
        documents = pa.concat_tables(self._documents).combine_chunks()
        first = self._metadata[0]
        made = Audit(tokens, documents, span_table(self._spans), first)
        warnings = dict.fromkeys(warning for part in self._metadata for warning in part.warnings)
        metadata = first.model_copy(
            update={
                "documents": made.document_list().fingerprint,
                "skipped": self.corpus.skipped,
                "coverage": _coverage([part.coverage for part in self._metadata]),
                "calibration": _weakest([part.calibration for part in self._metadata]),
                "fit": _mean_fit([part.fit for part in self._metadata if part.fit is not None]),
                "warnings": tuple(warnings),
                "extract": self.total,
            }
        )
        return replace(made, metadata=metadata)


def expose(corpus: Corpus, parts: Sequence[Path]) -> tuple[Extract, Audit | None]:
    """How much was audited, and what stands out of it, with all documents in which the secrets of it stand as well.

    With an erasure request these are the secrets of its documents, and their places elsewhere become spans.

    Args:
        corpus: the documents.
        parts: directories of the audits of all parts.
    """
    exposed = Exposed(corpus)
    linked, origins = _linked(corpus.erasure, parts)
    named = {hit.doc_id for hit in linked.hits}
    named |= set(corpus.erasure.doc_ids) if corpus.erasure is not None else set()
    for directory in parts:
        exposed.add(Audit.load(directory), named)
    found = exposed.audit()
    if found is None or corpus.erasure is None:
        return exposed.total, found

    def renumbered(hit: Hit) -> Hit:
        return replace(
            hit, origins=tuple(exposed.span_ids[part][span] for part, span in map(origins.__getitem__, hit.origins))
        )

    result = with_linked(found, corpus.erasure, replace(linked, hits=tuple(map(renumbered, linked.hits))))
    added = [row for row in result.span_rows[len(found.spans) :] if row.selected]
    before = {row.doc_id for row in found.span_rows if row.source == "found" or row.selected}
    counts = {"selected": len(added), "exposed": len({row.doc_id for row in added} - before)}
    total = exposed.total.model_copy(update={name: getattr(exposed.total, name) + n for name, n in counts.items()})
    return total, replace(result, metadata=result.metadata.model_copy(update={"extract": total}))


def _linked(erasure: Erasure | None, parts: Sequence[Path]) -> tuple[Linked, list[tuple[int, int]]]:
    """Where else secrets stand, and for each number of a secret its part and span there.

    They are those of the requested documents; without a request, of all that have a selected span.
    """
    texts: dict[str, str] = {}
    origins: list[tuple[int, int]] = []
    sought: list[Sought] = []
    for place, directory in enumerate(parts):
        audit = Audit.load(directory)
        selected = {row.doc_id for row in audit.span_rows if row.selected}
        wanted = selected if erasure is None else set(erasure.doc_ids)
        texts |= {doc_id: text for doc_id, text in audit.texts.items() if doc_id in wanted}
        for one in sought_in([row for row in audit.span_rows if row.doc_id in wanted]):
            sought.append(replace(one, number=len(origins)))
            origins.append((place, one.number))
    search = LinkedSearch(texts, sought)
    for directory in parts if sought else ():
        for document in Audit.load(directory).document_list():
            search.look(document)
    return search.linked(), origins


def _coverage(parts: Sequence[Coverage]) -> Coverage:
    """Of all parts together."""
    counts = ("characters", "audited", "known_spans", "known_spans_outside", "values_outside")
    return Coverage(
        **{name: sum(getattr(part, name) for part in parts) for name in counts},
        outside=tuple(span for part in parts for span in part.outside),
    )


def _weakest(parts: Sequence[Calibration]) -> Calibration:
    """The calibration that promises least: the one with the largest error, or with the fewest spans to compare with."""

    def promise(calibration: Calibration) -> float:
        if isinstance(calibration, Shadows):
            return -calibration.ece
        return float(sum(calibration.null_spans.values())) if isinstance(calibration, NonMembers) else 0.0

    return min(parts, key=promise)


def _mean_fit(parts: Sequence[Fit]) -> Fit | None:
    """Losses over the documents of all parts."""
    documents = sum(part.documents for part in parts)
    if not documents:
        return None
    losses = {
        name: float(np.average([getattr(part, name) for part in parts], weights=[part.documents for part in parts]))
        for name in ("target", "trained", "untrained")
    }
    return Fit(documents=documents, **losses)
