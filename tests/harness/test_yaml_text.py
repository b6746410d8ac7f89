"""YAML as people mean it: what reads otherwise than it looks, or stands for too much, is refused with its line."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harness.yaml_text import MOST_LEVELS, MOST_VALUES, YamlError, read_yaml


def refusal(text: str) -> tuple[str, int]:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    return str(caught.value), caught.value.line


@pytest.mark.parametrize(
    "number",
    ["016", "-016", "00", "0x10", "0b11", "1:30", "190:20:30", "1_000", "+1_0", "1:30.5", "1_0.5", "!!int '0x7'"],
)
def test_numbers_that_are_not_what_they_look_like_are_refused_with_their_line(number: str) -> None:
    for text in (f"a: 1\nb: [2, {number}]", f"a: 1\n{number}: 2"):
        message, line = refusal(text)
        assert "is no plain decimal number" in message
        assert line == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("-0", 0), ("16", 16), ("+16", 16), ("-3", -3), (str(2**63 - 1), 2**63 - 1)),
        *(("1.5", 1.5), ("010.5", 10.5), ("1.0e-3", 1e-3), ("1.e+3", 1000.0), (".inf", float("inf"))),
        *(("'016'", "016"), ("08", "08"), ("1e-3", "1e-3"), ("0o17", "0o17"), ("1:2:x", "1:2:x"), ("yes", True)),
        ("", None),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    content, lines = read_yaml(f"a: {text}")
    assert content == {"a": value}
    assert type(content["a"]) is type(value)
    assert lines == {("a",): 1}


@pytest.mark.parametrize("number", [str(2**63), str(-(2**64)), "9" * 5000])
def test_integers_beyond_64_bits_are_refused(number: str) -> None:
    message, line = refusal(f"\n- {number}")
    assert "is too large" in message
    assert len(message) < 1100
    assert line == 2


@pytest.mark.parametrize("flow", ["list", "mapping", "merge"])
def test_aliases_that_stand_for_very_much_are_refused_at_once(flow: str) -> None:
    lines = ["- &a0 {x: 1}"]
    for level in range(1, 40):
        below = [f"*a{level - 1}"] * 9
        keyed = ", ".join(f"k{index}: {one}" for index, one in enumerate(below))
        inner = {"list": f"[{', '.join(below)}]", "mapping": f"{{{keyed}}}", "merge": f"{{<<: [{', '.join(below)}]}}"}
        lines.append(f"- &a{level} {inner[flow]}")
    begun = time.monotonic()
    message, line = refusal("\n".join(lines))
    assert f"at most {MOST_VALUES} are read" in message
    assert line in (5, 6)
    assert time.monotonic() - begun < 10


def test_an_alias_inside_of_itself_is_refused() -> None:
    assert "inside of what it stands for" in refusal("a: &a [1, {b: *a}]")[0]


def test_what_is_too_deep_or_too_long_is_refused() -> None:
    deep = MOST_LEVELS - 1
    assert read_yaml("[" * deep + "]" * deep)[0]
    assert f"more than {MOST_LEVELS} levels" in refusal("[" * (deep + 2) + "]" * (deep + 2))[0]
    assert f"more than {MOST_LEVELS} levels" in refusal("[" * 5000)[0]
    assert "of 100001 letters" in refusal("x" * 100_001)[0]


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: 1\n'a': 2", "b: {c: 1, d: 2,\n c: 3}"])
def test_a_key_twice_is_refused(text: str) -> None:
    message, line = refusal(text)
    assert "stands here twice" in message
    assert line == 2


def test_every_alias_is_a_value_of_its_own() -> None:
    content, _ = read_yaml("a: &a {b: [1]}\nc: *a")
    assert content["a"] == content["c"]
    assert content["a"] is not content["c"]
    assert content["a"]["b"] is not content["c"]["b"]
