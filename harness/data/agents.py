"""Data made as DSRL made its own: agents trained online under several cost targets, what they did kept and thinned.

Each agent is PPO with a Lagrange multiplier on the episode's cost. It is our own, in this file: of the libraries that
go with our pins stable-baselines3 2.0 has no multiplier, and fast-safe-rl is no longer kept.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal

from harness import simulators
from harness.data.collect import PACKAGES, Arrays, Manifest
from harness.data.dataset import LABELS
from harness.data.grid import thin
from harness.data.hdf5 import write
from harness.data.manifest import manifest_path
from harness.errors import ResultsError, UserError
from harness.evaluation import end_with_parent
from harness.files import file_sha256, replacing
from harness.pool import Pool, WorkerDied
from harness.simulators import Environment, require_sound
from harness.tasks import Task

LABEL = LABELS["agents"]
FREE = float("inf")
"""The target of an agent whose cost does not count."""

GAMMA, TRACE = 0.99, 0.95
HIDDEN = 64
LEARNING_RATE = 1e-3
EPOCHS, MINIBATCH = 6, 500
CLIP = 0.2
MOST_GRADIENT = 0.5
STEP, MOST_MULTIPLIER = 0.15, 20.0
"""Of the multiplier."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """What a pool of episodes follows from.

    Args:
        targets: an agent each, the episode cost that it may have; ``FREE`` for one whose cost does not count.
        steps: environment steps that each agent trains for, at least; episodes are finished.
        seed: of all random numbers; not negative.
    """

    targets: tuple[float, ...]
    steps: int
    seed: int = 0

    @classmethod
    def default(cls, task: Task) -> Recipe:
        """Seven targets around the task's limits, and steps that take minutes to hours a task on one core."""
        middle = (task.middle_limit or 20) / 20
        targets = (*(middle * target for target in (2, 8, 15, 25, 40, 60)), FREE)
        return cls(targets, max(120_000, 300 * task.max_episode_steps))

    def digest(self, task: Task) -> str:
        """Names everything that an agent's episodes follow from, beside its number and the processor."""
        made_in = [task.id, task.environment, task.max_episode_steps, _versions(task)]
        content = json.dumps([*made_in, self.steps, self.seed, *self.targets])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def together(task: Task) -> int:
    """Episodes between two updates: some 4,000 steps, 4 to 20 episodes."""
    return max(4, min(20, 4000 // task.max_episode_steps))


class Scale:
    """Running mean and variance of vectors, by which they are brought to a common scale."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean, self.square = np.zeros(size), np.zeros(size)

    def add(self, values: Floats) -> None:
        """Take in values (n, size)."""
        self.count += len(values)
        self.mean += (values - self.mean).sum(0) / self.count
        self.square += (np.square(values) - self.square).sum(0) / self.count

    @property
    def std(self) -> Floats:
        """Standard deviation (size,); 1 before anything was seen and where nothing varies."""
        std = np.sqrt(np.maximum(self.square - np.square(self.mean), 0))
        return np.where(std > 1e-6, std, 1.0)

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """Values (n, size), scaled and clipped to 10 standard deviations."""
        return torch.as_tensor(np.clip((values - self.mean) / self.std, -10, 10), dtype=torch.float32)


class Learner:
    """PPO whose advantage is that of the reward less a multiplier times that of the cost.

    Args:
        task: where it acts.
        target: the episode cost that it may have.
        seed: of its weights and random numbers.
    """

    def __init__(self, task: Task, target: float, seed: int) -> None:
        self.target, self.multiplier = target, 0.0 if target == FREE else 1.0
        self.generator = torch.Generator().manual_seed(seed)
        size, actions = task.observation_size, task.action_size
        self.actor = _network(size, actions, self.generator, gain=0.01)  # the first actions are noise around 0
        self.values = {"reward": _network(size, 1, self.generator), "cost": _network(size, 1, self.generator)}
        self.log_std = nn.Parameter(torch.full((actions,), -0.5))
        modules = (self.actor, *self.values.values())
        self.parameters = [self.log_std, *(p for module in modules for p in module.parameters())]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE)
        self.observed = Scale(size)
        self.returned = {"reward": Scale(1), "cost": Scale(1)}

    @torch.no_grad()
    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (n, action_size), before they are clipped, for observations (n, observation_size)."""
        mean = self.actor(self.observed(observations))
        noise = torch.randn(mean.shape, generator=self.generator)
        return np.asarray((mean + self.log_std.exp() * noise).numpy())

    def learn(self, episodes: Sequence[Arrays]) -> None:
        """Update on episodes that it acted in; the observations are still scaled as when it acted."""
        observations = self.observed(np.concatenate([episode["observations"] for episode in episodes]))
        actions = torch.as_tensor(np.concatenate([episode["raw_actions"] for episode in episodes]))
        advantages, returns = {}, {}
        for name, column in (("reward", "rewards"), ("cost", "costs")):
            advantages[name], returns[name] = self._advantages(name, column, episodes)
        if self.target != FREE:
            error = np.mean([episode["costs"].sum() for episode in episodes]) - self.target
            change = STEP * float(np.clip(error / self.target, -1, 2))
            self.multiplier = min(max(self.multiplier + change, 0.0), MOST_MULTIPLIER)
        advantage = (advantages["reward"] - self.multiplier * advantages["cost"]) / (1 + self.multiplier)
        with torch.no_grad():
            before = self._log_density(observations, actions)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(advantage), generator=self.generator).split(MINIBATCH):
                ratio = (self._log_density(observations[rows], actions[rows]) - before[rows]).exp()
                clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
                loss = -torch.minimum(ratio * advantage[rows], clipped * advantage[rows]).mean()
                for name, network in self.values.items():
                    loss = loss + 0.5 * (network(observations[rows]).squeeze(-1) - returns[name][rows]).square().mean()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, MOST_GRADIENT)
                self.optimizer.step()
        self.observed.add(np.concatenate([episode["observations"] for episode in episodes]).astype(np.float64))

    def _log_density(self, observations: Tensor, actions: Tensor) -> Tensor:
        density: Tensor = Normal(self.actor(observations), self.log_std.exp()).log_prob(actions).sum(-1)
        return density

    def _advantages(self, name: str, column: str, episodes: Sequence[Arrays]) -> tuple[Tensor, Tensor]:
        """Standardised advantages, and scaled returns for the values, of all steps in a row."""
        scale = self.returned[name]
        spread = float(scale.std[0])
        gained, reached = [], []
        for episode in episodes:
            seen = np.concatenate([episode["observations"], episode["next_observations"][-1:]])
            with torch.no_grad():
                values = self.values[name](self.observed(seen)).squeeze(-1).numpy().astype(np.float64) * spread
            if episode["terminals"][-1]:
                values[-1] = 0.0
            gained.append(advantages(episode[column].astype(np.float64), values))
            reached.append(gained[-1] + values[:-1])
        gains, returns = np.concatenate(gained), np.concatenate(reached)
        scale.add(returns[:, None])
        standard = (gains - gains.mean()) / (gains.std() + 1e-6)
        scaled = returns / float(scale.std[0])
        return torch.as_tensor(standard, dtype=torch.float32), torch.as_tensor(scaled, dtype=torch.float32)


def advantages(rewards: Floats, values: Floats) -> Floats:
    """Generalised advantages (T,) of rewards (T,) with the values (T + 1,) of the states around them.

    Schulman et al. 2016, equation 16, with gamma 0.99 and lambda 0.95.
    """
    errors = rewards + GAMMA * values[1:] - values[:-1]
    gained = np.zeros(len(rewards))
    following = 0.0
    for index in range(len(rewards) - 1, -1, -1):
        following = errors[index] + GAMMA * TRACE * following
        gained[index] = following
    return gained


def _network(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Sequential:
    """Two hidden layers, its weights drawn from the generator, the last layer's times ``gain``."""
    last = nn.Linear(HIDDEN, outputs)
    network = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), last)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter.shape[-1] if parameter.ndim == 2 else HIDDEN
            parameter.uniform_(-(fan**-0.5), fan**-0.5, generator=generator)
        last.weight.mul_(gain)
    return network


def train_agent(task: Task, recipe: Recipe, index: int, progress: Callable[[int], None]) -> list[Arrays]:
    """Train one agent; all its episodes, as DSRL's arrays, in order.

    Args:
        task: where.
        recipe: what to follow.
        index: of the target.
        progress: told from time to time how many steps were made since.
    """
    random = np.random.default_rng([recipe.seed, index])
    learner = Learner(task, recipe.targets[index], int(random.integers(2**63)))
    count = together(task)
    environments = [simulators.make(task) for _ in range(1 if simulators.lives_alone(task) else count)]
    episodes: list[Arrays] = []
    done = 0
    try:
        while done < recipe.steps:
            fresh: list[Arrays] = []
            seeds = random.integers(2**32, size=count).tolist()
            for start in range(0, count, len(environments)):
                fresh += _act(task, environments, learner, seeds[start : start + len(environments)], progress)
            learner.learn(fresh)
            for episode in fresh:
                del episode["raw_actions"]
                done += len(episode["rewards"])
            episodes += fresh
    finally:
        for environment in environments:
            environment.close()
    return episodes


def _act(
    task: Task,
    environments: Sequence[Environment],
    learner: Learner,
    seeds: Sequence[int],
    progress: Callable[[int], None],
) -> list[Arrays]:
    """One episode in each environment, in lockstep."""
    observations = np.stack([one.reset(seed) for one, seed in zip(environments, seeds, strict=False)])
    for observation in observations:
        require_sound(task.name, 0, observation)
    live = np.ones(len(observations), dtype=bool)
    steps: list[list[tuple[Any, ...]]] = [[] for _ in observations]
    while live.any():
        raw = learner.act(observations)
        actions = raw.clip(-1, 1)
        progress(int(live.sum()))
        for index in np.flatnonzero(live):
            following, reward, cost, terminal, timeout = environments[index].step(actions[index])
            require_sound(task.name, len(steps[index]) + 1, following, reward, cost)
            before = observations[index].copy()
            steps[index].append((before, following, actions[index], raw[index], reward, cost, terminal, timeout))
            observations[index] = following
            live[index] = not (terminal or timeout)
    names = ("observations", "next_observations", "actions", "raw_actions", "rewards", "costs", "terminals", "timeouts")
    types = (*[np.float32] * 6, np.bool_, np.bool_)
    return [
        {
            name: np.array(values, dtype=kind)
            for name, values, kind in zip(names, zip(*one, strict=True), types, strict=True)
        }
        for one in steps
    ]


def choose(costs: Floats, returns: Floats, count: int, bins: int, seed: int) -> NDArray[np.int64]:
    """Which trajectories a grid over cost and return keeps, in order: as DSRL thins what its agents did.

    The grid's cells keep as many as it takes, all the same number at most, until there are ``count`` or all.

    Args:
        costs: (T,) cost returns; those above their 98% quantile share the last column.
        returns: (T,) reward returns.
        count: of those to keep.
        bins: of the grid, each way.
        seed: of who stays in a full cell.
    """

    def binned(values: Floats) -> Floats:
        return np.digitize(values, np.linspace(values.min(), values.max() + 1e-9, bins + 1)).astype(np.float64)

    columns, rows = binned(np.minimum(costs, np.quantile(costs, 0.98))), binned(returns)
    everyone = np.ones(len(costs), dtype=bool)
    for most in range(1, len(costs) + 1):
        random = np.random.default_rng([seed, most])

        def sample(members: list[int], size: int, random: np.random.Generator = random) -> list[int]:
            return [int(one) for one in random.permutation(members)[:size]]

        kept = thin(columns, rows, everyone, most, 1, sample)
        if len(kept) >= min(count, len(costs)):
            break
    return np.sort(np.random.default_rng([seed, 0]).permutation(kept)[:count])


def collect_agents(
    task: Task,
    path: Path,
    recipe: Recipe | None = None,
    trajectories: int = 900,
    bins: int = 30,
    jobs: int = 1,
    keep_pool: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Train the agents, thin what they did, write the file and, beside it, its manifest.

    Both depend on the arguments and the packages' versions alone, not on ``jobs``, nor on interruptions: what an agent
    did is kept in ``.NAME.pool`` beside the file when it is finished, and used by the next call with the same recipe.

    Args:
        task: any, of a simulator that is installed.
        path: the HDF5 file to write; its folder is made.
        recipe: of the pool; the task's default.
        trajectories: to keep.
        bins: of the grid over cost and return, each way.
        jobs: processes, an agent each.
        keep_pool: leave the pool, so that it can be thinned in another way. Agents of another recipe that are in it
            are not used, and stay.
        progress: called from time to time with the steps done and their expected total.

    Returns:
        The manifest.

    Raises:
        UserError: an argument makes no sense.
        ResultsError: a process died.
    """
    recipe = recipe or Recipe.default(task)
    if not recipe.targets or not all(target > 0 for target in recipe.targets) or recipe.steps < 1 or recipe.seed < 0:
        raise UserError(f"agents need positive targets and steps and a seed of at least 0, not {recipe}")
    if min(trajectories, bins, jobs) < 1:
        raise UserError(f"trajectories, bins and jobs are at least 1, not {trajectories}, {bins} and {jobs}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write.")
    pool = path.with_name(f".{path.name}.pool")
    pool.mkdir(parents=True, exist_ok=True)
    names = [pool / f"{recipe.digest(task)}-{index}.npz" for index in range(len(recipe.targets))]
    _fill(task, recipe, names, jobs, progress)
    sums = [_sums(name) for name in names]
    costs, returns = (np.concatenate([agent[key] for agent in sums]) for key in ("costs", "rewards"))
    kept = choose(costs, returns, trajectories, bins, recipe.seed)
    arrays = _gather(names, np.isin(np.arange(len(costs)), kept))
    manifest: Manifest = {
        "task": task.id,
        "label": LABEL,
        "command": _command(task, recipe, trajectories, bins),
        "seed": recipe.seed,
        "trajectories": len(kept),
        "transitions": len(arrays["rewards"]),
        "pool": len(costs),
        "bins": bins,
        "steps": recipe.steps,
        "agents": [_ended(target, agent) for target, agent in zip(recipe.targets, sums, strict=True)],
        "versions": _versions(task),
    }
    with replacing(path) as data_file, replacing(manifest_path(path)) as manifest_file:
        write(data_file, arrays, {key: manifest[key] for key in ("task", "label", "command")})
        manifest["sha256"] = file_sha256(data_file)
        manifest_file.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if not keep_pool:
        for name in (*names, *pool.glob(".*.tmp")):  # what an interrupted process was writing
            name.unlink()
        if not any(pool.iterdir()):
            pool.rmdir()
    return manifest


def _ended(target: float, sums: dict[str, Floats]) -> dict[str, Any]:
    """How an agent did in its last sixty episodes."""
    return {
        "target": None if target == FREE else target,
        "episodes": len(sums["costs"]),
        "last_return": round(float(np.mean(sums["rewards"][-60:])), 3),
        "last_cost": round(float(np.mean(sums["costs"][-60:])), 3),
    }


def _versions(task: Task) -> dict[str, str]:
    """What an episode depends on."""
    packages = ("lspc-bench", "numpy", "torch", *PACKAGES.get(task.family, ("gymnasium",)))
    return {name: version(name) for name in packages}


def _command(task: Task, recipe: Recipe, trajectories: int, bins: int) -> str:
    """What makes the same file."""
    usual = Recipe.default(task)
    command = f"lspc-bench data collect {task.name} --agents"
    command += " --suite SUITE" if task.family == "own" else ""
    if recipe.targets != usual.targets:
        command += f" --targets {','.join('none' if one == FREE else f'{one:g}' for one in recipe.targets)}"
    command += f" --steps {recipe.steps}" if recipe.steps != usual.steps else ""
    command += f" --trajectories {trajectories}" if trajectories != 900 else ""
    command += f" --bins {bins}" if bins != 30 else ""
    return command + (f" --seed {recipe.seed}" if recipe.seed else "")


# The pool

_made: Any = None
"""Steps made by all processes together; a worker's is the parent's."""


def _fill(
    task: Task, recipe: Recipe, names: Sequence[Path], jobs: int, progress: Callable[[int, int], None] | None
) -> None:
    """Train the agents whose episodes are not there yet, each in a process of its own: simulators keep memory."""
    missing = [index for index, name in enumerate(names) if not name.exists()]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    made = context.Value("q", (len(names) - len(missing)) * recipe.steps)
    total = len(names) * recipe.steps
    try:
        with Pool(min(jobs, len(missing)), partial(_start, made), tasks_a_worker=1) as workers:
            waiting: set[Future[None]] = {
                workers.submit(_make, task, recipe, index, names[index], tries=1) for index in missing
            }
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when="FIRST_COMPLETED")
                for future in done:
                    future.result()
                if progress is not None:
                    progress(min(made.value, total), total)
    except WorkerDied as error:
        memory = " Is there memory enough? --jobs 1 takes least." if error.exitcode == -signal.SIGKILL else ""
        raise ResultsError(
            f"an agent of {task.name} died: {error}.{memory} The same command goes on with those that are finished"
        ) from error


def _start(made: Any) -> None:
    global _made
    _made = made
    torch.set_num_threads(1)
    end_with_parent()


def _make(task: Task, recipe: Recipe, index: int, path: Path) -> None:
    """Train one agent and keep its episodes."""
    counted, last = 0, time.monotonic()

    def count(steps: int) -> None:
        nonlocal counted, last
        counted += steps
        if time.monotonic() - last > 0.2:  # not at every step: the processes would wait for each other
            with _made.get_lock():
                _made.value += counted
            counted, last = 0, time.monotonic()

    episodes = train_agent(task, recipe, index, count)
    with replacing(path) as temporary, temporary.open("wb") as file:
        lengths = np.array([len(episode["rewards"]) for episode in episodes])
        joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
        np.savez(file, lengths=lengths, **joined)


def _sums(path: Path) -> dict[str, Floats]:
    """The costs and rewards of an agent's episodes (K,)."""
    with np.load(path, allow_pickle=False) as content:
        ends = np.cumsum(content["lengths"])[:-1]
        pieces = {key: np.split(content[key], ends) for key in ("costs", "rewards")}
    return {key: np.array([one.sum(dtype=np.float64) for one in parts]) for key, parts in pieces.items()}


def _gather(paths: Sequence[Path], kept: NDArray[np.bool_]) -> Arrays:
    """The steps of the episodes that are kept, of all agents in a row; only they come into memory together."""
    gathered: dict[str, list[NDArray[Any]]] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as content:
            lengths = content["lengths"]
            rows = np.repeat(kept[: len(lengths)], lengths)
            kept = kept[len(lengths) :]
            for key in content.files:
                if key != "lengths":
                    gathered.setdefault(key, []).append(content[key][rows])
    return {key: np.concatenate(parts) for key, parts in gathered.items()}
