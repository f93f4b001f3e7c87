"""The two studies of the benchmark, on tiny worlds."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mitigate.artifacts.files import read_json
from mitigate.bench.ablation.evidence import Variant, variants
from mitigate.bench.ablation.run import bench_ablation
from mitigate.bench.population import run as population
from mitigate.bench.population.evidence import TOKEN_BASED, Sequences, fresh_people, set_aside
from mitigate.bench.population.figures import population_results
from mitigate.bench.population.run import bench_population
from mitigate.bench.rates import compare, rates
from mitigate.bench.settings import WorldSettings
from mitigate.bench.world import make_world
from mitigate.detection.scores.token import TOKEN_SCORES
from mitigate.detection.signals.compute import token_signals
from mitigate.documents import Document, Documents, Span, read_documents
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.lab.settings import TinyModel
from mitigate.models.settings import Schedule
from mitigate.models.store import ModelStore
from mitigate.statistics.roc import Scored, over_targets, weighted_auc
from mitigate.statistics.separation import auc
from mitigate.tokens.tokenization import span_tokens, tokenize_documents

pytestmark = pytest.mark.usefixtures("few_trees")

SETTINGS = WorldSettings(
    models=4,
    truth_models=2,
    people={0: 4, 1: 20},
    schedule=Schedule(epochs=2, learning_rate=3e-3, batch_size=8),
    base=TinyModel(vocabulary=400, hidden_size=16, layers=1, heads=2, context=512, schedule=Schedule(epochs=1)),
    base_documents=100,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the models of one seed, and the results of both studies."""
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(population, "NON_MEMBERS", 6)
        bench_population(out, references=1, sizes=(2, 10), settings=SETTINGS, device="cpu")
    bench_ablation(out, references=1, targets=2, settings=SETTINGS, device="cpu")
    return out


@pytest.fixture(scope="module")
def sequences() -> list[Sequences]:
    """Two seeds of 60 documents and 40 population documents; members are likelier under their models."""
    return [_sequences(seed) for seed in (0, 1)]


def _sequences(seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    documents, others, models, references = 60, 40, 4, 2
    member = np.array([rng.permutation([True, True, False, False]) for _ in range(documents)])
    member[40:] = False
    length = rng.integers(20, 40, size=documents)
    population_length = rng.integers(20, 40, size=others)
    shift = rng.normal(0, 0.2, size=models)  # what a model makes of everything: it differs between targets
    log_prob = (rng.normal(-2.5, 0.5, (documents, 1)) + shift + 0.04 * member) * length[:, None]
    out = np.zeros((documents, models, references), dtype=int)
    for document in range(documents):
        for target in range(models):
            free = [model for model in range(models) if model != target and not member[document, model]]
            out[document, target] = rng.choice(free, references, replace=len(free) < references)
    return Sequences(
        member=member,
        clusters=np.arange(documents) // 2,
        log_prob=log_prob + rng.normal(0, 1, log_prob.shape),
        length=length,
        out=out,
        population_log_prob=(rng.normal(-2.5, 0.5, (others, 1)) + rng.normal(shift, 0.1, (others, models)))
        * population_length[:, None],
        population_length=population_length,
        population_out=np.array([[[m for m in range(models) if m != t][:references] for t in range(models)]] * others),
        token_based={name: rng.normal(size=member.shape) + member for name in TOKEN_BASED},
        seconds={"documents": 1.0, "10": 1.0, "40": 2.0} | dict.fromkeys(TOKEN_BASED, 0.1),
    )


@pytest.fixture(scope="module")
def results(sequences: list[Sequences]) -> dict[str, Any]:
    return population_results(sequences, sizes=(10, 40))


def _rows(results: dict[str, Any], score: str, **keys: object) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["score"] == score and all(row[k] == v for k, v in keys.items())]


def test_population_results_have_every_score_size_and_reading(bench: Path) -> None:
    results = read_json(bench / "population.json")
    assert results["sizes"] == [2, 10]
    sequence_scores = {"informia", "informia_mean", "rmia", "log_ratio_sequence"}
    assert {row["score"] for row in results["rows"]} == sequence_scores | set(TOKEN_BASED)
    assert len(_rows(results, "rmia")) == 2 * 2 * 2 * 2  # statistics, a, γ, sizes
    for row in results["rows"]:
        assert 0 <= row["per_target"]["auc"]["low"] <= row["per_target"]["auc"]["high"] <= 1
        assert row["pooled"]["tpr_at_0.1pct_fpr"]["value"] is None  # too few non-members to tell
    assert results["forward_seconds"]["2"] < results["forward_seconds"]["10"]
    assert all(sentence.endswith(".") for sentence in results["findings"])
    assert results["settings"]["non_members_added"] == 6
    assert results["documents"] == [44 + 6]


def test_rmia_has_at_most_one_value_more_than_population_documents(results: dict[str, Any]) -> None:
    rows = _rows(results, "rmia", population=10)
    assert rows
    assert all(row["values"] <= 11 for row in rows)
    assert all(row["values"] > 11 for row in _rows(results, "informia", population=10))


def test_informia_orders_one_targets_documents_alike_whatever_the_population(results: dict[str, Any]) -> None:
    for score in ("informia", "informia_mean"):
        for statistic in ("mean", "sum"):
            for a in (1.0, 0.3):
                few, many = _rows(results, score, statistic=statistic, a=a)
                for rate, figure in few["per_target"].items():
                    assert figure == pytest.approx(many["per_target"][rate])


def test_the_constant_of_informia_matters_under_one_threshold(results: dict[str, Any]) -> None:
    few, many = _rows(results, "informia_mean", statistic="mean", a=1.0)
    (without,) = _rows(results, "log_ratio_sequence", statistic="mean", a=1.0)
    assert few["pooled"] != many["pooled"]
    assert many["pooled"]["auc"]["value"] > without["pooled"]["auc"]["value"]  # the targets differ by a shift
    assert many["per_target"]["auc"]["value"] == pytest.approx(without["per_target"]["auc"]["value"])


def test_sequence_figures_equal_a_naive_computation(sequences: list[Sequences], results: dict[str, Any]) -> None:
    ratios: dict[str, list[float]] = {"per_target": [], "pooled": [], "rmia": []}
    for seed in sequences:
        scores, shares = np.empty(seed.member.T.shape), np.empty(seed.member.T.shape)
        for target in range(4):

            def ratio(log_prob: np.ndarray, length: np.ndarray, out: np.ndarray, target: int = target) -> np.ndarray:
                mean = log_prob / length[:, None]
                return np.array(
                    [
                        row[target] - np.log(np.mean(np.exp(row[judges[target]])))
                        for row, judges in zip(mean, out, strict=True)
                    ]
                )

            x = ratio(seed.log_prob, seed.length, seed.out)
            z = ratio(seed.population_log_prob, seed.population_length, seed.population_out)
            scores[target] = x - z.mean()
            shares[target] = [(value > z).mean() for value in x]
            member = seed.member[:, target]
            ratios["per_target"].append(auc(x[member], x[~member]))
            ratios["rmia"].append(auc(shares[target][member], shares[target][~member]))
        ratios["pooled"].append(auc(scores[seed.member.T], scores[~seed.member.T]))
    (row,) = _rows(results, "informia_mean", statistic="mean", a=1.0, population=40)
    assert row["per_target"]["auc"]["value"] == pytest.approx(np.mean(ratios["per_target"]), abs=1e-6)
    assert row["pooled"]["auc"]["value"] == pytest.approx(np.mean(ratios["pooled"]), abs=1e-6)
    (row,) = _rows(results, "rmia", statistic="mean", a=1.0, gamma=1.0, population=40)
    assert row["per_target"]["auc"]["value"] == pytest.approx(np.mean(ratios["rmia"]), abs=1e-6)


def test_a_paired_difference_is_that_of_the_means_and_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([True, False], 200)
    clusters = np.arange(400) // 4
    ours = np.repeat(rng.normal(size=100), 4) + rng.normal(size=400) + labels
    one = [[Scored(ours, labels, clusters)]]
    other = [[Scored(ours - 0.3 * labels, labels, clusters)]]
    figures = [over_targets(units, weighted_auc) for units in (one, other)]
    gap, low, high = map(float, re.findall(r"[+-]\d\.\d{3}", compare(one, other, "auc")))
    assert gap == pytest.approx(figures[0].value - figures[1].value, abs=6e-4)
    assert high - low < min(figure.high - figure.low for figure in figures) / 2
    assert compare(one, other, "auc").startswith("wins")
    assert compare(other, one, "auc").startswith("loses")
    assert compare(one, one, "auc").startswith("is even")


def test_rates_are_the_figures_over_targets(sequences: list[Sequences]) -> None:
    units = [
        [Scored(seed.log_prob[:, target], seed.member[:, target], seed.clusters) for target in range(4)]
        for seed in sequences
    ]
    assert rates(units)["auc"] == pytest.approx(over_targets(units, weighted_auc)._asdict(), abs=1e-6)


def test_one_in_a_thousand_needs_a_thousand_non_members_of_every_target() -> None:
    def units(non_members: int) -> list[list[Scored]]:
        labels = np.arange(non_members + 10) < 10
        return [[Scored(labels + 0.0, labels, np.arange(len(labels)))]]

    assert rates(units(999))["tpr_at_0.1pct_fpr"]["value"] is None
    assert rates(units(1000))["tpr_at_0.1pct_fpr"]["value"] == 1.0


def test_fresh_people_share_no_secret_and_no_id_with_the_world(bench: Path) -> None:
    world = make_world(bench, seed=0, settings=SETTINGS, device="cpu")
    fresh = fresh_people(200, seed=0)

    def secrets(documents: Documents) -> set[str]:
        return {document.text[span.start : span.end] for document in documents for span in document.spans}

    assert not secrets(fresh) & secrets(world.documents)
    assert not {document.id for document in fresh} & {document.id for document in world.documents}
    assert len({document.group for document in fresh}) == 200


def test_a_third_of_a_files_groups_are_set_aside_and_train_no_model(tmp_path: Path) -> None:
    documents = Documents(tuple(Document(str(n), f"Document number {n}.", group=f"g{n // 2}") for n in range(60)))
    write_jsonl(documents, tmp_path / "all.jsonl")
    trained, aside = set_aside(tmp_path / "all.jsonl", tmp_path / "out")
    kept = {document.group for document in read_documents(trained)}
    assert len(kept) == 20
    assert len({document.group for document in aside}) == 10
    assert not kept & {document.group for document in aside}
    assert set_aside(tmp_path / "all.jsonl", tmp_path / "out") == (trained, aside)
    write_jsonl(documents[:30], tmp_path / "other.jsonl")
    with pytest.raises(MitigateError, match=r"documents-trained\.jsonl: other documents than before"):
        set_aside(tmp_path / "other.jsonl", tmp_path / "out")


def test_what_is_audited_of_documents_set_aside_or_kept_stays_so(tmp_path: Path) -> None:
    texts = [f"Question {n}? Answer {n}." for n in range(9)]
    documents = Documents(
        tuple(Document(f"d{n}", text, audited=((text.index("A"), len(text)),)) for n, text in enumerate(texts))
    )
    write_jsonl(documents, tmp_path / "all.jsonl")
    trained, aside = set_aside(tmp_path / "all.jsonl", tmp_path / "out")
    assert sorted([*read_documents(trained), *aside], key=lambda document: document.id) == list(documents)


def test_the_population_study_of_a_file_reuses_its_models(bench: Path, tmp_path: Path) -> None:
    texts = [f"Case {n}: the caller left number 55{n:03d} and will write again on day {n % 7}." for n in range(36)]
    write_jsonl(
        Documents(tuple(Document(f"d{n}", text, spans=(Span(0, 4, "x"),)) for n, text in enumerate(texts))),
        tmp_path / "file.jsonl",
    )

    def run() -> dict[str, Any]:
        return bench_population(
            tmp_path / "out",
            documents=tmp_path / "file.jsonl",
            references=1,
            sizes=(5, 1000),
            settings=SETTINGS,
            base=str(bench / "base"),
            device="cpu",
        )

    first = run()
    times = _times(tmp_path / "out" / "seed-0")
    assert first["sizes"] == [5, 12]  # cut to what there is
    assert first["documents"] == [24]
    second = run()
    assert _times(tmp_path / "out" / "seed-0") == times
    assert _without_seconds(second) == _without_seconds(first)


def _times(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def _without_seconds(results: dict[str, Any]) -> dict[str, Any]:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in results["rows"]]
    return {**results, "rows": rows, "forward_seconds": None}


def test_variants_change_one_part_at_a_time() -> None:
    chosen = variants(8, references=3, base=True, lora=True)
    assert chosen[0] == Variant("K", 3)
    assert len(set(chosen)) == len(chosen)
    counts = {variant.count for variant in chosen if variant.references == "K"}
    assert counts == {1, 2, 3}
    assert {variant.count for variant in variants(18, references=3, base=False, lora=False)} == {1, 2, 3, 4, 8}
    for variant in chosen[1:]:
        changes = [variant.references != "K" or variant.count != 3, variant.temperature != 1, variant.offline_a != 1]
        if variant != Variant("lora", 3):
            assert sum(changes) == 1


def test_ablation_results_have_every_table(bench: Path) -> None:
    results = read_json(bench / "ablation.json")
    assert list(results["temperature"]) == ["0.5", "1", "2"]
    assert list(results["offline_a"]) == ["0.5", "0.9", "1"]
    assert list(results["references"]) == ["1"]
    assert set(results["lora"]) == {"full", "lora", "seeds"}
    assert set(results["aggregation"]["informia"]) == {"mean", "min_k", "clipped_mean", "max_window_4"}
    assert list(results["copies"]["loss"]) == ["1"]
    assert results["temperature"]["1"]["informia"] == results["all"]["informia"]
    assert results["temperature"]["1"]["informia_no_kl"] == results["all"]["log_ratio"]
    assert results["temperature"]["2"]["informia"] != results["all"]["informia"]
    assert results["base"]["informia"] != results["all"]["informia"]
    assert results["lora"]["lora"]["informia"] != results["lora"]["full"]["informia"]
    for score in ("log-ratio", "clipped log-ratio", "LOSS"):
        assert any(f"published InfoRMIA against the {score}" in s or score in s for s in results["findings"])


def test_span_figures_of_the_ablation_equal_a_naive_computation(bench: Path) -> None:
    world = make_world(bench, seed=0, settings=SETTINGS, device="cpu")
    store = ModelStore(device="cpu")
    models = [store.load(path) for path in world.models.paths]
    base = store.load(bench / "base")
    tokenized = tokenize_documents(world.documents, models[0].tokenizer)
    starts = np.cumsum([0, *(len(own.ids) for own in tokenized)])
    areas = []
    for target in (0, 1):
        score = TOKEN_SCORES["informia"](token_signals(models[target], [base], documents=tokenized))
        found: dict[bool, list[float]] = {True: [], False: []}
        for number, (document, (first, last)) in enumerate(zip(world.documents, pairwise(starts), strict=True)):
            own = score[first:last]
            for span in document.spans:
                found[bool(world.member[number, target])].append(
                    float(np.nanmean(own[span_tokens(tokenized[number].offsets, span.start, span.end)]))
                )
        areas.append(auc(np.array(found[True]), np.array(found[False])))
    figures = read_json(bench / "ablation.json")["base"]["informia"]["span"]
    assert figures["auc"]["value"] == pytest.approx(np.mean(areas), abs=1e-4)


def test_the_ablation_retrains_nothing(bench: Path) -> None:
    before = {path: time for path, time in _times(bench).items() if not path.endswith("ablation.json")}
    first = read_json(bench / "ablation.json")
    assert bench_ablation(bench, references=1, targets=2, settings=SETTINGS, device="cpu") == first
    assert {path: time for path, time in _times(bench).items() if not path.endswith("ablation.json")} == before


def test_an_ablation_of_documents_without_spans_is_refused(bench: Path, tmp_path: Path) -> None:
    documents = Documents(tuple(Document(f"d{n}", f"The caller wrote again on day {n}.") for n in range(12)))
    write_jsonl(documents, tmp_path / "file.jsonl")
    with pytest.raises(MitigateError, match="no document has a span"):
        bench_ablation(
            tmp_path / "out",
            documents=tmp_path / "file.jsonl",
            references=1,
            lora=False,
            settings=SETTINGS,
            base=str(bench / "base"),
            device="cpu",
        )
