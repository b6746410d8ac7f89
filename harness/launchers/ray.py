"""Workers on a Ray cluster, with Ray Core alone.

One long task a GPU, not a task a job: a process that had a GPU is not used again by Ray, so that each task pays for its
start. A task whose node dies is started again on another, without end: the results folder has everything. The tasks
belong to a detached actor, which lives in the cluster until they have ended; so the command that starts it comes back,
and the actor itself is started again where its node dies.

A worker's roll-outs are tasks, too (:mod:`harness.ray_pool`), on whatever cores of the cluster are free. So that there
always are some, it takes none by Ray's count.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import click

from harness.errors import UserError
from harness.launchers import Launched, Workload, require_extra

NAMESPACE = "lspc-bench"
PATIENCE = 5.0
"""Seconds in which an address answers."""


class Launcher:
    """Tasks that are workers.

    Args:
        address: of the cluster, as of ``ray.init``.
        gpus: of a worker, a fraction where several share one; ``None``: one where the cluster has any, or none.
        cpus: of a worker, which evaluates on all but one of them; ``None``: its roll-outs are tasks of their own.
    """

    options = (
        click.Option(["--ray"], is_flag=True, help="On a Ray cluster: a worker a GPU, or where there is none a node."),
        click.Option(
            ["--address"],
            default="auto",
            show_default=True,
            metavar="HOST:PORT",
            help="With --ray: its head node; auto: the cluster that this machine is part of.",
        ),
        click.Option(
            ["--gpus", "gpus"],
            type=click.FloatRange(0, 1),
            metavar="SHARE",
            help="With --ray: of a GPU, what a worker takes; several share one then, and its memory.  [default: 1]",
        ),
        click.Option(
            ["--cpus", "cpus"],
            type=click.IntRange(1, 1024),
            metavar="N",
            help="With --ray: cores of a worker, which evaluates on all but one of them.  [default: it evaluates on "
            "any that is free in the cluster, if --workers does not say otherwise]",
        ),
    )

    def __init__(self, address: str = "auto", gpus: float | None = None, cpus: int | None = None) -> None:
        self.address, self.gpus, self.cpus = address, gpus, cpus

    @classmethod
    def chosen(cls, given: Mapping[str, Any]) -> Launcher | None:
        """As of :class:`harness.launchers.Submitter`."""
        return cls(given["address"], given["gpus"], given["cpus"]) if given["ray"] else None

    def require(self) -> None:
        """Ask whether a cluster answers.

        Raises:
            UserError: Ray is not installed, or none does.
        """
        with _connected(self.address):
            pass

    def launch(self, work: Workload) -> Launched:
        """Start an actor that has the workers; as of :class:`harness.launchers.Launcher`."""
        with _connected(self.address) as ray:
            gpus_there = float(ray.cluster_resources().get("GPU", 0))
            gpus = (1.0 if gpus_there else 0.0) if self.gpus is None else self.gpus
            if gpus > gpus_there:
                raise UserError(f"the cluster at {self.address} has no GPU")
            nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            count = work.workers or (int(gpus_there) * int(1 / gpus) if gpus else len(nodes))
            if not count:
                raise UserError(f"the cluster at {self.address} has no node with a CPU")
            options = work.options
            if gpus:
                options = replace(options, memory_fraction=options.memory_fraction * gpus)
            if self.cpus is not None and options.workers is None:
                options = replace(options, workers=self.cpus - 1)
            tasks = options.workers is None and not options.no_evaluation
            cpus = self.cpus or (0 if tasks else 1)
            # A task that takes nothing might go to a head node that is to have none.
            places = [None if gpus or cpus else nodes[index % len(nodes)]["NodeID"] for index in range(count)]
            name = secrets.token_hex(4)
            actor = ray.remote(_Manager).options(
                name=name, namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_restarts=-1, max_task_retries=-1
            )
            words = replace(work, options=options).words
            handle = actor.remote(name, words, tasks, places, {"num_gpus": gpus, "num_cpus": cpus})
            ray.get(handle.states.remote())
            jobs = tuple(f"{name}-{index}" for index in range(count))
            return Launched("ray", work.suite, jobs, {"address": _found(ray)}, name=name)

    @staticmethod
    def states(launched: Launched) -> dict[str, str]:
        """How its tasks are; as of :class:`harness.launchers.Launcher`."""
        with _connected(launched.about["address"]) as ray:
            manager = _manager(ray, launched)
            try:
                found: dict[str, str] = {} if manager is None else ray.get(manager.states.remote())
            except ray.exceptions.RayActorError:  # they ended just now
                return {}
            return found

    @staticmethod
    def cancel(launched: Launched) -> None:
        """End its tasks, which Ray interrupts as the keyboard does; as of :class:`harness.launchers.Launcher`."""
        with _connected(launched.about["address"]) as ray:
            manager = _manager(ray, launched)
            if manager is not None:
                with suppress(ray.exceptions.RayActorError):  # which ends with the last of them
                    ray.get(manager.cancel.remote())


class _Manager:
    """The tasks' owner, somewhere in the cluster."""

    def __init__(
        self, name: str, words: list[str], tasks: bool, places: Sequence[str | None], resources: dict[str, float]
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.name = name
        how = {"max_retries": -1, "retry_exceptions": False, **resources}
        strategies = [NodeAffinitySchedulingStrategy(node, soft=True) if node else "DEFAULT" for node in places]
        self.tasks = [
            ray.remote(_work).options(scheduling_strategy=one, **how).remote(words, tasks) for one in strategies
        ]
        threading.Thread(target=self._end, args=(ray.get_runtime_context().current_actor,), daemon=True).start()

    def _end(self, me: Any) -> None:
        """End with the last of them."""
        import ray

        ray.wait(self.tasks, num_returns=len(self.tasks))
        ray.kill(me)

    def states(self) -> dict[str, str]:
        """Those that have not ended."""
        import ray

        _, open_ = ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0)
        return {f"{self.name}-{self.tasks.index(task)}": "UNFINISHED" for task in open_}

    def cancel(self) -> None:
        """Interrupt them."""
        import ray

        _, open_ = ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0)
        for task in open_:
            ray.cancel(task, force=False, recursive=False)  # its own tasks are its own to end


def _work(words: list[str], tasks: bool) -> int:
    """A worker, in a process of Ray's; whether its roll-outs are tasks."""
    from harness.cli import main
    from harness.ray_pool import RayPool

    try:
        main(words, prog_name="lspc-bench", obj=RayPool() if tasks else None)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, for the length of a block.

    Raises:
        UserError: it is not installed, or nobody answers at the address.
    """
    ray = require_extra("ray", "ray")
    _require_answer(address)
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of many kinds
        line = str(error).strip().splitlines()[0]
        raise UserError(f"no Ray cluster at {address}: {line}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address at which nobody listens, which Ray would try for half a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}") from error


def _found(ray: Any) -> str:
    """Where the cluster is, for a later command on whatever machine."""
    return str(ray.get_runtime_context().gcs_address)


def _manager(ray: Any, launched: Launched) -> Any:
    """The actor; ``None`` where it is no more."""
    try:
        return ray.get_actor(launched.name, namespace=NAMESPACE)
    except ValueError:
        return None
