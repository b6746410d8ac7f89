"""A worker for each device: one result, one picture, one end, whoever is killed or interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import call, left, outcome, run, suite_file, until

from harness import claims, processes, work
from harness.errors import UserError
from harness.files import is_left_over
from harness.forecast import Measurement
from harness.guard import UserCodeError
from harness.launchers import Launched
from harness.launchers.devices import Launcher, resolve_devices
from harness.options import Options, parse_devices
from harness.planning import make_plan
from harness.pool import Pool
from harness.relay import Line, Relay
from harness.store import Status, Store
from harness.suite import read_suite

SUITE = """\
name: small
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10]
algorithms:
  bc:
    hyperparameters: {steps: 640, batch_size: 4, hidden_sizes: [4]}
    grid: {actor_lr: [0.001, 0.002, 0.003]}
evaluation: {final: 1}
"""
TOYS = """\
name: toys
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10]
algorithms:
  deadly: {algorithm: toy, hyperparameters: {steps: 20, failure: kill}}
  toy: {hyperparameters: {batch_size: 4}, grid: {steps: [10, 40, 20]}}
  unknown: {algorithm: toy-single, hyperparameters: {steps: 1}}
evaluation: {final: 1}
"""
CELLS = 6


@pytest.fixture
def suite(write_suite: Callable[[str], Path]) -> Path:
    return write_suite(SUITE)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    done = run(suite_file(folder, SUITE), folder / "runs")
    assert done.exit_code == 0, done.output
    found = outcome(folder / "runs")
    assert len(found) == 3 + 4 * CELLS
    return found


@pytest.fixture
def start(suite: Path, runs: Path) -> Iterator[Callable[..., Any]]:
    """The suite on two workers, as from a terminal."""
    started = []

    def command(*options: object) -> subprocess.Popen[str]:
        words = [Path(sys.executable).with_name("lspc-bench"), "run", suite, "--results", runs, "--devices", "cpu:2"]
        words += ["--workers", 0, "--checkpoint-every", 0, *options]
        process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield command
    for process in started:
        process.kill()
        process.wait()


def at_work(runs: Path) -> list[int]:
    """The workers that train a job of which there is a checkpoint, once there is one."""
    found: list[int] = []

    def one() -> bool:
        begun = {path.name.partition("-")[0] for path in runs.glob("jobs/*.checkpoint")}
        found[:] = [worker.process for worker in claims.workers(runs) if begun & {*worker.claims}]
        return bool(found)

    until(one, "a worker trains")
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", ("all",)),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        ("cuda", ("cuda:0",)),
        ("cpu", ("cpu",)),
        ("cpu:3", ("cpu", "cpu", "cpu")),
        ("cuda:1, cpu:2", ("cuda:1", "cpu", "cpu")),
    ],
)
def test_devices_in_words(text: str, expected: tuple[str, ...]) -> None:
    assert parse_devices(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no device"),
        ("gpu:0", "'gpu:0' is no device; take all, cuda:0,cuda:1,... or cpu:2"),
        ("cuda:", "'cuda:' is no device"),
        ("cuda:-1", "is no device"),
        ("cuda:00001", "is no device"),
        ("all,cpu", "'all' is no device"),
        ("cpu:0", "'cpu:0': from 1 to 256 workers on the CPU"),
        ("cpu:257", "from 1 to 256"),
        ("cuda:0,cuda:0", "'cuda:0': a device may be named once"),
        ("cuda,cuda:0", "a device may be named once"),
        ("cpu,cpu", "'cpu': a device may be named once, as cpu:2"),
    ],
)
@pytest.mark.parametrize("command", ["run", "work"])
def test_what_is_no_device_is_refused(command: str, text: str, message: str, tmp_path: Path) -> None:
    done = call(command, tmp_path / "nothing", "--devices", text)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["all", "cuda", "cuda:0,cuda:1"])
def test_devices_that_are_not_there_are_refused(
    text: str, suite: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = call("run", suite, "--results", runs, "--devices", text)
    assert done.exit_code == 2
    first = "all" if text == "all" else "cuda:0"
    assert f"--devices {first}: this machine, or this build of torch, has no CUDA" in done.stderr
    assert not runs.exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_devices("all") == ("cuda:0", "cuda:1")
    done = call("run", suite, "--results", runs, "--devices", "cuda:1,cuda:2")
    assert done.exit_code == 2
    assert "--devices cuda:2: there are 2 GPUs, counted from 0" in done.stderr


def test_one_device_or_several(suite: Path, runs: Path) -> None:
    done = call("run", suite, "--results", runs, "--device", "cpu", "--devices", "cpu:2")
    assert done.exit_code == 2
    assert "--device and --devices do not go together" in done.stderr
    done = call("run", suite, "--results", runs, "--devices", "cpu:2", "--engine", "graph")
    assert done.exit_code == 2
    assert "--engine graph needs a GPU" in done.stderr
    assert not runs.exists()


def test_two_workers_with_one_pool_make_what_one_makes(suite: Path, runs: Path, undisturbed: dict[str, bytes]) -> None:
    done = call("run", suite, "--results", runs, "--devices", "cpu:2", "--workers", 1)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"small: {CELLS} done, 0 failed, 0 skipped. Results: {runs}\n"
    for line in (r"job 3 of 3 on cpu ", r" on cpu [12] of 2: BallRun bc \(bc-all\), 2 replicas", r"\[6/6\] "):
        assert re.search(line, done.stderr)
    assert outcome(runs) == undisturbed
    assert left(runs) == []
    done = call("work", runs, "--devices", "cpu:2", "--workers", 0)  # nothing is left
    assert (done.exit_code, done.stdout) == (0, f"small: 0 done, 0 failed, {CELLS} skipped. Results: {runs}\n")


def test_fresh_means_once_however_late_a_worker_comes(suite: Path, runs: Path) -> None:
    run(suite, runs)
    cells = [planned.cell for planned in make_plan(read_suite(str(suite))).cells]
    store, options = Store(runs), Options("cpu")
    assert work.Backlog.of(store, cells, "only-missing", options).cells == ()
    backlog = work.Backlog.of(store, cells, "always", options)
    assert len(backlog.groups) == 3
    with claims.Claims(runs) as mine:
        given = iter(work.Work(store, mine, backlog))
        (job,) = next(given)
        assert all(store.status(cell).state == "missing" for cell in job.cells)
        for cell in job.cells:
            store.set_status(cell, Status("failed", "on purpose"))
        given.close()
        mine.release(job.group)
        late = work.Work(store, mine, backlog)
        groups = []
        for jobs in late:
            groups.append(jobs[0].group)
            for cell in jobs[0].cells:
                store.set_status(cell, Status("failed", "on purpose"))
            late.over(jobs[0].group)
    assert len(groups) == 2
    assert job.group not in groups


@pytest.mark.long
def test_what_a_killed_worker_had_is_taken_up(
    start: Callable[..., Any], runs: Path, undisturbed: dict[str, bytes]
) -> None:
    process = start()
    killed = at_work(runs)[0]
    for name in ("jobs", "claims", "workers"):  # as if it had been writing there
        (runs / name / f".x.{processes.name_of(killed)}.tmp").touch()
    os.kill(killed, signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert errors.count("the worker process was killed by signal 9; what it had is taken up again") == 1
    assert ", 2 replicas, from step " in errors, errors
    assert outcome(runs) == undisturbed
    assert left(runs) == []


@pytest.mark.long
def test_one_interrupt_ends_all_and_the_next_run_goes_on(
    start: Callable[..., Any], runs: Path, undisturbed: dict[str, bytes]
) -> None:
    process = start()
    numbers = at_work(runs)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's reaches the workers, too
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert not any(map(processes.started, numbers))
    assert "--devices cpu:2" in errors.partition("cells are done. '")[2].partition("' resumes it.")[0]
    # A worker that was only about to begin says nothing any more, and leaves a file, or what was to become one.
    kept = (path for path in left(runs) if not processes.gone(path.stem) and not is_left_over(path))
    assert {path.suffix for path in kept} == {".checkpoint"}
    again = start()
    numbers = at_work(runs)
    again.kill()  # this time they are not told
    until(lambda: not any(map(processes.started, numbers)) and not claims.workers(runs), "the workers ended")
    done = call("work", runs, "--devices", "cpu:2", "--workers", 0)
    assert done.exit_code == 0
    assert ", from step " in done.stderr
    assert outcome(runs) == undisturbed


@pytest.mark.long
def test_a_group_of_which_every_worker_dies_has_failed(
    plugins: Path, write_suite: Callable[[str], Path], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs no other cell, and ends."""
    (tmp_path / "marker").touch()
    monkeypatch.setenv("LSPC_BENCH_TEST_MARKER", str(tmp_path / "marker"))
    done = call("run", write_suite(TOYS), "--results", runs, "--devices", "cpu:2", "--workers", 0)
    assert done.exit_code == 1
    assert done.stdout == f"toys: 8 done, 2 failed, 0 skipped. Results: {runs}\n"
    # Another worker may be quicker to take the group than the third death is to end it.
    assert re.search(r"while it trained, the worker process was killed by signal 9, [3-9] times in a row", done.stderr)
    assert [path for path in left(runs) if path.suffix != ".checkpoint"] == []


def test_a_disk_that_refuses_is_said_once(suite: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.mkdir()
    (runs / "claims").touch()  # where a folder is to be
    done = call("run", suite, "--results", runs, "--devices", "cpu:2", "--workers", 0)
    assert done.exit_code == 2
    assert done.stderr.count("cannot write results: ") == 1
    assert "Traceback" not in done.stderr


def test_what_was_launched_can_be_cancelled_from_elsewhere() -> None:
    jobs = ("cuda:0", "cuda:1")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        launched = Launched("devices", "toys", jobs, {"process": processes.name_of(process.pid)})
        assert Launcher.states(launched) == {"cuda:0": "running", "cuda:1": "running"}
        Launcher.cancel(launched)
        assert process.wait() == -signal.SIGTERM
    assert Launcher.states(launched) == {}
    Launcher.cancel(launched)  # it is over
    far = Launched("devices", "toys", jobs, {"process": f"feedbeef-{os.getpid()}-1-beef"})
    with pytest.raises(UserError, match="another machine"):
        Launcher.cancel(far)


# The order


def test_the_longest_comes_first_where_it_is_known(
    plugins: Path, write_suite: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {"batch_size": 4, "flops": 1e3, "policy_seconds": {"toy": 0.001}, "engines": {"eager": {"1": 100}}}
    measured = Measurement.model_validate(
        {
            "machine": {"name": "Made Up", "kind": "cuda", "cores": 3, "torch": "2.0"},
            "keeps_memory": {"ours": False, "reference": False},
            "algorithms": {"toy": speed},
        }
    )
    cells = [planned.cell for planned in make_plan(read_suite(str(write_suite(TOYS)))).cells]
    for nothing in (None, measured.model_copy(update={"algorithms": {}})):
        monkeypatch.setattr(work, "find_measurement", lambda device, found=nothing: found)
        assert work.longest_first(cells, Options("cpu")) == cells
    monkeypatch.setattr(work, "find_measurement", lambda device: measured)
    first = work.longest_first(cells, Options("cpu"))
    assert {cell.hash for cell in first} == {cell.hash for cell in cells}
    assert [cell.algorithm for cell in first] == ["toy-single"] * 2 + ["toy"] * (len(cells) - 2)
    steps = [cell.hyperparameters["steps"] for cell in first[2:]]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 3
    assert first[2:4] == [cell for cell in cells if cell.group == first[2].group]  # groups stay together


# Between processes


@pytest.fixture
def ends() -> Iterator[tuple[Relay, list[tuple[Any, ...]]]]:
    """A worker's end, and what the other one is told."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    told: list[tuple[Any, ...]] = []
    with Pool(1) as pool:
        Line(ours, pool, lambda *message: told.append(message))
        yield Relay(theirs), told


def test_a_pool_of_another_process(ends: tuple[Relay, list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch) -> None:
    relay, told = ends
    assert [relay.submit(abs, -number).result() for number in range(3)] == [0, 1, 2]
    with pytest.raises(UserCodeError, match="ValueError: invalid literal"):
        relay.submit(int, "x").result()
    late = [relay.submit(time.sleep, 60) for _ in range(3)]
    relay.close()
    assert all(future.cancelled() for future in late)
    relay.job("something", 3, 10)
    relay.trained(4)
    monkeypatch.setattr("harness.relay.SELDOM", 3600)
    relay.trained(5)  # too soon to be worth a word
    relay.evaluated(0)
    relay.evaluated(2)
    relay.note("well")
    relay.cell(None, Status("done"))  # type: ignore[arg-type]
    relay.end()
    until(lambda: len(told) >= 5, "the other end is told")
    assert told == [
        ("job", "something", 3, 10),
        ("trained", 4),
        ("evaluated", 2),
        ("note", "well"),
        ("cell", None, Status("done")),
    ]


def test_a_relay_whose_other_end_is_gone_asks_for_an_end() -> None:
    ours, theirs = torch.multiprocessing.get_context("spawn").Pipe()
    asked: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        relay = Relay(theirs)
        ours.close()
        until(lambda: asked, "it is asked to end")
        relay.note("nobody hears")
        relay.end()
    finally:
        signal.signal(signal.SIGTERM, previous)
