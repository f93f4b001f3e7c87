"""Every membership score equals its published formula, done slowly, and is higher for what was memorized."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from mitigate.detection.scores import aggregations
from mitigate.detection.scores import token as scores
from mitigate.detection.scores import units as unit_scores
from mitigate.detection.settings import TokenScore

NAN = float("nan")
Signals = dict[str, np.ndarray]
TEXT = "The door code is 904172."


def drawn_signals(seed: int, tokens: int, *, learned: float = 0.0) -> Signals:
    """Signals of a text over a vocabulary of 6 where the target moved `learned` nats towards each token."""
    rng = np.random.default_rng(seed)
    p_out = rng.dirichlet(np.full(6, 2.0), size=tokens)
    at = np.arange(tokens)
    token = rng.integers(6, size=tokens)
    logits = np.log(p_out) + 0.3 * rng.normal(size=p_out.shape)
    logits[at, token] += learned
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ratio, entropy = np.log(p / p_out), -(p * np.log(p)).sum(1)
    kl = (p_out * np.log(p_out / p)).sum(1)
    return {
        "log_prob": np.log(p[at, token]),
        "rank": (p > p[at, token][:, None]).sum(1) + 1.0,
        "top_log_prob": np.log(p.max(1)),
        "entropy": entropy,
        "log_prob_std": np.sqrt((p * (np.log(p) + entropy[:, None]) ** 2).sum(1)),
        "log_prob_out": np.log(p_out[at, token]),
        "entropy_out": -(p_out * np.log(p_out)).sum(1),
        "log_ratio": ratio[at, token],
        "kl": kl,
        "log_ratio_variance": (p_out * (ratio + kl[:, None]) ** 2).sum(1),
    }


def naive_mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def naive_min_k(values: list[float]) -> float:
    count = max(1, len(values) // 5)
    return naive_mean(sorted(values)[:count])


def naive_votes(ratio: list[float], sizes: tuple[int, ...]) -> float:
    shares = []
    for size in sizes:
        votes = [math.fsum(ratio[i : i + size]) > 0 for i in range(len(ratio) - size + 1)]
        if votes:
            shares.append(votes.count(True) / len(votes))
    return naive_mean(shares) if shares else float(math.fsum(ratio) > 0)


def naive_spans(s: Signals) -> dict[str, float]:
    rows = [{name: float(column[t]) for name, column in s.items()} for t in range(len(s["log_prob"]))]
    ratio = [row["log_prob"] - row["log_prob_out"] for row in rows]
    wrong = [value for value, row in zip(ratio, rows, strict=True) if row["rank"] > 1]
    up, down = sum(v for v in wrong if v > 0), -sum(v for v in wrong if v < 0)
    information = [row["log_ratio"] + row["kl"] for row in rows]
    return {
        "loss": naive_mean([row["log_prob"] for row in rows]),
        "zlib": math.fsum(row["log_prob"] for row in rows) / len(zlib.compress(TEXT.encode("utf-8"))),
        "min_k": naive_min_k([row["log_prob"] for row in rows]),
        "min_k_pp": naive_min_k([(row["log_prob"] + row["entropy"]) / row["log_prob_std"] for row in rows]),
        "log_ratio": naive_mean(ratio),
        "log_ratio_clipped": naive_mean([min(3.0, max(-3.0, v)) for v in ratio]),
        "informia": naive_mean(information),
        "informia_no_kl": naive_mean([row["log_ratio"] for row in rows]),
        "informia_z": naive_mean(
            [v / math.sqrt(row["log_ratio_variance"]) for v, row in zip(information, rows, strict=True)]
        ),
        "window_votes": naive_votes(ratio, (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)),
        "ez": (up / down - 1) / (up / down + 1) if down else 1.0,
    }


@pytest.mark.parametrize("tokens", [1, 2, 7, 60])
def test_span_scores_equal_the_formulas_done_slowly(tokens: int) -> None:
    for seed in range(5):
        signals = drawn_signals(seed, tokens, learned=0.5)
        expected = naive_spans(signals)
        assert expected.keys() == scores.SPAN_SCORES.keys()
        for name, value in expected.items():
            assert scores.SPAN_SCORES[name](signals, TEXT) == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("name", scores.SPAN_SCORES)
def test_a_memorized_span_scores_above_a_fresh_one(name: str) -> None:
    score = scores.SPAN_SCORES[name]
    wins = [
        score(drawn_signals(seed, 20, learned=2.0), TEXT) > score(drawn_signals(seed, 20), TEXT) for seed in range(30)
    ]
    assert all(wins)


@pytest.mark.parametrize("name", scores.SPAN_SCORES)
def test_tokens_without_signals_change_no_span_score(name: str) -> None:
    signals = drawn_signals(3, 9, learned=0.5)
    holes = {n: np.insert(column, [0, 4, 9], NAN).astype(np.float64) for n, column in signals.items()}
    assert scores.SPAN_SCORES[name](holes, TEXT) == pytest.approx(scores.SPAN_SCORES[name](signals, TEXT))


@pytest.mark.parametrize("name", scores.SPAN_SCORES)
def test_a_span_without_any_signal_has_no_score(name: str) -> None:
    for tokens in (0, 4):
        nothing = {n: np.full(tokens, NAN) for n in drawn_signals(0, 1)}
        assert math.isnan(scores.SPAN_SCORES[name](nothing, TEXT))


@pytest.mark.parametrize("name", ["log_ratio", "log_ratio_clipped", "window_votes", "ez"])
def test_what_makes_a_text_hard_for_both_models_does_not_move_comparisons(name: str) -> None:
    signals = drawn_signals(4, 12, learned=0.5)
    harder = {**signals, "log_prob": signals["log_prob"] - 2, "log_prob_out": signals["log_prob_out"] - 2}
    assert scores.SPAN_SCORES[name](harder, TEXT) == pytest.approx(scores.SPAN_SCORES[name](signals, TEXT))


def test_the_scores_that_recipes_may_name_are_those_there_are() -> None:
    assert get_args(TokenScore) == tuple(scores.TOKEN_SCORES)


def test_scores_of_one_model_need_no_references() -> None:
    alone = {n: drawn_signals(1, 5)[n] for n in ("log_prob", "rank", "top_log_prob", "entropy", "log_prob_std")}
    for name in ("loss", "zlib", "min_k", "min_k_pp"):
        assert math.isfinite(scores.SPAN_SCORES[name](alone, TEXT))


def test_a_text_that_compresses_well_needs_a_higher_probability() -> None:
    log_prob = np.full(10, -1.0)
    assert scores.zlib_ratio(log_prob, "abcdefghij0123456789") > scores.zlib_ratio(log_prob, "a" * 20)


def test_a_short_text_is_one_window() -> None:
    assert scores.window_votes(np.array([0.1])) == 1.0
    assert scores.window_votes(np.array([-0.1])) == 0.0
    assert scores.window_votes(np.array([3.0, -1.0]), sizes=(7,)) == 1.0


@pytest.mark.parametrize("sizes", [(1,), (5, 2), tuple(range(1, 41))])
def test_window_votes_count_every_window_of_every_size(sizes: tuple[int, ...]) -> None:
    ratio = np.random.default_rng(len(sizes)).normal(size=33)
    assert scores.window_votes(ratio, sizes=sizes) == pytest.approx(naive_votes(list(ratio), sizes))


def test_a_few_extreme_tokens_do_not_outvote_the_windows() -> None:
    ratio = np.full(60, 0.1)
    ratio[30] = -100.0
    assert scores.window_votes(ratio, sizes=(2,)) == pytest.approx(57 / 59)


def test_the_error_shift_is_a_monotone_form_of_upward_over_downward_and_stays_finite() -> None:
    rng = np.random.default_rng(0)
    shifts = rng.normal(size=(40, 12))
    ratios = [row[row > 0].sum() / -row[row < 0].sum() for row in shifts]
    got = [scores.error_shift(row, np.zeros(12), np.full(12, 2)) for row in shifts]
    assert np.argsort(got).tolist() == np.argsort(ratios).tolist()
    assert scores.error_shift(np.array([1.0]), np.zeros(1), np.array([2.0])) == 1.0
    assert scores.error_shift(np.array([-1.0]), np.zeros(1), np.array([2.0])) == -1.0
    assert scores.error_shift(np.zeros(3), np.zeros(3), np.full(3, 5.0)) == 0.0


def test_only_wrong_positions_count_in_the_error_shift_and_none_is_its_maximum() -> None:
    log_prob, out = np.array([-1.0, -2.0, -3.0]), np.array([-2.0, -1.0, -3.5])
    assert scores.error_shift(log_prob, out, np.array([1.0, 2.0, 3.0])) == pytest.approx((0.5 - 1) / (0.5 + 1))
    assert scores.error_shift(log_prob, out, np.ones(3)) == 1.0


def test_unit_variance_informia_is_bounded_where_the_models_agree_and_exact_elsewhere() -> None:
    ratio, kl = np.array([1.0, 1.0, -2.0]), np.array([0.0, 0.5, 0.0])
    variance = np.array([1e-30, 2e-4, 4.0])
    assert scores.informia_z(ratio, kl, variance) == pytest.approx([100.0, 1.5 / math.sqrt(2e-4), -1.0])


def test_the_log_odds_are_stable_from_end_to_end() -> None:
    log_prob = np.array([-800.0, -20.0, -0.7, -1e-3, 0.0, 1e-9, NAN, -math.inf])
    got = scores.logit(log_prob)
    assert got[:4] == pytest.approx([v - math.log1p(-math.exp(v)) for v in log_prob[:4]])
    assert got[2] == pytest.approx(math.log(math.exp(-0.7) / (1 - math.exp(-0.7))))
    assert got[4:6] == pytest.approx([24 * math.log(2)] * 2)
    assert math.isnan(got[6])
    assert got[7] == -math.inf


@pytest.fixture
def population() -> tuple[np.ndarray, np.ndarray]:
    """(Z,) log-probabilities of a population under the target and under the references."""
    rng = np.random.default_rng(7)
    out = rng.normal(-3, 0.5, size=50)
    return out + rng.normal(0, 0.3, size=50), out


Population = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_rmia_is_the_share_of_pairs_that_x_wins(population: Population, gamma: float) -> None:
    target, out = population
    x, x_out = np.array([-2.0, -3.0, -4.0, NAN]), np.array([-3.0, -3.0, -3.1, -3.0])
    got = unit_scores.rmia(x, x_out, target, out, gamma=gamma)
    for n in range(3):
        wins = [
            math.exp(x[n]) / math.exp(x_out[n]) / (math.exp(a) / math.exp(b)) > gamma
            for a, b in zip(target, out, strict=True)
        ]
        assert got[n] == pytest.approx(wins.count(True) / len(wins))
    assert math.isnan(got[3])
    assert got[0] >= got[1] >= got[2]
    assert got[0] > got[2]


def test_equal_ratios_do_not_win_in_rmia() -> None:
    assert unit_scores.rmia(np.zeros(1), np.zeros(1), np.array([0.0, -1.0]), np.zeros(2)).tolist() == [0.5]


def test_rmia_and_informia_ignore_the_order_of_the_population_and_what_has_no_value(population: Population) -> None:
    target, out = population
    x, x_out = np.linspace(-4, -2, 9), np.full(9, -3.0)
    order = np.random.default_rng(0).permutation(50)
    padded = np.append(target[order], [NAN, -1.0]), np.append(out[order], [-1.0, NAN])
    assert unit_scores.rmia(x, x_out, *padded).tolist() == unit_scores.rmia(x, x_out, target, out).tolist()
    for weights in ((None, None), (out, padded[1])):
        plain = unit_scores.informia_sequence(x - x_out, target - out, population_log_prob_out=weights[0])
        shuffled = unit_scores.informia_sequence(x - x_out, padded[0] - padded[1], population_log_prob_out=weights[1])
        assert shuffled == pytest.approx(plain)


def test_a_target_that_is_surer_of_everything_moves_neither_rmia_nor_informia(population: Population) -> None:
    target, out = population
    x, x_out = np.linspace(-4.03, -2.01, 9), np.full(9, -3.0)
    assert (
        unit_scores.rmia(x + 0.25, x_out, target + 0.25, out).tolist()
        == unit_scores.rmia(x, x_out, target, out).tolist()
    )
    for weights in (None, out):
        surer = unit_scores.informia_sequence(x + 0.25 - x_out, target + 0.25 - out, population_log_prob_out=weights)
        plain = unit_scores.informia_sequence(x - x_out, target - out, population_log_prob_out=weights)
        assert surer == pytest.approx(plain)


def test_without_a_population_there_is_no_rmia_and_no_sequence_informia() -> None:
    nothing = np.array([NAN])
    assert np.isnan(unit_scores.rmia(np.zeros(2), np.zeros(2), nothing, nothing)).tolist() == [True, True]
    assert np.isnan(unit_scores.informia_sequence(np.zeros(2), nothing)).tolist() == [True, True]


def test_sequence_informia_is_the_log_ratio_plus_the_divergence_of_the_population() -> None:
    p_out = np.array([0.5, 0.3, 0.2])
    p = np.array([0.2, 0.2, 0.6])
    divergence = stats.entropy(p_out, p)  # over a population that is the whole space, the formula itself
    got = unit_scores.informia_sequence(np.array([1.0, NAN]), np.log(p / p_out), population_log_prob_out=np.log(p_out))
    assert got[0] == pytest.approx(1.0 + divergence)
    assert math.isnan(got[1])
    far = unit_scores.informia_sequence(
        np.array([1.0]), np.log(p / p_out), population_log_prob_out=np.log(p_out) - 5000
    )
    assert far[0] == pytest.approx(1.0 + divergence)


def test_the_plain_mean_estimates_the_same_divergence_from_samples() -> None:
    p_out, p = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    drawn = np.random.default_rng(0).choice(3, size=20000, p=p_out)
    got = unit_scores.informia_sequence(np.zeros(1), np.log(p / p_out)[drawn])
    assert got[0] == pytest.approx(stats.entropy(p_out, p), abs=0.02)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_the_offline_mean_is_half_of_out_and_of_the_line_for_in(a: float) -> None:
    log_prob = np.array([-9.0, -1.0, 0.0, NAN])
    got = unit_scores.offline_mean(log_prob, a=a)
    expected = [math.log((p + (a * p + 1 - a)) / 2) for p in map(math.exp, log_prob[:3])]
    assert got[:3] == pytest.approx(expected)
    assert math.isnan(got[3])
    tiny = unit_scores.offline_mean(np.array([-5000.0]), a=a)[0]
    assert tiny == pytest.approx(-5000.0 if a == 1 else math.log((1 - a) / 2))


def naive_lira(x: float, out: list[float], in_: list[float]) -> float:
    normal = [stats.norm(naive_mean(side), np.std(side, ddof=1)) for side in (in_, out)]
    return float(normal[0].logpdf(x) - normal[1].logpdf(x))


def test_online_lira_is_the_log_likelihood_ratio_of_two_normals() -> None:
    rng = np.random.default_rng(1)
    out, in_, x = rng.normal(-3, 1, (6, 9)), rng.normal(-1, 0.5, (6, 12)), rng.normal(-2, 1, 6)
    out[2, 4] = in_[3, 0] = NAN
    got = unit_scores.lira(x, out, in_)
    for n in range(6):
        sides = [[v for v in side[n] if not math.isnan(v)] for side in (out, in_)]
        assert got[n] == pytest.approx(naive_lira(x[n], *sides))


def test_offline_lira_orders_like_the_one_sided_test() -> None:
    rng = np.random.default_rng(2)
    out, x = rng.normal(-3, 1, (20, 10)), rng.normal(-3, 1.5, 20)
    got = unit_scores.lira(x, out)
    one_sided = [1 - stats.norm(np.mean(row), np.std(row, ddof=1)).sf(v) for v, row in zip(x, out, strict=True)]
    assert stats.norm.cdf(got) == pytest.approx(one_sided)


def test_few_references_share_one_variance_about_their_own_rows() -> None:
    rng = np.random.default_rng(3)
    out, x = rng.normal(0, 1, (30, 3)) + 10 * np.arange(30)[:, None], 10.0 * np.arange(30)
    out[5, 1] = NAN
    squares, freedom = 0.0, 0
    for row in out:
        known = [v for v in row if not math.isnan(v)]
        squares += math.fsum((v - naive_mean(known)) ** 2 for v in known)
        freedom += len(known) - 1
    expected = (x - np.nanmean(out, 1)) / math.sqrt(squares / freedom)
    assert unit_scores.lira(x, out) == pytest.approx(expected)
    assert unit_scores.lira(x, out, shared_variance=True).tolist() == unit_scores.lira(x, out).tolist()
    assert unit_scores.lira(x, out, shared_variance=False)[0] != unit_scores.lira(x, out)[0]


def test_variances_are_shared_if_one_row_has_fewer_than_eight_references() -> None:
    out, x = np.random.default_rng(4).normal(size=(5, 8)), np.zeros(5)
    assert unit_scores.lira(x, out).tolist() == unit_scores.lira(x, out, shared_variance=False).tolist()
    out[0, 0] = NAN
    assert unit_scores.lira(x, out).tolist() == unit_scores.lira(x, out, shared_variance=True).tolist()


def test_one_reference_a_row_leaves_the_order_of_the_differences() -> None:
    rng = np.random.default_rng(5)
    out, x = rng.normal(-3, 1, (15, 1)), rng.normal(-3, 1, 15)
    got = unit_scores.lira(x, out)
    assert np.isfinite(got).all()
    assert np.argsort(got).tolist() == np.argsort(x - out[:, 0]).tolist()
    assert np.isnan(unit_scores.lira(x, out, shared_variance=False)).all()
    assert np.isnan(unit_scores.lira(x[:1], out[:1])).all()


@pytest.mark.parametrize("references", [3, 10])
def test_lira_pads_with_unused_references_and_has_no_score_without_any(references: int) -> None:
    rng = np.random.default_rng(6)
    out, in_, x = rng.normal(-3, 1, (9, references)), rng.normal(-1, 1, (9, references)), rng.normal(-2, 1, 9)
    unused = np.full((9, 2), NAN)
    for sides in ((out,), (out, in_)):
        padded = [np.hstack([unused, side]) for side in sides]
        assert unit_scores.lira(x, *padded) == pytest.approx(unit_scores.lira(x, *sides))
        padded[0][4] = NAN
        assert np.isnan(unit_scores.lira(x, *padded)).tolist() == [n == 4 for n in range(9)]
    assert np.isnan(unit_scores.lira(np.full(9, NAN), out, in_)).all()


def test_a_constant_added_to_target_and_references_moves_no_lira_score() -> None:
    rng = np.random.default_rng(7)
    out, in_, x = rng.normal(-3, 1, (9, 4)), rng.normal(-1, 1, (9, 4)), rng.normal(-2, 1, 9)
    assert unit_scores.lira(x - 5, out - 5) == pytest.approx(unit_scores.lira(x, out))
    assert unit_scores.lira(x - 5, out - 5, in_ - 5) == pytest.approx(unit_scores.lira(x, out, in_))


def test_references_that_agree_exactly_give_a_finite_score() -> None:
    assert np.isfinite(unit_scores.lira(np.array([-1.0, -2.0]), np.full((2, 9), -2.0))).all()


Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
UNIT_SCORES: dict[str, Judge] = {
    "rmia": lambda x, out, in_: unit_scores.rmia(x[:20], out[:20].mean(1), x[20:], out[20:].mean(1)),
    "rmia offline": lambda x, out, in_: unit_scores.rmia(
        x[:20],
        unit_scores.offline_mean(out[:20].mean(1), a=0.99),
        x[20:],
        unit_scores.offline_mean(out[20:].mean(1), a=0.99),
    ),
    "informia": lambda x, out, in_: unit_scores.informia_sequence((x - out.mean(1))[:20], (x - out.mean(1))[20:]),
    "lira online": lambda x, out, in_: unit_scores.lira(x[:20], out[:20], in_[:20]),
    "lira offline": lambda x, out, in_: unit_scores.lira(x[:20], out[:20]),
}


@pytest.mark.parametrize("name", UNIT_SCORES)
def test_memorized_documents_score_above_fresh_ones(name: str) -> None:
    rng = np.random.default_rng(8)
    hardness = rng.normal(-4, 0.5, size=(70, 1))
    out = hardness + 0.1 * rng.normal(size=(70, 4))
    in_ = hardness + 1.0 + 0.1 * rng.normal(size=(70, 4))
    x = hardness[:, 0] + 0.1 * rng.normal(size=70)
    x[:10] += 1.0  # the first ten trained the target; the last fifty are the population
    score = UNIT_SCORES[name](x, out, in_)
    assert score[:10].min() > score[10:].max()


@pytest.mark.parametrize("window", [1, 3, 8, 20])
def test_the_highest_window_is_the_highest_of_all_means(window: int) -> None:
    score = np.random.default_rng(window).normal(size=8)
    means = [naive_mean(list(score[i : i + window])) for i in range(max(1, 8 - window + 1))]
    assert aggregations.max_window(score, window=window) == pytest.approx(max(means))
    holes = np.insert(score, [0, 3, 8], NAN)
    assert aggregations.max_window(holes, window=window) == pytest.approx(max(means))
    assert math.isnan(aggregations.max_window(np.full(3, NAN), window=window))


def test_the_clipped_mean_is_the_mean_of_the_clipped() -> None:
    score = np.array([NAN, -9.0, 1.0, 9.0, 2.0])
    assert aggregations.clipped_mean(score) == pytest.approx((-3 + 1 + 3 + 2) / 4)
    assert aggregations.clipped_mean(score, 1.5) == pytest.approx((-1.5 + 1 + 1.5 + 1.5) / 4)
    assert aggregations.clipped_mean(score) == aggregations.mean(scores.clipped(score))
    assert math.isnan(aggregations.clipped_mean(score[:1]))
