"""What the algorithms measure on held-out data: critics against what was observed, and how well costs are ranked.

The data's observed sums are of the policies that collected it. A critic estimates those of another policy, so that its
error is not all its own; what the figures show is a critic that is constant, of the wrong size or order, or that does
not tell unsafe trajectories from safe ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.algorithm import Replica
from harness.diagnostics import evenly

COLUMNS = ("discounted_rewards_to_go", "discounted_costs_to_go", "safe")
"""What calibrations want of a batch."""

NEIGHBOURS = 20
"""So many of the nearest states say which actions the data has in a state."""
MOST_SUPPORTED = 1_000
"""Steps whose neighbours are looked for; of more, so many at even distances."""


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values, both (R, N): (R,), NaN where none is chosen."""
    return torch.where(chosen, values, 0).sum(1) / chosen.sum(1)


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, of (R, N) and (R, N): (R,); 0 where one of them is constant, for it says nothing of the other."""
    product = torch.ones_like(one, dtype=torch.float64)
    for values in (one.double(), other.double()):
        centred = values - values.mean(1, keepdim=True)
        norm = centred.norm(dim=1, keepdim=True)
        constant = norm <= 1e-9 * values.norm(dim=1, keepdim=True)  # but for the mean's rounding
        product = product * torch.where(constant, 0, centred / norm)
    return product.sum(1)


def auc(scores: Tensor, positive: Tensor) -> Tensor:
    """How often a positive's score lies above a negative's, a tie counting half: (R, N) twice -> (R,).

    The area under the ROC curve by the rank statistic; NaN where there are only positives or only negatives.
    """
    ordered = scores.contiguous().sort(1).values
    below, upto = (torch.searchsorted(ordered, scores.contiguous(), right=right) for right in (False, True))
    ranks = (below + upto + 1).double() / 2
    count = positive.sum(1).double()
    least = count * (count + 1) / 2
    area = (torch.where(positive, ranks, 0).sum(1) - least) / (count * (scores.shape[1] - count))
    return torch.where(scores.isnan().any(1), torch.nan, area)


def calibration(name: str, predicted: Tensor, actual: Tensor) -> dict[str, Tensor]:
    """A critic (R, N) against what was observed (R, N): its mean error and the correlation."""
    return {f"{name}_bias": (predicted - actual).mean(1), f"{name}_correlation": correlation(predicted, actual)}


def cost_calibration(name: str, predicted: Tensor, actual: Tensor, safe: Tensor) -> dict[str, Tensor]:
    """A cost critic (R, N) against what was observed (R, N).

    Its mean error over the steps of safe and over those of unsafe trajectories, its correlation, and the AUC with
    which it tells the steps of unsafe trajectories from those of safe ones.
    """
    return {
        f"{name}_bias_safe": mean_over(predicted - actual, safe),
        f"{name}_bias_unsafe": mean_over(predicted - actual, ~safe),
        f"{name}_correlation": correlation(predicted, actual),
        f"{name}_auc": auc(predicted, ~safe),
    }


def cost_levels(actual: Tensor, safe: Tensor) -> dict[str, Tensor]:
    """The mean observed cost to go (R, N) at the steps of safe and of unsafe trajectories."""
    return {"cost_to_go_safe": mean_over(actual, safe), "cost_to_go_unsafe": mean_over(actual, ~safe)}


def supported(observations: Tensor, actions: Tensor, *candidates: Tensor) -> list[Tensor]:
    """The shares of candidate actions that lie among those that the data has in like states.

    Like a step's state are the :data:`NEIGHBOURS` nearest ones of other steps, each dimension in units of its standard
    deviation. An action lies among theirs if it is between the least and the greatest of them in every dimension.

    Args:
        observations: (R, N, observation_size), two steps at least, the same for all replicas.
        actions: (R, N, action_size), the data's, likewise.
        candidates: other actions in the same states, of each replica.

    Returns:
        (R,) for each of the candidates.
    """
    states = observations[0]
    rows = torch.from_numpy(evenly(len(states), MOST_SUPPORTED)).to(states.device)
    deviation = states.std(0)
    constant = deviation < 1e-6  # a simulator's rounding, which no network sees either
    scaled = states / torch.where(constant, 1, deviation)
    distances = torch.cdist(scaled[rows], scaled, compute_mode="donot_use_mm_for_euclid_dist")
    distances.scatter_(1, rows.unsqueeze(1), torch.inf)  # not the step itself
    nearest = distances.topk(min(NEIGHBOURS, len(states) - 1), largest=False).indices
    low, high = actions[0][nearest].aminmax(dim=1)
    chosen = [one[:, rows] for one in candidates]
    return [((low <= one) & (one <= high)).all(-1).double().mean(1) for one in chosen]


def noise(replicas: Sequence[Replica], like: Tensor, size: int) -> Tensor:
    """Standard normal noise (R, N, size) for a column (R, N, ...), the same in every call and on every device."""
    drawn = [
        torch.randn(like.shape[1], size, generator=replica.generator("diagnostics"), dtype=like.dtype)
        for replica in replicas
    ]
    return torch.stack(drawn).to(like.device)
