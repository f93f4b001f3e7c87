"""Memorization scores: pure functions of the signals. One sign rule: higher = more memorized. Nats.

Token scores take and return arrays with one entry per token; sequence scores (`aggregations` has the plain ones) turn a
span's or a document's tokens into one number; unit scores (`units`) judge N such numbers. NaN stands for "no score" (a
document's first token, a reference that was not used) and stays NaN.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mitigate.detection.scores.aggregations import mean, min_k
from mitigate.errors import MitigateError

Array = np.ndarray
WINDOW_SIZES = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)  # tokens; the list in the configuration of WBC's authors
_LEAST_RATIO_VARIANCE = 1e-4  # nats squared
LEAST_STD = 1e-6  # nats; keeps quotients finite where a distribution is one point
_LEAST_LOSS = 2.0**-24  # nats; a float32 softmax cannot come closer to probability 1


def loss(log_prob: Array) -> Array:
    """LOSS attack: log p_θ(x_t | x_<t) (Yeom et al., arXiv 1709.01604).

    Args:
        log_prob: (N,) nats.
    """
    return np.asarray(log_prob, dtype=np.float64)


def log_ratio(log_prob: Array, log_prob_out: Array) -> Array:
    """Log-ratio to the OUT references: L(x_t) = log p_θ(x_t) − log p̄(x_t) (Carlini et al., arXiv 2012.07805).

    Args:
        log_prob: (N,) under the target, nats.
        log_prob_out: (N,) log of the *mean probability* under the OUT references, nats.
    """
    return np.asarray(log_prob, dtype=np.float64) - log_prob_out


def informia(ratio: Array, kl: Array, *, use_kl: bool = True) -> Array:
    """Token InfoRMIA: s_t = L(x_t) + KL(p̄ ‖ p_θ) = L(x_t) − E_{v~p̄}[L(v)] (Tao & Shokri, arXiv 2510.05582).

    The vocabulary is the population. Under x_t ~ p̄ its mean is zero.

    Args:
        ratio: (N,) L(x_t), nats, both models at the audit's temperature.
        kl: (N,) KL(p̄ ‖ p_θ) over the vocabulary, nats, at the same temperature.
        use_kl (`bool`, *optional*, defaults to `True`): without it the score is the log-ratio (the ablation).
    """
    return np.asarray(ratio, dtype=np.float64) + (kl if use_kl else 0.0)


def informia_z(ratio: Array, kl: Array, variance: Array) -> Array:
    """Unit-variance InfoRMIA: s_t / sqrt(max(Var_{v~p̄}[L(v)], 1e-4)).

    The quotient is at most 1/sqrt(p̄(x_t)), which is no limit where p̄ is nearly sure of another token. The floor is
    ours: a standard deviation below 0.01 nats, where both models agree within 1 % wherever p̄ has mass, counts as 0.01,
    so that one token which p̄ rules out cannot carry a span.

    Args:
        ratio: (N,) L(x_t), nats.
        kl: (N,) KL(p̄ ‖ p_θ), nats.
        variance: (N,) Var_{v~p̄}[L(v)], nats squared.
    """
    return informia(ratio, kl) / np.sqrt(np.maximum(variance, _LEAST_RATIO_VARIANCE))


def min_k_pp(log_prob: Array, entropy: Array, log_prob_std: Array) -> Array:
    """Min-K%++ token score: (log p_θ(x_t) − μ) / σ, over v ~ p_θ, where μ = −entropy (Zhang et al., arXiv 2404.02936).

    Args:
        log_prob: (N,) nats.
        entropy: (N,) entropy of p_θ, nats.
        log_prob_std: (N,) standard deviation of log p_θ(v) under p_θ, nats.
    """
    return (np.asarray(log_prob, dtype=np.float64) + entropy) / np.maximum(log_prob_std, LEAST_STD)


def typical(references: np.ndarray) -> np.ndarray:
    """(N,) ℓ̃: the mean of the OUT references' log-probabilities, what one of them says on average; NaN without any.

    Args:
        references: (N, K) nats, NaN where one was not used.
    """
    known = ~np.isnan(references)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, references, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def clipped(score: Array, *, limit: float = 3.0) -> Array:
    """Clip token scores to ±limit nats, so that one token cannot carry a whole span.

    Args:
        score: (N,) nats.
        limit (`float`, *optional*, defaults to 3.0): in nats.
    """
    return np.clip(score, -limit, limit)


def logit(log_prob: Array) -> Array:
    """Log-odds of the token, log p − log(1 − p): LiRA's statistic (Carlini et al., arXiv 2112.03570).

    Probabilities that a float32 softmax cannot tell from 1 have the log-odds of 1 − 2⁻²⁴ (about 16.6).

    Args:
        log_prob: (N,) nats.
    """
    bounded = np.minimum(np.asarray(log_prob, dtype=np.float64), -_LEAST_LOSS)
    return bounded - np.log(-np.expm1(bounded))


def zlib_ratio(log_prob: Array, text: str) -> float:
    """zlib attack: Σ_t log p_θ(x_t) / bytes of the compressed text (Carlini et al., arXiv 2012.07805).

    Nats per byte, at most 0. The paper divides the log-perplexity, a mean over tokens, by the compressed size; that
    orders texts of different lengths by length first, so the total is divided here.

    Args:
        log_prob: (T,) nats; tokens without one add nothing.
        text: the text of those tokens.
    """
    known = known_of(log_prob)
    return float(known.sum()) / len(zlib.compress(text.encode())) if known.size else math.nan


def window_votes(log_ratio: Array, *, sizes: Sequence[int] = WINDOW_SIZES) -> float:
    """WBC: share of sliding windows whose summed log-ratio is positive, averaged over window sizes (arXiv 2601.02751).

        (1/|W|) Σ_{w∈W} (1/(T−w+1)) #{i : Σ_{j=i}^{i+w−1} L(x_j) > 0}

    In [0, 1]. A window larger than the text does not vote (the authors' code shortens it to the text, which gives short
    texts many copies of one vote); where none fits, the text is the one window.

    Args:
        log_ratio: (T,) nats; tokens without one are left out.
        sizes (*optional*, defaults to the published 2 to 40, about geometric): window sizes in tokens.
    """
    known = known_of(log_ratio)
    if not known.size:
        return math.nan
    total = np.append(0.0, np.cumsum(known))
    fitting = [size for size in sizes if size <= known.size] or [known.size]
    shares = [np.count_nonzero(total[size:] > total[:-size]) / (known.size - size + 1) for size in fitting]
    return sum(shares) / len(shares)


def error_shift(log_prob: Array, log_prob_out: Array, rank: Array) -> float:
    """EZ-MIA: balance of upward and downward shifts where the target's first choice is wrong (arXiv 2601.12104).

        (P − N)/(P + N),  P and N the sums of positive and of negative L(x_t) over t with rank above 1

    In [−1, 1] and a monotone form of the paper's P/N, finite where N = 0. No wrong position is the strongest sign of
    memorization, 1, as in the paper (its code gives 0, the least of P/N); no shift at any wrong position is 0.

    Args:
        log_prob: (T,) under the target, nats.
        log_prob_out: (T,) log of the mean probability under the OUT references, nats.
        rank: (T,) of the token under the target; 1 = most likely.
    """
    shift = log_ratio(log_prob, log_prob_out)
    known = ~(np.isnan(shift) | np.isnan(rank))
    if not known.any():
        return math.nan
    wrong = shift[known & (np.asarray(rank) > 1)]
    if not wrong.size:
        return 1.0
    moved = float(np.abs(wrong).sum())
    return float(wrong.sum()) / moved if moved else 0.0


def known_of(score: Array) -> Array:
    """The scores of an (N,) array that are not NaN, as float64."""
    score = np.asarray(score, dtype=np.float64)
    return score[~np.isnan(score)]


def token_scores(signals: Mapping[str, Array], name: str) -> Array:
    """The token score called `name`, from the signal columns of an audit.

    Raises:
        MitigateError: no score has that name.
    """
    if name not in TOKEN_SCORES:
        raise MitigateError(f"detect.score: {name!r} is not one of {', '.join(TOKEN_SCORES)}")
    return TOKEN_SCORES[name](signals)


TOKEN_SCORES: dict[str, Callable[[Mapping[str, Array]], Array]] = {
    "informia": lambda s: informia(s["log_ratio"], s["kl"]),
    "informia_no_kl": lambda s: informia(s["log_ratio"], s["kl"], use_kl=False),
    "informia_z": lambda s: informia_z(s["log_ratio"], s["kl"], s["log_ratio_variance"]),
    "log_ratio": lambda s: log_ratio(s["log_prob"], s["log_prob_out"]),
    "log_ratio_clipped": lambda s: clipped(log_ratio(s["log_prob"], s["log_prob_out"])),
    "loss": lambda s: loss(s["log_prob"]),
    "min_k_pp": lambda s: min_k_pp(s["log_prob"], s["entropy"], s["log_prob_std"]),
}
WHOLE_SCORES = frozenset({"informia", "informia_z"})
"""Token scores that compare the target's and the references' whole distributions, not the token's entry alone."""
SPAN_SCORES: dict[str, Callable[[Mapping[str, Array], str], float]] = {
    "loss": lambda s, text: mean(TOKEN_SCORES["loss"](s)),
    "zlib": lambda s, text: zlib_ratio(s["log_prob"], text),
    "min_k": lambda s, text: min_k(TOKEN_SCORES["loss"](s)),
    "min_k_pp": lambda s, text: min_k(TOKEN_SCORES["min_k_pp"](s)),
    "log_ratio": lambda s, text: mean(TOKEN_SCORES["log_ratio"](s)),
    "log_ratio_clipped": lambda s, text: mean(TOKEN_SCORES["log_ratio_clipped"](s)),
    "informia": lambda s, text: mean(TOKEN_SCORES["informia"](s)),
    "informia_no_kl": lambda s, text: mean(TOKEN_SCORES["informia_no_kl"](s)),
    "informia_z": lambda s, text: mean(TOKEN_SCORES["informia_z"](s)),
    "window_votes": lambda s, text: window_votes(TOKEN_SCORES["log_ratio"](s)),
    "ez": lambda s, text: error_shift(s["log_prob"], s["log_prob_out"], s["rank"]),
}
"""Detector -> score of a span, from the signals of its tokens and its text."""
