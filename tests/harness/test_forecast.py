"""Forecasts of wall time: by hand, and as jobs grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import suite_plan

from harness import forecast as forecasts
from harness import registry
from harness.errors import UserError
from harness.forecast import (
    Machine,
    Measurement,
    Speed,
    count_flops,
    duration,
    find_measurement,
    forecast,
    read_measurement,
    simulator_speed,
    this_machine,
    update_flops,
)
from harness.plan import Job, expected_episodes, make_jobs
from harness.tasks import Task, all_tasks, find_task

FLOPS = update_flops(registry.load("bc"), registry.load("bc").Hyperparameters.model_validate({}), find_task("BallRun"))


def measurement(kind: str = "cpu", **changed: Any) -> Measurement:
    """bc on BallRun: an update of one agent takes 10 ms, of three 20 ms; two cores."""
    speed = {
        "batch_size": 512,
        "flops": FLOPS,
        "policy_seconds": {"bc-all": 0.002},
        "reference": {"loop": 50, "step alone": 80},
        "engines": {"eager": {"1": 100, "3": 50}, "compile": {"1": 90, "3": 10}},
        "turns": {"eager 1": [100.0]},
        **changed,
    }
    machine = {"name": "Made Up", "kind": kind, "cores": 2, "torch": "2.0"}
    keeps = {"ours": True, "reference": False}
    return Measurement.model_validate({"machine": machine, "keeps_memory": keeps, "algorithms": {"bc": speed}})


def jobs(tmp_path: Path, text: str = "") -> list[Job]:
    lines = {"name": "x", "tasks": "[BallRun]", "seeds": "1", "steps": "1000", "algorithms": "[bc]"}
    lines |= dict(line.split(": ", 1) for line in text.splitlines())
    plan = suite_plan(tmp_path, "".join(f"{key}: {value}\n" for key, value in lines.items()))
    return make_jobs(planned.cell for planned in plan.cells)


def test_a_forecast_by_hand_on_a_cpu(tmp_path: Path) -> None:
    """Two replicas lie in the middle of one and three; both cores share training and evaluation."""
    found = forecast(jobs(tmp_path, "seeds: 2\nevaluation: {final: 20}"), measurement(), workers=2)
    steps = 2 * 20 * find_task("BallRun").max_episode_steps
    core_seconds = steps * (1 / simulator_speed(find_task("BallRun")) + 0.0002)
    assert found.training_seconds == pytest.approx(1000 * 0.015)
    assert found.evaluation_seconds == pytest.approx(core_seconds / 2)
    assert found.wall_seconds == pytest.approx(15 + core_seconds / 2)
    assert found.unmeasured == ()


def test_on_a_gpu_the_longer_one_counts(tmp_path: Path) -> None:
    some = jobs(tmp_path, "seeds: 2")
    found = forecast(some, measurement("cuda"), workers=2)
    assert found.wall_seconds == found.training_seconds == pytest.approx(15)
    slow = measurement("cuda", policy_seconds={"bc-all": 100})
    assert forecast(some, slow, 2).wall_seconds == forecast(some, slow, 2).evaluation_seconds > 15


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_without_workers_one_waits_for_the_other(tmp_path: Path, kind: str) -> None:
    found = forecast(jobs(tmp_path), measurement(kind), workers=0)
    assert found.wall_seconds == pytest.approx(found.training_seconds + found.evaluation_seconds)


def test_several_gpus_take_the_longest_first(tmp_path: Path) -> None:
    """Groups of 50, 31, 29 and 20 s: 50 + 20 on the one, 31 + 29 on the other."""
    some = [job for steps in (2000, 3100, 5000, 2900) for job in jobs(tmp_path, f"steps: {steps}")]
    slow = measurement("cuda", policy_seconds={"bc-all": 100})
    assert [forecast(some, measurement("cuda"), 2, devices).training_seconds for devices in (1, 2, 3, 9)] == [
        pytest.approx(seconds) for seconds in (130, 70, 50, 50)
    ]
    assert forecast(some, measurement("cuda"), 2, 2).wall_seconds == pytest.approx(70)
    assert forecast(some, slow, 2, 2).wall_seconds == forecast(some, slow, 2, 1).evaluation_seconds
    alone, shared = (forecast(some, measurement("cuda"), 0, devices).wall_seconds for devices in (1, 2))
    assert alone / 2 < shared < alone
    assert "(2 cores), for 2 such GPUs: 1 min (" in forecast(some, measurement("cuda"), 2, 2).describe()


def test_processes_on_a_cpu_share_its_cores(tmp_path: Path) -> None:
    some = jobs(tmp_path, "tasks: [BallRun, BallCircle]")
    assert forecast(some, measurement(), 2, 2).wall_seconds == forecast(some, measurement(), 2).wall_seconds
    alone, shared = (forecast(some, measurement(), 0, devices) for devices in (1, 2))
    assert shared.training_seconds == alone.training_seconds
    assert shared.evaluation_seconds == pytest.approx(alone.evaluation_seconds / 2)


def test_one_worker_on_two_cores_may_be_what_takes_longest(tmp_path: Path) -> None:
    slow = measurement(policy_seconds={"bc-all": 100})
    found = forecast(jobs(tmp_path), slow, workers=1)
    assert found.wall_seconds == found.evaluation_seconds


@pytest.mark.parametrize(("kind", "below"), [("cpu", 0.005), ("cuda", 0.01)])
def test_the_time_of_an_update(kind: Any, below: float) -> None:
    speed = measurement(kind).algorithms["bc"]
    assert speed.best_engine == "eager"
    assert speed.update_seconds(FLOPS / 2, kind) == pytest.approx(below)
    assert speed.update_seconds(FLOPS, kind) == pytest.approx(0.01)
    assert speed.update_seconds(2 * FLOPS, kind) == pytest.approx(0.015)
    assert speed.update_seconds(9 * FLOPS, kind) == pytest.approx(0.06)


def test_a_larger_group_is_never_faster() -> None:
    """Where more replicas were measured to take less time, that was chance."""
    speed = measurement(engines={"graph": {"1": 100, "3": 110, "9": 50}}).algorithms["bc"]
    times = [speed.update_seconds(count * FLOPS, "cuda") for count in (1, 2, 3, 4, 9, 27)]
    assert times == sorted(times)
    assert times[2] == pytest.approx(0.01)


def test_more_steps_and_replicas_and_episodes_take_longer(tmp_path: Path) -> None:
    base = forecast(jobs(tmp_path), measurement(), 2)
    for more in ("steps: 2000", "seeds: 2", "seeds: 5", "evaluation: {final: 40}", "tasks: [AntRun]"):
        assert forecast(jobs(tmp_path, more), measurement(), 2).wall_seconds > base.wall_seconds
    assert forecast(jobs(tmp_path, "steps: 2000"), measurement(), 2).training_seconds == 2 * base.training_seconds


def test_what_nobody_measured_is_left_out_and_named(tmp_path: Path) -> None:
    base = forecast(jobs(tmp_path), measurement(), 2)
    found = forecast(jobs(tmp_path, "algorithms: [bc, cpq, lspc]"), measurement(), 2)
    assert found.unmeasured == ("cpq", "lspc")
    assert found.wall_seconds == base.wall_seconds
    assert found.describe().splitlines()[1] == "Left out, because not measured there: cpq, lspc."
    fitted = forecast(jobs(tmp_path, "evaluation: {fqe: {}}"), measurement(), 2)
    assert fitted.describe().splitlines()[1].startswith("Fitted Q-evaluation comes on top")
    none = forecast(jobs(tmp_path, "algorithms: [cpq]"), measurement(), 2)
    assert none.describe() == "No forecast: cpq was not measured on Made Up (2 cores)."


def test_a_forecast_names_its_machine(tmp_path: Path) -> None:
    text = forecast(jobs(tmp_path, "steps: 720000"), measurement(), 2).describe()
    assert text.startswith("Forecast from what was measured on Made Up (2 cores): 2 h 00 min (training 2 h 00 min, ")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (5, 61, 3599, 11100)] == [
        "less than a minute",
        "1 min",
        "1 h 00 min",
        "3 h 05 min",
    ]


@pytest.mark.parametrize(
    "name", ["bc", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt", "lspc", "caps", "ccac", "fisor", "trac"]
)
def test_operations_are_linear_in_the_batch(name: str) -> None:
    task, kind = find_task("CarCircle"), registry.load(name)
    config = kind.Hyperparameters.model_validate({**kind.published(task), "batch_size": 24})
    counted = count_flops(kind, config, task, 24)
    assert counted > 0
    assert update_flops(kind, config, task) == counted


def test_every_phase_counts_by_its_share() -> None:
    task, kind = find_task("BallRun"), registry.load("ccac")
    sizes = {f"{part}_hidden_sizes": (16,) for part in ("actor", "critic", "vae", "classifier", "multiplier")}

    def count(warm_up: float) -> float:
        config = kind.Hyperparameters.model_validate({**sizes, "steps": 1000, "warm_up": warm_up})
        return count_flops(kind, config, task, 8)

    whole, half, quarter = count(0.0), count(0.5), count(0.25)
    assert half < whole
    assert whole - half == pytest.approx(2 * (whole - quarter), rel=1e-6)


def test_operations_of_a_clone_by_hand() -> None:
    """Three products forward, three for weights and two for inputs backward."""
    sizes = [(7, 256), (256, 256), (256, 2)]
    forward = sum(2 * 512 * inputs * outputs for inputs, outputs in sizes)
    assert find_task("BallRun").observation_size == 7
    assert 3 * forward - 2 * 512 * 7 * 256 == FLOPS


def test_operations_are_counted_once_for_settings_that_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[Any, Any] = {}
    monkeypatch.setattr(forecasts, "_COUNTED", counted)
    kind, task = registry.load("bc"), find_task("BallRun")

    def count(**settings: Any) -> float:
        return update_flops(kind, kind.Hyperparameters.model_validate(settings), task)

    assert count() == count(steps=5, actor_lr=0.5) == 2 * count(batch_size=256)
    assert len(counted) == 1
    assert count(hidden_sizes=(8,)) < count()
    assert len(counted) == 2


def test_tasks_that_nobody_measured_are_like_their_family() -> None:
    known = {task.name: simulator_speed(task) for task in all_tasks().values()}
    own = Task("Mine", "Mine", "own", 10, 3, 2, (1.0,), 0.0, 1.0, 0.0, 1.0, "")
    assert min(known.values()) < simulator_speed(own) < max(known.values())
    bullet = Task("New", "New", "bullet", 10, 3, 2, (1.0,), 0.0, 1.0, 0.0, 1.0, "")
    assert min(known["CarCircle"], known["CarRun"]) < simulator_speed(bullet) < known["BallRun"]


def test_a_policy_that_nobody_timed_is_like_its_algorithm(tmp_path: Path) -> None:
    speed = measurement(policy_seconds={"bc-all": 0.002, "other": 0.004}).algorithms["bc"]
    assert speed.act_seconds(["bc-all"]) == pytest.approx(0.002)
    assert speed.act_seconds(["bc-safe"]) == pytest.approx(0.003)
    assert sum(map(expected_episodes, jobs(tmp_path))) == 20


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ('{"machine": 1, "tasks": {}}', "machine"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_measurement(path)
    with pytest.raises(UserError, match="cannot read"):
        read_measurement(tmp_path / "absent.json")


@pytest.mark.parametrize("change", [{"flops": 0}, {"engines": {}}, {"engines": {"eager": {"1": -2}}}, {"unknown": 1}])
def test_a_file_with_impossible_figures_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    content = json.loads(measurement().model_dump_json())
    content["algorithms"]["bc"] |= change
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"algorithms\.bc"):
        read_measurement(path)


def test_only_the_very_machine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "shipped", lambda *_: tmp_path)
    here = this_machine("cpu")
    assert here is not None
    other = here.model_copy(update={"cores": here.cores + 1})
    for name, machine in (("a", other), ("b", here.model_copy(update={"torch": "0"}))):
        (tmp_path / f"{name}.json").write_text(measurement().model_copy(update={"machine": machine}).model_dump_json())
    found = find_measurement("cpu")
    assert found is not None
    assert found.machine.torch == "0"
    (tmp_path / "b.json").unlink()
    assert find_measurement("cpu") is None
    assert find_measurement("cuda:99") is None


def test_a_gpu_is_the_same_in_any_host() -> None:
    def machine(**changed: Any) -> Machine:
        return Machine.model_validate({"name": "H100", "kind": "cuda", "cores": 16, "torch": "2.0", **changed})

    assert machine().same(machine(cores=8))
    assert not machine().same(machine(name="H200"))
    assert not machine(kind="cpu").same(machine(kind="cpu", cores=8))


def test_what_is_shipped_can_be_read() -> None:
    for path in (Path(__file__).parents[2] / "results" / "throughput").glob("*.json"):
        assert read_measurement(path).algorithms


def test_a_speed_survives_its_file() -> None:
    speed = measurement().algorithms["bc"]
    assert Speed.model_validate_json(speed.model_dump_json()) == speed
