"""Trackers: what they are sent, live and afterwards; that a run does not depend on them."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from made_up import make
from running import call, plan_of, run, suite_file

from harness import trackers, tracking
from harness.planning import make_plan
from harness.store import Store
from harness.suite import SuiteFile

SUITE = """\
name: tracked
data: {source: demo, holdout: 0.2}
tasks: [BallRun]
seeds: 2
cost_limits: [10, 20]
algorithms:
  clone: {algorithm: bc, hyperparameters: {steps: 40, batch_size: 8, hidden_sizes: [8]}}
evaluation: {every: 20, episodes: 1, final: 2}
"""
MINE = "lspc_bench_test_trackers"
Row = tuple[Any, ...]


def track(suite: Path, results: Path, *names: str) -> Result:
    return run(suite, results, *(option for name in names for option in ("--track", name)))


def results_of(folder: Path) -> dict[str, bytes]:
    """All that results hold but the times at which they were made."""
    files = [*folder.glob("*/*.parquet"), *folder.glob("*/*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def csv_rows(results: Path) -> dict[str, Counter[Row]]:
    """What each run was sent, by its folder's name."""
    found = {}
    for path in (results / "trackers" / "csv").rglob("metrics.csv"):
        with path.open() as file:
            rows = Counter((int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file))
        final = path.with_name("final.csv")
        if final.exists():
            with final.open() as file:
                rows.update(("final", row["name"], row["value"]) for row in csv.DictReader(file))
        found[path.parent.name] = rows
    return found


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return suite_file(tmp_path_factory.mktemp("suite"), SUITE)


@pytest.fixture(scope="module")
def plain(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results without a tracker."""
    results = tmp_path_factory.mktemp("plain")
    assert track(suite, results).exit_code == 0
    return results


@pytest.fixture(scope="module")
def tracked(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with the trackers that come with the harness."""
    results = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_X_SERVICE_WAIT", "300")  # seconds in which its process starts, on a busy machine
        done = track(suite, results, "csv", "tensorboard", "wandb")
    assert done.exit_code == 0
    assert "the tracker" not in done.output
    assert done.stdout == f"tracked: 2 done, 0 failed, 0 skipped. Results: {results}\n"
    return results


def test_what_is_sent_is_what_results_hold(tracked: Path) -> None:
    store = Store(tracked)
    sent = csv_rows(tracked)
    assert len(sent) == 2
    for planned in plan_of(tracked).cells:
        cell = planned.cell
        (rows,) = [rows for name, rows in sent.items() if name.startswith(f"seed-{cell.seed}-")]
        assert set(rows.values()) == {1}  # no number twice
        for row in store.training(cell).to_dict("records"):
            assert (row["step"], "train/actor_loss", row["actor_loss"]) in rows
        episodes = store.episodes(cell)
        for step, mine in episodes.groupby("step"):
            cost, earned = mine["cost"].mean(), mine["episode_return"].mean()
            values = {name: value for at, name, value in rows if at == step}
            assert values["evaluation/bc-all/cost"] == pytest.approx(cost)
            assert values["evaluation/bc-all/return"] == pytest.approx(earned)
            normalized = cell.definition.normalize_reward(earned)
            assert values["evaluation/bc-all/normalized_return"] == pytest.approx(normalized)
            assert values["evaluation/bc-all/limit_20/normalized_cost"] == pytest.approx(cost / 20)
            assert values["diagnostics/bc-all/action_error"] > 0
        final = {name: value for at, name, value in rows if at == "final"}
        last = episodes[episodes["step"] == 40]
        assert final["state"] == "done"
        assert float(final["final/bc-all/return"]) == pytest.approx(last["episode_return"].mean())


def test_afterwards_the_same_is_sent_as_live(tracked: Path) -> None:
    live = csv_rows(tracked)
    for path in (tracked / "trackers" / "csv").rglob("*.csv"):
        path.unlink()
    done = call("track", tracked, "--to", "csv")
    assert (done.exit_code, done.stdout) == (0, "tracked: 2 cells sent to csv.\n")
    assert csv_rows(tracked) == live


def test_results_do_not_depend_on_trackers(plain: Path, tracked: Path, suite: Path) -> None:
    assert results_of(plain) == results_of(tracked)
    without = make_plan(SuiteFile(suite))
    with_key = make_plan(SuiteFile(suite, ["track=[csv]"]))
    assert [one.cell.hash for one in without.cells] == [one.cell.hash for one in with_key.cells]
    assert with_key.track == ("csv",)


def test_tensorboard_reads_the_same(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sent = csv_rows(tracked)
    folders = {path.parent for path in (tracked / "trackers" / "tensorboard").rglob("events.*")}
    assert {path.name for path in folders} == set(sent)
    assert {str(path.parent.relative_to(tracked)) for path in folders} == {"trackers/tensorboard/tracked/BallRun/clone"}
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        read = Counter(
            (event.step, tag, event.value)
            for tag in events.Tags()["scalars"]
            for event in events.Scalars(tag)
            if not tag.startswith("final/")
        )
        rows = sent[folder.name]
        assert read == Counter((row[0], row[1], as_float32(row[2])) for row in rows if row[0] != "final")
        (earned,) = events.Scalars("final/bc-all/return")
        assert ("final", "final/bc-all/return", earned.value) in {
            (at, name, as_float32(float(value)) if name == "final/bc-all/return" else value) for at, name, value in rows
        }
        assert earned.step == 40


def as_float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def wandb_records(path: Path) -> Iterator[Any]:
    """What an offline run of W&B wrote: LevelDB's log of protobuf records behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def wandb_items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_has_the_same_without_a_network(tracked: Path) -> None:
    sent = csv_rows(tracked)
    files = list((tracked / "trackers" / "wandb").rglob("run-*.wandb"))
    assert len(files) == 2
    for path in files:
        records = list(wandb_records(path))
        (begun,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert begun.run_group == "tracked/BallRun/clone"
        assert begun.project == "lspc-bench"
        (name,) = [name for name in sent if name.endswith(begun.run_id)]
        read: Counter[Row] = Counter()
        summary: dict[str, Any] = {}
        for record in records:
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = wandb_items(record.history.item)
                step = items.pop("step")
                read.update((step, key, value) for key, value in items.items() if not key.startswith("_"))
            elif kind == "summary":
                summary |= wandb_items(record.summary.update)
        assert read == Counter(row for row in sent[name] if row[0] != "final")
        assert summary["state"] == "done"
        assert "final/bc-all/return" in summary


@pytest.mark.usefixtures("plugins")
def test_a_class_of_ones_own(suite: Path, tmp_path: Path) -> None:
    done = call("run", suite, "--set", f"track=[{MINE}:Told]", "--results", tmp_path, "--workers", 0, "--device", "cpu")
    assert (done.exit_code, done.stdout.count("no result")) == (0, 0), done.output
    lines = (tmp_path / "trackers" / f"{MINE}.Told" / "told.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert sorted(what for what in told if what[0] == "begin") == [
        ["begin", "tracked/BallRun/clone", f"BallRun clone seed {seed}", 40] for seed in range(2)
    ]
    assert [what[1:3] for what in told if what[0] == "log" and "train/actor_loss" in what[3]][:2] == [
        ["BallRun clone seed 0", 1],
        ["BallRun clone seed 1", 1],
    ]
    assert Counter(what[0] for what in told)["end"] == 2
    assert told[-1] == ["close"]
    # A worker that finds everything done has nothing to send.
    assert call("work", tmp_path, "--workers", 0, "--device", "cpu").exit_code == 0
    assert (tmp_path / "trackers" / f"{MINE}.Told" / "told.jsonl").read_text().splitlines() == lines


@pytest.mark.usefixtures("plugins")
def test_one_that_fails_is_said_once_and_stops_nothing(suite: Path, tmp_path: Path, plain: Path) -> None:
    failing = {
        "RefusesToBegin": "ConnectionError: no such server",
        "Raises": "ValueError: cannot take step 1",
        "Exits": "SystemExit: 3",
        "Dies": "the worker process ended with status 4",
    }
    done = track(suite, tmp_path, *(f"{MINE}:{name}" for name in failing), f"{MINE}:Lingers", "csv")
    assert done.exit_code == 0, done.output
    for name, reason in failing.items():
        line = f"the tracker {MINE}:{name} failed and is left out from here on: {reason}"
        assert done.stderr.splitlines().count(line) == 1
    assert done.stderr.count("the tracker") == len(failing)
    assert results_of(tmp_path) == results_of(plain)
    assert len(csv_rows(tmp_path)) == 2


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", ["Hangs", "HangsAtClose"])
def test_one_that_hangs_is_ended(suite: Path, tmp_path: Path, plain: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    done = track(suite, tmp_path, f"{MINE}:{name}")
    assert done.exit_code == 0
    assert done.stderr.count(f"the tracker {MINE}:{name} failed and is left out") == 1
    assert results_of(tmp_path) == results_of(plain)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("csvs", "no tracker is called 'csvs'. Did you mean 'csv'? Known: csv, tensorboard, wandb, and MODULE:CLASS"),
        ("no_such_module:Class", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{MINE}:Nothing", "cannot be imported: AttributeError"),
        (f"{MINE}:Unrelated", "is no subclass of harness.trackers.Tracker"),
        (f"{MINE}:Abstract", "does not implement log"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_starts(
    suite: Path, tmp_path: Path, plain: Path, name: str, reason: str
) -> None:
    results = tmp_path / "runs"
    for done in (
        track(suite, results, name),
        call("run", suite, "--set", f"track=['{name}']", "--results", results),
        call("track", plain, "--to", name),
    ):
        assert (done.exit_code, reason in done.output.replace("\n", " ")) == (2, True), done.output
    assert not results.exists()
    if name != "csvs":
        suggested = call("run", suite, "--set", f"track=['{name}']", "--results", results, "--dry-run")
        assert "This would not run" in suggested.output


def test_one_whose_package_is_missing_says_how_to_install_it(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    done = track(suite, tmp_path / "runs", "wandb")
    assert done.exit_code == 2
    assert "the tracker wandb needs wandb, not installed here: pip install 'lspc-bench[" in done.output
    assert not (tmp_path / "runs").exists()
    assert track(suite, tmp_path / "runs", "csv").exit_code == 0


def test_nothing_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys, harness.tracking; print({'wandb', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.usefixtures("plugins")
def test_a_killed_run_goes_on_and_no_step_is_doubled(suite: Path, tmp_path: Path, tracked: Path) -> None:
    arguments = ["run", suite, "--results", tmp_path, "--workers", 0, "--device", "cpu", "--checkpoint-every", 0]
    words = [*map(str, arguments), "--track", "csv", "--track", f"{MINE}:Kills"]
    # It waits at each row until every tracker has it, and so dies there, and not when all is done.
    code = (
        "from harness.cli import main; from harness.tracking import Tracking; sent = Tracking.trained\n"
        "def settled(self, *row): sent(self, *row); self.settle()\n"
        f"Tracking.trained = settled; main({words!r})"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert call(*arguments, "--track", "csv").exit_code == 0
    call("track", tracked, "--to", "csv")
    assert csv_rows(tmp_path) == csv_rows(tracked)


def test_results_that_are_not_whole_are_sent_as_far_as_they_go(tmp_path: Path) -> None:
    sent: list[tuple[Any, ...]] = []

    class Collects(tracking.Sender):
        def __init__(self) -> None:
            pass

        def send(self, calls: Any) -> None:
            sent.extend(calls)

        def settle(self) -> None:
            pass

    made_up = make(tmp_path)
    plan = made_up.plan
    count = tracking.send_results(made_up, plan, tracking.Tracking(tracking.runs(plan), [Collects()]), print)
    assert count == len(plan.cells) == Counter(name for name, *_ in sent)["end"]
    failed = [final for name, _, *rest in sent if name == "end" for final in rest if final["state"] == "failed"]
    assert failed
    assert all(final.keys() == {"state", "reason"} for final in failed)
    paths = [made.path for name, made, *_ in sent if name == "begin"]
    assert len(set(paths)) == len(paths)
    assert all(len(path.parts) == 4 and max(map(len, path.parts)) < 200 for path in paths)
    assert not any(math.isnan(value) for name, *rest in sent if name == "log" for value in rest[-1].values())


def test_damaged_cells_are_said_and_the_others_sent(plain: Path, tmp_path: Path) -> None:
    results = tmp_path / "runs"
    shutil.copytree(plain, results)
    path = next(results.glob("*/training.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    done = call("track", results, "--to", "csv")
    assert (done.exit_code, done.stdout) == (0, "tracked: 1 cells sent to csv.\n")
    assert "damaged" in done.stderr
