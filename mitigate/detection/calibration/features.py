"""What a calibrated detector looks at: features of tokens and of spans, from the signals of one pairing or of many.

A token is judged by its own neighbourhood, since only where something was memorized is anything to be unlearned. A span
is judged by itself and, apart from that, by the text around it: a document is trained on as a whole, so what was
memorized beside a secret tells that the secret was seen, too, where it is hardly memorized itself. Rows of different
documents never mix.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mitigate.detection.scores.token import informia, informia_z, min_k_pp

_LIMIT = 3.0  # nats at which ratios are clipped, so that one token cannot carry a span
_OFFSETS = (-2, -1, 1, 2)
_WINDOWS = (3, 7, 15)
_AROUND = (8, 32, 128)  # tokens before a span, and as many after it


def token_columns(signals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per-token features without neighbours, each (N,), from `compute_signals`'s columns.

    With one reference there is no disagreement between references, and its two features are left out.
    """
    log_prob, references = signals["log_prob"].astype(np.float64), signals["log_prob_references"].astype(np.float64)
    used = ~np.isnan(references)
    ratio = log_prob - signals["log_prob_out"]
    columns = {
        "log_prob": log_prob,
        "log_rank": np.log(signals["rank"]),
        "to_top": log_prob - signals["top_log_prob"],
        "entropy": signals["entropy"],
        "min_k_pp": np.clip(min_k_pp(log_prob, signals["entropy"], signals["log_prob_std"]), -10, 10),
        "log_prob_out": signals["log_prob_out"],
        "entropy_out": signals["entropy_out"],
        "ratio": ratio,
        "ratio_clipped": np.clip(ratio, -_LIMIT, _LIMIT),
        "kl": signals["kl"],
        "informia": informia(ratio, signals["kl"]),
        "informia_z": np.clip(informia_z(ratio, signals["kl"], signals["log_ratio_variance"]), -10, 10),
    }
    if used.sum(1).max(initial=0) > 1:
        highest = np.where(used, references, -np.inf).max(1)
        count = np.maximum(used.sum(1), 1)
        mean = np.where(used, references, 0).sum(1) / count
        spread = np.where(used, (references - mean[:, None]) ** 2, 0).sum(1) / count
        unscored = ~used.any(1)
        columns |= {
            "ratio_to_highest": np.where(unscored, np.nan, np.clip(log_prob - highest, -_LIMIT, _LIMIT)),
            "disagreement": np.where(unscored, np.nan, np.sqrt(spread)),
        }
    return columns


def token_features(signals: Mapping[str, np.ndarray], document: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(N, F) features of tokens with their neighbourhood, NaN where a neighbour is missing, and their names.

    Args:
        signals: columns of `compute_signals`.
        document: (N,) an integer for each token; tokens of one pairing are consecutive and share it.
    """
    columns = token_columns(signals)
    ratio, log_prob, surprise = columns["ratio_clipped"], columns["log_prob"], columns["informia"]
    features = dict(columns)
    for offset in _OFFSETS:
        features[f"ratio[{offset:+d}]"] = _shifted(ratio, document, offset)
        features[f"log_prob[{offset:+d}]"] = _shifted(log_prob, document, offset)
    for window in _WINDOWS:
        features[f"ratio mean {window}"] = _windowed(ratio, document, window)
        features[f"informia mean {window}"] = _windowed(np.clip(surprise, -_LIMIT, _LIMIT), document, window)
        features[f"log_prob mean {window}"] = _windowed(log_prob, document, window)
    return np.stack([np.asarray(values, dtype=np.float32) for values in features.values()], axis=1), list(features)


def span_features(
    signals: Mapping[str, np.ndarray], spans: np.ndarray, *, documents: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """(S, F) features of spans, and their names.

    Mean, least and greatest of each token feature, the length, and mean ratios of the text around a span, NaN where
    there is none.

    Args:
        signals: columns of `compute_signals`.
        spans: (S, 2) first row and end row of each span in those columns; a span has at least one scored token.
        documents: (S, 2) first row and end row of the document that it is in.
    """
    columns = token_columns(signals)
    lengths = spans[:, 1] - spans[:, 0]
    first = np.cumsum(np.concatenate([[0], lengths]))
    rows = np.arange(first[-1]) - np.repeat(first[:-1] - spans[:, 0], lengths)
    number = np.repeat(np.arange(len(spans)), lengths)
    scored = ~np.isnan(signals["log_prob"][rows])
    rows, number = rows[scored], number[scored]
    count = np.bincount(number, minlength=len(spans)).astype(np.float64)
    assert (count > 0).all(), "a span without a scored token has no features"
    starts = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(int)
    features: dict[str, np.ndarray] = {"log_length": np.log(count)}
    for name, column in columns.items():
        values = column[rows]
        features[f"{name} mean"] = np.add.reduceat(values, starts) / count
        features[f"{name} least"] = np.minimum.reduceat(values, starts)
        features[f"{name} greatest"] = np.maximum.reduceat(values, starts)
    features["log_prob sum"] = features["log_prob mean"] * count
    features["ratio sum"] = features["ratio mean"] * count
    features["share top"] = np.add.reduceat((columns["log_rank"][rows] == 0).astype(float), starts) / count
    features["share above"] = np.add.reduceat((columns["ratio"][rows] > 0).astype(float), starts) / count
    for name in ("ratio_clipped", "informia_z"):
        known = ~np.isnan(columns[name])
        totals = np.concatenate([[0.0], np.cumsum(np.where(known, columns[name], 0.0))])
        counts = np.concatenate([[0], np.cumsum(known)])
        for size in _AROUND:
            before = np.stack([np.maximum(documents[:, 0], spans[:, 0] - size), spans[:, 0]])
            after = np.stack([spans[:, 1], np.minimum(documents[:, 1], spans[:, 1] + size)])
            near, total = (sum(sums[end] - sums[first] for first, end in (before, after)) for sums in (counts, totals))
            features[f"{name} around {size}"] = np.where(near > 0, total / np.maximum(near, 1), np.nan)
    return np.stack([values.astype(np.float32) for values in features.values()], axis=1), list(features)


def _shifted(values: np.ndarray, document: np.ndarray, offset: int) -> np.ndarray:
    """`values[n + offset]` where that token is of the same document, else NaN."""
    result = np.full(len(values), np.nan)
    here, there = slice(max(0, -offset), min(0, -offset) or None), slice(max(0, offset), min(0, offset) or None)
    same = document[here] == document[there]
    result[here] = np.where(same, values[there], np.nan)
    return result


def _windowed(values: np.ndarray, document: np.ndarray, window: int) -> np.ndarray:
    """Mean over the `window` tokens around each, of those of its document that have a value."""
    total, count = np.zeros(len(values)), np.zeros(len(values))
    for offset in range(-(window // 2), window // 2 + 1):
        shifted = values if offset == 0 else _shifted(values, document, offset)
        known = ~np.isnan(shifted)
        total += np.where(known, shifted, 0.0)
        count += known
    return np.where(np.isnan(values), np.nan, total / np.maximum(count, 1))
