"""The floor plan holds: imports, read from source, run down the list of rooms, go round in no circle, and stay few.

The list is the layout that README draws; a room is a folder of `mitigate/`, or a module directly in it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mitigate

ROOT = Path(__file__).parents[1]
ROOMS = (  # each imports from those before it only
    *("__init__", "errors", "mistakes", "runtime"),
    *("text", "statistics", "artifacts", "recognisers", "documents", "tokens", "secrets", "models"),
    *("lab", "detection", "generation", "reporting", "verification"),
    *("adapters", "unlearning", "guard", "retraining", "proof"),
    *("recipe", "pipeline", "bench", "cli", "__main__"),
)
LATE = {("mitigate.detection.record", "mitigate.reporting.page")}  # Audit.show() draws itself, inside the function
LONGEST = 320  # lines, which is about 300; a longer file says why in its first lines
LONG = "long since"  # ... in these words
FILES_IN_A_ROOM, FILES_AT_THE_TOP = 12, 6
PUBLIC = (
    *("Audit", "Comparison", "Detect", "Document", "DocumentSource", "Documents", "MitigateError", "ModelStore"),
    *("Recipe", "References", "Request", "Retain", "Span", "Unlearn", "Unlearned", "__version__", "audit"),
    *(
        "audit_generated",
        "audit_parts",
        "bench_detect",
        "compare",
        "compare_fine_tunes",
        "crossfit_references",
        "load_recipe",
        "load_references",
    ),
    *("prove", "read_documents", "reaudit", "retrain", "run", "unlearn", "verify"),
)


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Modules of the package that a syntax tree imports, wherever in the file that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in inner)


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports."""
    paths = {module_name(path, root): path for path in sorted((root / "mitigate").rglob("*.py"))}
    return {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")), set(paths))) - {name}
        for name, path in paths.items()
    }


def room(module: str) -> str:
    return (*module.split("."), "__init__")[1]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """The imports that do not run down the list."""
    return [
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if room(module) != room(other) and ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; none: empty."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = imports(ROOT)
    for module, other in LATE:
        assert other in found[module], f"{module} no longer imports {other}: take it from the list"
        found[module].remove(other)
    return found


def test_every_module_lies_in_a_room_of_the_list(graph: dict[str, set[str]]) -> None:
    assert {room(module) for module in graph} == {*ROOMS}


def test_no_import_runs_up(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == []


def test_no_import_goes_round(graph: dict[str, set[str]]) -> None:
    assert circle(graph) == []


def test_imports_that_run_up_and_round_are_seen(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "errors": "def late():\n    from mitigate.cli import app\n",
        "text/__init__": "",
        "text/folding": "import mitigate.text.ranges\n",
        "text/ranges": "from mitigate.text import folding\n",
        "cli/__init__": "",
        "cli/app": "from mitigate.errors import late\n",
    }
    for name, code in files.items():
        path = tmp_path / "mitigate" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    found = imports(tmp_path)
    assert upward(found) == ["mitigate.errors -> mitigate.cli.app"]
    assert {*circle({**found, "mitigate.errors": set()})} == {"mitigate.text.folding", "mitigate.text.ranges"}


def test_a_late_import_is_late() -> None:
    for module, other in LATE:
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
        at_once = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
        assert other not in {name for node in at_once for name in imported(node, {other})}


def test_rooms_are_small() -> None:
    folders = [path for path in (ROOT / "mitigate").rglob("*") if path.is_dir() and [*path.glob("*.py")]]
    crowded = {str(path.relative_to(ROOT)): len([*path.glob("*.py")]) for path in folders}
    assert {path: files for path, files in crowded.items() if files > FILES_IN_A_ROOM} == {}
    assert len([*(ROOT / "mitigate").glob("*.py")]) <= FILES_AT_THE_TOP


def test_long_files_say_why() -> None:
    lines = {path: path.read_text(encoding="utf-8").splitlines() for path in (ROOT / "mitigate").rglob("*.py")}
    long = {path: text for path, text in lines.items() if len(text) > LONGEST}
    assert [str(path.relative_to(ROOT)) for path, text in long.items() if LONG not in " ".join(text[:15])] == []


def test_each_room_says_what_it_holds() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "mitigate").rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_each_class_has_a_name_of_its_own() -> None:
    homes: dict[str, list[str]] = {}
    for path in sorted((ROOT / "mitigate").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_the_public_names_are_these() -> None:
    assert sorted(PUBLIC) == mitigate.__all__
    assert [name for name in PUBLIC if getattr(mitigate, name, None) is None] == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mitigate; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
