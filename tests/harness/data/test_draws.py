"""The draws of a replica are its own, in order, and go on after a checkpoint at any step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.algorithm import Replica
from harness.data.draws import BLOCK, UNIT, Draws
from harness.data.sampling import Columns, TransitionSampler

NOISE = {"vae": (4, 3), "latent": (4, 2)}
REPLICAS = [Replica(seed, limit, "task|algorithm") for seed, limit in ((0, None), (1, 10.0), (1, 20.0), (2, None))]
ROWS = [None, torch.tensor([2, 3, 5, 7, 11]), torch.tensor([13]), torch.arange(40, 90)]


def draws(chosen: Sequence[int] = range(4), **settings: Any) -> Draws:
    data = Columns({"rows": torch.arange(100)}, "cpu", settings.pop("on_host", False))
    sampler = TransitionSampler(data, 100, [ROWS[i] for i in chosen])
    return Draws([REPLICAS[i] for i in chosen], sampler, 4, NOISE, **settings)


def flat(drawn: tuple[dict[str, Tensor], dict[str, Tensor]]) -> list[Tensor]:
    batch, noise = drawn
    return [*batch.values(), *noise.values()]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def test_sizes_and_rows() -> None:
    drawn = draws(dtype=torch.float64)
    seen: list[set[int]] = [set(), set(), set(), set()]
    for step in range(2 * BLOCK):
        batch, noise = drawn.at(step)
        indices = batch["rows"]
        assert indices.shape == (4, 4)
        assert {name: tuple(numbers.shape) for name, numbers in noise.items()} == {
            "vae": (4, 4, 3),
            "latent": (4, 4, 2),
        }
        assert {numbers.dtype for numbers in noise.values()} == {torch.float64}
        for replica, mine in enumerate(indices.tolist()):
            seen[replica].update(mine)
    # 512 draws: all of a small selection is met, and nothing outside of it.
    assert seen[1:3] == [{2, 3, 5, 7, 11}, {13}]
    assert seen[3] == set(range(40, 90))
    assert len(seen[0]) > 90
    assert seen[0] <= set(range(100))


def test_noise_is_standard_normal_and_no_two_replicas_share_any() -> None:
    drawn = draws()
    numbers = torch.stack([drawn.at(step)[1]["vae"] for step in range(8 * BLOCK)], 1).flatten(1)
    assert numbers.mean(1).abs().max() < 0.05
    assert (numbers.std(1) - 1).abs().max() < 0.05
    assert (torch.corrcoef(numbers) - torch.eye(4)).abs().max() < 0.06


@settings(max_examples=25)
@given(st.permutations(range(4)).flatmap(lambda order: st.integers(1, 4).map(lambda size: order[:size])))
def test_a_replicas_draws_do_not_depend_on_the_others(chosen: list[int]) -> None:
    whole, part = draws(), draws(chosen)
    for step in range(BLOCK + 1):
        assert equal([values[chosen] for values in flat(whole.at(step))], flat(part.at(step)))


@settings(max_examples=25)
@given(st.integers(0, 3 * BLOCK), st.integers(1, BLOCK + 2))
def test_a_checkpoint_at_any_step_continues_the_same(taken_before: int, more: int) -> None:
    whole = draws()
    for step in range(taken_before):
        whole.at(step)
    state = whole.state_dict()
    resumed = draws()
    resumed.load_state_dict(state)
    for step in range(taken_before, taken_before + more):
        assert equal(flat(whole.at(step)), flat(resumed.at(step)))


def test_a_state_is_not_changed_by_what_is_drawn_after_it() -> None:
    drawn = draws()
    expected = [values.clone() for values in flat(drawn.at(0))]  # a block's memory is used again
    state = drawn.state_dict()
    for step in range(BLOCK, 3 * BLOCK):
        drawn.at(step)
    resumed = draws()
    resumed.load_state_dict(state)
    assert equal(expected, flat(resumed.at(0)))


def test_drawing_leaves_torchs_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draws().at(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("steps", [UNIT, 3 * UNIT, BLOCK])
def test_draws_depend_neither_on_the_blocks_size_nor_on_where_the_data_lies(steps: int, on_host: bool) -> None:
    usual, other = draws(), draws(steps=steps, on_host=on_host)
    for step in range(2 * BLOCK + 1):
        expected = flat(usual.at(step))
        other.aim(step)
        assert equal(expected, flat(other.at(step)))
        assert equal(expected, flat(other.aimed()))


@settings(max_examples=15)
@given(st.integers(0, 2 * BLOCK), st.sampled_from([UNIT, 2 * UNIT, BLOCK]), st.sampled_from([UNIT, BLOCK]))
def test_a_checkpoint_continues_with_blocks_of_another_size(taken_before: int, first: int, second: int) -> None:
    whole, resumed = draws(steps=first, on_host=True), draws(steps=second, on_host=first == BLOCK)
    for step in range(taken_before):
        whole.at(step)
    resumed.at(0)  # what was prepared before is forgotten
    resumed.load_state_dict(whole.state_dict())
    for step in range(taken_before, taken_before + 3):
        assert equal(flat(whole.at(step)), flat(resumed.at(step)))


def test_a_changed_batch_leaves_the_block_alone() -> None:
    for on_host in (False, True):
        drawn = draws(on_host=on_host)
        batch, _ = drawn.at(0)
        before = batch["rows"].clone()
        batch["rows"].zero_()
        assert torch.equal(drawn.at(0)[0]["rows"], before)


def test_going_back_is_refused() -> None:
    drawn = draws()
    drawn.at(BLOCK)
    with pytest.raises(ValueError, match="taken in order"):
        drawn.at(0)


def test_a_block_is_of_whole_units() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        draws(steps=UNIT + 1)
