"""One agent's step, plainly written, of what OSRL does not have: what ``benchmarks/throughput.py`` sets ours beside.

The transcriptions are those of tests/parity, in single precision. The authors' own code (TraC: MIT, CCAC: Apache-2.0)
is read from a clone of theirs that ``LSPC_BENCH_TRAC`` or ``LSPC_BENCH_CCAC`` names, as in tests/parity.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.tasks import Task

Batch = Mapping[str, Tensor]
"""One agent's columns: (B, ...)."""
Step = Callable[[Batch], Any]

PHASES: Mapping[str, Mapping[str, Any]] = {"ccac": {"warm_up": 0.0}, "trac": {"cloning": 0.0}}
"""Settings with which an update is one of the phase that takes most of the training's time."""
CLONES = {"ccac": ("LSPC_BENCH_CCAC", "4707c1f72ef5"), "trac": ("LSPC_BENCH_TRAC", "2fc12f7cc1bc")}
"""Which variable names a clone of the authors' code, and the commit."""


def transcription(name: str) -> ModuleType:
    """That of tests/parity, in single precision where it is written in double."""
    path = Path(__file__).parent.parent / "tests" / "parity" / f"{name}_reference.py"
    module = ModuleType(f"{name}_reference")
    sys.modules[module.__name__] = module
    source = path.read_text(encoding="utf-8").replace("float64", "float32").replace(".double()", ".float()")
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def transcribed(name: str, config: Any, task: Task, data: Batch, device: str) -> Step:
    """The transcription's update; its noise is drawn in every step, on the device."""
    with torch.device(device):
        update = {"lspc": _lspc, "caps": _caps, "ccac": _ccac, "fisor": _fisor, "trac": _trac}[name](
            transcription(name), config, (task.observation_size, task.action_size), data
        )

    def step(batch: Batch) -> None:
        with torch.device(device):
            update(batch)

    return step


def _lspc(module: Any, config: Any, sizes: tuple[int, int], _: Batch) -> Step:
    same = {name: value for name, value in config if name in module.Settings.__dataclass_fields__}
    settings = module.Settings(observation_size=sizes[0], action_size=sizes[1], **same)
    agent = module.ReferenceLSPC(settings, torch.float32)
    shape = (config.batch_size, config.latent_dim)
    return lambda batch: agent.update(batch, {name: torch.randn(shape) for name in ("vae", "latent")})


def _caps(module: Any, _: Any, sizes: tuple[int, int], __: Batch) -> Step:
    agent = module.ReferenceCapsIQL(module.IQLSettings(*sizes))
    return lambda batch: agent.step(batch)


def _ccac(module: Any, config: Any, sizes: tuple[int, int], data: Batch) -> Step:
    observations = data["observations"]
    agent = module.ReferenceCCAC(module.Settings(*sizes, warm_up_steps=0), observations.amin(0), observations.amax(0))
    latent, action = (config.batch_size, config.latent_size), (config.batch_size, sizes[1])
    shapes = {"encoder": latent, "critic": action, "cost_critic": action, "latent": latent, "actor": action}
    return lambda batch: agent.step(batch, {name: torch.randn(shape) for name, shape in shapes.items()})


def _fisor(module: Any, config: Any, sizes: tuple[int, int], _: Batch) -> Step:
    rows = config.batch_size // config.actor_updates
    settings = module.Settings(*sizes, actor_rows=rows, critic_rows=round(config.critic_share * config.batch_size))
    agent = module.ReferenceFISOR(settings)

    def step(batch: Batch) -> None:
        noise = {
            "times": [torch.randint(settings.diffusion_steps, (rows,)) for _ in range(2)],
            "normals": [torch.randn(rows, sizes[1]) for _ in range(2)],
            "masks": [_mask((rows, settings.width), settings.dropout) for _ in range(2 * settings.blocks)],
        }
        agent.step(batch, noise)

    return step


def _trac(module: Any, config: Any, sizes: tuple[int, int], _: Batch) -> Step:
    settings = module.Settings(*sizes, bc_steps=0, alpha=config.alpha, gamma=config.gamma, eta=config.eta)
    agent = module.ReferenceTraC(settings)
    agent.end_cloning()

    def step(batch: Batch) -> None:
        rows = batch["actions"].shape[:2]
        masks = [_mask((*rows, width), settings.dropout) for width in settings.hidden_sizes]
        agent.step({**batch, "labels": batch["label"], "weights": batch["weight"]}, masks)

    return step


def _mask(shape: tuple[int, ...], dropout: float) -> Tensor:
    return torch.empty(shape).bernoulli_(1 - dropout) / (1 - dropout)


# The authors' code


def has_authors_code(name: str) -> bool:
    """Whether the environment names a clone of it."""
    return name in CLONES and CLONES[name][0] in os.environ


def authors_step(name: str, config: Any, task: Task, data: Batch, device: str) -> Step:
    """The authors' own update, as they have it in training.

    Raises:
        subprocess.CalledProcessError: the clone does not hold the commit.
    """
    made: Callable[..., Step] = {"ccac": _authors_ccac, "trac": _authors_trac}[name]
    return made(config, (task.observation_size, task.action_size), data, device)


def _source(name: str, path: str) -> str:
    variable, commit = CLONES[name]
    show = ["git", "-C", os.environ[variable], "show", f"{commit}:{path}"]
    return subprocess.run(show, capture_output=True, text=True, check=True).stdout


def _stand_in(name: str, **content: Any) -> ModuleType:
    """A module of what theirs import, and do not use for a step."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__dict__.update(content)
    return module


def _authors_ccac(config: Any, sizes: tuple[int, int], data: Batch, device: str) -> Step:
    nothing: dict[str, Any] = {"DummyLogger": object, "WandbLogger": object, "TransitionDataset": object}
    for name in ("osrl", "osrl.common", "osrl.common.dataset", "osrl.common.net", "fsrl", "fsrl.utils"):
        _stand_in(name, **nothing)
    exec(_source("ccac", "OSRL/osrl/common/net.py"), sys.modules["osrl.common.net"].__dict__)
    module = _stand_in("authors_ccac")
    exec(_source("ccac", "OSRL/osrl/algorithms/ccac.py"), module.__dict__)
    agent = module.CCAC(
        *sizes,
        1.0,
        data["observations"].amin(0).cpu().numpy(),
        data["observations"].amax(0).cpu().numpy(),
        a_hidden_sizes=list(config.actor_hidden_sizes),
        c_hidden_sizes=list(config.critic_hidden_sizes),
        vae_hidden_sizes=config.vae_hidden_sizes[0],
        vae_latent_sizes=config.latent_size,
        beta=config.vae_beta,
        num_q=config.num_q,
        num_qc=config.num_qc,
        device=device,
    )
    agent.setup_optimizers(config.actor_lr, config.critic_lr, config.vae_lr)

    def step(batch: Batch) -> None:
        observations, actions, done = batch["observations"], batch["actions"], batch["done"]
        budgets, following = batch["costs_to_go"], batch["next_costs_to_go"]
        moves = (observations, batch["next_observations"], actions)
        agent.vae_loss(observations, actions, budgets)
        agent.critic_loss_vanilla(*moves, config.reward_scale * batch["rewards"], budgets, following, done)
        agent.cost_critic_loss_cvae(*moves, batch["costs"], budgets, following, done)
        agent.actor_loss(observations, budgets)
        agent.sync_weight()

    return step


class _Scheduling:
    """What TraC takes of their base class in a step: the schedules of its optimisers."""

    def setup_schedulers(self: Any) -> None:
        self.schedulers = {
            name: torch.optim.lr_scheduler.LambdaLR(self.optim[name], lr_lambda=schedule)
            for name, schedule in self.schedulers_class.items()
        }


def _authors_trac(config: Any, sizes: tuple[int, int], data: Batch, device: str) -> Step:
    groups = types.SimpleNamespace(create_optim_groups=lambda given, options: ({"params": list(given), **options},))
    for name in ("research", "research.networks", "research.algs"):
        _stand_in(name)
    _stand_in("research.networks.base", ActorPolicy=nn.Module)
    _stand_in("research.utils", utils=groups)
    _stand_in("research.algs.off_policy_algorithm", OffPolicyAlgorithm=_Scheduling)
    found: dict[str, Any] = {}
    for path in ("algs/trac", "networks/common", "utils/schedules"):
        module = types.ModuleType(f"research.{path.replace('/', '.')}")
        module.__package__ = module.__name__.rpartition(".")[0]
        exec(_source("trac", f"research/{path}.py"), module.__dict__)
        found |= module.__dict__

    def network() -> nn.Module:
        made = nn.Module()
        made.encoder = nn.Identity()
        made.actor = found["MLP"](*sizes, list(config.hidden_sizes), dropout=config.dropout, output_act=nn.Tanh)
        return made.to(device)

    segments, length = data["actions"].shape[:2]
    agent = found["TraC"].__new__(found["TraC"])
    agent.network, agent.reference_network = network(), network()
    agent.alpha, agent.gamma, agent.eta = config.alpha, config.gamma, config.eta
    agent.bc_data, agent.bc_coeff, agent.bc_steps = "all", 0.0, 0
    powers = torch.logspace(0, length - 1, length, base=config.gamma, device=device)
    agent.gammalst = powers.repeat(segments, 1)
    ramp = found["linear_warmup"](config.warmup_steps, config.learning_rate / config.cloning_lr)
    agent.optim_class, agent.optim_kwargs = torch.optim.Adam, {"lr": config.cloning_lr}
    agent.schedulers_class, agent.schedulers, agent.optim = {"actor": ramp}, {}, {}
    agent.setup_optimizers()
    agent.setup_schedulers(do_nothing=False)
    counts = itertools.count()

    def step(batch: Batch) -> None:
        names = {"obs": "observations", "action": "actions", "label": "label", "weight": "weight"}
        agent.train_step({theirs: batch[mine] for theirs, mine in names.items()}, next(counts))
        agent.schedulers["actor"].step()

    return step
