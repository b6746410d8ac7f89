"""Workers on a SLURM cluster, by submitit or by a plain script; and, by submitit's other executor, on this machine.

An array of identical workers, not an element a job: an element costs its start, and arrays have a largest size. A
worker that is told by SIGUSR2 that its time is nearly up, or that it is to make room, keeps what is under way and is
put into the queue again; one that gets SIGTERM alone is not, SLURM does that itself where it preempts.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from harness import processes
from harness.bounds import Settings
from harness.config import ConfigFile
from harness.errors import UserError
from harness.launchers import Launched, Workload, require_extra

COME_BACK = 130
"""The status of a worker that was interrupted, or whose time is up: with another start it goes on."""
COME_EARLY = 128 + signal.SIGUSR2
"""That of one whom the signal killed, before it listened."""
TIMES = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d\d))?(?::(?P<third>\d\d))?")


def _minutes(value: Any) -> Any:
    """Whole minutes of what sbatch's ``--time`` takes; anything else as it is, to be refused."""
    match = TIMES.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    days, parts = match["days"], [int(part) for part in match.group("first", "second", "third") if part is not None]
    if days is None and len(parts) < 3:  # minutes, minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)


def _line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError(f"must be one line of letters that can be printed, not {text!r}")
    return text


Line = Annotated[str, AfterValidator(_line)]
Minutes = Annotated[int, BeforeValidator(_minutes), Field(ge=1, le=525_600)]


class Cluster(Settings):
    """What a worker asks SLURM for, in sbatch's words. Unknown keys are refused."""

    cluster: Literal["slurm", "local"] = Field("slurm", description="local: processes of this machine, for trying it")
    workers: int = Field(1, ge=1, le=1000, description="elements of the array")
    at_once: int | None = Field(None, ge=1, description="of them, how many at a time; null: all")
    time: Minutes = Field(description="of one start: minutes, or '12:00:00', or '2-00:00:00'")
    signal_seconds: int = Field(
        120, ge=1, le=7200, validate_default=True, description="before the time is up, when a worker is told"
    )
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    gres: Line | None = None
    nodelist: Line | None = None
    exclude: Line | None = None
    cpus_per_task: int | None = Field(None, ge=1, description="cores of a worker, for training and evaluation")
    gpus_per_node: int | None = Field(None, ge=0, description="1 for training on a GPU; a worker uses one")
    mem: Line | None = Field(None, description="memory of a worker, such as 16G")
    setup: list[Line] = Field([], description="lines of shell before a worker starts, such as 'module load cuda'")
    options: dict[Line, Line | int] = Field({}, description="any other option of sbatch, such as {mail-type: END}")

    @field_validator("signal_seconds")
    @classmethod
    def _before(cls, value: int, info: ValidationInfo) -> int:
        """SLURM may send it a minute early, and every start takes its own time."""
        if value * 2 >= 60 * info.data.get("time", value):
            raise ValueError(f"{value} s before its end must be in the second half of a start's time")
        return value


PASSED = ("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "cpus_per_task", "gpus_per_node")
"""Keys that are called so by sbatch and by submitit."""


class Launcher:
    """Arrays of workers.

    Args:
        config: the YAML file that says what they ask for, see :class:`Cluster`.

    Raises:
        UserError: anything in it is wrong.
    """

    options = (
        click.Option(
            ["--slurm"],
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="CONFIG",
            help="On a SLURM cluster, as this YAML file says: time, partition, workers, ...; see docs/running.md.",
        ),
    )

    def __init__(self, config: Path) -> None:
        self.cluster = ConfigFile(config, Cluster).check()
        self.workers = self.cluster.workers

    @classmethod
    def chosen(cls, given: Mapping[str, Any]) -> Launcher | None:
        """As of :class:`harness.launchers.Submitter`."""
        return None if given["slurm"] is None else cls(given["slurm"])

    def require(self) -> None:
        """Ask whether anything can be submitted here.

        Raises:
            UserError: it cannot.
        """
        try:
            require_extra("submitit", "slurm")
        except UserError as error:
            raise UserError(f"{error}. Or send what --script prints, which needs no package") from error
        if self.cluster.cluster == "slurm":
            for program in ("sbatch", "srun"):
                if shutil.which(program) is None:
                    raise UserError(f"no {program} on PATH: is this a machine of a SLURM cluster?")

    def script(self, work: Workload) -> str:
        """The same for ``sbatch``, without any package.

        Its workers run under ``srun``, which is what SLURM's signal reaches.
        """
        count, cluster = work.workers or self.workers, self.cluster
        logs = work.results.absolute() / "launched" / "%A_%a.log"
        options: dict[str, Any] = {
            "job-name": f"lspc-bench-{work.suite}",
            "array": f"0-{count - 1}%{min(count, cluster.at_once or count)}",
            "time": cluster.time,
            "signal": f"USR2@{cluster.signal_seconds}",
            "output": str(logs),
            "open-mode": "append",
            **{key.replace("_", "-"): getattr(cluster, key) for key in (*PASSED, "mem")},
            **cluster.options,
        }
        given = [f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in options.items() if value is not None]
        return "\n".join(
            [
                "#!/bin/bash",
                *given,
                "#SBATCH --requeue",
                "",
                *cluster.setup,
                f"srun --unbuffered {shlex.join(work.command)}",
                "status=$?",
                f"# {COME_BACK}: what was under way is kept, to go on later; {COME_EARLY}: it had only just begun.",
                f'if [ "$status" -eq {COME_BACK} ] || [ "$status" -eq {COME_EARLY} ]; then',
                '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"',
                "fi",
                'exit "$status"',
                "",
            ]
        )

    def launch(self, work: Workload) -> Launched:
        """Submit the workers; as of :class:`harness.launchers.Launcher`."""
        self.require()
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        cluster, count = self.cluster, work.workers or self.workers
        launched = Launched("slurm", work.suite, (), {"cluster": cluster.cluster})
        folder = work.results.absolute() / "launched" / launched.name
        endless: dict[str, Any] = {f"{cluster.cluster}_max_num_timeout": 10**6}
        executor = submitit.AutoExecutor(folder, cluster=cluster.cluster, **endless)
        parameters: dict[str, Any] = {
            "name": f"lspc-bench-{work.suite}",
            "timeout_min": cluster.time,
            "slurm_time": cluster.time,
            "slurm_signal_delay_s": cluster.signal_seconds,
            "slurm_stderr_to_stdout": True,
            "slurm_setup": cluster.setup,
            "slurm_array_parallelism": cluster.at_once or count,
            "slurm_additional_parameters": {"requeue": True, **cluster.options},
            "slurm_mem": cluster.mem,
            **{key if key in SHARED else f"slurm_{key}": getattr(cluster, key) for key in PASSED},
        }
        if cluster.cluster == "local":
            parameters = {key: value for key, value in parameters.items() if key in ("name", "timeout_min", *SHARED)}
        executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
        try:
            with _quiet(), executor.batch():
                jobs = [executor.submit(Worker(work.words)) for _ in range(count)]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"SLURM takes no job: {_last_line(error)}") from error
        ids = tuple(job.job_id for job in jobs)
        if cluster.cluster == "local":
            ids = tuple(processes.name_of(int(job)) for job in ids)
        return Launched("slurm", work.suite, ids, launched.about, launched.since, launched.name)

    @staticmethod
    def states(launched: Launched) -> dict[str, str]:
        """How its jobs are; as of :class:`harness.launchers.Launcher`."""
        if launched.about["cluster"] == "local":
            return {job: "RUNNING" for job in launched.jobs if not processes.gone(job)}
        listed = _ask("squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={','.join(_arrays(launched))}")
        return dict(line.split(maxsplit=1) for line in listed.splitlines() if line.strip())

    @staticmethod
    def cancel(launched: Launched) -> None:
        """End its jobs; as of :class:`harness.launchers.Launcher`."""
        if launched.about["cluster"] == "local":
            for job in launched.jobs:
                processes.end(job)  # submitit hands it on to the worker
        else:
            _ask("scancel", *_arrays(launched))


SHARED = ("cpus_per_task", "gpus_per_node")
"""Parameters that submitit has for every executor."""


class Worker:
    """What submitit runs: it is pickled by reference, so the code must stay as it is until all have ended."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __call__(self) -> None:
        """Work in this process, which is the one that SLURM's signals reach."""
        from harness.cli import main

        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # submitit lets it pass
        with _signals() as came:
            try:
                main(self.words, prog_name="lspc-bench")
            except SystemExit as ended:
                status = ended.code
        if status == COME_BACK and signal.SIGTERM not in came():
            os.kill(os.getpid(), signal.SIGUSR2)  # now it is submitit's: it puts the job into the queue again
        if status:
            sys.exit(status)

    def checkpoint(self) -> Any:
        """Asked for by submitit, before the queue: the results folder has everything."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextmanager
def _signals() -> Iterator[Callable[[], bytes]]:
    """Which signals this process has got since, whoever handles them."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def came() -> bytes:
        try:
            return os.read(reading, 1024)
        except BlockingIOError:
            return b""

    try:
        yield came
    finally:
        signal.set_wakeup_fd(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Start processes that do not hold this one's standard streams open."""
    kept = [os.dup(number) for number in (0, 1, 2)]
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        yield
    finally:
        for number, old in enumerate(kept):
            os.dup2(old, number)
            os.close(old)
        os.close(nothing)


def _arrays(launched: Launched) -> list[str]:
    return list(Counter(job.partition("_")[0] for job in launched.jobs))


def _ask(*words: str) -> str:
    """What a program of SLURM says; nothing where it no longer knows the job.

    Raises:
        UserError: it is not there, or SLURM does not answer.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    except FileNotFoundError as error:
        raise UserError(f"no {words[0]} on PATH: is this a machine of a SLURM cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"SLURM does not answer {words[0]}") from error
    if done.returncode and "Invalid job id" not in done.stderr:
        raise UserError(f"SLURM refuses: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(said: object) -> str:
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it does not say why")
