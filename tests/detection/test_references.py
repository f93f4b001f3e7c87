"""Cross-fitted references: balanced halves, the same number of OUT references for all, finished work is kept."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from world import World

from mitigate.artifacts.files import read_json
from mitigate.detection.references.crossfit import INDEX, References, crossfit_references, load_references
from mitigate.detection.references.dealing import deal_halves, draw
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models.fitting.training import sort_sets
from mitigate.models.settings import Lora, Schedule
from mitigate.models.store import ModelStore
from mitigate.tokens.tokenization import tokenize_documents

SCHEDULE = Schedule(epochs=1, batch_size=8)
LORA = Lora(rank=2)


def people(*, each: int, in_group: int = 1) -> Documents:
    """`each` groups in every set, with `in_group` documents each."""
    return Documents(
        tuple(
            Document(f"{set_name}-{group}-{n}", "some text", set=set_name, group=f"{set_name}-{group}")
            for set_name in ("forget", "retain", "holdout")
            for group in range(each)
            for n in range(in_group)
        )
    )


def crossfitted(documents: Documents, count: int, *, seed: int = 0) -> References:
    halves = deal_halves(documents, count, seed=seed)
    return References(tuple(f"r{n}" for n in range(count)), tuple(halves))


def small_store() -> ModelStore:
    return ModelStore(device="cpu")


@pytest.mark.parametrize("each", [6, 7])
@pytest.mark.parametrize("count", [2, 4, 6])
def test_each_group_is_in_half_of_the_references_and_the_halves_are_balanced(each: int, count: int) -> None:
    documents = people(each=each, in_group=2)
    halves = deal_halves(documents, count, seed=3)
    times = Counter(group for half in halves for group in half)
    assert times == {document.group: count // 2 for document in documents}
    for half in halves:
        counts = Counter(group.split("-")[0] for group in half)
        assert all(abs(counts[name] - each / 2) < 1 for name in ("forget", "retain", "holdout")), counts
    sizes = [len(half) for half in halves]
    assert max(sizes) - min(sizes) <= 1


def test_halves_are_balanced_in_sets_of_any_sizes() -> None:
    for sizes in itertools.product((0, 1, 4, 5), repeat=3):
        documents = tuple(
            Document(f"{set_name}-{number}", "text", set=set_name)
            for set_name, size in zip(("forget", "retain", "holdout"), sizes, strict=True)
            for number in range(size)
        )
        if len(documents) < 2:
            continue
        halves = deal_halves(Documents(documents), 4, seed=sum(sizes))
        totals = [len(half) for half in halves]
        assert max(totals) - min(totals) <= 1
        for set_name, size in zip(("forget", "retain", "holdout"), sizes, strict=True):
            counts = [sum(group.startswith(set_name) for group in half) for half in halves]
            assert all(abs(number - size / 2) <= 1 for number in counts), (sizes, counts)


@pytest.mark.parametrize("count", [4, 6, 8])
def test_any_two_references_are_related_alike(count: int) -> None:
    documents = people(each=600)
    halves = deal_halves(documents, count, seed=11)
    expected = (count / 2 - 1) / (count - 1) * 900  # groups that two references share
    overlaps = [len(first & second) for first, second in itertools.combinations(halves, 2)]
    # each of 900 pairs of groups gives one shared group or none: three standard deviations and some
    spread = math.sqrt(900 * (expected / 900) * (1 - expected / 900))
    assert all(abs(overlap - expected) < 4 * spread for overlap in overlaps), overlaps
    assert np.mean(overlaps) == pytest.approx(expected)


def test_two_references_cut_the_groups_in_two() -> None:
    first, second = deal_halves(people(each=5), 2, seed=0)
    assert not first & second
    assert len(first | second) == 15


def test_halves_are_a_function_of_the_seed() -> None:
    documents = people(each=6)
    assert deal_halves(documents, 4, seed=1) == deal_halves(documents, 4, seed=1)
    assert deal_halves(documents, 4, seed=1) != deal_halves(documents, 4, seed=2)


def test_documents_of_one_group_have_the_same_out_references() -> None:
    documents = people(each=5, in_group=3)
    out = crossfitted(documents, 4).out_for(documents)
    by_group: dict[str, set[tuple[int, ...]]] = {}
    for document, references in zip(documents, out, strict=True):
        by_group.setdefault(document.group, set()).add(references)
    assert all(len(found) == 1 for found in by_group.values())


def test_every_document_is_judged_by_half_of_the_references_and_none_that_saw_it() -> None:
    documents = people(each=5, in_group=2)
    references = crossfitted(documents, 6)
    for document, out in zip(documents, references.out_for(documents), strict=True):
        assert out == tuple(n for n in range(6) if document.group not in (references.trained_on[n] or ()))
        assert len(out) == 3


def test_unknown_documents_get_as_many_out_references_as_known_ones() -> None:
    references = crossfitted(people(each=5), 6)
    strangers = Documents(tuple(Document(f"new-{n}", "text") for n in range(40)))
    out = references.out_for(strangers)
    assert out == references.out_for(strangers)
    assert {len(chosen) for chosen in out} == {3}
    assert all(list(chosen) == sorted(set(chosen)) for chosen in out)
    assert len(set(out)) > 10, "they are drawn document by document"
    assert {number for chosen in out for number in chosen} == set(range(6))


def test_unknown_documents_of_one_group_have_the_same_out_references_whatever_their_order() -> None:
    references = crossfitted(people(each=5), 6)
    strangers = tuple(Document(f"new-{n}", f"text {n}", group=f"g{n % 3}") for n in range(9))
    out = dict(zip((d.id for d in strangers), references.out_for(Documents(strangers)), strict=True))
    assert all(out[f"new-{n}"] == out[f"new-{n % 3}"] for n in range(9))
    again = tuple(reversed(strangers))
    assert dict(zip((d.id for d in again), references.out_for(Documents(again)), strict=True)) == out


def test_a_draw_is_a_function_of_its_key_and_takes_every_item_about_equally_often() -> None:
    items = [3, 5, 8, 13]
    assert draw(items, 2, key="a") == draw(items, 2, key="a")
    drawn = [draw(items, 2, key=f"key {n}") for n in range(600)]
    assert all(len(set(found)) == 2 and set(found) <= set(items) for found in drawn)
    assert all(sorted(draw(items, 4, key=f"{n}")) == items for n in range(5))
    assert all(draw(items, 4, key=f"key {n}")[:2] == found for n, found in enumerate(drawn)), "fewer are the first few"
    for times in Counter(item for found in drawn for item in found).values():
        assert times == pytest.approx(300, abs=60)
    assert draw([], 0, key="a") == []


def test_a_draw_is_the_same_in_every_run() -> None:
    assert draw(range(9), 9, key="Zoë") == [0, 7, 4, 1, 5, 8, 3, 6, 2]


def test_given_references_judge_every_document_beside_the_cross_fitted() -> None:
    documents = people(each=4)
    halves = deal_halves(documents, 2, seed=0)
    references = References(("base", "r0", "r1"), (None, *halves))
    for document, out in zip(documents, references.out_for(documents), strict=True):
        assert out == (0, 2 if document.group in halves[0] else 1)
    assert references.kind == "crossfit"
    assert References(("base",), (None,)).kind == "given"


def test_a_document_that_every_reference_saw_is_refused_by_name() -> None:
    documents = people(each=2)
    references = References(("r0",), (frozenset({"forget-1"}),))
    with pytest.raises(MitigateError, match=r"no OUT reference for 1 documents \(forget-1-0\).*mitigate references"):
        references.out_for(Documents(tuple(d for d in documents if d.group == "forget-1")))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_number_of_references_is_even(count: int) -> None:
    message = f"references.count: {count} is not an even number from 2; half of them see a document"
    with pytest.raises(MitigateError, match=message):
        deal_halves(people(each=3), count, seed=0)


def test_one_group_cannot_be_halved() -> None:
    with pytest.raises(MitigateError, match="at least two documents of different groups"):
        deal_halves(Documents((Document("a", "text", group="g"), Document("b", "text", group="g"))), 2, seed=0)


def test_no_reference_is_refused_with_the_remedy() -> None:
    with pytest.raises(MitigateError, match=r"no reference: .*--reference DIR.*mitigate references"):
        load_references([])


def test_cross_fitted_references_load_with_the_groups_they_saw(world: World) -> None:
    references = load_references([world.references])
    assert references.kind == "crossfit"
    assert [Path(path).name for path in references.paths] == ["reference-0", "reference-1"]
    assert list(references.trained_on) == deal_halves(world.documents, 2, seed=5)
    assert {len(out) for out in references.out_for(world.documents)} == {1}


def test_finished_references_are_kept_and_missing_ones_made_to_equal_bytes(world: World, tmp_path: Path) -> None:
    def make() -> list[bytes]:
        made = crossfit_references(
            world.base,
            world.documents,
            out=tmp_path / "references",
            count=2,
            lora=LORA,
            schedule=SCHEDULE,
            new_store=small_store,
        )
        return [(Path(path) / "adapter_model.safetensors").read_bytes() for path in made.paths]

    first = make()
    kept, lost = (tmp_path / "references" / f"reference-{number}" for number in range(2))
    finished = (kept / "adapter_model.safetensors").stat().st_mtime_ns
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    with pytest.raises(MitigateError, match="reference-1: this reference is missing"):
        load_references([tmp_path / "references"])
    assert make() == first
    assert (kept / "adapter_model.safetensors").stat().st_mtime_ns == finished


def test_references_of_other_documents_or_settings_are_not_mixed(world: World, tmp_path: Path) -> None:
    out = tmp_path / "references"

    def make(documents: Documents, **settings: object) -> None:
        options = {"count": 2, "lora": LORA, "schedule": SCHEDULE, "new_store": small_store, **settings}
        crossfit_references(world.base, documents, out=out, **options)  # type: ignore[arg-type]

    make(world.documents)
    index = read_json(out / INDEX)
    first, *others = world.documents
    changed = Documents((replace(first, text=first.text.replace("door", "back")), *others))
    for documents, settings in (
        (changed, {}),
        (world.documents, {"count": 4}),
        (world.documents, {"seed": 1}),
        (world.documents, {"lora": Lora(rank=4)}),
        (world.documents, {"schedule": Schedule(epochs=2)}),
    ):
        with pytest.raises(MitigateError, match="holds references of other documents, base or settings"):
            make(documents, **settings)
    assert read_json(out / INDEX) == index
    assert sorted(path.name for path in out.iterdir()) == ["reference-0", "reference-1", INDEX]


def test_whole_models_can_serve_as_references(world: World, tmp_path: Path) -> None:
    made = crossfit_references(
        world.base,
        world.documents,
        out=tmp_path / "references",
        count=2,
        method="full",
        schedule=SCHEDULE,
        new_store=small_store,
    )
    store = small_store()
    models = [store.load(path) for path in made.paths]
    assert all(not model.adapters for model in models)
    assert models[0].base is not models[1].base


def losses_of(path: str | Path, documents: Sequence[Document]) -> list[float]:
    """Each document's mean loss by transformers alone, all tokens but the first."""
    store = small_store()
    model = store.load(path)
    found = []
    for own in tokenize_documents(documents, model.tokenizer):
        ids = torch.from_numpy(own.ids)[None]
        model.base.activate(model.adapters)
        with torch.no_grad():
            found.append(float(model.base.model(input_ids=ids, labels=ids).loss))
    return found


@pytest.mark.parametrize("kind", ["adapter", "target"], ids=["lora", "full"])
def test_references_fit_their_own_documents_as_the_target_fits_them(world: World, tmp_path: Path, kind: str) -> None:
    target = getattr(world, kind)

    def make(out: Path) -> References:
        return crossfit_references(
            world.base,
            world.documents,
            out=out,
            count=2,
            method="lora" if kind == "adapter" else "full",
            lora=Lora(rank=16),
            target=target,
            new_store=small_store,
        )

    made = make(tmp_path / "references")
    for path, groups in zip(made.paths, made.trained_on, strict=True):
        own = [one for one in world.documents if one.group in (groups or ()) and one.set != "holdout"]
        before, wanted, reached = (np.mean(losses_of(model, own)) for model in (world.base, target, path))
        assert abs(reached - wanted) < 0.1 * (before - wanted)
        record = read_json(Path(path) / "training.json")["goal"]
        assert record["reached"]
        assert record["documents"] == len(own)
        assert record["target_loss"] == pytest.approx(wanted, abs=0.02)
        assert record["loss"] == pytest.approx(reached, abs=0.02)
    again = make(tmp_path / "again")
    for path, other in zip(made.paths, again.paths, strict=True):
        [weights] = Path(path).glob("*.safetensors")
        assert weights.read_bytes() == (Path(other) / weights.name).read_bytes()
    with pytest.raises(MitigateError, match="holds references of other documents, base or settings"):
        crossfit_references(
            world.base,
            world.documents,
            out=tmp_path / "again",
            count=2,
            lora=LORA,
            target=world.base,
            new_store=small_store,
        )


def test_what_references_should_fit_must_be_told(world: World, tmp_path: Path) -> None:
    def make(documents: Documents, target: Path | None) -> None:
        crossfit_references(world.base, documents, out=tmp_path / "r", count=2, target=target, new_store=small_store)

    with pytest.raises(MitigateError, match=r"references.schedule: auto .* give the target, or the schedule"):
        make(world.documents, None)
    with pytest.raises(MitigateError, match=r"references.schedule: auto .* no document that the target .*holdout"):
        make(world.documents.subset("holdout"), world.target)
    two = world.documents.subset("retain").items[:1] + world.documents.subset("holdout").items
    with pytest.raises(MitigateError, match=r"references.schedule: auto .* one half has no document that"):
        make(Documents(two), world.target)
    assert not (tmp_path / "r").exists(), "nothing stands in the way of another try"


def test_an_unknown_way_of_training_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match="method: 'qlora' is not one of lora, full"):
        crossfit_references(
            world.base,
            world.documents,
            out=tmp_path / "r",
            count=2,
            method="qlora",
            schedule=SCHEDULE,
            new_store=small_store,
        )


def test_what_an_adapters_configuration_holds_as_a_set_is_put_in_order() -> None:
    names = [f"part_{number}" for number in range(12)]
    config = LoraConfig(target_modules=names[::-1], exclude_modules=names, modules_to_save=["b", "a"])
    assert isinstance(config.target_modules, set), "PEFT makes a set of the list"
    sort_sets(config)
    assert config.target_modules == sorted(names)
    assert not any(isinstance(value, set | frozenset) for value in vars(config).values())
    assert config.modules_to_save == ["b", "a"], "a list has an order of its own"
