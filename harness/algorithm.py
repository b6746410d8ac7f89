"""The interface that every algorithm implements, and the only thing the engine knows of one.

Every tensor of a job carries the replica axis first: parameters ``(R, in, out)``, batches ``(R, B, dim)``, metrics
``(R,)``. A loss is the mean over the batch and the SUM over replicas, so that one backward pass gives each
replica exactly the gradient that it would have alone.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from harness.bounds import BatchSize, Steps, allows_flag, holds_flag
from harness.tasks import Task, matches

if TYPE_CHECKING:
    from harness.data.dataset import Dataset

Batch = Mapping[str, Tensor]
"""Tensors by name, the replica axis first."""


class Hyperparameters(BaseModel):
    """What a user may set. Subclasses add fields, each with a default, bounds and a one-line description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    steps: Steps = Field(description="gradient steps of one training run")
    batch_size: BatchSize = Field(description="transitions a step draws from the dataset")

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_a_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        if holds_flag(value) and not allows_flag(cls.model_fields[info.field_name or ""].annotation):
            raise PydanticCustomError("number_expected", "Input should be a number")
        return value


@dataclass(frozen=True)
class Replica:
    """One agent in training.

    Args:
        seed: the cell's seed.
        cost_limit: the episode cost that training aims at, ``None`` where training ignores it.
        key: what the agent's random numbers are derived from, beside the seed; the cell gives it.
        statistics: what :meth:`Algorithm.select` measured in the data that this replica trains on.
    """

    seed: int
    cost_limit: float | None = None
    key: str = ""
    statistics: Mapping[str, NDArray[Any]] = field(default_factory=dict, compare=False)

    def entropy(self, purpose: str) -> int:
        """A seed below 2**56, a function of key, seed, cost limit and purpose alone."""
        text = f"{self.key}|{self.seed}|{self.cost_limit}|{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of this replica's own, seeded with :meth:`entropy`."""
        return torch.Generator(device=device).manual_seed(self.entropy(purpose))


@dataclass(frozen=True)
class Segments:
    """The E entries from which an algorithm on sequences draws: each a trajectory, or a stretch of one.

    Args:
        trajectories: (E,) indices of trajectories; one may stand in several entries.
        weights: (E,) how often each is drawn, relative to the others.
        reward_shift: (E,) added to the reward-to-go of every step, ``None`` for nothing.
        cost_shift: (E,) added to the cost-to-go of every step, ``None`` for nothing.
        starts: (E,) the step of its trajectory at which each begins; ``None``: at any, drawn anew every time.
        length: steps of every segment, where the data decides it; ``None``: the algorithm's sequence length.
        values: (E,) numbers by name, such as a label or a weight; a batch has those of its B entries, (R, B).
    """

    trajectories: NDArray[np.int64]
    weights: NDArray[np.float64]
    reward_shift: NDArray[np.float64] | None = None
    cost_shift: NDArray[np.float64] | None = None
    starts: NDArray[np.int64] | None = None
    length: int | None = None
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def nbytes(self) -> int:
        """What they take of a device's memory, at the most: up to so many numbers of 8 bytes an entry."""
        own = (self.reward_shift, self.cost_shift, self.starts, *self.values.values())
        always = 3  # the shares up to an entry, its trajectory's first row and length
        return 8 * len(self) * (always + sum(one is not None for one in own))


@dataclass(frozen=True)
class Selection:
    """The part of a dataset that one replica trains on.

    Args:
        rows: (n,) indices of the transitions to draw from, ``None`` for all.
        segments: what an algorithm on sequences draws from instead, ``None`` for all trajectories alike.
        statistics: what the algorithm wants to know of the data; its constructor finds it in the replica.
    """

    rows: NDArray[np.int64] | None = None
    segments: Segments | None = None
    statistics: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def window(self, sequence_length: int | None) -> int | None:
        """Steps of what is drawn, for an algorithm with this sequence length; ``None`` for transitions."""
        given = None if self.segments is None else self.segments.length
        return sequence_length if given is None else given

    @property
    def nbytes(self) -> int:
        """What it takes of a device's memory, at the most."""
        rows = 0 if self.rows is None else self.rows.nbytes
        return rows + (0 if self.segments is None else self.segments.nbytes)


class Policy(nn.Module, ABC):
    """One replica's policy, batched over ``n`` environments; it is sent to worker processes and runs on the CPU."""

    markov: ClassVar[bool] = True
    """Whether an action depends on the last observation alone: not on a context of steps before it."""

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        """Begin ``n = len(seeds)`` episodes, each with random numbers of its own.

        An episode's noise depends on its seed alone, not on the episodes that happen to run beside it.
        """
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @abstractmethod
    def act(self, observations: Tensor) -> Tensor:
        """Actions (n, action_size) for observations (n, observation_size)."""

    def observe(self, rewards: Tensor, costs: Tensor) -> None:
        """Take in what the last actions brought: rewards (n,), costs (n,)."""

    def noise(self, size: int) -> Tensor:
        """Standard normal noise (n, size), row ``i`` drawn from episode ``i``'s generator."""
        return torch.stack([torch.randn(size, generator=generator) for generator in self._generators])

    def __getstate__(self) -> dict[str, Any]:
        """Generators stay behind: they belong to an episode, not to the policy."""
        return {key: value for key, value in self.__dict__.items() if key != "_generators"}


def acted(policy: Policy, observations: Tensor, action_size: int) -> Tensor:
    """What a policy does on observations (n, dim): actions (n, action_size).

    Raises:
        TypeError: what it gives is no tensor of floating-point numbers.
        ValueError: it has another shape.
    """
    actions = policy.act(observations)
    if not isinstance(actions, Tensor) or not actions.is_floating_point():
        kind = actions.dtype if isinstance(actions, Tensor) else type(actions).__name__
        raise TypeError(f"actions must be a tensor of floating-point numbers, not {kind}")
    if actions.shape != (len(observations), action_size):
        raise ValueError(f"actions must be of shape {(len(observations), action_size)}, not {tuple(actions.shape)}")
    return actions


Config = TypeVar("Config", bound=Hyperparameters)
"""The model of an algorithm's hyperparameters."""


class Algorithm(ABC, Generic[Config]):
    """One algorithm, training R replicas side by side.

    A subclass is a plugin: it declares the class attributes below and implements the abstract methods. It knows nothing
    of suites, stores or processes.
    """

    Hyperparameters: ClassVar[type[Hyperparameters]]
    """The model of its hyperparameters."""

    summary: ClassVar[str] = ""
    """One line for ``lspc-bench algorithms``."""

    version: ClassVar[int] = 1
    """Raised whenever a change alters what training computes: results of other versions are not reused."""

    max_replicas: ClassVar[int | None] = None
    """How many replicas one instance can train; 1 for a plugin that cannot be stacked."""

    synchronises: ClassVar[bool] = False
    """Whether :meth:`update` reads tensors' values on the host, so that it cannot be captured."""

    requires: ClassVar[tuple[str, ...]] = ()
    """Import names of packages that it needs and lspc-bench does not; a suite is refused where one is missing."""

    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Published settings by task pattern (see :func:`harness.tasks.select_tasks`); a later pattern wins."""

    extrapolated: ClassVar[tuple[str, ...]] = ()
    """Of the settings in :attr:`per_task` those that were published for some of these tasks alone; tables say so."""

    step: int = 0
    """Updates made so far; the engine keeps it. :meth:`update` may only ask it what :meth:`variant` tells apart."""

    @classmethod
    def published(cls, task: Task) -> dict[str, Any]:
        """The published settings for this task where they differ from the defaults."""
        settings: dict[str, Any] = {}
        for pattern, values in cls.per_task.items():
            if matches(task, pattern):
                settings.update(values)
        return settings

    @classmethod
    def depends_on_cost_limit(cls, config: Config) -> bool:
        """Whether training needs a cost limit. If not, one agent is trained per seed and evaluated at every limit."""
        return False

    @classmethod
    def acts_on_cost_limit(cls, config: Config) -> bool:
        """Whether the policies act on the cost limit that they are told, so that each limit needs its own roll-outs."""
        return False

    @classmethod
    @abstractmethod
    def policy_names(cls, config: Config) -> tuple[str, ...]:
        """The names under which :meth:`policies` offers its policies; leaderboard rows are called so."""

    @classmethod
    @abstractmethod
    def columns(cls, config: Config) -> tuple[str, ...]:
        """The columns of a batch, out of :data:`harness.data.dataset.COLUMNS`."""

    @classmethod
    def sequence_length(cls, config: Config) -> int | None:
        """K, where a batch is of windows of K steps of a trajectory; ``None`` where it is of transitions.

        Where the data decides K, :meth:`select` gives segments of that length, and this stays ``None``.
        """
        return None

    @classmethod
    def select(cls, dataset: Dataset, config: Config, replica: Replica) -> Selection:
        """What of the dataset this replica trains on.

        Raises:
            UserError: nothing is left to train on.
        """
        return Selection()

    @classmethod
    def noise(cls, config: Config, task: Task) -> dict[str, tuple[int, ...]]:
        """Shapes, without the replica axis, of the standard normal noise that one update needs, by name."""
        return {}

    @abstractmethod
    def __init__(
        self,
        config: Config,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build networks and optimisers for R = ``len(replicas)`` agents."""

    @abstractmethod
    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step for all replicas.

        No host synchronisation, no Python branch on a tensor's value and no number that Python counts, so that the
        engine may capture it in a CUDA graph.

        Args:
            batch: the declared columns, (R, B) or (R, B, dim). Of windows or segments (R, B, K) or (R, B, K, dim), zero
                behind a trajectory's end, and beside them ``mask`` (R, B, K), 1 where there is a step and 0 behind the
                end, ``time_steps`` (R, B, K), counted from the trajectory's start, and the segments' values (R, B).
            noise: the declared noise, (R, *shape).

        Returns:
            Metrics, each (R,) and detached. A replica whose metrics are not finite is stopped as diverged.
        """

    @classmethod
    def warnings(cls, config: Config, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """What the user should know of one agent that trains on, but not as it is meant to.

        A run says it when it is first seen; what holds at the end stands in the cell's status and in reports.

        Args:
            config: of the agent.
            metrics: its metrics' means over a stretch of steps.

        Returns:
            Half sentences that go with "agent 3: ...", always the same words for the same trouble.
        """
        return ()

    def variant(self, step: int) -> Hashable:
        """Which kind of update comes at a step, counted from 0, where not all compute the same.

        A CUDA graph repeats what it has captured, so each kind is captured by itself. An actor that is trained every
        second step says ``step % 2``, and its update branches on ``self.variant(self.step)``.
        """
        return None

    def generators(self) -> Sequence[torch.Generator]:
        """The generators from which :meth:`update` draws, if any: a CUDA graph must know them."""
        return ()

    @abstractmethod
    def policies(self, replica: int) -> dict[str, Policy]:
        """Copies of one replica's policies on the CPU, by name, as they are now."""

    def parts(self) -> Mapping[str, Any]:
        """Everything that training changes, by name: networks, targets, optimisers, multipliers.

        Each has ``state_dict`` and ``load_state_dict``. An algorithm that keeps state in another way overrides
        :meth:`state_dict` and :meth:`load_state_dict` instead.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither parts() nor state_dict()")

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on bit for bit.

        Tensors, numbers, strings, lists and dicts only: checkpoints are read without running code.
        """
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    @classmethod
    def diagnostic_columns(cls, config: Config) -> tuple[str, ...]:
        """The columns that :meth:`diagnose` wants beside those of a batch in training.

        Out of :data:`harness.data.dataset.COLUMNS`, and ``discounted_rewards_to_go`` and ``discounted_costs_to_go``.
        """
        return ()

    @classmethod
    def diagnostic_discount(cls, config: Config) -> float:
        """The discount of the discounted columns."""
        return 1.0

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """How well what was learnt holds on data that no replica has seen; without gradients, and changing nothing.

        Called at the learning curve's points, where a suite holds data out. The error of the policies' actions is
        measured anyway (but for those that are not ``markov``).

        Args:
            batch: the columns of a batch in training and of :meth:`diagnostic_columns`, of held-out steps at even
                distances: (R, N) or (R, N, dim). With a sequence length windows that do not overlap, (R, N, K) or
                (R, N, K, dim). The same for all replicas and every call, in memory that they share: nothing is written
                to it. Noise comes from ``replica.generator("diagnostics")``, made afresh in each call.

        Returns:
            Metrics, each (R,): of the agent as a whole by their name, of one policy's by ``policy/name``. NaN where
            this data cannot tell.
        """
        return {}


PLACES = 16
"""Where :func:`kinds_of_update` asks."""


def kinds_of_update(algorithm: Algorithm[Any], steps: int) -> dict[Hashable, tuple[int, float]]:
    """What kinds of update a training of so many steps makes, by :meth:`Algorithm.variant`.

    Asked at :data:`PLACES` even places, of two steps each, so that both phases of a training and alternating steps are
    seen; what comes once, in between, may not be.

    Returns:
        Of each kind its first step that was seen, and its share of all that were.
    """
    places = np.linspace(0, max(0, steps - 2), PLACES).round().astype(int).tolist()
    asked = [step for place in places for step in (place, min(place + 1, steps - 1))]
    kinds = [algorithm.variant(step) for step in asked]
    return {kind: (asked[kinds.index(kind)], kinds.count(kind) / len(kinds)) for kind in kinds}
