"""Own tasks and own files of a suite, and what of their data is left out or held out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from running import refusal, require

from harness.data.dataset import LABELS
from harness.errors import UserError
from harness.plan import Cell, Plan
from harness.planning import make_plan
from harness.suite import SuiteFile

WriteSuite = Callable[[str], Path]


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
    require(file)
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


def test_an_own_files_label_is_kept_and_named(own: Callable[..., SuiteFile], tmp_path: Path) -> None:
    plain = make_plan(own())
    with h5py.File(tmp_path / "reach.hdf5", "r+") as file:
        file.attrs["label"] = LABELS["agents"]
    (data,) = make_plan(SuiteFile(tmp_path / "suite.yaml", ())).data["Reach"]
    assert data.name == "own file reach.hdf5, agent-collected data, not DSRL"
    stored = plain.model_dump()
    for planned in stored["cells"]:  # as before there were labels
        del planned["cell"]["data"]["label"]
    assert Plan.model_validate(stored) == plain


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
    require(file)
    (data,) = plan.data["OfflineBallRun-v0"]
    path = data.file
    with pytest.raises(UserError, match=r"observations has shape \(.*, BallRun needs"):
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
        ("{Reach: reach.hdf5}", "{Reach: ~nobody-here/x}", 9, "names the folder of a user who is not here"),
        (
            "{Reach: reach.hdf5}",
            "{Reach: reach.hdf5, BallRun: x, OfflineBallRun-v0: y}",
            9,
            "'BallRun' and 'OfflineBallRun-v0' are one task, which has one file",
        ),
        ("{Reach: reach.hdf5}", "{Reach: reach.hdf5, Rech: x}", 9, "none is called 'Rech'. Did you mean 'Reach'?"),
        (
            "{Reach: reach.hdf5}",
            "{Reach: reach.hdf5, Ball*: x}",
            9,
            "a file goes with one task, and none is called 'Ball*'",
        ),
        ("[Reach, BallRun]", "[Rech]", 2, "no task matches 'Rech'. Did you mean 'Reach'?"),
        ("[-10, 0]", "[0, -10]", 8, "needs the lower return first"),
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
    found = refusal(lambda: require(file))
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
        task = replace(cell.definition, **fields)  # a copy would have the hash of before
        return Cell(**{name: getattr(cell, name) for name in Cell.model_fields} | {"own_task": task})

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
