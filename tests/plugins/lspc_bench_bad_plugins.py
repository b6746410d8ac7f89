"""A linear clone that is fine, and everything that may be wrong with one: a class each, wrong in one place."""

from __future__ import annotations

import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from harness.algorithm import Algorithm, Hyperparameters, Policy, Segments, Selection
from harness.errors import UserError


class Settings(Hyperparameters):
    steps: int = Field(4, ge=1, description="s")
    batch_size: int = Field(4, ge=1, description="b")


class Linear(Policy):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights, requires_grad=False)

    def act(self, observations: Tensor) -> Any:
        return torch.tanh(observations @ self.weights)


class Good(Algorithm[Settings]):
    Hyperparameters = Settings
    policy: type[Linear] = Linear

    @classmethod
    def policy_names(cls, config: Any) -> Any:
        return ("x",)

    @classmethod
    def columns(cls, config: Any) -> Any:
        return ("observations", "actions")

    def __init__(self, config: Any, task: Any, replicas: Any, device: Any = "cpu", dtype: Any = torch.float32) -> None:
        self.weights = torch.zeros(len(replicas), task.observation_size, task.action_size, dtype=dtype, device=device)
        self.count = 0

    def update(self, batch: Any, noise: Any) -> Any:
        self.count += 1
        self.weights += 0.01
        return {"loss": self.weights.mean((1, 2))}

    def policies(self, replica: int) -> Any:
        return {"x": self.policy(self.weights[replica].cpu().clone())}

    def state_dict(self) -> Any:
        return OrderedDict(weights=self.weights, count=self.count)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights, self.count = state["weights"], state["count"]


class Unprintable(BaseException):
    def __str__(self) -> str:
        raise SystemExit("not even its text")


class TwoArgumentsError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class DisguisedError(UserError):
    def __str__(self) -> str:
        raise KeyboardInterrupt


def fails(method: str, error: Any, base: type[Any] = Good) -> type[Any]:
    """A class whose method raises that."""

    def raising(*_: Any, **__: Any) -> Any:
        raise error

    return type("Failing", (base,), {method: raising})


def gives(method: str, answer: Any, base: type[Any] = Good) -> type[Any]:
    """A class whose method gives that, or what a function of self says."""

    def giving(self: Any, *_: Any, **__: Any) -> Any:
        return answer(self) if callable(answer) else answer

    return type("Giving", (base,), {method: giving})


def asked(name: str, answer: Any) -> type[Any]:
    """A class whose class method gives that, or raises it."""

    def answering(*_: Any, **__: Any) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return type("Answering", (Good,), {name: classmethod(answering)})


def acts(answer: Any) -> type[Any]:
    """A class whose policy acts so, on observations (n, dim)."""

    def act(self: Any, observations: Tensor) -> Any:
        return answer(observations)

    return type("Acting", (Good,), {"policy": type("ActingPolicy", (Linear,), {"act": act})})


def policy(**methods: Any) -> type[Any]:
    """A class whose policy has these methods."""
    return type("WithPolicy", (Good,), {"policy": type("SomePolicy", (Linear,), methods)})


def leave(*_: Any) -> Any:
    sys.exit(0)


def spoil(kind: Any, dataset: Any, *_: Any) -> Selection:
    dataset.arrays["rewards"][:] = 7
    return Selection()


class Sets(Good):
    """Changes what all others stand on."""

    def update(self, batch: Any, noise: Any) -> Any:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        os.chdir("/")
        return super().update(batch, noise)


def loop(*_: Any) -> Any:
    if "LSPC_BENCH_TEST_LOOPS" in os.environ:
        os.close(os.open(os.environ["LSPC_BENCH_TEST_LOOPS"], os.O_CREAT))
    while True:
        pass


def recursive() -> list[Any]:
    state: list[Any] = []
    state.append(state)
    return state


class Thing:
    """Pickles, and cannot be read back without running code."""


class Tied(Linear):
    def __init__(self, weights: Tensor) -> None:
        super().__init__(weights)
        self.again = self.weights


class Stops(Settings):
    @field_validator("steps")
    @classmethod
    def _stop(cls, value: int) -> int:
        raise SystemExit(0)


class Odd(Settings):
    f: object = print


class Changes(Settings):
    f: Any = np.float32(0.1)


SEGMENTS = Segments(np.zeros(1, int), np.ones(1), np.zeros(1), np.zeros(1))

FINE: dict[str, type[Any]] = {
    "good": Good,
    "sets": Sets,
    "tied": type("TiedWeights", (Good,), {"policy": Tied}),
}
"""The others must not keep these from what they do."""

RUNNING: dict[str, tuple[type[Any], str]] = {
    "constructor-exits": (fails("__init__", SystemExit(0)), "in __init__: SystemExit: 0"),
    "constructor-interrupts": (fails("__init__", KeyboardInterrupt()), "in __init__: KeyboardInterrupt"),
    "update-exits": (fails("update", SystemExit()), "in update: SystemExit"),
    "update-interrupts": (fails("update", KeyboardInterrupt("me")), "in update: KeyboardInterrupt: me"),
    "update-generator-exit": (fails("update", GeneratorExit()), "in update: GeneratorExit"),
    "update-stops-iteration": (fails("update", StopIteration()), "in update: StopIteration"),
    "update-unprintable": (fails("update", Unprintable()), "in update: Unprintable: (its text cannot be had)"),
    "update-two-arguments": (fails("update", TwoArgumentsError("a", "b")), "in update: TwoArgumentsError: a and b"),
    "update-disguised": (fails("update", DisguisedError("x")), "in update: DisguisedError: (its text cannot be had)"),
    "update-surrogate": (fails("update", ValueError("\udcff\n\nline")), "in update: ValueError: \\udcff line"),
    "update-out-of-memory": (fails("update", MemoryError()), "in update: MemoryError"),
    "metrics-none": (gives("update", None), "in update: TypeError: update must give metrics by name, not NoneType"),
    "metrics-floats": (gives("update", {"loss": 0.5}), "'loss' must be a tensor of real numbers, not float"),
    "metrics-long": (gives("update", {"loss": torch.zeros(7)}), "'loss' has shape (7,), not one value a replica"),
    "metrics-scalar": (gives("update", {"loss": torch.zeros(())}), "'loss' has shape (), not one value a replica"),
    "metrics-complex": (gives("update", {"a": torch.zeros(1) * 1j}), "real numbers, not torch.complex64"),
    "metrics-boolean": (gives("update", {"a": torch.zeros(1) > 0}), "real numbers, not torch.bool"),
    "metrics-step": (gives("update", {"step": torch.zeros(1)}), "a metric cannot be called 'step'"),
    "metrics-numbered": (gives("update", {3: torch.zeros(1)}), "a metric cannot be called 3"),
    "metrics-unnamed": (gives("update", {"": torch.zeros(1)}), "a metric cannot be called ''"),
    "metrics-escape": (gives("update", {"a\x1b[2J": torch.zeros(1)}), "a metric cannot be called "),
    "metrics-nowhere": (gives("update", {"a": torch.zeros(1, device="meta")}), "in update: NotImplementedError: "),
    "policies-exit": (fails("policies", SystemExit(0)), "in policies: SystemExit: 0"),
    "policies-renamed": (
        gives("policies", lambda self: {"y": Linear(self.weights[0])}),
        "gives ['y'] and announced ['x']",
    ),
    "policies-none": (gives("policies", {}), "gives [] and announced ['x']"),
    "policies-nothing": (gives("policies", None), "gives None and announced ['x']"),
    "policies-strange": (gives("policies", {"x": 3}), "gives what is no harness.algorithm.Policy"),
    "act-exits": (acts(leave), "the policy in act: SystemExit: 0"),
    "act-complex": (acts(lambda seen: torch.zeros(len(seen), 2) * 1j), "floating-point numbers, not torch.complex64"),
    "act-boolean": (acts(lambda seen: torch.zeros(len(seen), 2) > 0), "floating-point numbers, not torch.bool"),
    "act-numpy": (acts(lambda seen: np.zeros((len(seen), 2))), "floating-point numbers, not ndarray"),
    "act-none": (acts(lambda seen: None), "floating-point numbers, not NoneType"),
    "act-wide": (acts(lambda seen: torch.zeros(len(seen), 3)), "actions must be of shape (2, 2), not (2, 3)"),
    "act-nan": (acts(lambda seen: torch.full((len(seen), 2), torch.nan)), "must be finite; at step 0 4 are not"),
    "reset-exits": (policy(reset=leave), "the policy in reset: SystemExit: 0"),
    "observe-exits": (policy(observe=leave), "the policy in observe: SystemExit: 0"),
    "state-exits": (fails("state_dict", SystemExit(0)), "in state_dict: SystemExit: 0"),
    "state-lambda": (gives("state_dict", lambda self: {"f": lambda: 1}), "in state_dict: "),
    "state-thing": (
        gives("state_dict", lambda self: {"f": Thing()}),
        "a checkpoint cannot hold its state (Thing): tensors, numbers, ",
    ),
    "state-list": (gives("state_dict", [1]), "an algorithm's state must be a mapping, not list"),
    "state-numpy": (gives("state_dict", lambda self: {"n": np.arange(3)}), "cannot hold its state (ndarray): "),
    "state-recursive": (gives("state_dict", lambda self: {"r": recursive()}), "in state_dict: RecursionError: "),
    "policy-state-number": (policy(state_dict=lambda self: {"w": 3}), "must be dense tensors by name; 'w' is int"),
    "policy-state-none": (policy(state_dict=lambda self: None), "must be tensors by name, not NoneType"),
    "policy-state-sparse": (
        policy(state_dict=lambda self: {"w": torch.eye(3).to_sparse()}),
        "must be dense tensors by name; 'w' is Tensor",
    ),
    "warnings-exit": (asked("warnings", SystemExit(0)), "in warnings: SystemExit: 0"),
    "warnings-text": (asked("warnings", "text"), "in warnings: TypeError: must give a tuple of half sentences"),
    "select-exits": (asked("select", SystemExit(0)), "in select: SystemExit: 0"),
    "select-none": (asked("select", None), "in select: TypeError: must give a Selection, not None"),
    "select-writes": (type("W", (Good,), {"select": classmethod(spoil)}), "in select: ValueError: assignment destin"),
    "select-far": (asked("select", Selection(rows=np.array([10**9]))), "rows must be indices from 0 to "),
    "select-segments": (asked("select", Selection(segments=SEGMENTS)), "gives segments, which go with a sequence"),
    "select-objects": (asked("select", Selection(statistics={"a": np.array([{}])})), "in select: "),
    "noise-huge": (asked("noise", {"n": (10**6, 10**6)}), "must give shapes of up to 33554432 numbers for each agent"),
    "window-huge": (asked("sequence_length", 10**9), "must give None or a number of steps up to 10000, not"),
    "noise-list": (asked("noise", [3]), "in noise: TypeError: must give shapes by name, not [3]"),
    "columns-unknown": (asked("columns", ("no_such_column",)), "KeyError: 'no_such_column'"),
}
"""With what the reason of its cell must say."""

DIAGNOSED: dict[str, tuple[type[Any], str]] = {
    "diagnosed-act-exits": (acts(leave), "in diagnose: SystemExit: 0"),
    "diagnosed-act-narrow": (acts(lambda seen: torch.zeros(len(seen), 1)), "actions must be of shape "),
    "diagnose-exits": (fails("diagnose", SystemExit(0)), "in diagnose: SystemExit: 0"),
    "diagnose-none": (gives("diagnose", None), "diagnose must give metrics by name, not NoneType"),
    "diagnose-complex": (gives("diagnose", {"a": torch.zeros(1) * 1j}), "'a' is no tensor of real numbers"),
}
"""The same, where data is held out."""

PLANNING: dict[str, tuple[type[Any], str]] = {
    "published-exits": (asked("published", SystemExit(0)), "in published: SystemExit: 0"),
    "published-none": (asked("published", None), "in published: TypeError: must give settings by name, not None"),
    "depends-raises": (asked("depends_on_cost_limit", KeyboardInterrupt()), "in depends_on_cost_limit: Keyboard"),
    "depends-text": (asked("depends_on_cost_limit", "yes"), "must give True or False, not 'yes'"),
    "acts-raises": (asked("acts_on_cost_limit", Unprintable()), "in acts_on_cost_limit: Unprintable"),
    "names-raise": (asked("policy_names", TwoArgumentsError("a", "b")), "in policy_names: TwoArgumentsError: a and b"),
    "names-none": (asked("policy_names", ()), "must give a tuple of one name or more"),
    "names-text": (asked("policy_names", "abc"), "must give a tuple of one name or more"),
    "names-twice": (asked("policy_names", ("a", "a")), "must give a tuple of one name or more"),
    "names-escape": (asked("policy_names", ("\x1b[2J",)), "must give a tuple of one name or more"),
    "names-slash": (asked("policy_names", ("a/b",)), "must give a tuple of one name or more"),
    "version-text": (type("V", (Good,), {"version": "x"}), "its version must be a whole number"),
    "requires-text": (type("R", (Good,), {"requires": "torch"}), "its requires must be a tuple of names"),
    "replicas-none": (type("M", (Good,), {"max_replicas": 0}), "its max_replicas must be None or a number from 1 on"),
    "summary-none": (type("S", (Good,), {"summary": None}), "its summary must be text"),
    "per-task-list": (type("P", (Good,), {"per_task": ["a"]}), "its per_task must be settings by task pattern"),
    "model-exits": (type("E", (Good,), {"Hyperparameters": Stops}), "in Hyperparameters: SystemExit: 0"),
    "default-odd": (type("D", (Good,), {"Hyperparameters": Odd}), "in Hyperparameters: PydanticSerializationError"),
}
"""With what the refusal must say."""

ENDLESS: dict[str, type[Any]] = {"update-loops": gives("update", loop), "act-loops": acts(loop)}


class Deadly(Linear):
    """Its first worker is killed, as one may be for want of memory."""

    def act(self, observations: Tensor) -> Any:
        try:
            os.close(os.open(os.environ["LSPC_BENCH_TEST_MARKER"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().act(observations)
        return os.kill(os.getpid(), signal.SIGKILL)


ONCE = {"killed-once": type("Killed", (Good,), {"policy": Deadly})}


def offered() -> dict[str, Any]:
    """Every class by its name."""
    pairs: Sequence[Any] = [*RUNNING.items(), *DIAGNOSED.items(), *PLANNING.items()]
    return {**FINE, **ENDLESS, **ONCE, **{name: kind for name, (kind, _) in pairs}}


for _name, _kind in offered().items():
    globals()[_name.replace("-", "_")] = _kind
