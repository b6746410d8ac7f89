"""Every baseline, two replicas stacked, against OSRL's own unmodified trainer: 50 steps in float64.

Both sides start from the same weights and see the same batches and the same noise: what OSRL draws from torch's global
generators is handed to it instead. Every parameter, target, multiplier and moment of an optimiser is compared.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from pairing import Pair, compare, copy_weights, optimizers, pair_ensemble, pair_layers
from torch import Tensor, nn

from algorithms.parts.networks import StackedEmbedding
from harness import registry
from harness.algorithm import Algorithm, Replica
from harness.tasks import find_task

TASK = find_task("BallRun")
REPLICAS, STEPS, BATCH, TOLERANCE = 2, 50, 32, 1e-7
SMALL_CRITIC = {"batch_size": BATCH, "actor_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 12)}
SMALL_Q = {**SMALL_CRITIC, "vae_hidden_size": 20, "sampled_actions": 4, "critic_lr": 5e-3}
SMALL_CDT = {
    "batch_size": BATCH,
    "sequence_length": 5,
    "embedding_dim": 16,
    "num_heads": 4,
    "num_layers": 2,
    "warmup_steps": 20,
    "state_loss_weight": 0.1,
}
NO_DROPOUT = {"attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("bc", {"batch_size": BATCH, "hidden_sizes": (16, 16)}),
    "bc multi-task": ("bc", {"batch_size": BATCH, "hidden_sizes": (16, 16), "mode": "multi-task"}),
    "bcq-lag": ("bcq-lag", SMALL_Q),
    "bcq-lag, other sizes": ("bcq-lag", {**SMALL_Q, "num_q": 1, "num_qc": 3, "phi": 0.2, "polyak": 0.1}),
    "bear-lag": ("bear-lag", {**SMALL_Q, "mmd_samples": 3}),
    "bear-lag, laplacian, late": (
        "bear-lag",
        {**SMALL_Q, "mmd_samples": 3, "kernel": "laplacian", "mmd_sigma": 5.0, "policy_start": 20},
    ),
    "cpq": ("cpq", SMALL_Q),
    "coptidice": ("coptidice", SMALL_CRITIC),
    "coptidice, chi2, one network": (
        "coptidice",
        {**SMALL_CRITIC, "divergence": "chi2", "num_nu": 1, "num_chi": 1, "scalar_lr": 1e-2},
    ),
    "coptidice, kl": ("coptidice", {**SMALL_CRITIC, "divergence": "kl"}),
    "coptidice, no bound": ("coptidice", {**SMALL_CRITIC, "cost_ub_epsilon": 0.0}),
    "cdt, no dropout": ("cdt", {**SMALL_CDT, **NO_DROPOUT}),
    "cdt, dropout": ("cdt", {**SMALL_CDT, "attention_dropout": 0.2, "residual_dropout": 0.1}),
    "cdt, not clipped": ("cdt", {**SMALL_CDT, **NO_DROPOUT, "clip_grad": None, "cost_offset": False}),
}


# What belongs together


def pair_gaussian(name: str, ours: Any, theirs: Any) -> list[Pair]:
    return pair_layers(name, ours, theirs.net, theirs.mu_layer, theirs.log_std_layer)


def pair_vae(ours: Any, theirs: Any) -> list[Pair]:
    encoder = pair_layers("encoder", ours.encoder, theirs.e1, theirs.e2, theirs.mean, theirs.log_std)
    return encoder + pair_layers("decoder", ours.decoder, theirs.d1, theirs.d2, theirs.d3)


def twins(critic: Any) -> list[nn.Module]:
    return [*critic.q1_nets, *critic.q2_nets]


def pair_bc(ours: Any, theirs: Any) -> list[Pair]:
    return pair_layers("actor", ours.actor, theirs.actor.pi)


def pair_bcq_lag(ours: Any, theirs: Any) -> list[Pair]:
    pairs = pair_vae(ours.vae, theirs.vae)
    for nets, suffix in ((ours.networks, ""), (ours.targets, "_old")):
        pairs += pair_layers(f"actor{suffix}", nets["actor"], getattr(theirs, f"actor{suffix}").pi)
        pairs += pair_ensemble(f"critic{suffix}", nets["critics"], twins(getattr(theirs, f"critic{suffix}")))
        pairs += pair_ensemble(
            f"cost_critic{suffix}", nets["cost_critics"], twins(getattr(theirs, f"cost_critic{suffix}"))
        )
    return pairs


def pair_bear_lag(ours: Any, theirs: Any) -> list[Pair]:
    pairs = pair_vae(ours.vae, theirs.vae)
    for nets, suffix in ((ours.networks, ""), (ours.targets, "_old")):
        pairs += pair_gaussian(f"actor{suffix}", nets["actor"], getattr(theirs, f"actor{suffix}"))
        pairs += pair_ensemble(f"critic{suffix}", nets["critics"], twins(getattr(theirs, f"critic{suffix}")))
        pairs += pair_ensemble(
            f"cost_critic{suffix}", nets["cost_critics"], twins(getattr(theirs, f"cost_critic{suffix}"))
        )
    return pairs


def pair_cpq(ours: Any, theirs: Any) -> list[Pair]:
    """Without OSRL's actor_old, which nothing reads."""
    pairs = pair_vae(ours.vae, theirs.vae) + pair_gaussian("actor", ours.actor, theirs.actor)
    for nets, suffix in ((ours.critics, ""), (ours.targets, "_old")):
        pairs += pair_ensemble(f"critic{suffix}", nets["reward"], getattr(theirs, f"critic{suffix}").q_nets)
        pairs += pair_ensemble(f"cost_critic{suffix}", nets["cost"], getattr(theirs, f"cost_critic{suffix}").q_nets)
    return pairs


def pair_coptidice(ours: Any, theirs: Any) -> list[Pair]:
    return [
        *pair_gaussian("actor", ours.actor, theirs.actor),
        *pair_ensemble("nu", ours.nu, theirs.nu_network.q_nets),
        *pair_ensemble("chi", ours.chi, theirs.chi_network.q_nets),
        Pair("lambda", ours.scalars["lambda"], theirs.lmbda),
        Pair("tau", ours.scalars["tau"], theirs.tau),
    ]


def pair_cdt(ours: Any, theirs: Any) -> list[Pair]:
    net = ours.network

    assert isinstance(net.time, StackedEmbedding)
    embeddings = [theirs.return_emb, theirs.cost_emb, theirs.state_emb, theirs.action_emb]
    pairs = [
        Pair("time", net.time.weight, theirs.timestep_emb.weight),
        *pair_layers("embedding", net.embeddings, *embeddings),
        *pair_layers("embedding norm", net.embedding_norm, theirs.emb_norm),
        *pair_layers("output norm", net.output_norm, theirs.out_norm),
        *pair_layers("mean", net.mean, theirs.action_head.mu),
        *pair_layers("log std", net.log_std, theirs.action_head.log_std),
        *pair_layers("cost", net.cost, theirs.cost_pred_head),
        *pair_layers("state", net.state, theirs.state_pred_head),
        Pair("temperature", ours.temperature["log"], theirs.log_temperature),
    ]
    for index, (mine, other) in enumerate(zip(net.blocks, theirs.blocks, strict=True)):
        name, attention = f"block {index}", other.attention
        pairs += pair_layers(f"{name} norm 1", mine.attention_norm, other.norm1)
        pairs += pair_layers(f"{name} norm 2", mine.mlp_norm, other.norm2)
        pairs.append(Pair(f"{name} in weight", mine.attention_in.weight, attention.in_proj_weight, True))
        pairs.append(Pair(f"{name} in bias", mine.attention_in.bias, attention.in_proj_bias))
        pairs += pair_layers(f"{name} out", mine.attention_out, attention.out_proj)
        pairs += pair_layers(f"{name} up", mine.mlp_in, other.mlp[0])
        pairs += pair_layers(f"{name} down", mine.mlp_out, other.mlp[2])
    return pairs


PAIRINGS = {
    "bc": pair_bc,
    "bcq-lag": pair_bcq_lag,
    "bear-lag": pair_bear_lag,
    "cpq": pair_cpq,
    "coptidice": pair_coptidice,
    "cdt": pair_cdt,
}
# What is neither a parameter nor in an optimiser: our tensor (R,), and where OSRL keeps it.
SCALARS: dict[str, dict[str, str]] = {
    "bcq-lag": {"multiplier.error": "controller.error_old", "multiplier.integral": "controller.error_integral"},
    "bear-lag": {
        "multiplier.error": "controller.error_old",
        "multiplier.integral": "controller.error_integral",
        "scalars.log_alpha": "log_alpha",
    },
    "cpq": {"scalars.log_alpha": "log_alpha"},
}


# The limit of the first replica, so that it binds; the second's never does.
TIGHT = {"cpq": 0.5}
# What has to happen in the steps that are compared, for (steps, R) values of a metric.
DECISIVE: dict[str, dict[str, Callable[[Tensor], Any]]] = {
    "bcq-lag": {"multiplier": lambda m: m[:, 0].max() > 1e-2 > 10 * m[:, 1].max()},
    "bear-lag": {"multiplier": lambda m: m[:, 0].max() > 1e-2 > 10 * m[:, 1].max()},
    "cpq": {"safe_actions": lambda m: ((m[:, 0] > 0) & (m[:, 0] < 1)).sum() > 10 and (m[:, 1] == 1).all()},
}


def reach(thing: Any, path: str) -> Any:
    for name in path.split("."):
        thing = thing[name] if isinstance(thing, nn.ParameterDict) else getattr(thing, name)
    return thing


# Noise


@contextmanager
def fed(monkeypatch: pytest.MonkeyPatch, draws: Sequence[Tensor | None]) -> Iterator[None]:
    """Hand these standard normal draws to whatever asks torch for normal numbers, in order; ``None``: not used."""
    queue = deque(draws)

    def drawn(shape: Sequence[int]) -> Tensor:
        wanted = queue.popleft()
        return torch.zeros(*shape, dtype=torch.float64) if wanted is None else wanted.reshape(*shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape: drawn(shape))
        patch.setattr(torch, "randn_like", lambda tensor: drawn(tensor.shape))
        patch.setattr(torch, "normal", lambda mean, std: mean + std * drawn(mean.shape))
        patch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, dtype, device: drawn(shape))
        yield
    assert not queue, f"{len(queue)} draws were not asked for"


# In the order in which OSRL draws; empty where it draws what it does not use.
ORDER = {
    "bc": [],
    "bcq-lag": ["vae", "reward_target", "cost_target", "actor"],
    "bear-lag": ["vae", "reward_target", "cost_target", "vae_samples", "actor_samples"],
    "cpq": ["vae", "reward_target", "cost_target", "", "sampled", "", "actor"],
    "coptidice": ["observations", "actions", ""],
    "cdt": [],
}


def batches(algorithm: type[Algorithm[Any]], config: Any, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Random batches (R, B, ...) of the columns that an algorithm wants."""
    window = algorithm.sequence_length(config)
    shape = (REPLICAS, BATCH) if window is None else (REPLICAS, BATCH, window)

    def normal(*size: int) -> Tensor:
        return torch.randn(*shape, *size, generator=generator, dtype=torch.float64)

    while True:
        batch = {
            "observations": normal(TASK.observation_size),
            "actions": normal(TASK.action_size).tanh(),
            "next_observations": normal(TASK.observation_size),
            "rewards": 3 * normal(),
            "costs": (normal() > -0.5).double(),
            "done": (normal() > 1.2).double(),
            "initial": (normal() > 1.2).double(),
            "cost_returns": 10 * normal().abs(),
            "rewards_to_go": 100 * normal(),
            "costs_to_go": 10 * normal().abs(),
        }
        batch = {name: batch[name] for name in algorithm.columns(config)}
        if window is not None:
            lengths = torch.randint(1, window + 1, shape[:2], generator=generator).unsqueeze(-1)
            inside = torch.arange(window) < lengths
            batch = {n: c * (inside if c.ndim == 3 else inside.unsqueeze(-1)) for n, c in batch.items()}
            first = torch.randint(TASK.max_episode_steps, shape[:2], generator=generator).unsqueeze(-1)
            batch |= {"mask": inside.double(), "time_steps": first + torch.arange(window)}
        yield batch


# Dropout


@contextmanager
def kept(
    monkeypatch: pytest.MonkeyPatch, model: Any, masks: Mapping[str, Tensor], replica: int, rate: Mapping[str, float]
) -> Iterator[None]:
    """Let OSRL's transformer drop what our masks drop."""
    attention = deque(mask[replica] for name, mask in masks.items() if name.startswith("attention"))

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float, is_causal: bool) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        assert dropout == rate["attention"]
        return (scores.softmax(-1) * attention.popleft() / (1 - dropout)) @ v

    def dropping(mask: Tensor, share: float) -> Any:
        return lambda x: x * mask / (1 - share)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        patch.setattr(model.emb_drop, "forward", dropping(masks["embedding"][replica], rate["embedding"]))
        for index, block in enumerate(model.blocks):
            patch.setattr(block.drop, "forward", dropping(masks[f"residual{index}"][replica], rate["residual"]))
            patch.setattr(block.mlp[3], "forward", dropping(masks[f"mlp{index}"][replica], rate["residual"]))
        yield
    assert not attention


# The tests


def make_replicas(name: str) -> list[Replica]:
    """Two agents with limits, and data, of their own."""
    return [
        Replica(
            seed,
            limit,
            statistics={
                "initial_share": np.array(share),
                "observation_std": np.linspace(0.5, 1.5, TASK.observation_size).astype(np.float32) * share * 10,
                "action_std": np.linspace(0.2, 0.4, TASK.action_size).astype(np.float32) * share * 10,
            },
        )
        for seed, limit, share in ((0, TIGHT.get(name, 0.05), 0.1), (1, 25.0, 0.08))
    ]


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_agree_with_osrl(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = CASES[case]
    algorithm, adapter = registry.load(name), registry.load(f"osrl-{name}")
    config, their_config = algorithm.Hyperparameters(**settings), adapter.Hyperparameters(**settings)
    generator = torch.Generator().manual_seed(0)
    replicas = make_replicas(name)
    ours = algorithm(config, TASK, replicas, dtype=torch.float64)
    theirs: list[Any] = [adapter(their_config, TASK, [replica], dtype=torch.float64) for replica in replicas]
    pairs = [PAIRINGS[name](ours, agent.model) for agent in theirs]
    for replica, agent in enumerate(theirs):
        covered = {id(pair.theirs) for pair in pairs[replica]}
        unread = {id(p) for p in agent.model.actor_old.parameters()} if name == "cpq" else set()
        assert {id(p) for p in agent.model.parameters()} <= covered | unread, "a parameter of OSRL's has no partner"
        copy_weights(pairs[replica], replica)
    assert {id(p) for p in _parameters(ours)} <= {id(pair.ours) for pair in pairs[0]}, "one of ours has no partner"

    masks: dict[str, Tensor] = {}
    if name == "cdt":
        draw = ours.dropout.draw  # type: ignore[attr-defined]
        monkeypatch.setattr(ours.dropout, "draw", lambda *a: masks.update(draw(*a)) or masks)  # type: ignore[attr-defined]
    stream = batches(algorithm, config, generator)
    seen: list[dict[str, Tensor]] = []
    for step in range(STEPS):
        batch = next(stream)
        noise = {
            key: torch.randn(REPLICAS, *shape, generator=generator, dtype=torch.float64)
            for key, shape in algorithm.noise(config, TASK).items()
        }
        metrics = ours.update(batch, noise)
        seen.append(metrics)
        for replica, agent in enumerate(theirs):
            alone = {key: column[replica : replica + 1] for key, column in batch.items()}
            draws = [noise[key][replica] if key else None for key in ORDER[name]]
            with fed(monkeypatch, draws):
                if masks:
                    rate = {kind: getattr(config, f"{kind}_dropout") for kind in ("attention", "residual", "embedding")}
                    with kept(monkeypatch, agent.model, masks, replica, rate):
                        logged = agent.update(alone, {})
                else:
                    logged = agent.update(alone, {})
            for key in logged.keys() - {"learning_rate"}:
                assert abs(float(metrics[key][replica]) - float(logged[key])) < TOLERANCE, (key, replica, step)
    for key, share in DECISIVE.get(name, {}).items():
        assert share(torch.stack([metrics[key] for metrics in seen])), f"{key} was not put to the test"
    for replica, agent in enumerate(theirs):
        compare(pairs[replica], replica, optimizers(ours), optimizers(agent.model, agent.trainer), TOLERANCE)
        for path, their_path in SCALARS.get(name, {}).items():
            assert abs(float(reach(ours, path)[replica]) - float(reach(agent.model, their_path))) < TOLERANCE, path


@pytest.mark.parametrize("case", ["bc", "bc multi-task", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt, dropout"])
def test_policies_act_as_osrls(case: str) -> None:
    """With the same weights, in the same states, and where they sample, from the same seeds."""
    name, settings = CASES[case]
    algorithm, adapter = registry.load(name), registry.load(f"osrl-{name}")
    replicas = make_replicas(name)
    ours = algorithm(algorithm.Hyperparameters(**settings), TASK, replicas)
    theirs: Any = adapter(adapter.Hyperparameters(**settings), TASK, replicas[1:])
    copy_weights(PAIRINGS[name](ours, theirs.model), 1)
    policies = [next(iter(agent.policies(replica).values())) for agent, replica in ((ours, 1), (theirs, 0))]
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for policy in policies:
            policy.eval()
            policy.reset([5, 6, 7], 20.0)
        for _ in range(9):
            seen, rewards = torch.randn(3, TASK.observation_size, generator=generator), torch.rand(3)
            one, other = (policy.act(seen) for policy in policies)
            assert (one - other).abs().max() < 1e-5
            for policy in policies:
                policy.observe(rewards, torch.ones(3))


def _parameters(ours: Any) -> list[nn.Parameter]:
    """Everything that is trained or follows, but plain counts and multipliers, which SCALARS has."""
    modules = [part for part in ours.parts().values() if isinstance(part, nn.Module)]
    scalar = {id(value) for part in modules if isinstance(part, nn.ParameterDict) for value in part.values()}
    trained = {id(p) for optimizer in optimizers(ours) for group in optimizer.param_groups for p in group["params"]}
    return [p for module in modules for p in module.parameters() if id(p) in trained or id(p) not in scalar]
