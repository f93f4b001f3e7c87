"""The versions that the tests run with are those that pyproject.toml allows: the lowest, and recent ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in (*project["dependencies"], *(line for extra in extras for line in extra))]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_the_lowest_versions_tested_are_the_lowest_allowed() -> None:
    lowest, wrong = pins("constraints-lowest.txt"), []
    for requirement in requirements():
        bounds = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        pinned = lowest.get(canonicalize_name(requirement.name))
        if bounds and pinned != bounds[0] and requirement.name != "torch":
            wrong.append(f"{requirement}: tested with {pinned}")
    assert wrong == []


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_every_requirement_is_pinned_to_a_version_that_it_allows(name: str) -> None:
    found = pins(name)
    bounded = [requirement for requirement in requirements() if requirement.specifier]
    assert len(bounded) > 20
    assert [str(one) for one in bounded if found.get(canonicalize_name(one.name)) not in one.specifier] == []
