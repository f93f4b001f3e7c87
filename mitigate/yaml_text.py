"""YAML as its version 1.2 reads it: 010, 12:30:00, no and 2024-01-31 are text, and 1e-3 is a number.

One step further, +49 and the id 12e5 are text, too; where a number is wanted, such a text is read as one all the same.
PyYAML reads version 1.1, in which the customer number 010 is 8, and a telephone number that begins with 0 another one.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_WHOLE = "(?:0|[1-9][0-9]*)"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own table


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", rf"-?{_WHOLE}", "-0123456789"),
    (
        "float",
        rf"-?(?:{_WHOLE}\.[0-9]*(?:[eE][-+]?[0-9]+)?|{_WHOLE}[eE][-+][0-9]+|\.[0-9]+|\.inf)|\.nan",
        "-.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def load_yaml(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, _Loader)
