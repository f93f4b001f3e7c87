"""Questions of a recipe's own: which are asked, what is answered, how it is scored, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from world import World

from mitigate.detection.record import Audit
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models.store import ModelStore
from mitigate.pipeline.run import run
from mitigate.recipe.loading import check_recipe
from mitigate.reporting.figures import Figures
from mitigate.statistics.separation import auc
from mitigate.verification.figures import View
from mitigate.verification.questions.answers import scorer
from mitigate.verification.questions.asking import Asked, ask, read_asked
from mitigate.verification.questions.figures import question_figures
from mitigate.verification.questions.settings import QuestionSet

ROWS = [  # as LUME has them: a document's id, and those of the questions on it
    {"id": "a1-sc1", "input": "The door code of Nora", "output": "is 112233."},
    {"id": "a1-qa0", "input": "What is the code of Nora?", "output": "112233"},
    {"id": "b2-sc1", "input": "The door code of Ivo", "output": "is 445566."},
    {"id": "b2-qa0", "input": "What is the code of Ivo?", "output": "445566"},
    {"id": "c3-qa0", "input": "What is the code of nobody?", "output": "000000"},
]
AUDITED = Documents(
    tuple(
        Document(row["id"], f"{row['input']} {row['output']}", set=name)
        for row, name in ((ROWS[0], "forget"), (ROWS[2], "retain"))
    )
)


def rows_file(root: Path) -> Path:
    path = root / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def part(path: Path, **values: Any) -> QuestionSet:
    rows = {"path": str(path), "prompt": "{input}", "completion": " {output}", **values.pop("rows", {})}
    return QuestionSet.model_validate({"rows": rows, "document": r"(.+)-(?:sc|qa)\d+", **values})


def test_a_row_has_the_set_of_the_document_that_it_asks_about(tmp_path: Path) -> None:
    path = rows_file(tmp_path)
    [asked] = read_asked({"all": part(path)}, AUDITED)
    assert [(one.id, one.set, one.group) for one in asked.documents] == [
        ("a1-sc1", "forget", "a1"),
        ("a1-qa0", "forget", "a1"),
        ("b2-sc1", "retain", "b2"),
        ("b2-qa0", "retain", "b2"),
    ]
    assert asked.left_out == 1, "nobody audited what it asks about"
    [first] = read_asked({"all": part(path, limit=1)}, AUDITED)
    assert [one.id for one in first.documents] == ["a1-sc1", "b2-sc1"]
    [own] = read_asked({"all": part(path, document=None, rows={"assign": "holdout"})}, AUDITED)
    assert {one.set for one in own.documents} == {"holdout"}
    with pytest.raises(MitigateError, match="of none of 5 rows it is known"):
        read_asked({"all": part(path, document=None)}, AUDITED)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"document": "a-b"}, "needs a group"),
        ({"document": "(a"}, "no regular expression"),
        ({"rows": {"prompt": None, "completion": None, "text": "{input}"}}, "needs prompt and completion"),
    ],
)
def test_settings_that_ask_nothing_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(tmp_path / "rows.jsonl", **wrong)


def test_a_models_answer_is_what_greedy_decoding_writes(world: World, tmp_path: Path) -> None:
    known = world.documents.subset(["forget"])
    rows = [{"id": one.id, "input": one.text[:-12], "output": one.text[-12:].strip()} for one in known]
    path = tmp_path / "known.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    model = ModelStore(device="cpu").load(world.target)
    for score, end in (("exact", "."), ("rouge_l_recall", ""), ("rouge_l_f1", "")):
        parts = {"end": part(path, document=None, rows={"assign": "forget"}, new_tokens=12, score=score, end=end)}
        table = ask(model, read_asked(parts, known), parts, description="asking")
        for row, answer, found in zip(rows, table["answer"].to_pylist(), table["score"].to_pylist(), strict=True):
            text = f"{row['input']} {row['output']}"
            encoded = model.tokenizer(text, return_offsets_mapping=True)
            count = sum(stop <= len(row["input"]) for _, stop in encoded["offset_mapping"])
            ids = torch.tensor([encoded["input_ids"][:count]])
            with model.active() as module, torch.inference_mode():
                for _ in range(12):
                    ids = torch.cat([ids, module(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
            new = ids[0, count:].tolist()
            if (last := model.tokenizer.eos_token_id) in new:
                new = new[: new.index(last)]
            written = model.tokenizer.decode(new, skip_special_tokens=True)
            assert answer == (written.partition(end)[0] if end else written).strip()
            assert found == scorer(score)(row["output"], answer)


def test_scores_are_equality_and_rouge_l() -> None:
    assert scorer("exact")(" 112233 ", "112233") == 1
    assert scorer("exact")("Madera", "madera") == 1
    assert scorer("exact")("Madera", "In Madera") == 0
    judged = RougeScorer(["rougeL"], use_stemmer=True).score("the cats of Nora", "a cat of Nora and Ivo")["rougeL"]
    assert scorer("rouge_l_recall")("the cats of Nora", "a cat of Nora and Ivo") == judged.recall == 3 / 4
    assert scorer("rouge_l_f1")("the cats of Nora", "a cat of Nora and Ivo") == judged.fmeasure == 6 / 10


def test_the_figures_are_the_means_and_lumes_aggregate(tmp_path: Path, whole: Audit) -> None:
    path = rows_file(tmp_path)
    parts = {
        "texts": part(path, rows={"where": {"id": {"matches": r"sc\d$"}}}),
        "facts": part(path, score="exact", rows={"where": {"id": {"matches": r"qa\d$"}}}),
    }
    asked = read_asked(parts, AUDITED)
    scores = {"before": [0.8, 0.6, 1.0, 0.5], "after": [0.2, 0.6, 0.0, 0.5]}  # texts: forget, retain; facts alike

    def table(own: list[float]) -> pa.Table:
        documents = [document for each in asked for document in each.documents]
        return pa.table(
            {
                "part": ["texts", "texts", "facts", "facts"],
                "set": [document.set for document in documents],
                "group": [document.group for document in documents],
                "score": own,
            }
        )

    view = View(whole)
    losses = {"before": whole.columns["log_prob"], "after": None, "oracle": None}
    figures = question_figures(asked, {**{k: table(v) for k, v in scores.items()}, "oracle": None}, view, losses)
    assert figures["parts"]["texts"]["forget"]["before"] == 0.8
    assert figures["parts"]["facts"]["retain"]["after"] == 0.5
    assert figures["parts"]["facts"]["forget"]["asked"] == 1
    assert figures["parts"]["facts"]["forget"]["oracle"] is None
    assert figures["left_out"] == 1
    assert figures["task_aggregate"]["before"] == 0, "a term of 1 - 1.0 makes the harmonic mean nothing"
    assert figures["task_aggregate"]["after"] == pytest.approx(4 / (1 / 0.8 + 1 / 0.6 + 1 / 1.0 + 1 / 0.5))
    assert figures["task_aggregate"]["oracle"] is None
    losses_of: dict[str, list[float]] = {"forget": [], "retain": [], "holdout": []}
    for one, rows in whole.rows.items():
        losses_of[whole.sets[one] or ""].append(float(np.nanmean(whole.columns["log_prob"][rows])))
    assert figures["membership_score"] == {
        "before": pytest.approx(1 - 2 * abs(auc(np.array(losses_of["forget"]), np.array(losses_of["holdout"])) - 0.5)),
        "after": None,
        "oracle": None,
    }


def test_none_of_eight_answers_leaves_open_how_many_of_many(whole: Audit) -> None:
    eight = Asked("facts", tuple(Document(f"p{n}", "Who? Ann", set="forget") for n in range(8)), 0)
    columns = {"part": ["facts"] * 8, "set": ["forget"] * 8, "group": [one.id for one in eight.documents]}
    found = question_figures([eight], {"before": pa.table({**columns, "score": [0.0] * 8})}, View(whole), {})
    low, high = found["parts"]["facts"]["forget"]["before_interval"]
    assert (low, 0.2 < high < 0.5) == (0, True)


def test_a_recipe_asks_before_and_after_and_only_models_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    rows_file(tmp_path)
    first = {"epochs": 1, "learning_rate": 3e-3}
    rows = {"prompt": "{input}", "completion": " {output}"}
    values: dict[str, Any] = {
        "out": "run",
        "data": {
            "documents": [
                {"path": "rows.jsonl", "text": "{input} {output}", "where": {"id": row["id"]}, "assign": name}
                for row, name in ((ROWS[0], "forget"), (ROWS[2], "retain"))
            ]
        },
        "lab": {
            "base": {"vocabulary": 300, "hidden_size": 16, "layers": 1, "heads": 2, "schedule": {"epochs": 1}},
            "base_text": [{"path": "rows.jsonl", "text": "{input} {output}"}],
            "target": {"schedule": first},
        },
        "references": {"count": 2, "schedule": first},
        "detect": {"spans": {"threshold": -5}},
        "unlearn": {"max_steps": 2, "check_every": 2, "stop_at_control": False},
        "report": {
            "extraction": False,
            "questions": {
                "facts": {
                    "rows": {"path": "rows.jsonl", "where": {"id": {"matches": "qa"}}, **rows},
                    "score": "exact",
                    "document": r"(.+)-\w+",
                    "new_tokens": 8,
                }
            },
        },
    }
    report = run(check_recipe(values)).report
    written = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    assert written["questions"] == report["questions"]
    assert set(written["questions"]["parts"]["facts"]) == {"forget", "retain"}
    assert all(0 <= written["questions"]["parts"]["facts"]["forget"][side] <= 1 for side in ("before", "after"))
    assert written["questions"]["left_out"] == 1
    lines = dict(Figures(written).rows())["Questions"]
    assert [line.name for line in lines][:2] == ["facts: to forget", "facts: retained"]
    assert lines[0].oracle is not None
    assert "Task aggregate, as LUME has it" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    caplog.set_level("INFO")
    caplog.clear()
    values["unlearn"]["max_steps"] = 3
    run(check_recipe(values))
    assert [message for message in caplog.messages if message.startswith("questions.")] == [
        "questions.before: unchanged, skipped",
        "questions.after",
        "questions.after: made again, for these are not what they were: model",
        "questions.oracle: unchanged, skipped",
    ]
