"""Damage one file of a results folder at a time, and look at what every reader makes of it.

    python tests/fuzz_damage.py --cases 5000 --seed 0

Files of every kind are emptied, cut, removed, overwritten in part, replaced by another, or have one bit flipped. Then
nothing may be raised but a :class:`harness.errors.UserError`, no number may differ from what was written, and the
file must be named. Reports, which read summaries, must say what the files say; a damaged summary may cost time alone.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from click.testing import CliRunner

from harness import summary
from harness.archive import open_results
from harness.cli import main as command
from harness.errors import UserError
from harness.plan import Job, Plan
from harness.planning import make_plan
from harness.store import DIAGNOSTICS, EVERYTHING, STATUS, TABLES, Store
from harness.suite import SuiteFile
from harness.summary import FOLDER

SUITE = """
name: {name}
tasks: [BallRun]
algorithms: {{{algorithm}: }}
seeds: 2
cost_limits: [10, 20]
steps: 100
data: {{source: demo}}
"""
HOW = ("empty", "cut", "removed", "flipped", "overwritten", "replaced")


def finish(folder: Path) -> Store:
    """A folder of two finished suites and an unfinished job."""
    store = Store(folder)
    store.prepare()
    for name, algorithm in (("one", "bc"), ("two", "lspc")):
        suite = folder / f"{name}.yaml"
        suite.write_text(SUITE.format(name=name, algorithm=algorithm))
        plan = make_plan(SuiteFile(suite))
        store.write_plan(plan)
        for index in range(len(plan.cells)):
            _write(store, plan, index)
    job = Job(cells=(plan.cells[0].cell,))
    store.write_checkpoint(job, {"step": 7, "weights": torch.randn(1000, generator=torch.Generator())})
    return store


def _write(store: Store, plan: Plan, index: int) -> None:
    planned, draws = plan.cells[index], np.random.default_rng(index)
    rows = [
        {"step": step, "policy": policy, "cost_limit": float("nan"), "episode": episode, "seed": episode}
        | {"episode_return": draws.normal() * 1e3, "cost": draws.uniform(0, 30), "length": 9}
        for step in (50, 100)
        for policy in planned.rows
        for episode in range(5)
    ]
    curve = pd.DataFrame({"step": range(1, 101), "loss": draws.normal(size=100)})
    told = [(100, policy, float("nan"), "error", draws.normal()) for policy in planned.rows]
    store.write_results(
        planned.cell,
        {"dataset": {"sha256": "0"}, "group": [planned.cell.hash]},
        pd.DataFrame(rows),
        curve,
        {policy: {"weights": torch.from_numpy(draws.normal(size=50))} for policy in planned.rows},
        {"mean": draws.normal(size=9)},
        pd.DataFrame(told, columns=list(DIAGNOSTICS)) if index % 2 else None,
        {"nothing is learnt": 50} if index == 0 else {},
    )


def what_is_read(root: Path) -> tuple[dict[str, Any], set[str]]:
    """Everything that can be read of a folder, by what it is of; and the suites and cells that are told of as damaged.

    Raises:
        UserError: nothing can be read at all.
    """
    notes: list[str] = []
    store = Store.existing(root, EVERYTHING, notes.append)
    found: dict[str, Any] = {}
    said = set(notes)
    for plan in store.plans():
        found[plan.suite] = plan.model_dump_json()
        for planned in plan.cells:
            cell, status = planned.cell, store.status(planned.cell)
            if status.state == "damaged":
                said.add(status.brief)
            elif status.state == "done":
                found[cell.hash] = [
                    dict(status.warnings),
                    store.record(cell),
                    *(read(cell).to_dict() for read in (store.episodes, store.training, store.diagnostics)),
                    {name: state["weights"].tolist() for name, state in store.policies(cell).items()},
                    store.statistics(cell)["mean"].tolist(),
                ]
    said |= set(notes)
    for job in store.unfinished_jobs():
        content = store.read_checkpoint(job)
        assert content is not None
        found[job.id] = [content["step"], content["weights"].tolist()]
    return found, said | set(notes)


def what_reports_read(root: Path) -> tuple[dict[str, Any], set[str]]:
    """The same of what reports read, the first values of each cell; and what they say of damage.

    Raises:
        UserError: nothing can be read at all.
    """
    notes: list[str] = []
    results = open_results(root, note=notes.append)
    found: dict[str, Any] = {}
    said = set()
    for plan in results.plans():
        for planned in plan.cells:
            cell, status = planned.cell, results.status(planned.cell)
            if status.state == "damaged":
                said.add(status.brief)
            elif status.state == "done":
                frames = (results.episodes, results.training, results.diagnostics)
                found[cell.hash] = [
                    dict(status.warnings),
                    results.record(cell),
                    *(read(cell).to_dict() for read in frames),
                ]
    return found, said | set(notes)


def damage(path: Path, how: str, draws: random.Random, others: list[Path]) -> bool:
    """Damage a file; whether it is another now."""
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
        return True
    if how == "empty":
        changed = b""
    elif how == "cut":
        changed = content[: draws.randrange(len(content))]
    elif how == "flipped":
        place = draws.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
    elif how == "overwritten":
        start = draws.randrange(len(content))
        rubbish = draws.randbytes(draws.randrange(1, 64))
        changed = content[:start] + rubbish + content[start + len(rubbish) :]
    else:
        changed = draws.choice(others).read_bytes()
    path.write_bytes(changed)
    return bytes(changed) != content


@contextmanager
def _restored(path: Path) -> Iterator[None]:
    content = path.read_bytes()
    try:
        yield
    finally:
        for aside in path.parent.glob("*.damaged*"):
            aside.unlink()
        path.write_bytes(content)


def files(root: Path) -> list[Path]:
    """The files of a results folder that hold something."""
    return sorted(path for path in root.glob("*/*") if path.is_file() and path.parent.name != FOLDER)


def check(root: Path, whole: dict[str, Any], path: Path, how: str, draws: random.Random) -> None:
    """Damage a file and look; then put it back.

    Raises:
        AssertionError: a reader took what is damaged, or did not name it.
    """
    with _restored(path):
        if not damage(path, how, draws, files(root)):
            return
        if how != "removed":
            _, named = Store(root).verify()
            assert [line.split(": ")[0] for line in named] == [str(path)], named
        try:
            found, said = what_is_read(root)
        except UserError as error:
            raise AssertionError("one damaged file stops everything") from error
        wrong = [key for key, value in found.items() if repr(value) != repr(whole[key])]
        assert not wrong, f"other numbers in {wrong}"
        # What is gone altogether is missing, as a suite is that never ran.
        gone = how == "removed" and path.parent.name in ("suites", "jobs")
        assert found.keys() < whole.keys()
        assert gone or any(str(path) in line for line in said), said
        for summed in draws.sample(sorted((root / FOLDER).iterdir()), draws.randrange(2)):
            damage(summed, draws.choice(HOW), draws, files(root))
        told, _ = what_reports_read(root)
        again, heard = what_reports_read(root)
        assert repr(told) == repr(again) == repr({key: whole[key][: len(value)] for key, value in told.items()})
        assert told.keys() >= {key for key, value in found.items() if isinstance(value, list) and len(value) > 2}
        read_by_reports = path.name in (*TABLES, STATUS) or path.parent.name == "suites"
        assert gone or not read_by_reports or any(str(path) in line for line in heard), heard


def check_commands(root: Path, path: Path, how: str, draws: random.Random) -> None:
    """The same by the command line: no traceback, the exit status that is right.

    Raises:
        AssertionError: one is wrong.
    """
    with _restored(path):
        if not damage(path, how, draws, files(root)):
            return
        for arguments in (["status"], ["status", "--verify"], ["leaderboard"], ["leaderboard", "--selection"]):
            result = CliRunner().invoke(command, [arguments[0], str(root), *arguments[1:]])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            named = "--verify" in arguments and how != "removed"
            assert result.exit_code == (1 if named else 0) or how == "removed", (arguments, result.output)


@patch.multiple(summary, WORTH=0, SETTLED=0)
def fuzz(folder: Path, cases: int, seed: int = 0, every: int = 50) -> Counter[str]:
    """So many cases, every so many of them by the command line, too.

    Returns:
        How many there were by kind of file and of damage.
    """
    finish(folder)
    whole, said = what_is_read(folder)
    assert not said
    assert not what_reports_read(folder)[1]
    draws, counts = random.Random(seed), Counter[str]()
    for case in range(cases):
        path, how = draws.choice(files(folder)), HOW[case % len(HOW)]
        try:
            check(folder, whole, path, how, draws)
            if case % every == every - 1:
                check_commands(folder, path, how, draws)
        except Exception as error:
            raise AssertionError(f"case {case} of seed {seed}: {path.relative_to(folder)} {how}") from error
        counts[f"{path.suffix[1:]} {how}"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        counts = fuzz(folder, options.cases, options.seed)
    finally:
        shutil.rmtree(folder)
    for kind, count in sorted(counts.items()):
        print(f"{count:6} {kind}")
    print(f"{counts.total()} cases, seed {options.seed}: every damage was seen, no number differs.")


if __name__ == "__main__":
    main()
