"""What a user sets is bounded: widths, counts and what networks they make."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness import registry
from harness.bounds import MOST_WEIGHTS, require_weights, weights
from harness.data.filters import Filters


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        *(("bc", {"hidden_sizes": sizes}) for sizes in ([0], [-3], [], [10**12], [10**7], [16384, 16384], [8] * 33)),
        *(("bc", {"hidden_sizes": sizes}) for sizes in ([True, 8], [8, [8]], [8.5], True)),
        *(("bc", {name: True}) for name in ("steps", "batch_size", "actor_lr", "gamma")),
        *(("bc", {"steps": 10**12}), ("bc", {"batch_size": 2**40}), ("lspc", {"latent_dim": 10**9})),
        *(("cpq", {"num_q": 10**6}), ("cpq", {"sampled_actions": 10**6}), ("cpq", {"vae_hidden_size": 16384})),
        ("cpq", {"num_q": 100, "critic_hidden_sizes": [2048, 2048]}),
        ("coptidice", {"num_nu": 100, "critic_hidden_sizes": [2048, 2048]}),
        *(("caps", {"sac_critics": 100, "critic_hidden_sizes": [2048, 2048]}), ("caps", {"heads": 1})),
        *(("fisor", {"width": 4096}), ("fisor", {"batch_size": 1}), ("fisor", {"signal_free": 1.0})),
        *(("cdt", {"embedding_dim": 8192, "num_heads": 1}), ("cdt", {"num_layers": 10**6})),
        *(("cdt", {"sequence_length": 10**9}), ("cdt", {"augment_degree": 10**6})),
        *(("cdt", {"target_returns": [[True, 1]]}), ("bear-lag", {"mmd_samples": 10**6})),
    ],
)
def test_what_no_one_could_train_is_refused(algorithm: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        registry.load(algorithm).Hyperparameters.model_validate(settings)


def test_what_someone_may_train_is_taken() -> None:
    assert registry.load("bc").Hyperparameters.model_validate({"hidden_sizes": [2048, 2048, 2048]})
    assert registry.load("lspc").Hyperparameters.model_validate({"timeouts_terminal": True})
    assert registry.load("cdt").Hyperparameters.model_validate({"clip_grad": None, "cost_offset": False})


def test_weights_are_those_between_layers() -> None:
    assert weights((3, 4, 5)) == 12 + 20
    assert weights((3,)) == weights(()) == 0
    require_weights(MOST_WEIGHTS)
    with pytest.raises(ValueError, match=f"networks of {MOST_WEIGHTS + 1} weights are refused"):
        require_weights(MOST_WEIGHTS + 1)


@pytest.mark.parametrize(
    "settings",
    [{"noise": True}, {"noise": float("nan")}, {"inpaint": [[False, True, 0, 1]]}, {"density_grid": {"most": True}}],
)
def test_filters_are_numbers(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Filters.model_validate(settings)
