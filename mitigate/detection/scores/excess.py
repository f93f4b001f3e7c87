"""How much more a target knows of each token than models that never saw it, in nats, and how sure that is.

Where a text is known to have been trained on, membership is no question; this is. One model's log-probability is noisy:
of two models alike that never saw the text, one finds a token likelier by chance. The references show by how much they
differ, token by token; an excess is drawn towards that of tokens as hard to predict, the more the noisier it is.
"""

from __future__ import annotations

import numpy as np

_STRATA = 10
_PRIOR_REFERENCES = 4  # as many as a stratum's spread counts for, beside a token's own references
_LEAST_VARIANCE = 1e-6  # nats squared


def excess(log_prob: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shrunken excess of every token over the references, and its standard deviation.

    With x = log p_θ − the mean of the references' log-probabilities, of K of them, its noise has the variance
    s² (1 + 1/K): the target differs by chance as much as a reference does. s² is the references' variance at the token,
    moderated by that of its stratum as in limma (Smyth, 2004): with d = 4, (d s₀² + (K − 1) s²) / (d + K − 1). Strata
    are tenths by the mean of the references' log-probabilities. Within one, the excess itself is taken to be normal,
    with the mean m of its x and what their variance has beyond the noise, τ²; the estimate is the posterior mean
    m + (x − m) τ² / (τ² + noise), its variance τ² noise / (τ² + noise) (empirical Bayes, Efron & Morris, 1973).

    Args:
        log_prob: (N,) under the target, nats; NaN where a token is not scored.
        references: (N, K) under the OUT references, NaN where one was not used; at least two at every scored token.

    Returns:
        (N,) nats, and (N,) nats; NaN where a token has no two references.
    """
    log_prob, references = np.asarray(log_prob, dtype=np.float64), np.asarray(references, dtype=np.float64)
    count = (~np.isnan(references)).sum(axis=1)
    usable = ~np.isnan(log_prob) & (count > 1)
    estimate, spread = np.full(len(log_prob), np.nan), np.full(len(log_prob), np.nan)
    if not usable.any():
        return estimate, spread
    own, k = references[usable], count[usable]
    middle = np.nanmean(own, axis=1)
    variance = np.nanvar(own, axis=1, ddof=1)
    x = log_prob[usable] - middle
    edges = np.quantile(middle, np.linspace(0, 1, _STRATA + 1)[1:-1])
    stratum = np.searchsorted(edges, middle)
    means, deviations = np.empty(len(x)), np.empty(len(x))
    for number in np.unique(stratum):
        rows = stratum == number
        typical = np.average(variance[rows], weights=k[rows] - 1)
        moderated = (_PRIOR_REFERENCES * typical + (k[rows] - 1) * variance[rows]) / (_PRIOR_REFERENCES + k[rows] - 1)
        noise = np.maximum(moderated * (1 + 1 / k[rows]), _LEAST_VARIANCE)
        true = max(float(np.var(x[rows]) - noise.mean()), _LEAST_VARIANCE)
        share = true / (true + noise)
        m = x[rows].mean()
        means[rows], deviations[rows] = m + share * (x[rows] - m), np.sqrt(share * noise)
    estimate[usable], spread[usable] = means, deviations
    return estimate, spread
