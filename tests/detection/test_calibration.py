"""Features, calibrated probabilities, error rates, segments and shadows: equal to slow definitions, and true to a plan.

Where a distribution matters, it is simulated: what is stated to happen in one case of ten happens in about one of ten.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedTokenizerFast

from mitigate.detection.calibration.attack import (
    AttackModel,
    expected_calibration_error,
    fit_attack_model,
    fold_of,
    p_values,
    q_values,
    reliability,
    stratified_z,
)
from mitigate.detection.calibration.detector import MEMORIZED, Detector, fit_detector
from mitigate.detection.calibration.features import span_features, token_features
from mitigate.detection.calibration.shadows import PairedSignals, Shadow, deal_shadows, out_of
from mitigate.detection.references.dealing import deal_halves
from mitigate.detection.signals.pairings import Pairing
from mitigate.detection.spans.segments import Segmentation, decode, fit_segmentation, stretches
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.tokens.tokenization import tokenize_documents, word_numbers

NAN = float("nan")
Signals = dict[str, np.ndarray]


# features -------------------------------------------------------------------------------------------------------------

LENGTHS = (9, 1, 5, 20)  # tokens of four pairings
DOCUMENT = np.repeat(np.arange(4), LENGTHS)


def drawn_signals(seed: int, *, references: int = 2, tokens: int = len(DOCUMENT)) -> Signals:
    """Signals of any size that `compute_signals` could give; NaN at each document's first token and at some others."""
    rng = np.random.default_rng(seed)
    log_prob = -rng.gamma(2.0, 1.5, size=tokens)
    signals = {
        "log_prob": log_prob,
        "rank": rng.integers(1, 9, size=tokens).astype(float),
        "top_log_prob": log_prob + rng.gamma(1.0, 0.5, size=tokens),
        "entropy": rng.gamma(3.0, 1.0, size=tokens),
        "log_prob_std": rng.gamma(2.0, 1.0, size=tokens),
        "log_prob_out": -rng.gamma(2.0, 2.5, size=tokens),
        "entropy_out": rng.gamma(3.0, 1.0, size=tokens),
        "log_ratio": rng.normal(size=tokens),
        "kl": rng.gamma(1.0, 0.5, size=tokens),
        "log_ratio_variance": rng.choice([0.0, 0.3, 2.0], size=tokens),
        "log_prob_references": -rng.gamma(2.0, 2.5, size=(tokens, references)),
    }
    silent = rng.random(tokens) < 0.15
    silent[np.flatnonzero(np.diff(DOCUMENT[:tokens], prepend=-1))] = True
    for column in signals.values():
        column[silent] = NAN
    if references > 1:
        signals["log_prob_references"][2::5, 1] = NAN  # judged by one only
    return {name: column.astype(np.float32) for name, column in signals.items()}


def clip(value: float, limit: float) -> float:
    return value if math.isnan(value) else max(-limit, min(limit, value))


def naive_columns(signals: Signals, row: int) -> dict[str, float]:
    """The features of one token without its neighbours."""
    own = {name: float(column[row]) for name, column in signals.items() if column.ndim == 1}
    used = [float(value) for value in signals["log_prob_references"][row] if not math.isnan(value)]
    ratio = own["log_prob"] - own["log_prob_out"]
    columns = {
        "log_prob": own["log_prob"],
        "log_rank": math.log(own["rank"]),
        "to_top": own["log_prob"] - own["top_log_prob"],
        "entropy": own["entropy"],
        "min_k_pp": clip((own["log_prob"] + own["entropy"]) / max(own["log_prob_std"], 1e-6), 10),
        "log_prob_out": own["log_prob_out"],
        "entropy_out": own["entropy_out"],
        "ratio": ratio,
        "ratio_clipped": clip(ratio, 3),
        "kl": own["kl"],
        "informia": ratio + own["kl"],
        "informia_z": clip((ratio + own["kl"]) / math.sqrt(max(own["log_ratio_variance"], 1e-4)), 10),
    }
    if signals["log_prob_references"].shape[1] > 1:
        mean = sum(used) / len(used) if used else NAN
        columns["ratio_to_highest"] = clip(own["log_prob"] - max(used), 3) if used else NAN
        columns["disagreement"] = math.sqrt(sum((x - mean) ** 2 for x in used) / len(used)) if used else NAN
    return columns


def naive_token_features(signals: Signals, document: np.ndarray) -> dict[str, list[float]]:
    columns = [naive_columns(signals, row) for row in range(len(document))]
    features: dict[str, list[float]] = {}
    for row, own in enumerate(columns):
        values = dict(own)
        for offset in (-2, -1, 1, 2):
            there = row + offset
            alike = 0 <= there < len(document) and document[there] == document[row]
            values[f"ratio[{offset:+d}]"] = columns[there]["ratio_clipped"] if alike else NAN
            values[f"log_prob[{offset:+d}]"] = columns[there]["log_prob"] if alike else NAN
        for window in (3, 7, 15):
            near = [
                columns[there]
                for there in range(max(0, row - window // 2), min(len(document), row + window // 2 + 1))
                if document[there] == document[row] and not math.isnan(columns[there]["log_prob"])
            ]
            silent = math.isnan(own["log_prob"])
            for name, key in (("ratio", "ratio_clipped"), ("informia", "informia"), ("log_prob", "log_prob")):
                known = [clip(found[key], 3) if name == "informia" else found[key] for found in near]
                values[f"{name} mean {window}"] = NAN if silent else sum(known) / len(known)
        for name, value in values.items():
            features.setdefault(name, []).append(value)
    return features


@pytest.mark.parametrize("references", [1, 2, 3])
def test_token_features_equal_naive_loops(references: int) -> None:
    signals = drawn_signals(references, references=references)
    got, names = token_features(signals, DOCUMENT)
    expected = naive_token_features(signals, DOCUMENT)
    assert sorted(names) == sorted(expected)
    assert got.shape == (len(DOCUMENT), len(names))
    for column, name in enumerate(names):
        np.testing.assert_allclose(got[:, column], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert np.isnan(got[np.isnan(signals["log_prob"]), names.index("log_prob")]).all()


SPANS = np.array([[1, 5], [20, 34], [2, 3], [3, 9], [10, 15], [1, 5], [0, 9]])  # in no order, some overlap
WHOLE = np.array([[at[0], at[-1] + 1] for at in (np.flatnonzero(DOCUMENT[n] == DOCUMENT) for n, _ in SPANS)])


@pytest.mark.parametrize("references", [1, 2])
def test_span_features_equal_naive_loops(references: int) -> None:
    signals = drawn_signals(3, references=references)
    signals = {name: np.where(np.isnan(column), NAN, column) for name, column in signals.items()}
    got, names = span_features(signals, SPANS, documents=WHOLE)
    for span, (first, end), values in zip(SPANS, WHOLE, got, strict=True):
        rows = [naive_columns(signals, row) for row in range(*span) if not np.isnan(signals["log_prob"][row])]
        expected = {"log_length": math.log(len(rows))}
        for name in rows[0]:
            own = [row[name] for row in rows]
            expected |= {f"{name} mean": sum(own) / len(own), f"{name} least": min(own), f"{name} greatest": max(own)}
        expected["log_prob sum"] = sum(row["log_prob"] for row in rows)
        expected["ratio sum"] = sum(row["ratio"] for row in rows)
        expected["share top"] = sum(row["log_rank"] == 0 for row in rows) / len(rows)
        expected["share above"] = sum(row["ratio"] > 0 for row in rows) / len(rows)
        for size in (8, 32, 128):
            near = [*range(max(first, span[0] - size), span[0]), *range(span[1], min(end, span[1] + size))]
            around = [naive_columns(signals, row) for row in near if not np.isnan(signals["log_prob"][row])]
            for name in ("ratio_clipped", "informia_z"):
                own = [row[name] for row in around]
                expected[f"{name} around {size}"] = sum(own) / len(own) if own else NAN
        assert sorted(names) == sorted(expected)
        for name, value in zip(names, values, strict=True):
            assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-4, nan_ok=True), (span, name)
    assert np.isnan(got).sum(1).tolist() == [0, 0, 0, 0, 6, 0, 6], "nothing is around a whole document"


def test_a_tokens_features_look_at_no_other_document() -> None:
    signals, noise = drawn_signals(0), drawn_signals(1)
    inside = DOCUMENT == 2
    others = {
        name: np.where(inside if column.ndim == 1 else inside[:, None], column, noise[name])
        for name, column in signals.items()
    }
    np.testing.assert_array_equal(
        token_features(signals, DOCUMENT)[0][inside], token_features(others, DOCUMENT)[0][inside]
    )
    alone = token_features({name: column[inside] for name, column in signals.items()}, DOCUMENT[inside])
    np.testing.assert_array_equal(token_features(signals, DOCUMENT)[0][inside], alone[0])


@pytest.mark.parametrize("around", [False, True])
def test_a_spans_features_depend_on_its_own_tokens_and_apart_from_them_on_its_documents(around: bool) -> None:
    signals, noise = drawn_signals(0), drawn_signals(1)
    together, names = span_features(signals, SPANS, documents=WHOLE)
    compared = [number for number, name in enumerate(names) if around or " around " not in name]
    for number, (start, end) in enumerate(SPANS):
        first, last = WHOLE[number] if around else (start, end)
        inside = np.isin(np.arange(len(DOCUMENT)), np.arange(first, last))
        others = {
            name: np.where(inside if column.ndim == 1 else inside[:, None], column, noise[name])
            for name, column in signals.items()
        }
        one = slice(number, number + 1)
        [alone] = span_features(others, SPANS[one], documents=WHOLE[one])[0]
        np.testing.assert_allclose(alone[compared], together[number, compared], rtol=1e-5, atol=1e-7)


def test_one_reference_cannot_disagree() -> None:
    for references in (1, 2):
        names = token_features(drawn_signals(0, references=references), DOCUMENT)[1]
        names += span_features(drawn_signals(0, references=references), SPANS, documents=WHOLE)[1]
        found = [name for name in names if "disagreement" in name or "to_highest" in name]
        assert bool(found) == (references > 1)


def test_a_span_without_a_scored_token_has_no_features() -> None:
    with pytest.raises(AssertionError, match="a span without a scored token"):
        span_features(drawn_signals(0), np.array([[0, 1]]), documents=np.array([[0, 9]]))


# p-values, q-values, z ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("searched", [(40.0, 60.0), (500.0, 2000.0), (3.0, 1.0)])
def test_q_values_equal_their_definition(searched: tuple[float, float], ties: bool) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores, null = rng.normal(size=30) + 1, rng.normal(size=45)
        if ties:
            scores, null = np.round(scores), np.round(null)
        got = q_values(scores, null, searched=searched[0], null_searched=searched[1])
        for own, q in zip(scores, got, strict=True):
            rates = []
            for limit in scores[scores <= own]:
                expected = (1 + sum(null >= limit)) / (1 + searched[1]) * searched[0]
                rates.append(expected / sum(scores >= limit))
            assert q == pytest.approx(min(1.0, *rates))


@pytest.mark.parametrize("ties", [False, True])
def test_with_one_finding_a_thing_searched_q_values_are_benjamini_hochberg(ties: bool) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores, null = np.append(rng.normal(size=50), rng.normal(size=20) + 2.5), rng.normal(size=90)
        if ties:
            scores, null = np.round(scores, 1), np.round(null, 1)
        got = q_values(scores, null, searched=70, null_searched=90)
        np.testing.assert_allclose(got, false_discovery_control(p_values(scores, null)), rtol=1e-12)


def test_a_higher_score_never_has_a_higher_q_and_no_finding_has_none() -> None:
    rng = np.random.default_rng(0)
    scores, null = rng.normal(size=200), rng.normal(size=100)
    q = q_values(scores, null, searched=1000, null_searched=5000)
    assert (np.diff(q[np.argsort(scores)]) <= 0).all()
    assert ((q > 0) & (q <= 1)).all()
    assert q_values(scores[:0], null, searched=1000, null_searched=5000).shape == (0,)


def test_p_values_are_uniform_where_there_is_nothing_to_find() -> None:
    rng = np.random.default_rng(0)
    p = np.array([p_values(rng.normal(size=1), rng.normal(size=39))[0] for _ in range(4000)])
    for level in (0.025, 0.05, 0.25, 0.5, 0.9):
        assert (p <= level + 1e-9).mean() == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 4000))


def test_p_values_of_tied_scores_are_not_too_small() -> None:
    rng = np.random.default_rng(0)
    p = np.array([p_values(rng.integers(4, size=1), rng.integers(4, size=39))[0] for _ in range(2000)])
    for level in (0.05, 0.25, 0.5):
        assert (p <= level).mean() <= level + 3.5 * math.sqrt(level * (1 - level) / 2000)
    assert p_values(np.array([1.0]), np.zeros(0))[0] == 1.0, "without non-members nothing is significant"


def test_of_spans_selected_at_a_tenth_no_more_than_a_tenth_are_false() -> None:
    shares, found = [], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        memorized = rng.random(300) < 0.2
        scores, null = rng.normal(size=300) + 2.5 * memorized, rng.normal(size=600)
        selected = q_values(scores, null, searched=300, null_searched=600) <= 0.1
        shares.append((selected & ~memorized).sum() / max(1, selected.sum()))
        found.append(selected[memorized].mean())
    assert np.mean(shares) <= 0.1
    assert np.mean(shares) > 0.05, "nor far fewer: that would give away what can be found"
    assert np.mean(found) > 0.4


def test_of_stretches_found_by_search_and_selected_at_a_tenth_no_more_than_a_tenth_are_false() -> None:
    shares = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        false, decoys = rng.poisson(0.01 * 4000), rng.poisson(0.01 * 9000)
        scores = np.append(rng.exponential(size=false), rng.exponential(size=30) + 3)
        real = np.arange(len(scores)) >= false
        selected = q_values(scores, rng.exponential(size=decoys), searched=4000, null_searched=9000) <= 0.1
        shares.append((selected & ~real).sum() / max(1, selected.sum()))
    assert 0.03 < np.mean(shares) <= 0.1


def test_where_nothing_is_memorized_something_is_selected_in_one_run_of_ten_at_most() -> None:
    some = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        some.append((q_values(rng.normal(size=50), rng.normal(size=200), searched=50, null_searched=200) <= 0.1).any())
    assert np.mean(some) <= 0.1 + 3 * math.sqrt(0.09 / 300)


def test_stratified_z_takes_away_what_tokens_owe_to_their_stratum() -> None:
    rng = np.random.default_rng(0)
    entropy, null_entropy = rng.uniform(0, 5, size=3000), rng.uniform(0, 5, size=9000)
    scores = entropy + (0.2 + entropy) * rng.normal(size=3000)
    null = null_entropy + (0.2 + null_entropy) * rng.normal(size=9000)
    z = stratified_z(scores, entropy, null, null_entropy)
    assert abs(np.corrcoef(scores, entropy)[0, 1]) > 0.4
    assert abs(np.corrcoef(z, entropy)[0, 1]) < 0.06
    assert abs(np.corrcoef(z**2, entropy)[0, 1]) < 0.06, "nor does the spread depend on it"
    assert z.mean() == pytest.approx(0, abs=0.08)
    assert z.std() == pytest.approx(1, abs=0.06)


def test_stratified_z_equals_its_definition_and_keeps_nan() -> None:
    rng = np.random.default_rng(1)
    null, null_strata = rng.normal(size=200), rng.random(200)
    null[::7] = NAN
    scores, strata = rng.normal(size=50), rng.random(50)
    scores[3] = NAN
    z = stratified_z(scores, strata, null, null_strata, count=4)
    known = ~np.isnan(null)
    edges = np.quantile(null_strata[known], [0.25, 0.5, 0.75])
    for score, stratum, got in zip(scores, strata, z, strict=True):
        if math.isnan(score):
            assert math.isnan(got)
            continue
        alike = null[known & ((null_strata[:, None] > edges).sum(1) == (stratum > edges).sum())]
        p = (1 + (alike >= score).sum()) / (1 + len(alike))
        upper = 0.5 * math.erfc(got / math.sqrt(2))
        assert upper == pytest.approx(min(p, 1 - 0.5 / (1 + known.sum())), abs=1e-9)


# reliability ----------------------------------------------------------------------------------------------------------


def test_the_calibration_error_of_a_perfect_statement_is_zero() -> None:
    probabilities = np.repeat([0.0, 0.25, 0.5, 1.0], 4)
    labels = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert expected_calibration_error(probabilities, labels) == 0
    assert expected_calibration_error(probabilities[:0], labels[:0]) == 0


def test_the_calibration_error_equals_an_example_worked_by_hand() -> None:
    probabilities = np.array([0.02, 0.08, 0.93, 0.97, 1.0, 0.51])
    labels = np.array([False, True, True, True, True, False])
    # 0.0-0.1: stated 0.05, true 0.5; 0.9-1.0: stated 2.9 / 3, true 1; 0.5-0.6: stated 0.51, true 0
    expected = (2 * 0.45 + 3 * (0.1 / 3) + 1 * 0.51) / 6
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)
    curve = reliability(probabilities, labels)
    assert curve["probability"] == pytest.approx([0.05, 0.51, 2.9 / 3])
    assert curve["share"] == [0.5, 0.0, 1.0]
    assert curve["count"] == [2, 1, 3]


# the attack model -----------------------------------------------------------------------------------------------------


def grouped_rows(seed: int, *, groups: int = 60, each: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell only which group a row is of, labels that are the group's and as many in each fold."""
    rng = np.random.default_rng(seed)
    features = np.repeat(rng.normal(size=(groups, 12)), each, axis=0) + 0.01 * rng.normal(size=(groups * each, 12))
    fold = np.arange(groups) % 3
    label = np.zeros(groups, dtype=bool)
    for number in range(3):
        label[rng.permutation(np.flatnonzero(fold == number))[: groups // 6]] = True
    return features, np.repeat(label, each), np.repeat(fold, each)


def by_fold(values: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    return float(np.mean([roc_auc_score(labels[folds == fold], values[folds == fold]) for fold in np.unique(folds)]))


def test_a_row_is_judged_by_a_part_that_never_saw_its_group() -> None:
    blind, seen = [], []
    for seed in range(4):
        features, labels, folds = grouped_rows(seed)
        model = fit_attack_model(features, labels, folds, kinds=("boosted",))
        raw = np.concatenate([model.models[fold][0].decision_function(features[folds == fold]) for fold in range(3)])
        same = np.concatenate([labels[folds == fold] for fold in range(3)])
        blind.append(by_fold(raw, same, np.sort(folds)))
        seen.append(roc_auc_score(labels, model.models[0][0].decision_function(features)))
    assert np.mean(blind) == pytest.approx(0.5, abs=0.15), "who the group is says nothing of its label"
    assert np.mean(seen) > 0.8, "to a part that saw them, it would"


@pytest.mark.parametrize("kind", ["logistic", "boosted"])
def test_the_part_for_a_fold_does_not_depend_on_the_labels_of_that_fold(kind: str) -> None:
    features, labels, folds = grouped_rows(0)
    labels = labels ^ (features[:, 0] > 1)
    changed = labels.copy()
    changed[folds == 1] = np.random.default_rng(0).permutation(changed[folds == 1])
    first, second = (fit_attack_model(features, known, folds, kinds=(kind,)) for known in (labels, changed))
    for fold in range(3):
        predictions = [model.models[fold][0].decision_function(features[folds == 1]) for model in (first, second)]
        assert np.array_equal(*predictions) == (fold == 1)


def planted_rows(seed: int, *, count: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose log-odds of being members are known: 1.5 x the first feature; some entries are NaN."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 5))
    log_odds = 1.5 * features[:, 0]
    labels = rng.random(count) < 1 / (1 + np.exp(-log_odds))
    features[rng.random(features.shape) < 0.1] *= NAN
    return features, labels, rng.integers(3, size=count), log_odds


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, AttackModel]:
    features, labels, folds, log_odds = planted_rows(0)
    return features, labels, folds, log_odds, fit_attack_model(features, labels, folds)


def test_a_planted_signal_is_found_and_stated_with_its_odds(
    planted: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, AttackModel],
) -> None:
    features, labels, _, log_odds, model = planted
    told = ~np.isnan(features[:, 0])
    best = roc_auc_score(labels[told], log_odds[told])
    assert roc_auc_score(labels[told], model.out_of_fold[told]) > best - 0.03
    slope = np.polyfit(log_odds[told], model.out_of_fold[told], 1)[0]
    assert slope == pytest.approx(1.0, abs=0.25), "log-odds, not any score"
    assert expected_calibration_error(1 / (1 + np.exp(-model.out_of_fold)), labels) < 0.06


def test_rows_of_the_fit_and_the_same_rows_again_have_the_same_log_odds(
    planted: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, AttackModel],
) -> None:
    features, _, folds, _, model = planted
    np.testing.assert_allclose(model.log_odds(features, folds), model.out_of_fold, rtol=1e-9, atol=1e-9)
    some = np.random.default_rng(0).permutation(len(features))[:40]
    np.testing.assert_allclose(model.log_odds(features[some], folds[some]), model.out_of_fold[some], atol=1e-9)
    assert model.log_odds(features[:0], folds[:0]).shape == (0,)


def test_a_fit_is_the_same_in_every_run(
    planted: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, AttackModel],
) -> None:
    features, labels, folds, _, model = planted
    again = fit_attack_model(features, labels, folds)
    assert again.kind == model.kind
    np.testing.assert_array_equal(again.out_of_fold, model.out_of_fold)


def test_a_fold_without_rows_at_fitting_can_be_judged() -> None:
    features, labels, _, _ = planted_rows(1, count=400)
    folds = np.arange(400) % 2  # by chance no group fell to the third fold
    model = fit_attack_model(features, labels, folds)
    log_odds = model.log_odds(features[:100], np.full(100, 2))
    assert roc_auc_score(labels[:100], log_odds) > 0.7


@pytest.mark.parametrize(("members", "others"), [(0, 200), (200, 0), (25, 200), (0, 0)])
def test_too_few_examples_are_refused(members: int, others: int) -> None:
    labels = np.arange(members + others) < members
    with pytest.raises(
        MitigateError, match=rf"calibration: {members} member and {others} non-member examples .* are too few .*; 20 of"
    ):
        fit_attack_model(np.zeros((len(labels), 2)), labels, np.arange(len(labels)) % 3)


def test_the_fold_of_a_group_is_its_own() -> None:
    groups = [f"person-{number:04d}" for number in range(300)]
    folds = dict(zip(groups, fold_of(groups), strict=True))
    again = [groups[number] for number in np.random.default_rng(0).permutation(300)[:50].repeat(2)]
    assert fold_of(again).tolist() == [folds[group] for group in again]
    assert all(count > 70 for count in Counter(folds.values()).values()), "folds are about alike in size"
    assert fold_of(groups[:4]).tolist() == PINNED_FOLDS, "in every process and run"


PINNED_FOLDS = [0, 1, 0, 1]


# segments -------------------------------------------------------------------------------------------------------------


def naive_decode(log_odds: np.ndarray, switch: float) -> list[bool]:
    """The best of all sequences of states."""

    def value(states: tuple[int, ...]) -> float:
        changes = sum(first != second for first, second in itertools.pairwise(states))
        return float(np.nansum(log_odds * states)) - switch * changes

    return [bool(state) for state in max(itertools.product((0, 1), repeat=len(log_odds)), key=value)]


@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0, 4.0])
def test_decoding_equals_the_best_of_all_sequences(switch: float) -> None:
    rng = np.random.default_rng(int(10 * switch))
    lengths = [10, 1, 7, 0, 2, 9, 10, 4, 8]
    log_odds = rng.normal(size=sum(lengths)) * rng.choice([0.5, 2.0], size=sum(lengths))
    log_odds[rng.random(len(log_odds)) < (0.15 if switch else 0.0)] = NAN  # without a price, NaN is a tie
    starts = np.cumsum([0, *lengths])
    got = decode(log_odds, starts, switch=switch)
    expected = [naive_decode(log_odds[start:end], switch) for start, end in itertools.pairwise(starts)]
    assert got.tolist() == [state for states in expected for state in states]
    assert not switch or (got != (np.nan_to_num(log_odds) > 0)).any(), "the price changes something"


def test_a_document_is_decoded_alike_among_others_and_alone() -> None:
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, 30, 5, 17])
    log_odds = rng.normal(size=52)
    together = decode(log_odds, starts, switch=0.7)
    for start, end in itertools.pairwise(starts):
        alone = decode(log_odds[start:end], np.array([0, end - start]), switch=0.7)
        assert together[start:end].tolist() == alone.tolist()
    assert decode(np.zeros(0), np.array([0]), switch=1.0).shape == (0,)


def test_a_token_without_log_odds_is_not_memorized() -> None:
    log_odds = np.array([2.0, NAN, 2.0, -3.0])
    segmentation = Segmentation(bias=0.5, switch=1.0)
    assert decode(log_odds, np.array([0, 4]), switch=1.0).tolist() == [True, True, True, False]
    assert segmentation.memorized(log_odds, np.array([0, 4])).tolist() == [True, False, True, False]


def mask(text: str) -> np.ndarray:
    return np.array([character == "#" for character in text])


@pytest.mark.parametrize(
    ("memorized", "words", "gap", "expected"),
    [
        (".......", [-1, 0, 1, 2, 3, 4, 5], 1, []),
        ("...#...", [-1, 0, 1, 2, 3, 4, 5], 1, [(3, 4)]),
        ("...#...", [-1, 0, 1, 1, 1, 2, 3], 1, [(2, 5)]),  # whole words
        (".#...#.", [-1, 0, 1, 2, 3, 4, 5], 1, [(1, 2), (5, 6)]),  # three words between
        (".#..#..", [-1, 0, 1, 2, 3, 4, 5], 1, [(1, 2), (4, 5)]),  # two
        (".#.#...", [-1, 0, 1, 2, 3, 4, 5], 1, [(1, 4)]),  # one
        (".#.#...", [-1, 0, 1, 2, 3, 4, 5], 0, [(1, 2), (3, 4)]),
        (".##....", [-1, 0, 1, 2, 3, 4, 5], 0, [(1, 3)]),
        (".#....#", [-1, 0, 1, 1, 1, 1, 2], 1, [(1, 7)]),  # one word of many tokens
        (".#...#.", [-1, 0, 0, 0, 0, 0, 0], 0, [(1, 7)]),  # of one word
        (".#.....", [-1, 0, 0, -1, -1, 1, 1], 1, [(1, 3)]),  # special tokens are of no word
        ("......#", [-1, 0, 0, 0, -1, -1, 1], 1, [(6, 7)]),
        ("#######", [0, 0, 1, 1, 2, 2, 3], 1, [(0, 7)]),
    ],
)
def test_a_stretch_joins_over_a_gap_and_ends_at_words(
    memorized: str, words: list[int], gap: int, expected: list[tuple[int, int]]
) -> None:
    assert stretches(mask(memorized), np.array(words), gap=gap) == expected


def test_stretches_hold_all_memorized_tokens_whole_words_and_no_special_token_at_their_ends() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        words = np.concatenate([[-1], np.sort(rng.integers(8, size=14)), [-1]])
        memorized = (rng.random(16) < 0.3) & (words >= 0)
        found = stretches(memorized, words)
        inside = np.zeros(16, dtype=bool)
        for start, end in found:
            assert memorized[start:end].any()
            inside[start:end] = True
        assert not (memorized & ~inside).any()
        assert not inside[words < 0].any()
        assert not set(words[inside]) & set(words[~inside]), "no word is cut"
        for (_, end), (start, _) in itertools.pairwise(found):
            assert words[start] - words[end - 1] > 2


def segmented(seed: int, memorized: float, others: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds of documents with runs of memorized tokens, labels, and where documents start."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((20, 30))
    for row in labels:
        start = rng.integers(2, 20)
        row[start : start + rng.integers(2, 8)] = 1
    log_odds = np.where(labels > 0, memorized, others) + rng.uniform(-0.1, 0.1, size=labels.shape)
    return log_odds.ravel(), labels.ravel(), np.arange(0, 601, 30)


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0])
def test_the_segmentation_makes_good_for_a_bias(bias: float) -> None:
    log_odds, labels, starts = segmented(0, 0.15 - bias, -0.2 - bias)
    labels[::9] = NAN
    found = fit_segmentation(log_odds, labels, starts)
    assert found.bias == bias
    marked, known = found.memorized(log_odds, starts), ~np.isnan(labels)
    assert (marked[known] == (labels[known] > 0)).all()


def test_the_segmentation_learns_a_price_that_drops_single_tokens() -> None:
    log_odds, labels, starts = segmented(1, 1.5, -1.5)
    documents = log_odds.reshape(20, 30)
    documents[:, 0] = 0.45  # beside no other, and not memorized
    documents[:, 29] = 0.45
    found = fit_segmentation(log_odds, labels, starts)
    assert (found.memorized(log_odds, starts) == (labels > 0)).all()
    assert found.bias < 0 or found.switch > 0


def test_word_numbers_are_the_places_in_the_split_text(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = (
        "The door code of Ann is 904172.",
        "  Two spaces,\ttabs\n\nand lines \n",
        "Café naïve 🙂🙂 end 👩‍👩‍👧 Ünïcode_日本語 テスト",
        "no\u00a0break\u2003wide\u3000space",
        "one",
    )
    documents = Documents(tuple(Document(str(n), text) for n, text in enumerate(texts)))
    for text, own in zip(texts, tokenize_documents(documents, tokenizer), strict=True):
        numbers = word_numbers(own.offsets, text)
        assert numbers[0] == -1, "the special token"
        words, seen = text.split(), set()
        for (start, end), number in zip(own.offsets[1:], numbers[1:], strict=True):
            if text[start:end].isspace():
                continue
            assert words[number].startswith(text[:end].split()[-1]) or text[start:end].split()[0] in words[number]
            assert number == len(text[: start + 1].split()) - 1
            seen.add(int(number))
        assert seen == set(range(len(words)))


def test_tokens_inside_words_and_special_tokens_between_have_their_words_numbers() -> None:
    text = "Hello, big world"
    offsets = np.array([(0, 0), (0, 3), (3, 5), (5, 6), (0, 0), (7, 10), (11, 14), (14, 16), (0, 0)])
    assert word_numbers(offsets, text).tolist() == [-1, 0, 0, 0, -1, 1, 2, 2, -1]
    assert word_numbers(np.zeros((2, 2), int), "").tolist() == [-1, -1]


# shadows --------------------------------------------------------------------------------------------------------------


def memberships(documents: int, models: int, *, seed: int = 0, never: int = 0) -> np.ndarray:
    """(documents + never, models) which documents trained which models; the last `never` trained none."""
    own = Documents(tuple(Document(f"d{number}", "text") for number in range(documents)))
    halves = deal_halves(own, models, seed=seed)
    member = np.array([[document.group in half for half in halves] for document in own])
    return np.concatenate([member, np.zeros((never, models), dtype=bool)])


@pytest.mark.parametrize(("models", "target", "count"), [(8, 3, 2), (8, 0, 3), (6, 5, 1), (4, 1, 1)])
def test_shadows_are_judged_by_the_same_number_of_models_that_never_saw_the_document(
    models: int, target: int, count: int
) -> None:
    member = memberships(30, models, never=6)
    available = [model for model in range(models) if model != target]
    keys = [f"d{number}" for number in range(36)]
    shadows = deal_shadows(member, available=available, count=count, keys=keys)
    assert len({shadow.pairing for shadow in shadows}) == len(shadows), "each once"
    for shadow in shadows:
        document, model, judges = shadow.pairing.document, shadow.pairing.target, shadow.pairing.out
        assert shadow.member == member[document, model]
        assert len(set(judges)) == count
        others = {*judges} | ({shadow.spare} - {None})
        assert not others & {model, target}
        assert not member[document, sorted(others)].any()
        assert shadow.spare not in judges
        outside = [k for k in available if not member[document, k] and k != model]
        assert (shadow.spare is None) == (len(outside) == count)
    left_out = {(d, m) for d in range(36) for m in available} - {
        (shadow.pairing.document, shadow.pairing.target) for shadow in shadows
    }
    for document, model in left_out:
        assert sum(not member[document, k] for k in available if k != model) < count, "only where too few are left"
    assert {shadow.member for shadow in shadows} == {True, False}


def test_every_reference_of_an_audit_is_a_shadow_of_all_documents_and_trained_on_half() -> None:
    member = np.concatenate([memberships(40, 6), np.ones((40, 1), dtype=bool)], axis=1)  # the target is no reference
    shadows = deal_shadows(member, available=range(6), count=2, keys=[str(number) for number in range(40)])
    assert len(shadows) == 240
    assert sum(shadow.member for shadow in shadows) == 120
    assert all((shadow.spare is not None) == shadow.member for shadow in shadows)


def test_given_references_judge_besides() -> None:
    member = np.concatenate([memberships(10, 4), np.zeros((10, 1), dtype=bool)], axis=1)
    shadows = deal_shadows(member, available=range(4), count=1, keys=[str(n) for n in range(10)], always=[4])
    assert all(len(shadow.pairing.out) == 2 and shadow.pairing.out[-1] == 4 for shadow in shadows)
    assert all(shadow.pairing.target != 4 and shadow.spare != 4 for shadow in shadows)


def test_leaving_out_a_model_keeps_the_order_of_the_others() -> None:
    member = memberships(40, 10)
    drawn = []
    for document in range(40):
        order = out_of(member[document], available=range(10), count=2, key=f"d{document}")
        assert sorted(order) == np.flatnonzero(~member[document]).tolist()
        drawn.append(order)
        for left in range(10):
            rest = [model for model in order if model != left]
            some = [model for model in range(10) if model != left]
            assert out_of(member[document], available=some, count=2, key=f"d{document}") == rest
            assert out_of(member[document], available=range(10), count=2, key=f"d{document}", but=left) == rest
    assert len({tuple(order[:2]) for order in drawn}) > 15, "documents have orders of their own"


def test_fewer_models_than_judge_are_all_given() -> None:
    member = np.array([True, False, True, False])
    assert sorted(out_of(member, available=range(4), count=3, key="k")) == [1, 3]
    assert sorted(out_of(member, available=[0, 2], count=1, key="k")) == []


def test_taking_judgements_keeps_their_rows() -> None:
    pairings = [Pairing(0, 1, (2,)), Pairing(1, 0, (2,)), Pairing(0, 2, (1,))]
    words = [np.arange(3), np.arange(2)]
    values = np.array([0.0, 0.1, 0.2, 1.0, 1.1, 2.0, 2.1, 2.2])
    paired = PairedSignals(pairings, {"log_prob": values}, words)
    assert paired.starts.tolist() == [0, 3, 5, 8]
    taken = paired.take([2, 1])
    assert taken.pairings == [pairings[2], pairings[1]]
    assert taken.signals["log_prob"].tolist() == [2.0, 2.1, 2.2, 1.0, 1.1]
    assert taken.starts.tolist() == [0, 3, 5]
    assert paired.take([]).starts.tolist() == [0]


# a detector on simulated models ---------------------------------------------------------------------------------------

DOCUMENTS, REFERENCES, TARGET, TOKENS = 72, 6, 6, 33
SECRET, UNKNOWN = (9, 17), (23, 31)  # tokens that members know: a known span, and one that must be found
ORDINARY = (3, 7)  # a known span that nobody memorizes


class Simulation:
    """Log-probabilities of 6 references and a target, whose members know two stretches of their documents."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        of_target = rng.permutation(np.arange(DOCUMENTS) % 2 == 0)
        self.member = np.concatenate([memberships(DOCUMENTS, REFERENCES, seed=seed), of_target[:, None]], axis=1)
        self.groups = [f"group-{number}" for number in range(DOCUMENTS)]
        self.words = [np.concatenate([[-1], np.arange(TOKENS - 1) // 2])] * DOCUMENTS
        self.planted = np.zeros(TOKENS, dtype=bool)
        self.planted[slice(*SECRET)] = self.planted[slice(*UNKNOWN)] = True
        difficulty = rng.gamma(4.0, 1.0, size=(DOCUMENTS, 1, TOKENS))
        loss = difficulty + 0.4 * rng.normal(size=(DOCUMENTS, REFERENCES + 1, TOKENS))
        learned = rng.gamma(8.0, 0.35, size=loss.shape) * self.planted * self.member[:, :, None]
        self.log_prob = -np.maximum(0.02, loss - learned)
        self.log_prob[:, :, 0] = NAN
        self.entropy = difficulty[:, 0] + 0.3 * rng.normal(size=(DOCUMENTS, TOKENS))
        self.shadows = deal_shadows(self.member, available=range(REFERENCES), count=2, keys=self.groups)
        self.known = [[SECRET]] * DOCUMENTS

    def judged(self, pairings: list[Pairing]) -> PairedSignals:
        columns: dict[str, list[np.ndarray]] = {}
        for pairing in pairings:
            own = self.log_prob[pairing.document, pairing.target]
            references = self.log_prob[pairing.document, list(pairing.out)].T
            out = np.log(np.exp(references).mean(1))
            silent = np.where(np.isnan(own), NAN, 0.0)
            for name, column in {
                "log_prob": own,
                "rank": 1 + np.floor(np.minimum(-own, 5)),
                "top_log_prob": np.maximum(own, -1.0),
                "entropy": self.entropy[pairing.document] + silent,
                "log_prob_std": 1 + silent,
                "log_prob_out": out,
                "entropy_out": self.entropy[pairing.document] + silent,
                "log_ratio": own - out,
                "kl": 0.1 + silent,
                "log_ratio_variance": 0.3 + silent,
                "log_prob_references": references,
            }.items():
                columns.setdefault(name, []).append(column)
        return PairedSignals(pairings, {name: np.concatenate(parts) for name, parts in columns.items()}, self.words)

    def fit(self, shadows: list[Shadow] | None = None, known: list[list[tuple[int, int]]] | None = None) -> Detector:
        shadows = self.shadows if shadows is None else shadows
        everything = self.judged([shadow.pairing for shadow in self.shadows])
        places = {pairing: place for place, pairing in enumerate(everything.pairings)}
        return fit_detector(
            shadows,
            everything.take([places[shadow.pairing] for shadow in shadows]),
            spare_log_prob={
                (document, model): self.log_prob[document, model]
                for document in range(DOCUMENTS)
                for model in range(REFERENCES)
            },
            known=self.known if known is None else known,
            groups=self.groups,
        )

    def of_target(self) -> PairedSignals:
        pairings = []
        for document, key in enumerate(self.groups):
            out = out_of(self.member[document], available=range(REFERENCES), count=2, key=key)
            pairings.append(Pairing(document, TARGET, tuple(sorted(out[:2]))))
        return self.judged(pairings)


def test_where_hardly_a_token_is_memorized_by_a_nat_the_farthest_ones_are_learnt_from() -> None:
    faint = Simulation(3)
    rng = np.random.default_rng(4)
    unseen = -rng.gamma(4.0, 1.0, size=faint.log_prob.shape[::2])[:, None, :]  # of a document's tokens, for all models
    learned = 0.45 * faint.planted * faint.member[:, :, None]
    faint.log_prob = np.minimum(unseen + 0.1 * rng.normal(size=faint.log_prob.shape) + learned, -0.02)
    faint.log_prob[:, :, 0] = NAN
    detector = faint.fit()
    assert 0.1 < detector.quality["memorized_nats"] < 0.75
    folds, member = fold_of(faint.groups), faint.member[:, TARGET]
    paired = faint.of_target()
    assert roc_auc_score(member, detector.span_log_odds(paired, spans_of_all(SECRET), folds)) > 0.9
    log_odds = detector.token_log_odds(paired, folds).reshape(DOCUMENTS, TOKENS)[:, 1:]
    planted = np.broadcast_to(faint.planted, (DOCUMENTS, TOKENS))[:, 1:] & member[:, None]
    assert roc_auc_score(planted.ravel(), log_odds.ravel()) > 0.85
    faint.log_prob = np.where(np.isnan(faint.log_prob), NAN, unseen)
    with pytest.raises(MitigateError, match="are too few to fit"):
        faint.fit()  # nobody knows anything


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation(0)


@pytest.fixture(scope="module")
def detector(simulation: Simulation) -> Detector:
    return simulation.fit()


def spans_of_all(span: tuple[int, int]) -> np.ndarray:
    return np.array([(place, *span) for place in range(DOCUMENTS)])


def test_planted_spans_have_higher_log_odds_and_probabilities_that_are_true(
    simulation: Simulation, detector: Detector
) -> None:
    folds, member = fold_of(simulation.groups), simulation.member[:, TARGET]
    log_odds = detector.span_log_odds(simulation.of_target(), spans_of_all(SECRET), folds)
    assert roc_auc_score(member, log_odds) > 0.97
    assert expected_calibration_error(1 / (1 + np.exp(-log_odds)), member) < 0.1
    ordinary = detector.span_log_odds(simulation.of_target(), spans_of_all(ORDINARY), folds)
    assert roc_auc_score(member, ordinary) > 0.97, "the secret beside it tells that its document was seen"
    assert detector.quality["ece"] < 0.1
    assert detector.quality["memorized_nats"] == MEMORIZED == 1.0
    assert detector.quality["spans"] == len(simulation.shadows)


def test_known_spans_of_non_members_have_valid_p_values(simulation: Simulation, detector: Detector) -> None:
    folds, member = fold_of(simulation.groups), simulation.member[:, TARGET]
    log_odds = detector.span_log_odds(simulation.of_target(), spans_of_all(SECRET), folds)
    p = p_values(log_odds[~member], detector.null["known"])
    for level in (0.05, 0.1, 0.25, 0.5):
        assert (p <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / len(p))
    assert len(detector.null["known"]) == detector.searched["known"] == sum(not s.member for s in simulation.shadows)
    q = detector.q(log_odds, kind="known", searched=DOCUMENTS)
    assert (~member[q <= 0.1]).mean() <= 0.15
    assert (q <= 0.1)[member].mean() > 0.8


def test_the_marked_tokens_are_those_that_were_planted(simulation: Simulation, detector: Detector) -> None:
    paired, folds = simulation.of_target(), fold_of(simulation.groups)
    log_odds = detector.token_log_odds(paired, folds)
    assert (np.isnan(log_odds) == np.isnan(paired.signals["log_prob"])).all()
    marked, found = detector.find(paired, log_odds)
    truth = (simulation.member[:, TARGET, None] & simulation.planted).ravel()
    f1 = 2 * (marked & truth).sum() / (marked.sum() + truth.sum())
    assert f1 > 0.8
    for place in np.flatnonzero(simulation.member[:, TARGET]):
        inside = np.zeros(TOKENS, dtype=bool)
        for start, end in found[place]:
            inside[start:end] = True
        assert inside[simulation.planted].mean() > 0.5
        assert not (marked.reshape(-1, TOKENS)[place] & ~inside).any()


def test_stretches_selected_without_known_spans_are_seldom_of_non_members(
    simulation: Simulation, detector: Detector
) -> None:
    paired, folds = simulation.of_target(), fold_of(simulation.groups)
    _, found = detector.find(paired, detector.token_log_odds(paired, folds))
    spans = np.array([(place, *unit) for place, units in enumerate(found) for unit in units])
    searched = float((~np.isnan(paired.signals["log_prob"])).sum())
    q = detector.q(detector.span_log_odds(paired, spans, folds), kind="found", searched=searched)
    selected = spans[q <= 0.1]
    member = simulation.member[:, TARGET]
    assert (~member[selected[:, 0]]).mean() <= 0.15
    covered = {int(place) for place, start, end in selected if start < UNKNOWN[1] and end > UNKNOWN[0]}
    assert len(covered & set(np.flatnonzero(member).tolist())) > 0.8 * member.sum()


def test_a_detector_without_known_spans_learns_from_what_it_finds(simulation: Simulation) -> None:
    known: list[list[tuple[int, int]]] = [[]] * DOCUMENTS
    detector = simulation.fit(known=known)
    log_odds = detector.span_log_odds(simulation.of_target(), spans_of_all(UNKNOWN), fold_of(simulation.groups))
    assert roc_auc_score(simulation.member[:, TARGET], log_odds) > 0.95


@pytest.mark.parametrize("member", [True, False])
def test_shadows_of_one_kind_only_are_refused(simulation: Simulation, member: bool) -> None:
    with pytest.raises(MitigateError, match=r"calibration: .* examples among the shadows are too few"):
        simulation.fit([shadow for shadow in simulation.shadows[:200] if shadow.member is member])


def test_members_without_a_spare_reference_are_refused(simulation: Simulation) -> None:
    with pytest.raises(MitigateError, match=r"calibration: .* examples among the shadows are too few"):
        simulation.fit([replace(shadow, spare=None) for shadow in simulation.shadows])


def test_no_shadows_are_refused(simulation: Simulation) -> None:
    with pytest.raises(MitigateError, match=r"calibration: .* examples among the shadows are too few"):
        simulation.fit([])
