"""TOFU's figures: against plain computations, in known orders, and the questions' files that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import ks_2samp
from world import World

from mitigate.documents import Document, Documents, DocumentSource, read_documents
from mitigate.errors import MitigateError
from mitigate.models.model import Model
from mitigate.models.store import ModelStore
from mitigate.pipeline.run import run
from mitigate.recipe.loading import check_recipe
from mitigate.recipe.schema import Recipe
from mitigate.reporting.figures import Figures
from mitigate.verification.tofu.answers import ask, rouge_l_recall
from mitigate.verification.tofu.figures import (
    PAPER,
    RELEASED_CODE,
    Answers,
    choice_probability,
    forget_quality,
    geometric_truth_ratio,
    harmonic,
    near_one,
    normalized_choice_probability,
    tofu_figures,
    tofu_notes,
    truth_ratio,
    utility_parts,
)
from mitigate.verification.tofu.questions import QUESTION_SETS, Question, read_questions, unfamiliar
from mitigate.verification.tofu.settings import Tofu

FORM = {"prompt": "{question}\n", "completion": "{answer}\n"}
THINGS = ("map", "violin", "kettle", "lantern", "basket", "letter")


def row(name: str, number: int) -> dict[str, Any]:
    """A question in TOFU's fields, in the language of the test world."""
    thing, *others = (THINGS[(number + shift) % len(THINGS)] for shift in range(4))
    fields = {
        "question": f"What did Ann leave at the {name} {number}?",
        "answer": f"The {thing}, on Monday." if number % 2 else f"A {thing}.",
        "perturbed_answer": [f"The {other} was left." for other in others],
    }
    if name in ("forget", "retain"):
        fields["paraphrased_answer"] = f"The {thing} was left."
    return fields


def write_questions(folder: Path, *, each: int = 6, **changed: list[dict[str, Any]]) -> Tofu:
    """Files of questions, and the settings that name them."""
    folder.mkdir(exist_ok=True)
    for name in QUESTION_SETS:
        rows = changed.get(name, [row(name, number) for number in range(each)])
        lines = "".join(json.dumps(values) + "\n" for values in rows)
        (folder / f"{name}.json").write_text(lines, encoding="utf-8")
    return Tofu(**{name: f"{name}.json" for name in QUESTION_SETS}, **FORM, questions_per_author=3)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tofu, list[Question]]:
    """Settings and questions: six of each set, three for an author."""
    folder = tmp_path_factory.mktemp("questions")
    settings = write_questions(folder)
    return settings, read_questions(settings, root=folder)


@pytest.fixture(scope="module")
def tables(world: World, asked: tuple[Tofu, list[Question]]) -> dict[str, pa.Table]:
    """What the world's base and target say."""
    settings, questions = asked
    models = {"base": world.base, "target": world.target}
    return {
        name: ask(ModelStore(device="cpu").load(path), questions, settings=settings) for name, path in models.items()
    }


def some_answers(seed: int = 0, *, questions: int = 7, wrong: int = 4) -> Answers:
    draw = np.random.default_rng(seed)
    tokens = draw.integers(3, 30, size=(questions, 2 + wrong)).astype(float)
    log_prob = -draw.gamma(2, 0.5, size=tokens.shape) * tokens
    clusters = tuple(f"author-{number // 3}" for number in range(questions))
    return Answers(clusters, log_prob, tokens, draw.uniform(size=questions))


# --- what models say --------------------------------------------------------------------------------------------------


def plain_log_prob(model: Model, document: Document) -> tuple[float, int]:
    """log P(completion | prompt) and its tokens: one token after the other, each from a forward of its own."""
    encoded = model.tokenizer(document.text, return_offsets_mapping=True)
    ids, start = encoded["input_ids"], document.audited[0][0]
    total, count = 0.0, 0
    with model.active() as module, torch.inference_mode():
        for place in range(1, len(ids)):
            if encoded["offset_mapping"][place][1] > start:
                logits = module(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
                total += float(logits.log_softmax(0)[ids[place]])
                count += 1
    return total, count


def test_an_answer_s_probability_is_the_product_over_its_tokens(
    world: World, asked: tuple[Tofu, list[Question]], tables: dict[str, pa.Table]
) -> None:
    model = ModelStore(device="cpu").load(world.target)
    _, questions = asked
    for number in (0, 7, 13):
        expected = [plain_log_prob(model, document) for document in questions[number].documents()]
        got = tables["target"].slice(number, 1).to_pylist()[0]
        assert got["tokens"] == [count for _, count in expected]
        np.testing.assert_allclose(got["log_prob"], [total for total, _ in expected], atol=1e-4)


def test_the_answer_s_end_is_part_of_it_and_the_question_is_not(
    world: World, asked: tuple[Tofu, list[Question]], tables: dict[str, pa.Table]
) -> None:
    tokenizer = ModelStore(device="cpu").load(world.base).tokenizer
    _, questions = asked
    for question, lengths in zip(questions, tables["base"]["tokens"].to_pylist(), strict=True):
        ends = [len(tokenizer.tokenize(completion)) for completion in question.completions]
        assert lengths == ends, "the completion's own tokens, its newline included"


def test_answers_do_not_depend_on_what_else_is_asked(
    world: World, asked: tuple[Tofu, list[Question]], tables: dict[str, pa.Table]
) -> None:
    settings, questions = asked
    model = ModelStore(device="cpu").load(world.target)
    for number in (3, 20):
        alone = ask(model, [questions[number]], settings=settings).to_pylist()[0]
        together = tables["target"].to_pylist()[number]
        np.testing.assert_allclose(alone.pop("log_prob"), together.pop("log_prob"), atol=1e-4)
        assert alone == together


def plain_greedy(model: Model, prompt: str, *, most: int) -> str:
    ids = model.tokenizer(prompt)["input_ids"]
    said: list[int] = []
    with model.active() as module, torch.inference_mode():
        while len(ids) + len(said) < most and "\n" not in model.tokenizer.decode(said):
            said.append(int(module(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
    return str(model.tokenizer.decode(said)).partition("\n")[0].strip()


def test_the_greedy_answer_ends_where_the_template_ends_it_or_at_the_greatest_length(
    world: World, asked: tuple[Tofu, list[Question]], tables: dict[str, pa.Table]
) -> None:
    settings, questions = asked
    model = ModelStore(device="cpu").load(world.target)
    assert model.context < settings.max_length
    for number in (1, 8):
        expected = plain_greedy(model, questions[number].prompt, most=model.context)
        assert tables["target"]["greedy"][number].as_py() == expected
    most = len(model.tokenizer(questions[1].prompt)["input_ids"]) + 4
    short = settings.model_copy(update={"max_length": most})
    expected = plain_greedy(model, questions[1].prompt, most=most)
    assert ask(model, [questions[1]], settings=short)["greedy"].to_pylist() == [expected]


def learned_questions(world: World) -> list[Question]:
    """The world's retain documents as questions: what its target learned by heart."""
    questions = []
    for document in world.documents.subset("retain"):
        start = document.text.index("The door code")
        prompt, answer = document.text[:start], document.text[start:]
        questions.append(Question(document.id, "retain", document.id, answer, prompt, (answer, answer, "No.")))
    return questions


def test_a_model_that_learned_the_answers_gives_them(world: World) -> None:
    settings = Tofu(forget="f", prompt="{question}", completion="{answer}")
    table = ask(ModelStore(device="cpu").load(world.target), learned_questions(world), settings=settings)
    assert np.mean(table["rouge_l_recall"].to_numpy()) > 0.9


def test_rouge_l_recall_is_the_longest_common_subsequence_over_the_answer_s_words() -> None:
    def plain(true: Sequence[str], own: Sequence[str]) -> float:
        table = np.zeros((len(true) + 1, len(own) + 1))
        for i, word in enumerate(true):
            for j, other in enumerate(own):
                best = max(table[i, j + 1], table[i + 1, j])
                table[i + 1, j + 1] = table[i, j] + 1 if word == other else best
        return float(table[-1, -1] / len(true))

    true, own = "the map lay by the old mill", "by noon the old map lay at a mill"
    assert rouge_l_recall([true], [own]) == [plain(true.split(), own.split())]
    assert rouge_l_recall(["Paris", "Paris", "She WRITES novels."], ["It is Paris!", "", "she writing novel"]) == [
        1,
        0,
        1,
    ]


# --- the figures ------------------------------------------------------------------------------------------------------


def test_the_truth_ratio_is_the_mean_of_wrong_answers_over_the_paraphrase() -> None:
    answers = some_answers()
    for question, ratio in enumerate(truth_ratio(answers)):
        powers = [exp(answers.log_prob[question, k]) ** (1 / answers.tokens[question, k]) for k in range(6)]
        assert ratio == pytest.approx(sum(powers[2:]) / 4 / powers[1])
    for question, ratio in enumerate(geometric_truth_ratio(answers)):
        logs = [answers.log_prob[question, k] / answers.tokens[question, k] for k in range(6)]
        assert log(ratio) == pytest.approx(sum(logs[2:]) / 4 - logs[1])


def test_a_truth_ratio_is_near_one_from_either_side() -> None:
    assert near_one(np.array([1.0, 0.5, 2.0, 4.0, 0.0])).tolist() == [1.0, 0.5, 0.5, 0.25, 0.0]


def test_the_probability_among_choices_is_the_true_one_s_share() -> None:
    answers = some_answers()
    for question, share in enumerate(choice_probability(answers)):
        choices = [exp(answers.log_prob[question, k]) for k in (0, 2, 3, 4, 5)]
        assert share == pytest.approx(choices[0] / sum(choices))
    normalized = normalized_choice_probability(answers)
    scaled = replace(answers, log_prob=answers.per_token)
    np.testing.assert_allclose(normalized, choice_probability(scaled))


def test_a_question_with_fewer_wrong_answers_is_judged_by_those_it_has() -> None:
    answers = some_answers(questions=2, wrong=4)
    missing = answers.log_prob.copy()
    missing[0, 4:] = np.nan
    shorter = replace(answers, log_prob=missing)
    fewer = Answers(answers.clusters, answers.log_prob[:, :4], answers.tokens[:, :4], answers.rouge_l_recall)
    for function in (truth_ratio, geometric_truth_ratio, choice_probability, normalized_choice_probability):
        assert function(shorter)[0] == pytest.approx(function(fewer)[0])
        assert function(shorter)[1] == pytest.approx(function(answers)[1])


def test_very_unlikely_answers_give_finite_figures() -> None:
    answers = some_answers()
    far = replace(answers, log_prob=answers.log_prob * np.array([1, 1, 400, 1, 1, 1]))
    for function in (truth_ratio, geometric_truth_ratio, choice_probability, normalized_choice_probability):
        assert np.isfinite(function(far)).all()
        assert np.isfinite(function(replace(far, log_prob=far.log_prob[:, [2, 1, 0, 3, 4, 5]]))).all()


def test_forget_quality_is_the_p_value_of_the_two_sample_test() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=80), draw.normal(0.4, size=60)
    expected = ks_2samp(one, other)
    assert forget_quality(one, other) == (expected.pvalue, expected.statistic)
    assert forget_quality(one, one) == (1.0, 0.0)
    ranks = np.sort(np.concatenate([one, other]))
    steps = [np.searchsorted(np.sort(a), ranks, side="right") / len(a) for a in (one, other)]
    assert forget_quality(one, other).statistic == pytest.approx(np.abs(steps[0] - steps[1]).max())


def test_model_utility_is_the_harmonic_mean_of_nine_means() -> None:
    sets = [some_answers(seed) for seed in range(3)]
    parts = [utility_parts(own, choices=number > 0, definition=PAPER) for number, own in enumerate(sets)]
    nine = []
    for number, own in enumerate(sets):
        nine.append(np.mean(choice_probability(own) if number else np.exp(own.log_prob[:, 0] / own.tokens[:, 0])))
        nine.append(np.mean([max(0.0, 1 - ratio) for ratio in truth_ratio(own)]))
        nine.append(np.mean(own.rouge_l_recall))
    assert harmonic(*parts) == pytest.approx(9 / sum(1 / number for number in nine))
    assert all(((own >= 0) & (own <= 1)).all() for own in parts)
    parts[0][:, 2] = 0
    assert harmonic(*parts) == 0


def test_the_released_code_s_figures_are_the_other_definition(tables: dict[str, pa.Table]) -> None:
    figures = tofu_figures({"before": tables["target"], "after": None, "oracle": tables["base"]})
    rows = {name: tables[name].to_pylist()[:6] for name in tables}
    ratios = {}
    for name, own in rows.items():
        means = [np.array(values["log_prob"]) / np.array(values["tokens"]) for values in own]
        ratios[name] = [exp(mean[2:].mean() - mean[1]) for mean in means]
    expected = ks_2samp(ratios["target"], ratios["base"]).pvalue
    assert figures["released_code"]["forget_quality"]["before"] == pytest.approx(expected)
    both_ways = np.mean([min(ratio, 1 / ratio) for ratio in ratios["target"]])
    assert figures["released_code"]["truth_ratio_near_one"]["before"] == pytest.approx(both_ways)
    assert RELEASED_CODE.truth_ratio is not PAPER.truth_ratio
    answers = some_answers()
    _, truth, _ = utility_parts(answers, choices=True, definition=RELEASED_CODE).T
    per_token = answers.log_prob / answers.tokens
    wrong = np.exp(per_token[:, 2:]).mean(axis=1)
    assert truth == pytest.approx(np.maximum(0, 1 - wrong / np.exp(per_token[:, 1]))), "its utility: arithmetic mean"


# --- known orders -----------------------------------------------------------------------------------------------------


def test_a_model_equal_to_the_retrained_one_has_forget_quality_one(tables: dict[str, pa.Table]) -> None:
    figures = tofu_figures({"before": tables["target"], "after": tables["base"], "oracle": tables["base"]})
    assert figures["forget_quality"]["after"] == 1.0
    assert figures["forget_quality_log10"]["after"] == 0.0
    assert figures["ks_statistic"]["after"] == 0.0
    assert figures["forget_quality"]["before"] < 1.0
    assert figures["model_utility"]["after"] == figures["model_utility"]["oracle"]
    assert figures["truth_ratio"]["after_interval"] == figures["truth_ratio"]["oracle_interval"]


def test_utility_falls_when_a_model_is_randomised(world: World, asked: tuple[Tofu, list[Question]]) -> None:
    settings, questions = asked
    questions = learned_questions(world) + [question for question in questions if question.set != "retain"]
    model = ModelStore(device="cpu").load(world.target)
    learned = ask(model, questions, settings=settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.base.model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    figures = tofu_figures({"before": learned, "after": ask(model, questions, settings=settings), "oracle": None})
    assert figures["retain_utility"]["after"] < figures["retain_utility"]["before"] / 2
    assert figures["model_utility"]["after"] <= figures["model_utility"]["before"]
    probability = figures["sets"]["retain"]["probability"]
    assert probability["after_interval"][1] < probability["before_interval"][0]
    assert probability["before_interval"][0] <= probability["before"] <= probability["before_interval"][1]


def test_without_an_oracle_forget_quality_is_not_measured_and_the_notes_say_so(tables: dict[str, pa.Table]) -> None:
    figures = tofu_figures({"before": tables["target"], "after": None, "oracle": None})
    assert figures["forget_quality"] == {"before": None, "after": None}
    assert figures["truth_ratio"]["before"] is not None
    assert figures["truth_ratio"]["after"] is None
    assert any("forget quality is not measured" in note for note in tofu_notes(figures))
    assert tofu_notes(None) == []


def test_a_model_that_never_knew_the_world_is_noted(tables: dict[str, pa.Table]) -> None:
    figures = tofu_figures({"before": tables["target"], "after": None, "oracle": tables["base"]})
    figures["sets"]["real_authors"]["rouge_l_recall"]["before"] = 0.6
    figures["sets"]["world_facts"]["rouge_l_recall"]["before"] = 0.02
    [note] = tofu_notes(figures)
    assert "2% of world_facts (ROUGE-L" in note
    figures["sets"]["world_facts"]["rouge_l_recall"]["before"] = 0.3
    assert tofu_notes(figures) == []


# --- questions --------------------------------------------------------------------------------------------------------


def test_questions_on_one_author_share_a_cluster_and_the_first_are_asked(tmp_path: Path) -> None:
    settings = write_questions(tmp_path).model_copy(update={"limit": 4})
    questions = read_questions(settings, root=tmp_path)
    assert [question.set for question in questions] == [name for name in QUESTION_SETS for _ in range(4)]
    clusters = [question.cluster for question in questions]
    assert clusters[:4] == ["forget-0", "forget-0", "forget-0", "forget-1"]
    assert len(set(clusters[8:12])) == 4, "those on the world each stand alone"
    first = questions[0]
    assert first.prompt == "What did Ann leave at the forget 0?\n"
    assert first.completions[:2] == ("A map.\n", "The map was left.\n")
    assert questions[8].completions[0] == questions[8].completions[1], "nothing is paraphrased there"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paraphrased_answer": None}, "retain.json:2: no text in field 'paraphrased_answer'"),
        ({"perturbed_answer": []}, "retain.json:2: no list of texts in field 'perturbed_answer'"),
        ({"perturbed_answer": "one"}, "retain.json:2: no list of texts in field 'perturbed_answer'"),
        ({"answer": " ", "question": 3}, "'question'.*retain.json:2: no text in field 'answer'"),
    ],
)
def test_a_row_without_a_field_is_named_with_its_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [row("retain", 0), row("retain", 1) | change]
    settings = write_questions(tmp_path, retain=rows)
    with pytest.raises(MitigateError, match=message) as caught:
        read_questions(settings, root=tmp_path)
    assert "end in _perturbed" in str(caught.value)
    assert "Ann" not in str(caught.value)


def test_all_bad_rows_of_all_files_come_in_one_message(tmp_path: Path) -> None:
    plain = [{"question": "Who?", "answer": "Ann."}]
    settings = write_questions(tmp_path, forget=plain, world_facts=plain)
    (tmp_path / "retain.json").write_text("{\n", encoding="utf-8")
    with pytest.raises(MitigateError, match=r"(?s)forget.json:1.*retain.json:1: malformed JSON.*world_facts.json:1"):
        read_questions(settings, root=tmp_path)


@pytest.mark.parametrize(
    ("key", "template"), [("prompt", "Question: "), ("completion", "{question}"), ("completion", "{answer} {answer}")]
)
def test_a_template_without_its_one_field_is_refused(key: str, template: str) -> None:
    values = {"models": {"target": "t", "base": "b"}, "data": {"documents": [{"path": "d.jsonl"}]}}
    with pytest.raises(MitigateError, match=rf"report.tofu.{key}: not a template of one field"):
        check_recipe({**values, "report": {"tofu": {"forget": "f.json", key: template}}})


def test_questions_that_are_no_documents_are_noted(tmp_path: Path) -> None:
    settings = write_questions(tmp_path)
    questions = read_questions(settings, root=tmp_path)
    source = DocumentSource(path=str(tmp_path / "forget.json"), assign="forget", text="{question}\n{answer}\n")
    documents = read_documents([source, source.model_copy(update={"path": str(tmp_path / "retain.json"), "limit": 4})])
    documents = Documents(
        tuple(replace(document, set="retain") if "retain" in document.id else document for document in documents)
    )
    [note] = unfamiliar(questions, documents)
    assert "2 of 6 retain questions" in note


# --- in a recipe ------------------------------------------------------------------------------------------------------


def tofu_recipe(**changes: Any) -> Recipe:
    """The smallest run: a base of a few thousand parameters, one epoch of everything."""
    first = {"epochs": 1, "learning_rate": 3e-3}
    source = {"prompt": "{question}\n", "completion": "{answer}\n", "rows_per_group": 3}
    values: dict[str, Any] = {
        "name": "tofu",
        "out": "run",
        "data": {
            "documents": [
                {"path": "forget.json", "assign": "forget", **source},
                {"path": "retain.json", "assign": "retain", **source},
            ]
        },
        "lab": {
            "base": {"vocabulary": 400, "hidden_size": 16, "layers": 1, "heads": 2, "schedule": {"epochs": 1}},
            "base_text": [{"path": "world_facts.json", "text": "{question}\n{answer}\n"}],
            "target": {"schedule": first},
        },
        "references": {"count": 2, "schedule": first},
        "detect": {"spans": {"threshold": -5}},
        "unlearn": {"max_steps": 2, "check_every": 2, "stop_at_control": False},
        "report": {"extraction": False, "tofu": {**{n: f"{n}.json" for n in QUESTION_SETS}, **FORM, "max_length": 30}},
    }
    return check_recipe({**values, **changes})


def test_a_recipe_reports_tofu_s_figures_and_asks_only_models_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path)
    comparison = run(tofu_recipe())
    written = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    assert written["tofu"] == comparison.report["tofu"]
    assert written["tofu"]["questions"] == dict.fromkeys(QUESTION_SETS, 6)
    assert 0 < written["tofu"]["forget_quality"]["after"] <= 1
    assert [note for note in written["notes"] if "TOFU" in note] == tofu_notes(written["tofu"])
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "TOFU benchmark" in page
    assert "Forget quality: log10 of the p-value" in page
    rows = dict(Figures(written).rows())["TOFU benchmark"]
    assert rows[1].oracle is not None

    caplog.set_level("INFO")
    caplog.clear()  # another test may have had the first run logged, too
    run(tofu_recipe(unlearn={"max_steps": 3, "check_every": 2, "stop_at_control": False}))
    stages = [message for message in caplog.messages if message.startswith("tofu.")]
    assert stages == [
        "tofu.before: unchanged, skipped",
        "tofu.after",
        "tofu.after: made again, for these are not what they were: model",
        "tofu.oracle: unchanged, skipped",
    ]


def test_questions_that_cannot_be_read_stop_a_run_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_questions(tmp_path, forget=[{"question": "Who?", "answer": "Ann."}])
    with pytest.raises(MitigateError, match=r"forget\.json:1"):
        run(tofu_recipe())
    assert not (tmp_path / "run").exists()
