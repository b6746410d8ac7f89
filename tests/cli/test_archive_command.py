"""Archives on the command line, and the commands that make a cell of them again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import MadeUp
from running import REACH, call, plan_of, run, suite_file, suite_plan

from harness.archive import Archive, write_archive
from harness.data.dataset import LABELS, FoundSource, dataset_path
from harness.data.manifest import manifest_path
from harness.files import file_sha256
from harness.plan import Cell, Plan
from harness.planning import make_plan
from harness.store import Status, Store
from harness.suite import read_suite
from harness.tasks import find_task

SUITE = """\
name: pair
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10, 20]
algorithms:
  bc:
    hyperparameters: {steps: 40, batch_size: 16, hidden_sizes: [8]}
    grid: {mode: [all, safe]}
evaluation: {every: 20, episodes: 1, final: 2}
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suite_file(tmp_path_factory.mktemp("suite"), SUITE)


@pytest.fixture(scope="module")
def finished(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the suite above."""
    results = tmp_path_factory.mktemp("finished")
    done = run(suite, results)
    assert (done.exit_code, done.stdout) == (0, f"pair: 6 done, 0 failed, 0 skipped. Results: {results}\n")
    return results


# archive


def test_an_archive_is_read_as_the_folder_is(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "evidence"
    done = call("archive", finished, root)
    size = sum(path.stat().st_size for path in root.iterdir())
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"Wrote {root}: 6 of 6 cells of suite pair done; 5 files, {size / 1e6:.2f} MB.\n"
    for command in (
        ["status"],
        ["status", "--commands", "groups"],
        ["leaderboard"],
        ["leaderboard", "--format", "csv"],
    ):
        here, there = call(*command, finished), call(*command, root)
        assert (here.exit_code, here.stdout) == (there.exit_code, there.stdout) == (0, here.stdout)
    assert call("archive", root, tmp_path / "again").exit_code == 0  # of an archive, too
    assert (tmp_path / "again" / "archive.json").read_bytes() == (root / "archive.json").read_bytes()


def test_what_is_not_done_is_said_and_kept_where_it_was(finished: Path, suite: Path, tmp_path: Path) -> None:
    call("archive", finished, tmp_path / "archive")
    lesser, first = tmp_path / "lesser", plan_of(finished).cells[0].cell
    run(suite, lesser, "--cell", first.hash)
    Store(lesser).set_status(plan_of(finished).cells[1].cell, Status("failed", "no"))
    fresh = call("archive", lesser, tmp_path / "fresh")
    assert "1 of 6 cells of suite pair done; 5 files" in fresh.stdout
    assert "failed: no" in call("status", tmp_path / "fresh").stdout
    merged = call("archive", lesser, tmp_path / "archive")
    assert "6 of 6 cells of suite pair done, 5 of them kept from the archive before; 5 files" in merged.stdout
    assert merged.stderr == ""
    together = call("archive", lesser, finished, tmp_path / "together")
    assert "6 of 6 cells of suite pair done; 5 files" in together.stdout
    fewer = run(suite, tmp_path / "fewer", "--set", "seeds=1", "--cell", first.hash)
    assert fewer.exit_code == 0
    dropping = call("archive", tmp_path / "fewer", tmp_path / "archive")
    assert "3 of 3 cells of suite pair done, 2 of them kept" in dropping.stdout
    assert dropping.stderr.startswith("note: 3 finished cells of the archive before are not in the suite")


def test_of_several_suites_one_is_meant(finished: Path, tmp_path: Path) -> None:
    both = Store(tmp_path / "both")
    both.prepare()
    both.write_plan(plan_of(finished))
    both.write_plan(Plan(suite="other", description="", cells=plan_of(finished).cells[:1]))
    done = call("archive", both.root, tmp_path / "archive")
    assert done.exit_code == 2
    assert f"Error: several suites ran in '{both.root}': choose with --suite other or pair\n" in done.stderr
    done = call("archive", both.root, tmp_path / "archive", "--suite", "pair")
    assert (done.exit_code, f"Error: nothing of suite pair is done in {both.root}" in done.stderr) == (2, True)
    assert not (tmp_path / "archive").exists()


def test_an_archive_takes_no_results_and_shows_no_films(finished: Path, suite: Path, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    call("archive", finished, root)
    before = {path: path.read_bytes() for path in root.iterdir()}
    refused = [run(suite, root), run(suite, root, "--dry-run")]
    refused.append(call("render", root, "--task", "BallRun", "--policy", "bc-all"))
    for done in refused:
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"'{root}' is an archive: it holds no policies, and no results go there." in done.stderr
    assert {path: path.read_bytes() for path in root.iterdir()} == before


def test_a_damaged_archive_is_told_with_the_file(finished: Path, tmp_path: Path) -> None:
    call("archive", finished, tmp_path)
    (path,) = tmp_path.glob("episodes-*")
    path.write_bytes(path.read_bytes()[:-1])
    done = call("leaderboard", tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"Error: {path}: damaged: its SHA-256 is not what the archive says\n" in done.stderr


# run --cell


def test_one_cell_is_run_and_the_whole_suite_known(finished: Path, suite: Path, tmp_path: Path) -> None:
    chosen = plan_of(finished).cells[1].cell
    done = run(suite, tmp_path, "--cell", chosen.hash[:8].upper())
    assert (done.exit_code, done.stdout) == (0, f"pair: 1 done, 0 failed, 0 skipped. Results: {tmp_path}\n")
    store = Store(tmp_path)
    assert plan_of(tmp_path) == plan_of(finished)
    assert [one.cell for one in plan_of(tmp_path).cells if store.status(one.cell).state == "done"] == [chosen]
    assert "pair: 0 done, 0 failed, 1 skipped." in run(suite, tmp_path, "--cell", chosen.hash).stdout


def weights(results: Path, hash_: str) -> dict[str, np.ndarray]:
    cell = next(one.cell for one in plan_of(results).cells if one.cell.hash == hash_)
    (state,) = Store(results).policies(cell).values()
    return {name: tensor.numpy() for name, tensor in state.items()}


def test_a_group_is_made_again_to_the_bit_and_a_cell_alone_nearly(finished: Path, suite: Path, tmp_path: Path) -> None:
    """By the printed commands; the suite is a file, so SUITE stands for it."""
    lines = call("status", finished, "--commands", "groups").stdout.splitlines()
    assert lines.pop(0) == "# SUITE is the file of suite pair, with the --set that it ran with."
    assert lines[0].startswith("# BallRun was trained on demo data")
    assert [line.partition("  # ")[2] for line in lines[1:]] == [
        "BallRun bc mode=all seed 0 and 1 more",
        "BallRun bc mode=safe seed 0 limit 10 and 3 more",
    ]
    words = shlex.split(lines[2], comments=True)
    assert words[:3] == ["lspc-bench", "run", "SUITE"]
    assert words[-2:] == ["--results", "results/runs/again"]
    group = words[4:-2:2]
    assert run(suite, tmp_path / "group", *words[3:-2]).stdout.startswith("pair: 4 done")
    for hash_ in group:
        for name in ("policy.safetensors", "episodes.parquet", "training.parquet"):
            again = (tmp_path / "group" / hash_ / name).read_bytes()
            assert again == (finished / hash_ / name).read_bytes(), name
    assert run(suite, tmp_path / "alone", "--cell", group[2]).stdout.startswith("pair: 1 done")
    expected = weights(finished, group[2])
    for name, values in weights(tmp_path / "alone", group[2]).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("xyz", "suite pair has no cell 'xyz' with these settings; --dry-run lists its cells"),
        ("", "6 cells of suite pair begin with '': "),
    ],
)
def test_a_cell_that_is_none_or_several_is_refused(suite: Path, tmp_path: Path, cell: str, message: str) -> None:
    done = run(suite, tmp_path / "runs", "--cell", cell)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_other_cells_need_may_be_missing(
    plugins: Path, write_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_suite(SUITE.replace("algorithms:", "algorithms:\n  toy-needy: {hyperparameters: {steps: 1}}"))
    assert "needs lspc_bench_no_such_package" in run(path, tmp_path / "runs").stderr
    cell = next(one.cell for one in make_plan(read_suite(str(path))).cells if one.cell.algorithm == "bc")
    assert run(path, tmp_path / "runs", "--cell", cell.hash).exit_code == 0
    assert "This would not run" not in run(path, tmp_path / "new", "--cell", cell.hash, "--dry-run").stderr


# status --commands


def test_a_command_for_each_cell_of_a_built_in_suite(tmp_path: Path) -> None:
    plan, store = make_plan(read_suite("smoke")), Store(tmp_path)
    store.prepare()
    store.write_plan(plan)
    lines = call("status", tmp_path, "--commands", "cells").stdout.splitlines()
    assert len(lines) == len(plan.cells)
    assert lines[0] == (
        f"lspc-bench run smoke --cell {plan.cells[0].cell.hash} --results results/runs/again  # BallRun lspc seed 0"
    )
    words = shlex.split(lines[-1], comments=True)[1:]
    done = call(*words, "--dry-run")
    assert "1 cells: 1 to run in 1 jobs, 0 skipped." in done.stdout
    assert plan.cells[-1].cell.hash in done.stdout


def test_cells_that_the_suite_has_no_longer_are_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    store.write_plan(make_plan(read_suite("smoke", ["algorithms.lspc.hyperparameters.steps=3"])))
    lines = call("status", tmp_path, "--commands", "cells").stdout.splitlines()
    assert lines[0].startswith("# 2 of 10 cells are not in the built-in suite smoke as it is now")
    assert len(lines) == 2 + 10


class Other(MadeUp):
    """One of CarRun's cells was trained on another file."""

    def record(self, cell: Cell) -> dict[str, Any]:
        other = (cell.definition.name, cell.algorithm, cell.seed) == ("CarRun", "bc", 0)
        return super().record(cell) | {"dataset": {"sha256": ("cd" if other else "ab") * 32}}


NEEDY = (
    """
name: needy
tasks: [BallRun, CarRun, Reach]
"""
    + REACH
    + """\
algorithms: [bc, lspc]
steps: 100
seeds: 1
data: {source: SOURCE, files: {Reach: reach.hdf5}}
"""
)


@pytest.mark.parametrize(
    ("source", "label", "way"),
    [
        ("agents", LABELS["agents"], "'lspc-bench data collect {} --agents' makes it, if it is given the same options"),
        ("dsrl", "DSRL", "'lspc-bench data download {}' gets it"),
    ],
)
def test_commands_say_once_a_task_which_data_they_need(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: FoundSource, label: str, way: str
) -> None:
    import lspc_bench_test_plugins as toys

    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "data"))
    toys.write_reach(tmp_path / "reach.hdf5")
    write_archive([Other(suite_plan(tmp_path, NEEDY.replace("SOURCE", source)))], None, tmp_path / "archive")

    def told() -> list[str]:
        lines = call("status", tmp_path / "archive", "--commands", "cells").stdout.splitlines()[1:]
        for task in ("BallRun", "CarRun", "Reach"):  # before the first command that needs it
            comments = [line.startswith("#") for line in lines if f"{task} " in line]
            assert comments == sorted(comments, reverse=True)
        return [line for line in lines if line.startswith("#")]

    ours, others = (f"(SHA-256 {two * 32})" for two in ("ab", "cd"))
    before = told()
    assert before == [
        f"# BallRun was trained on {label} {ours}: {way.format('BallRun')}",
        f"# CarRun was trained on {label} {others}: {way.format('CarRun')}",
        f"# CarRun was trained on {label} {ours}: {way.format('CarRun')}",
        f"# Reach was trained on own file reach.hdf5 {ours}: reach.hdf5",
    ]
    path = dataset_path(find_task("BallRun"), source)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"other")
    changed = f"# Not the same dataset file lies there now: {path} (SHA-256 {file_sha256(path)})"
    assert told() == [before[0], changed, *before[1:]]
    manifest = {"task": "BallRun", "sha256": "ab" * 32, "command": "collect\nit"}
    manifest_path(path).write_text(json.dumps(manifest))
    assert told() == [f"# BallRun was trained on {label} {ours}: 'collect it' makes it", *before[1:]]


def test_the_evidence_is_that_of_the_built_in_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    results = Path(__file__).parents[2] / "results" / "evidence-small"
    lines = call("status", results, "--commands", "cells").stdout.splitlines()
    (plan,) = Archive(results).plans()
    commands = [line for line in lines if not line.startswith("#")]
    assert [shlex.split(line, comments=True)[4] for line in commands] == [one.cell.hash for one in plan.cells]
    assert [line.partition(" (SHA-256")[0] for line in lines if line.startswith("#")] == [
        f"# {task.name} was trained on agent-collected data, not DSRL" for task in plan.tasks.values()
    ]


def test_an_archive_knows_the_groups(finished: Path, tmp_path: Path) -> None:
    call("archive", finished, tmp_path)
    plan = plan_of(finished)
    for planned in plan.cells:
        record = Archive(tmp_path).record(planned.cell)
        assert record == Store(finished).record(planned.cell)
        assert planned.cell.hash in record["group"]
