"""What the mitigated model lost besides, and whether somebody who stays in it was exposed."""

from __future__ import annotations

from typing import Any

import numpy as np

from mitigate.detection.references.dealing import draw
from mitigate.detection.signals.compute import compute_signals
from mitigate.detection.signals.pairings import Pairing
from mitigate.models.model import Model
from mitigate.proof.case import Case
from mitigate.statistics.intervals import UNMEASURED, Figure, clustered_mean, flat

_MOST = 200  # documents of each set


def utility_of(case: Case, before: Model) -> dict[str, Any]:
    """Of retained and of never-seen documents, at most 200 each, how the mitigated model differs from the one before.

    Args:
        case: what is verified.
        before: the audited model.

    Returns:
        with intervals, null where there are no such documents: `{retain,holdout}_nll_change`, nats a token;
        `{retain,holdout}_kl`: KL(before ‖ mitigated), nats a token; `{retain,holdout}_likeliest_kept`: share of the
        tokens that were the likeliest before and still are; `retained_exposure_change`: how much farther the retained
        people's known spans lie above what references say than before, nats a token (0 where they are held).
    """
    mitigated = case.mitigated.load()
    figures: dict[str, Figure] = {}
    exposure = UNMEASURED
    for name in ("retain", "holdout"):
        numbers = case.documents(name)
        numbers = sorted(draw(numbers, min(_MOST, len(numbers)), key="utility"))
        keys = [f"{name}_{what}" for what in ("nll_change", "kl", "likeliest_kept")]
        if not numbers:
            figures |= dict.fromkeys(keys, UNMEASURED)
            continue
        documents = [case.tokenized[number] for number in numbers]
        pairings = [Pairing(number, 0, (1,)) for number in range(len(documents))]
        after = [Pairing(number, 1) for number in range(len(documents))]
        found = compute_signals(
            [before, mitigated], [*pairings, *after], documents=documents, description=f"Utility, {name}"
        )
        tokens = sum(len(one.ids) for one in documents)
        log_prob, there = found["log_prob"], ~np.isnan(found["log_prob"][:tokens])
        groups = [case.before.groups[one.id] for one in documents for _ in one.ids]
        kept_groups = [group for group, scored in zip(groups, there, strict=True) if scored]
        first = there & (found["rank"][:tokens] == 1)
        of_first = [group for group, scored in zip(groups, first, strict=True) if scored]
        figures |= {
            keys[0]: clustered_mean((log_prob[:tokens] - log_prob[tokens:])[there], kept_groups),
            keys[1]: clustered_mean(found["kl"][:tokens][there], kept_groups),
            keys[2]: clustered_mean((found["rank"][tokens:][first] == 1).astype(float), of_first),
        }
        if name == "retain":
            exposure = _exposure(case, numbers, log_prob[tokens:] - log_prob[:tokens])
    return {**flat(figures), **flat({"retained_exposure_change": exposure})}


def _exposure(case: Case, numbers: list[int], risen: np.ndarray) -> Figure:
    """Mean rise of the retained people's known spans."""
    ids = {case.tokenized[number].id: place for place, number in enumerate(numbers)}
    starts = np.cumsum([0, *(len(case.tokenized[number].ids) for number in numbers)])
    values, groups = [], []
    for span in case.view.spans:
        if span.source == "known" and span.doc_id in ids:
            own = risen[starts[ids[span.doc_id]] :][span.tokens]
            values += own[~np.isnan(own)].tolist()
            groups += [case.before.groups[span.doc_id]] * int((~np.isnan(own)).sum())
    return clustered_mean(np.array(values), groups)
