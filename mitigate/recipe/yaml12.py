"""YAML as its version 1.2 reads it: 010, 12:30:00, no and 2024-01-31 are text, and 1e-3 is a number.

One step further, +49 and the id 12e5 are text, too; where a number is wanted, such a text is read as one all the same.
PyYAML reads version 1.1, in which the customer number 010 is 8, and a telephone number that begins with 0 another one.

A key that stands twice is a mistake, not the last of the two. So are values that hold themselves, brackets deeper than
any recipe's, and aliases of aliases that a few lines make a billion values of.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_WHOLE = "(?:0|[1-9][0-9]*)"
_MOST_CHARACTERS = 1 << 20
_DEEPEST = 50  # sections and lists within one another
_MOST_VALUES = 100_000  # with every alias written out


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own table

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values: dict[int, int] = {}  # node -> values in it, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._values:  # the anchor's own value is still being read
            raise yaml.constructor.ConstructorError(None, None, "a value that holds itself", mark)
        if node is not None and id(node) not in self._values:
            self._values[id(node)] = 1 + sum(self._values[id(child)] for child in _children(node))
            if self._values[id(node)] > _MOST_VALUES:
                raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_VALUES:,} values", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice; leave one of them out", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


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
        yaml.YAMLError: it is not YAML, or what this file's first lines name.
    """
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"{len(text):,} characters; a recipe has {_MOST_CHARACTERS:,} at most")
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits
        raise yaml.YAMLError(str(error).split(";")[0]) from None
