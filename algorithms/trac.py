"""TraC: trajectory classification (AAAI 2025, arXiv 2412.15429).

Trajectories are cut into segments, some called desirable (safe, with a high reward), some undesirable (unsafe, or safe
with a low reward). The policy clones all of them first; then it is fitted so that a sigmoid of its discounted
log-likelihood ratio to that clone tells the two apart. No critics. As the authors' code has it (zgong11/TraC at
2fc12f7). Deviations are numbered in docs/algorithms/trac.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from algorithms.parts.dropout import DropoutStreams, thinned
from algorithms.parts.losses import mean_where, per_replica_mean
from algorithms.parts.methods import detached, named
from algorithms.parts.networks import Builder, StackedMLP, frozen, orthogonal
from algorithms.parts.optimisers import adam, minimise
from algorithms.parts.policies import ClonedPolicy
from algorithms.parts.schedules import Schedule
from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica, Segments, Selection
from harness.bounds import BatchSize, HiddenSizes, Steps
from harness.data.dataset import Dataset
from harness.data.trajectories import Bools, Floats
from harness.errors import UserError
from harness.tasks import Task, within

MOST_SEGMENTS = 1_000_000
"""Segments that are cut at the most."""
SPACING = 6
"""From a trajectory as long as the longest, one segment is cut for so many of the steps at which it could begin."""
LEAST_WEIGHT = 0.7
"""Of a safe segment; the best, or as an undesirable one the worst, has weight 1."""
LARGEST_ACTION = 1 - 1e-5
"""Actions of the data are clipped to this."""
LEAST_PROBABILITY = 1e-6
"""Of a segment's own label; below it nothing is learnt from the segment."""
SAFETY_GYMNASIUM = {"alpha": 0.1, "eta": 0.5, "bottom": 0.5, "seg_ratio": 0.75}


class TraCHyperparameters(Hyperparameters):
    """Defaults are the authors' for Bullet (``configs/trac_bulletgym.yaml``)."""

    steps: Steps = Field(100_000, description="gradient steps of one training run, the cloning included")
    batch_size: BatchSize = Field(96, description="segments a step draws")
    hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of the policy")
    dropout: float = Field(0.25, ge=0, lt=1, description="dropout of hidden layers in training")
    cloning: float = Field(0.3, ge=0, lt=1, description="share of the steps that clone all segments, first")
    seg_ratio: float = Field(1.0, gt=0, le=1, description="steps of a segment, as a share of the longest trajectory's")
    top: float = Field(0.5, gt=0, le=1, description="share of the safe segments, by reward, that is desirable")
    bottom: float = Field(0.0, ge=0, le=1, description="share of them, the worst, that is undesirable")
    alpha: float = Field(0.2, gt=0, description="weight of the log-likelihood ratio")
    gamma: float = Field(0.99, gt=0, le=1, description="discount of its steps")
    eta: float = Field(0.25, ge=0, description="weight of all undesirable segments, relative to all desirable ones")
    cloning_lr: float = Field(1e-4, gt=0, description="Adam's learning rate in the cloning")
    learning_rate: float = Field(1e-5, gt=0, description="Adam's learning rate afterwards, behind its warm-up")
    warmup_steps: Steps = Field(10_000, description="steps behind the cloning over which that rises linearly")


class TraC(Algorithm[TraCHyperparameters]):
    """R TraC agents side by side."""

    Hyperparameters = TraCHyperparameters
    summary = "trajectory classification (AAAI 2025): tells desirable segments from undesirable ones"
    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "bullet": {"seg_ratio": 1.0},
        "navigation": SAFETY_GYMNASIUM,
        "velocity": SAFETY_GYMNASIUM,
        "metadrive": {"steps": 200_000, "gamma": 1.0, "top": 0.25, "seg_ratio": 0.25},
    }
    extrapolated = ("seg_ratio",)

    @classmethod
    def depends_on_cost_limit(cls, config: TraCHyperparameters) -> bool:
        """What is safe, and so what is desirable, follows from the limit."""
        return True

    @classmethod
    def policy_names(cls, config: TraCHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("trac",)

    @classmethod
    def columns(cls, config: TraCHyperparameters) -> tuple[str, ...]:
        """Observations and actions; rewards and costs decide in :meth:`select`."""
        return ("observations", "actions")

    @classmethod
    def select(cls, dataset: Dataset, config: TraCHyperparameters, replica: Replica) -> Selection:
        """Segments of one length, all alike, each with a label (1: desirable, 0: undesirable) and a weight.

        Raises:
            UserError: no segment can be cut, none is safe, or all safe ones have the same reward.
        """
        limit, trajectories, name = replica.cost_limit, dataset.trajectories, dataset.path.name
        assert limit is not None, "the engine gives a limit where training depends on one"
        lengths = trajectories.lengths[: len(trajectories) - trajectories.unfinished]
        if not len(lengths):
            raise UserError(f"{name} holds no finished trajectory, and trac trains on nothing else")
        longest = int(lengths.max())
        length = int(longest * config.seg_ratio)
        if not (count := segments_to_cut(lengths, config.seg_ratio)) or not length:
            raise UserError(
                f"trac cuts no segment from {name}, whose longest trajectory has {longest} steps, at seg_ratio "
                f"{config.seg_ratio:g}; use 1, or one between 0 and 1 that leaves it {SPACING} steps and takes one"
            )
        cut = cut_segments(lengths, length, count, np.random.default_rng(replica.entropy("segments")))
        first = trajectories.starts[cut.trajectories] + cut.starts
        rewards, costs = (sums(values, first, length) for values in (trajectories.rewards, trajectories.costs))
        budget = limit * length / longest
        safe = np.asarray(within(costs, budget))
        where = f"of {name} (cost limit {limit:g}, seg_ratio {config.seg_ratio:g})"
        if not safe.any():
            raise UserError(
                f"trac finds no safe segment: {count} of {length} steps {where} cost {costs.min():g} to "
                f"{costs.max():g}, and a safe one costs at most {budget:g}; raise the limit, or change seg_ratio"
            )
        least, most = rewards[safe].min(), rewards[safe].max()
        if most - least <= 1e-9 * max(abs(least), abs(most)):  # the sums are rounded
            raise UserError(
                f"trac cannot tell better safe segments from worse ones: {safe.sum()} of {length} steps {where} are "
                f"safe, and all have the reward {most:g}; raise the limit, or change seg_ratio"
            )
        labels, weights, kept = labelled(rewards, safe, config.top, config.bottom)
        segments = Segments(
            trajectories=cut.trajectories[kept],
            weights=np.ones(kept.sum()),
            starts=cut.starts[kept],
            length=length,
            values={"label": labels[kept], "weight": weights[kept]},
        )
        return Selection(segments=segments)

    def __init__(
        self,
        config: TraCHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = c = config
        self.cloning_steps = round(c.cloning * c.steps)
        sizes = (task.observation_size, *c.hidden_sizes, task.action_size)
        self.actor = Builder.of(replicas, device, dtype).mlp(*sizes, initialise=orthogonal)
        self.reference = frozen(self.actor)
        self.dropout = DropoutStreams(replicas, device)
        self.schedule = Schedule.warm_up(c.learning_rate, c.warmup_steps, device)
        self.cloning_rate = torch.tensor(c.cloning_lr, device=device)
        self.optimizer = adam([(self.cloning_rate, self.actor.parameters())])

    def variant(self, step: int) -> Literal["cloning", "start", "classification"]:
        """Cloning comes first; the first step behind it begins with what the classification starts from."""
        if step < self.cloning_steps:
            return "cloning"
        return "start" if step == self.cloning_steps else "classification"

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step: of cloning, or of the classification of segments."""
        phase = self.variant(self.step)
        if phase == "start":
            self._start()
        observations, actions = batch["observations"], batch["actions"].clamp(-LARGEST_ACTION, LARGEST_ACTION)
        likelihood = log_likelihood(self.actor, observations, actions, self._kept(observations), self.config.dropout)
        cloning_loss = -per_replica_mean(likelihood)
        if phase == "cloning":
            rate, objective = self.cloning_rate, cloning_loss
            metrics = dict.fromkeys(CLASSIFIED, torch.zeros_like(cloning_loss))
        else:
            with torch.no_grad():
                reference = log_likelihood(self.reference, observations, actions)
            rate = self.schedule.advance()
            metrics = classification(likelihood - reference, batch["label"] > 0.5, batch["weight"], self.config)
            objective = metrics["loss"]
        self.optimizer.param_groups[0]["lr"] = rate
        minimise(self.optimizer, objective)
        metrics |= {
            "cloning_loss": cloning_loss,
            "desirable": batch["label"].mean(1),
            "learning_rate": rate.expand_as(cloning_loss),
        }
        return detached(metrics)

    @torch.no_grad()
    def _start(self) -> None:
        """The clone becomes the reference, and the optimiser a new one."""
        torch._foreach_copy_(list(self.reference.parameters()), list(self.actor.parameters()))
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def _kept(self, observations: Tensor) -> list[Tensor] | None:
        """What dropout keeps of every hidden layer, (R, B * L, width) each, true where it does."""
        c = self.config
        if c.dropout == 0:
            return None
        rows = observations[0, ..., 0].numel()
        wanted = {f"hidden{index}": ((rows, width), c.dropout) for index, width in enumerate(c.hidden_sizes)}
        return list(self.dropout.draw(wanted).values())

    @classmethod
    def warnings(cls, config: TraCHyperparameters, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Whether there is nothing to tell apart, or the loss is flat."""
        said = []
        if metrics["desirable"] == 1:
            said.append("all its segments are desirable, and it has none to tell them from")
        if metrics["out_of_reach"] > 0.5:
            said.append("most segments lie so far on the wrong side that it learns nothing from them")
        return tuple(said)

    def generators(self) -> Sequence[torch.Generator]:
        """The dropout's."""
        return self.dropout.generators

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy, without dropout."""
        return {"trac": ClonedPolicy(self.actor.unstacked(replica))}

    def parts(self) -> dict[str, Any]:
        """Policy and reference, the optimiser, the dropout's generators and the learning rate's schedule."""
        return named(self, "actor", "reference", "optimizer", "dropout", "schedule")


# Segments


class Cut(NamedTuple):
    """S segments: the trajectory of each (S,), and the step of it at which the segment begins (S,)."""

    trajectories: NDArray[np.int64]
    starts: NDArray[np.int64]


def segments_to_cut(lengths: NDArray[np.int64], seg_ratio: float) -> int:
    """How many segments of ``int(M * seg_ratio)`` steps, M the longest of the trajectories' lengths (T,)."""
    longest = int(lengths.max())
    if seg_ratio == 1:
        return min(MOST_SEGMENTS, int((lengths == longest).sum()))
    return min(MOST_SEGMENTS, (longest - int(longest * seg_ratio)) // SPACING * len(lengths))


def cut_segments(lengths: NDArray[np.int64], length: int, count: int, rng: np.random.Generator) -> Cut:
    """So many, with replacement: of trajectories (T,) that are long enough, all alike, then at any step, all alike."""
    trajectories = rng.choice(np.flatnonzero(lengths >= length), count)
    return Cut(trajectories, rng.integers(0, lengths[trajectories] - length, endpoint=True))


def sums(values: NDArray[np.float32], first: NDArray[np.int64], length: int) -> Floats:
    """Of the values (N,) in segments of one length that begin at rows (S,): (S,)."""
    summed = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(summed[first + length] - summed[first])


def labelled(rewards: Floats, safe: Bools, top: float, bottom: float) -> tuple[Floats, Floats, Bools]:
    """Labels (S,), weights (S,), and which segments (S,) have them; the others are left out.

    The best of the safe segments are desirable, the more so the better; the worst of them, the more so the worse, and
    all unsafe ones are undesirable. A safe segment that is both is undesirable.

    Args:
        rewards: (S,) of the segments; of the safe ones not all the same.
        safe: (S,) whether each is.
        top: share of the safe ones that is desirable.
        bottom: share of them that is undesirable.
    """
    labels, weights, kept = np.zeros(len(rewards)), np.ones(len(rewards)), ~safe
    least, most = rewards[safe].min(), rewards[safe].max()
    standing = (rewards - least) / (most - least)
    by_reward = np.flatnonzero(safe)[np.argsort(rewards[safe], kind="stable")]
    desirable = by_reward[len(by_reward) - math.ceil(top * len(by_reward)) :]
    undesirable = by_reward[: math.ceil(bottom * len(by_reward))]
    for chosen, label, share in ((desirable, 1.0, standing), (undesirable, 0.0, 1 - standing)):
        labels[chosen], kept[chosen] = label, True
        weights[chosen] = LEAST_WEIGHT + (1 - LEAST_WEIGHT) * share[chosen]
    return labels, weights, kept


# Training


def log_likelihood(
    network: StackedMLP, observations: Tensor, actions: Tensor, kept: Sequence[Tensor] | None = None, rate: float = 0
) -> Tensor:
    """Of actions (R, B, L, dim) under a Gaussian around tanh(network(s)) with variance 1/2. (R, B, L); no constants.

    Args:
        network: the policy's.
        observations: (R, B, L, dim).
        actions: what is asked for.
        kept: what dropout keeps of every hidden layer, (R, B * L, width) each; ``None``: everything.
        rate: of the dropout.
    """
    x = observations.flatten(1, 2)
    *hidden, last = network.layers
    for index, layer in enumerate(hidden):
        x = torch.relu_(layer(x))
        x = thinned(x, None if kept is None else kept[index], rate)  # the authors' is before the ReLU: it is the same
    error = torch.tanh(last(x)).view_as(actions) - actions
    return -error.square().sum(-1)


CLASSIFIED = ("loss", "accuracy", "advantage_desirable", "advantage_undesirable", "out_of_reach")
"""Metrics of :func:`classification`; they are 0 in the cloning."""


def classification(ratio: Tensor, desirable: Tensor, weight: Tensor, config: TraCHyperparameters) -> dict[str, Tensor]:
    """The loss (R,) that tells desirable segments from undesirable ones, and how well it does, (R,) each.

    Args:
        ratio: log-likelihood of each step's action, less the reference's, (R, B, L).
        desirable: whether each segment is, (R, B).
        weight: of each segment, (R, B).
        config: of the algorithm.
    """
    discounts = config.gamma ** torch.arange(ratio.shape[-1], dtype=ratio.dtype, device=ratio.device)
    advantage = (config.alpha * discounts * ratio).sum(-1)
    probability = torch.sigmoid(advantage)
    right = torch.where(desirable, probability, 1 - probability)
    counts = desirable.sum(1, keepdim=True), (~desirable).sum(1, keepdim=True)
    # Without an undesirable segment its weight is read by none, but must be finite.
    undesirable_weight = config.eta * counts[0] / counts[1].clamp(min=1)
    balance = torch.where(desirable, 1, undesirable_weight.to(ratio.dtype))
    return {
        "loss": -(balance * weight * right.clamp(min=LEAST_PROBABILITY).log()).mean(1),
        "accuracy": ((probability > 0.5) == desirable).to(ratio.dtype).mean(1),
        "advantage_desirable": mean_where(desirable, advantage),
        "advantage_undesirable": mean_where(~desirable, advantage),
        "out_of_reach": (right < LEAST_PROBABILITY).to(ratio.dtype).mean(1),
    }
