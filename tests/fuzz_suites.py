"""Suites and ``--set`` as no one would write them, against ``run --dry-run``.

    python tests/fuzz_suites.py --cases 3000 --seed 0

Each case takes a good suite and damages it: letters, lines, keys and values, from a list of values that have broken
readers before. What may come of it is exit status 0, or 2 with one line that says why; never a traceback or a hang.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fuzzing import fault

GOOD = """\
name: small
tasks: [BallRun]
data: {source: demo, holdout: 0.1, grid: {share: [1.0, 0.5]}}
seeds: 2
cost_limits: [10, 20]
steps: 10
evaluation: {every: 5, episodes: 1, final: 2, fqe: {steps: 5, batch_size: 4, hidden_sizes: [8]}}
algorithms:
  bc: {hyperparameters: {batch_size: 16, hidden_sizes: [8]}, grid: {mode: [all, safe]}}
  lspc: {hyperparameters: {batch_size: 16, hidden_sizes: [8, 8], latent_dim: 4}, tasks: {BallRun: {batch_size: 8}}}
  cpq-small: {algorithm: cpq, hyperparameters: {batch_size: 16, actor_hidden_sizes: [8], critic_hidden_sizes: [8]}}
  cdt: {hyperparameters: {batch_size: 4, embedding_dim: 8, num_heads: 2, num_layers: 1, sequence_length: 3}}
"""
VALUES = (
    *(
        "",
        "~",
        "true",
        "no",
        "[]",
        "{}",
        "[[]]",
        "[~]",
        "[true]",
        "{a: 1}",
        "[{a: [1]}]",
        "*none",
        "&a [*a]",
        "!!set {a}",
    ),
    *("!!set {a}", "!!binary aGk=", "!!int '7'", "!!python/name:os.system x", "&a {<<: *a}"),
    *("0", "-0", "-1", "1", "3", "1.5", "1e9", "1.0e+308", "1.0e+999", ".inf", "-.inf", ".nan", "1e-320", "0.1"),
    *("016", "0x10", "0b11", "1:30", "1_000", "1_0.5", "0o17", "2**64", str(2**31), str(2**63), str(2**64), "9" * 400),
    *("10000000", "100000000000", "[0]", "[-3]", "[10000000]", "[16384, 16384]", "[8, 8.5]", "[1, 1]", "[1, '1']"),
    *('"a\\nb"', '"\\0"', '"\\e[31m"', '"\\u202e"', "'  '", "x" * 300, "é" * 90, "' bc'", "2020-01-01", "2020-13-45"),
    *("all", "BallRun", "Car*", "[", "bc", "lspc", "bc mode=all", "small", "../up", "/dev/null", ".hidden", "=", "<<"),
    "[" + ", ".join(["x"] * 3000) + "]",
    "[" * 200,
)
KEYS = (
    *("name", "description", "tasks", "data", "seeds", "cost_limits", "steps", "evaluation", "algorithms", "own_tasks"),
    *(
        "data.source",
        "data.files",
        "data.files.BallRun",
        "data.grid",
        "data.grid.noise",
        "data.inpaint",
        "data.density",
    ),
    *("data.density_grid", "data.density_grid.cost_bins", "data.noise", "data.epsilon", "data.holdout", "data.share"),
    *("evaluation.every", "evaluation.episodes", "evaluation.final", "evaluation.fqe", "evaluation.fqe.hidden_sizes"),
    *("evaluation.fqe.steps", "evaluation.fqe.gamma", "algorithms.bc", "algorithms.bc.algorithm", "algorithms.bc.grid"),
    *(
        "algorithms.bc.grid.mode",
        "algorithms.bc.grid.batch_size",
        "algorithms.bc.hyperparameters",
        "algorithms.bc.tasks",
    ),
    *(
        "algorithms.bc.hyperparameters.hidden_sizes",
        "algorithms.bc.hyperparameters.steps",
        "algorithms.bc.tasks.BallRun",
    ),
    *("algorithms.lspc.hyperparameters.latent_dim", "algorithms.lspc.hyperparameters.timeouts_terminal", "a", "a.b.c"),
    *("algorithms.cpq-small.hyperparameters.num_q", "algorithms.cpq-small.hyperparameters.vae_hidden_size"),
    *("algorithms.cdt.hyperparameters.embedding_dim", "algorithms.cdt.hyperparameters.target_returns"),
    *(
        "algorithms.cdt.hyperparameters.augment_degree",
        "own_tasks.Mine",
        "own_tasks.Mine.environment",
        "",
        ".",
        "x" * 200,
    ),
)


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Args:
        text: of the suite.
        overrides: of ``--set``.
    """

    text: str
    overrides: tuple[str, ...] = ()


def cases(seed: int) -> Iterator[Case]:
    """Endlessly many, the same for the same seed."""
    chance = random.Random(seed)
    while True:
        yield chance.choice(WAYS)(chance)


def _letters(chance: random.Random) -> Case:
    """Letters are lost, doubled or replaced."""
    text = list(GOOD)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(text))
        text[place] = chance.choice(("", text[place] * 2, chance.choice("[]{}:,&*!|>'\"%@`#\t\n-0_.\\\x00\x1b\u2028é")))
    return Case("".join(text))


def _lines(chance: random.Random) -> Case:
    """Lines are lost, doubled, moved in, or cut off."""
    lines = GOOD.splitlines()
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(lines))
        lines[place : place + 1] = chance.choice(([], [lines[place]] * 2, ["  " + lines[place]], [lines[place][:9]]))
        lines = lines or [""]
    return Case("\n".join(lines))


def _values(chance: random.Random) -> Case:
    """Values and keys anywhere in the suite are replaced."""
    content = yaml.safe_load(GOOD)
    holders: list[Any] = [content]
    for holder in holders:
        below = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in below if isinstance(value, dict | list) and value]
    marks = {}
    for mark in range(chance.randint(1, 3)):
        holder, value = chance.choice(holders), chance.choice(VALUES)
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        marks[f"mark{mark}"] = value
        if isinstance(holder, dict) and chance.random() < 0.2:
            holder[f"mark{mark}"] = holder.pop(key)
        else:
            holder[key] = f"mark{mark}"
    text = yaml.safe_dump(content, sort_keys=False)
    for mark, value in marks.items():
        text = text.replace(mark, value)
    return Case(text)


def _overrides(chance: random.Random) -> Case:
    """A good suite and odd settings."""
    settings = (f"{chance.choice(KEYS)}={chance.choice(VALUES)}" for _ in range(chance.randint(1, 2)))
    return Case(GOOD, tuple(settings))


def _bomb(chance: random.Random) -> Case:
    """Aliases, or a grid, that stand for very much."""
    wide, deep = chance.randint(2, 12), chance.randint(2, 30)
    if chance.random() < 0.3:
        grid = {f"key{level}": list(range(wide)) for level in range(deep)}
        return Case(GOOD, (f"algorithms.bc.grid={yaml.safe_dump(grid, default_flow_style=True, width=10**6).strip()}",))
    mapped = chance.random() < 0.5
    lines = []
    for level in range(deep):
        below = [f"*a{level - 1}" if level else "x"] * wide
        inner = ", ".join(f"k{index}: {one}" for index, one in enumerate(below)) if mapped else ", ".join(below)
        lines.append(f"a{level}: &a{level} " + (f"{{{inner}}}" if mapped else f"[{inner}]"))
    return Case("\n".join(lines) + "\n" + GOOD)


WAYS: tuple[Callable[[random.Random], Case], ...] = (_letters, _lines, _values, _values, _overrides, _overrides, _bomb)


def problem(case: Case, folder: Path, seconds: int = 60) -> str:
    """What is wrong with what comes of a case; empty where nothing is.

    Args:
        case: what to try.
        folder: for the suite; no results come there.
        seconds: after which it counts as hanging.
    """
    path = folder / "suite.yaml"
    path.write_text(case.text, encoding="utf-8", errors="surrogatepass")
    settings = [option for override in case.overrides for option in ("--set", override)]
    arguments = ["run", str(path), "--results", str(folder / "r"), "--dry-run", *settings]
    return fault(arguments, "Error: ", seconds) or ("it wrote results" if (folder / "r").exists() else "")


def explore(count: int, seed: int) -> int:
    """Try so many cases and print those that are wrong; how many are."""
    wrong, begun, slowest = 0, time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number, case in zip(range(count), cases(seed), strict=False):
            started = time.monotonic()
            told = problem(case, Path(folder))
            slowest = max(slowest, time.monotonic() - started)
            if told:
                wrong += 1
                print(f"case {number} of seed {seed}: {told}\n--set {case.overrides}\n{case.text}\n")
    print(f"{count} cases, {wrong} wrong, {time.monotonic() - begun:.0f} s, the slowest {slowest:.1f} s")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(int(explore(options.cases, options.seed) > 0))


if __name__ == "__main__":
    main()
