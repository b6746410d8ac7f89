"""An environment of the user's, registered with gymnasium."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.guard import UserCodeError, guard, restored
from harness.imports import hidden
from harness.simulators import FloatArray, Picture, SimulatorError, Step, outcome, require_sound
from harness.simulators.code import describe
from harness.simulators.seeding import seeded
from harness.tasks import Task

TRIAL_STEPS, TRIAL_SECONDS = 1000, 20.0
"""The longest trial episode, whichever is over first."""
OLD = (
    "that is the interface of gym < 0.26. Since then, and in gymnasium, reset takes (*, seed, options) and returns "
    "(observation, info), step returns (observation, reward, terminated, truncated, info); "
    "gymnasium.register(..., apply_api_compatibility=True) turns the old into the new"
)


class OwnEnvironment:
    """A task that is none of DSRL's; see :class:`harness.simulators.Environment`.

    Its cost is ``info["cost"]``, as in DSRL. What it gives is checked for its form in every step, as far as
    :func:`harness.simulators.require_sound` cannot see that any more.

    Raises:
        UserError: it cannot be made, or does not fit the dataset.
    """

    def __init__(self, task: Task, drawn: bool = False) -> None:
        from gymnasium.wrappers.time_limit import TimeLimit

        self._env = _make(task, drawn)
        self._task, self._steps = task, 0
        self.observation_size, self.action_size = _sizes(task, self._env)
        for what, size, wanted in (
            ("observations", self.observation_size, task.observation_size),
            ("actions", self.action_size, task.action_size),
        ):
            if size != wanted:
                raise UserError(f"{_called(task)} has {what} of shape ({size},), its dataset ({wanted},)")
        # The limit is kept here: gymnasium's wrapper fails at what an older interface returns, and cannot say so.
        self._stepped = self._env.env if isinstance(self._env, TimeLimit) else self._env
        self.reset(0)  # some simulators build their first world in another way, which differs in the last digits

    def reset(self, seed: int) -> FloatArray:
        """Begin an episode; see :meth:`harness.simulators.Environment.reset`."""
        self._steps = 0
        try:
            with seeded(seed):
                given = self._stepped.reset(seed=seed)
        except TypeError as error:
            if "unexpected keyword argument 'seed'" in str(error):
                raise SimulatorError(f"{_called(self._task)}: reset takes no seed; {OLD}") from error
            raise
        if not (isinstance(given, tuple) and len(given) == 2):
            raise SimulatorError(
                f"{_called(self._task)}: reset returned {_what(given)}, not (observation, info); {OLD}"
            )
        self._require_dict(given[1])
        return self._observation(given[0])

    def step(self, action: FloatArray) -> Step:
        """Take one step; see :meth:`harness.simulators.Environment.step`."""
        given = self._stepped.step(action.copy())  # it may keep the array, or change it
        self._steps += 1
        if not (isinstance(given, tuple) and len(given) == 5):
            hints = {
                4: OLD,
                6: "safety_gymnasium.wrappers.SafetyGymnasium2Gymnasium turns its six values into five",
            }
            count = len(given) if isinstance(given, tuple) else 1
            hint = f"; {hints[count]}" if count in hints else ""
            five = "(observation, reward, terminated, truncated, info)"
            raise SimulatorError(f"{_called(self._task)}: step returned {_what(given)}, not {five}{hint}")
        observation, reward, terminated, truncated, info = given
        self._require_dict(info)
        if "cost" not in info:
            raise self._gave("an info without 'cost', the cost of the step")
        over, out_of_time = (
            bool(self._number(name, flag, "bui"))
            for name, flag in (("terminated", terminated), ("truncated", truncated))
        )
        limit = self._task.max_episode_steps
        if out_of_time and not over and self._steps < limit:
            raise SimulatorError(
                f"{_called(self._task)} truncates the episode at step {self._steps}, before its episode_length of "
                f"{limit}: make them equal; what ends an episode for another reason than time is 'terminated'"
            )
        return outcome(
            self._observation(observation),
            self._number("reward", reward),
            self._number("cost", info["cost"]),
            over,
            out_of_time or self._steps >= limit,
        )

    def draw(self) -> Picture:
        """How it looks now; see :meth:`harness.simulators.Environment.draw`."""
        return np.asarray(self._env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free it."""
        self._env.close()

    def _observation(self, given: Any) -> FloatArray:
        """An observation in an array of its own, whatever the environment does with its own one later."""
        array = _array(given)
        if array is None or array.dtype.kind not in "biuf":
            raise self._gave(f"{_what(given)} for an observation, which is a vector of numbers")
        if array.shape != (self.observation_size,):
            raise self._gave(f"an observation of shape {array.shape}, not ({self.observation_size},)")
        with np.errstate(over="ignore"):  # then it is not finite, which is found
            return array.astype(np.float32)

    def _require_dict(self, info: Any) -> None:
        if not isinstance(info, dict):
            raise self._gave(f"{_what(info)} for its info, which is a dict")

    def _number(self, name: str, given: Any, kinds: str = "biuf") -> float:
        """A number of one step."""
        array = _array(given)
        if array is None or array.dtype.kind not in kinds or array.size != 1:
            wanted = "number" if "f" in kinds else "truth value"
            raise self._gave(f"{_what(given)} for {name!r}, which is one {wanted}")
        return float(array.item())

    def _gave(self, what: str) -> SimulatorError:
        return SimulatorError(f"{_called(self._task)} gave {what}, at step {self._steps}")


def fill_in(task: Task) -> Task:
    """The task with the sizes of its environment in the place of its own.

    Raises:
        UserError: it cannot be made, or one of its spaces is no vector.
    """
    made = _make(task)
    with _blaming(task, "does not run"):
        observation_size, action_size = _sizes(task, made)
        made.close()
    return replace(task, observation_size=observation_size, action_size=action_size)


def code(task: Task) -> str:
    """Which code the task's environment consists of, see :func:`harness.simulators.code.describe`.

    Raises:
        UserError: it cannot be made, or its code cannot be read.
    """
    made = _make(task)
    with _blaming(task, "does not run"):
        creator = made.unwrapped.spec.entry_point
        maker = creator.partition(":")[0] if isinstance(creator, str) else getattr(creator, "__module__", None)
        found = describe(made, [name for name in (_module(task), maker) if name])
        made.close()
    return found


def require(task: Task) -> None:
    """Run a trial episode with random actions, twice, so that a mistake shows before anything is trained.

    Raises:
        UserError: says what is wrong, and at which step.
    """
    with _blaming(task, "does not run"):
        environment = OwnEnvironment(task)
        try:
            first = _trial(environment, task, TRIAL_STEPS)
            again = _trial(environment, task, len(first) - 1)
        finally:
            environment.close()
    step = next((step for step, (one, other) in enumerate(zip(first, again, strict=False)) if one != other), None)
    if step == 0:
        raise UserError(
            f"{_called(task)}: two resets with the same seed begin differently. Draw from self.np_random, which "
            "super().reset(seed=seed) seeds, or seed there what is drawn from"
        )
    if step is not None:
        raise UserError(
            f"{_called(task)}: two episodes with the same seed and the same actions differ at step {step}. What step "
            "draws from must be seeded in reset, and nothing be left there of the episode before; if a simulator keeps "
            "something, make it afresh in reset"
        )


def _trial(environment: OwnEnvironment, task: Task, most: int) -> list[tuple[Any, ...]]:
    """An episode of random actions, or its first steps: what the reset gave, and what each step gave."""
    generator, begun = np.random.default_rng(0), time.monotonic()
    observation = environment.reset(seed=1)
    require_sound(_called(task), 0, observation)
    records: list[tuple[Any, ...]] = [(observation.tobytes(),)]
    for step in range(1, min(most, task.max_episode_steps) + 1):
        action = generator.uniform(-1, 1, task.action_size).astype(np.float32)
        observation, reward, cost, terminated, truncated = environment.step(action)
        require_sound(_called(task), step, observation, reward, cost)
        records.append((observation.tobytes(), reward, cost, terminated, truncated))
        if terminated or truncated or time.monotonic() - begun > TRIAL_SECONDS:
            break
    return records


def _make(task: Task, drawn: bool = False) -> Any:
    """The environment as gymnasium makes it.

    Raises:
        UserError: it cannot be made.
    """
    if find_spec("gymnasium") is None:
        raise UserError(
            f"{_called(task)} needs gymnasium, which is not installed: pip install gymnasium. A suite is "
            "planned where its environments are; what is planned, 'lspc-bench work --no-evaluation' trains without"
        )
    import gymnasium

    # Behind all others: a file beside a suite may be called like a module that anything here needs.
    if task.folder and task.folder not in sys.path:
        sys.path.append(task.folder)
    with _blaming(task, "cannot be made", making=True), seeded(0), restored():
        if module := _module(task):
            import_module(module)
        return gymnasium.make(
            task.environment,
            max_episode_steps=task.max_episode_steps,
            disable_env_checker=True,
            **deepcopy(task.arguments),
            **({"render_mode": "rgb_array"} if drawn else {}),  # type: ignore[arg-type]
        )


def _sizes(task: Task, made: Any) -> tuple[int, int]:
    """The sizes of observations and actions.

    Raises:
        UserError: they are no vectors, or actions do not lie in [-1, 1].
    """
    from gymnasium.spaces import Box

    spaces = {"observations": made.observation_space, "actions": made.action_space}
    for what, space in spaces.items():
        if not isinstance(space, Box):
            if type(space).__module__.partition(".")[0] == "gym":
                raise UserError(f"{_called(task)} has {what} in a space of gym, not of gymnasium: {OLD}")
            flat = ": put gymnasium.wrappers.FlattenObservation around it" if what == "observations" else ""
            raise UserError(f"{_called(task)} has {what} of {type(space).__name__}, not vectors in a Box{flat}")
        if len(space.shape) != 1:
            raise UserError(f"{_called(task)} has {what} of shape {space.shape}, not vectors")
    low, high = spaces["actions"].low, spaces["actions"].high
    if spaces["actions"].dtype.kind != "f":
        raise UserError(f"{_called(task)} has actions of {spaces['actions'].dtype}, not floating-point numbers")
    if not np.isfinite([low, high]).all():
        raise UserError(
            f"{_called(task)} has actions without bounds: they must lie in [-1, 1], the dataset's too; a wrapper of "
            "yours can scale them"
        )
    if not (np.all(low == -1) and np.all(high == 1)):
        raise UserError(
            f"{_called(task)} has actions outside [-1, 1]: put gymnasium.wrappers.RescaleAction around it, and scale "
            "the dataset's likewise"
        )
    return spaces["observations"].shape[0], spaces["actions"].shape[0]


@contextmanager
def _blaming(task: Task, what: str, making: bool = False) -> Iterator[None]:
    """Turn what the user's code raises inside, which may be anything, into an error that names the environment."""
    try:
        with guard(_called(task), what):
            yield
    except UserCodeError as error:
        raised = error.__context__  # what it tells of
        if type(raised) is SimulatorError:
            raise UserError(str(raised)) from error
        hint = hidden(raised) or (_hint(task, raised) if making else "")
        raise UserError(f"{_called(task)} {what}, {error.reason}{hint}") from error


def _hint(task: Task, error: BaseException | None) -> str:
    """What may be the matter where an environment cannot be made, or nothing."""
    top = _module(task).partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name == top:
        places = f"beside the suite, in {task.folder!r}, in a folder of PYTHONPATH, or installed"
        return f" (its code is looked for {places})"
    if isinstance(error, TypeError) and "argument" in str(error):
        return f" (what it is made with stands in own_tasks.{task.name}.arguments)"
    if not top or not task.folder:
        return ""
    beside = Path(task.folder, top)
    file = Path(getattr(sys.modules.get(top), "__file__", None) or "")
    if (beside.is_dir() or beside.with_suffix(".py").exists()) and Path(task.folder) not in file.parents:
        return f" (the module {top!r} that is found is {str(file)!r}, not the one beside the suite: rename yours)"
    return ""


def _module(task: Task) -> str:
    """The module that is imported first, so that it registers the environment; empty where none is named."""
    return task.environment.rpartition(":")[0]


def _called(task: Task) -> str:
    return f"{task.name} ({task.environment!r})"


def _array(given: Any) -> NDArray[Any] | None:
    """Something as an array; nothing where it is none."""
    try:
        return np.asarray(given)
    except Exception:  # ragged lists, and whatever a stranger's type raises
        return None


def _what(given: Any) -> str:
    """A value that is wrong, in few words."""
    if isinstance(given, tuple):
        return f"{len(given)} values"
    if isinstance(given, np.ndarray):
        return f"an array of {given.dtype} of shape {given.shape}"
    text = repr(given) if isinstance(given, (str, int, float, complex, type(None))) else ""
    return text if 0 < len(text) < 50 else f"something of type {type(given).__name__}"
