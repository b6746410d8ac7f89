"""A suite on a real SLURM of one node, by .ci/slurm: whatever it does to a worker, results are the same."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from running import call, outcome, until
from submitting import OPTIONS, at_work, logs, suite, undisturbed

from harness.claims import workers

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
WANTED = "LSPC_SLURM"
"""Set where SLURM was installed for these tests: there they may not be skipped."""


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if shutil.which(name, path=path) is None]
    if missing and WANTED not in os.environ:
        pytest.skip(f"no {', '.join(missing)} here: Debian's slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    script = ROOT / ".ci" / "slurm"
    with (folder / "start.log").open("w") as log:  # daemons would keep a pipe open
        started = subprocess.run([script, "start", folder], stdout=log, stderr=log, check=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(ROOT))
        try:
            assert started.returncode == 0, (folder / "start.log").read_text()
            yield
        finally:
            subprocess.run([script, "stop", folder], check=False, capture_output=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return undisturbed(tmp_path_factory.mktemp("alone"))


def said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def submit(folder: Path, config: str, script: bool = False) -> list[str]:
    """The ids of the array's elements."""
    (folder / "slurm.yaml").write_text(config)
    words = ["submit", suite(folder), "--results", folder / "runs", "--slurm", folder / "slurm.yaml", *OPTIONS]
    if script:
        printed = call(*words, "--script")
        assert printed.exit_code == 0, printed.output
        (folder / "job.sh").write_text(printed.stdout)
        job = said("sbatch", "--parsable", str(folder / "job.sh")).strip()
        return [f"{job}_{index}" for index in range(int(re.search(r"workers: (\d)", config)[1]))]
    done = call(*words)
    assert done.exit_code == 0, done.output
    return done.stdout.rpartition(": ")[2].split()


def ended(jobs: list[str]) -> bool:
    return not said("squeue", "--noheader", f"--jobs={jobs[0].partition('_')[0]}").strip()


def restarts(job: str) -> int:
    fields = dict(word.partition("=")[::2] for word in said("scontrol", "show", "job", job).split())
    return int(fields["Restarts"])


@pytest.mark.parametrize("script", [False, True], ids=["submitit", "sbatch"])
def test_a_worker_is_requeued_by_hand_and_by_its_signal(tmp_path: Path, alone: dict[str, bytes], script: bool) -> None:
    jobs = submit(tmp_path, "workers: 2\ntime: 30\n", script)
    until(lambda: at_work(tmp_path / "runs", 2), "two workers at work")
    assert call("status", tmp_path / "runs").stdout.count("At work") == 2
    said("scontrol", "requeue", jobs[0])  # as SLURM does where it preempts, or a node fails
    said("scancel", "--signal=USR2", jobs[1])  # as SLURM does before the time is up
    until(lambda: ended(jobs), "all jobs ended")
    assert [restarts(job) for job in jobs] == [1, 1], logs(tmp_path / "runs")
    assert outcome(tmp_path / "runs") == alone
    assert not workers(tmp_path / "runs")


def told(process: int) -> bool:
    """Whether SIGUSR2 waits for a process that is stopped, or has ended it: SLURM continues it, too."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True
    return bool(int(re.search(r"ShdPnd:\s*([0-9a-f]+)", status)[1], 16) >> (signal.SIGUSR2 - 1) & 1)


def test_a_worker_whose_time_is_up_goes_on_by_itself(tmp_path: Path, alone: dict[str, bytes]) -> None:
    """SLURM looks at times every half minute; until it has told the worker, that is not to come to its end."""
    (job,) = submit(tmp_path, "workers: 1\ntime: 60\nsignal_seconds: 120\n", script=True)
    until(lambda: at_work(tmp_path / "runs", 1), "a worker at work")
    (worker,) = workers(tmp_path / "runs")
    os.kill(worker.process, signal.SIGSTOP)
    elapsed = int(said("squeue", "--noheader", "--format=%M", f"--jobs={job}").split(":")[-2])
    said("scontrol", "update", f"JobId={job}", f"TimeLimit={elapsed + 2}")  # of which less than signal_seconds is left
    until(lambda: told(worker.process), "SLURM's signal")
    with suppress(ProcessLookupError):
        os.kill(worker.process, signal.SIGCONT)
    until(lambda: restarts(job), "the job is in the queue again")
    again = ["scontrol", "update", f"JobId={job}", "TimeLimit=60"]
    until(lambda: subprocess.run(again, check=False).returncode == 0, "it has more time")  # not while it is ending
    until(lambda: ended([job]), "the job ended")
    assert outcome(tmp_path / "runs") == alone


@pytest.mark.parametrize("script", [False, True], ids=["submitit", "sbatch"])
def test_what_is_cancelled_stays_so_and_can_go_on(tmp_path: Path, alone: dict[str, bytes], script: bool) -> None:
    jobs = submit(tmp_path, "workers: 2\ntime: 30\n", script)
    until(lambda: at_work(tmp_path / "runs", 2), "two workers at work")
    if script:
        said("scancel", jobs[0].partition("_")[0])
    else:
        done = call("cancel", tmp_path / "runs")
        assert (done.exit_code, done.stdout[:20]) == (0, "Cancelled: 2 workers"), done.output
    until(lambda: ended(jobs), "all jobs ended")
    assert [restarts(job) for job in jobs] == [0, 0]
    until(lambda: not workers(tmp_path / "runs"), "no worker left")
    assert list((tmp_path / "runs" / "jobs").glob("*.checkpoint"))
    assert call("run", suite(tmp_path), "--results", tmp_path / "runs", *OPTIONS).exit_code == 0
    assert outcome(tmp_path / "runs") == alone


def test_a_job_that_slurm_refuses(tmp_path: Path) -> None:
    (tmp_path / "slurm.yaml").write_text("time: 30\npartition: nowhere\n")
    words = ("submit", suite(tmp_path), "--results", tmp_path / "runs", "--slurm", tmp_path / "slurm.yaml")
    before = said("squeue", "--noheader", "--format=%i")
    done = call(*words)
    assert done.exit_code == 2
    assert "SLURM takes no job: sbatch: error: invalid partition specified: nowhere" in done.stderr
    assert said("squeue", "--noheader", "--format=%i") == before
    assert "Submitted" not in call("status", tmp_path / "runs").stdout
