"""Recipes: those that are shipped, overrides, interpolation, and every mistake in one message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mitigate.errors import MitigateError
from mitigate.recipe.loading import check_recipe, check_settings, known_keys, load_recipe
from mitigate.unlearning.settings import Unlearn

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(RECIPES.glob("*.yaml"))
OWN_MODEL = ["models.target=model", "models.base=base", "data.documents=[{path: train.jsonl}]"]


def mistakes_of(*overrides: str) -> str:
    with pytest.raises(MitigateError) as caught:
        load_recipe(None, [*OWN_MODEL, *overrides])
    return str(caught.value)


# --- shipped recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_validates(path: Path) -> None:
    recipe = load_recipe(path, ["out=elsewhere", "seed=3"])
    assert recipe.out == Path("elsewhere")
    assert recipe.seed == 3


def test_recipes_for_trials_benchmarks_and_models_of_ones_own_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"quickstart", "lume", "stories", "tofu", "finetuned", "pretrained"}


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_s_header_is_its_launch_command(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    command = next(line for line in header.splitlines() if line.startswith("#   "))
    assert str(path.relative_to(RECIPES.parent)) in command
    assert "mitigate run" in command or "mitigate unlearn" in command


@pytest.mark.parametrize("name", ["quickstart", "stories", "lume", "tofu", "hard"])
def test_only_recipes_of_invented_people_show_text(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.report.text == "all"
    assert recipe.lab is not None
    assert load_recipe(None, OWN_MODEL).report.text == "masked"


@pytest.mark.parametrize("name", ["finetuned", "pretrained"])
def test_a_user_s_recipe_comments_every_key(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(spans|forget|retrain|schedule): (?:null|auto)( +#.*)\n", r"\1:\2\n", text)
    text = re.sub(r"^( *)#   (\w+: )", r"\1  \2", text, flags=re.MULTILINE)  # keys that stand in comments
    for line in text.splitlines():
        if re.match(r" *(- )?[a-z_]+:", line) and not re.match(r"(data|models|detect|report|references):$", line):
            assert re.search(r"\S +# \S", line), f"no comment: {line}"
    shown = set(_dotted(yaml.safe_load(text)))
    elsewhere = r"lab\.|data\.anchors\.|.*\.replace\.|report\.(tofu|questions)\.|retrain\.(documents|lora|schedule)\."
    elsewhere += r"|unlearn\.|retrain\." if name == "pretrained" else ""
    assert {key for key in known_keys() if not re.match(elsewhere, key)} - shown == set()


def test_the_defaults_that_finetuned_yaml_shows_are_the_defaults() -> None:
    shown = load_recipe(RECIPES / "finetuned.yaml", ["name=x", "out=y"])
    left_out = load_recipe(
        None,
        ["models.target=my-model", "models.base=its-base", "data.documents=[{path: train.jsonl}]", "name=x", "out=y"],
    )
    assert shown == left_out


def test_pretrained_yaml_only_audits_and_needs_no_base() -> None:
    recipe = load_recipe(RECIPES / "pretrained.yaml", ["references.given=[one, two]"])
    assert recipe.unlearn is None
    assert recipe.models.base is None
    assert recipe.references.given == ["one", "two"]
    defaults = load_recipe(None, OWN_MODEL)
    assert recipe.detect == defaults.detect
    assert recipe.report == defaults.report
    assert recipe.references.schedule == defaults.references.schedule


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp2"])
def test_accelerate_can_read_its_configurations(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))
    assert config.num_processes == 2
    assert config.use_cpu == (name == "cpu")


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_reach_into_sections_and_lists_and_are_yaml() -> None:
    recipe = load_recipe(
        None, [*OWN_MODEL, "data.documents.0.path=b.csv", "detect.spans.window=3", "unlearn=null", "name='12'"]
    )
    assert recipe.data.documents[0].path == "b.csv"
    assert recipe.detect.spans.window == 3
    assert recipe.unlearn is None
    assert recipe.name == "12"


def test_the_number_after_a_list_s_last_adds_to_it() -> None:
    more = ["data.documents.1={path: unseen.jsonl, assign: holdout}", "data.documents.2.path=c.csv"]
    recipe = load_recipe(None, [*OWN_MODEL, *more])
    assert [(source.path, source.assign) for source in recipe.data.documents[1:]] == [
        ("unseen.jsonl", "holdout"),
        ("c.csv", None),
    ]
    with pytest.raises(MitigateError, match="'5' is not"):
        load_recipe(None, [*OWN_MODEL, "data.documents.5.path=x"])


def test_an_override_may_hold_equals_signs() -> None:
    recipe = load_recipe(None, [*OWN_MODEL, "unlearn.objective=hinge=1,distill=0.5"])
    assert recipe.unlearn is not None
    assert recipe.unlearn.objective == "hinge=1,distill=0.5"


def test_an_override_of_a_section_that_is_null_makes_the_section(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"unlearn": None}), encoding="utf-8")
    recipe = load_recipe(file, [*OWN_MODEL, "unlearn.max_steps=7"])
    assert recipe.unlearn is not None
    assert recipe.unlearn.max_steps == 7


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_a_learning_rate_is_a_number_however_it_is_written(written: str) -> None:
    recipe = load_recipe(None, [*OWN_MODEL, f"unlearn.learning_rate={written}"])
    assert recipe.unlearn is not None
    assert recipe.unlearn.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "key=value"),
        ("=3", "key=value"),
        ("name=[", "not YAML"),
        ("data.documents.3.path=x", "'3' is not a section"),
        ("data.documents.path=x", "'path' is not a place in that list"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(override: str, message: str) -> None:
    found = mistakes_of(override)
    assert repr(override) in found
    assert message in found


# --- interpolation ----------------------------------------------------------------------------------------------------


def test_a_value_can_stand_for_another_key_s_and_overrides_come_first(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("data: {root: here, documents: [{path: a.jsonl}]}\nmodels: {target: '${data.root}/model'}\n")
    recipe = load_recipe(file, ["models.base=${models.target}-base", "data.root=there"])
    assert recipe.models.target == "there/model"
    assert recipe.models.base == "there/model-base"


def test_a_value_that_stands_for_itself_is_refused() -> None:
    assert "stands for itself" in mistakes_of("name=${models.oracle}", "models.oracle=${name}")


@pytest.mark.parametrize("key", ["nowhere", "data.nowhere", "data"])
def test_a_reference_to_no_plain_value_is_refused(key: str) -> None:
    found = mistakes_of(f"name=${{{key}}}")
    assert f"${{{key}}}" in found
    assert f"give {key}=" in found


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_all_mistakes_come_at_once() -> None:
    found = mistakes_of(
        "sede=1",
        "seed=abc",
        "unlearn.max_steps=0",
        "unlearn.objective=nope",
        "references.count=3",
        "detect.score=best",
        "models.dtype=float8",
        "models.target=null",
    )
    assert found.startswith("recipe: 8 mistakes\n")
    for key in ("sede", "seed", "unlearn.max_steps", "unlearn.objective", "references.count", "detect.score"):
        assert f"\n  - {key}: " in found
    assert "models.dtype: is not one of auto, float32, bfloat16, float16; got 'float8'" in found
    assert "models.target: missing" in found


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("sede", "seed"),
        ("unlearn.objectiv", "unlearn.objective"),
        ("detect.spans.treshold", "detect.spans.threshold"),
        ("references.schedule.epoch", "references.schedule.epochs"),
        ("epochs", "references.schedule.epochs"),
        ("data.documents.0.pth", "data.documents.path"),
        ("objective", "unlearn.objective"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(key: str, nearest: str) -> None:
    found = mistakes_of(f"{key}=1")
    suggestion = re.search(rf"{re.escape(key)}: unknown key; did you mean (\S+)\?", found)
    assert suggestion is not None
    assert suggestion.group(1).rsplit(".", 1)[-1] == nearest.rsplit(".", 1)[-1]


def test_an_unknown_key_like_no_other_points_to_the_list_of_keys() -> None:
    assert "zzz: unknown key; see `mitigate run --keys`" in mistakes_of("zzz=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=abc", "seed: should be a valid integer, unable to parse string as an integer; got 'abc'"),
        ("seed=-1", "seed: should be greater than or equal to 0; got -1"),
        ("unlearn.lora.rank=0", "unlearn.lora.rank: should be greater than or equal to 1; got 0"),
        ("unlearn=7", "unlearn: should be a section with keys; got 7"),
        ("data.documents=5", "data.documents: should be a valid list; got 5"),
        ("references.method=qlora", "references.method: is not one of lora, full; got 'qlora'"),
        ("unlearn.lora.target_modules=5", "target_modules: should be a valid string, or should be a valid list; got 5"),
        ("data.documents=[{}]", "data.documents.0.path: missing"),
        ("data.documents.0.where={a: {matches: '('}}", "data.documents.0.where.a.matches: not a regular expression"),
        ("data.documents.0.sets={forget: 0.5, foo: 1}", "sets.foo: should be 'forget', 'retain' or 'holdout'"),
        ("report.text=maybe", "report.text: is not one of none, masked, all; got 'maybe'"),
        ("detect.score=best", "detect.score: is not one of informia, informia_no_kl, "),
        ("unlearn.method=5", "unlearn.method: is not one of lora, dora, full, last_layers; got 5"),
        ("data.documents.0.audit=5", "audit: should be 'all', 'completion' or 'assistant', or should be a valid list;"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_mistake_that_says_what_is_allowed(override: str, message: str) -> None:
    found = mistakes_of(override)
    assert found.startswith("recipe: 1 mistake\n")
    assert message in found


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["unlearn.objective=forget"], "'forget' is not one of default, hinge, distill"),
        (["unlearn.objective={npo: -1}"], "the weight of npo is -1.0; give a positive number"),
        (
            ["data.documents.0.spans={recognise: presido}"],
            "spans.recognise: is not one of built-in, presidio; got 'presido'",
        ),
        (["references.count=3"], "references.count: 3 is odd; each document is in half of the references"),
        (["references.count=0"], "references: none; set references.count"),
        (["models.base=null"], "models.base: missing; cross-fitted references are trained on it"),
        (["models.target=null"], "models.target: missing"),
        (["data.documents=[]"], "data.documents: missing"),
        (["lab={}"], "the lab makes them"),
        (["lab.base={}", "models.target=null"], "give exactly one"),
        (["lab.people={}", "models.target=null"], "lab.people writes the documents"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused_with_the_remedy(overrides: list[str], message: str) -> None:
    assert message in mistakes_of(*overrides)


def test_a_wrong_value_is_not_also_called_missing() -> None:
    assert mistakes_of("models.target=5").count("models.target") == 1
    assert mistakes_of("models={}", "models.target=[]", "references.given=x").count("models.target") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [", "not YAML"), (b"- a\n- b\n", "got a list"), (b"\xff\xfe", "cannot be read"), (b"", "models.target")],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(MitigateError, match=message) as caught:
        load_recipe(file)
    assert str(file) in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_settings_of_one_section_are_checked_like_a_recipe() -> None:
    assert check_settings(Unlearn, ["lora.rank=4", "learning_rate=1e-3"]).lora.rank == 4
    with pytest.raises(MitigateError, match=r"(?s)2 mistakes.*lora.rnk: .*did you mean lora.rank.*max_steps"):
        check_settings(Unlearn, ["lora.rnk=4", "max_steps=-2"])


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_list_of_keys_has_every_key_that_shipped_recipes_use() -> None:
    free = r".*\.(where|patterns|sets|copies|objective)\."  # their keys are the user's
    for path in SHIPPED:
        used = {key for key in _dotted(yaml.safe_load(path.read_text(encoding="utf-8"))) if not re.match(free, key)}
        assert used - set(known_keys()) == set(), path.name


def test_the_list_of_keys_uses_the_names_that_recipes_use() -> None:
    assert "data.documents.replace.with" in known_keys()
    assert len(known_keys()) == len(set(known_keys()))
    source: dict[str, Any] = {"path": "a.jsonl", "replace": [{"pattern": "a", "with": "b"}]}
    values = {"models": {"target": "t", "base": "b"}, "data": {"documents": [source]}}
    assert check_recipe(values).data.documents[0].replace[0].replacement == "b"


def _dotted(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of nested mappings; list items count as their list."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{prefix}{key}"
            yield from _dotted(item, f"{prefix}{key}.")
    elif isinstance(value, list):
        for item in value:
            yield from _dotted(item, prefix)
