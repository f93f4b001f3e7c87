"""An audit's tables of tokens and documents; that of spans is in `mitigate.detection.spans.row`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mitigate.detection.scores.token import token_scores
from mitigate.detection.signals.pairings import REFERENCE_SIGNALS, TARGET_SIGNALS
from mitigate.detection.spans.row import SpanRow
from mitigate.documents import Documents
from mitigate.tokens.tokenization import TokenizedDocument


def token_table(
    tokenized: Sequence[TokenizedDocument],
    signals: Mapping[str, np.ndarray],
    spans: Sequence[SpanRow],
    *,
    score: np.ndarray,
    log_odds: np.ndarray,
    memorized: np.ndarray,
) -> pa.Table:
    """The token table; see `Audit.tokens`.

    Args:
        signals: columns of `token_signals`.
        spans: rows of the span table.
        score: (N,) the token score that the user chose, NaN where there is none.
        log_odds: (N,) calibrated log-odds, NaN where there are none.
        memorized: (N,) bool.
    """
    lengths = [len(tokens.ids) for tokens in tokenized]
    first = dict(zip([tokens.id for tokens in tokenized], np.cumsum([0, *lengths[:-1]]).tolist(), strict=True))
    span_id = np.full(sum(lengths), -1, dtype=np.int32)
    selected = np.zeros(sum(lengths), dtype=bool)
    audited = np.concatenate([tokens.audited for tokens in tokenized])
    for span in spans:
        rows = slice(first[span.doc_id] + span.token_start, first[span.doc_id] + span.token_end)
        if span.source == "found":
            span_id[rows] = span.span_id
        if span.selected:
            selected[rows] |= audited[rows] & (memorized[rows] | (span.source != "found"))
    columns: dict[str, Any] = {
        "doc_id": pa.DictionaryArray.from_arrays(
            np.repeat(np.arange(len(tokenized), dtype=np.int32), lengths), [tokens.id for tokens in tokenized]
        ),
        "position": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        "token_id": np.concatenate([tokens.ids for tokens in tokenized]).astype(np.int32),
        "char_start": np.concatenate([tokens.offsets[:, 0] for tokens in tokenized]).astype(np.int32),
        "char_end": np.concatenate([tokens.offsets[:, 1] for tokens in tokenized]).astype(np.int32),
        "audited": audited,
    }
    scores = {
        "informia": token_scores(signals, "informia"),
        "min_k_pp": token_scores(signals, "min_k_pp"),
        "score": score,
        "log_odds": log_odds,
    }
    for name, values in {**{n: signals[n] for n in TARGET_SIGNALS + REFERENCE_SIGNALS}, **scores}.items():
        column = pa.array(values.astype(np.float32), from_pandas=True)
        columns[name] = column.cast(pa.int32()) if name == "rank" else column
    per_reference = signals["log_prob_references"]
    columns["log_prob_references"] = pa.FixedSizeListArray.from_arrays(
        pa.array(per_reference.ravel(), from_pandas=True), per_reference.shape[1]
    ).cast(list_of(pa.float32()))
    columns["memorized"] = memorized
    columns["span_id"] = pa.array(span_id, mask=span_id < 0)
    columns["selected"] = selected
    return pa.table(columns)


def document_table(
    documents: Documents, *, out_references: Sequence[Sequence[int]], in_references: Sequence[Sequence[int]]
) -> pa.Table:
    """The document table; see `Audit.documents`.

    Args:
        out_references: for each document, the references that judge it.
        in_references: for each document, the references that were trained on it.
    """
    rows = [
        {
            "doc_id": document.id,
            "text": document.text,
            "set": document.set,
            "group": document.group,
            "special_tokens": document.special_tokens,
            "cut": document.cut,
            "audited_ranges": [list(limits) for limits in document.audited],
            "known_spans": [{"start": s.start, "end": s.end, "label": s.label} for s in document.spans],
            "out_references": list(out),
            "in_references": list(trained),
        }
        for document, out, trained in zip(documents, out_references, in_references, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_DOCUMENTS)


def list_of(of: pa.DataType, *, large: bool = False) -> pa.DataType:
    """A list type named as Parquet names it, so that a table read and written again has equal bytes.

    Args:
        of: the elements.
        large (`bool`, *optional*, defaults to `False`): of more than 2³¹ of them.
    """
    return (pa.large_list if large else pa.list_)(pa.field("element", of))


_DOCUMENTS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("set", pa.string()),
        ("group", pa.string()),
        ("special_tokens", pa.bool_()),
        ("cut", pa.int32()),
        ("audited_ranges", list_of(list_of(pa.int32()))),
        ("known_spans", list_of(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))),
        ("out_references", list_of(pa.int32())),
        ("in_references", list_of(pa.int32())),
    ]
)
