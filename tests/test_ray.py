"""A suite on a Ray cluster of two nodes, on this machine: a node is killed, and the results are the same."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import call, outcome, until
from submitting import OPTIONS, at_work, suite, undisturbed

from harness.claims import workers
from harness.guard import TookTooLong, UserCodeError

pytestmark = pytest.mark.long

ray = pytest.importorskip("ray", reason="Ray is not installed")

ROOT = Path(__file__).parent.parent


def add_node(cluster: Any) -> Any:
    """A node of one core, which may take its time to start."""
    node = cluster.add_node(wait=False, num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes(timeout=300)
    return node


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")  # nodes have this code installed, and no other
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_worker_niceness", "0")  # or else a busy machine starves them
        nodes = Cluster()
        add_node(nodes)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def connect(cluster: Any) -> None:
    """Commands find this connection, and are quicker for it."""
    ray.init(cluster.address, ignore_reinit_error=True, log_to_driver=False)


def submit(folder: Path, cluster: Any, *more: str, options: tuple[str, ...] = OPTIONS) -> Any:
    words = ("submit", suite(folder), "--results", folder / "runs", "--ray", "--address", cluster.address, *options)
    done = call(*words, *more)
    assert done.exit_code == 0, done.output
    return done


def ended(folder: Path) -> bool:
    said = call("status", folder / "runs")
    assert said.exit_code == 0, said.output
    return "Submitted" not in said.stdout


def test_a_node_dies_and_nobody_sees_it(tmp_path: Path, cluster: Any) -> None:
    second = add_node(cluster)
    done = submit(tmp_path, cluster)
    assert "Submitted: 2 workers on submitted by ray since" in done.stdout
    until(lambda: at_work(tmp_path / "runs", 2), "two workers at work")
    cluster.remove_node(second, allow_graceful=False)
    connect(cluster)  # the submission was of one that had left
    until(lambda: ended(tmp_path), "all workers ended")
    (tmp_path / "alone").mkdir()
    assert outcome(tmp_path / "runs") == undisturbed(tmp_path / "alone")


def test_roll_outs_are_tasks_and_a_node_of_theirs_dies(tmp_path: Path, cluster: Any) -> None:
    """Workers take no core by Ray's count, so where one is taken a policy is rolled out."""
    connect(cluster)
    second = add_node(cluster)
    submit(tmp_path, cluster, options=("--device", "cpu", "--checkpoint-every", "0"))
    until(lambda: ray.available_resources().get("CPU", 0) == 0, "roll-outs on both nodes")
    until(lambda: at_work(tmp_path / "runs", 2), "two workers at work")
    cluster.remove_node(second, allow_graceful=False)
    until(lambda: ended(tmp_path), "all workers ended", 900)  # one core rolls out
    (tmp_path / "alone").mkdir()
    assert outcome(tmp_path / "runs") == undisturbed(tmp_path / "alone")


def test_calls_on_a_cluster_end_as_those_of_a_pool(tmp_path: Path, cluster: Any) -> None:
    from harness.ray_pool import RayPool

    connect(cluster)
    pool, mark = RayPool(), tmp_path / "begun"
    assert pool.submit(os.getpid).result(120) != os.getpid()
    assert pool.submit(die_once, mark).result(120) == "again"
    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        pool.submit(divmod, 1, 0).result(120)
    with pytest.raises(TookTooLong, match=r"took longer than its 0\.2 s"):
        pool.submit(time.sleep, 60, seconds=0.2).result(120)
    with pytest.raises(UserCodeError, match="died"):
        pool.submit(os._exit, 3, tries=1).result(120)
    waiting = pool.submit(time.sleep, 3600)
    pool.close()
    assert waiting.cancelled()
    assert pool.submit(os.getpid).result(120)  # the core is free again


def die_once(mark: Path) -> str:
    if mark.exists():
        return "again"
    mark.touch()
    os._exit(1)


def test_cancel_ends_the_workers_and_another_submission_goes_on(tmp_path: Path, cluster: Any) -> None:
    connect(cluster)
    submit(tmp_path, cluster, "--number", "1")
    until(lambda: at_work(tmp_path / "runs", 1), "a worker at work")
    said = call("status", tmp_path / "runs").stdout
    assert re.search(r"Submitted: 1 workers? on submitted by ray since .*: 1 UNFINISHED", said)
    done = call("cancel", tmp_path / "runs")
    assert (done.exit_code, done.stdout.startswith("Cancelled: 1 worker")) == (0, True), done.output
    until(lambda: not workers(tmp_path / "runs"), "no worker left")
    assert list((tmp_path / "runs" / "jobs").glob("*.checkpoint"))
    assert ended(tmp_path)
    submit(tmp_path, cluster, "--number", "1")
    until(lambda: ended(tmp_path), "all workers ended")
    (tmp_path / "alone").mkdir()
    assert outcome(tmp_path / "runs") == undisturbed(tmp_path / "alone")


def test_what_is_no_cluster_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for address, reason in (
        (f"127.0.0.1:{free}", "Connection refused"),
        ("nowhere.invalid:6379", "no Ray cluster at nowhere.invalid:6379"),
    ):
        done = call("submit", suite(tmp_path), "--results", tmp_path / "runs", "--ray", "--address", address)
        assert done.exit_code == 2
        assert reason in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_share_of_a_gpu_wants_a_gpu(tmp_path: Path, cluster: Any) -> None:
    words = ("submit", suite(tmp_path), "--results", tmp_path / "runs", "--ray", "--address", cluster.address)
    done = call(*words, "--gpus", "0.5")
    assert done.exit_code == 2
    assert "has no GPU" in done.stderr
    assert call("submit", suite(tmp_path), "--ray", "--gpus", "2").exit_code == 2
