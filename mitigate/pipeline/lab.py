"""The stages of the lab: documents with planted secrets, a base from scratch, a target that leaks, an oracle."""

from __future__ import annotations

from mitigate.artifacts.files import new_directory
from mitigate.documents import Documents, read_documents
from mitigate.documents.sources import without_spans
from mitigate.documents.written import write_jsonl
from mitigate.lab.carriers import plant_in_text
from mitigate.lab.planting import plant
from mitigate.lab.settings import TinyModel
from mitigate.lab.tiny import make_base
from mitigate.lab.writing import general_text
from mitigate.models.directory import model_fingerprint
from mitigate.models.fitting.training import fine_tune
from mitigate.pipeline.inputs import Inputs
from mitigate.pipeline.stages import Stages
from mitigate.recipe.schema import Recipe


def make_documents(inputs: Inputs, stages: Stages) -> None:
    """Write the documents with planted secrets, where the recipe asks for invented people."""
    recipe, lab = inputs.recipe, inputs.recipe.lab
    if lab is None or lab.people is None:
        return

    def make() -> None:
        with new_directory(inputs.lab_documents.parent, replace=True) as directory:
            write_jsonl(planted_documents(recipe), directory / inputs.lab_documents.name)

    made_from = {"lab.people": lab.people.model_dump(), "seed": recipe.seed}
    stages.run("lab.documents", made_from, make, inputs.lab_documents)


def planted_documents(recipe: Recipe) -> Documents:
    """The documents of a recipe's invented people."""
    assert recipe.lab is not None
    people = recipe.lab.people
    assert people is not None
    planting = plant(seed=recipe.seed, people_per_count=people.copies, forget_share=people.forget_share)
    if not people.carriers:
        return planting.documents
    return plant_in_text(
        planting, read_documents(without_spans(people.carriers), root=recipe.data.root), seed=recipe.seed
    )


def base_text(recipe: Recipe) -> Documents:
    """What a recipe's base is trained on from scratch."""
    lab = recipe.lab
    assert lab is not None
    if lab.base_text:
        return read_documents(without_spans(lab.base_text), root=recipe.data.root)
    return Documents(tuple(general_text(lab.base_documents, seed=recipe.seed)))


def make_models(inputs: Inputs, stages: Stages) -> None:
    """Train the base from scratch, the target and the oracle, as far as the recipe asks for them.

    The target is trained on the documents as they come, so another erasure request leaves it as it is; the oracle is
    trained on what is left to retain when the request's documents are gone.
    """
    recipe, lab = inputs.recipe, inputs.recipe.lab
    if lab is None:
        return
    if lab.base is not None:
        _make_base(inputs, stages, lab.base)
    trained = {"target": inputs.documents.subset(["forget", "retain"])}
    trained |= {"oracle": inputs.audited.subset("retain")} if lab.oracle else {}
    for name, chosen in trained.items():
        stages.run(
            f"lab.{name}",
            {
                "lab.target": lab.target.model_dump(),
                "base": model_fingerprint(inputs.base),
                "documents": chosen.fingerprint,
                "seed": recipe.seed,
            },
            lambda name=name, chosen=chosen: fine_tune(  # type: ignore[misc]
                inputs.base,
                chosen,
                out=inputs.out / "lab" / name,
                method=lab.target.method,
                lora=lab.target.lora,
                schedule=lab.target.schedule,
                seed=recipe.seed,
                description=f"Lab: {name}",
                store=inputs.store(),
            ),
            inputs.out / "lab" / name,
        )


def _make_base(inputs: Inputs, stages: Stages, shape: TinyModel) -> None:
    recipe, text = inputs.recipe, base_text(inputs.recipe)
    out = inputs.out / "lab/base"
    stages.run(
        "lab.base",
        {"lab.base": shape.model_dump(), "text": text.fingerprint, "seed": recipe.seed},
        lambda: make_base(text.items, out=out, shape=shape, seed=recipe.seed, device=recipe.models.device),
        out,
    )
