"""References that cannot be what they are taken for: near-uniform, of another domain, or trained on what they judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mitigate.documents import Documents
from mitigate.errors import summarize
from mitigate.tokens.tokenization import TokenizedDocument

_NEAR_UNIFORM = 0.9  # of the entropy of a uniform distribution over the tokens that the target finds likely
_MISMATCH = 1.5  # nats a token that a reference is worse than the others together
_CONTAMINATION = 1.0  # nats a token that a reference is better on one document than the best of the others


def check_references(
    signals: Mapping[str, np.ndarray],
    documents: Documents,
    tokenized: Sequence[TokenizedDocument],
    *,
    names: Sequence[str],
    crossfitted: Sequence[int] = (),
    vocabulary: int | None = None,
) -> list[str]:
    """Sentences about references that spoil the audit, each with its remedy; empty if there is nothing to say.

    A reference that was trained on a document hides its memorization; one that cannot predict the documents at all
    calls everything memorized. Mismatch and contamination show only beside another OUT reference of the same document.

    Args:
        signals: columns of `token_signals`, `log_prob_references` of OUT references only.
        documents, tokenized: what was judged.
        names: of the references.
        crossfitted (*optional*): numbers of the references that were trained on other documents for certain.
        vocabulary (*optional*): number of tokens; by default counted in the documents.
    """
    per_reference = signals["log_prob_references"]
    ends = np.cumsum([len(own.ids) for own in tokenized])
    sums = [_by_document(per_reference[:, k], ends) for k in range(per_reference.shape[1])]
    means = np.stack(sums, axis=1)  # (D, R), NaN where a reference does not judge
    uniform = np.log(vocabulary or max(2, len({int(token) for own in tokenized for token in own.ids})))
    found = []
    for k, name in enumerate(names):
        used = ~np.isnan(means[:, k])
        if not used.any():
            continue
        others = np.delete(means, k, axis=1)[used]
        level = float(means[used, k].mean())
        if -level > _NEAR_UNIFORM * uniform:
            found.append(
                f"reference {name}: predicts these documents hardly better than chance ({-level:.1f} nats a token); "
                "everything would look memorized: give a trained model of the target's family"
            )
            continue
        known = ~np.isnan(others).all(1)
        if not known.any():
            continue
        own, rest = means[used, k][known], others[known]
        gap = own - np.nanmean(rest, axis=1)
        if np.median(gap) < -_MISMATCH:
            found.append(
                f"reference {name}: {-np.median(gap):.1f} nats a token worse than the other references on the same "
                "documents; it is of another domain or hardly trained: leave it out"
            )
            continue
        if k in crossfitted:
            continue  # known not to be contaminated; two models that overfit differ as much by chance
        above = own - np.nanmax(rest, axis=1)
        usual = float(np.quantile(above, 0.1))  # a reference that is better on every document is only a better model
        seen = (above > _CONTAMINATION) & (above - usual > _CONTAMINATION)
        if seen.any():
            ids = [documents[int(number)].id for number in np.flatnonzero(used)[known][seen]]
            found.append(
                f"reference {name}: finds {len(ids)} documents ({summarize(ids)}) far likelier than the other "
                "references do, as if it had been trained on them; a reference must never have seen what it judges: "
                "leave it out, or cross-fit references with `mitigate references`"
            )
    return found


def _by_document(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(D,) mean of each document's values; NaN where it has none."""
    known = ~np.isnan(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])[np.concatenate([[0], ends])]
    count = np.concatenate([[0], np.cumsum(known)])[np.concatenate([[0], ends])]
    with np.errstate(invalid="ignore"):
        return np.where(np.diff(count) > 0, np.diff(total) / np.diff(count), np.nan)
