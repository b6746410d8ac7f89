"""FISOR: feasibility-guided safe offline reinforcement learning (Zheng et al., ICLR 2024, arXiv 2401.10700).

Safety is a hard constraint: learn which states are feasible, that is, from where the data's actions can stay without
any cost, as the value of the worst signal ahead (Hamilton-Jacobi reachability). Then clone the data's actions with a
diffusion model: weighed by their reward's advantage where a state and an action are feasible, by how far they bring
back where the state is not. The cost limit plays no part, neither in training nor in acting.

Written from a description of the authors' code (ZhengYinan-AIR/FISOR at 2097e8b). Deviations are numbered in
docs/algorithms/fisor.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from algorithms.parts import diagnostics
from algorithms.parts.critics import least, mean_critic_loss, most, repeated
from algorithms.parts.diffusion import Denoiser, DenoiserHyperparameters, Diffusion
from algorithms.parts.dropout import DropoutStreams
from algorithms.parts.losses import expectile_loss, per_replica_mean
from algorithms.parts.methods import (
    TransitionHyperparameters,
    TransitionMethod,
    affordable,
    detached,
    going_on,
    named,
)
from algorithms.parts.networks import Builder, frozen, glorot_uniform, single
from algorithms.parts.optimisers import adam, minimise, polyak_update
from algorithms.parts.schedules import Schedule
from harness.algorithm import Batch, Policy, Replica
from harness.bounds import BatchSize, Count, HiddenSizes, Steps
from harness.tasks import Task

SIGNALS = ("reward", "feasibility")
"""What is valued: the return of the rewards, and the worst constraint signal ahead (feasible where it is at most 0)."""

CHUNK = 512
"""Observations on which the policy acts at once: far more than environments side by side, and its samples fit."""


class FISORHyperparameters(DenoiserHyperparameters, TransitionHyperparameters):
    """Defaults are the authors'."""

    steps: Steps = Field(1_000_000, description="gradient steps of one training run")
    batch_size: BatchSize = Field(2048, description="transitions a step draws from the dataset")
    actor_updates: int = Field(
        2, ge=1, le=8, description="updates of the diffusion model a step, each on a part of its own of the batch"
    )
    critic_share: float = Field(
        0.125,
        gt=0,
        le=1,
        description="share of a batch, its first rows, that critics and values see: 256 of 2048, as in the authors' "
        "code; 1: all",
    )
    critic_hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of every critic and value")
    critics: Count = Field(2, description="critics in each ensemble")
    actor_lr: float = Field(3e-4, gt=0, description="Adam's learning rate for the diffusion model at the start")
    actor_cosine_updates: int | None = Field(
        3_000_000,
        ge=1,
        le=10**9,
        description="updates of the diffusion model over which its learning rate falls to 0 by a cosine, whatever "
        "steps is; null: constant",
    )
    critic_lr: float = Field(3e-4, gt=0, description="Adam's learning rate for critics and values")
    gamma: float = Field(0.99, ge=0, lt=1, description="discount of rewards and of the constraint signal")
    polyak: float = Field(0.005, gt=0, le=1, description="rate at which the target critics follow")
    ema: float = Field(0.001, gt=0, le=1, description="rate at which the diffusion model that acts follows")
    expectile_r: float = Field(0.9, gt=0, lt=1, description="expectile of the reward value")
    expectile_h: float = Field(
        0.9, gt=0, lt=1, description="expectile of the feasibility value, from above: it leans to the least signal"
    )
    beta_r: float = Field(3.0, ge=0, description="inverse temperature of the reward advantage's weight")
    beta_h: float = Field(5.0, ge=0, description="inverse temperature of the feasibility advantage's weight")
    cap_r: float = Field(100.0, gt=0, description="largest weight of a row whose state is feasible")
    cap_h: float = Field(150.0, gt=0, description="largest weight of a row whose state is not feasible")
    floor_h: float = Field(
        0.0,
        ge=0,
        description="least weight of a row whose state is not feasible; 1 in the branch that the authors point to for "
        "MetaDrive",
    )
    signal_costly: float = Field(25.0, gt=0, description="constraint signal h of a transition that costs something")
    signal_free: float = Field(-1.0, lt=0, description="constraint signal h of a transition that costs nothing")
    reward_scale: float | None = Field(
        None,
        gt=0,
        description="rewards are multiplied by this; null: an episode's most steps by the range of the task's "
        "reference returns, T / (R_max - R_min)",
    )
    action_margin: float = Field(
        1e-5, ge=0, lt=1, description="the data's actions are clamped so far inside of [-1, 1]"
    )
    samples: Count = Field(16, description="actions sampled in acting; the one of the least signal ahead is taken")

    _affordable = affordable("critics")

    @model_validator(mode="after")
    def _rows_for_every_update(self) -> Self:
        if self.batch_size < self.actor_updates:
            raise ValueError(f"batch_size {self.batch_size} has no row for each of {self.actor_updates} actor_updates")
        return self


class FISOR(TransitionMethod[FISORHyperparameters]):
    """R FISOR agents side by side."""

    Hyperparameters = FISORHyperparameters
    summary = "feasibility-guided diffusion policy (ICLR 2024): safety as a hard constraint, whatever the limit"
    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {"metadrive": {"floor_h": 1.0}}

    @classmethod
    def policy_names(cls, config: FISORHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("fisor",)

    @classmethod
    def noise(cls, config: FISORHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """How far each row is noised, as a normal number, and with what."""
        return {"times": (config.batch_size,), "actions": (config.batch_size, task.action_size)}

    def __init__(
        self,
        config: FISORHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = c = config
        self.reward_scale = return_scale(task) if c.reward_scale is None else c.reward_scale
        build = Builder.of(replicas, device, dtype)

        def valued(inputs: int, ensemble: int | None) -> nn.ModuleDict:
            sizes, how = (inputs, *c.critic_hidden_sizes, 1), glorot_uniform
            return nn.ModuleDict({name: build.mlp(*sizes, ensemble=ensemble, initialise=how) for name in SIGNALS})

        self.critics = valued(task.observation_size + task.action_size, c.critics)
        self.values = valued(task.observation_size, None)
        self.targets = frozen(self.critics)
        self.actor = Denoiser(c, task, build.generators, dtype).to(device)
        self.slow_actor = frozen(self.actor)
        self.diffusion = Diffusion(c.diffusion_steps, dtype).to(device)
        self.dropout = DropoutStreams(replicas, device)
        # Adam is elementwise: one serves networks whose losses read nothing that another's step changes.
        self.value_optimizer = adam([(c.critic_lr, self.values.parameters())])
        self.critic_optimizer = adam([(c.critic_lr, self.critics.parameters())])
        self.actor_optimizer = adam([(c.actor_lr, self.actor.parameters())])
        cosine = c.actor_cosine_updates
        self.schedule = None if cosine is None else Schedule.cosine(c.actor_lr, cosine, device)

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One step, in the authors' order: the diffusion model, on all rows; then values and critics, on the first."""
        c = self.config
        most = 1 - c.action_margin
        batch = {**batch, "actions": batch["actions"].clamp(-most, most)}
        metrics = self._train_actor(batch, noise)
        rows = max(1, round(c.critic_share * batch["actions"].shape[1]))
        metrics |= self._train_critics({name: column[:, :rows] for name, column in batch.items()})
        return detached(metrics)

    def _train_actor(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """Step 1: the weighted regression on the noise, on one part of the batch after the other.

        All weights are of critics and values as they were before this step.
        """
        c = self.config
        observations, actions = batch["observations"], batch["actions"]
        times = self.diffusion.times(noise["times"])
        noised = self.diffusion.noised(actions, noise["actions"], times)
        with torch.no_grad():
            q, g = self._judged(torch.cat([observations, actions], -1))
            v, u = (self.values[name](observations).squeeze(-1) for name in SIGNALS)
            weight = regression_weights(q, v, g, u, c)
        columns = (observations, noised, times, noise["actions"], weight)
        losses = []
        for part in zip(*(column.tensor_split(c.actor_updates, 1) for column in columns), strict=True):
            states, inputs, at, wanted, weighed = part
            keep = self.dropout.draw(self.actor.dropped(states.shape[1]))
            error = (self.actor(states, inputs, at, keep) - wanted).square().sum(-1)
            loss = (weighed * error).mean(1)
            if self.schedule is not None:
                self.actor_optimizer.param_groups[0]["lr"] = self.schedule.advance()
            minimise(self.actor_optimizer, loss)
            polyak_update(self.slow_actor.parameters(), self.actor.parameters(), c.ema)
            losses.append(loss.detach())
        return {
            "actor_loss": torch.stack(losses).mean(0),
            "weight": weight.mean(1),
            "feasible": per_replica_mean((u <= 0).to(weight.dtype)),
            "weighted": per_replica_mean((weight > 0).to(weight.dtype)),
        }

    def _train_critics(self, batch: Batch) -> dict[str, Tensor]:
        """Steps 2 to 5: both values, then both ensembles, towards the values as just updated, then their targets.

        Reward and feasibility never read each other, so one backward pass serves both.
        """
        c = self.config
        observations, following = batch["observations"], batch["next_observations"]
        pairs = torch.cat([observations, batch["actions"]], -1)
        alive = going_on(batch, c)
        signal = torch.where(batch["costs"] > 0, c.signal_costly, c.signal_free).to(alive)

        with torch.no_grad():
            q, g = self._judged(pairs)
        v, u = (self.values[name](observations).squeeze(-1) for name in SIGNALS)
        v_loss, u_loss = expectile_loss(q - v, c.expectile_r), expectile_loss(g - u, 1 - c.expectile_h)
        minimise(self.value_optimizer, v_loss + u_loss)

        with torch.no_grad():
            next_v, next_u = (self.values[name](following).squeeze(-1) for name in SIGNALS)
            ahead = c.gamma * alive
            target = {
                "reward": batch["rewards"] * self.reward_scale + ahead * next_v,
                # The worst of now and later, with a share of now alone; at an end there is no later.
                "feasibility": (1 - ahead) * signal + ahead * torch.maximum(signal, next_u),
            }
        q_loss, h_loss = (mean_critic_loss(self.critics[name](pairs).squeeze(-1), target[name]) for name in SIGNALS)
        minimise(self.critic_optimizer, q_loss + h_loss)
        polyak_update(self.targets.parameters(), self.critics.parameters(), c.polyak)
        return {
            "value_loss": v_loss,
            "critic_loss": q_loss,
            "feasibility_value_loss": u_loss,
            "feasibility_critic_loss": h_loss,
            "value": v.mean(1),
            "feasibility_value": u.mean(1),
        }

    def _judged(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """The target critics' least return and worst signal ahead of pairs (R, B, dim): (R, B) each."""
        return least(self.targets["reward"], pairs), most(self.targets["feasibility"], pairs)

    @classmethod
    def warnings(cls, config: FISORHyperparameters, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Whether nothing counts as feasible, or next to nothing is learnt from."""
        said = []
        if metrics["feasible"] < 0.01:
            said.append("fewer than 1% of the states count as feasible: it hardly seeks reward")
        if metrics["weighted"] < 0.01:
            said.append("fewer than 1% of the rows have a weight in its policy's loss")
        return tuple(said)

    def generators(self) -> Sequence[torch.Generator]:
        """The dropout's."""
        return self.dropout.generators

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: the slow diffusion model, and the feasibility critics that choose among its samples."""
        actor, critics = single(self.slow_actor, replica), single(self.targets["feasibility"], replica)
        return {"fisor": SafestSamplePolicy(actor, critics, copy.deepcopy(self.diffusion).cpu(), self.config.samples)}

    def parts(self) -> dict[str, Any]:
        """Networks, slow copies, optimisers, the dropout's generators and the schedule, if there is one."""
        optimizers = ("actor_optimizer", "critic_optimizer", "value_optimizer")
        parts = named(self, "actor", "slow_actor", "critics", "targets", "values", *optimizers, "dropout")
        return parts if self.schedule is None else {**parts, "schedule": self.schedule}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The reward critics, in the task's own units, and whether feasibility tells what is safe."""
        q, g = self._judged(torch.cat([batch["observations"], batch["actions"]], -1))
        safe = batch["safe"] > 0
        feasible = (self.values["feasibility"](batch["observations"]).squeeze(-1) <= 0).to(q.dtype)
        return {
            **diagnostics.calibration("q", q / self.reward_scale, batch["discounted_rewards_to_go"]),
            "h_auc": diagnostics.auc(g, ~safe),
            "feasible_safe": diagnostics.mean_over(feasible, safe),
            "feasible_unsafe": diagnostics.mean_over(feasible, ~safe),
        }


def return_scale(task: Task) -> float:
    """T / (R_max - R_min): an episode's most steps by the range of returns that is normalised to 0..1."""
    return task.max_episode_steps / (task.max_episode_reward - task.min_episode_reward)


def regression_weights(q: Tensor, v: Tensor, g: Tensor, u: Tensor, config: FISORHyperparameters) -> Tensor:
    """What each row counts in the diffusion model's loss, all (R, B).

    Where the state is feasible (u <= 0): by its reward's advantage if the action is, too (g <= 0), and nothing
    otherwise. Where it is not: by how much less the signal ahead becomes.

    Args:
        q: the action's return.
        v: the state's.
        g: the worst signal ahead of the action.
        u: that of the state.
    """
    c = config
    seeking = torch.where(g <= 0, torch.exp(c.beta_r * (q - v)).clamp(0, c.cap_r), 0.0)
    returning = torch.exp(c.beta_h * (u - g)).clamp(c.floor_h, c.cap_h)
    return torch.where(u > 0, returning, seeking)


class SafestSamplePolicy(Policy):
    """Samples actions of each observation, and takes the one of the least worst signal ahead.

    Args:
        actor: the slow diffusion model of one replica, with a replica axis of 1.
        critics: its target feasibility critics, likewise.
        diffusion: the process.
        samples: actions an observation.
    """

    def __init__(self, actor: Denoiser, critics: nn.Module, diffusion: Diffusion, samples: int) -> None:
        super().__init__()
        self.actor, self.critics, self.diffusion, self.samples = actor, critics, diffusion, samples

    def act(self, observations: Tensor) -> Tensor:
        """Sampled actions (n, action_size), for all environments at once."""
        size = self.actor.output.weight.shape[-1]
        noise = self.noise(self.diffusion.steps * self.samples * size).to(observations)
        noise = noise.view(len(observations), self.diffusion.steps, self.samples, size)
        pieces = zip(observations.split(CHUNK), noise.split(CHUNK), strict=True)
        return torch.cat([self._act(*piece) for piece in pieces])

    def _act(self, observations: Tensor, noise: Tensor) -> Tensor:
        """(n, dim), (n, T, samples, A) -> (n, A)."""
        states = repeated(observations.unsqueeze(0), self.samples)

        def predict(actions: Tensor, time: int) -> Tensor:
            predicted: Tensor = self.actor(states, actions, torch.full((1, 1), time, device=states.device))
            return predicted

        # Samples of an observation lie side by side: (T, 1, n * samples, A).
        actions = self.diffusion.sample(predict, noise.transpose(0, 1).flatten(1, 2).unsqueeze(1))
        signal = most(self.critics, torch.cat([states, actions], -1)).view(len(observations), self.samples)
        actions = actions.view(len(observations), self.samples, -1)
        return torch.take_along_dim(actions, signal.argmin(1).view(-1, 1, 1), 1).squeeze(1)
