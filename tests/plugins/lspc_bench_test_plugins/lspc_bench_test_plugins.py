"""A linear behaviour clone, and the ways in which one replica of it may go wrong; an environment, and wrong ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import h5py
import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica
from harness.tasks import Task

MARKER = "LSPC_BENCH_TEST_MARKER"
"""The environment variable that names a file; a policy is deadly while the file is there."""


class ToyHyperparameters(Hyperparameters):
    steps: int = Field(20, ge=1, description="gradient steps of one training run")
    batch_size: int = Field(8, ge=1, description="transitions a step draws from the dataset")
    learning_rate: float = Field(0.01, gt=0, description="of plain gradient descent")
    failure: Literal["none", "nan", "update", "policy", "kill"] = Field("none", description="what goes wrong")
    failing_seed: int = Field(1, description="whose replica it goes wrong for")
    failing_step: int = Field(5, description="after how many steps it goes wrong, where that is in training")


class Linear(Policy):
    """The same action for the same observation."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights, requires_grad=False)

    def act(self, observations: Tensor) -> Tensor:
        return torch.tanh(observations @ self.weights)


class Noisy(Linear):
    """With noise on every action."""

    def act(self, observations: Tensor) -> Tensor:
        return torch.tanh(observations @ self.weights + self.noise(self.weights.shape[-1]))


class Raising(Linear):
    """Its own mistake."""

    def act(self, observations: Tensor) -> Tensor:
        raise ArithmeticError("the toy policy gives up")


class Deadly(Linear):
    """Ends its process while the marker file is there."""

    def act(self, observations: Tensor) -> Tensor:
        if Path(os.environ[MARKER]).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().act(observations)


class Toy(Algorithm[ToyHyperparameters]):
    Hyperparameters = ToyHyperparameters
    summary = "a linear clone, for tests"

    @classmethod
    def policy_names(cls, config: ToyHyperparameters) -> tuple[str, ...]:
        return ("toy",)

    @classmethod
    def columns(cls, config: ToyHyperparameters) -> tuple[str, ...]:
        return ("observations", "actions")

    def __init__(
        self,
        config: ToyHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        shape = (task.observation_size, task.action_size)
        weights = [0.1 * torch.randn(shape, generator=replica.generator("weights")) for replica in replicas]
        self.weights = torch.stack(weights).to(device, dtype).requires_grad_()
        self.fails = torch.tensor([replica.seed == config.failing_seed for replica in replicas], device=device)
        self.updates = 0

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        self.updates += 1
        wrong = self.updates > self.config.failing_step
        if wrong and self.config.failure == "update" and self.fails.any():
            raise ArithmeticError("the toy algorithm gives up")
        loss = (torch.tanh(batch["observations"] @ self.weights) - batch["actions"]).square().mean((1, 2))
        if wrong and self.config.failure == "nan":
            loss = torch.where(self.fails, torch.nan, loss)
        (gradient,) = torch.autograd.grad(loss.sum(), self.weights)
        with torch.no_grad():
            self.weights -= self.config.learning_rate * gradient
        return {"loss": loss.detach()}

    def policies(self, replica: int) -> dict[str, Policy]:
        kinds: dict[str, type[Linear]] = {"policy": Raising, "kill": Deadly}
        kind = kinds.get(self.config.failure, Noisy) if self.fails[replica] else Noisy
        return {"toy": kind(self.weights[replica].detach().cpu().clone())}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights.detach(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.weights.copy_(state["weights"])
        self.updates = state["updates"]


class ToySingle(Toy):
    max_replicas = 1


class ToyNeedy(Toy):
    requires = ("lspc_bench_no_such_package", "json")


class ToySynchronising(Toy):
    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        metrics = super().update(batch, noise)
        self.last_loss = float(metrics["loss"].sum())
        return metrics


class ToyStateless(Toy):
    state_dict = Algorithm.state_dict


class Unfinished(Toy):
    columns = Algorithm.columns


class Reach(gymnasium.Env[Any, Any]):
    """Go to the origin of a plane; beyond x = 0.5 each step costs 1."""

    def __init__(self, size: int = 2, reach: float = 1.0, values: int = 5) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-reach, reach, (2,), np.float32)
        self.values = values

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2) + np.random.uniform(-0.1, 0.1, 2)
        return self.position.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.position = self.position + 0.1 * np.asarray(action)
        cost = float(self.position[0] > 0.5)
        result = (self.position.astype(np.float32), -float(np.linalg.norm(self.position)))
        if self.values == 6:
            return (*result, cost, False, False, {})
        return (*result, False, False, {"cost": cost} if self.values == 5 else {})


for name, settings in {
    "Reach": {},
    "Six": {"values": 6},
    "Free": {"values": 4},
    "Wide": {"reach": 2.0},
    "Long": {"size": 3},
}.items():
    if f"{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"{name}-v0", "lspc_bench_test_plugins:Reach", kwargs=settings)


def write_reach(path: Path, episodes: int = 30, length: int = 20) -> None:
    """A dataset of Reach: straight to the origin, with noise."""
    environment, generator = Reach(), np.random.default_rng(0)
    rows = []
    for seed in range(episodes):
        np.random.seed(seed)  # the environment draws from it, too
        observation, _ = environment.reset(seed=seed)
        for step in range(length):
            action = np.clip(-observation * 5 + generator.normal(0, 0.3, 2), -1, 1)
            following, reward, _, _, info = environment.step(action)
            rows.append((observation, following, action, reward, info["cost"], False, step == length - 1))
            observation = following
    keys = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
    with h5py.File(path, "w") as file:
        for key, values in zip(keys, zip(*rows, strict=True), strict=True):
            file[key] = np.array(values, dtype=bool if key in keys[-2:] else np.float32)
