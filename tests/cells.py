"""Cells on BallRun's demo data, and their training in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import registry
from harness.data.dataset import Dataset
from harness.evaluation import Evaluator
from harness.plan import Cell, CellData, Job
from harness.store import Store
from harness.suite import Evaluation
from harness.training import Training


def make_cell(algorithm: str, settings: Mapping[str, Any], **fields: Any) -> Cell:
    """A cell with these hyperparameters; ``fields`` are what else of it is other than here."""
    kind = registry.load(algorithm)
    config = kind.Hyperparameters.model_validate(settings)
    usual: dict[str, Any] = {
        "task": "OfflineBallRun-v0",
        "algorithm": algorithm,
        "algorithm_version": kind.version,
        "hyperparameters": config.model_dump(mode="json"),
        "seed": 0,
        "cost_limit": None,
        "evaluation_limits": (10.0, 20.0),
        "told_limit": kind.acts_on_cost_limit(config),
        "evaluation": Evaluation(every=3, episodes=1, final=1),
        "data": CellData(source="demo"),
    }
    return Cell(**usual | fields)


def make_training(root: Path, dataset: Dataset, *cells: Cell, **how: Any) -> Training:
    """Their training, with results in ``root``; ``how`` is what else it is told."""
    (root / "jobs").mkdir(parents=True, exist_ok=True)
    selections = [registry.load(one.algorithm).select(dataset, one.config, one.replica) for one in cells]
    return Training(Job(cells=cells), dataset, selections, Store(root), Evaluator(0), **how)
