"""Unit scores: N spans or documents, each one number, judged by references or by a population of Z others.

Higher = more memorized. A sequence's log-probability is the mean over its tokens, in nats, wherever the caller does not
give sums. NaN stands for a reference that was not used.
"""

from __future__ import annotations

import math

import numpy as np

from mitigate.detection.scores.token import LEAST_STD, Array, known_of, log_ratio

LEAST_OWN_VARIANCE = 8  # references a side that LiRA needs to give every row a variance of its own


def informia_sequence(
    log_ratio: Array, population_log_ratio: Array, *, population_log_prob_out: Array | None = None
) -> Array:
    """Sequence InfoRMIA: Λ(x) = log p_θ(x)/p̄(x) + KL(p̄(z) ‖ p_θ(z)) (Tao & Shokri, arXiv 2510.05582).

    The KL is −E_{z~p̄}[log p_θ(z)/p̄(z)] over population documents z: with `population_log_prob_out` the finite sum,
    each z weighted by p̄(z)/Σp̄ as in the paper; without it the plain mean, the Monte Carlo estimate where the z are
    samples of p̄. Of total log-probabilities one z has nearly all the weight; of length-normalised ones the weights are
    milder than the formula's. The KL is one constant for a target: it moves the zero, never the order.

    Args:
        log_ratio: (N,) log p_θ(x) − log p̄(x), nats.
        population_log_ratio: (Z,) the same of the population, which trained no model; NaN is left out.
        population_log_prob_out (*optional*): (Z,) log p̄(z), nats.
    """
    ratio = np.asarray(population_log_ratio, dtype=np.float64)
    weight = np.zeros_like(ratio) if population_log_prob_out is None else np.asarray(population_log_prob_out, float)
    known = ~(np.isnan(ratio) | np.isnan(weight))
    if not known.any():
        return np.full(np.shape(log_ratio), np.nan)
    weights = np.exp(weight[known] - weight[known].max())
    return np.asarray(log_ratio, dtype=np.float64) - (weights @ ratio[known]) / weights.sum()


def rmia(
    log_prob: Array,
    log_prob_mean: Array,
    population_log_prob: Array,
    population_log_prob_mean: Array,
    *,
    gamma: float = 2.0,
) -> Array:
    """RMIA: share of population z with [p_θ(x)/p̄(x)] / [p_θ(z)/p̄(z)] > γ (Zarifzadeh et al., arXiv 2312.03262).

    Args:
        log_prob: (N,) log p_θ(x), nats.
        log_prob_mean: (N,) log p̄(x): over IN and OUT references, or `offline_mean` of the OUT references.
        population_log_prob: (Z,) log p_θ(z) of documents that trained no model; z with a NaN are left out.
        population_log_prob_mean: (Z,) log p̄(z), estimated like that of x.
        gamma (`float`, *optional*, defaults to 2.0): above 0; higher asks x to dominate z by more. With 1,000 documents
            as the population 2 has a TPR of 0.936 at 0.1 % FPR where 1 has 0.460 (`mitigate bench population`).

    Returns:
        (N,) shares in [0, 1].
    """
    population = np.sort(known_of(log_ratio(population_log_prob, population_log_prob_mean)))
    ratio = log_ratio(log_prob, log_prob_mean)
    if not population.size:
        return np.full(ratio.shape, np.nan)
    share = np.searchsorted(population, ratio - math.log(gamma), side="left") / population.size
    return np.where(np.isnan(ratio), np.nan, share)


def offline_mean(log_prob_out: Array, *, a: float) -> Array:
    """RMIA's p̄ without IN references: log of ½[(1 + a) p_out + (1 − a)] (Zarifzadeh et al., arXiv 2312.03262).

    The line p_in = a·p_out + 1 − a stands for the missing references. Give length-normalised log-probabilities and an a
    near 1: where p_out is far below 1 − a the constant is all that is left, and RMIA orders by p_θ alone.

    Args:
        log_prob_out: (N,) log of the mean probability under the OUT references, nats.
        a: in [0, 1]; 1 trusts p_out alone.
    """
    constant = math.log((1 - a) / 2) if a < 1 else -math.inf
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        return np.logaddexp(np.asarray(log_prob_out, dtype=np.float64) + math.log((1 + a) / 2), constant)


def lira(statistic: Array, out: Array, in_: Array | None = None, *, shared_variance: bool | None = None) -> Array:
    """LiRA: the target's statistic between the references' normal distributions (Carlini et al., arXiv 2112.03570).

        online:  log N(s; μ_in, σ²_in) − log N(s; μ_out, σ²_out)
        offline: z = (s − μ_out)/σ_out, whose Φ(z) is the paper's one-sided 1 − Pr[N(μ_out, σ²_out) > s]

    A token's statistic is its `logit`; a document's is its mean token log-probability. Variances are unbiased. A shared
    variance is that of the references about their own row's mean, one for each side; where every row has one
    reference, it is the variance of all of them, which offline leaves the order that of s − μ_out.

    Args:
        statistic: (N,) under the target.
        out: (N, K) under references that never saw the row; NaN: not used.
        in_ (*optional*): (N, J) under references that trained on the row; NaN: not used. With it the test is online.
        shared_variance (`bool`, *optional*): by default where a row has fewer than 8 references on a side.

    Returns:
        (N,) nats online, standard deviations offline; NaN for a row without a reference or a variance on a side.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (out, in_) if side is not None]
    if shared_variance is None:
        counts = np.concatenate([(~np.isnan(side)).sum(1) for side in sides])
        shared_variance = bool((counts[counts > 0] < LEAST_OWN_VARIANCE).any())
    normals = [_normal(side, shared_variance=shared_variance) for side in sides]
    deviates = [(np.asarray(statistic, dtype=np.float64) - centre) / spread for centre, spread in normals]
    if in_ is None:
        return deviates[0]
    return (deviates[0] ** 2 - deviates[1] ** 2) / 2 + np.log(normals[0][1] / normals[1][1])


def _normal(values: Array, *, shared_variance: bool) -> tuple[Array, Array]:
    """Mean and standard deviation (N,), (N,) of each row of (N, K); NaN entries are left out."""
    known = ~np.isnan(values)
    counts = known.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(known, values, 0.0).sum(1) / counts
        squares = np.where(known, (values - centre[:, None]) ** 2, 0.0).sum(1)
        freedom = np.maximum(counts - 1, 0)
        if not shared_variance:
            variance = squares / freedom
        elif freedom.any():
            variance = np.full(counts.shape, squares.sum() / freedom.sum())
        else:
            everything = values[known]
            variance = np.full(counts.shape, everything.var(ddof=1) if everything.size > 1 else np.nan)
    return centre, np.maximum(np.sqrt(variance), LEAST_STD)
