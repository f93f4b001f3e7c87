"""Audits and reports with made-up figures, and a reader of the page that is drawn of them."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa

from mitigate.detection.metadata import AuditedModel, AuditMetadata, Coverage, Uncalibrated
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.detection.spans.row import SpanRow, span_table

TEXT = "Call Ann on 555-0123 now"
KNOWN = {"a": [(12, 20, "phone")]}


def make_audit(
    texts: dict[str, str],
    *,
    known: dict[str, list[tuple[int, int, str]]] | None = None,
    found: dict[str, list[tuple[int, int]]] | None = None,
    offsets: dict[str, list[tuple[int, int]]] | None = None,
    sets: dict[str, str] | None = None,
    shift: float = 0.0,
) -> Audit:
    """An audit with made-up figures; words are tokens unless `offsets` says else; found forget spans are selected."""
    known, found, sets = known or {}, found or {}, sets or {}
    tokens: list[dict[str, Any]] = []
    spans: list[SpanRow] = []
    for doc_id, text in texts.items():
        cuts = (offsets or {}).get(doc_id) or [match.span() for match in re.finditer(r"\S+", text)]
        cuts = [(0, 0), *cuts]  # a special token first
        for source, ranges in (("known", known.get(doc_id, [])), ("found", found.get(doc_id, []))):
            for start, end, *label in ranges:
                covered = [t for t, (low, high) in enumerate(cuts) if low < end and start < high] or [1]
                spans.append(
                    SpanRow(
                        span_id=len(spans),
                        doc_id=doc_id,
                        char_start=start,
                        char_end=end,
                        token_start=covered[0],
                        token_end=covered[-1] + 1,
                        label=label[0] if label else "",
                        source=source,
                        score=4.0 + shift,
                        selected=source == "found" and sets.get(doc_id) == "forget",
                    )
                )
        for position, (start, end) in enumerate(cuts):
            own = [s for s in spans if s.doc_id == doc_id and s.token_start <= position < s.token_end]
            first = position == 0
            score = (4.25 if own else 0.125) + shift
            tokens.append(
                {
                    "doc_id": doc_id,
                    "position": position,
                    "token_id": 7,
                    "char_start": start,
                    "char_end": end,
                    "audited": not first,
                    "log_prob": None if first else -0.5 + shift,
                    "rank": None if first else 3,
                    "log_prob_out": None if first else -4.75,
                    "log_prob_references": [None, None] if first else [-4.5, None],
                    "score": None if first else score,
                    "selected": any(span.selected for span in own),
                }
            )
    documents = [
        {
            "doc_id": doc_id,
            "text": text,
            "set": sets.get(doc_id),
            "group": doc_id,
            "known_spans": [{"start": a, "end": b, "label": c} for a, b, c in known.get(doc_id, [])],
        }
        for doc_id, text in texts.items()
    ]
    known_type = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))
    columns = ("doc_id", "text", "set", "group")
    document_table = pa.table(
        {
            **{name: pa.array([row[name] for row in documents], pa.string()) for name in columns},
            "known_spans": pa.array([row["known_spans"] for row in documents], known_type),
        }
    )
    return Audit(pa.Table.from_pylist(tokens), document_table, span_table(spans), made_metadata())


def with_metadata(audit: Audit, **changes: Any) -> Audit:
    """The audit with other metadata; `changes` are their keys, and those of `detect` that begin with `detect_`."""
    detect = {name.removeprefix("detect_"): value for name, value in changes.items() if name.startswith("detect_")}
    own = {name: value for name, value in changes.items() if not name.startswith("detect_")}
    if detect:
        own["detect"] = audit.metadata.detect.model_copy(update=detect)
    return replace(audit, metadata=audit.metadata.model_copy(update=own))


def made_metadata(**changes: Any) -> AuditMetadata:
    """Metadata of an audit that nobody made; `changes` are its keys."""
    values: dict[str, Any] = {
        "target": AuditedModel(name="the target", source="target", fingerprint="00aa"),
        "origin": None,
        "references": tuple(
            AuditedModel(name=name, source=name, fingerprint=fingerprint)
            for name, fingerprint in (("one", "01"), ("two", "02"))
        ),
        "crossfitted": (),
        "tokenizer": "same",
        "documents": "same",
        "skipped": (),
        "coverage": Coverage(
            characters=9, audited=9, known_spans=0, known_spans_outside=0, outside=(), values_outside=0
        ),
        "context": 64,
        "calibration": Uncalibrated(),
        "code": "0",
        "versions": {},
        "kind": "given",
        "detect": Detect(score="log_ratio"),
        "seed": 0,
        "warnings": (),
        "erasure": None,
        "fit": None,
    }
    return AuditMetadata(**(values | changes))


REPORT: dict[str, Any] = {
    "schema": 1,
    "name": "Tickets",
    "created": "2026-01-02T03:04:05+00:00",
    "leakage": {
        "before": {
            "span_auc": 0.978,
            "span_auc_interval": [0.961, 0.99],
            "document_auc": 0.9,
            "document_auc_interval": [0.85, 0.94],
            "tpr_at_1pct_fpr": 0.8,
            "tpr_at_1pct_fpr_interval": [0.7, 0.87],
            "span_score_mean": 4.0,
        },
        "after": {
            "span_auc": 0.541,
            "span_auc_interval": [0.482, 0.604],
            "document_auc": 0.52,
            "document_auc_interval": [0.45, 0.59],
            "tpr_at_1pct_fpr": 0.01,
            "tpr_at_1pct_fpr_interval": [0.0, 0.06],
            "span_score_mean": 0.1,
        },
    },
    "asked": "documents",
    "coverage": {"known_spans": 104, "known_spans_outside": 0, "values_outside": 0},
    "oracle_distance": {"before": 1.76, "after": 0.83, "ratio": 0.47},
    "out_distance": {"before": 3.3, "after": 0.6},
    "utility": {
        "retain_nll": {"before": 1.402, "before_interval": [1.3, 1.5], "after": 1.431, "oracle": 1.398},
        "holdout_nll": {"before": 2.31, "after": 2.33, "oracle": 2.28},
    },
    "extraction": {
        "before": 0.62,
        "before_interval": [0.5, 0.73],
        "after": 0.0,
        "after_interval": [0.0, 0.035],
        "secrets": 104,
        "never_seen": {"before": 0.0, "before_interval": [0.0, 0.05], "after": 0.0, "after_interval": [0.0, 0.05]},
    },
    "selected_token_share": 0.083,
    "selected": {"spans": 1, "tokens": 2, "documents": 1, "known_recall": 0.93, "rule": "spans that score high"},
    "over_forgotten_share": 0.03,
    "over_forgotten_share_interval": [0.0, 0.1],
    "counts": {"documents": 2, "forget": 1, "retain": 1, "holdout": 0, "tokens": 9, "skipped": 1},
    "skipped": ["tickets.jsonl:17: malformed JSON"],
    "unlearn": {
        "objective": {"hinge": 1.0, "distill": 0.5},
        "steps": 140,
        "stopped": "control level reached at step 140",
        "adapter_parameters": 100,
        "model_parameters": 1000,
    },
    "seconds": {"audit": 1.5},
    "tokens_per_second": {"audit": 40.0},
    "fingerprints": {"target": "00aa", "references": ["01", "02"], "mitigated": None},
    "versions": {"mitigate": "0.1.0", "torch": "2.13.0"},
    "recipe": {"detect": {"score": "log_ratio"}},
    "notes": [],
    "text": "masked",
}


def pair(text: str = TEXT, **settings: Any) -> tuple[Audit, Audit]:
    chosen: dict[str, Any] = {
        "known": KNOWN,
        "found": {"a": [(9, 20)]},
        "sets": {"a": "forget", "b": "retain"},
    } | settings
    texts = {"a": text, "b": "Nothing here"}
    return make_audit(texts, **chosen), make_audit(texts, **chosen, shift=-4.0)


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(REPORT) | changes


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes, and the text of each heat-map side."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sides: list[str] = []
        self.all_text = ""
        self._depth = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if self._depth:
            self._depth += 1
        elif attributes.get("class") == "mh-text":
            self._depth = 1
            self.sides.append("")

    def handle_endtag(self, tag: str) -> None:
        self._depth = max(0, self._depth - 1)

    def handle_data(self, data: str) -> None:
        self.all_text += data
        if self._depth:
            self.sides[-1] += data

    def pieces(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "span" and "title" in attributes]
