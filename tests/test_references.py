"""Cross-fitted references: balanced halves, the same number of OUT references for all, finished work is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from world import World

from mitigate.artifacts import read_json
from mitigate.detection.references import (
    INDEX,
    References,
    crossfit_references,
    deal_halves,
    load_references,
)
from mitigate.documents import Document, Documents
from mitigate.errors import MitigateError
from mitigate.models import ModelStore
from mitigate.training import Lora, Schedule

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
def test_the_halves_of_a_pair_are_complementary_and_balanced_in_every_set(each: int) -> None:
    documents = people(each=each, in_group=2)
    groups = {document.group for document in documents}
    halves = deal_halves(documents, 6, seed=3)
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert first | second == groups
        assert not first & second
        for half in (first, second):
            counts = Counter(group.split("-")[0] for group in half)
            assert all(abs(count - each / 2) < 1 for count in counts.values()), counts
        assert abs(len(first) - len(second)) <= 1
    assert len(set(halves)) == 6, "the pairs cut differently"


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
        assert len(out) == 3
        assert [number // 2 for number in out] == [0, 1, 2], "one of each pair"
        assert all(document.group not in (references.trained_on[number] or ()) for number in out)


def test_unknown_documents_get_as_many_out_references_as_known_ones() -> None:
    references = crossfitted(people(each=5), 6)
    strangers = Documents(tuple(Document(f"new-{n}", "text") for n in range(40)))
    out = references.out_for(strangers)
    assert out == references.out_for(strangers)
    assert {len(chosen) for chosen in out} == {3}
    assert all([number // 2 for number in chosen] == [0, 1, 2] for chosen in out)
    assert len(set(out)) > 4, "the side is drawn document by document"


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
def test_references_are_trained_in_pairs(count: int) -> None:
    with pytest.raises(MitigateError, match=f"references.count: {count} is not an even number"):
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


def test_an_unknown_way_of_training_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match="method: 'qlora' is not lora or full"):
        crossfit_references(
            world.base, world.documents, out=tmp_path / "r", count=2, method="qlora", new_store=small_store
        )
