"""Claims: one worker for each group of cells, whoever is killed, stopped or late."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import forks, until

from harness import claims, processes
from harness.claims import ClaimLost, Claims, workers

GROUP = "0123456789abcdef"


def _take(root: Path, start: Any, answers: Any, stay: Any) -> None:
    with Claims(root) as mine:
        start.wait()
        answers.put(mine.acquire(GROUP))
        stay.wait()


def _take_and(root: Path, answers: Any, lease: float, end: str) -> None:
    """Take the group; then die, or wait to be stopped, and go on."""
    mine = Claims(root, lease=lease, beat=0.05)
    mine.__enter__()
    answers.put(mine.acquire(GROUP))
    if end == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while mine._read(GROUP) == mine.name:
        time.sleep(0.02)
    try:
        mine.require(GROUP)
    except ClaimLost as error:
        answers.put(str(error))
    mine.__exit__(None, None, None)
    answers.put(mine._read(GROUP))


def worker(target: Callable[..., None], *arguments: Any) -> Any:
    process = forks.Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("turn", range(3))
def test_of_32_that_race_for_a_claim_one_gets_it(tmp_path: Path, turn: int) -> None:
    start, stay, answers = forks.Event(), forks.Event(), forks.SimpleQueue()
    if turn:  # after somebody who died with it
        dead = f"{processes.machine()}-9999999-1-beef"  # a number that no process has
        (tmp_path / "claims").mkdir()
        (tmp_path / "claims" / GROUP).write_text(dead)
    racing = [worker(_take, tmp_path, start, answers, stay) for _ in range(32)]
    until(lambda: len(list((tmp_path / "workers").glob("[!.]*.json"))) == 32, "32 workers")
    start.set()
    got = [answers.get() for _ in racing]
    stay.set()
    assert sum(got) == 1
    for process in racing:
        process.join()
    assert list((tmp_path / "claims").iterdir()) == list((tmp_path / "workers").iterdir()) == []


def test_what_the_living_have_is_theirs_until_they_give_it_back(tmp_path: Path) -> None:
    start, stay, answers = forks.Event(), forks.Event(), forks.SimpleQueue()
    start.set()
    other = worker(_take, tmp_path, start, answers, stay)
    assert answers.get()
    with Claims(tmp_path) as mine:
        assert not mine.acquire(GROUP)
        assert mine.holder(GROUP) == f"process {other.pid} on {os.uname().nodename}"
        found = {one.process: one for one in workers(tmp_path)}
        assert (found[other.pid].claims, found[os.getpid()].claims) == ((GROUP,), ())
        stay.set()
        other.join()
        assert mine.acquire(GROUP)
        assert mine.acquire(GROUP)  # again is no harm
        mine.require(GROUP)
    assert workers(tmp_path) == []


def test_a_killed_workers_claims_are_free_at_once_on_its_machine(tmp_path: Path) -> None:
    answers = forks.SimpleQueue()
    dying = worker(_take_and, tmp_path, answers, claims.LEASE, "die")
    dying.join()
    assert (dying.exitcode, answers.get()) == (-signal.SIGKILL, True)
    with Claims(tmp_path) as mine:
        assert mine.holder(GROUP) is None
        assert mine.acquire(GROUP)


def test_a_worker_that_was_stopped_past_its_lease_notices(tmp_path: Path) -> None:
    answers = forks.SimpleQueue()
    paused = worker(_take_and, tmp_path, answers, 0.5, "wait")
    assert answers.get()
    os.kill(paused.pid, signal.SIGSTOP)
    with Claims(tmp_path, lease=0.5) as mine:
        deadline = time.monotonic() + 20
        while not mine.acquire(GROUP) and time.monotonic() < deadline:
            time.sleep(0.05)
        mine.require(GROUP)
        os.kill(paused.pid, signal.SIGCONT)
        assert answers.get() == "another worker has taken over, since this one gave no sign of life for 0.5 s"
        assert answers.get() == mine.name  # it gave nothing back that is another's
        mine.require(GROUP)
    paused.join()


def test_another_machines_worker_is_dead_when_it_is_silent(tmp_path: Path) -> None:
    """By the file server's clock on both sides, whatever this machine's says."""
    other = "feedbeef-1-1-beef"
    with Claims(tmp_path) as mine:
        (tmp_path / "claims" / GROUP).write_text(other)
        sign = tmp_path / "workers" / f"{other}.json"
        sign.write_text(json.dumps({"host": "far", "process": 1, "started": 0.0, "about": {}}))
        assert not mine.acquire(GROUP)
        assert mine.holder(GROUP) == "process 1 on far"
        os.utime(sign, (time.time() - claims.LEASE + 30,) * 2)
        assert not mine.acquire(GROUP)
        os.utime(sign, (time.time() - claims.LEASE - 30,) * 2)
        assert mine.acquire(GROUP)
        (tmp_path / "claims" / GROUP).write_text("")  # somebody who was killed before the name was written
        assert not mine.acquire(GROUP)
        os.utime(tmp_path / "claims" / GROUP, (time.time() - claims.LEASE - 30,) * 2)
        assert mine.acquire(GROUP)


def test_one_that_is_late_with_an_eviction_gives_back_what_it_took(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine:
        path = tmp_path / "claims" / GROUP
        path.write_text("successor")
        mine._remove(GROUP, "dead")  # whom it had seen before
        assert path.read_text() == "successor"
        path.unlink()
        mine._remove(GROUP, "dead")
        assert not path.exists()
        with path.open("w") as file:
            mine._remove(GROUP, "dead")
            file.write("successor")  # who was just about to
        assert path.read_text() == "successor"


def test_a_claim_that_cannot_be_written_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.errors import ResultsError

    with Claims(tmp_path) as mine:

        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fdopen", full)
        with pytest.raises(ResultsError, match="No space left on device"):
            mine.acquire(GROUP)
        monkeypatch.undo()
        assert mine.acquire(GROUP)


def test_names_of_processes() -> None:
    name = processes.name()
    assert name == processes.name()
    assert not processes.gone(name)
    machine, number, since, chance = name.split("-")
    assert processes.gone(f"{machine}-{number}-{int(since) - 1}-{chance}")  # its number was another's before
    assert not processes.gone(f"feedbeef-{number}-1-{chance}")
    assert not processes.gone("")
