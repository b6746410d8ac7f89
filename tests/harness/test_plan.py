"""From a suite to cells and jobs: what is trained how often, with which settings, and under which name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import registry
from harness.data.filters import Filters
from harness.errors import UserError
from harness.plan import Cell, CellData, Plan, make_jobs, make_plan, require_inputs
from harness.suite import FQE, Evaluation, SuiteFile, builtin_suites, read_suite
from harness.tasks import FAMILIES, all_tasks, find_task

WriteSuite = Callable[[str], Path]


@pytest.fixture
def plan(write_suite: WriteSuite) -> Callable[..., Plan]:
    """The plan of a suite on BallRun with two seeds, unless the text says otherwise."""

    def make(algorithms: str, more: str = "tasks: [BallRun]", overrides: tuple[str, ...] = ()) -> Plan:
        seeds = "" if "seeds:" in more else "seeds: 2\n"
        return make_plan(SuiteFile(write_suite(f"name: mine\n{seeds}{more}\nalgorithms:\n{algorithms}\n"), overrides))

    return make


def hyperparameters(plan: Plan, name: str) -> dict[str, list[Any]]:
    """The values of one hyperparameter by label, without repeats."""
    found: dict[str, list[Any]] = {}
    for planned in plan.cells:
        values, value = found.setdefault(planned.label, []), planned.cell.hyperparameters[name]
        if value not in values:
            values.append(value)
    return found


# Cells


def test_an_algorithm_that_ignores_the_limit_is_trained_once_a_seed(plan: Callable[..., Plan]) -> None:
    cells = [planned.cell for planned in plan("  lspc:").cells]
    assert [(cell.seed, cell.cost_limit) for cell in cells] == [(0, None), (1, None)]
    assert {cell.evaluation_limits for cell in cells} == {(10.0, 20.0, 40.0)}


def test_an_algorithm_that_aims_at_the_limit_is_trained_for_each(plan: Callable[..., Plan]) -> None:
    cells = [planned.cell for planned in plan("  bc: {hyperparameters: {mode: safe}}").cells]
    assert [(cell.cost_limit, cell.seed) for cell in cells] == list(product((10.0, 20.0, 40.0), (0, 1)))
    assert all(cell.evaluation_limits == (cell.cost_limit,) for cell in cells)


def test_the_suites_limits_seeds_and_evaluation_reach_the_cells(plan: Callable[..., Plan]) -> None:
    more = "tasks: [CarRun, BallRun]\nseeds: [7]\ncost_limits: [5, 0]\nevaluation: {every: 3}\ndata: {source: demo}"
    cells = [planned.cell for planned in plan("  lspc:\n  bc: {hyperparameters: {mode: safe}}", more).cells]
    assert [(cell.task, cell.algorithm, cell.seed, cell.cost_limit) for cell in cells] == [
        (task, algorithm, 7, limit)
        for task in ("OfflineBallRun-v0", "OfflineCarRun-v0")
        for algorithm, limit in (("lspc", None), ("bc", 5.0), ("bc", 0.0))
    ]
    assert cells[0].evaluation_limits == (5.0, 0.0)
    assert {(cell.evaluation.every, cell.data) for cell in cells} == {(3, CellData(source="demo"))}


def test_tasks_that_several_patterns_name_are_planned_once(plan: Callable[..., Plan]) -> None:
    cells = plan("  lspc:", "tasks: [Ball*, bullet, BallRun, OfflineBallRun-v0]").cells
    assert [planned.cell.task for planned in cells] == [
        task.id for task in all_tasks().values() if task.family == "bullet" for _ in (0, 1)
    ]


# Precedence


def test_every_source_of_a_setting_wins_over_the_ones_before(plan: Callable[..., Plan]) -> None:
    """Default, published for the task, hyperparameters, tasks (a later pattern wins), grid, --set."""
    everywhere = "tasks: [BallRun, AntRun, PointGoal1]"
    assert hyperparameters(plan("  lspc:", everywhere), "vae_clamp") == {"lspc": [0.25, 0.6]}
    entry = "hyperparameters: {vae_clamp: 0.1}"
    assert hyperparameters(plan(f"  lspc: {{{entry}}}", everywhere), "vae_clamp") == {"lspc": [0.1]}
    entry += ", tasks: {bullet: {vae_clamp: 0.2}, 'Ant*': {vae_clamp: 0.3}}"
    assert hyperparameters(plan(f"  lspc: {{{entry}}}", everywhere), "vae_clamp")["lspc"] == [0.3, 0.2, 0.1]
    entry += ", grid: {vae_clamp: [0.4, 0.5]}"
    assert hyperparameters(plan(f"  lspc: {{{entry}}}", everywhere), "vae_clamp") == {
        "lspc vae_clamp=0.4": [0.4],
        "lspc vae_clamp=0.5": [0.5],
    }
    overrides = ("algorithms.lspc.hyperparameters.vae_clamp=0.7",)
    assert hyperparameters(plan(f"  lspc: {{{entry}}}", everywhere, overrides), "vae_clamp") == {"lspc": [0.7]}


def test_the_suites_steps_win_over_published_ones_alone(plan: Callable[..., Plan]) -> None:
    algorithms = "  bc:\n  lspc: {hyperparameters: {steps: 9}}"
    metadrive = "tasks: [easysparse]"
    assert hyperparameters(plan(algorithms, metadrive), "steps") == {"bc": [200_000], "lspc": [9]}
    assert hyperparameters(plan(algorithms, f"{metadrive}\nsteps: 5"), "steps") == {"bc": [5], "lspc": [9]}
    assert hyperparameters(plan(algorithms, metadrive, ("steps=5",)), "steps") == {"bc": [5], "lspc": [5]}


def test_a_setting_that_equals_its_default_still_wins(plan: Callable[..., Plan]) -> None:
    default = registry.load("lspc").Hyperparameters().vae_clamp  # type: ignore[attr-defined, call-arg]
    assert find_task("BallRun").family == "bullet"  # whose published setting is another
    found = plan(f"  lspc: {{hyperparameters: {{vae_clamp: {default}}}}}")
    assert hyperparameters(found, "vae_clamp") == {"lspc": [default]}


# Hashes

CELLS = st.builds(
    Cell,
    schema_version=st.integers(1, 3),
    task=st.sampled_from(sorted(all_tasks())),
    algorithm=st.sampled_from(["lspc", "bc"]),
    algorithm_version=st.integers(1, 3),
    hyperparameters=st.dictionaries(
        st.text(max_size=5),
        st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers()),
        max_size=3,
    ),
    seed=st.integers(0),
    cost_limit=st.none() | st.floats(0, 1e6),
    evaluation_limits=st.lists(st.floats(0, 1e6), max_size=3).map(tuple),
    told_limit=st.booleans(),
    evaluation=st.builds(
        Evaluation,
        every=st.none() | st.integers(1),
        episodes=st.integers(1, 1000),
        final=st.integers(1, 1000),
        fqe=st.none() | st.builds(FQE, steps=st.integers(1, 3) | st.just(2000)),
    ),
    own_task=st.none() | st.just(replace(find_task("BallRun"), id="Mine", family="own", environment="Mine-v0")),
    data=st.builds(
        CellData,
        source=st.sampled_from(["dsrl", "demo", "own"]),
        file=st.none() | st.text(),
        sha256=st.none() | st.text(),
        filters=st.builds(Filters, noise=st.none() | st.floats(0.1, 1), filter_seed=st.integers(0, 9)),
    ),
)


def replaced(cell: Cell, field: str, value: Any) -> Cell:
    """A cell with another value in one field; ``model_copy`` would copy the hash, too."""
    return Cell(**{name: getattr(cell, name) for name in Cell.model_fields} | {field: value})


@given(CELLS, CELLS)
def test_every_field_changes_the_hash(one: Cell, other: Cell) -> None:
    for field in Cell.model_fields:
        changed = replaced(one, field, getattr(other, field))
        # As JSON, where 1 is not 1.0 and 0.0 is not -0.0: what equals for Python is no other experiment here.
        judged = field == "evaluation_limits" and not one.told_limit
        if field == "data":  # where a file lies does not matter
            changed = replaced(one, field, other.data.model_copy(update={"file": one.data.file}))
            moved = replaced(one, field, one.data.model_copy(update={"file": "elsewhere"}))
            assert (moved.hash, moved.group) == (one.hash, one.group)
        assert (changed.hash == one.hash) == (judged or changed.model_dump_json() == one.model_dump_json())
        alike = field in ("seed", "cost_limit", "evaluation_limits")  # these may differ within a job
        assert (changed.group == one.group) == (alike or changed.hash == one.hash)


@given(CELLS)
def test_a_cell_that_was_stored_has_the_same_hash(cell: Cell) -> None:
    again = Cell.model_validate_json(cell.model_dump_json())
    assert (again.hash, again.group) == (cell.hash, cell.group)
    backwards = dict(reversed(cell.hyperparameters.items()))
    assert replaced(cell, "hyperparameters", backwards).hash == cell.hash


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from harness.plan import make_plan; from harness.suite import read_suite; "
        "print([cell.cell.hash for cell in make_plan(read_suite('demo')).cells])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[planned.cell.hash for planned in make_plan(read_suite('demo')).cells]}\n"}


# Names


def rows(plan: Plan) -> set[str]:
    return {row for planned in plan.cells for row in planned.rows.values()}


def test_rows_are_named_after_policies(plan: Callable[..., Plan]) -> None:
    found = plan("  lspc:\n  bc: {grid: {mode: [all, safe]}}")
    assert rows(found) == {"lspc-s", "lspc-o", "bc-all", "bc-safe"}
    assert {planned.label for planned in found.cells} == {"lspc", "bc mode=all", "bc mode=safe"}


def test_a_policy_that_two_labels_share_has_the_label_behind_it(plan: Callable[..., Plan]) -> None:
    found = plan("  lspc:\n  wide: {algorithm: lspc, hyperparameters: {max_latent: 1}}\n  bc:")
    assert rows(found) == {"lspc-s [lspc]", "lspc-o [lspc]", "lspc-s [wide]", "lspc-o [wide]", "bc-all"}
    found = plan("  bc: {grid: {mode: [all, safe], batch_size: [1, 2]}}")
    assert rows(found) == {
        f"bc-{mode} [bc mode={mode} batch_size={size}]" for mode in ("all", "safe") for size in (1, 2)
    }


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    return str(caught.value)


def test_the_same_experiment_under_two_labels_is_refused(plan: Callable[..., Plan], tmp_path: Path) -> None:
    found = refusal(lambda: plan("  bc:\n  again:\n    algorithm: bc\n    hyperparameters: {mode: all}"))
    assert found == f"{tmp_path}/suite.yaml:6: 'again' and 'bc' are the same experiment"


# The data's grid

GRID = "tasks: [BallRun]\ndata:\n  source: demo\n  grid:\n    share: [1.0, 0.5]\n    noise: [null, 0.1]"


@pytest.mark.parametrize(
    ("algorithms", "data", "shown"),
    [
        ('{bc: {grid: {batch_size: [16, 32]}}, "bc batch_size=16": {algorithm: bc}}', "{}", "bc batch_size=16"),
        (
            '{bc: {grid: {mode: [all]}}, "bc mode=all": {algorithm: bc, hyperparameters: {gamma: 0.5}}}',
            "{}",
            "bc mode=all",
        ),
        ('{bc: , "bc ": {algorithm: bc, hyperparameters: {batch_size: 3}}}', "{}", "bc "),
        ('{bc: , "\uff42\uff43": {algorithm: bc, hyperparameters: {batch_size: 3}}}', "{}", "\uff42\uff43"),
        ("{bc: {grid: {batch_size: [16, '16']}}}", "{}", "bc batch_size=16"),
        ("{bc: }", "{grid: {share: [1, '1']}}", "bc share=1"),
    ],
)
def test_two_experiments_never_share_a_row(write_suite: WriteSuite, algorithms: str, data: str, shown: str) -> None:
    """However their names come to look alike."""
    data = "{source: demo}" if data == "{}" else "{source: demo, " + data[1:]
    file = SuiteFile(write_suite(f"name: a\ntasks: [BallRun]\ndata: {data}\nalgorithms: {algorithms}\nsteps: 5"))
    with pytest.raises(UserError, match=re.escape(f"would both stand in tables as {shown!r}")):
        make_plan(file)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("algorithms.bc.grid={" + ", ".join(f"k{key}: [1, 2, 3]" for key in range(9)) + "}", "19683 combinations"),
        ("data.grid={" + ", ".join(f"k{key}: [1, 2, 3]" for key in range(9)) + "}", "the data's grid has no 'k0'"),
        ("algorithms.bc.grid={gamma: [" + ", ".join(f"0.{n}" for n in range(1, 1000)) + "]}", "more than 50000 cells"),
    ],
)
def test_a_suite_that_is_endless_is_refused_at_once(write_suite: WriteSuite, setting: str, part: str) -> None:
    file = SuiteFile(write_suite("name: a\ntasks: [all]\nalgorithms: [bc]\nseeds: 1000"), [setting])
    with pytest.raises(UserError, match=part):
        make_plan(file)


def test_every_combination_of_the_datas_grid_is_run(plan: Callable[..., Plan]) -> None:
    found = plan("  bc:\n  lspc:", GRID)
    assert [(planned.label, planned.cell.seed, planned.cell.data.filters) for planned in found.cells] == [
        (f"{label} share={share} noise={noise}", seed, Filters(share=share, noise=noise))
        for label in ("bc", "lspc")
        for share, noise in product((1.0, 0.5), (None, 0.1))
        for seed in (0, 1)
    ]
    assert [data.filters for data in found.data["OfflineBallRun-v0"]] == [
        Filters(share=share, noise=noise) for share, noise in product((1.0, 0.5), (None, 0.1))
    ]
    assert len(make_jobs(planned.cell for planned in found.cells)) == 8
    without = plan("  bc:", "tasks: [BallRun]\ndata: {source: demo, target_cost: 20}")
    assert [one.cell.hash for one in without.cells] == [one.cell.hash for one in found.cells[:2]]


def test_rows_name_the_point_of_the_datas_grid(plan: Callable[..., Plan]) -> None:
    more = "tasks: [BallRun]\ndata: {source: demo, grid: {share: [0.5]}}"
    assert rows(plan("  lspc:", more)) == {"lspc-s [share=0.5]", "lspc-o [share=0.5]"}
    found = plan("  bc:\n  again: {algorithm: bc, grid: {batch_size: [1, 2]}}", more)
    assert rows(found) == {
        "bc-all [bc share=0.5]",
        "bc-all [again batch_size=1 share=0.5]",
        "bc-all [again batch_size=2 share=0.5]",
    }


@pytest.mark.parametrize("override", ["data.share=0.7", "data.grid.share=[0.7]"])
def test_what_is_typed_wins_over_the_datas_grid(plan: Callable[..., Plan], override: str) -> None:
    found = plan("  bc:", GRID, (override,))
    assert [data.filters.share for data in found.data["OfflineBallRun-v0"]] == [0.7, 0.7]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("share:", "shaer:", 7, "the data's grid has no 'shaer'. Did you mean 'share'? Known here: density, "),
        ("share:", "source:", 7, "the data's grid has no 'source'"),
        (
            "noise: [null, 0.1]",
            "noise: [null, -0.1]",
            8,
            "data at share=1.0 noise=-0.1: Input should be greater than 0",
        ),
        ("noise: [null, 0.1]", "noise: [true]", 8, "data at share=1.0 noise=True: must not be true or false"),
        (
            "noise: [null, 0.1]",
            "safe_share: [0.5]",
            8,
            "data at share=1.0 safe_share=0.5: safe_share wants target_cost",
        ),
        ("share: [1.0, 0.5]", "density: [0.3]", 7, "DSRL has no grid that leaves 0.3 of BallRun's trajectories"),
        ("share: [1.0, 0.5]", "share: []", 7, "data.grid.share: must not be empty"),
        ("share: [1.0, 0.5]", "share: 0.5", 7, "data.grid.share: Input should be a valid list"),
    ],
)
def test_a_mistake_in_the_datas_grid_is_told_with_its_line(
    plan: Callable[..., Plan], tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in GRID
    found = refusal(lambda: plan("  bc:", GRID.replace(old, new)))
    assert found.startswith(f"{tmp_path}/suite.yaml:{line}: {message}"), found


# Jobs


def test_cells_that_differ_in_seed_and_limit_alone_train_side_by_side(plan: Callable[..., Plan]) -> None:
    found = plan("  lspc:\n  bc: {grid: {mode: [all, safe]}}", "tasks: [BallRun, CarRun]\nseeds: 3")
    jobs = make_jobs(planned.cell for planned in found.cells)
    assert [len(job.cells) for job in jobs] == [3, 3, 9] * 2
    assert [cell for job in jobs for cell in job.cells] == [planned.cell for planned in found.cells]
    assert len({job.id for job in jobs}) == 6
    assert jobs[2].describe() == "BallRun bc (bc-safe), 9 replicas"


def test_a_plugin_that_cannot_be_stacked_has_a_job_a_cell(plugins: Path, plan: Callable[..., Plan]) -> None:
    jobs = make_jobs(planned.cell for planned in plan("  toy:\n  toy-single:", "tasks: [BallRun]\nseeds: 3").cells)
    assert [(job.algorithm, len(job.cells)) for job in jobs] == [("toy", 3)] + [("toy-single", 1)] * 3


# What is wrong


@pytest.mark.parametrize(
    ("algorithms", "more", "line", "parts"),
    [
        ("  bc:", "tasks: [BallRun, BalRun]", 3, ["no task matches 'BalRun'", "Did you mean 'BallRun'?"]),
        ("  bc:", "tasks:\n  - BallRun\n  - bulet", 5, ["no task matches 'bulet'", "Did you mean 'bullet'?"]),
        ("  bcc:", "tasks: [all]", 5, ["unknown algorithm 'bcc'", "Did you mean 'bc'?"]),
        ("  mine: {algorithm: lscp}", "tasks: [all]", 5, ["unknown algorithm 'lscp'", "Did you mean 'lspc'?"]),
        ("  bc:\n    tasks: {BalRun: {}}", "tasks: [all]", 6, ["no task matches 'BalRun'", "'BallRun'?"]),
        ("  bc:\n    hyperparameters:\n      bach: 1", "tasks: [all]", 7, ["bc has no hyperparameter 'bach'"]),
        (
            "  bc:\n    hyperparameters:\n      batchsize: 1",
            "tasks: [all]",
            7,
            ["bc has no hyperparameter 'batchsize'. Did you mean 'batch_size'?"],
        ),
        ("  bc:\n    grid:\n      mod: [all]", "tasks: [all]", 7, ["no hyperparameter 'mod'. Did you mean 'mode'?"]),
        (
            "  bc:\n    tasks:\n      BallRun:\n        batch_size: 3\n      Ball*:\n        batch_size: 0",
            "tasks: [all]",
            10,
            ["hyperparameter 'batch_size' of bc: ", "greater than or equal to 1, not 0"],
        ),
        (
            "  bc:\n    tasks:\n      BallRun:\n        batch_size: 0\n      Car*:\n        batch_size: 3",
            "tasks: [all]",
            8,
            ["hyperparameter 'batch_size' of bc: ", "not 0"],
        ),
        ("  bc:\n    grid:\n      mode: [all, saef]", "tasks: [all]", 7, ["'mode' of bc: ", "'safe'", "not 'saef'"]),
        ("  lspc:\n    hyperparameters: {gamma: 2}", "tasks: [all]", 6, ["'gamma' of lspc: ", "equal to 1, not 2"]),
        ("  lspc:\n    hyperparameters: {gamma: .nan}", "tasks: [all]", 6, ["'gamma' of lspc: ", "finite"]),
        ("  lspc:\n    hyperparameters: {gamma: high}", "tasks: [all]", 6, ["'gamma' of lspc: ", "not 'high'"]),
        ("  lspc:\n    hyperparameters: {hidden_sizes: 3}", "tasks: [all]", 6, ["'hidden_sizes' of lspc: ", "not 3"]),
        ("  broken-import:", "tasks: [all]", 5, ["'broken-import'", "fails to import: ModuleNotFoundError"]),
    ],
)
def test_a_mistake_is_told_with_its_line(
    plugins: Path,
    plan: Callable[..., Plan],
    tmp_path: Path,
    algorithms: str,
    more: str,
    line: int,
    parts: list[str],
) -> None:
    found = refusal(lambda: plan(algorithms, more))
    assert found.startswith(f"{tmp_path}/suite.yaml:{line}: ")
    for part in parts:
        assert part in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("tasks=[BallRun, BalRun]", "no task matches 'BalRun'"),
        ("steps=3.5", "steps: "),
        ("algorithms={lscp: }", "unknown algorithm 'lscp'"),
        ("algorithms.bc.algorithm=lscp", "unknown algorithm 'lscp'"),
        ("algorithms.bc.hyperparameters.batch_size=0", "hyperparameter 'batch_size' of bc: "),
        ("algorithms.bc.hyperparameters.bach=0", "bc has no hyperparameter 'bach'"),
        ("algorithms.bc.grid={mode: [saef]}", "hyperparameter 'mode' of bc: "),
        ("algorithms.bc.tasks={BalRun: {}}", "no task matches 'BalRun'"),
    ],
)
def test_a_bad_override_is_blamed_by_name(plan: Callable[..., Plan], override: str, part: str) -> None:
    found = refusal(lambda: plan("  bc:\n    hyperparameters: {batch_size: 3}", overrides=(override,)))
    assert found.startswith(f"--set {override}: ")
    assert part in found


def test_a_missing_dataset_says_how_to_get_it(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "data"))
    file = SuiteFile(write_suite("name: mine\ntasks: [CarRun, BallRun]\nalgorithms: [bc]\n"))
    found = refusal(lambda: require_inputs(file, make_plan(file)))
    name = find_task("BallRun").dataset_file
    assert found.startswith(f"{tmp_path}/suite.yaml:2: the dataset of BallRun is missing: {tmp_path}/data/{name}. ")
    assert "'lspc-bench data download BallRun' gets it" in found
    assert "DSRL_DATASET_DIR" in found
    assert found.endswith("(1 more of the suite's 2 tasks cannot run)")
    (tmp_path / "data").mkdir()
    for task in ("BallRun", "CarRun"):
        (tmp_path / "data" / find_task(task).dataset_file).touch()
    require_inputs(file, make_plan(file))


def test_demo_data_there_is_not_for_every_task(write_suite: WriteSuite) -> None:
    file = SuiteFile(write_suite("name: mine\ndata: {source: demo}\ntasks: [CarRun]\nalgorithms: [bc]\n"))
    found = refusal(lambda: require_inputs(file, make_plan(file)))
    assert "no demo data for OfflineCarRun-v0, only for OfflineBallRun-v0, OfflineBallCircle-v0" in found
    assert "'data: {source: dsrl}'" in found


# Built-in suites


@pytest.fixture(scope="module")
def builtin() -> Iterator[dict[str, Plan]]:
    return {name: make_plan(read_suite(name)) for name in builtin_suites()}


def test_every_built_in_suite_can_be_planned(builtin: dict[str, Plan]) -> None:
    for plan in builtin.values():
        assert plan.cells
        assert Plan.model_validate_json(plan.model_dump_json()) == plan
    for name in ("demo", "smoke", "reference"):
        require_inputs(read_suite(name), builtin[name])


def test_dsrl_is_the_full_protocol(builtin: dict[str, Plan]) -> None:
    plan = builtin["dsrl"]
    assert {data.describe() for used in plan.data.values() for data in used} == {"DSRL"}
    per_task: dict[str, set[float]] = {}
    for planned in plan.cells:
        per_task.setdefault(planned.cell.task, set()).update(planned.cell.evaluation_limits)
    assert per_task == {task.id: set(task.cost_limits) for task in all_tasks().values()}
    assert len(per_task) == 38
    assert {len(limits) for limits in per_task.values()} == {3}
    baselines = {"bc-all", "bc-safe", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt"}
    lspc = {f"{policy} [{label}]" for policy in ("lspc-s", "lspc-o") for label in ("lspc", "lspc-live")}
    assert rows(plan) == rows(builtin["demo"]) == {*lspc, *baselines}
    assert {planned.cell.seed for planned in plan.cells} == {0, 1, 2}
    assert {planned.cell.evaluation.final for planned in plan.cells} == {20}
    per_row = {
        row: sum(len(p.cell.evaluation_limits) for p in plan.cells if row in p.rows.values()) for row in rows(plan)
    }
    assert set(per_row.values()) == {38 * 3 * 3}


def test_the_families_together_are_dsrl(builtin: dict[str, Plan]) -> None:
    parts = [[planned.cell for planned in builtin[f"dsrl-{family}"].cells] for family in FAMILIES]
    assert [len({cell.task for cell in part}) for part in parts] == [8, 16, 5, 9]
    hashes = [cell.hash for part in parts for cell in part]
    assert sorted(hashes) == sorted(planned.cell.hash for planned in builtin["dsrl"].cells)


def test_reference_runs_twins_with_the_same_settings(builtin: dict[str, Plan]) -> None:
    settings: dict[tuple[str, str], list[dict[str, object]]] = {}
    for planned in builtin["reference"].cells:
        cell = planned.cell
        settings.setdefault((cell.task, cell.algorithm), []).append(cell.hyperparameters)
    native = {name for _, name in settings if not name.startswith("osrl-")}
    assert native == {"bc", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt"}
    for task, name in settings:
        if name in native:
            assert len(settings[task, name]) == 5
            assert settings[task, name] == settings[task, f"osrl-{name}"]


@pytest.mark.parametrize(("mode", "same"), [("all", True), ("multi-task", False), ("safe", False)])
def test_other_limits_need_a_new_run_only_where_the_agent_knows_the_limit(
    write_suite: WriteSuite, mode: str, same: bool
) -> None:
    text = (
        "name: limits\ntasks: [BallRun]\nseeds: 1\ndata: {source: demo}\n"
        f"algorithms: {{bc: {{hyperparameters: {{mode: {mode}}}}}}}\ncost_limits: "
    )
    hashes = [
        {planned.cell.hash for planned in make_plan(SuiteFile(write_suite(f"{text}[{limit}]\n"))).cells}
        for limit in (5, 15)
    ]
    assert (hashes[0] == hashes[1]) == same


# Own files, own tasks, filters

OWN = """name: mine
tasks: [Reach, BallRun]
own_tasks:
  Reach:
    environment: lspc_bench_test_plugins:Reach-v0
    episode_length: 20
    cost_limits: [2, 4]
    reference_returns: [-10, 0]
data: {source: demo, files: {Reach: reach.hdf5}, noise: 0.1}
algorithms: [bc]
"""


@pytest.fixture
def own(write_suite: WriteSuite, plugins: Path) -> Callable[..., SuiteFile]:
    """A suite with a task of the user's, and that task's dataset beside it."""
    import lspc_bench_test_plugins as toys

    def make(text: str = OWN, overrides: tuple[str, ...] = ()) -> SuiteFile:
        path = write_suite(text)
        toys.write_reach(path.parent / "reach.hdf5")
        return SuiteFile(path, overrides)

    return make


def test_an_own_task_is_planned_as_the_file_says(own: Callable[..., SuiteFile]) -> None:
    file = own()
    plan = make_plan(file)
    require_inputs(file, plan)
    assert list(plan.tasks) == ["OfflineBallRun-v0", "Reach"]  # behind DSRL's
    task, (data,) = plan.tasks["Reach"], plan.data["Reach"]
    assert (task.family, task.observation_size, task.action_size, task.max_episode_steps) == ("own", 2, 2, 20)
    assert (task.cost_limits, task.min_episode_reward, task.max_episode_reward) == ((2, 4), -10, 0)
    assert data.describe() == "own file reach.hdf5, filtered: noise 0.1, seed 1234"
    assert data.load(task)[0].task == task
    assert plan.data["OfflineBallRun-v0"][0].describe() == "demo data, not DSRL, filtered: noise 0.1, seed 1234"
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert [one.cell.hash for one in again.cells] == [one.cell.hash for one in plan.cells]


def test_what_an_own_task_is_judged_by_needs_no_new_run(own: Callable[..., SuiteFile]) -> None:
    before = {planned.cell.hash for planned in make_plan(own()).cells}
    judged = OWN.replace("[2, 4]", "[3]").replace("[-10, 0]", "[-20, 5]")
    assert {planned.cell.hash for planned in make_plan(own(judged)).cells} == before
    longer = make_plan(own(OWN.replace("episode_length: 20", "episode_length: 30")))
    assert not before & {planned.cell.hash for planned in longer.cells if planned.cell.task == "Reach"}


def test_an_own_file_takes_the_place_of_dsrls(own: Callable[..., SuiteFile]) -> None:
    base = "name: mine\ntasks: [BallRun]\nalgorithms: [bc]\ndata: {files: {BallRun: mine.hdf5}}\n"
    with pytest.raises(UserError, match=r"suite.yaml:4: cannot read the dataset of BallRun, .*mine.hdf5'"):
        make_plan(own(base))
    file = own(base.replace("mine.hdf5", "reach.hdf5"))
    plan = make_plan(file)
    require_inputs(file, plan)
    (data,) = plan.data["OfflineBallRun-v0"]
    path = data.file
    with pytest.raises(UserError, match=r"observations has shape \(.*, BallRun wants"):
        data.load(plan.tasks["OfflineBallRun-v0"])
    # Another content is another experiment; another place is not.
    assert path is not None
    before = {planned.cell.hash for planned in plan.cells}
    Path(path).write_bytes(Path(path).read_bytes() + b" ")
    assert before.isdisjoint(planned.cell.hash for planned in make_plan(file).cells)


def test_a_file_that_changes_under_a_plan_is_refused(own: Callable[..., SuiteFile]) -> None:
    plan = make_plan(own())
    (data,), task = plan.data["Reach"], plan.tasks["Reach"]
    assert data.file is not None
    Path(data.file).write_bytes(Path(data.file).read_bytes() + b" ")
    with pytest.raises(UserError, match=r"reach.hdf5: it has changed since the suite was planned"):
        data.load(task)


def test_a_file_that_is_typed_lies_where_one_is(
    own: Callable[..., SuiteFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert make_plan(own()).data["Reach"][0].file == str(tmp_path / "reach.hdf5")
    typed = ("data.files.Reach=../reach.hdf5",)
    assert make_plan(own(overrides=typed)).data["Reach"][0].file == str(tmp_path / "here/../reach.hdf5")
    with pytest.raises(UserError, match=r"--set data.files.Reach=reach.hdf5: .*there is no such file"):
        make_plan(own(overrides=("data.files.Reach=reach.hdf5",)))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("  Reach:\n", "  CarRun:\n", 4, "'CarRun' is a task of DSRL: call yours something else"),
        ("  Reach:\n", "  all:\n", 4, "'all' cannot be a task's name"),
        ("files: {Reach: reach.hdf5}, ", "", 4, "which file holds the dataset of Reach? Say so under data.files"),
        ("reach.hdf5", "suite.yaml", 9, "it is no HDF5 file"),
        ("{Reach: reach.hdf5}", "{Reach: reach.hdf5, Rech: x}", 9, "none is called 'Rech'. Did you mean 'Reach'?"),
        (
            "{Reach: reach.hdf5}",
            "{Reach: reach.hdf5, Ball*: x}",
            9,
            "a file goes with one task, and none is called 'Ball*'",
        ),
        ("[Reach, BallRun]", "[Rech]", 2, "no task matches 'Rech'. Did you mean 'Reach'?"),
        ("[-10, 0]", "[0, -10]", 8, "wants the lower return first"),
        ("[2, 4]", "[2, 2]", 7, "names a value twice"),
        ("[2, 4]", "[-2]", 7, "must not be negative"),
        ("    episode_length: 20\n", "", 4, "the key 'own_tasks.Reach.episode_length' is missing"),
        ("noise: 0.1", "density: 0.3", 9, "DSRL has no grid that leaves 0.3 of BallRun's trajectories (only for"),
        ("noise: 0.1", "density: 0.5, density_grid: {most: 3}", 9, "give one"),
        ("noise: 0.1", "epsilon: 5", 9, "outliers and epsilon want target_cost"),
        ("noise: 0.1", "outliers: 0.1, target_cost: 0", 9, "at least 1"),
        ("noise: 0.1", "inpaint: [[0.5, 0.2, 0, 1]]", 9, "go upwards"),
        ("noise: 0.1", "inpaint: [[0, 2, 0, 1]]", 9, "data.inpaint.0.1"),
        ("noise: 0.1", "holdout: 1", 9, "data.holdout: Input should be less than 1, not 1"),
        ("noise: 0.1", "holdout: -0.1", 9, "data.holdout: Input should be greater than or equal to 0"),
        ("noise: 0.1", "nose: 0.1", 9, "unknown key 'data.nose'. Did you mean 'noise'?"),
        ("noise: 0.1", "density_grid: {moost: 3}", 9, "unknown key 'data.density_grid.moost'. Did you mean 'most'?"),
    ],
)
def test_what_is_wrong_with_own_tasks_and_filters_is_told_with_the_line(
    own: Callable[..., SuiteFile], old: str, new: str, line: int, message: str
) -> None:
    assert old in OWN
    found = refusal(lambda: make_plan(own(OWN.replace(old, new))))
    assert message in found
    assert f"suite.yaml:{line}: " in found, found


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("lspc_bench_test_plugins:Nowhere-v0", "Reach ('lspc_bench_test_plugins:Nowhere-v0') cannot be made"),
        ("no_such_package:Reach-v0", "ModuleNotFoundError"),
        ("lspc_bench_test_plugins:Wide-v0", "actions outside [-1, 1]"),
        ("lspc_bench_test_plugins:Long-v0", "observations of shape (3,), its dataset (2,)"),
    ],
)
def test_an_environment_that_cannot_serve_is_refused_before_anything_starts(
    own: Callable[..., SuiteFile], environment: str, message: str
) -> None:
    file = own(OWN.replace("lspc_bench_test_plugins:Reach-v0", environment))
    found = refusal(lambda: require_inputs(file, make_plan(file)))
    assert message in found
    assert re.search(r"suite.yaml:[25]: ", found)  # the line of the tasks, or of an environment that cannot be made


def test_arguments_are_part_of_an_own_task_where_there_are_any(own: Callable[..., SuiteFile]) -> None:
    def hashes(added: str) -> set[str]:
        plan = make_plan(own(OWN.replace("    episode_length: 20\n", f"    episode_length: 20\n{added}")))
        return {one.cell.hash for one in plan.cells if one.cell.task == "Reach"}

    assert hashes("    arguments: {}\n") == hashes("")
    assert hashes("    arguments: {reach: 1.0}\n").isdisjoint(hashes(""))
    wrong = OWN.replace("    episode_length", "    arguments: {level: 1}\n    episode_length")
    found = refusal(lambda: make_plan(own(wrong)))
    assert "suite.yaml:5: Reach (" in found
    assert "stands in own_tasks.Reach.arguments" in found
    text = OWN.replace("    episode_length", "    arguments: {max_episode_steps: 1}\n    episode_length")
    assert "suite.yaml:6: own_tasks.Reach.arguments: max_episode_steps is set here" in refusal(lambda: own(text))


@pytest.mark.parametrize("pattern", ["Reach", "Rea*", "own"])
def test_settings_for_an_own_task_are_found_by_its_patterns(own: Callable[..., SuiteFile], pattern: str) -> None:
    text = OWN.replace("[bc]", f"{{bc: {{tasks: {{'{pattern}': {{batch_size: 7}}}}}}}}")
    sizes = {one.cell.task: one.cell.hyperparameters["batch_size"] for one in make_plan(own(text)).cells}
    assert sizes["Reach"] == 7
    assert sizes["OfflineBallRun-v0"] != 7


def test_other_code_of_an_environment_is_another_experiment_and_another_place_is_not(
    own: Callable[..., SuiteFile],
) -> None:
    cell = next(one.cell for one in make_plan(own()).cells if one.cell.task == "Reach")
    assert cell.own_task is not None
    assert cell.own_task.code.startswith("code ")

    def changed(**fields: str) -> Cell:
        return replaced(cell, "own_task", replace(cell.definition, **fields))

    assert changed(folder="elsewhere").hash == cell.hash
    assert changed(code="code 0").hash != cell.hash


# What is held out


def test_what_is_held_out_is_part_of_a_cell_and_nothing_where_nothing_is(own: Callable[..., SuiteFile]) -> None:
    before = make_plan(own())
    after = make_plan(own(OWN.replace("noise: 0.1", "noise: 0.1, holdout: 0.125, holdout_seed: 4")))
    assert {one.cell.hash for one in before.cells}.isdisjoint(one.cell.hash for one in after.cells)
    explicit = make_plan(own(OWN.replace("noise: 0.1", "noise: 0.1, holdout: 0, holdout_seed: 0")))
    assert [one.cell.hash for one in explicit.cells] == [one.cell.hash for one in before.cells]
    (data,), task = after.data["Reach"], after.tasks["Reach"]
    assert (data.holdout, data.holdout_seed) == (0.125, 4)
    assert data.describe() == "own file reach.hdf5, filtered: noise 0.1, seed 1234, 12.5% of trajectories held out"
    training, held_out = data.load(task)
    assert held_out is not None
    assert (len(training.trajectories), len(held_out.trajectories)) == (26, 4)
    whole, nothing = before.data["Reach"][0].load(task)
    assert (len(whole.trajectories), nothing) == (30, None)


def test_too_few_trajectories_to_hold_any_out_are_refused(own: Callable[..., SuiteFile]) -> None:
    plan = make_plan(own(OWN.replace("noise: 0.1", "holdout: 0.01")))
    with pytest.raises(UserError, match=r"reach.hdf5: a holdout of 0.01 of its 30 trajectories leaves none held out"):
        plan.data["Reach"][0].load(plan.tasks["Reach"])
