"""What every algorithm owes the engine, as checks that anyone can run: ``lspc-bench algorithms NAME --check``.

They train a few steps on the small data that ships with this project, with batches of 16; no simulator is needed. The
training that an algorithm is told of is as short, so that one with a warm-up is seen behind it, too.
"""

from __future__ import annotations

import io
import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness import registry
from harness.algorithm import Algorithm, Batch, Policy, Replica
from harness.data.dataset import Dataset, load_dataset
from harness.data.draws import Draws, prepare
from harness.diagnostics import DiagnosticError, Diagnostics
from harness.engine import WARM_UP, optimizers
from harness.errors import UserError
from harness.guard import UserCodeError, guard
from harness.tasks import all_tasks, find_task
from harness.training import require_readable

STEPS, EPISODES, LIMIT, HELD_OUT = 3, 4, 20.0, 0.1


class BrokenPromiseError(Exception):
    """An algorithm does not do what the interface asks; says what."""


class NoSynchronisation(TorchDispatchMode):
    """Refuses, inside the block, every operation that hands a tensor's values to the host, or a list's to a tensor.

    Args:
        spared: optimisers whose counts of their steps, and what else they keep as one number, may be read. torch's own
            do so on a CPU; on a GPU these stay on the host, or the engine moves them to the device.
    """

    FORBIDDEN: ClassVar[Mapping[str, str]] = {
        "aten::_local_scalar_dense": "item(), float(), or a branch on a value",
        "aten::equal": "torch.equal()",
        "aten::is_nonzero": "a branch on a value",
        "aten::lift_fresh": "torch.tensor(); make it once, in __init__",
        "aten::masked_select": "a choice by a mask; use torch.where()",
        "aten::nonzero": "a choice by a mask; use torch.where()",
        "aten::unique_consecutive": "the values decide the shape",
        "aten::_unique2": "the values decide the shape",
    }

    def __init__(self, spared: Sequence[torch.optim.Optimizer] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        kept = [value for optimizer in spared for state in optimizer.state.values() for value in state.values()]
        self._counts = [value for value in kept if isinstance(value, Tensor) and value.ndim == 0]

    def __enter__(self) -> NoSynchronisation:
        self._methods = _NoReading()
        self._methods.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._methods.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, unless it is one of those."""
        name = func.name()
        masked = name in ("aten::index.Tensor", "aten::index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        why = self.FORBIDDEN["aten::nonzero"] if masked else self.FORBIDDEN.get(name.partition(".")[0])
        if why and not (name == "aten::_local_scalar_dense" and any(args[0] is count for count in self._counts)):
            raise BrokenPromiseError(f"update synchronises with the host: {name} ({why}){_where()}")
        return func(*args, **(kwargs or {}))


class _NoReading(TorchFunctionMode):
    """Refuses the methods that, on a CPU, read a tensor's memory without an operation."""

    FORBIDDEN = frozenset({Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__})

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self.FORBIDDEN:
            raise BrokenPromiseError(f"update synchronises with the host: {func.__name__}(){_where()}")
        return func(*args, **(kwargs or {}))


def _where() -> str:
    """The innermost line outside torch and this file, where there is one."""
    ours = (__file__, str(Path(torch.__file__).parent))
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(ours):
            return f", in line {frame.lineno} of {frame.filename}"
    return ""


@dataclass
class Run:
    """An algorithm in training on a dataset, as the engine has it."""

    algorithm: Algorithm[Any]
    draws: Draws

    def update(self, step: int) -> dict[str, Tensor]:
        """The metrics of one step."""
        return self.update_on(step, *self.draws.at(step))

    def update_on(self, step: int, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """The same on another batch."""
        self.algorithm.step = step
        return self.algorithm.update(batch, noise)


class Contract:
    """The checks for one algorithm.

    Args:
        name: as registered.
        settings: hyperparameters that replace the defaults, for instance smaller networks.
    """

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        self.kind = registry.load(name)
        self.task = find_task("BallRun")
        self.dataset: Dataset = load_dataset(self.task, "demo")
        self.settings = {"batch_size": 16, **self.kind.published(self.task), **(settings or {})}
        self.config = self.kind.Hyperparameters.model_validate(self.settings)

    def run(self, *seeds: int, steps: int = STEPS, dtype: torch.dtype = torch.float32) -> Run:
        """Train agents of these seeds side by side, with a cost limit of 10 more for each seed above 0.

        Args:
            seeds: of the agents.
            steps: how long the training is to be; its phases follow from that.
            dtype: of parameters and data.
        """
        config = self.config.model_copy(update={"steps": steps})
        replicas = self.replicas(*seeds)
        selections = [self.kind.select(self.dataset, config, replica) for replica in replicas]
        replicas, draws = prepare(self.kind, config, self.dataset, replicas, selections, dtype=dtype)
        return Run(self.kind(config, self.task, replicas, "cpu", dtype), draws)

    def replicas(self, *seeds: int) -> list[Replica]:
        """The agents of these seeds."""
        depends = self.kind.depends_on_cost_limit(self.config)
        return [Replica(seed, LIMIT + 10 * seed if depends else None, "contract") for seed in seeds]

    @property
    def group(self) -> tuple[int, ...]:
        """Seeds of as many agents as may train side by side, up to two."""
        return (0,) if self.kind.max_replicas == 1 else (0, 1)

    def checks(self) -> dict[str, Callable[[], None]]:
        """Every check under what it says; each raises :class:`BrokenPromiseError`."""
        checks = {
            "hyperparameters: every task's published settings are valid, unknown names refused": self.settings_hold,
            "metrics: one finite number a replica, the same names every step": self.metrics_hold,
            "policies: named as announced, actions of the right shape": self.policies_hold,
            "policies: batched equal one by one": self.batches_agree,
            "policies: the same after being sent to a worker": self.policies_travel,
            "state: what is resumed goes on bit for bit": self.state_continues,
            "seeds: the same twice is equal, another is not": self.seeds_decide,
            "diagnostics: one finite number a replica, and nothing changes": self.diagnostics_hold,
        }
        if not self.kind.synchronises:
            checks["update: nothing is handed to the host"] = self.nothing_synchronises
        if len(self.group) > 1:
            checks["replicas: each is what it is alone"] = self.alone_is_grouped
            checks["replicas: one that diverges leaves the others alone"] = self.divergence_is_contained
            checks["replicas: each has the diagnostics that it has alone"] = self.alone_is_diagnosed_as_grouped
        return checks

    def settings_hold(self) -> None:
        """Defaults and published settings, for all 38 tasks; a round trip through JSON; a name that does not exist."""
        model = self.kind.Hyperparameters
        for task in all_tasks().values():
            try:
                config = model.model_validate(self.kind.published(task))
            except ValidationError as error:
                raise BrokenPromiseError(f"the published settings of {task.name} are refused: {error}") from error
            require(model.model_validate(config.model_dump(mode="json")) == config, "settings change when stored")
        try:
            model.model_validate({"no_such_setting": 1})
        except ValidationError:
            return
        raise BrokenPromiseError("an unknown hyperparameter is accepted")

    def metrics_hold(self) -> None:
        """Shapes, values and names of what update returns."""
        run, names = self.run(*self.group), None
        for step in range(STEPS):
            metrics = run.update(step)
            require(names in (None, set(metrics)), f"the metrics change: {names} and {set(metrics)}")
            names = set(metrics)
            for name, value in metrics.items():
                require(value.shape == (len(self.group),), f"the metric {name} has shape {tuple(value.shape)}")
                require(bool(value.isfinite().all()), f"the metric {name} is {value.tolist()}")
                require(not value.requires_grad, f"the metric {name} is not detached")

    def policies_hold(self) -> None:
        """Names, shapes and values."""
        policies = self._trained()
        announced = self.kind.policy_names(self.config)
        require(set(policies) == set(announced), f"policies {sorted(policies)}, announced {sorted(announced)}")
        for name, policy in policies.items():
            for actions in self._roll(policy, range(EPISODES)):
                require(actions.shape == (EPISODES, self.task.action_size), f"{name} acts in {tuple(actions.shape)}")
                require(bool(actions.isfinite().all()), f"{name} acts in {actions}")

    def batches_agree(self) -> None:
        """The same episodes together and one by one."""
        for name, policy in self._trained().items():
            together = self._roll(policy, range(EPISODES))
            alone = [self._roll(policy, [episode]) for episode in range(EPISODES)]
            for step, actions in enumerate(together):
                one_by_one = torch.cat([steps[step] for steps in alone])
                difference = float((actions - one_by_one).abs().max())
                require(difference < 1e-5, f"{name} acts otherwise alone, by {difference:g} at step {step}")

    def policies_travel(self) -> None:
        """The same actions after pickling, in the middle of an episode too."""
        for name, policy in self._trained().items():
            before = self._roll(policy, range(EPISODES))
            after = self._roll(pickle.loads(pickle.dumps(policy)), range(EPISODES))  # noqa: S301 - made here
            require(all(map(torch.equal, before, after)), f"{name} acts otherwise after pickling")

    def state_continues(self) -> None:
        """Stop after some steps, store, load into a new instance, and go on."""
        whole, first, second = (self.run(*self.group, steps=2 * STEPS) for _ in range(3))
        expected = [whole.update(step) for step in range(2 * STEPS)]
        for step in range(STEPS):
            first.update(step)
        file = io.BytesIO()
        state = first.algorithm.state_dict()
        require_readable(state)
        torch.save(state, file)
        file.seek(0)
        second.algorithm.load_state_dict(torch.load(file, weights_only=True))
        for step in range(2 * STEPS):
            if step < STEPS:
                second.draws.at(step)
                continue
            for name, value in second.update(step).items():
                require(torch.equal(value, expected[step][name]), f"{name} differs at step {step} after resuming")
        ours, theirs = (flat(run.algorithm.state_dict()) for run in (whole, second))
        require(all(map(torch.equal, ours, theirs)), "the state differs after resuming")

    def seeds_decide(self) -> None:
        """Metrics of two runs with one seed, and with two."""
        one, same, other = (self._metrics(seed) for seed in (0, 0, 1))
        require(one == same, "two runs with the same seed differ")
        require(one != other, "runs with different seeds are the same")

    def nothing_synchronises(self) -> None:
        """Updates under a dispatch mode that sees every operation, of every variant behind its warm-up."""
        steps = 5 * WARM_UP
        run, seen = self.run(*self.group, steps=steps), Counter[Hashable]()
        for step in range(steps):
            variant, drawn = run.algorithm.variant(step), run.draws.at(step)
            seen[variant] += 1
            if seen[variant] <= WARM_UP:
                run.update_on(step, *drawn)
                continue
            with NoSynchronisation(optimizers(run.algorithm)):
                run.update_on(step, *drawn)

    def alone_is_grouped(self) -> None:
        """Metrics of two agents side by side and one by one, in float64."""
        grouped = self.run(0, 1, dtype=torch.float64)
        alone = [self.run(seed, dtype=torch.float64) for seed in (0, 1)]
        for step in range(STEPS):
            together = grouped.update(step)
            for replica, run in enumerate(alone):
                for name, value in run.update(step).items():
                    difference = float((value[0] - together[name][replica]).abs())
                    require(difference < 1e-9, f"{name} of replica {replica} differs by {difference:g} at step {step}")

    def divergence_is_contained(self) -> None:
        """One agent's batches are not finite; the other's metrics stay as they are."""
        healthy, sick = self.run(0, 1), self.run(0, 1)
        for step in range(STEPS):
            expected = healthy.update(step)
            batch, noise = sick.draws.at(step)
            for column in batch.values():
                if column.is_floating_point():
                    column[0] = torch.nan
            for name, value in sick.update_on(step, batch, noise).items():
                require(torch.equal(value[1], expected[name][1]), f"{name} of the healthy replica changes")

    def diagnostics_hold(self) -> None:
        """Shapes, values and state, twice in a row, and the training that follows."""
        run, undisturbed = self.run(*self.group), self.run(*self.group)
        diagnostics = self._diagnostics(run, *self.group)
        run.update(0)
        undisturbed.update(0)
        before = [tensor.clone() for tensor in flat(run.algorithm.state_dict())]
        held_out = {name: values.clone() for name, values in diagnostics.batch.items()}
        try:
            metrics, again = diagnostics.of_agents(), diagnostics.of_agents()
        except DiagnosticError as error:
            raise BrokenPromiseError(str(error)) from error
        for name, value in metrics.items():
            require(bool(value.isfinite().all()), f"the diagnostic {name} is {value.tolist()}")
            require(torch.equal(value, again[name]), f"the diagnostic {name} is another the second time")
        announced = self.kind.policy_names(self.config)
        strangers = {policy for policy, slash, _ in (name.rpartition("/") for name in metrics) if slash} - {*announced}
        require(not strangers, f"diagnostics of the policies {sorted(strangers)}, announced {sorted(announced)}")
        require(all(map(torch.equal, before, flat(run.algorithm.state_dict()))), "diagnose changes the state")
        kept = all(torch.equal(values, held_out[name]) for name, values in diagnostics.batch.items())
        require(kept, "diagnose changes its batch")
        expected = undisturbed.update(1)
        for name, value in run.update(1).items():
            require(torch.equal(value, expected[name]), f"{name} is another after diagnose")

    def alone_is_diagnosed_as_grouped(self) -> None:
        """Diagnostics of two agents side by side and one by one, in float64."""
        grouped = self._diagnostics(self.run(0, 1, dtype=torch.float64), 0, 1, dtype=torch.float64).of_agents()
        for replica in (0, 1):
            run = self.run(replica, dtype=torch.float64)
            for name, value in self._diagnostics(run, replica, dtype=torch.float64).of_agents().items():
                difference = float((value[0] - grouped[name][replica]).abs())
                require(difference < 1e-9, f"the diagnostic {name} of replica {replica} differs by {difference:g}")

    def _diagnostics(self, run: Run, *seeds: int, dtype: torch.dtype = torch.float32) -> Diagnostics:
        _, held_out = self.dataset.split(HELD_OUT, 0)
        return Diagnostics(run.algorithm, self.config, held_out, self.replicas(*seeds), "cpu", dtype)

    def _trained(self) -> dict[str, Policy]:
        run = self.run(self.group[-1])
        for step in range(STEPS):
            run.update(step)
        return run.algorithm.policies(0)

    def _roll(self, policy: Policy, episodes: Sequence[int]) -> list[Tensor]:
        """Actions in a few steps of made-up episodes, longer than a short context; each depends on its number alone."""
        told = LIMIT if self.kind.acts_on_cost_limit(self.config) else None
        worlds = [torch.Generator().manual_seed(episode) for episode in episodes]
        actions = []
        policy.eval()
        with torch.inference_mode():
            policy.reset(list(episodes), told)
            for _ in range(12):
                seen = torch.stack([torch.randn(self.task.observation_size, generator=world) for world in worlds])
                actions.append(policy.act(seen).clone())
                rewards, costs = torch.stack([torch.rand(2, generator=world) for world in worlds], 1)
                policy.observe(rewards, costs)
        return actions

    def _metrics(self, seed: int) -> list[dict[str, float]]:
        run = self.run(seed)
        return [{name: float(value) for name, value in run.update(step).items()} for step in range(STEPS)]


def require(holds: bool, message: str) -> None:
    """Raise unless it holds."""
    if not holds:
        raise BrokenPromiseError(message)


def flat(state: Any) -> list[Tensor]:
    """Every tensor in a state, in order."""
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for item in items for tensor in flat(item)]


def check(name: str, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Run every check.

    Args:
        name: of a registered algorithm.
        settings: hyperparameters that replace the defaults.

    Returns:
        What was found wrong, or nothing, under what each check says.

    Raises:
        UserError: there is no such algorithm, a package that it needs is missing, or the settings are refused.
        UserCodeError: its hyperparameters or published settings raise something else.
    """
    registry.require_packages(name)
    with guard(registry.named(name), "Hyperparameters"):
        try:
            contract = Contract(name, settings)
        except ValidationError as error:
            raise UserError(f"{name} refuses these settings: {error}") from error
    results = {}
    for title, run in contract.checks().items():
        results[title] = ""
        try:
            with guard("", ""):
                try:
                    run()
                except BrokenPromiseError as error:
                    results[title] = str(error)
        except (UserError, UserCodeError) as error:  # a plugin's own mistakes are what this is to find
            results[title] = str(error)
    return results
