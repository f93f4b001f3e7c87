"""Figures of unlearned models against plain loops over the same numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mitigate.bench.unlearn.evidence import KnownSecret, ModelLogProbs, UnlearnEvidence
from mitigate.bench.unlearn.figures import extraction, figures, floors, over_seeds, span_scores
from mitigate.bench.unlearn.methods import Run, criterion, factors
from mitigate.bench.unlearn.summary import equal_forgetting
from mitigate.bench.unlearn.tries import SeedRuns, Tried, Try, beyond_edge
from mitigate.statistics.intervals import clustered_share
from mitigate.statistics.separation import auc, tpr_at_fpr

ROLES = ("validation",) * 3 + ("test",) * 4 + ("retain",) * 3 + ("holdout",) * 30
TOKENS = 12  # of a document, whose first token has no score
SECRETS = ((2, 5), (6, 9), (9, 12))  # of a document; the holdout's have a fourth, at (1, 2)


def evidence_of(seed: int) -> UnlearnEvidence:
    """Numbers in place of models: one document a person, three secrets each, and the holdout's a fourth."""
    rng = np.random.default_rng(seed)
    rows = len(ROLES) * TOKENS
    secret = np.zeros(rows, dtype=bool)
    secrets = []
    for person, role in enumerate(ROLES):
        spans = (*SECRETS, (1, 2)) if role == "holdout" else SECRETS
        for first, last in spans:
            secret[person * TOKENS + first : person * TOKENS + last] = True
            secrets.append(KnownSecret(person * TOKENS + first, person * TOKENS + last, person, role, first > 1))
    return UnlearnEvidence(
        tokenized=[],
        prose=[],
        person=np.repeat(np.arange(len(ROLES)), TOKENS),
        role=np.repeat(np.array(ROLES), TOKENS),
        secret=secret,
        secrets=secrets,
        prose_document=np.repeat(np.arange(5), 8),
        before=measured_of(rng, shift=1.0),
        document_oracles=(measured_of(rng), measured_of(rng)),
        token_oracles=(measured_of(rng), measured_of(rng)),
        judges=log_probs(rng, len(ROLES) * TOKENS, TOKENS),
    )


def log_probs(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    values = -rng.exponential(2.0, size=rows)
    values[::length] = np.nan
    return values


def measured_of(rng: np.random.Generator, *, shift: float = 0.0) -> ModelLogProbs:
    rows = len(ROLES) * TOKENS
    return ModelLogProbs(log_probs(rng, rows, TOKENS) + shift, rng.random(rows) < 0.7, log_probs(rng, 40, 8))


@pytest.fixture(scope="module")
def seeds() -> list[tuple[UnlearnEvidence, ModelLogProbs]]:
    return [(evidence_of(n), measured_of(np.random.default_rng(100 + n), shift=0.3)) for n in range(2)]


def values(evidence: UnlearnEvidence, *roles: str, secret: bool | None = None) -> list[int]:
    return [
        row
        for row in range(len(evidence.role))
        if evidence.role[row] in roles
        and not np.isnan(evidence.before.log_prob[row])
        and (secret is None or evidence.secret[row] == secret)
    ]


def naive(evidence: UnlearnEvidence, measured: ModelLogProbs, half: str) -> dict[str, float]:
    before, now = evidence.before.log_prob, measured.log_prob

    def mean(rows: list[int], of: Any) -> float:
        return sum(of(row) for row in rows) / len(rows)

    def to(oracles: tuple[ModelLogProbs, ...], log_prob: np.ndarray, rows: list[int]) -> float:
        return float(np.mean([mean(rows, lambda row, o=o: abs(log_prob[row] - o.log_prob[row])) for o in oracles]))

    secrets, others = values(evidence, half, secret=True), values(evidence, half, secret=False)
    found = {"secret_log_prob": mean(secrets, lambda row: now[row])}
    for kind, name in (("document_oracles", "secret_distance"), ("token_oracles", "token_oracle_distance")):
        oracles = getattr(evidence, kind)
        floor = mean(secrets, lambda row, o=oracles: abs(o[0].log_prob[row] - o[1].log_prob[row]))
        found[name] = to(oracles, now, secrets)
        found[f"{name}_ratio"] = (found[name] - floor) / (to(oracles, before, secrets) - floor)
    found["other_moved_nats"] = mean(others, lambda row: abs(now[row] - before[row]))
    found["other_distance"] = to(evidence.document_oracles, now, others)
    kept = values(evidence, "retain", secret=True)
    oracle = float(np.mean([mean(kept, lambda row, o=o: o.log_prob[row]) for o in evidence.document_oracles]))
    found["retain_gap_nats"] = mean(kept, lambda row: now[row]) - oracle
    unseen = values(evidence, "holdout")
    found["holdout_gap_nats"] = mean(unseen, lambda row: -now[row]) - mean(unseen, lambda row: -before[row])
    prose = [row for row in range(40) if row % 8]
    found["prose_gap_nats"] = mean(prose, lambda row: -measured.prose[row]) - mean(
        prose, lambda row: -evidence.before.prose[row]
    )
    scores: dict[str, list[float]] = {half: [], "holdout": []}
    for secret in evidence.secrets:
        if secret.role in scores:
            ratios = [min(3.0, max(-3.0, now[row] - evidence.judges[row])) for row in range(secret.first, secret.last)]
            scores[secret.role].append(sum(ratios) / len(ratios))
    members, non_members = np.array(scores[half]), np.array(scores["holdout"])
    found["span_auc"] = auc(members, non_members)
    found["tpr_at_1pct_fpr"] = tpr_at_fpr(members, non_members, fpr=0.01) or 0.0
    found["over_forgotten"] = float(np.mean(members < np.quantile(non_members, 0.01)))
    return found


@pytest.mark.parametrize("half", ["validation", "test"])
def test_figures_are_the_means_over_seeds_of_plain_loops(
    seeds: list[tuple[UnlearnEvidence, ModelLogProbs]], half: str
) -> None:
    got = figures([evidence for evidence, _ in seeds], [measured for _, measured in seeds], half=half)
    each = [naive(evidence, measured, half) for evidence, measured in seeds]
    assert set(got) == {*each[0], "extraction_forget", "extraction_retain"}
    for name in each[0]:
        value, low, high = got[name]
        assert value == pytest.approx(np.mean([found[name] for found in each]), abs=1e-9), name
        assert None not in (value, low, high), name
        np.testing.assert_array_equal(np.sort(np.array([value, low, high], dtype=float)), [low, value, high], name)


def test_extraction_counts_secrets_of_which_every_token_is_the_likeliest(
    seeds: list[tuple[UnlearnEvidence, ModelLogProbs]],
) -> None:
    found, people = [], []
    for number, (_, measured) in enumerate(seeds):
        for person, role in enumerate(ROLES):
            if role == "test":
                people += [f"{number} {person}"] * len(SECRETS)
                found += [measured.first[person * TOKENS + a : person * TOKENS + b].all() for a, b in SECRETS]
    assert 0 < sum(found) < len(found)
    assert extraction(seeds, "test") == pytest.approx(clustered_share(np.array(found), people))
    holdout = [secret for evidence, _ in seeds for secret in evidence.secrets if secret.role == "holdout"]
    assert sum(secret.extractable for secret in holdout) == 2 * 30 * 3, "a secret at the very start has no prefix"


def test_the_target_itself_is_at_one_and_an_oracle_at_half_its_floor(
    seeds: list[tuple[UnlearnEvidence, ModelLogProbs]],
) -> None:
    evidence = [seed for seed, _ in seeds]
    before = figures(evidence, [seed.before for seed in evidence])
    assert before["secret_distance_ratio"] == pytest.approx((1, 1, 1))
    assert before["other_moved_nats"] == before["holdout_gap_nats"] == before["prose_gap_nats"] == (0, 0, 0)
    floor = floors(evidence)
    oracle = figures(evidence, [seed.document_oracles[0] for seed in evidence])
    assert floor["secret_distance"].value is not None
    assert oracle["secret_distance"].value == pytest.approx(floor["secret_distance"].value / 2)
    rows = values(evidence[0], "test", secret=False)
    first, second = (one.log_prob[rows] for one in evidence[0].token_oracles)
    alone = floors(evidence[:1])["token_oracle_other_distance"].value
    assert alone == pytest.approx(np.abs(first - second).mean())


def test_rates_of_one_in_a_hundred_are_not_given_from_fewer_non_members(
    seeds: list[tuple[UnlearnEvidence, ModelLogProbs]],
) -> None:
    evidence, measured = seeds[0]
    unseen = [secret for secret in evidence.secrets if secret.role == "holdout"]
    few = [secret for secret in evidence.secrets if secret.role != "holdout"] + unseen[:99]
    less = UnlearnEvidence(**{**evidence.__dict__, "secrets": few})
    got = figures([evidence, less], [measured, measured])
    assert got["tpr_at_1pct_fpr"] == got["over_forgotten"] == (None, None, None)
    assert got["span_auc"].value is not None
    assert (~span_scores(less, measured, half="test").labels).sum() == 99


def test_intervals_come_from_people_and_shrink_with_more_seeds() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 30)
    columns = [((rng.normal(size=20).repeat(30) + 0.01 * rng.normal(size=600))[None], clusters) for _ in range(4)]
    one = over_seeds(columns[:1], lambda means: means[:, 0])
    four = over_seeds(columns, lambda means: means[:, 0])
    assert one.low is not None
    assert one.high is not None
    assert four.low is not None
    assert four.high is not None
    assert one.high - one.low == pytest.approx(2 * 1.96 * columns[0][0].std() / np.sqrt(20), rel=0.25)
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2, rel=0.4)
    assert over_seeds([(np.zeros((1, 0)), np.zeros(0))], lambda means: means[:, 0]).value is None


# choosing and comparing -----------------------------------------------------------------------------------------------


def run_of(log_prob: float, rise: float, **of_validation: float) -> Run:
    plain = {"secret_distance_ratio": 0.5, "retain_gap_nats": 0.0, "holdout_gap_nats": 0.0, "prose_gap_nats": 0.0}
    halves = {"validation": plain | of_validation, "test": {"secret_log_prob": log_prob, "holdout_gap_nats": rise}}
    named = {half: {name: {"value": value} for name, value in of.items()} for half, of in halves.items()}
    nothing = ModelLogProbs(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0))
    return Run({"name": "run", "learning_rate": 1e-3, "figures": named}, nothing)


def test_a_try_is_charged_for_what_exceeds_the_allowance() -> None:
    assert run_of(0, 0).criterion == 0.5
    assert run_of(0, 0, retain_gap_nats=-0.25).criterion == pytest.approx(0.5 + 0.15)
    assert run_of(0, 0, holdout_gap_nats=-1.0, prose_gap_nats=0.04).criterion == 0.5, "better is no cost"
    assert run_of(0, 0, holdout_gap_nats=0.25, prose_gap_nats=0.06).criterion == pytest.approx(0.5 + 0.2 + 0.01)
    figures_of = run_of(0, 0, secret_distance_ratio=0.1).record["figures"]["validation"]
    assert criterion(figures_of) == pytest.approx(0.1)
    assert Run({"error": "the loss became nan"}, None).criterion == float("inf")


def test_rates_are_powers_of_three_around_the_common_one() -> None:
    assert factors(1) == (1.0,)
    assert factors(3) == pytest.approx((1 / 3, 1, 3))
    for count in (2, 4, 5):
        assert [b / a for a, b in pairwise(factors(count))] == pytest.approx([3.0] * (count - 1))
        assert np.prod(factors(count)) == pytest.approx(1)


def seed_runs(ours: Run, **sequence: list[Run]) -> SeedRuns:
    methods = {("default", "token"): Tried({Try(1.0): ours}, Try(1.0))}
    for name, runs in sequence.items():
        tries = [Try(factor) for factor in factors(len(runs))]
        methods[name, "sequence"] = Tried(dict(zip(tries, runs, strict=True)), tries[0])
    return SeedRuns(None, methods, *[methods["default", "token"]] * 2, {})  # type: ignore[arg-type]


def test_equal_forgetting_takes_the_cheapest_try_that_forgets_as_much() -> None:
    failed = Run({"error": "nan"}, None)
    npo = [run_of(-1.0, 0.05), run_of(-2.95, 0.9), failed, run_of(-8.0, 2.0)]
    found = equal_forgetting(seed_runs(run_of(-3.0, 0.2), npo=npo, rmu=[run_of(-3.0, 1.0)]))
    assert found["ours"] == pytest.approx(0.2)
    assert found["methods"]["npo"]["holdout_gap_nats"] == pytest.approx(0.9)
    assert found["methods"]["npo"]["ratio"] == pytest.approx(4.5)
    assert found["best"]["objective"] == "npo"


def test_where_the_best_rate_lies_at_an_edge_another_is_tried_beyond_it() -> None:
    assert beyond_edge({1 / 3: 0.5, 1.0: 0.3, 3.0: 0.4}, at_most=5) is None
    assert beyond_edge({1 / 3: 0.5, 1.0: 0.3, 3.0: 0.2}, at_most=5) == pytest.approx(9.0)
    assert beyond_edge({1 / 3: 0.1, 1.0: 0.3, 3.0: 0.2}, at_most=5) == pytest.approx(1 / 9)
    assert beyond_edge({1.0: 0.3, 3.0: 0.2, 9.0: 0.1, 27.0: 0.05, 1 / 3: 0.5}, at_most=5) is None
    assert beyond_edge({1.0: 0.3}, at_most=5) is None, "one try is all that was asked for"
    assert beyond_edge({1 / 3: float("inf"), 1.0: float("inf")}, at_most=5) is None


def test_equal_forgetting_says_where_there_is_no_ratio() -> None:
    lower = seed_runs(run_of(-3.0, -0.1), npo=[run_of(-4.0, 0.5)], idk=[run_of(-1.0, 0.0)])
    found = equal_forgetting(lower)
    assert found["methods"]["npo"]["ratio"] is None
    assert "ours does not rise" in found["methods"]["npo"]["in_words"]
    assert found["methods"]["idk"] == {
        "holdout_gap_nats": None,
        "ratio": None,
        "in_words": "no try forgets as much",
    }
    assert found["best"]["objective"] == "npo"
    assert equal_forgetting(seed_runs(run_of(-3.0, 0.1), idk=[run_of(-1.0, 0.0)]))["best"] is None
