"""Memorization scores: pure functions of the signals. One sign rule: higher = more memorized. Nats.

Token scores take and return arrays with one entry per token; aggregations turn a span's or a document's token scores
into one number. NaN stands for "no score" (a document's first token) and stays NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mitigate.errors import MitigateError

Array = np.ndarray


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
    """Unit-variance InfoRMIA: s_t / sqrt(Var_{v~p̄}[L(v)]).

    Args:
        ratio: (N,) L(x_t), nats.
        kl: (N,) KL(p̄ ‖ p_θ), nats.
        variance: (N,) Var_{v~p̄}[L(v)], nats squared.
    """
    return informia(ratio, kl) / np.sqrt(np.maximum(variance, 1e-12))


def min_k_pp(log_prob: Array, entropy: Array, log_prob_std: Array) -> Array:
    """Min-K%++ token score: (log p_θ(x_t) − μ) / σ, over v ~ p_θ, where μ = −entropy (Zhang et al., arXiv 2404.02936).

    Args:
        log_prob: (N,) nats.
        entropy: (N,) entropy of p_θ, nats.
        log_prob_std: (N,) standard deviation of log p_θ(v) under p_θ, nats.
    """
    return (np.asarray(log_prob, dtype=np.float64) + entropy) / np.maximum(log_prob_std, 1e-6)


def clipped(score: Array, *, limit: float = 3.0) -> Array:
    """Clip token scores to ±limit nats, so that one token cannot carry a whole span.

    Args:
        score: (N,) nats.
        limit (`float`, *optional*, defaults to 3.0): in nats.
    """
    return np.clip(score, -limit, limit)


def mean(score: Array) -> float:
    """Mean over the tokens that have a score; NaN if none has."""
    known = np.asarray(score)[~np.isnan(score)]
    return float(known.mean()) if known.size else float("nan")


def min_k(score: Array, *, share: float = 0.2) -> float:
    """Min-K%: mean of the lowest `share` of the token scores (Shi et al., arXiv 2310.16789).

    Args:
        score: (N,).
        share (`float`, *optional*, defaults to 0.2): at least one token is taken.
    """
    known = np.sort(np.asarray(score)[~np.isnan(score)])
    return float(known[: max(1, int(share * known.size))].mean()) if known.size else float("nan")


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
DOCUMENT_SCORES: dict[str, Callable[[Array], float]] = {"mean": mean, "min_k": min_k}
