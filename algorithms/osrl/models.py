"""OSRL's models and its ``SequenceDataset``, made to run silently, from random numbers of their own, and to be sent."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithms.cdt import CDTHyperparameters, CDTPolicy
from harness.algorithm import Policy
from harness.data.dataset import KEYS, Dataset


def sequence_dataset(dataset: Dataset, config: CDTHyperparameters, seed: int) -> Any:
    """OSRL's ``SequenceDataset`` of our data and settings; it draws from global generators, which stay as they are."""
    from osrl.common.dataset import SequenceDataset

    states = np.random.get_state(), random.getstate()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    c = config
    transform = {"linear": lambda cost: 70 - cost, "inverse": lambda cost: 1 / (cost + 10), "none": None}
    try:
        with silence():
            return SequenceDataset(
                {key: dataset.arrays[key] for key in KEYS},
                seq_len=c.sequence_length,
                reward_scale=c.reward_scale,
                cost_scale=c.cost_scale,
                deg=c.augment_degree,
                max_rew_decrease=c.augment_max_decrease,
                beta=c.augment_beta,
                augment_percent=c.augment_share,
                max_reward=c.augment_max_reward,
                min_reward=c.augment_min_reward,
                cost_sample=c.cost_sampling != "none",
                cost_transform=transform[c.cost_sampling],
            )
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep OSRL's prints, progress bars and the output of OApackage's C code from the user."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device, not a file
        saved = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)


def member(name: str) -> Any:
    """What ``osrl.algorithms`` has by this name."""
    import osrl.algorithms

    return getattr(osrl.algorithms, name)


def build(name: str, arguments: Mapping[str, Any], device: torch.device | str = "cpu") -> Any:
    """One of OSRL's models. All but CDT want to know the device."""
    known = {} if name == "CDT" else {"device": str(device)}
    return member(name)(**arguments, **known).to(device)


OUR_NAMES = {
    "D_kl": "kl",
    "Df": "divergence",
    "act_loss": "actor_loss",
    "all_loss": "loss",
    "alpha_value": "alpha",
    "cost_acc": "cost_accuracy",
    "ent": "entropy",
    "ent_reg": "temperature",
    "lagrangian": "multiplier",
    "lmbda": "multiplier",
    "lmbda_loss": "lambda_loss",
    "loss_vae": "vae_loss",
    "mmd_loss": "mmd",
    "qc_penalty": "cost_penalty",
    "train_lr": "learning_rate",
}
"""Our names of what OSRL logs, where they differ."""


class Recorder:
    """Stands in for OSRL's logger, and hands on what a step logs, under our names."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def store(self, tab: str | None = None, **values: float) -> None:
        """Note values by name."""
        for name, value in values.items():
            plain = name.removeprefix("loss/")
            self._values[OUR_NAMES.get(plain, plain)] = float(value)

    def take(self) -> dict[str, float]:
        """What was noted since the last time."""
        values, self._values = self._values, {}
        return values


class GlobalRandomness:
    """States of torch's global generators that take their place inside a block, and move on there."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self._cuda = [device] if device.type == "cuda" else []
        self.states = [
            torch.Generator(device=kind).manual_seed(seed).get_state() for kind in (torch.device("cpu"), *self._cuda)
        ]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Draw from these states, and leave the global ones as they were."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self._cuda, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self.states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda)]


class Portable(nn.Module):
    """One of OSRL's models, made to be sent and copied: they hold lambdas, which cannot be pickled."""

    def __init__(self, name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.name, self.arguments = name, arguments
        self.model = build(name, arguments)
        self.model.load_state_dict(state)
        self.model.requires_grad_(False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Portable, (self.name, self.arguments, self.model.state_dict())


class OSRLPolicy(Policy):
    """OSRL's own ``act``, one environment at a time, each with its own random numbers."""

    def __init__(self, network: Portable, deterministic: bool, sees_limit: bool = False) -> None:
        super().__init__()
        self.network, self.deterministic, self.sees_limit = network, deterministic, sees_limit

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        """Begin n episodes."""
        super().reset(seeds, cost_limit)
        self.limit = [] if cost_limit is None or not self.sees_limit else [cost_limit]
        self.streams = [GlobalRandomness(seed) for seed in seeds]

    def act(self, observations: Tensor) -> Tensor:
        """Actions (n, action_size)."""
        arguments = (True, True) if self.deterministic else ()
        actions = []
        for observation, stream in zip(observations.numpy(), self.streams, strict=True):
            with stream.active():
                acted = self.network.model.act(np.append(observation, self.limit), *arguments)
            actions.append(acted[0] if isinstance(acted, tuple) else acted)
        return torch.from_numpy(np.stack(actions))


class OSRLCDTPolicy(CDTPolicy):
    """OSRL's network told what our context holds."""

    def predict(self, time_steps: Tensor) -> Tensor:
        """Mean actions (n, action_size) after the context."""
        rewards_to_go, costs_to_go, observations, actions = self.context
        assert isinstance(self.network, Portable)
        predicted = self.network.model(observations, actions, rewards_to_go, costs_to_go, time_steps)[0]
        means: Tensor = predicted.mean[:, -1]
        return means
