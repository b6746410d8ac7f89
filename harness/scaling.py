"""What an update and an action cost as observations grow: algorithms at their published sizes, on made-up data.

No simulator is needed. One agent trains on the CPU, in one thread; what counts is the thread's own time, so that what
else runs on the machine matters little. The data of a size is random, with as many actions as AntRun has (8). An action
is one of one environment, with all that a policy does between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from harness import registry
from harness.algorithm import Algorithm, Policy, Replica
from harness.config import parse_settings
from harness.data.dataset import Dataset
from harness.data.draws import prepare
from harness.engine import make_engine
from harness.forecast import made_up, one_thread, this_machine
from harness.memory import keep_freed_memory
from harness.tasks import find_task

TASK = find_task("AntRun")
COLUMNS = ("machine", "method", "observation_size", "batch_size", "metric", "median", "low", "high")
WARM_UP = 3
"""Updates, and actions, before the first that is timed."""


class Scaling(BaseModel):
    """What is measured, and how often."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [16, 64, 256, 1024, 4096]
    algorithms: list[str] = []
    """All that ship and can be stacked, if empty."""
    batch_size: int = Field(32, ge=1)
    rounds: int = Field(7, ge=1)
    """Of which the median counts; low and high are the quartiles."""
    updates: int = Field(5, ge=1)
    """In a round."""
    actions: int = Field(20, ge=1)
    """In a round."""


def measure(overrides: Sequence[str] = ()) -> pd.DataFrame:
    """Time every algorithm at every size of observations.

    Args:
        overrides: fields of :class:`Scaling` as ``KEY=VALUE``.

    Returns:
        Columns machine, method (the algorithm, for acting its policy), observation_size, batch_size, metric (update_ms,
        act_ms), median, low and high over rounds.

    Raises:
        UserError: a setting or an algorithm is wrong.
    """
    asked = parse_settings(Scaling, overrides, "--set", "setting")
    names = asked.algorithms or [
        name
        for name, plugin in registry.plugins().items()
        if plugin.origin == "built-in" and registry.load(name).max_replicas is None
    ]
    kinds = {name: registry.load(name) for name in names}
    keep_freed_memory()
    machine = this_machine("cpu")
    assert machine is not None, "a CPU is always there"
    lines: list[dict[str, Any]] = []
    with one_thread():
        for size in asked.sizes:
            data = made_up(replace(TASK, observation_size=size))
            for name, kind in kinds.items():
                point = {"machine": machine.describe(), "observation_size": size, "batch_size": asked.batch_size}
                update, policies = _agent(kind, data, asked.batch_size)
                timed = _timed(update, asked.updates, asked.rounds)
                lines.append({**point, "method": name, "metric": "update_ms", **timed})
                for policy_name, policy in policies().items():
                    timed = _timed(_actor(policy, data), asked.actions, asked.rounds)
                    lines.append({**point, "method": policy_name, "metric": "act_ms", **timed})
    return pd.DataFrame(lines)[list(COLUMNS)]


def _agent(
    kind: type[Algorithm[Any]], data: Dataset, batch_size: int
) -> tuple[Callable[[int], None], Callable[[], dict[str, Policy]]]:
    """What trains one agent for so many updates, and what gives its policies."""
    config = kind.Hyperparameters.model_validate({**kind.published(TASK), "batch_size": batch_size})
    limit = TASK.middle_limit if kind.depends_on_cost_limit(config) else None
    replica = Replica(0, limit)
    replicas, draws = prepare(kind, config, data, [replica], [kind.select(data, config, replica)])
    algorithm = kind(config, data.task, replicas)
    engine = make_engine("eager", algorithm, draws, lambda text: None)
    engine.run(WARM_UP)
    return engine.run, lambda: algorithm.policies(0)


def _actor(policy: Policy, data: Dataset) -> Callable[[int], None]:
    """What acts so many times in one episode."""
    observations = torch.from_numpy(data.arrays["observations"])

    def act(count: int) -> None:
        with torch.inference_mode():
            policy.reset([0], TASK.middle_limit)
            for step in range(count):
                policy.act(observations[step % len(observations)].unsqueeze(0))
                policy.observe(torch.zeros(1), torch.zeros(1))

    policy.eval()
    act(WARM_UP)
    return act


def _timed(run: Callable[[int], None], count: int, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time for one of the ``count`` that a round makes: median and quartiles over rounds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run(count)
        times.append((time.process_time() - start) / count * 1e3)
    low, median, high = np.percentile(times, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}
