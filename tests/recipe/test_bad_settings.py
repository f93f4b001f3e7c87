"""Settings that would hang, crash or be read as something else: each is refused at once, with what, where, remedy."""

from __future__ import annotations

import string
from itertools import pairwise
from pathlib import Path

import pytest

from mitigate.detection.references.crossfit import load_references
from mitigate.errors import MitigateError
from mitigate.recipe.loading import load_recipe
from mitigate.recipe.yaml12 import load_yaml

FINETUNED = Path(__file__).parents[2] / "recipes" / "finetuned.yaml"
NINE = "".join(f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi"))
DOUBLING = "".join(f"{a}: '${{{b}}}${{{b}}}'\n" for a, b in pairwise(string.ascii_lowercase))
TEXTS = {
    "a value that holds itself": ("name: &a [*a]", "a value that holds itself"),
    "a section that holds itself": ("models: &a {target: *a}", "a value that holds itself"),
    "thousands of brackets": ("name: " + "[" * 5000, "more than 50 levels deep"),
    "an anchor bomb": (f"a: &a [x,x,x,x,x,x,x,x,x]\n{NINE}", "more than 100,000 values"),
    "a key twice": ("name: one\nseed: 1\nname: two", "the key 'name' stands twice"),
    "a key twice, deep": ("models: {target: a, base: b, target: c}", "the key 'target' stands twice"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "integer string conversion"),
    "a file of megabytes": ("name: " + "x" * (1 << 21), "a recipe has 1,048,576 at most"),
    "keys that double": (f"{DOUBLING}z: xxxxxxxxxx\n", "a value grows beyond 65,536 characters"),
    "an object of Python": ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
}
NUMBERS = [
    ("seed=99999999999999999999", "seed: is not between"),
    ("references.lora.rank=9999999999", "references.lora.rank: is not between"),
    ("references.count=1002", "references.count: should be less than or equal to 1000"),
    ("unlearn.learning_rate=.inf", "unlearn.learning_rate: should be a finite number"),
    ("unlearn.learning_rate=.nan", "unlearn.learning_rate: should be a finite number"),
    ("references.schedule.epochs=1e999", "references.schedule.epochs: should be a finite number"),
    ("detect.min_score=.nan", "detect.min_score: should be a finite number"),
    ("detect.spans.threshold=-.inf", "detect.spans.threshold: should be a finite number"),
    ("unlearn.max_steps=100000000000", "unlearn.max_steps: is not between"),
    ("detect={context: 64, stride: 64}", "stride: 64 is not less than the context"),
]


@pytest.mark.parametrize("name", TEXTS)
def test_a_recipe_that_no_reader_should_trust_is_refused_at_once(name: str, tmp_path: Path) -> None:
    text, message = TEXTS[name]
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MitigateError) as refused:
        load_recipe(tmp_path / "recipe.yaml")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(("override", "message"), NUMBERS)
def test_numbers_beyond_all_use_are_refused_with_their_key(override: str, message: str) -> None:
    with pytest.raises(MitigateError) as refused:
        load_recipe(FINETUNED, [override])
    assert message in str(refused.value)


def test_anchors_and_merge_keys_still_stand_for_their_values() -> None:
    assert load_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": {"b": 1}}


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", '{"references": [1]}', '{"references": [{"directory": 1, "groups": []}]}']
)
def test_an_index_of_references_of_another_shape_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "references.json").write_text(content, encoding="utf-8")
    with pytest.raises(MitigateError, match="mitigate references"):
        load_references([tmp_path])


def test_a_path_that_is_too_long_is_a_message_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(MitigateError, match="cannot be read"):
        load_recipe(tmp_path / ("a" * 300))
