"""LSPC: Latent Safety-Prioritized Constraints (Koirala, Jiang, Sarkar, Fleming, ICLR 2025, arXiv 2412.08794).

Implicit Q-learning of a reward and of a cost critic; a conditional VAE cloned with weights that fall with the cost
advantage (its latent space near zero decodes to safe actions: LSPC-S); and an encoder that searches a bounded part of
that latent space for reward (LSPC-O). Neither policy depends on the cost limit. Deviations from the authors' code
(PrajwalKoirala/LSPC-Safe-Offline-RL at 6bad522) are numbered in docs/algorithms/lspc.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from algorithms.parts import diagnostics
from algorithms.parts.critics import least, mean_critic_loss, most
from algorithms.parts.losses import expectile_loss, gaussian_kl
from algorithms.parts.methods import TransitionHyperparameters, TransitionMethod, detached, going_on, named
from algorithms.parts.networks import Builder, Gaussian, StackedGaussian, StackedMLP, frozen
from algorithms.parts.optimisers import adam, minimise, polyak_update
from harness.algorithm import Batch, Policy, Replica
from harness.bounds import BatchSize, HiddenSizes, Steps, Width
from harness.tasks import Task

FEW = 0.02
"""Share of a batch below which the effective sample of the safety weights counts as collapsed."""


class LSPCHyperparameters(TransitionHyperparameters):
    """Defaults are the authors' (``lspc_iql_configs.py``)."""

    steps: Steps = Field(1_000_000, description="gradient steps of one training run")
    batch_size: BatchSize = Field(1024, description="transitions a step draws from the dataset")
    hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of every network")
    gamma: float = Field(0.99, ge=0, le=1, description="discount of rewards and costs")
    polyak: float = Field(0.005, gt=0, le=1, description="rate at which the target critics follow")
    actor_lr: float = Field(3e-4, gt=0, description="Adam's learning rate for the CVAE and the latent safety encoder")
    q_lr: float = Field(3e-4, gt=0, description="Adam's learning rate for the four Q networks")
    v_lr: float = Field(3e-4, gt=0, description="Adam's learning rate for V and Vc")
    expectile: float = Field(0.7, gt=0, lt=1, description="expectile of the value regressions (tau)")
    beta_r: float = Field(2.0, ge=0, description="inverse temperature of the reward advantage's weight")
    beta_c: float = Field(2.0, ge=0, description="inverse temperature of the cost advantage's weight")
    cap_r: float = Field(200.0, gt=0, description="largest weight that a reward advantage gives")
    cap_c: float = Field(200.0, gt=0, description="largest weight that a cost advantage gives")
    latent_dim: Width = Field(32, description="size of the CVAE's latent space")
    vae_beta: float = Field(0.5, ge=0, description="weight of the KL term")
    vae_clamp: float = Field(0.25, gt=0, description="LSPC-S: the prior's sample is clamped to this, elementwise")
    max_latent: float = Field(0.25, gt=0, description="LSPC-O: the latent is tanh(u) times this")
    safety_threshold: float = Field(999.0, description="cost value at which a transition is masked out of the CVAE")
    cost_value_gradient: Literal["published", "live"] = Field(
        "published",
        description="published: the cost value's loss and advantage see max(Vc, 0), so that where Vc is negative it "
        "learns nothing; live: they see Vc itself",
    )
    reward_scale: float = Field(1.0, gt=0, description="rewards are multiplied by this")
    cost_scale: float = Field(1.0, gt=0, description="costs are multiplied by this")


class CostLosses(NamedTuple):
    """What a step learns of cost: max(Vc(s), 0), max(Qc'(s, a), 0) and Vc - Qc', (R, B) each; two losses, (R,) each."""

    vc: Tensor
    qc: Tensor
    advantage: Tensor
    vc_loss: Tensor
    qc_loss: Tensor


class LSPC(TransitionMethod[LSPCHyperparameters]):
    """R LSPC agents side by side."""

    Hyperparameters = LSPCHyperparameters
    summary = "latent safety-prioritized constraints (ICLR 2025): policies lspc-s (safe) and lspc-o (optimised)"
    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "bullet": {"vae_clamp": 0.6, "max_latent": 0.6},
        "AntRun": {"vae_clamp": 0.25, "max_latent": 0.25},
        "metadrive": {"safety_threshold": 0.02},
    }

    @classmethod
    def policy_names(cls, config: LSPCHyperparameters) -> tuple[str, ...]:
        """LSPC-S and LSPC-O, from one training run."""
        return ("lspc-s", "lspc-o")

    @classmethod
    def noise(cls, config: LSPCHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """Reparameterisation noise of the CVAE and of the latent safety encoder."""
        shape = (config.batch_size, config.latent_dim)
        return {"vae": shape, "latent": shape}

    def __init__(
        self,
        config: LSPCHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.replicas = config, replicas
        build, hidden = Builder.of(replicas, device, dtype), config.hidden_sizes
        observation, action, latent = task.observation_size, task.action_size, config.latent_dim
        pair = observation + action
        self.networks = nn.ModuleDict(
            {
                "v": build.mlp(observation, *hidden, 1),
                "q": build.mlp(pair, *hidden, 1, ensemble=2),
                "vc": build.mlp(observation, *hidden, 1),
                "qc": build.mlp(pair, *hidden, 1, ensemble=2),
                "encoder": build.gaussian(pair, *hidden, latent, log_std_range=(-4.0, 15.0)),
                "decoder": build.mlp(observation + latent, *hidden, action),
                "latent_encoder": build.gaussian(observation, *hidden, latent, log_std_range=(-10.0, 2.0)),
            }
        )
        self.targets = frozen(nn.ModuleDict({name: self.networks[name] for name in ("q", "qc")}))

        def group(lr: float, *names: str) -> tuple[float, list[nn.Parameter]]:
            return lr, [p for name in names for p in self.networks[name].parameters()]

        # Adam is elementwise: one optimiser serves all networks whose gradients come from one backward pass.
        groups = [group(config.v_lr, "v", "vc"), group(config.q_lr, "q", "qc")]
        self.optimizer = adam([*groups, group(config.actor_lr, "encoder", "decoder")])
        self.latent_optimizer = adam([group(config.actor_lr, "latent_encoder")])

    def decode(self, observations: Tensor, latents: Tensor) -> Tensor:
        """Actions (R, B, action_size) for observations and latents (R, B, latent_dim)."""
        return torch.tanh(self.networks["decoder"](torch.cat([observations, latents], -1)))

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in the authors' order.

        Steps 1 to 5 step disjoint parameters and read only values from before the step, so one backward pass over the
        sum of their losses, and one optimiser step, is the same as one after the other. Step 6 reads the new decoder.
        """
        c, net = self.config, self.networks
        observations, actions, following = batch["observations"], batch["actions"], batch["next_observations"]
        rewards, alive = batch["rewards"] * c.reward_scale, going_on(batch, c)
        pairs = torch.cat([observations, actions], -1)
        with torch.no_grad():
            q_target = rewards + c.gamma * alive * net["v"](following).squeeze(-1)
            q = least(self.targets["q"], pairs)

        # 1 and 2: reward value and critics.
        advantage = q - net["v"](observations).squeeze(-1)
        v_loss = expectile_loss(advantage, c.expectile)
        q_loss = mean_critic_loss(net["q"](pairs).squeeze(-1), q_target)
        # 3 and 4: cost value and critics, with the safety mask.
        cost = self.cost_losses(batch)
        mask = self._safe(cost.vc, cost.qc)
        # 5: the CVAE, cloning what is cheaper than expected.
        safety_weight = torch.exp(c.beta_c * cost.advantage.detach()).clamp(max=c.cap_c) * mask
        mean, log_std = net["encoder"](pairs)
        std = log_std.exp()
        reconstruction = (self.decode(observations, mean + std * noise["vae"]) - actions).square().sum(-1)
        kl = -0.5 * (1 + 2 * log_std - mean.square() - std.square()).mean(-1)
        vae_loss = (safety_weight * (reconstruction + c.vae_beta * kl)).mean(1)

        minimise(self.optimizer, v_loss + q_loss + cost.vc_loss + cost.qc_loss + vae_loss)
        followed = [parameter for name in self.targets for parameter in net[name].parameters()]
        polyak_update(self.targets.parameters(), followed, c.polyak)

        # 6: the latent safety encoder, cloning what is better than expected, through the fixed decoder.
        reward_weight = torch.exp(c.beta_r * advantage.detach()).clamp(max=c.cap_r)
        mean, log_std = net["latent_encoder"](observations)
        latents = torch.tanh(mean + log_std.exp() * noise["latent"]) * c.max_latent
        latent_loss = (reward_weight * (self.decode(observations, latents) - actions).square().sum(-1)).mean(1)
        minimise(self.latent_optimizer, latent_loss)

        return detached(
            {
                "v_loss": v_loss,
                "q_loss": q_loss,
                "vc_loss": cost.vc_loss,
                "qc_loss": cost.qc_loss,
                "vae_loss": vae_loss,
                "latent_loss": latent_loss,
                "reconstruction": reconstruction.mean(1),
                "kl": kl.mean(1),
                "cost_value": cost.vc.mean(1),
                "safety_mask": mask.mean(1),
                "effective_sample": effective_sample(safety_weight),
            }
        )

    def cost_losses(self, batch: Batch) -> CostLosses:
        """Steps 3 and 4, which read nothing of the other networks."""
        c, net = self.config, self.networks
        costs, alive = batch["costs"] * c.cost_scale, going_on(batch, c)
        pairs = torch.cat([batch["observations"], batch["actions"]], -1)
        with torch.no_grad():
            target = costs + c.gamma * alive * net["vc"](batch["next_observations"]).squeeze(-1).clamp(min=0)
            qc = most(self.targets["qc"], pairs).clamp(min=0)
        vc = net["vc"](batch["observations"]).squeeze(-1)
        if c.cost_value_gradient == "published":
            vc = vc.clamp(min=0)
        return CostLosses(
            vc.detach().clamp(min=0),
            qc,
            vc - qc,
            expectile_loss(vc - qc, c.expectile),
            mean_critic_loss(net["qc"](pairs).squeeze(-1), target),
        )

    def _safe(self, vc: Tensor, qc: Tensor) -> Tensor:
        """The safety mask: 1 where both cost estimates are below the threshold, (R, B)."""
        return ((vc < self.config.safety_threshold) & (qc < self.config.safety_threshold)).to(vc.dtype)

    @classmethod
    def warnings(cls, config: LSPCHyperparameters, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Whether the constraint is off, or rests on next to nothing."""
        said = []
        if metrics["cost_value"] == 0:
            said.append("its cost value is 0 in every state: the safety constraint does not tell states apart")
        if metrics["safety_mask"] == 0:
            said.append("the safety mask lets nothing through: the CVAE learns from no transition")
        elif metrics["effective_sample"] < FEW:
            said.append(f"the safety weights rest on less than {FEW:.0%} of each batch: the CVAE clones a few rows")
        return tuple(said)

    def policies(self, replica: int) -> dict[str, Policy]:
        """LSPC-S and LSPC-O of one replica; they share the decoder's values."""
        decoder, encoder = self.networks["decoder"], self.networks["latent_encoder"]
        assert isinstance(decoder, StackedMLP)
        assert isinstance(encoder, StackedGaussian)
        c = self.config
        return {
            "lspc-s": SafePolicy(decoder.unstacked(replica), c.latent_dim, c.vae_clamp),
            "lspc-o": OptimisedPolicy(
                decoder.unstacked(replica), encoder.unstacked(replica), c.latent_dim, c.max_latent
            ),
        }

    def parts(self) -> dict[str, Any]:
        """Networks, targets and both optimisers."""
        return named(self, "networks", "targets", "optimizer", "latent_optimizer")

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The CVAE's parts of its loss, what lies between its codes, the safety mask, and all critics.

        The interpolation is half-way between the codes (the encoder's means) of a step and of another one, drawn at
        random, decoded at the first one's state.
        """
        c, net = self.config, self.networks
        observations, actions = batch["observations"], batch["actions"]
        pairs = torch.cat([observations, actions], -1)
        mean, log_std = net["encoder"](pairs)
        latents = mean + log_std.exp() * diagnostics.noise(self.replicas, mean, c.latent_dim)
        other = diagnostics.noise(self.replicas, mean, 1).argsort(1)
        between = self.decode(observations, (mean + torch.take_along_dim(mean, other, 1)) / 2)
        inside = (between >= actions.amin(1, keepdim=True)) & (between <= actions.amax(1, keepdim=True))
        interpolation_supported, data_supported = diagnostics.supported(observations, actions, between, actions)

        v, vc = (net[name](observations).squeeze(-1) for name in ("v", "vc"))
        q, qc = least(self.targets["q"], pairs), most(self.targets["qc"], pairs).clamp(min=0)
        vc = vc.clamp(min=0)
        let_through = self._safe(vc, qc)
        rewards, costs = batch["discounted_rewards_to_go"], batch["discounted_costs_to_go"]
        safe = batch["safe"] > 0
        return {
            "reconstruction": (self.decode(observations, latents) - actions).square().sum(-1).mean(1),
            "kl": gaussian_kl(mean, log_std).mean((1, 2)),
            "interpolation_inside": inside.all(-1).to(mean.dtype).mean(1),
            "interpolation_distance": (between - actions).norm(dim=-1).mean(1),
            "interpolation_supported": interpolation_supported,
            "data_supported": data_supported,
            "mask_safe": diagnostics.mean_over(let_through, safe),
            "mask_unsafe": diagnostics.mean_over(let_through, ~safe),
            **diagnostics.cost_levels(costs, safe),
            **diagnostics.calibration("v", v / c.reward_scale, rewards),
            **diagnostics.calibration("q", q / c.reward_scale, rewards),
            **diagnostics.cost_calibration("vc", vc / c.cost_scale, costs, safe),
            **diagnostics.cost_calibration("qc", qc / c.cost_scale, costs, safe),
        }


def effective_sample(weights: Tensor) -> Tensor:
    """Kish's effective sample size of weights (R, B) as a share of the batch, 0 where all are 0: (R,)."""
    return weights.sum(1).square() / (weights.shape[1] * weights.square().sum(1)).clamp(min=1e-12)


class SafePolicy(Policy):
    """LSPC-S: decode(s, z) with z from the standard normal prior, clamped."""

    def __init__(self, decoder: nn.Sequential, latent_dim: int, vae_clamp: float) -> None:
        super().__init__()
        self.decoder, self.latent_dim, self.vae_clamp = decoder, latent_dim, vae_clamp

    def act(self, observations: Tensor) -> Tensor:
        """Sampled actions (n, action_size)."""
        latents = self.noise(self.latent_dim).clamp(-self.vae_clamp, self.vae_clamp)
        return torch.tanh(self.decoder(torch.cat([observations, latents.to(observations)], -1)))


class OptimisedPolicy(Policy):
    """LSPC-O: decode(s, tanh(u) max_latent) with u sampled from the latent safety encoder, at evaluation too."""

    def __init__(self, decoder: nn.Sequential, encoder: Gaussian, latent_dim: int, max_latent: float) -> None:
        super().__init__()
        self.decoder, self.encoder, self.latent_dim, self.max_latent = decoder, encoder, latent_dim, max_latent

    def act(self, observations: Tensor) -> Tensor:
        """Sampled actions (n, action_size)."""
        mean, log_std = self.encoder(observations)
        latents = torch.tanh(mean + log_std.exp() * self.noise(self.latent_dim).to(mean)) * self.max_latent
        return torch.tanh(self.decoder(torch.cat([observations, latents], -1)))
