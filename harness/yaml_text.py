"""YAML as people mean it: plain decimal numbers, no key twice, and never more than a suite could need.

YAML 1.1 reads ``016`` as 14, ``1:30`` as 90 and ``1_0`` as 10, and nine lines of aliases can stand for 10^9 values.
Both are refused before anything is built, with the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from harness.errors import UserError

Place = tuple[str, ...]

MOST_LETTERS = 100_000
MOST_VALUES = 20_000
"""Mappings, lists, keys and what they hold; what an alias stands for is counted wherever the alias stands."""
MOST_LEVELS = 50
MOST_INTEGER = 2**63 - 1

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")}
MERGE = "tag:yaml.org,2002:merge"


class YamlError(UserError):
    """A text is not what can be read here.

    Args:
        problem: what is wrong.
        line: where, from 1 on.
    """

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def read_yaml(text: str) -> tuple[Any, dict[Place, int]]:
    """What a text says, and the line of every key and item. Every alias is a value of its own.

    Raises:
        YamlError: it is no YAML, or too much of it; a key stands twice; a number is written in another way than in
            plain decimal digits.
    """
    if len(text) > MOST_LETTERS:
        raise YamlError(f"of {len(text)} letters; at most {MOST_LETTERS} are read", 1)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, {}
        _require_size(root, {}, set())
        lines = dict(_lines(root))
        return _unshared(loader.construct_document(root)), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise YamlError(f"not valid YAML: {error.problem}", line) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date that is none
        raise YamlError(f"not valid YAML: {error}", 1) from error
    except RecursionError as error:
        raise YamlError(f"not valid YAML: more than {MOST_LEVELS} levels", 1) from error


def _require_size(node: yaml.Node, known: dict[int, tuple[int, int]], inside: set[int]) -> tuple[int, int]:
    """The values under a node and its levels; aliases lead to the same node, which is measured once.

    Raises:
        YamlError: there are too many, a node is part of itself, or a scalar is none that is read here.
    """
    key, line = id(node), node.start_mark.line + 1
    if key in inside:
        raise YamlError("not valid YAML: an alias stands inside of what it stands for", line)
    if key in known:
        return known[key]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    else:
        _require_plain(node)
    if node.tag not in PLAIN | {MERGE}:
        raise YamlError(f"not valid YAML: the tag {node.tag!r} means nothing here", line)
    inside.add(key)
    below = [_require_size(child, known, inside) for child in children]
    inside.remove(key)
    count, levels = 1 + sum(count for count, _ in below), 1 + max((levels for _, levels in below), default=0)
    if count > MOST_VALUES:
        raise YamlError(f"stands for {count:.3g} values, with its aliases; at most {MOST_VALUES} are read", line)
    if levels > MOST_LEVELS:
        raise YamlError(f"not valid YAML: more than {MOST_LEVELS} levels", line)
    known[key] = count, levels
    return known[key]


def _require_plain(node: yaml.Node) -> None:
    """Refuse a number that YAML reads in another base, or that is larger than any is good for."""
    text, kind, line = node.value, node.tag.rpartition(":")[2], node.start_mark.line + 1
    if kind == "int" and not INTEGER.fullmatch(text):
        raise YamlError(
            f"{text!r} is no plain decimal number: YAML takes it for octal, hexadecimal, binary, base 60 or grouped "
            "digits; write decimal digits alone, or quotes around what is no number",
            line,
        )
    if kind == "int" and (len(text) > 20 or abs(int(text)) > MOST_INTEGER):
        raise YamlError(f"{text} is too large: at most 2^63 - 1 is read", line)
    if kind == "float" and not FLOAT.fullmatch(text):
        raise YamlError(
            f"{text!r} is no plain decimal number: YAML takes it for base 60 or grouped digits; write digits, a point "
            "and an exponent alone, or quotes around what is no number",
            line,
        )


def _lines(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """The line of every key and item."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of a suite; reading the content refuses it
            here, line = (*place, key.value), key.start_mark.line + 1
            if key.value in seen:
                raise YamlError(f"the key {key.value!r} stands here twice", line)
            seen.add(key.value)
            yield here, line
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, str(index)), value.start_mark.line + 1
            yield from _lines(value, (*place, str(index)))


def _unshared(content: Any) -> Any:
    """A copy in which every alias is a value of its own, so that --set on one does not touch the others."""
    if isinstance(content, dict):
        return {key: _unshared(value) for key, value in content.items()}
    return [_unshared(value) for value in content] if isinstance(content, list) else content
