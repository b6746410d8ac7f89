"""Every setting that OSRL publishes (results/published/osrl-hyperparameters.csv) is ours, for every task."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.tasks import all_tasks

TABLE = Path(__file__).parents[2] / "results" / "published" / "osrl-hyperparameters.csv"
NAMES = {"bc": "bc", "bcql": "bcq-lag", "bearl": "bear-lag", "cpq": "cpq", "coptidice": "coptidice", "cdt": "cdt"}
# OSRL's name of a setting: ours.
COMMON = {"update_steps": "steps", "batch_size": "batch_size", "gamma": "gamma"}
CRITIC = {
    **COMMON,
    "a_hidden_sizes": "actor_hidden_sizes",
    "c_hidden_sizes": "critic_hidden_sizes",
    "reward_scale": "reward_scale",
    "cost_scale": "cost_scale",
    "actor_lr": "actor_lr",
    "critic_lr": "critic_lr",
}
Q_LEARNING = {
    **CRITIC,
    "vae_hidden_sizes": "vae_hidden_size",
    "vae_lr": "vae_lr",
    "sample_action_num": "sampled_actions",
    "tau": "polyak",
    "beta": "vae_beta",
    "num_q": "num_q",
    "num_qc": "num_qc",
}
LAGRANGIAN = {**Q_LEARNING, "lmbda": "target_mix", "PID": "pid"}
OURS: dict[str, dict[str, str]] = {
    "bc": {**COMMON, "a_hidden_sizes": "hidden_sizes", "actor_lr": "actor_lr", "bc_mode": "mode"},
    "bcq-lag": {**LAGRANGIAN, "phi": "phi"},
    "bear-lag": {
        **LAGRANGIAN,
        "mmd_sigma": "mmd_sigma",
        "target_mmd_thresh": "mmd_threshold",
        "num_samples_mmd_match": "mmd_samples",
        "start_update_policy_step": "policy_start",
        "kernel": "kernel",
    },
    "cpq": {**Q_LEARNING, "alpha_lr": "alpha_lr", "qc_scalar": "ood_cost"},
    "coptidice": {
        **CRITIC,
        "scalar_lr": "scalar_lr",
        "alpha": "alpha",
        "cost_ub_epsilon": "cost_ub_epsilon",
        "f_type": "divergence",
        "num_nu": "num_nu",
        "num_chi": "num_chi",
    },
    "cdt": {
        "update_steps": "steps",
        "batch_size": "batch_size",
        "seq_len": "sequence_length",
        "embedding_dim": "embedding_dim",
        "num_layers": "num_layers",
        "num_heads": "num_heads",
        "attention_dropout": "attention_dropout",
        "residual_dropout": "residual_dropout",
        "embedding_dropout": "embedding_dropout",
        "learning_rate": "learning_rate",
        "lr_warmup_steps": "warmup_steps",
        "betas": "betas",
        "weight_decay": "weight_decay",
        "clip_grad": "clip_grad",
        "init_temperature": "init_temperature",
        "loss_cost_weight": "cost_loss_weight",
        "loss_state_weight": "state_loss_weight",
        "reward_scale": "reward_scale",
        "cost_scale": "cost_scale",
        "cost_transform": "cost_offset",
        "augment_percent": "augment_share",
        "deg": "augment_degree",
        "max_reward": "augment_max_reward",
        "min_reward": "augment_min_reward",
        "max_rew_decrease": "augment_max_decrease",
        "beta": "augment_beta",
        "target_returns": "target_returns",
    },
}
# What OSRL's configurations leave as it is, and we have in no other way; "*" where it is without effect.
FIXED: dict[str, dict[str, Any]] = {
    "cdt": {
        "action_head_layers": 1,
        "time_emb": True,
        "use_rew": True,
        "use_cost": True,
        "cost_prefix": False,
        "add_cost_feat": False,
        "mul_cost_feat": False,
        "cat_cost_feat": False,
        "cost_reverse": False,
        "stochastic": True,
        "no_entropy": False,
        "pf_sample": False,
        "pf_only": False,
        "start_sampling": False,
        "random_aug": 0,
        "cost_sample": True,  # with linear: cost_sampling = "linear"
        "linear": True,
        **dict.fromkeys(
            (
                "rmin",
                "cost_bins",
                "npb",
                "prob",
                "aug_rmin",
                "aug_rmax",
                "aug_cmin",
                "aug_cmax",
                "cgap",
                "rstd",
                "cstd",
            ),
            "*",
        ),
    }
}
# The suite's, or the task's.
ELSEWHERE = {"eval_episodes", "eval_every", "cost_limit", "episode_len"}


def rows() -> list[dict[str, str]]:
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("osrl_name", NAMES)
def test_every_published_setting_is_ours_on_every_task(osrl_name: str) -> None:
    name = NAMES[osrl_name]
    mine = [row for row in rows() if row["algorithm"] == osrl_name]
    defaults = {row["hyperparameter"]: row["value_json"] for row in mine if row["task"] == "(default)"}
    assert defaults
    kind, compared = registry.load(name), 0
    for task in all_tasks().values():
        special = {row["hyperparameter"]: row["value_json"] for row in mine if row["task"] == task.id}
        config = kind.Hyperparameters.model_validate(kind.published(task)).model_dump(mode="json")
        for setting, text in (defaults | special).items():
            value = json.loads(text)
            if setting == "episode_len":
                assert value == task.max_episode_steps
            elif setting in OURS[name]:
                assert config[OURS[name][setting]] == value, (task.name, setting)
                compared += 1
            elif setting not in ELSEWHERE:
                assert FIXED[name][setting] in ("*", value), (task.name, setting)
    assert compared > 38 * 5


def test_what_osrls_scripts_leave_to_its_trainers() -> None:
    """No configuration has them: the trainers' defaults are in effect."""
    bear_lag = registry.load("bear-lag").Hyperparameters()
    assert bear_lag.alpha_lr == 1e-3  # type: ignore[attr-defined]
    assert registry.load("cdt").Hyperparameters().temperature_lr == 1e-4  # type: ignore[attr-defined]
    assert registry.load("cdt").Hyperparameters().cost_sampling == "linear"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES.values())
def test_adapters_have_our_defaults_and_refuse_what_osrl_cannot_do(name: str) -> None:
    ours, theirs = registry.load(name), registry.load(f"osrl-{name}")
    assert ours.Hyperparameters().model_dump() == theirs.Hyperparameters().model_dump()
    assert ours.per_task == theirs.per_task
    corrected = {
        "cost_bootstrap_through_done": False,
        "cost_critic_reduction": "max",
        "ood_gradient": True,
        "cost_threshold": "per_step",
    }
    for setting, value in corrected.items():
        if setting in ours.Hyperparameters.model_fields:
            ours.Hyperparameters.model_validate({setting: value})
            with pytest.raises(ValueError, match=setting):
                theirs.Hyperparameters.model_validate({setting: value})
