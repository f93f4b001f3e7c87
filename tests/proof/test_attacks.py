"""Each attack against a naive computation, and what follows from tables of readings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast
from world import World, sentences

from mitigate.detection.audit import audit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.detection.signals.compute import token_signals
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.generation.settings import Sampling
from mitigate.models.store import ModelStore
from mitigate.proof.attacks import inside, relearning
from mitigate.proof.attacks.inside import read_from_layers
from mitigate.proof.attacks.likelihood import drawn_log_probs
from mitigate.proof.attacks.prefixes import continued, extracted, values_of
from mitigate.proof.attacks.prompts import INSTRUCTION, REWORDINGS, asked_for, own_prompts, without_cues
from mitigate.proof.attacks.relearning import (
    relearned_from_forgotten,
    relearned_from_plain,
    relearned_from_related,
)
from mitigate.proof.attacks.twins import _twins, exposures
from mitigate.proof.attacks.weights import NF4, ROUNDINGS, as_served, difference, lowest_tokens, moved, rounded
from mitigate.proof.battery import ATTACKS, READING
from mitigate.proof.case import Case, make_case
from mitigate.proof.findings import findings_of, verdict_of
from mitigate.proof.settings import Proof
from mitigate.proof.subject import NotApplicableError, NotPossibleError, plain_model
from mitigate.statistics.separation import auc
from mitigate.verification.extraction import is_completed
from mitigate.verification.extraction_values import Place, Secret

EXACT = 1e-4


def cpu() -> ModelStore:
    return ModelStore(device="cpu")


@pytest.fixture(scope="module")
def case(world: World, layered: Audit) -> Case:
    """The adapter's audit, the whole model in the mitigated one's place, the base as the control."""
    return make_case(layered, world.target, oracle=world.base, store=cpu())


def naive_log_probs(module: Any, audit: Audit, *, ids_of: Callable[[Any], Any] = lambda logits: logits) -> np.ndarray:
    """(N,) one document at a time, by the library's own forward pass."""
    found = np.full(len(audit.tokens), np.nan)
    for one, rows in zip(audit.tokenized(), audit.rows.values(), strict=True):
        with torch.inference_mode():
            logits = module(input_ids=torch.from_numpy(one.ids)[None]).logits[0].float()
        said = ids_of(logits).log_softmax(-1)[:-1].gather(1, torch.from_numpy(one.ids[1:])[:, None])[:, 0].numpy()
        found[rows.start + 1 : rows.stop] = np.where(one.audited[1:], said, np.nan)
    return found


# Weights


@pytest.mark.parametrize("how", ["int8", "nf4", "q4_0"])
@pytest.mark.parametrize("shape", [(3, 64), (5, 40), (2, 7)])
def test_rounding_is_what_its_definition_says(how: str, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found, expected = ROUNDINGS[how](weight), np.zeros(shape, dtype=np.float32)
    flat = weight.numpy().astype(np.float32).ravel()
    size = {"int8": shape[1], "nf4": 64, "q4_0": 32}[how]
    for start in range(0, len(flat), size):
        block = flat[start : start + size]
        if how == "int8":
            scale = np.abs(block).max() / 127
            values = [round(float(value / scale)) * scale for value in block]
        elif how == "nf4":
            scale = np.abs(block).max()
            values = [min(NF4, key=lambda level: abs(level - value / scale)) * scale for value in block]
        else:
            scale = np.float32(np.float16(block[np.abs(block).argmax()] / -8))
            values = [min(15, int(value / scale + 8.5)) - 8 for value in block]
            values = [value * scale for value in values]
        expected.ravel()[start : start + size] = values
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)
    again = ROUNDINGS[how](found)
    if how != "q4_0":  # whose scale follows from the largest value, which it may move
        np.testing.assert_allclose(again.numpy(), found.numpy(), rtol=0, atol=1e-5)
    assert len(found.unique()) < found.numel() or how == "int8"


def test_zeros_stay_zeros() -> None:
    for how, function in ROUNDINGS.items():
        assert not function(torch.zeros(2, 64)).any(), how


def test_bfloat16_is_that_of_the_library(world: World, case: Case) -> None:
    module = AutoModelForCausalLM.from_pretrained(world.target, dtype=torch.bfloat16).float()
    expected = case.ratio(naive_log_probs(module, case.before))
    found = rounded(case, case.mitigated, how="bfloat16")
    known = ~np.isnan(found)
    np.testing.assert_allclose(found[known], expected[known], rtol=0, atol=EXACT)


@pytest.mark.parametrize("how", ["int8", "nf4", "q4_0"])
def test_rounded_weights_are_those_of_linear_layers_without_the_head(world: World, case: Case, how: str) -> None:
    module = AutoModelForCausalLM.from_pretrained(world.target, dtype=torch.float32)
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear) and name != "lm_head":
            part.weight.data = ROUNDINGS[how](part.weight.data)
    expected = case.ratio(naive_log_probs(module, case.before))
    found = rounded(case, case.mitigated, how=how)
    known = ~np.isnan(found)
    np.testing.assert_allclose(found[known], expected[known], rtol=0, atol=EXACT)
    served = as_served(case, case.mitigated)
    assert np.nanmax(np.abs(found - served)) > 10 * EXACT, "rounding changes something"


def test_an_adapter_is_merged_and_a_column_of_gpt2_is_a_row(
    tiny_model: Callable[..., Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    store = cpu()
    model = plain_model(str(tiny_model("gpt2")), store)
    expected = {
        name: ROUNDINGS["int8"](part.weight.data.T).T
        for name, part in model.base.model.named_modules()
        if type(part).__name__ == "Conv1D"
    }
    documents = Documents(tuple(Document(str(n), text) for n, text in enumerate(sentences(4))))
    sets = ("forget", "forget", "holdout", "holdout")
    documents = Documents(tuple(replace(one, set=name) for one, name in zip(documents, sets, strict=True)))
    other = tiny_model("gpt2", seed=1)
    made = audit(other, [other], documents=documents, detect=Detect(), store=cpu())
    case = make_case(made, tiny_model("gpt2"), oracle=None, store=store)
    seen: dict[str, torch.Tensor] = {}
    whole = Case.log_probs

    def kept(self: Case, given: Any, numbers: Any = None) -> np.ndarray:
        seen.update({name: part.weight.data for name, part in given.base.model.named_modules() if name in expected})
        return whole(self, given, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case, "log_probs", kept)
        rounded(case, case.mitigated, how="int8")
    assert seen.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(seen[name], weight)


def test_the_way_between_two_models_begins_and_ends_with_them(world: World, case: Case) -> None:
    after, before = as_served(case, case.mitigated), case.ratio(case.before.columns["log_prob"].astype(float))
    known = ~np.isnan(after)
    np.testing.assert_allclose(moved(case, case.mitigated, by=1.0)[known], after[known], rtol=0, atol=EXACT)
    np.testing.assert_allclose(moved(case, case.mitigated, by=0.0)[known], before[known], rtol=0, atol=EXACT)
    half = plain_model(str(world.adapter), cpu()).base.model
    other = AutoModelForCausalLM.from_pretrained(world.target, dtype=torch.float32)
    for own, theirs in zip(half.parameters(), other.parameters(), strict=True):
        own.data = (own.data + theirs.data) / 2
    expected = case.ratio(naive_log_probs(half, case.before))
    np.testing.assert_allclose(moved(case, case.mitigated, by=0.5)[known], expected[known], rtol=0, atol=EXACT)


def test_two_checkpoints_are_compared_token_by_token(case: Case) -> None:
    found = difference(case, case.mitigated)
    module = AutoModelForCausalLM.from_pretrained(case.mitigated.source, dtype=torch.float32)
    expected = np.clip(case.before.columns["log_prob"] - naive_log_probs(module, case.before), -3, 3)
    known = ~np.isnan(found)
    assert known.sum() > 100
    np.testing.assert_allclose(found[known], expected[known], rtol=0, atol=EXACT)


def test_other_shapes_are_not_mixed(case: Case, tiny_model: Callable[..., Path]) -> None:
    other = replace(case.mitigated, source=str(tiny_model("llama")))
    with pytest.raises(NotPossibleError, match="other shapes"):
        moved(case, other, by=0.5)


def test_the_unlikeliest_tokens_are_those_of_min_k(case: Case) -> None:
    own, other = lowest_tokens(case, case.mitigated)
    module = AutoModelForCausalLM.from_pretrained(case.mitigated.source, dtype=torch.float32)
    said = naive_log_probs(module, case.before)
    expected: dict[bool, list[float]] = {True: [], False: []}
    for row in case.before.span_rows:
        if row.source == "known" and case.before.sets[row.doc_id] in ("forget", "holdout"):
            tokens = np.sort(said[case.before.rows_of(row)])
            expected[case.before.sets[row.doc_id] == "forget"].append(tokens[: max(1, len(tokens) // 5)].mean())
    np.testing.assert_allclose(own.scores, expected[True], rtol=0, atol=EXACT)
    np.testing.assert_allclose(other.scores, expected[False], rtol=0, atol=EXACT)


# Inside


def test_what_several_attacks_ask_for_is_read_once(
    world: World, layered: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_case(layered, world.target, oracle=world.base, store=cpu())
    read: list[list[str]] = []
    plain = token_signals
    monkeypatch.setattr(
        "mitigate.proof.case.token_signals",
        lambda model, references, *, documents: (
            read.append([one.id for one in documents]) or plain(model, references, documents=documents)
        ),
    )
    first = made.signals(made.mitigated)
    for attack in (as_served, lowest_tokens, difference):
        attack(made, made.mitigated)
    forget, retain = made.documents("forget"), made.documents("retain")
    more = made.signals(made.mitigated, [*retain, *forget[:1]])
    layers = read_from_layers(made, made.mitigated, [*retain, *forget[:1]])
    ids = list(made.before.rows)
    assert read == [[ids[n] for n in made.documents("forget", "holdout")], [ids[n] for n in retain]]
    there = np.zeros(len(made.before.tokens), dtype=bool)
    for number in (*retain, *forget[:1]):
        there[list(made.before.rows.values())[number]] = True
    naive = naive_log_probs(made.mitigated.load().base.model, layered)
    for found in (more["log_prob"], *layers.values()):
        assert np.isnan(found[~there]).all()
    np.testing.assert_allclose(more["log_prob"][there], naive[there], atol=EXACT)
    np.testing.assert_allclose(made.signals(made.mitigated)["log_prob"], first["log_prob"])
    assert made.control is not None
    assert abs(np.nanmean(made.signals(made.control)["log_prob"]) - np.nanmean(first["log_prob"])) > 0.01


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma2"])
def test_layers_are_read_through_the_models_own_norm_and_head(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    path = tiny_model(architecture)
    texts = sentences(6)
    sets = ("forget", "holdout") * 3
    documents = Documents(
        tuple(Document(str(n), text, set=name) for n, (text, name) in enumerate(zip(texts, sets, strict=True)))
    )
    made = audit(path, [path], documents=documents, detect=Detect(), store=cpu())
    case = make_case(made, path, oracle=None, store=cpu())
    if architecture == "gemma2":  # caps its logits
        with pytest.raises(NotPossibleError, match="not what its head makes"):
            read_from_layers(case, case.mitigated)
        return
    found = read_from_layers(case, case.mitigated)
    module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    norm = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}.get(architecture, "norm")
    for depth, layer in {"half": 1, "three_quarters": 2}.items():
        expected = np.full(len(made.tokens), np.nan)
        for one, rows in zip(made.tokenized(), made.rows.values(), strict=True):
            with torch.inference_mode():
                states = module(input_ids=torch.from_numpy(one.ids)[None], output_hidden_states=True).hidden_states
                lens = module.get_output_embeddings()(getattr(module.base_model, norm)(states[layer][0]))
            said = lens.log_softmax(-1)[:-1].gather(1, torch.from_numpy(one.ids[1:])[:, None])[:, 0].numpy()
            expected[rows.start + 1 : rows.stop] = np.where(one.audited[1:], said, np.nan)
        np.testing.assert_allclose(found[depth], expected, rtol=0, atol=EXACT)


def test_nobody_is_judged_by_a_classifier_that_was_fitted_on_him(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "_LEAST_PEOPLE", 5)
    fitted: list[tuple[np.ndarray, np.ndarray]] = []
    whole = inside.make_pipeline

    def watched(*parts: Any) -> Any:
        made = whole(*parts)
        fit, decide = made.fit, made.decision_function

        def fit_(x: np.ndarray, y: np.ndarray) -> Any:
            fitted.append((x, y))
            return fit(x, y)

        def decide_(x: np.ndarray) -> np.ndarray:
            rows = {row.tobytes() for row in x}
            assert rows.isdisjoint({row.tobytes() for row in fitted[-1][0]})
            return decide(x)

        made.fit, made.decision_function = fit_, decide_
        made.fit = lambda x, y: (fit_(x, y), made)[1]
        return made

    monkeypatch.setattr(inside, "make_pipeline", watched)
    own, other = inside.told_apart(case, case.mitigated, seed=0)
    assert len(own.scores) == len(other.scores) == 5
    assert len(fitted) == 5


def test_what_the_model_keeps_teaches_to_recognise_what_it_should_not_know(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "_LEAST_PEOPLE", 2)
    fitted: list[tuple[np.ndarray, np.ndarray]] = []
    judged: list[np.ndarray] = []
    whole = inside._fitted

    def watched(x: np.ndarray, y: np.ndarray) -> Any:
        made = whole(x, y)
        fitted.append((x, y))
        decide = made.decision_function
        made.decision_function = lambda rows: (judged.append(rows), decide(rows))[1]
        return made

    monkeypatch.setattr(inside, "_fitted", watched)
    own, other = inside.recognised(case, case.mitigated)
    texts = {name: len(case.view.places_in("span_auc", name)[0]) for name in ("forget", "retain", "holdout")}
    assert (len(own.scores), len(other.scores)) == (texts["forget"], texts["holdout"])
    assert len(fitted) == 2
    rows = [{row.tobytes() for row in x} for x, _ in fitted]
    for number, (x, y) in enumerate(fitted):
        asked, compared = judged[2 * number : 2 * number + 2]
        assert int(y.sum()) == texts["retain"]
        assert len(x) - int(y.sum()) + len(compared) == texts["holdout"]
        assert rows[number].isdisjoint({row.tobytes() for row in (*asked, *compared)})
    assert own.scores.mean() > other.scores.mean() + 1, "the model was trained on them as on those that are kept"


# Relearning


def test_nobody_is_asked_about_by_a_model_that_relearned_him(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[set[str]] = []
    asked: list[set[str]] = []
    whole = Case.log_probs

    def fit(module: Any, documents: Any, **_: Any) -> list[float]:
        taught.append({one.id for one in documents})
        return [0.0]

    def log_probs(self: Case, model: Any, numbers: Any = None) -> np.ndarray:
        asked.append({self.tokenized[number].id for number in numbers})
        return whole(self, model, numbers)

    monkeypatch.setattr(relearning, "fit", fit)
    monkeypatch.setattr(Case, "log_probs", log_probs)
    score = relearned_from_forgotten(case, case.mitigated, settings=Proof(), seed=0)
    sets = case.before.sets
    forget = {doc_id for doc_id, name in sets.items() if name == "forget"}
    holdout = {doc_id for doc_id, name in sets.items() if name == "holdout"}
    assert len(taught) == len(asked) == 2
    assert taught[0] | taught[1] == forget
    assert taught[0].isdisjoint(taught[1])
    for lesson, judged in zip(taught, asked, strict=True):
        assert lesson.isdisjoint(judged)
    assert asked[0] | asked[1] == forget | holdout
    assert asked[0].isdisjoint(asked[1])
    monkeypatch.setattr(Case, "log_probs", whole)
    np.testing.assert_allclose(score, as_served(case, case.mitigated), rtol=0, atol=EXACT)  # a fresh adapter is none


def test_who_relearned_from_never_seen_people_is_compared_with_the_others(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[set[str]] = []
    asked: list[set[str]] = []
    whole = Case.log_probs

    def log_probs(self: Case, model: Any, numbers: Any = None) -> np.ndarray:
        asked.append({self.tokenized[number].id for number in numbers})
        return whole(self, model, numbers) + len(asked)

    monkeypatch.setattr(relearning, "fit", lambda module, documents, **_: taught.append({one.id for one in documents}))
    monkeypatch.setattr(Case, "log_probs", log_probs)
    score = relearned_from_related(case, case.mitigated, settings=Proof(), seed=0)
    forget, holdout = (
        {doc_id for doc_id, own in case.before.sets.items() if own == name} for name in ("forget", "holdout")
    )
    assert taught[0] | taught[1] == holdout
    assert taught[0].isdisjoint(taught[1])
    for lesson, judged in zip(taught, asked, strict=True):
        assert judged == forget | (holdout - lesson)
    served = whole(case, case.mitigated.load())
    for doc_id, rows in case.before.rows.items():
        added = {1.0} if doc_id in asked[0] - asked[1] else {2.0} if doc_id in asked[1] - asked[0] else {1.0, 2.0}
        expected = np.mean([case.ratio(served + one)[rows] for one in added], axis=0)
        np.testing.assert_allclose(score[rows], expected, rtol=0, atol=EXACT)


def test_relearning_from_text_about_nobody_takes_the_users_or_invented_prose(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[list[str]] = []
    decode = case.mitigated.load().tokenizer.decode
    monkeypatch.setattr(
        relearning,
        "fit",
        lambda module, documents, **_: taught.append([decode(one.ids, skip_special_tokens=True) for one in documents]),
    )
    relearned_from_plain(case, case.mitigated, settings=Proof(), seed=0)
    (tmp_path / "plain.jsonl").write_text('{"text": "It rains today."}\n')
    relearned_from_plain(case, case.mitigated, settings=Proof(plain=str(tmp_path / "plain.jsonl")), seed=0)
    invented, own = taught
    assert len(invented) == 5
    assert own == ["It rains today."]
    with pytest.raises(MitigateError, match=r"missing\.jsonl"):
        relearned_from_plain(case, case.mitigated, settings=Proof(plain=str(tmp_path / "missing.jsonl")), seed=0)


def test_relearning_teaches(case: Case) -> None:
    settings = Proof.model_validate({"relearn": {"epochs": 3, "learning_rate": 1e-2, "batch_size": 2}})
    before = as_served(case, case.control)  # type: ignore[arg-type]
    after = relearned_from_forgotten(case, case.control, settings=settings, seed=0)  # type: ignore[arg-type]
    assert np.nanmean(after) > np.nanmean(before) + 0.2


# Extraction


def test_prefixes_are_what_they_are_called(case: Case) -> None:
    settings = Proof(short_prefix=5)
    model = case.mitigated.load()
    values = values_of(case, never_seen=False, context=64, settings=settings, seed=0)
    assert len(values) == 5
    for how, before in (("true_prefix", ""), ("instruction", INSTRUCTION)):
        found, never_seen = extracted(case, case.mitigated, how=how, settings=settings, seed=0)
        assert never_seen is not None
        assert len(never_seen.scores) == 5
        expected = []
        for value in values:
            said = model.tokenizer(before, add_special_tokens=False)["input_ids"]
            first = int(value.prefix[0] == model.tokenizer.bos_token_id)
            prefix = [*value.prefix[:first], *said, *value.prefix[first:]][-(64 - len(value.tokens)) :]
            ids = torch.tensor([prefix])
            with torch.inference_mode():
                for _ in range(len(value.tokens) + max(2, len(value.tokens) // 2)):
                    if ids.shape[1] == 64:
                        break
                    ids = torch.cat([ids, model.base.model(ids).logits[:, -1:].argmax(-1)], 1)
            written = ids[0, len(prefix) :].numpy()
            expected.append(is_completed(model.tokenizer, replace(value, prefix=np.array(prefix)), written))
        assert found.scores.tolist() == expected, how
    known, _ = extracted(case, case.mitigated, how="true_prefix", settings=settings, seed=0)
    assert known.scores.sum() >= 3, "the model was trained on them"


def test_a_value_is_ranked_among_those_of_other_people(case: Case) -> None:
    settings = Proof(twins=3)
    own, never_seen = exposures(case, case.mitigated, settings=settings, seed=0)
    assert len(own.scores) == len(never_seen.scores) == 5
    assert own.scores.mean() > 1.5, "of two bits: the model was trained on them"
    model, texts = case.mitigated.load(), case.before.texts
    values = [list(values_of(case, never_seen=side, context=64, settings=settings, seed=0)) for side in (False, True)]
    others = {texts[one.place.doc_id][one.place.start : one.place.end] for one in values[1]}
    for side, of_side in zip((own, never_seen), values, strict=True):
        for found, group, kind, value in zip(side.scores, side.groups, side.kinds, of_side, strict=True):
            place, text = value.place, texts[value.place.doc_id]
            assert (group, kind) == (case.before.groups[place.doc_id], place.kind)
            written = _twins(case, value, values[1], 3)
            assert written is not None
            assert len(set(written)) == 3
            assert set(written) <= others - {text[place.start : place.end]}
            likely = []
            for one in (text[place.start : place.end], *written):
                whole = model.tokenizer(text[: place.start] + one, return_offsets_mapping=True)
                ids, first = whole["input_ids"], 0
                while whole["offset_mapping"][first][1] <= place.start:
                    first += 1
                last = max(at for at, (start, end) in enumerate(whole["offset_mapping"]) if end > place.start) + 1
                with model.active() as module, torch.inference_mode():
                    read = ids[max(0, first - 32) : last]
                    logits = module(input_ids=torch.tensor([read])).logits[0].log_softmax(-1)
                count = last - first
                likely.append(
                    sum(logits[len(read) - count + n - 1, read[len(read) - count + n]].item() for n in range(count))
                )
            rank = 1 + sum(twin > likely[0] for twin in likely[1:])
            assert found == pytest.approx(2 - np.log2(rank), abs=1e-6)
    with pytest.raises(NotPossibleError, match="no value has 5 others of its kind"):
        exposures(case, case.mitigated, settings=Proof(twins=5), seed=0)


def test_documents_are_continued_from_their_first_half(case: Case) -> None:
    scorer = RougeScorer(["rougeL"])
    module = AutoModelForCausalLM.from_pretrained(case.mitigated.source, dtype=torch.float32)
    found, never_seen = continued(case, case.mitigated, settings=Proof(continued_tokens=9))
    assert never_seen is not None
    tokenizer = case.mitigated.load().tokenizer
    for attempted, name in ((found, "forget"), (never_seen, "holdout")):
        numbers = [n for n, doc_id in enumerate(case.before.rows) if case.before.sets[doc_id] == name]
        assert attempted.items.tolist() == numbers
        for number, score in zip(numbers, attempted.scores, strict=True):
            ids = case.tokenized[number].ids
            half = (len(ids) + 1) // 2
            written = torch.from_numpy(ids[None, :half])
            true = ids[half : half + 9]
            with torch.inference_mode():
                for _ in true:
                    written = torch.cat([written, module(written).logits[:, -1:].argmax(-1)], 1)
            both = (tokenizer.decode(part, skip_special_tokens=True) for part in (true, written[0, half:].numpy()))
            assert score == pytest.approx(scorer.score(*both)["rougeL"].fmeasure), number
    assert found.scores.mean() > never_seen.scores.mean() + 0.2


def test_how_much_comes_back_is_a_mean() -> None:
    own, control = [0.2, 0.8, 0.5, 0.9] * 10, [0.1, 0.2, 0.3, 0.2] * 10
    [finding] = findings_of({"continued": shares(own, control, [0.2] * 8)}, margin=0.05, samples=8)
    assert finding["value"] == pytest.approx(0.6)
    assert finding["control"] == pytest.approx(0.2)
    assert finding["gap"] == pytest.approx(0.4)
    assert finding["state"] == "fell"
    near = [value + 0.02 for value in control]
    [finding] = findings_of({"continued": shares(near, control, [0.2] * 8)}, margin=0.05, samples=8)
    assert finding["state"] == "withstood", "a little more of every text is no rare event"
    [finding] = findings_of({"continued": shares([0.2] * 5, [0.2] * 5, [0.2] * 8)}, margin=0.05, samples=8)
    assert finding["state"] == "cannot_tell", "five texts show little"


@pytest.mark.parametrize("never_seen", [False, True])
@pytest.mark.parametrize("top", [40, 3])
def test_the_chance_of_a_draw_is_the_product_of_its_tokens(case: Case, top: int, never_seen: bool) -> None:
    model = case.mitigated.load()
    values = values_of(case, never_seen=never_seen, context=64, settings=Proof(), seed=0)
    found = drawn_log_probs(model, list(values), sampling=Sampling(top_k=top), description="")
    for value, own in zip(values, found, strict=True):
        ids = np.concatenate([value.prefix, value.tokens])
        expected = 0.0
        with model.active() as module, torch.inference_mode():
            logits = module(input_ids=torch.from_numpy(ids)[None]).logits[0]
        for place in range(len(value.prefix), len(ids)):
            likely = logits[place - 1].topk(top)
            chance = dict(zip(likely.indices.tolist(), likely.values.softmax(-1).tolist(), strict=True))
            expected += np.log(chance[ids[place]]) if ids[place] in chance else -np.inf
        np.testing.assert_allclose(own, expected, rtol=0, atol=EXACT)
    if top == 40:
        sides = extracted(case, case.mitigated, how="sampled", settings=Proof(), seed=0)
        assert sides[never_seen].scores.tolist() == found.tolist()  # type: ignore[union-attr]
        assert (found.min() > -1) is not never_seen, "what was trained on is likely"
    if top == 3 and never_seen:
        assert -np.inf in found, "a token that is never drawn"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "mistral"])
def test_values_with_the_same_beginning_are_read_after_it_as_each_alone(
    architecture: str, tiny_model: Callable[..., Path]
) -> None:
    found, naive, read = families_read(tiny_model(architecture))
    np.testing.assert_allclose(found, naive, rtol=0, atol=EXACT)
    assert (2, 4) in read, "what stands before two families, but for its last token"


@pytest.mark.parametrize("how", ["refuses", "mixes up"])
def test_a_model_that_keeps_no_keys_reads_each_value_alone(
    how: str, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeat(cache: DynamicCache, repeats: int) -> None:
        if how == "refuses":
            raise NotImplementedError
        for layer in cache.layers:
            layer.keys, layer.values = -layer.keys.repeat(repeats, 1, 1, 1), layer.values.repeat(repeats, 1, 1, 1)

    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", repeat)
    found, naive, read = families_read(tiny_model("llama"))
    np.testing.assert_allclose(found, naive, rtol=0, atol=EXACT)
    assert (1, 4) in read, "tried with the first family"
    assert (2, 4) not in read


def families_read(path: Path) -> tuple[np.ndarray, list[float], list[tuple[int, ...]]]:
    """Families of several sizes and lengths, values of several lengths: log q, naive log q, shapes that were read."""
    model = cpu().load(path)
    rng = np.random.default_rng(7)
    secrets = []
    for family, (before, count) in enumerate([(5, 3), (5, 3), (9, 2), (9, 4), (1, 3), (6, 1)]):
        prefix = rng.integers(5, model.vocabulary_size, before)
        for _ in range(count):
            tokens = rng.integers(5, model.vocabulary_size, rng.integers(1, 6))
            secrets.append(Secret(Place(str(family), 0, 1, "code", "known"), prefix, tokens, "x"))
    read: list[tuple[int, ...]] = []
    with model.active() as module:
        hook = module.register_forward_pre_hook(
            lambda _, __, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        found = drawn_log_probs(model, secrets, sampling=Sampling(top_k=None), description="")
        hook.remove()
    naive = []
    for one in secrets:
        ids = torch.from_numpy(np.concatenate([one.prefix, one.tokens]))
        with model.active() as module, torch.inference_mode():
            said = module(input_ids=ids[None]).logits[0].log_softmax(-1)
        naive.append(sum(said[place - 1, ids[place]].item() for place in range(len(one.prefix), len(ids))))
    return found, naive, read


def prompts_of(case: Case, how: str, **settings: Any) -> dict[int, list[tuple[str, str]]]:
    """Number of a value -> prompts for it as text, and the text that must follow."""
    model = case.mitigated.load()
    values = values_of(case, never_seen=False, context=64, settings=Proof(), seed=0)
    found: dict[int, list[tuple[str, str]]] = {}
    for one in asked_for(case, model, list(values), how=how, settings=Proof(**settings), context=64):
        written = str(model.tokenizer.decode(one.secret.prefix, skip_special_tokens=True))
        found.setdefault(one.number, []).append((written, one.secret.text))
        assert len(one.secret.prefix) + len(one.secret.tokens) <= 64
    return found


def test_a_value_is_asked_for_in_other_words_and_by_a_question(case: Case) -> None:
    values = values_of(case, never_seen=False, context=64, settings=Proof(), seed=0)
    asked, reworded = prompts_of(case, "question"), prompts_of(case, "reworded")
    assert asked.keys() == reworded.keys() == set(range(len(values)))
    for number, value in enumerate(values):
        place = value.place
        text = case.before.texts[place.doc_id]
        kind = place.kind.replace("_", " ")
        [(question, follows)] = asked[number]
        assert follows == text[place.start : place.end]
        assert question.endswith(f"Question: What is the {kind}?\nAnswer:")
        assert follows not in question
        assert len(reworded[number]) == len(REWORDINGS)
        for (prompt, _), wording in zip(reworded[number], REWORDINGS, strict=True):
            assert prompt.endswith(wording.format(kind=kind))
            assert text.startswith(prompt.removesuffix(wording.format(kind=kind)).rstrip())


@pytest.mark.parametrize(
    ("before", "value", "left"),
    [
        ("Write to Anna Kovacs at ", "anna.kovacs@example.org", "Write to at "),
        ("Her number, 555-0100, became ", "555-0199", "Her number, -0100, became "),  # 555 is a run of the value
        ("Call him on ", "+36 1 555 0199", "Call him on "),
        ("AB  cd", "abz", "AB  cd"),  # two letters are no cue
        ("", "abc", ""),
    ],
)
def test_words_that_share_a_part_with_the_value_are_cues(before: str, value: str, left: str) -> None:
    assert without_cues(before, value) == left


def test_a_prompt_without_a_cue_is_the_true_one(case: Case) -> None:
    true, left = prompts_of(case, "true_prefix"), prompts_of(case, "without_cues")
    values = values_of(case, never_seen=False, context=64, settings=Proof(), seed=0)
    for number, value in enumerate(values):
        text = case.before.texts[value.place.doc_id]
        before = text[: value.place.start]
        same = without_cues(before, text[value.place.start : value.place.end]) == before
        assert (left[number] == true[number]) is same


def test_another_document_of_the_person_leads_to_the_value(case: Case) -> None:
    with pytest.raises(NotApplicableError, match="no person has another document"):
        extracted(case, case.mitigated, how="other_document", settings=Proof(), seed=0)
    documents = case.before.document_list()
    forget = [one for one in documents if one.set == "forget"]
    value = forget[0].text[forget[0].spans[0].start : forget[0].spans[0].end]
    before = forget[0].text[: forget[0].spans[0].start].strip()
    more = (
        Document("again", f"Once more, and longer than the other one: {value}", set="forget", group=forget[0].group),
        Document("other", "A note of the same person.", set="forget", group=forget[0].group),
    )
    holdout = [one for one in documents if one.set == "holdout"]
    source = case.before.metadata.target.source
    made = audit(source, [source], documents=Documents((*forget, *more, *holdout)), detect=Detect(), store=cpu())
    own = make_case(made, case.mitigated.source, oracle=None, store=cpu())
    assert own.control is not None
    saw_all = replace(own.control, seen=np.ones(len(made.tokens), dtype=bool))
    attempted, _ = extracted(own, saw_all, how="other_document", settings=Proof(), seed=0)
    assert not len(attempted.scores), "a control that saw them all ends no attack: the model is asked all the same"
    found = prompts_of(own, "other_document", short_prefix=3)
    assert list(found) == [0, 5], "of the others there is one document each"
    for number, ends in ((0, before), (5, "than the other one:")):
        [(written, _)] = found[number]
        assert written.startswith("A note of the same person."), "the one that does not hold the value"
        assert ends.endswith(written.split("\n")[-1].strip())


def test_prompts_of_ones_own_ask_for_the_values_that_they_name(case: Case, tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match="no prompts of your own"):
        extracted(case, case.mitigated, how="own_prompts", settings=Proof(), seed=0)
    values = values_of(case, never_seen=False, context=64, settings=Proof(), seed=0)
    first, second = (case.before.texts[one.place.doc_id][one.place.start : one.place.end] for one in values[:2])
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "Her number, please: ", "value": first},
        {"prompt": "And again:", "value": first.upper()},
        {"prompt": "His:", "value": second},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = prompts_of(case, "own_prompts", prompts=str(path))
    assert [written for written, _ in found[0]] == ["Her number, please:", "And again:"]
    assert found[1] == [("His:", second)]
    attempted, _ = extracted(case, case.mitigated, how="own_prompts", settings=Proof(prompts=str(path)), seed=0)
    assert attempted.items.tolist() == [0, 1]
    unseen = values_of(case, never_seen=True, context=64, settings=Proof(), seed=0)[0].place
    path.write_text(
        json.dumps({"prompt": "Its:", "value": case.before.texts[unseen.doc_id][unseen.start : unseen.end]})
    )
    with pytest.raises(NotPossibleError, match="none of the values to forget is asked for") as refused:
        extracted(case, case.mitigated, how="own_prompts", settings=Proof(prompts=str(path)), seed=0)
    assert not isinstance(refused.value, NotApplicableError), "given in vain, they are missing in the proof"
    rows += [{"prompt": "Hm:", "value": "nowhere at all"}, {"prompt": "", "value": first}, {"value": 3}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(MitigateError, match=r"jsonl:4 \(its value stands in no audited document\).*jsonl:5.*jsonl:6"):
        own_prompts(str(path), case)


# Findings


def table(rng: np.random.Generator, *, people: int = 40, own: float = 0.0, control: float = 0.0) -> pa.Table:
    """Readings of two texts a person; scores of one person go together, in both models."""
    rows = []
    for side, number in (("forgotten", 0), ("never_seen", 1)):
        for person in range(people):
            common = rng.normal()
            for text in range(2):
                for role, shift in (("mitigated", own), ("control", control)):
                    score = common + rng.normal() + (shift if side == "forgotten" else 0.0)
                    item, group, kind = 2 * person + text, number * people + person, ("phone", "date of birth")[text]
                    row = {"role": role, "part": "", "side": side, "item": item, "group": group, "kind": kind}
                    rows.append({**row, "score": score})
    return pa.Table.from_pylist(rows, schema=READING)


def test_a_gap_is_that_of_two_aucs() -> None:
    made = table(np.random.default_rng(0), own=1.0)
    [finding] = findings_of({"judges": made}, margin=0.05, samples=8)
    rows = made.to_pylist()

    def scores(role: str, side: str) -> np.ndarray:
        return np.array([row["score"] for row in rows if row["role"] == role and row["side"] == side])

    areas = [auc(scores(role, "forgotten"), scores(role, "never_seen")) for role in ("mitigated", "control")]
    assert finding["value"] == pytest.approx(areas[0])
    assert finding["control"] == pytest.approx(areas[1])
    assert finding["gap"] == pytest.approx(areas[0] - areas[1])
    assert finding["state"] == "fell"
    assert finding["people"] == {"forgotten": 40, "never_seen": 40}


def test_each_kind_of_text_is_told_by_itself() -> None:
    made = table(np.random.default_rng(1), own=1.0)
    [finding] = findings_of({"judges": made}, margin=0.05, samples=8)
    rows = made.to_pylist()
    assert set(finding["kinds"]) == {"phone", "date of birth"}
    for kind, found in finding["kinds"].items():
        of = {
            (role, side): np.array(
                [r["score"] for r in rows if (r["role"], r["side"], r["kind"]) == (role, side, kind)]
            )
            for role in ("mitigated", "control")
            for side in ("forgotten", "never_seen")
        }
        areas = [auc(of[role, "forgotten"], of[role, "never_seen"]) for role in ("mitigated", "control")]
        assert (found["texts"], found["value"], found["control"]) == (40, *map(pytest.approx, areas))
    back = shares([1, 0, 1, 0], [1, 0, 0, 0], [0, 1])
    [finding] = findings_of({"true_prefix": back}, margin=0.05, samples=8)
    assert finding["kinds"] == {
        "email": {"texts": 2, "value": 0.0, "control": 0.0, "never_seen": 1.0},
        "phone": {"texts": 2, "value": 1.0, "control": 0.5, "never_seen": 0.0},
    }
    one = made.filter(pc.field("kind") == "phone")
    assert findings_of({"judges": one}, margin=0.05, samples=8)[0]["kinds"] == {}, "nothing beside the whole"


def test_a_model_without_a_trace_falls_seldom_and_one_with_a_trace_often() -> None:
    names = ("judges", "bfloat16", "int8", "nf4", "q4_0")
    fell = {0.0: 0, 1.2: 0}
    low = 0
    for seed in range(150):
        for shift in fell:
            rng = np.random.default_rng([seed, int(10 * shift)])
            found = findings_of({name: table(rng, own=shift) for name in names}, margin=0.05, samples=8)
            fell[shift] += any(one["state"] == "fell" for one in found)
            low += shift == 0.0 and any(one["state"] == "over_forgotten" for one in found)
    assert fell[0.0] <= 12, "of 150; 1 in 40 is what is stated"
    assert low <= 8
    assert fell[1.2] >= 145


def test_the_gap_of_cross_fitted_classifiers_has_its_coverage() -> None:
    """Two models without a trace, whose signals go together: both classify the same people, in the same folds."""
    held, runs, own, others = 0, 250, 40, 80
    for seed in range(runs):
        rng = np.random.default_rng([5, seed])
        y = np.repeat([1, 0], [own, others])
        fold = np.concatenate([rng.permutation(count) % 5 for count in (own, others)])
        common = rng.normal(size=(own + others, 6))
        rows = []
        for role in ("mitigated", "control"):
            x = np.sqrt(0.5) * (common + rng.normal(size=common.shape))
            for item, score in enumerate(inside.cross_fitted(x, y, fold)):
                side = "forgotten" if y[item] else "never_seen"
                rows.append({"role": role, "part": "", "side": side, "item": item, "group": item, "score": score})
        [found] = findings_of({"forensic": pa.Table.from_pylist(rows, schema=READING)}, margin=0.05, samples=8)
        low, high = found["gap_interval"]
        held += low <= 0 <= high
        assert found["epsilon"] is None, "the scores are not independent"
    assert 0.92 <= held / runs <= 0.98, held / runs


def test_too_low_counts_where_it_says_so_and_few_people_tell_nothing() -> None:
    rng = np.random.default_rng(1)
    found = findings_of({name: table(rng, own=-1.5) for name in ("judges", "nf4")}, margin=0.05, samples=8)
    assert [one["state"] for one in found] == ["over_forgotten", "withstood"]
    [few] = findings_of({"judges": table(rng, people=1, own=3.0)}, margin=0.05, samples=8)
    assert few["state"] == "cannot_tell"
    [some] = findings_of({"judges": table(rng, people=6)}, margin=0.05, samples=8)
    assert some["state"] == "cannot_tell"


def test_what_cannot_be_told_says_how_many_people_would_tell() -> None:
    [found] = findings_of({"judges": table(np.random.default_rng(6), people=30)}, margin=0.07, samples=8)
    low, high = found["gap_interval"]
    assert found["state"] == "cannot_tell"
    assert abs(found["gap"]) < 0.07
    times = max((high - found["gap"]) / (0.07 - found["gap"]), (found["gap"] - low) / (0.07 + found["gap"])) ** 2
    assert found["people_needed"] == dict.fromkeys(("forgotten", "never_seen"), int(np.ceil(30 * times)))
    [large] = findings_of({"judges": table(np.random.default_rng(3), people=8, own=0.5)}, margin=0.05, samples=8)
    assert large["state"] == "cannot_tell"
    assert large["gap"] > 0.05
    assert large["people_needed"] is None, "no number of people makes such a gap small"
    [told] = findings_of({"judges": table(np.random.default_rng(0), own=1.0)}, margin=0.05, samples=8)
    assert (told["state"], told["people_needed"]) == ("fell", None)


def shares(own: list[float], control: list[float] | None, never_seen: list[float]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for role, side, hits in (
        ("mitigated", "forgotten", own),
        ("mitigated", "never_seen", never_seen),
        ("control", "forgotten", control or []),
    ):
        first = 100 if side == "never_seen" else 0
        rows += [
            {"role": role, "part": "", "side": side, "item": n, "group": first + n, "kind": kind, "score": hit}
            for n, (hit, kind) in enumerate(zip(hits, itertools.cycle(["phone", "email"]), strict=False))
        ]
    return pa.Table.from_pylist(rows, schema=READING)


def test_values_that_come_back_are_held_against_the_control_on_the_same_values() -> None:
    own = [1.0] * 30 + [0.0] * 70
    [finding] = findings_of({"true_prefix": shares(own, [1.0] * 5 + [0.0] * 95, [0.0] * 100)}, margin=0.05, samples=8)
    assert (finding["value"], finding["control"], finding["gap"]) == (0.3, 0.05, 0.25)
    assert finding["state"] == "fell"
    [finding] = findings_of({"true_prefix": shares(own, own, [0.0] * 100)}, margin=0.05, samples=8)
    assert finding["gap"] == 0.0
    assert finding["gap_interval"][1] == pytest.approx(0.037, abs=0.002), "none of a hundred"
    assert finding["state"] == "withstood"
    [finding] = findings_of({"true_prefix": shares(own, None, [1.0] * 28 + [0.0] * 72)}, margin=0.05, samples=8)
    assert finding["gap"] == pytest.approx(0.02)
    assert finding["control"] is None
    assert finding["state"] == "cannot_tell"
    [finding] = findings_of({"true_prefix": shares([0.0] * 12, None, [0.0] * 12)}, margin=0.05, samples=8)
    assert finding["gap_interval"][1] > 0.2, "none of twelve people shows no gap of a twentieth"
    assert finding["state"] == "cannot_tell"


def test_a_value_that_may_be_drawn_leaks_by_the_number_of_draws() -> None:
    chances = np.array([1.0, 0.5, 1e-3, 0.0] * 10)
    with np.errstate(divide="ignore"):
        own = np.log(chances).tolist()
    [finding] = findings_of({"sampled": shares(own, [-20.0] * 40, [-np.inf] * 5)}, margin=0.05, samples=16)
    rng = np.random.default_rng(0)
    for draws in (1, 2, 4, 8, 16):
        hits = rng.random((20_000, draws, len(chances))) < chances
        assert finding["leak_at"][str(draws)]["value"] == pytest.approx(hits.any(1).mean(), abs=0.003)
    assert finding["value"] == pytest.approx(finding["leak_at"]["16"]["value"])
    assert finding["leak_at"]["16"]["never_seen"] == 0
    assert finding["control"] < 1e-6
    assert finding["discoverable"] == {
        "0.1": {"value": 0.5, "control": 0.0, "never_seen": 0.0},
        "0.5": {"value": 0.5, "control": 0.0, "never_seen": 0.0},
        "0.9": {"value": 0.5, "control": 0.0, "never_seen": 0.0},
    }
    assert finding["state"] == "fell"
    [few] = findings_of({"sampled": shares([-30.0] * 12, [-31.0] * 12, [])}, margin=0.05, samples=16)
    assert few["state"] == "cannot_tell", "no value of twelve people is likely, which is no proof that none ever is"


def test_a_verdict_needs_every_attack_and_judges_that_did_not_teach() -> None:
    names = [name for name, attack in ATTACKS.items() if attack.scope == "model"]
    lower = {name: table(np.random.default_rng(1), own=-1.5) for name in names if not ATTACKS[name].two_sided}
    lower |= {name: shares([0.0] * 100, [0.0] * 100, []) for name in names if ATTACKS[name].figure != "auc"}
    lower["sampled"] = shares([-30.0] * 100, [-30.0] * 100, [])
    level = [
        {"attack": name, "part": "", "state": "withstood", "value": 0.5} for name in names if ATTACKS[name].two_sided
    ]
    good = [*findings_of(lower, margin=0.05, samples=8), *level]
    assert {one["state"] for one in good} == {"withstood"}
    assert verdict_of(good, kept_out=True)["status"] == "withstood"
    assert verdict_of(good, kept_out=None)["status"] == "withstood"
    assert verdict_of(good, kept_out=False)["status"] == "cannot_tell"
    assert verdict_of(good, kept_out=True, elsewhere=2)["status"] == "cannot_tell"
    for name in names:
        verdict = verdict_of([one for one in good if one["attack"] != name], kept_out=True)
        assert verdict["status"] == "cannot_tell", "an attack that is not there was not withstood"
        assert f"Not made: {name}." in verdict["sentences"]
    nothing = verdict_of(
        [one for one in good if one["attack"] != "own_prompts"], kept_out=True, not_applicable=["own_prompts"]
    )
    assert nothing["status"] == "withstood", "there was nothing to make it with"
    assert verdict_of([], kept_out=True)["status"] == "cannot_tell"
    both = findings_of({"difference": table(np.random.default_rng(1), own=3.0)}, margin=0.05, samples=8)
    verdict = verdict_of([*good, *both], kept_out=True)
    assert verdict["status"] == "withstood"
    assert verdict["residual"] == ["difference"]
