"""A CUDA graph's behaviour on a CPU: what was recorded is done again in the same memory, and Python does not run again.

So everything about the graph engine but CUDA itself can be tested without a GPU: that an update reads and writes only
memory that stays where it is, that it counts nothing in Python, that its random numbers go on from replay to replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from harness.contract import NoSynchronisation

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine, or this build of torch, has no CUDA")


class Recording:
    """Stands in for :class:`harness.engine.CudaGraph`."""

    captures = 0
    """Of all recordings, for tests to look at."""

    def __init__(self) -> None:
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def capture(self, body: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        """Record, and undo what recording did: capturing a CUDA graph runs nothing."""
        Recording.captures += 1
        recorder = _Recorder(generators)
        with recorder, NoSynchronisation():  # type: ignore[no-untyped-call]
            body()
        recorder.undo()
        self._operations = recorder.operations

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, results in self._operations:
                outputs = [out for out in tree_flatten(function(*args, **kwargs))[0] if isinstance(out, Tensor)]
                for result, output in zip(results, outputs, strict=True):
                    if result.data_ptr() != output.data_ptr():
                        result.copy_(output)

    @staticmethod
    @contextmanager
    def beside() -> Iterator[None]:
        yield


class _Recorder(TorchDispatchMode):
    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._generators = generators
        self._states = [(generator, generator.get_state()) for generator in generators]
        self._born: set[int] = set()  # storages that the recording made
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._save_what_changes(func, args, kwargs)
        generator = kwargs.get("generator")
        if generator is None and torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func.name()} draws from a generator that belongs to nobody")
        # The dispatcher hands over another Python object for the same generator.
        if generator is not None and not any(
            torch.equal(generator.get_state(), known.get_state()) for known in self._generators
        ):
            raise RuntimeError(f"{func.name()} draws from a generator that the graph does not know")
        out = func(*args, **kwargs)
        results = [one for one in tree_flatten(out)[0] if isinstance(one, Tensor)]
        known = {one.untyped_storage().data_ptr() for one in _tensors(args, kwargs)}
        self._born |= {one.untyped_storage().data_ptr() for one in results} - known
        only_looks = torch.Tag.inplace_view in func.tags or (
            not _writes(func) and all(one.untyped_storage().data_ptr() in known for one in results)
        )
        if not only_looks:  # a view has the same memory for good
            # As they are now: shapes and lists change later.
            arguments, options, results = tree_map(_alias, (args, kwargs, results))
            self.operations.append((func, arguments, options, results))
        return out

    def _save_what_changes(self, func: Any, args: Any, kwargs: Any) -> None:
        for index, argument in enumerate(func._schema.arguments):
            value = kwargs.get(argument.name, args[index] if index < len(args) else None)
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in _tensors((value,), {}):
                key = tensor.untyped_storage().data_ptr()
                if key not in self._born and key not in self._before:
                    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                    self._before[key] = (whole, whole.clone())

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, before in self._before.values():
                tensor.copy_(before)
        for generator, state in self._states:
            generator.set_state(state)


def _writes(func: Any) -> bool:
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)


def _alias(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
