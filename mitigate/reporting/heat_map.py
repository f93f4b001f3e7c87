"""A document as the pieces of a heat map: text cut where a token, a span or a mask begins or ends.

Token text is sliced from the document by offsets, never decoded. Every character is in exactly one piece, also those
between tokens; tokens that share characters (an emoji split over several) share one cell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mitigate.detection.spans.row import SpanRow
from mitigate.errors import MitigateError, printable, summarize
from mitigate.reporting.figures import figure_text, finite
from mitigate.reporting.masking import BULLET, Mask
from mitigate.text.stretches import widened

if TYPE_CHECKING:
    from mitigate.detection.record import Audit

LEVELS = 5  # shades on each side of zero
LONGEST = 3000  # characters of one document that are shown; a longer one is excerpted around its spans
_CONTEXT = 150  # characters of context on each side of a span in an excerpt
_SIGNALS = ("score", "log_prob", "rank", "log_prob_out", "log_prob_references")
_COLUMNS = ("doc_id", "position", "char_start", "char_end", "audited", *_SIGNALS)


@dataclass(frozen=True)
class PieceView:
    """A stretch of characters drawn alike.

    Attributes:
        text: the characters, masked where they must be.
        kinds: CSS class names that hold on both sides.
        levels: one shade for each side (before, after), from -LEVELS to LEVELS; 0 is no colour.
        title: the figures of its tokens; empty between tokens.
    """

    text: str
    kinds: str
    levels: tuple[int, ...]
    title: str


@dataclass(frozen=True)
class RunView:
    """Pieces inside one known sensitive span (`known`), outside any, or characters left out (`omitted` of them)."""

    known: bool
    label: str
    pieces: tuple[PieceView, ...]
    omitted: int = 0


@dataclass(frozen=True)
class DocumentView:
    """One document, ready to draw. `scores` is the highest span score on each side, nats."""

    id: str
    set: str | None
    runs: tuple[RunView, ...]
    selected: int
    known: int
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class HeatMap:
    """Documents to draw, on one scale: `scale` is the score that gets the darkest shade."""

    documents: tuple[DocumentView, ...]
    total: int
    scale: float
    score: str
    sides: tuple[str, ...]


def build_heat_map(
    before: Audit,
    after: Audit | None = None,
    *,
    mask: Mask,
    doc_ids: Sequence[str] | None = None,
    most_documents: int = 40,
) -> HeatMap:
    """Cut documents into pieces for the heat map.

    Args:
        before: the audit.
        after (*optional*): the re-audit of the same documents.
        mask: decides what may be shown.
        doc_ids (*optional*): the documents to draw, in this order. By default those with selected spans come first,
            by their highest span score, and a quarter of the places is kept for other documents.
        most_documents (`int`, *optional*, defaults to 40): how many documents are drawn.

    Raises:
        MitigateError: an id that the audit does not have, or a re-audit of other documents or tokens.
    """
    audits = [audit for audit in (before, after) if audit is not None]
    documents = {row["doc_id"]: row for row in before.documents.to_pylist()}
    spans: dict[str, list[SpanRow]] = {doc_id: [] for doc_id in documents}
    for span in before.span_rows:
        spans[span.doc_id].append(span)
    unknown = [doc_id for doc_id in doc_ids or () if doc_id not in documents]
    if unknown:
        raise MitigateError(f"heat map: the audit has no document {summarize(unknown)}; it has {summarize(documents)}")
    chosen = list(doc_ids) if doc_ids is not None else _choose(spans, most_documents)
    chosen = chosen[:most_documents]
    scale = _scale(before)
    tokens = [_tokens_of(audit, set(chosen)) for audit in audits]
    after_spans = {span.span_id: span.score for span in after.span_rows} if after is not None else {}
    views = []
    for doc_id in chosen:
        sides = [side.get(doc_id, []) for side in tokens]
        _check_aligned(doc_id, sides)
        row = documents[doc_id]
        highest = [_highest([span.score for span in spans[doc_id]])]
        if after is not None:
            highest.append(_highest([after_spans.get(span.span_id) for span in spans[doc_id]]))
        views.append(
            DocumentView(
                id=mask.text(doc_id),
                set=row["set"],
                runs=tuple(_runs(row, spans[doc_id], sides, mask=mask, scale=scale)),
                selected=sum(span.selected for span in spans[doc_id]),
                known=len(row["known_spans"] or ()),
                scores=tuple(highest),
            )
        )
    score = before.metadata.detect.score
    return HeatMap(tuple(views), len(documents), scale, score, ("Before", "After")[: len(audits)])


def level(score: float | None, *, scale: float) -> int:
    """The shade of a score: its sign, and 1 to LEVELS by size; 0 for none or less than a tenth of the scale."""
    if score is None or abs(score) < scale / 10:
        return 0
    size = min(LEVELS, 1 + int(abs(score) / scale * LEVELS))
    return size if score > 0 else -size


def _choose(spans: Mapping[str, Sequence[SpanRow]], most: int) -> list[str]:
    def by_score(doc_id: str) -> tuple[float, str]:
        highest = _highest([span.score for span in spans[doc_id] if span.selected or doc_id not in selected])
        return -(highest if highest is not None else -np.inf), doc_id

    selected = {doc_id for doc_id, own in spans.items() if any(span.selected for span in own)}
    first, others = sorted(selected, key=by_score), sorted(set(spans) - selected, key=by_score)
    first = first[: max(most - len(others), most - most // 4)]
    return first + others[: most - len(first)]


def _scale(audit: Audit) -> float:
    """The 95 % quantile of the selected tokens' scores (or the 99 % one of all), up to the next half, at least 1."""
    score = np.abs(audit.tokens["score"].to_numpy(zero_copy_only=False).astype(float))
    selected = audit.tokens["selected"].to_numpy(zero_copy_only=False).astype(bool) & np.isfinite(score)
    values, quantile = (score[selected], 0.95) if selected.any() else (score[np.isfinite(score)], 0.99)
    return max(1.0, float(np.ceil(2 * np.quantile(values, quantile)) / 2)) if values.size else 1.0


def _tokens_of(audit: Audit, chosen: set[str]) -> dict[str, list[dict[str, Any]]]:
    rows = np.flatnonzero([doc_id in chosen for doc_id in audit.tokens["doc_id"].to_pylist()])
    tokens: dict[str, list[dict[str, Any]]] = {}
    for row in audit.tokens.select(list(_COLUMNS)).take(rows).to_pylist():
        tokens.setdefault(row["doc_id"], []).append(row)
    return tokens


def _check_aligned(doc_id: str, sides: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    keys = ("position", "char_start", "char_end")
    cuts = [[tuple(token[key] for key in keys) for token in side] for side in sides]
    if any(cut != cuts[0] for cut in cuts):
        raise MitigateError(
            f"heat map: document {printable(doc_id)} has other tokens in the re-audit than in the audit; "
            "re-audit the same documents with the same tokenizer"
        )


def _runs(
    row: Mapping[str, Any],
    spans: Sequence[SpanRow],
    sides: Sequence[Sequence[Mapping[str, Any]]],
    *,
    mask: Mask,
    scale: float,
) -> list[RunView]:
    text: str = row["text"]
    known = [(span["start"], span["end"], mask.text(span["label"] or "")) for span in row["known_spans"] or ()]
    found = [(span.char_start, span.char_end, span.selected) for span in spans]
    shown = _excerpt(len(text), [(start, end) for start, end, _ in (*known, *found)])
    hidden = mask.hidden(text, doc_id=row["doc_id"], within=shown)
    known = [span for span in known if _meets(span[:2], shown)]
    found = [span for span in found if _meets(span[:2], shown)]
    cells = [cell for cell in _cells(sides[0], len(text)) if _meets(cell[:2], shown)]
    cuts = {0, len(text), *(np.flatnonzero(hidden[1:] != hidden[:-1]) + 1).tolist()}
    for start, end in (*((c[0], c[1]) for c in cells), *((s[0], s[1]) for s in (*known, *found)), *shown):
        cuts |= {min(max(start, 0), len(text)), min(max(end, 0), len(text))}
    starts = [cell[0] for cell in cells]
    titles = [_title([[side[i] for i in cell[2]] for side in sides]) for cell in cells]

    drawn: list[tuple[tuple[int, int], PieceView]] = []  # ((number of the known span or -1, characters omitted), piece)
    for start, end in pairwise(sorted(cuts)):
        if not any(low <= start < high for low, high in shown):
            drawn.append(((-1, end - start), PieceView("", "", (), "")))
            continue
        number = bisect_right(starts, start) - 1
        inside = number >= 0 and start < cells[number][1]
        tokens = [[side[i] for i in cells[number][2]] for side in sides] if inside else []
        kinds = _kinds(start, found, tokens, masked=bool(hidden[start]))
        levels = tuple(level(_strongest(own), scale=scale) for own in tokens) or (0,) * len(sides)
        shown_text = BULLET * (end - start) if hidden[start] else text[start:end]
        owner = next((i for i, (low, high, _) in enumerate(known) if low <= start < high), -1)
        drawn.append(((owner, 0), PieceView(shown_text, kinds, levels, titles[number] if inside else "")))

    runs = []
    for (owner, left_out), group in groupby(drawn, key=lambda item: (item[0][0], item[0][1] > 0)):
        items = list(group)
        if left_out:
            runs.append(RunView(False, "", (), omitted=sum(omitted for (_, omitted), _ in items)))
        else:
            label = known[owner][2] if owner >= 0 else ""
            runs.append(RunView(owner >= 0, label, tuple(piece for _, piece in items)))
    return runs


def _cells(tokens: Sequence[Mapping[str, Any]], length: int) -> list[tuple[int, int, list[int]]]:
    """Tokens with characters in common, together: (start, end, indices into `tokens`), in the order of the text."""
    cells: list[tuple[int, int, list[int]]] = []
    order = sorted(range(len(tokens)), key=lambda i: (tokens[i]["char_start"], tokens[i]["char_end"], i))
    for i in order:
        start, end = max(0, tokens[i]["char_start"]), min(tokens[i]["char_end"], length)
        if start >= end:
            continue
        if cells and start < cells[-1][1]:
            low, high, members = cells[-1]
            cells[-1] = (low, max(high, end), [*members, i])
        else:
            cells.append((start, end, [i]))
    return cells


def _kinds(
    start: int,
    found: Sequence[tuple[int, int, bool]],
    tokens: Sequence[Sequence[Mapping[str, Any]]],
    *,
    masked: bool,
) -> str:
    owners = [selected for low, high, selected in found if low <= start < high]
    kinds = ["t"] if tokens else []
    if any(owners):
        kinds.append("s")
    elif owners:
        kinds.append("f")
    if tokens and not any(token["audited"] for token in tokens[0]):
        kinds.append("u")
    if masked:
        kinds.append("m")
    return " ".join(kinds)


def _strongest(tokens: Sequence[Mapping[str, Any]]) -> float | None:
    scores = [score for token in tokens if token["audited"] and (score := finite(token["score"])) is not None]
    return max(scores, key=abs, default=None)


def _title(sides: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The figures of a cell's tokens, before and after, one block a token. No text of the document."""
    blocks = []
    for number, token in enumerate(zip(*sides, strict=True), 1):
        first = token[0]
        lines = [f"token {number} of {len(sides[0])}"] if len(sides[0]) > 1 else []
        if not first["audited"]:
            lines.append("first token: no score" if first["position"] == 0 else "not audited")
        for name, key, digits in (("score", "score", 2), ("log-probability", "log_prob", 2), ("rank", "rank", 0)):
            values = [finite(side[key]) for side in token]
            if any(value is not None for value in values):
                lines.append(f"{name} {' → '.join(figure_text(value, digits) for value in values)}")
        out = finite(first["log_prob_out"])
        if out is not None:
            lines.append(f"without it (references) {figure_text(out)}")
        each = [finite(value) for value in first["log_prob_references"] or ()]
        if len(each) > 1 or (each and out is None):
            lines.append("each reference " + " · ".join("not used" if v is None else figure_text(v) for v in each))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _excerpt(length: int, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The stretches of a document to show: all of it, or its spans with some context, at most LONGEST characters."""
    if length <= LONGEST:
        return [(0, length)]
    shown, room = [], LONGEST
    for low, high in widened(spans or [(0, LONGEST)], _CONTEXT, length=length):
        if room > 0:
            shown.append((low, min(high, low + room)))
            room -= high - low
    return shown


def _meets(limits: tuple[int, int], stretches: Sequence[tuple[int, int]]) -> bool:
    return any(limits[0] < high and low < limits[1] for low, high in stretches)


def _highest(scores: Sequence[Any]) -> float | None:
    return max((score for value in scores if (score := finite(value)) is not None), default=None)
