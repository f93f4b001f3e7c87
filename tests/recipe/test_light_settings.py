"""A mistyped key is answered before anything heavy is loaded: settings are classes and names, nothing that computes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    *("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "huggingface_hub", "datasets"),
    *("numpy", "pyarrow", "pandas", "scipy", "sklearn", "matplotlib"),
)
PACKAGE = ROOT / "mitigate"
HOMES = {  # of settings
    *PACKAGE.rglob("settings.py"),
    *(PACKAGE / name for name in ("mistakes.py", "recipe/schema.py", "documents/sources.py", "documents/request.py")),
}
RECIPE = "recipes/quickstart.yaml"
MISTYPED = [
    (("run", RECIPE, "a.mistyped.key=1"), "a: unknown key"),
    (("run", RECIPE, "references.method=qlora"), "references.method: is not one of lora, full; got 'qlora'"),
    (("run", RECIPE, "unlearn.objective=erase"), "'erase' is not one of default, hinge"),
    (("audit", RECIPE, "detect.scor=loss"), "did you mean detect.score?"),
    (("documents", RECIPE, "data.rot=here"), "did you mean data.root?"),
    (("audit", "--target", "t", "--documents", "d", "--set", "spans.treshold=1"), "did you mean spans.threshold?"),
    (("audit", "--target", "t", "--generate", "--sampling", "cont=3"), "did you mean count?"),
    (("references", "--base", "b", "--documents", "d", "--set", "schedule.epoch=1"), "did you mean schedule.epochs?"),
    (("references", "--base", "b", "--documents", "d", "--set", "count=2"), "count: unknown key"),
    (("unlearn", "--audit", "a", "--scope", "word"), "scope: is not one of token, sequence; got 'word'"),
    (("retrain", "--audit", "a", "--base", "b", "--set", "lora.rnk=4"), "did you mean lora.rank?"),
    (("bench", "detect", "--set", "peopel=3"), "did you mean people?"),
    (("bench", "unlearn", "--set", "forgte=3"), "did you mean forget?"),
    (("bench", "speed", "--set", "retian=3"), "did you mean retain?"),
]


def loaded_by(code: str) -> tuple[list[str], str]:
    """The heavy libraries that a fresh Python has loaded after some code, and what that wrote to stderr."""
    last = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + last], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def command(*arguments: str, status: int) -> str:
    """Code that gives a command and goes on when it has ended."""
    return f"""
import sys
sys.argv = ["mitigate", *{arguments!r}]
from mitigate.cli.app import main
try:
    main()
except SystemExit as stop:
    assert (stop.code or 0) == {status}
"""


def test_what_is_heavy_would_be_seen() -> None:
    assert loaded_by("import numpy")[0] == ["numpy"]


def test_the_recipe_and_every_room_s_settings_load_nothing_heavy() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(HOMES)]
    assert {"mitigate.recipe.schema", "mitigate.models.settings", "mitigate.bench.unlearn.settings"} <= {*modules}
    assert loaded_by("\n".join(f"import {module}" for module in modules))[0] == []


def test_settings_are_defined_where_nothing_heavy_is_loaded() -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in {*PACKAGE.rglob("*.py")} - HOMES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and "Section" in {ast.unparse(base) for base in node.bases}
    ]
    assert elsewhere == []


def test_the_list_of_keys_loads_nothing_heavy() -> None:
    assert loaded_by(command("run", "--keys", status=0)) == ([], "")


@pytest.mark.parametrize(("arguments", "message"), MISTYPED, ids=[" ".join(given) for given, _ in MISTYPED])
def test_a_mistake_in_settings_is_told_before_anything_heavy_is_loaded(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    loaded, told = loaded_by(command(*arguments, status=2))
    assert message in told
    assert loaded == []
