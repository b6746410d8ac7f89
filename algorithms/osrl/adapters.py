"""OSRL's own models and trainers (osrl-lib 0.1.0), unmodified, behind the interface: what ours are checked against.

An adapter trains one replica at a time, on the engine's batches, and draws everything else as OSRL does, from torch's
global generators, whose states it keeps as its own. Settings are those of our algorithm of the same name, less what
OSRL's code cannot do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, create_model
from torch import Tensor

from algorithms.bc import BC, BCHyperparameters
from algorithms.bcq_lag import BCQLag, BCQLagHyperparameters
from algorithms.bear_lag import BEARLag, BEARLagHyperparameters
from algorithms.cdt import CDT, CDTHyperparameters, Targets
from algorithms.coptidice import COptiDICE, COptiDICEHyperparameters
from algorithms.cpq import CPQ, CPQHyperparameters
from algorithms.osrl.models import (
    GlobalRandomness,
    OSRLCDTPolicy,
    OSRLPolicy,
    Portable,
    Recorder,
    build,
    member,
    sequence_dataset,
)
from algorithms.parts.limits import cost_limits
from algorithms.parts.methods import scaled
from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica, Segments, Selection
from harness.data.dataset import Dataset
from harness.tasks import Task


def restricted(model: type[Hyperparameters], **values: Any) -> type[Hyperparameters]:
    """The same hyperparameters, some of them with one admissible value only: OSRL's."""
    fields: dict[str, Any] = {
        name: (Literal[value], Field(value, description="as OSRL's code has it; nothing else"))
        for name, value in values.items()
    }
    return create_model(f"OSRL{model.__name__}", __base__=model, **fields)


class Adapter(Algorithm[Any]):
    """One of OSRL's algorithms. A subclass is a row: which model, what it is built with, what it is fed."""

    max_replicas = 1
    synchronises = True
    requires: ClassVar[tuple[str, ...]] = ("osrl", "fsrl")

    native: ClassVar[type[Algorithm[Any]]]
    """Our algorithm of the same name."""
    osrl: ClassVar[str]
    """Name of the model in ``osrl.algorithms``; its trainer's is the same with ``Trainer`` behind."""
    learning_rates: ClassVar[tuple[str, ...]] = ("actor_lr", "critic_lr", "vae_lr")
    stateful: ClassVar[tuple[str, ...]]
    """Whatever has a state_dict, beside the model."""
    loose: ClassVar[tuple[str, ...]] = ()
    """Tensors and numbers that training changes and no state_dict holds."""
    deterministic = True
    """Whether OSRL evaluates the model's mean action."""

    @classmethod
    def depends_on_cost_limit(cls, config: Any) -> bool:
        """As ours."""
        return cls.native.depends_on_cost_limit(config)

    @classmethod
    def acts_on_cost_limit(cls, config: Any) -> bool:
        """As ours."""
        return cls.native.acts_on_cost_limit(config)

    @classmethod
    def policy_names(cls, config: Any) -> tuple[str, ...]:
        """As ours, with ``osrl-`` in front."""
        return tuple(f"osrl-{name}" for name in cls.native.policy_names(config))

    @classmethod
    def columns(cls, config: Any) -> tuple[str, ...]:
        """As ours."""
        return cls.native.columns(config)

    @classmethod
    def sequence_length(cls, config: Any) -> int | None:
        """As ours."""
        return cls.native.sequence_length(config)

    @classmethod
    def select(cls, dataset: Dataset, config: Any, replica: Replica) -> Selection:
        """As ours."""
        return cls.native.select(dataset, config, replica)

    def __init__(
        self,
        config: Any,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        (self.replica,) = replicas
        self.config, self.task, self.device = config, task, torch.device(device)
        self.arguments = {"state_dim": task.observation_size, "action_dim": task.action_size, "max_action": 1.0}
        self.arguments |= self.model_arguments()
        self.logger = Recorder()
        self.random = GlobalRandomness(self.replica.entropy("osrl"), self.device)
        with self.random.active():
            self.model = build(self.osrl, self.arguments, device)
            if dtype != torch.float32:
                self._convert(dtype)
            self.trainer = member(f"{self.osrl}Trainer")(
                self.model, env=None, logger=self.logger, device=str(device), **self.trainer_arguments()
            )

    def model_arguments(self) -> dict[str, Any]:
        """What OSRL's model is built with, beside the task's sizes."""
        raise NotImplementedError

    def trainer_arguments(self) -> dict[str, Any]:
        """What OSRL's trainer is built with."""
        return {name: getattr(self.config, name) for name in self.learning_rates}

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What ``train_one_step`` takes, from a batch without the replica axis."""
        rewards, costs, alive = scaled(batch, self.config)
        return (batch["observations"], batch["next_observations"], batch["actions"], rewards, costs, 1 - alive)

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """OSRL's ``train_one_step``; the metrics are what it logs."""
        with self.random.active():
            self.trainer.train_one_step(*self.inputs({name: column[0] for name, column in batch.items()}))
        return {
            name: torch.tensor([value], dtype=torch.float64, device=self.device)
            for name, value in self.logger.take().items()
        }

    def policies(self, replica: int) -> dict[str, Policy]:
        """The model as it is, with OSRL's own ``act``."""
        (name,) = self.policy_names(self.config)
        return {name: OSRLPolicy(self._portable(), self.deterministic)}

    def state_dict(self) -> dict[str, Any]:
        """The model, its optimisers, what OSRL keeps beside them, and the generators."""
        return {
            "model": self.model.state_dict(),
            "stateful": {name: attrgetter(name)(self).state_dict() for name in self.stateful},
            "loose": {name: attrgetter(name)(self) for name in self.loose},
            "random": self.random.states,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        for name in self.stateful:
            attrgetter(name)(self).load_state_dict(state["stateful"][name])
        for name in self.loose:
            self._set(name, state["loose"][name])
        self.random.states = list(state["random"])

    def _set(self, name: str, value: Any) -> None:
        old = attrgetter(name)(self)
        if isinstance(old, Tensor) and old.requires_grad:  # an optimiser holds it
            with torch.no_grad():
                old.copy_(value)
            return
        parent, _, attribute = name.rpartition(".")
        setattr(attrgetter(parent)(self), attribute, value.to(self.device) if isinstance(value, Tensor) else value)

    def _convert(self, dtype: torch.dtype) -> None:
        """Another precision, for comparisons; before there are optimisers."""
        self.model.to(dtype)
        for name in self.loose:
            value = attrgetter(name)(self)
            if isinstance(value, Tensor):
                setattr(
                    self.model, name.rpartition(".")[2], value.detach().to(dtype).requires_grad_(value.requires_grad)
                )

    def _portable(self) -> Portable:
        state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        return Portable(self.osrl, self.arguments, state)


class OSRLBC(Adapter):
    """``BC`` and ``BCTrainer``."""

    Hyperparameters = BCHyperparameters
    summary = "OSRL's own BC, for comparison"
    per_task = BC.per_task
    native = BC
    osrl = "BC"
    learning_rates = ("actor_lr",)
    stateful = ("model.actor_optim",)
    deterministic = False  # its act takes no such argument

    def model_arguments(self) -> dict[str, Any]:
        """In mode multi-task the trajectory's cost return is one more input."""
        size = self.task.observation_size + (self.config.mode == "multi-task")
        return {
            "state_dim": size,
            "a_hidden_sizes": list(self.config.hidden_sizes),
            "episode_len": self.task.max_episode_steps,
        }

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """Observations and actions."""
        observations = batch["observations"]
        if self.config.mode == "multi-task":
            observations = torch.cat([observations, batch["cost_returns"].unsqueeze(-1)], -1)
        return observations, batch["actions"]

    def policies(self, replica: int) -> dict[str, Policy]:
        """The model as it is, with OSRL's own ``act``."""
        (name,) = self.policy_names(self.config)
        return {name: OSRLPolicy(self._portable(), False, sees_limit=self.config.mode == "multi-task")}


class _QLearning(Adapter):
    """What BCQ-Lag, BEAR-Lag and CPQ share."""

    stateful = ("model.actor_optim", "model.critic_optim", "model.cost_critic_optim", "model.vae_optim")

    def model_arguments(self) -> dict[str, Any]:
        """The settings that all three have."""
        c = self.config
        return {
            "a_hidden_sizes": list(c.actor_hidden_sizes),
            "c_hidden_sizes": list(c.critic_hidden_sizes),
            "vae_hidden_sizes": c.vae_hidden_size,
            "sample_action_num": c.sampled_actions,
            "gamma": c.gamma,
            "tau": c.polyak,
            "beta": c.vae_beta,
            "num_q": c.num_q,
            "num_qc": c.num_qc,
            "cost_limit": float(cost_limits(c, [self.replica])),
            "episode_len": self.task.max_episode_steps,
        }


class OSRLBCQLag(_QLearning):
    """``BCQL`` and ``BCQLTrainer``."""

    Hyperparameters = restricted(BCQLagHyperparameters, cost_bootstrap_through_done=True, cost_critic_reduction="min")
    summary = "OSRL's own BCQ-Lag, for comparison"
    per_task = BCQLag.per_task
    native = BCQLag
    osrl = "BCQL"
    loose = ("model.controller.error_old", "model.controller.error_integral")
    deterministic = False

    def model_arguments(self) -> dict[str, Any]:
        """With the perturbation and the multiplier's gains."""
        c = self.config
        return {**super().model_arguments(), "phi": c.phi, "lmbda": c.target_mix, "PID": list(c.pid)}


class OSRLBEARLag(_QLearning):
    """``BEARL`` and ``BEARLTrainer``."""

    Hyperparameters = restricted(BEARLagHyperparameters, cost_bootstrap_through_done=True, cost_critic_reduction="min")
    summary = "OSRL's own BEAR-Lag, for comparison"
    per_task = BEARLag.per_task
    native = BEARLag
    osrl = "BEARL"
    learning_rates = ("actor_lr", "critic_lr", "vae_lr", "alpha_lr")
    loose = (
        "model.controller.error_old",
        "model.controller.error_integral",
        "model.log_alpha",
        "model.n_train_steps",
    )

    def model_arguments(self) -> dict[str, Any]:
        """With the discrepancy's settings and the multiplier's gains."""
        c = self.config
        return {
            **super().model_arguments(),
            "lmbda": c.target_mix,
            "PID": list(c.pid),
            "mmd_sigma": c.mmd_sigma,
            "target_mmd_thresh": c.mmd_threshold,
            "num_samples_mmd_match": c.mmd_samples,
            "kernel": c.kernel,
            "start_update_policy_step": c.policy_start,
        }


class OSRLCPQ(_QLearning):
    """``CPQ`` and ``CPQTrainer``."""

    Hyperparameters = restricted(CPQHyperparameters, cost_bootstrap_through_done=True, ood_gradient=False)
    summary = "OSRL's own CPQ, for comparison"
    per_task = CPQ.per_task
    native = CPQ
    osrl = "CPQ"
    learning_rates = ("actor_lr", "critic_lr", "vae_lr", "alpha_lr")
    loose = ("model.log_alpha",)

    def model_arguments(self) -> dict[str, Any]:
        """With the penalty's threshold."""
        return {**super().model_arguments(), "qc_scalar": self.config.ood_cost}


class OSRLCOptiDICE(Adapter):
    """``COptiDICE`` and ``COptiDICETrainer``."""

    Hyperparameters = restricted(COptiDICEHyperparameters, cost_threshold="osrl")
    summary = "OSRL's own COptiDICE, for comparison"
    per_task = COptiDICE.per_task
    native = COptiDICE
    osrl = "COptiDICE"
    learning_rates = ("actor_lr", "critic_lr", "scalar_lr")
    stateful = ("model.actor_optim", "model.nu_optim", "model.chi_optim", "model.lmbda_optim", "model.tau_optim")
    loose = ("model.tau", "model.lmbda")

    def model_arguments(self) -> dict[str, Any]:
        """With what was measured in the data."""
        c, measured = self.config, self.replica.statistics
        return {
            "f_type": c.divergence,
            "init_state_propotion": float(measured["initial_share"]),
            "observations_std": measured["observation_std"][None].astype(np.float32),
            "actions_std": measured["action_std"][None].astype(np.float32),
            "a_hidden_sizes": list(c.actor_hidden_sizes),
            "c_hidden_sizes": list(c.critic_hidden_sizes),
            "gamma": c.gamma,
            "alpha": c.alpha,
            "cost_ub_epsilon": c.cost_ub_epsilon,
            "num_nu": c.num_nu,
            "num_chi": c.num_chi,
            "cost_limit": float(cost_limits(c, [self.replica])),
            "episode_len": self.task.max_episode_steps,
        }

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """One tuple, with the initial states marked."""
        return ((*super().inputs(batch), batch["initial"]),)


class OSRLCDT(Adapter):
    """``CDT`` and ``CDTTrainer``; the trajectories are augmented and weighed by OSRL's ``SequenceDataset``."""

    Hyperparameters = restricted(CDTHyperparameters, temperature_lr=1e-4)
    summary = "OSRL's own CDT, for comparison"
    per_task = CDT.per_task
    native = CDT
    osrl = "CDT"
    requires = (*Adapter.requires, "oapackage")
    learning_rates = ("learning_rate", "weight_decay", "betas", "clip_grad")
    stateful = ("trainer.optim", "trainer.scheduler", "trainer.log_temperature_optimizer")
    loose = ("model.log_temperature",)

    @classmethod
    def select(cls, dataset: Dataset, config: CDTHyperparameters, replica: Replica) -> Selection:
        """What OSRL's ``SequenceDataset`` makes of the data: entries, relabelled returns, how often each is drawn."""
        ours = CDT.select(dataset, config, replica)  # refuses what OSRL crashes on; the frontier of the data
        made, trajectories = sequence_dataset(dataset, config, replica.entropy("augmentation")), dataset.trajectories
        count, original = len(made.original_data), made.original_data
        added = [made.indices[index] for index in made.idx] if made.aug_data else []
        chosen = np.concatenate([np.arange(count), np.array(added, dtype=np.int64)])
        assert count == len(trajectories) - trajectories.unfinished

        def shift(key: str) -> Any:
            moved = [new[key][0] - original[index][key][0] for new, index in zip(made.aug_data, added, strict=True)]
            return np.concatenate([np.zeros(count), np.array(moved, dtype=np.float64)])

        weights = np.ones(len(chosen)) if made.sample_prob is None else np.asarray(made.sample_prob, dtype=np.float64)
        segments = Segments(chosen, weights, shift("returns"), shift("cost_returns"))
        return Selection(segments=segments, statistics=ours.statistics)

    def model_arguments(self) -> dict[str, Any]:
        """OSRL's configuration of CDT: stochastic, conditioned on return and cost, with time embeddings."""
        c = self.config
        names = ("embedding_dim", "num_layers", "num_heads", "init_temperature")
        dropout = ("attention_dropout", "residual_dropout", "embedding_dropout")
        return {
            **{name: getattr(c, name) for name in (*names, *dropout)},
            "seq_len": c.sequence_length,
            "episode_len": self.task.max_episode_steps,
            "time_emb": True,
            "use_rew": True,
            "use_cost": True,
            "cost_transform": c.cost_offset,
            "stochastic": True,
            "target_entropy": -self.task.action_size,
        }

    def trainer_arguments(self) -> dict[str, Any]:
        """The optimiser's and the losses' settings."""
        c = self.config
        losses = {"loss_cost_weight": c.cost_loss_weight, "loss_state_weight": c.state_loss_weight}
        return {**super().trainer_arguments(), **losses, "lr_warmup_steps": c.warmup_steps}

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """A window's steps, with its returns scaled."""
        c = self.config
        returns, costs = batch["rewards_to_go"] * c.reward_scale, batch["costs_to_go"] * c.cost_scale
        steps = (batch["observations"], batch["actions"], returns, costs, batch["time_steps"], batch["mask"])
        return (*steps, costs[:, 0], batch["costs"])

    def policies(self, replica: int) -> dict[str, Policy]:
        """OSRL's network in our context: its own roll-out holds one environment, and steps it."""
        config = CDTHyperparameters.model_validate(self.config.model_dump())  # the restricted class cannot be pickled
        targets = Targets.of(config, self.replica)
        return {"osrl-cdt": OSRLCDTPolicy(self._portable(), targets, self.task.action_size, config)}
