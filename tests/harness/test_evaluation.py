"""Roll-outs: the same whatever the number of workers, and a failure stays where it happened."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness import evaluation, simulators
from harness.algorithm import Policy
from harness.evaluation import Episode, Evaluator, episode_seeds, roll_out
from harness.guard import TookTooLong, UserCodeError
from harness.pool import Pool, WorkerDied
from harness.tasks import all_tasks, find_task

TASK = find_task("BallRun")


class Fixed(Policy):
    """Does what it is told, whatever it sees."""

    def __init__(self, action: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.action = action

    def act(self, observations: Tensor) -> Tensor:
        return self.action(observations)


class Recorder(Policy):
    """Keeps what it is given; noise alone as actions."""

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        super().reset(seeds, cost_limit)
        self.limit, self.seen, self.brought = cost_limit, [], []  # type: ignore[var-annotated]

    def act(self, observations: Tensor) -> Tensor:
        self.seen.append(observations.clone())
        return torch.tanh(self.noise(TASK.action_size))

    def observe(self, rewards: Tensor, costs: Tensor) -> None:
        self.brought.append(torch.stack([rewards, costs]))


class Countdown:
    """An environment whose episodes last as many steps as the seed says; each brings reward 1 and cost 2."""

    def __init__(self, task: Any) -> None:
        self.left = 0

    def reset(self, seed: int) -> Any:
        self.left = seed
        return np.full(TASK.observation_size, seed, np.float32)

    def step(self, action: Any) -> tuple[Any, float, float, bool, bool]:
        assert self.left > 0, "stepped after its end"
        self.left -= 1
        return np.full(TASK.observation_size, self.left, np.float32), 1.0, 2.0, self.left == 0, False

    def close(self) -> None:
        pass


@pytest.fixture
def toys(plugins: Path) -> ModuleType:
    """The policies of the test plugins, which workers can import."""
    import lspc_bench_test_plugins

    return lspc_bench_test_plugins


@pytest.fixture
def countdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulators, "make", Countdown)
    monkeypatch.setattr(evaluation, "_OPEN", {})


def weights() -> Tensor:
    return torch.randn(TASK.observation_size, TASK.action_size, generator=torch.Generator().manual_seed(0))


def rolled(workers: int, policy: Policy, seeds: Sequence[int]) -> list[Episode]:
    with Evaluator(workers) as evaluator:
        return [episode for future in evaluator.submit(TASK, policy, seeds, None) for episode in future.result()]


# Results


def test_workers_do_not_change_results(toys: ModuleType) -> None:
    seeds = episode_seeds(TASK, 0, 23)
    here = rolled(0, toys.Noisy(weights()), seeds)
    assert [episode.seed for episode in here] == seeds
    assert len({episode.episode_return for episode in here}) == 23
    for workers in (1, 2):
        assert rolled(workers, toys.Noisy(weights()), seeds) == here


@pytest.mark.parametrize("workers", [0, 1, 7])
def test_chunks_do_not_depend_on_the_workers(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """However many there are; the pool itself is not started."""
    chunks: list[list[int]] = []

    monkeypatch.setattr(Evaluator, "_here", lambda self, *given: chunks.append(given[-2]))
    monkeypatch.setattr(Pool, "submit", lambda self, function, task, policy, seeds, limit, **_: chunks.append(seeds))
    Evaluator(workers).submit(TASK, Recorder(), range(23), None)
    assert [len(chunk) for chunk in chunks] == [10, 10, 3]
    assert [seed for chunk in chunks for seed in chunk] == list(range(23))


def test_an_episode_does_not_depend_on_its_neighbours(toys: ModuleType) -> None:
    policy = toys.Noisy(weights())
    alone = [roll_out(TASK, policy, [seed], None)[0] for seed in (3, 4, 5)]
    assert [episode.seed for episode in alone] == [3, 4, 5]
    for order in ([3, 4, 5], [5, 3, 4], [4, 9, 3, 8, 5]):
        together = {episode.seed: episode for episode in roll_out(TASK, policy, order, None)}
        for episode in alone:
            other = together[episode.seed]
            assert (other.cost, other.length) == (episode.cost, episode.length)
            # The batched matrix product may round differently for another number of environments.
            assert other.episode_return == pytest.approx(episode.episode_return, rel=1e-5)


def test_noise_does_not_depend_on_neighbours(countdown: None) -> None:
    def noise(seeds: Sequence[int]) -> list[Tensor]:
        policy = Recorder()
        policy.reset(seeds, None)
        return [policy.noise(3) for _ in range(4)]

    alone = noise([7])
    for together, row in ((noise([7, 8]), 0), (noise([8, 9, 7]), 2)):
        assert all(torch.equal(one[0], other[row]) for one, other in zip(alone, together, strict=True))
    first, second = noise([7, 8])[0]
    assert not torch.equal(first, second)
    assert torch.equal(noise([7])[3], alone[3])  # a reset starts anew


def test_episodes_of_different_length(countdown: None) -> None:
    policy = Recorder()
    episodes = roll_out(TASK, policy, [2, 5, 1], 7.5)
    assert episodes == [Episode(n, float(n), 2.0 * n, n) for n in (2, 5, 1)]
    assert policy.limit == 7.5
    assert len(policy.seen) == 5
    assert {seen.shape for seen in policy.seen} == {(3, TASK.observation_size)}
    assert [seen[:, 0].tolist() for seen in policy.seen[:3]] == [[2, 5, 1], [1, 4, 0], [0, 3, 0]]
    # What a finished episode would bring is nothing.
    assert [brought[1].tolist() for brought in policy.brought[:3]] == [[2, 2, 2], [2, 2, 0], [0, 2, 0]]


def test_no_gradient_is_kept_and_the_policy_is_in_evaluation_mode(countdown: None) -> None:
    policy = Fixed(lambda observations: torch.zeros(len(observations), TASK.action_size))
    modes = []
    policy.action = lambda observations: (
        modes.append((policy.training, torch.is_inference_mode_enabled()))  # type: ignore[func-returns-value]
        or torch.zeros(len(observations), TASK.action_size)
    )
    policy.train()
    roll_out(TASK, policy, [1], None)
    assert modes == [(False, True)]


# Seeds


@given(st.sampled_from(sorted(all_tasks())), st.integers(0, 2**40), st.integers(1, 50))
def test_seeds_are_a_function_of_task_and_seed(task: str, seed: int, count: int) -> None:
    seeds = episode_seeds(all_tasks()[task], seed, count)
    assert seeds == episode_seeds(all_tasks()[task], seed, 60)[:count]
    assert all(0 <= one < 2**31 for one in seeds)
    assert len(set(seeds)) == count
    assert not set(seeds) & set(episode_seeds(all_tasks()[task], seed + 1, 60))


def test_seeds_differ_between_tasks() -> None:
    first = [episode_seeds(task, 0, 1)[0] for task in all_tasks().values()]
    assert len(set(first)) == len(first)


# Failures


@pytest.mark.parametrize(
    ("action", "part"),
    [
        (lambda seen: torch.full((len(seen), TASK.action_size), torch.nan), "at step 0 4 are not"),
        (lambda seen: torch.full((len(seen), TASK.action_size), torch.inf), "at step 0 4 are not"),
        (lambda seen: torch.where(seen[:, :2] < 3, torch.nan, 0.0), "at step 3 2 are not"),
    ],
)
def test_actions_that_are_not_finite_are_refused(
    countdown: None, action: Callable[[Tensor], Tensor], part: str
) -> None:
    with pytest.raises(RuntimeError, match=f"the policy's actions must be finite; {part}"):
        roll_out(TASK, Fixed(action), [5, 9], None)


def test_what_a_finished_episode_does_is_no_matter(countdown: None) -> None:
    policy = Fixed(lambda seen: torch.where(seen[:, :2] == 0, torch.nan, 0.0))
    assert [episode.length for episode in roll_out(TASK, policy, [1, 3], None)] == [1, 3]


def test_without_workers_an_exception_waits_in_its_future(countdown: None) -> None:
    def action(seen: Tensor) -> Tensor:
        if seen[0, 0] == 11:  # the second chunk begins with seed 11
            raise ArithmeticError("the policy gives up")
        return torch.zeros(len(seen), TASK.action_size)

    with Evaluator(0) as evaluator:
        first, second = evaluator.submit(TASK, Fixed(action), range(1, 13), None)
    assert [episode.seed for episode in first.result()] == list(range(1, 11))
    with pytest.raises(UserCodeError, match=r"^the policy in act: ArithmeticError: the policy gives up$"):
        second.result()


def test_an_exception_carries_the_workers_traceback(toys: ModuleType) -> None:
    with Evaluator(1) as evaluator:
        (future,) = evaluator.submit(TASK, toys.Raising(weights()), [0], None)
        with pytest.raises(UserCodeError, match="the toy policy gives up") as caught:
            future.result(timeout=60)
        assert 'raise ArithmeticError("the toy policy gives up")' in caught.value.trace
        (future,) = evaluator.submit(TASK, toys.Linear(weights()), [0], None)
        assert [episode.seed for episode in future.result(timeout=60)] == [0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_policy_is_timed_alone_and_for_ten(toys: ModuleType, workers: int) -> None:
    with Evaluator(workers) as evaluator:
        timed = evaluator.time(TASK, toys.Linear(weights()), None).result(timeout=300)
        assert list(timed) == ["1", "10"]
        assert all(milliseconds > 0 for milliseconds in timed.values())
        with pytest.raises(UserCodeError, match="the toy policy gives up"):
            evaluator.time(TASK, toys.Raising(weights()), None).result(timeout=300)


def test_a_policy_that_kills_its_workers_fails_alone(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    monkeypatch.setenv(toys.MARKER, str(marker))
    with Evaluator(1) as evaluator:
        before = evaluator.submit(TASK, toys.Linear(weights()), range(10), None)
        (deadly,) = evaluator.submit(TASK, toys.Deadly(weights()), range(3), None)
        after = evaluator.submit(TASK, toys.Linear(weights()), range(10, 22), None)
        with pytest.raises(WorkerDied) as caught:
            deadly.result(timeout=60)
        assert caught.value.exitcode == -signal.SIGKILL
        done = [episode.seed for future in [*before, *after] for episode in future.result(timeout=60)]
        assert done == list(range(22))
        marker.unlink()
        (again,) = evaluator.submit(TASK, toys.Deadly(weights()), range(3), None)
        assert again.result(timeout=60) == roll_out(TASK, toys.Linear(weights()), range(3), None)


def test_episodes_without_an_end_are_ended(countdown: None) -> None:
    def endless(seen: Tensor) -> Tensor:
        while seen[0, 0] == 3:
            pass
        return torch.zeros(len(seen), TASK.action_size)

    with Evaluator(0, episode_seconds=0.1) as evaluator:
        (future,) = evaluator.submit(TASK, Fixed(endless), [3, 3], None)
        with pytest.raises(TookTooLong, match=r"^took longer than its 0\.2 s: ended after \d+ s$"):
            future.result()
        evaluator.episode_seconds = 600.0
        (future,) = evaluator.submit(TASK, Fixed(endless), [2], None)
        assert [episode.seed for episode in future.result()] == [2]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_policy_that_does_not_travel_is_refused(toys: ModuleType, workers: int) -> None:
    policy = toys.Linear(weights())
    policy.extra = lambda: None
    with Evaluator(workers) as evaluator:
        if workers:
            with pytest.raises(UserCodeError, match=r"^the policy in pickling: .*"):
                evaluator.submit(TASK, policy, [0], None)[0].result()
        else:
            assert len(evaluator.submit(TASK, policy, [0], None)[0].result()) == 1


@pytest.mark.parametrize(
    ("action", "part"),
    [
        (lambda seen: torch.zeros(len(seen), TASK.action_size, dtype=torch.complex64), "not torch.complex64"),
        (lambda seen: torch.zeros(len(seen), TASK.action_size, dtype=torch.bool), "not torch.bool"),
        (lambda seen: torch.zeros(len(seen), TASK.action_size, dtype=torch.int64), "not torch.int64"),
        (lambda seen: np.zeros((len(seen), TASK.action_size)), "not ndarray"),
        (lambda seen: None, "not NoneType"),
        (lambda seen: torch.zeros(len(seen), TASK.action_size + 1), r"of shape \(2, 2\), not \(2, 3\)"),
        (lambda seen: torch.zeros(TASK.action_size), r"of shape \(2, 2\), not \(2,\)"),
        (lambda seen: torch.zeros(1, TASK.action_size), r"of shape \(2, 2\), not \(1, 2\)"),
        (lambda seen: sys.exit(), "^the policy in act: SystemExit$"),
    ],
)
def test_what_a_policy_does_in_the_place_of_acting_is_its_fault(
    countdown: None, action: Callable[[Tensor], Tensor], part: str
) -> None:
    with pytest.raises(UserCodeError, match=part):
        roll_out(TASK, Fixed(action), [5, 9], None)


@pytest.mark.parametrize("method", ["__init__", "reset", "step"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, ZeroDivisionError])
def test_what_an_environment_raises_names_it(
    monkeypatch: pytest.MonkeyPatch, method: str, kind: type[BaseException]
) -> None:
    def broken(*_: Any) -> Any:
        raise kind("the environment gives up")

    monkeypatch.setattr(simulators, "make", type("Broken", (Countdown,), {method: broken}))
    monkeypatch.setattr(evaluation, "_OPEN", {})
    doing = "make" if method == "__init__" else method
    reason = f"^the environment {TASK.environment!r} in {doing}: {kind.__name__}: the environment gives up$"
    with pytest.raises(UserCodeError, match=reason):
        roll_out(TASK, Fixed(lambda seen: torch.zeros(len(seen), TASK.action_size)), [5], None)


def test_an_environment_that_does_not_close_costs_no_episode(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def close(self: Countdown) -> None:
        raise SystemExit("the door is stuck")

    monkeypatch.setattr(simulators, "make", type("Stuck", (Countdown,), {"close": close}))
    monkeypatch.setattr(evaluation, "_OPEN", {})
    with Evaluator(0) as evaluator:
        (future,) = evaluator.submit(TASK, Fixed(lambda seen: torch.zeros(len(seen), TASK.action_size)), [3], None)
    assert [episode.length for episode in future.result()] == [3]
    assert "does not close: SystemExit: the door is stuck" in caplog.text


@pytest.mark.parametrize("step", [0, 1])
def test_an_observation_that_is_not_finite_is_the_environments_fault(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    class Broken(Countdown):
        def reset(self, seed: int) -> Any:
            return super().reset(seed) * (np.nan if step == 0 else 1)

        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            return (observation * np.nan, *rest)

    monkeypatch.setattr(simulators, "make", Broken)
    monkeypatch.setattr(evaluation, "_OPEN", {})
    with pytest.raises(
        simulators.SimulatorError, match=f"BallRun gave an observation that is not finite at step {step}"
    ):
        roll_out(TASK, Fixed(lambda observations: torch.zeros(len(observations), TASK.action_size)), [3], None)


@pytest.mark.parametrize(("reward", "cost"), [(float("nan"), 0.0), (1.0, float("inf"))])
def test_what_is_not_finite_never_becomes_a_result(monkeypatch: pytest.MonkeyPatch, reward: float, cost: float) -> None:
    class Broken(Countdown):
        def step(self, action: Any) -> Any:
            observation, _, _, terminated, truncated = super().step(action)
            return observation, reward, cost, terminated, truncated

    monkeypatch.setattr(simulators, "make", Broken)
    monkeypatch.setattr(evaluation, "_OPEN", {})
    with pytest.raises(RuntimeError, match=f"BallRun gave reward {reward} and cost {cost} at step 1"):
        roll_out(TASK, Fixed(lambda observations: torch.zeros(len(observations), TASK.action_size)), [3], None)
