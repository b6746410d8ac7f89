"""Submitting without a cluster: submitit's local executor, a fake sbatch, and what is refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from running import call, outcome, until
from submitting import OPTIONS, at_work, logs, suite, undisturbed

from harness.claims import workers
from harness.launchers import Workload, find_launcher, launchers, remembered, require_extra
from harness.options import Options

ROOT = Path(__file__).parent.parent.parent


def config(folder: Path, text: str) -> Path:
    path = folder / "slurm.yaml"
    path.write_text(text)
    return path


def submit(folder: Path, text: str, *more: str) -> object:
    words = ("submit", suite(folder), "--results", folder / "runs", "--slurm", config(folder, text), *OPTIONS)
    return call(*words, *more)


def ended(results: Path) -> bool:
    return "Submitted" not in call("status", results).stdout


@pytest.fixture
def of_this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("of_this_checkout")
def test_workers_of_this_machine_are_told_to_go_on_and_cancelled(tmp_path: Path) -> None:
    """By submitit, as on a cluster: SIGUSR2 starts a worker again, 'cancel' ends it for good."""
    results = tmp_path / "runs"
    done = submit(tmp_path, "cluster: local\nworkers: 2\ntime: 600\n")
    assert done.exit_code == 0, done.output
    assert re.match(r"Submitted: 2 workers on submitted by slurm since .* UTC: \S+ \S+\n", done.stdout)
    until(lambda: at_work(results, 2), "two workers at work")
    first, other = workers(results)
    os.kill(other.process, signal.SIGSTOP)  # or it might end the suite before the first is back
    try:
        assert call("status", results).stdout.endswith("UTC: 2 RUNNING\n")
        os.kill(first.process, signal.SIGUSR2)
        until(lambda: {worker.name for worker in workers(results)} - {first.name, other.name}, "it was started again")
        assert first.name not in {worker.name for worker in workers(results)}
    finally:
        os.kill(other.process, signal.SIGCONT)
    done = call("cancel", results)
    assert (done.exit_code, done.stdout[:20]) == (0, "Cancelled: 2 workers"), done.output
    assert call("cancel", results).stdout == "Nothing was submitted.\n"
    until(lambda: not workers(results), "no worker left")
    assert submit(tmp_path, "cluster: local\ntime: 600\n").exit_code == 0
    until(lambda: ended(results), "the worker ended")
    (tmp_path / "alone").mkdir()
    assert outcome(results) == undisturbed(tmp_path / "alone"), logs(results)


FAKE = """#!/bin/bash
# Looks at the script, takes it, and says what sbatch says.
cp "$1" "{folder}/sent.sh"
bash -n "$1" || exit 1
grep -q '^#SBATCH --array=0-2%2$' "$1" || {{ echo 'sbatch: error: no array' >&2; exit 1; }}
grep -q '^#SBATCH --signal=USR2@90$' "$1" || {{ echo 'sbatch: error: no signal' >&2; exit 1; }}
echo "Submitted batch job 4711"
"""
CONFIG = """
workers: 3
at_once: 2
time: "1-02:00:00"
signal_seconds: 90
partition: gpu
gpus_per_node: 1
cpus_per_task: 8
mem: 16G
setup: ["module load cuda"]
options: {mail-type: END}
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with programs called as SLURM's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        ("sbatch", FAKE.format(folder=folder)),
        ("srun", "#!/bin/sh\nexit 1\n"),
        ("squeue", '#!/bin/sh\necho "4711_0 RUNNING\n4711_1 RUNNING\n4711_2 PENDING"\n'),
        ("scancel", f'#!/bin/sh\necho "$@" > {folder}/cancelled\n'),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_an_array_is_sent_remembered_and_cancelled(tmp_path: Path, fake: Path) -> None:
    done = submit(tmp_path, CONFIG)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("UTC: 4711_0 4711_1 4711_2\n")
    sent = (fake / "sent.sh").read_text()
    for line in ("time=1560", "partition=gpu", "gpus-per-node=1", "cpus-per-task=8", "mem=16G", "mail-type=END"):
        assert f"#SBATCH --{line}\n" in sent
    for line in ("#SBATCH --requeue\n", "#SBATCH --open-mode=append\n", "\nmodule load cuda\n", "\nsrun --unbuffered "):
        assert line in sent
    assert call("status", tmp_path / "runs").stdout.endswith("UTC: 2 RUNNING, 1 PENDING\n")
    assert call("cancel", tmp_path / "runs").exit_code == 0
    assert (fake / "cancelled").read_text() == "4711\n"
    assert remembered(tmp_path / "runs", print) == []


def test_the_script_is_the_same_without_a_package(tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    done = submit(tmp_path, CONFIG, "--script", "--for", "11h")
    assert done.exit_code == 0, done.output
    script = tmp_path / "job.sh"
    script.write_text(done.stdout)
    assert (
        "Submitted batch job" in subprocess.run(["sbatch", script], capture_output=True, text=True, check=True).stdout
    )
    for line in ("time=1560", "partition=gpu", "mem=16G", "requeue", "open-mode=append", "mail-type=END"):
        assert f"#SBATCH --{line}\n" in done.stdout
    assert "lspc_bench work" in done.stdout
    assert "--for 39600\n" in done.stdout
    refused = submit(tmp_path, CONFIG)
    assert refused.exit_code == 2
    assert "submitit" in refused.stderr
    assert "pip install 'lspc-bench[" in refused.stderr
    assert "--script" in refused.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 130, 137, 140, 143])
def test_the_script_comes_back_only_when_it_was_interrupted(tmp_path: Path, fake: Path, status: int) -> None:
    """As bash runs it: srun ends with the worker's status."""
    (tmp_path / "job.sh").write_text(submit(tmp_path, CONFIG, "--script").stdout.replace("module load cuda", ":"))
    (fake / "srun").write_text(f"#!/bin/sh\nexit {status}\n")
    (fake / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {fake}/requeued\n')
    (fake / "scontrol").chmod(0o755)
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, check=False)
    assert done.returncode == status
    assert (fake / "requeued").exists() == (status in (130, 140))
    if status == 130:
        assert (fake / "requeued").read_text() == "requeue 7_1\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("time: 30\npartion: gpu\n", "slurm.yaml:2: unknown key 'partion'. Did you mean 'partition'?"),
        ("workers: 2\n", "slurm.yaml: the key 'time' is missing"),
        ("time: 30\nworkers: many\n", "slurm.yaml:2: workers: "),
        ("time: 30\nworkers: 0\n", "slurm.yaml:2: workers: "),
        ("time: 4\n", "slurm.yaml: signal_seconds: 120 s before its end must be in the second half"),
        ("time: 10\nsignal_seconds: 300\n", "slurm.yaml:2: signal_seconds: 300 s before its end"),
        ("time: soon\n", "slurm.yaml:1: time: "),
        ("time: 12:00:00\n", "slurm.yaml:1: '12:00:00' is no plain decimal number"),
        ("time: 30\nsetup:\n  - ls\n  - 3\n", "slurm.yaml:4: setup.1: "),
        ('time: 30\npartition: "a\\nb"\n', "slurm.yaml:2: partition: must be one line"),
        ("cluster: pbs\ntime: 30\n", "slurm.yaml:1: cluster: "),
        ("- a\n", "slurm.yaml: needs a mapping"),
        ("a: [\n", "slurm.yaml:2: not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(tmp_path: Path, text: str, reason: str) -> None:
    done = submit(tmp_path, text)
    assert done.exit_code == 2, done.output
    assert reason in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = config(tmp_path, "time: 30\n")
    results = ("--results", tmp_path / "runs")
    monkeypatch.setenv("PATH", str(tmp_path))
    for words, reason in (
        (("--slurm", file), "no sbatch on PATH"),
        ((), "choose where its workers run: "),
        (("--slurm", file, "--ray"), "not both"),
        (("--slurm", tmp_path / "none.yaml"), "cannot read it: No such file or directory"),
        (("--ray", "--script"), "--script goes with --slurm"),
        (("--pbs",), "No such option"),
    ):
        done = call("submit", suite(tmp_path), *results, *words)
        assert done.exit_code == 2, words
        assert reason in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_refusal_of_slurm_leaves_nothing(tmp_path: Path, fake: Path) -> None:
    (fake / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Batch job submission failed: no' >&2\nexit 1\n")
    done = submit(tmp_path, CONFIG)
    assert done.exit_code == 2
    assert "SLURM takes no job: sbatch: error: Batch job submission failed: no" in done.stderr
    assert list((tmp_path / "runs" / "launched").iterdir()) == []
    assert call("cancel", tmp_path / "runs").stdout == "Nothing was submitted.\n"


def test_a_cluster_that_does_not_answer_is_said(tmp_path: Path, fake: Path) -> None:
    assert submit(tmp_path, CONFIG).exit_code == 0
    for name in ("squeue", "scancel"):
        (fake / name).write_text("#!/bin/sh\necho 'slurm: error: Unable to contact slurm controller' >&2\nexit 1\n")
    said = call("status", tmp_path / "runs")
    assert said.exit_code == 0
    assert "how they are cannot be told: SLURM refuses: slurm: error: Unable to contact" in said.stdout
    done = call("cancel", tmp_path / "runs")
    assert done.exit_code == 2
    assert "Unable to contact slurm controller" in done.stderr
    (launched,) = remembered(tmp_path / "runs", print)  # still, to try again
    (fake / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    assert find_launcher("slurm").states(launched) == {}  # ended long ago
    path = tmp_path / "runs" / "launched" / f"{launched.name}.json"
    path.write_text(path.read_text().replace("4711", "4712"))
    said = call("status", tmp_path / "runs")
    assert said.exit_code == 0
    assert "what was launched cannot be told" in said.stderr


def test_times_as_sbatch_writes_them(tmp_path: Path) -> None:
    for text, minutes in (
        ("90", 90), ("'90'", 90), ("'90:30'", 91), ("'1:30:00'", 90), ("'2-00'", 2880), ("'1-06:30'", 1830),
        ("'1-00:00:01'", 1441),
    ):  # fmt: skip
        assert find_launcher("slurm")(config(tmp_path, f"time: {text}\n")).cluster.time == minutes


def test_a_worker_is_started_with_every_option_that_it_has() -> None:
    options = Options(device="cuda:1", engine="eager", workers=3, checkpoint_seconds=0.5, most_seconds=90.0)
    words = Workload(Path("runs"), "demo", options, wait=False).words
    expected = "--suite demo --device cuda:1 --engine eager --workers 3 --checkpoint-every 0.5 --for 90 --no-wait"
    assert " ".join(words[2:]) == expected
    assert Path(words[1]).is_absolute()


def test_launchers_are_found_by_name() -> None:
    assert {"slurm", "ray"} <= {*launchers()}
    with pytest.raises(Exception, match=r"no launcher is called 'slrum'. Did you mean 'slurm'\?"):
        find_launcher("slrum")
    with pytest.raises(Exception, match=r"nothere is not installed. This installs it: pip install 'lspc-bench\[.*x\]'"):
        require_extra("nothere", "x")
