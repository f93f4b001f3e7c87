"""The tasks that an audit becomes, their batches, and the terms that are computed once: against plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from forgetting import QUICK, changed, cpu, loop_of
from made_up import with_metadata
from world import CONTEXT, World, sentences

from mitigate.detection.audit import audit, load_audited
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models.model import Model
from mitigate.secrets.same import comparable
from mitigate.tokens.batches import collate
from mitigate.unlearning.material.control import known_numbers, token_levels
from mitigate.unlearning.material.data import unlearning_data
from mitigate.unlearning.material.forgetting import scope_tokens, token_weights
from mitigate.unlearning.material.tasks import Task, facts, micro_batches
from mitigate.unlearning.material.teachers import OutTerms


@pytest.fixture(scope="module")
def target(world: World) -> Model:
    return cpu().load(world.target)


# Which tokens, with what weight


def test_token_scope_is_the_audits_selection_and_sequence_scope_whole_documents(whole: Audit) -> None:
    selected = whole.columns["selected"].astype(bool)
    assert np.array_equal(scope_tokens(whole, "token"), selected)
    assert selected.sum() == 5 * 6, "six digits of five forget documents"
    rows = whole.tokens.select(["audited", "doc_id"]).to_pylist()
    expected = [row["audited"] and row["doc_id"].startswith("forget") for row in rows]
    assert scope_tokens(whole, "sequence").tolist() == expected


def with_column(table: Audit, name: str, values: Iterable[float | None]) -> Audit:
    place = table.tokens.column_names.index(name)
    return replace(table, tokens=table.tokens.set_column(place, name, pa.array(values, pa.float32())))


def test_tokens_weigh_one_or_their_probability_or_their_entropy_with_mean_one(whole: Audit) -> None:
    chosen = scope_tokens(whole, "sequence")
    log_odds = np.linspace(-3, 3, len(chosen)).astype(np.float32)
    calibrated = with_column(whole, "log_odds", log_odds.tolist())
    entropy = whole.columns["entropy_out"].tolist()
    raw = {
        "hard": [1.0] * len(chosen),
        "probability": [1 / (1 + math.exp(-float(x))) for x in log_odds],
        "entropy": entropy,
    }
    for weighting, values in raw.items():
        mine = [value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen]
        got = token_weights(calibrated, chosen, weighting)
        assert got[chosen].tolist() == pytest.approx([value * len(mine) / sum(mine) for value in mine], rel=1e-5)
        assert weighting == "hard" or got[chosen].std() > 0.1


def test_weights_by_probability_need_a_calibrated_audit(whole: Audit, tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match=r"unlearn.weighting: probability needs .*detect.fdr"):
        loop_of(whole, changed(QUICK, weighting="probability"), tmp_path / "out")


# Tasks


def tokens_of(tasks: Iterable[Task], *, name: str) -> dict[tuple[str, int], float]:
    """A fact of every scored token, by document and position; each token once."""
    found: dict[tuple[str, int], float] = {}
    for task in tasks:
        for at, value in zip(task.start + task.scored, getattr(task, name).tolist(), strict=True):
            assert (task.doc_id, int(at)) not in found
            found[task.doc_id, int(at)] = value
    return found


@pytest.mark.parametrize("scope", ["token", "sequence"])
def test_every_token_is_in_one_task_with_the_facts_of_the_audit(long: Audit, target: Model, scope: str) -> None:
    data = unlearning_data(long, target, scope=scope, weighting="entropy", focus=3.0)
    chosen, columns = scope_tokens(long, scope), long.columns
    weight = token_weights(long, chosen, "entropy")
    assert len(data.forget) > 2 * 2, "documents of several windows"
    assert {task.doc_id.split("-")[0] for task in data.hold} == {"retain"}, "never the holdout"
    names = ("selected", "weight", "before", "out", "typical", "margin", "known")
    levels, secrets = token_levels(long, chosen), known_numbers(long)
    found = {name: tokens_of([*data.forget, *data.hold], name=name) for name in names}
    assert {columns["memorized"][row] for row in range(len(chosen)) if not chosen[row]} == {True, False}
    for doc_id, rows in long.rows.items():
        for position, row in enumerate(range(rows.start, rows.stop)):
            if not columns["audited"][row] or doc_id.startswith("holdout"):
                continue
            got = {name: found[name].pop((doc_id, position)) for name in names}
            assert got["selected"] == chosen[row]
            known = got.pop("known")
            if not chosen[row]:
                assert got["weight"] == (3.0 if columns["memorized"][row] else 1.0)
                continue
            assert known == secrets[row]
            typical = [x for x in long.reference_log_probs[row].tolist() if x == x]
            at = np.mean(typical) + levels.typical[row]
            expected = (weight[row], columns["log_prob"][row], columns["log_prob_out"][row], at, levels.margin[row])
            assert list(got.values())[1:] == pytest.approx(expected, rel=1e-6)
    assert not any(found.values()), "no other token"
    assert len({task.key for task in (*data.forget, *data.hold)}) == len(data.forget) + len(data.hold)


def test_windows_hold_the_ids_that_the_audit_scored_in(long: Audit, target: Model) -> None:
    documents = {tokens.id: tokens for tokens in long.tokenized()}
    data = unlearning_data(long, target)
    for task in (*data.forget, *data.hold):
        assert len(task.ids) <= CONTEXT
        assert task.ids.tolist() == documents[task.doc_id].ids[task.start : task.start + len(task.ids)].tolist()


def test_windows_are_no_longer_than_the_shortest_model_of_the_audit_takes(whole: Audit, target: Model) -> None:
    assert whole.metadata.context == target.context
    shorter = with_metadata(whole, context=20)
    data = unlearning_data(shorter, target)
    assert max(len(task.ids) for task in (*data.forget, *data.hold)) == 20


def test_the_tokens_of_a_span_share_its_number_also_over_windows(long: Audit, target: Model) -> None:
    data = unlearning_data(long, target)
    assert data.spans == 6
    numbers: dict[tuple[str, int], set[float]] = {}
    found = tokens_of(data.forget, name="span")
    for row in long.spans.to_pylist():
        if row["selected"]:
            where = [(row["doc_id"], at) for at in range(row["token_start"], row["token_end"])]
            numbers[row["doc_id"], row["token_start"]] = {found.pop(one) for one in where}
    assert all(len(one) == 1 for one in numbers.values())
    assert sorted(number for one in numbers.values() for number in one) == list(range(6))
    assert set(found.values()) == {-1}, "all other tokens are in none"


def test_in_sequence_scope_a_document_is_one_span(long: Audit, target: Model) -> None:
    data = unlearning_data(long, target, scope="sequence")
    numbers = {(task.doc_id, int(n)) for task in data.forget for n in task.span}
    assert sorted(numbers) == [("forget-0", 0), ("forget-3", 1)]
    assert data.spans == 2


def test_without_anchors_sequences_end_with_the_last_token_to_forget(long: Audit, target: Model) -> None:
    held, bare = (unlearning_data(long, target, anchors=anchors) for anchors in (True, False))
    assert bare.hold == []
    for name in ("weight", "before", "out", "span"):
        every = tokens_of(held.forget, name=name)
        selected = tokens_of(held.forget, name="selected")
        assert tokens_of(bare.forget, name=name) == {where: every[where] for where in every if selected[where]}
    assert all(task.selected.all() and task.scored[-1] == len(task.ids) - 1 for task in bare.forget)
    assert sum(len(task.ids) for task in bare.forget) < sum(len(task.ids) for task in held.forget)


def test_retain_documents_are_held_beside_the_audits_own(whole: Audit, target: Model) -> None:
    given = Documents(tuple(Document(f"extra-{n}", text) for n, text in enumerate(sentences(4, seed=8))))
    alone, beside = (unlearning_data(whole, target, retain=retain, focus=3.0) for retain in (None, given))
    assert [task.ids.tolist() for task in beside.hold] == [task.ids.tolist() for task in alone.hold]
    assert [task.doc_id for task in beside.extra] == [document.id for document in given]
    assert all((task.weight == 1).all() and not task.selected.any() for task in beside.extra)
    assert len(alone.hold) == len(alone.forget) == 5
    assert alone.extra == unlearning_data(whole, target, retain=given, anchors=False).extra == []


def test_the_models_own_samples_are_held_where_asked(whole: Audit, tmp_path: Path) -> None:
    plain, generated, again = (
        loop_of(whole, changed(QUICK, retain={"generated": count}), tmp_path / "out").data.extra for count in (0, 3, 3)
    )
    assert (len(plain), len(generated)) == (0, 3)
    assert [task.ids.tolist() for task in again] == [task.ids.tolist() for task in generated], "the seed settles them"


# Substitutes


def changed_text(tasks: Iterable[Task], target: Model) -> tuple[str, np.ndarray]:
    """The text that windows of a document make up, and the characters [start, end) of each of its tokens."""
    ids: dict[int, int] = {}
    for task in tasks:
        ids |= dict(enumerate(task.ids.tolist(), start=task.start))
    assert sorted(ids) == list(range(len(ids)))
    text = target.tokenizer.decode([ids[at] for at in sorted(ids)], skip_special_tokens=True)
    encoded = target.tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"] == [ids[at] for at in sorted(ids)]
    return text, np.array(encoded["offset_mapping"])


@pytest.mark.parametrize("kind", ["fake", "placeholder"])
def test_substitutes_are_learned_where_the_secrets_stood_and_pair_with_their_spans(
    long: Audit, target: Model, kind: str
) -> None:
    data = unlearning_data(long, target, substitute=kind, key="k")
    assert data.spans == 6
    number_at = tokens_of(data.forget, name="span")
    first_token = {(row["doc_id"], row["char_start"]): row["token_start"] for row in long.spans.to_pylist()}
    documents = {document.id: document for document in long.document_list()}
    for doc_id in ("forget-0", "forget-3"):
        partners = list({id(p): p for task in data.forget if task.doc_id == doc_id for p in task.partners}.values())
        assert all(partner.substitute and not partner.selected.any() for partner in partners)
        assert len(partners) > 1, "several windows"
        text, offsets = changed_text(partners, target)
        learned = tokens_of(partners, name="span")
        old, at, shift = documents[doc_id], 0, 0
        for span in old.spans:
            number = number_at[doc_id, first_token[doc_id, span.start]]
            start, length = span.start + shift, 6 if kind == "fake" else len("[CODE]")
            new, secret = text[start : start + length], old.text[span.start : span.end]
            assert text[at:start] == old.text[at - shift : span.start], "nothing else changed"
            assert new == "[CODE]" if kind == "placeholder" else new.isdigit() and comparable(new) != secret
            mine = [n for n, (first, last) in enumerate(offsets.tolist()) if first < start + length and last > start]
            assert {learned.pop((doc_id, n)) for n in mine} == {number}
            at, shift = start + length, shift + length - 6
        assert old.text[at - shift :].startswith(text[at:]), "cut after the last of them"
        assert learned == {}, "no other token is learned"


@pytest.mark.parametrize("kind", ["fake", "placeholder"])
def test_a_window_is_with_the_substitutes_of_all_its_spans(long: Audit, target: Model, kind: str) -> None:
    data = unlearning_data(long, target, substitute=kind)
    for task in data.forget:
        wanted = set(task.span[task.selected].tolist())
        assert wanted <= {int(number) for partner in task.partners for number in partner.span}
        assert all(wanted & set(partner.span.tolist()) for partner in task.partners)


def test_in_sequence_scope_the_whole_changed_document_is_learned(whole: Audit, target: Model) -> None:
    data = unlearning_data(whole, target, scope="sequence", substitute="fake")
    for task in data.forget:
        [partner] = task.partners
        assert partner.scored.tolist() == task.scored.tolist()
        assert set(partner.span.tolist()) == set(task.span.tolist())
        assert (partner.ids != task.ids).sum() <= 6


def test_chosen_tokens_outside_of_what_is_replaced_are_a_span_without_substitute(whole: Audit, target: Model) -> None:
    row = next(row for row in whole.spans.to_pylist() if row["doc_id"] == "forget-0" and row["source"] == "known")
    before_code = whole.rows["forget-0"].start + row["token_start"] - 1
    selected = whole.columns["selected"].astype(bool)
    selected[before_code] = True
    place = whole.tokens.column_names.index("selected")
    tokens = whole.tokens.set_column(place, "selected", pa.array(selected))
    data = unlearning_data(replace(whole, tokens=tokens), target, substitute="fake")
    [task] = [task for task in data.forget if task.doc_id == "forget-0"]
    numbers = task.span[task.selected]
    assert len(set(numbers[1:])) == 1
    assert numbers[0] not in numbers[1:]
    assert data.spans == 6
    assert all(numbers[0] not in partner.span for partner in task.partners)


# Batches


def token_facts(tasks: list[Task], *, batch_tokens: int) -> dict[tuple[int, int], tuple[object, ...]]:
    """All that a loss learns about a token, by task and place; a span is the set of tokens in it, where it matters."""
    found: dict[tuple[int, int], tuple[object, ...]] = {}
    for batch in micro_batches(tasks, batch_tokens=batch_tokens, device=torch.device("cpu")):
        known = facts(batch)
        where = [(piece.key, int(at)) for piece in batch.pieces for at in piece.scored]
        assert set(known.span.tolist()) - {-1} == set(range(known.span_count))
        for row, token in enumerate(where):
            alike = {where[other] for other in torch.nonzero(known.span == known.span[row]).flatten().tolist()}
            numbers = [float(getattr(known, name)[row]) for name in ("weight", "before", "out")]
            flags = bool(known.selected[row]), bool(known.substitute[row]), int(batch.targets[row])
            if not any(piece.partners for piece in batch.pieces):
                alike = {other for other in alike if other[0] == token[0]}  # no loss is of spans then
            share = frozenset(alike) if known.span[row] >= 0 else None
            assert token not in found
            found[token] = (*flags, share, *(round(number, 6) if number == number else None for number in numbers))
    return found


@pytest.mark.parametrize("substitute", [None, "placeholder"])
def test_facts_do_not_depend_on_batch_size_padding_or_order(long: Audit, target: Model, substitute: str | None) -> None:
    data = unlearning_data(long, target, substitute=substitute)
    tasks = [*data.forget, *data.hold]
    expected = token_facts(tasks, batch_tokens=10**6)
    assert len(expected) == len({(p.key, at) for t in tasks for p in (t, *t.partners) for at in p.scored.tolist()})
    assert token_facts(tasks[::-1], batch_tokens=10**6) == expected
    for small in (1, 200):
        assert token_facts(tasks, batch_tokens=small) == expected


def test_micro_batches_keep_within_their_size_and_partners_together(long: Audit, target: Model) -> None:
    data = unlearning_data(long, target, substitute="fake")
    tasks = [*data.forget, *data.hold]
    batches = micro_batches(tasks, batch_tokens=200, device=torch.device("cpu"))
    assert len(batches) > 2
    for batch in batches:
        keys = [piece.key for piece in batch.pieces]
        partners = [partner.key for piece in batch.pieces for partner in piece.partners]
        assert len(set(keys)) == len(keys)
        assert set(partners) <= set(keys)
        assert batch.input_ids.numel() <= 200 or partners, "only partners go over the size"
    together = [piece.key for batch in batches for piece in batch.pieces]
    assert sorted(together) == sorted({one.key for task in tasks for one in (task, *task.partners)})


# Terms that are computed once


def log_probs_of(model: Model, task: Task) -> torch.Tensor:
    """(n, V) float64 log-probabilities of one window, alone and whole."""
    with model.active() as module, torch.no_grad():
        logits = module(torch.from_numpy(task.ids)[None]).logits[0].double()
    return torch.log_softmax(logits, -1)[torch.from_numpy(task.scored) - 1]


@pytest.mark.parametrize("entries", [16, 10**4])
def test_references_distributions_are_means_over_the_models_that_never_saw_a_document(
    world: World, target: Model, entries: int
) -> None:
    store, judges = cpu(), [world.references, world.base]
    judged = audit(target, judges, documents=world.documents, detect=Detect(select="known"), store=store)
    tasks = unlearning_data(judged, target).forget
    kinds = frozenset({"out", "typical"})
    levels = token_levels(judged, judged.columns["selected"].astype(bool))
    terms = OutTerms(judged, tasks, kinds=kinds, store=store, entries=entries)
    references = load_audited(judged.metadata.references, store=store)
    table = judged.documents
    used = dict(zip(table["doc_id"].to_pylist(), table["out_references"].to_pylist(), strict=True))
    assert {tuple(used[task.doc_id]) for task in tasks} == {(0, 2), (1, 2)}  # a cross-fitted one, and the base
    for task in tasks:
        said = torch.stack([log_probs_of(references[number], task) for number in used[task.doc_id]])
        means = {"out": said.exp().mean(0).log(), "typical": torch.log_softmax(said.mean(0), -1)}
        own = torch.from_numpy(task.selected)
        for kind, mean in means.items():
            kept = terms.of(collate([task]), kind)
            assert kept is not None
            assert len(kept) == own.sum()
            assert kept.ids.shape[1] == min(entries, mean.shape[1])
            torch.testing.assert_close(kept.log_probs.double(), mean[own].gather(1, kept.ids), rtol=0, atol=1e-4)
        tokens = torch.from_numpy(task.ids[task.scored]).unsqueeze(1)
        above = levels.typical[judged.rows[task.doc_id]][task.start + task.scored][task.selected]
        for log_probs, fact, level in ((means["out"], task.out, 0.0), (said.mean(0), task.typical, above)):
            at_token = log_probs.gather(1, tokens).squeeze(1)[own].numpy() + level
            np.testing.assert_allclose(at_token, fact[task.selected], rtol=0, atol=1e-4)


def test_nobody_is_asked_for_distributions_that_no_objective_needs(whole: Audit, target: Model) -> None:
    data = unlearning_data(whole, target)
    terms = OutTerms(whole, data.forget, kinds=frozenset({"out"}), store=cpu(), entries=16)
    assert terms.of(collate(data.hold[:2]), "out") is None, "no token to forget"
    assert terms.of(collate(data.forget[:2]), "typical") is None


def test_the_model_before_is_asked_once_about_each_token(layered: Audit, tmp_path: Path) -> None:
    settings = changed(QUICK, objective="dpo", retain={"anchor": "kl"}, kept_entries=10**4)
    loop = loop_of(layered, settings, tmp_path / "out")
    before, tasks = loop.losses.before, [*loop.data.forget, *loop.data.hold]
    before.fill(tasks)
    lower = cpu().load(layered.metadata.target.source)
    everyone = {one.key: one.alone() for task in tasks for one in (task, *task.partners)}
    for task in everyone.values():
        expected = log_probs_of(lower, task)
        kept = before.of(collate([task]))
        assert kept.distribution is not None
        assert kept.log_prob is not None
        assert kept.hidden is None, "nobody asks for it"
        mine = kept.distribution.log_probs.double()
        torch.testing.assert_close(mine, expected.gather(1, kept.distribution.ids), rtol=0, atol=1e-4)
        at_token = expected.gather(1, torch.from_numpy(task.ids[task.scored]).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(kept.log_prob.double(), at_token, rtol=0, atol=1e-4)
    with torch.no_grad():
        for parameter in loop.parameters:
            parameter.add_(1.0)
    before.forward = None
    before.fill(tasks)
