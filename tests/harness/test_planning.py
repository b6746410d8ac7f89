"""From a suite to cells: what is trained how often, with which settings, and under which name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from running import refusal

from harness import registry
from harness.data.filters import Filters
from harness.errors import SuiteError, UserError
from harness.inputs import require_inputs
from harness.plan import CellData, Plan, make_jobs
from harness.planning import make_plan, plan_suite
from harness.suite import Suite, SuiteFile, builtin_suites, read_suite
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


def test_a_plan_knows_what_it_was_made_from(plan: Callable[..., Plan]) -> None:
    made = plan("  bc:", overrides=("evaluation.final=5", "description=of two words"))
    assert made.origin is not None
    assert made.origin.text.endswith("algorithms:\n  bc:\n")
    again = "run suite.yaml --set evaluation.final=5 --set 'description=of two words'"
    assert made.origin.command == f"lspc-bench {again}"
    part = made.only([made.cells[0].cell.hash])
    assert (part.origin, len(part.cells)) == (made.origin, 1)
    builtin = make_plan(read_suite("demo"))
    assert builtin.origin is not None
    assert builtin.origin.command == "lspc-bench run demo"


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


def test_a_suite_is_planned_without_a_file_and_a_mistake_knows_its_place(tmp_path: Path) -> None:
    fields = {"name": "mine", "tasks": ["BallRun"], "algorithms": {"mine": {"algorithm": "bc"}}, "seeds": 1}
    plan = plan_suite(Suite.model_validate(fields), tmp_path)
    assert [planned.label for planned in plan.cells] == ["mine"]
    assert plan.origin is None
    fields["algorithms"] = {"mine": {"algorithm": "bc", "hyperparameters": {"batchsize": 1}}}
    with pytest.raises(SuiteError, match="bc has no hyperparameter 'batchsize'") as caught:
        plan_suite(Suite.model_validate(fields), tmp_path)
    assert caught.value.place == ("algorithms", "mine", "hyperparameters", "batchsize")


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
            "data at share=1.0 safe_share=0.5: safe_share needs target_cost",
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


# Built-in suites


NEWER = {"caps-iql", "caps-sac", "ccac", "fisor", "trac"}


@pytest.fixture(scope="module")
def builtin() -> Iterator[dict[str, Plan]]:
    return {name: make_plan(read_suite(name)) for name in builtin_suites()}


def test_every_built_in_suite_can_be_planned(builtin: dict[str, Plan]) -> None:
    for plan in builtin.values():
        assert plan.cells
        assert Plan.model_validate_json(plan.model_dump_json()) == plan
    for name in ("demo", "smoke", "reference"):
        require_inputs(builtin[name])


def test_dsrl_is_the_full_protocol(builtin: dict[str, Plan]) -> None:
    plan = builtin["dsrl"]
    assert {data.describe() for used in plan.data.values() for data in used} == {"DSRL"}
    per_task: dict[str, set[float]] = {}
    for planned in plan.cells:
        per_task.setdefault(planned.cell.task, set()).update(planned.cell.evaluation_limits)
    assert per_task == {task.id: set(task.cost_limits) for task in all_tasks().values()}
    assert len(per_task) == 38
    assert {len(limits) for limits in per_task.values()} == {3}
    classic = {"bc-all", "bc-safe", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt"}
    classic |= {f"{policy} [{label}]" for policy in ("lspc-s", "lspc-o") for label in ("lspc", "lspc-live")}
    assert rows(builtin["dsrl-classic"]) == classic
    assert rows(plan) == rows(builtin["demo"]) == {*classic, *NEWER}
    assert {planned.cell.seed for planned in plan.cells} == {0, 1, 2}
    assert {planned.cell.evaluation.final for planned in plan.cells} == {20}
    per_row = {
        row: sum(len(p.cell.evaluation_limits) for p in plan.cells if row in p.rows.values()) for row in rows(plan)
    }
    assert set(per_row.values()) == {38 * 3 * 3}


def test_what_is_done_of_dsrl_classic_is_done_of_dsrl(builtin: dict[str, Plan]) -> None:
    classic, whole = (builtin[name].cells for name in ("dsrl-classic", "dsrl"))
    assert {one.cell.hash for one in classic} == {one.cell.hash for one in whole if not NEWER & {*one.rows.values()}}


def test_the_families_together_are_dsrl(builtin: dict[str, Plan]) -> None:
    parts = [[planned.cell for planned in builtin[f"dsrl-{family}"].cells] for family in FAMILIES]
    assert [len({cell.task for cell in part}) for part in parts] == [8, 16, 5, 9]
    hashes = [cell.hash for part in parts for cell in part]
    assert sorted(hashes) == sorted(planned.cell.hash for planned in builtin["dsrl"].cells)


def test_strict_and_sweep_share_what_ignores_the_limit_with_dsrl(builtin: dict[str, Plan]) -> None:
    dsrl = {planned.cell.hash for planned in builtin["dsrl"].cells}
    strict, sweep = builtin["dsrl-strict"], builtin["limit-sweep"]
    assert rows(strict) == rows(builtin["dsrl"])
    limits = {(planned.cell.definition.family, planned.cell.evaluation_limits) for planned in strict.cells}
    assert limits == {("bullet", (5,)), ("metadrive", (5,)), ("navigation", (10,)), ("velocity", (10,))}
    assert {planned.cell.cost_limit for planned in sweep.cells} == {None}
    for plan in (strict, sweep):
        shared = {planned.label for planned in plan.cells if planned.cell.hash in dsrl}
        assert shared == {"lspc", "lspc-live", "bc mode=all", "fisor"}


def test_limits_by_family_leave_the_other_families_their_own(write_suite: WriteSuite) -> None:
    text = "name: mine\ntasks: [BallRun, PointGoal1]\nalgorithms: [lspc]\ncost_limits: {bullet: [5]}\n"
    cells = [planned.cell for planned in make_plan(SuiteFile(write_suite(text))).cells]
    assert {(cell.definition.name, cell.evaluation_limits) for cell in cells} == {
        ("BallRun", (5,)),
        ("PointGoal1", (20, 40, 80)),
    }


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
