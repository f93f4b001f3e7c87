"""What a report says of an erasure request: its documents and spans, and where its secrets stand besides. No text."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from mitigate.detection.record import Audit
from mitigate.statistics.intervals import UNMEASURED, clustered_mean

HIDDEN = "(hidden)"


def erasure_figures(before: Audit, after: Audit | None) -> dict[str, Any] | None:
    """The report's section `erasure`; None where no request made the forget set.

    Args:
        before: the audit.
        after (*optional*): the re-audit, for the linked places' scores after.

    Returns:
        `criteria` of the request; `documents` (ids), their `spans` and `tokens` selected, and of these spans the mean
        `score` (nats, before and after) with its `score_interval` over persons (null for one person); `secrets` looked
        for elsewhere, and spans `too_short` or `too_common` for it; `linked`: each place found with its scores;
        `never_trained` and `same_group` (ids).
    """
    found = before.metadata.erasure
    if found is None:
        return None
    documents = set(found.documents)
    own = [span for span in before.span_rows if span.doc_id in documents and span.selected]
    selected = before.columns["selected"].astype(bool)
    scores = {
        side: {span.span_id: span.score for span in audit.span_rows} if audit is not None else {}
        for side, audit in {"before": before, "after": after}.items()
    }
    persons = [before.groups[span.doc_id] for span in own]
    means = {
        side: clustered_mean(np.array([by_span[span.span_id] for span in own]), persons) if by_span else UNMEASURED
        for side, by_span in scores.items()
    }
    record = found.written()
    return {
        "criteria": record["criteria"],
        "documents": record["documents"],
        "spans": len(own),
        "tokens": int(sum(selected[before.rows[doc_id]].sum() for doc_id in documents)),
        "score": {side: figure.value for side, figure in means.items()},
        "score_interval": {
            side: None if figure.low is None else [figure.low, figure.high] for side, figure in means.items()
        },
        "select_linked": record["select_linked"],
        "secrets": record["secrets"],
        "too_short": record["too_short"],
        "too_common": record["too_common"],
        "linked": [
            {
                **{key: value for key, value in place.items() if key != "span_id"},
                "before": scores["before"].get(place["span_id"]),
                "after": scores["after"].get(place["span_id"]),
            }
            for place in record["linked"]
        ],
        "never_trained": record["never_trained"],
        "same_group": record["same_group"],
    }


def erasure_notes(erasure: Mapping[str, Any] | None, retrain: Mapping[str, Any] | None = None) -> list[str]:
    """What a reader must know about the request that the figures do not say.

    Args:
        erasure: the report's section.
        retrain (*optional*): the report's section: a model fitted anew may lack what the audit left elsewhere.
    """
    copies_removed = retrain is not None and retrain["removed"]["too_short_to_seek"] is not None
    notes = []
    if erasure and erasure["same_group"]:
        notes.append(
            f"{len(erasure['same_group'])} documents of the same persons (groups) as the requested ones were not "
            "requested and are not forgotten, but for the secrets linked."
        )
    if erasure and erasure["never_trained"]:
        notes.append(
            f"{len(erasure['never_trained'])} requested documents were never trained on (holdout): there is nothing "
            "to forget in them."
        )
    if erasure and erasure["linked"] and not erasure["select_linked"] and not copies_removed:
        notes.append(
            f"The request's secrets stand in {len(erasure['linked'])} places of other documents, which were left as "
            "they are (linked: false): the model can still learn them from there."
        )
    return notes


def without_request(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose erasure request does not say whom it is about: fields stay, texts and values do not."""
    shown = copy.deepcopy(dict(recipe))
    if request := shown.get("forget"):
        request["contains"] = [HIDDEN] * len(request.get("contains") or ())
        request["where"] = dict.fromkeys(request.get("where") or (), HIDDEN)
    return shown
