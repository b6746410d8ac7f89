"""Results of other code as cells: a plan of their own, written by the store as our own results are."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from harness.claims import Claims
from harness.errors import DamageError, UserError, shortened
from harness.exchange.table import KEY, Episodes, look
from harness.plan import MARK, MOST_CELLS, Cell, CellData, Imported, Plan, PlannedCell
from harness.store import Status, Store
from harness.suite import MOST_EPISODES, MOST_LETTERS, Evaluation, SuiteName, builtin_suites
from harness.tasks import Task, all_tasks

Limits = Literal["dsrl", "file"]
"""By which limits roll-outs are judged that were told none: the task's own, or those that the table names for it. In
either case by all that the suite has for the task."""
Limited = Mapping[str, set[float]]
"""Cost limits by task."""
CONTENT = ["step", "episode_return", "cost", "length", "episodes"]


class Place(NamedTuple):
    """What tells imported cells apart."""

    task: str
    policy: str
    seed: int
    cost_limit: float | None


@dataclass(frozen=True)
class Import:
    """What an import did.

    Args:
        plan: of the suite, as it is now.
        added: cells that are new.
        replaced: cells whose content was another.
        kept: cells that were there already.
        unfinished: of the table's cells, those whose training ended early.
        missing: cells without a result, for policies that lack what others of the suite have.
    """

    plan: Plan
    added: int
    replaced: int
    kept: int
    unfinished: int
    missing: int


@dataclass(frozen=True)
class _Found:
    """A cell of the table, with its content."""

    planned: PlannedCell
    episodes: pd.DataFrame
    status: Status


def importable_tasks(store: Store) -> list[Task]:
    """DSRL's tasks, and the own ones of suites whose results are in the store."""
    plans: list[Plan] = []
    with suppress(DamageError):  # all are, which the store says of each
        plans = store.plans()
    own = {task.id: task for plan in plans for task in plan.tasks.values() if task.family == "own"}
    return [*all_tasks().values(), *own.values()]


def import_episodes(
    store: Store, suite: str, table: Episodes, limits: Limits = "dsrl", replace: bool = False, description: str = ""
) -> Import:
    """Write a table's episodes as a suite's results, beside what was imported into it before.

    Args:
        store: where to.
        suite: its name.
        table: without problems.
        limits: see :data:`Limits`.
        replace: whether what was imported before gives way to other content for the same cells.
        description: of the suite; empty keeps the one before.

    Raises:
        UserError: the table is not to be imported, the name is not free, or other content is there.
        ResultsError: results cannot be written.
    """
    if table.problems:
        raise UserError(f"{table.problems[0]}; nothing is imported", where=str(table.source))
    require_free_name(store, suite)
    store.prepare()
    with Claims(store.root) as claims:
        if not claims.acquire(f"import-{suite}"):
            raise UserError(f"{claims.holder(f'import-{suite}')} is importing into {suite} at this moment")
        before = _plan_before(store, suite, replace)
        tasks = {task.id: task for task in importable_tasks(store)}
        found = _cells(table, tasks, limits)
        old = {place_of(one.cell): one for one in before.cells if one.cell.imported and one.cell.imported.content}
        changed = _changed(found, old)
        if changed and not replace:
            first = found[changed[0]].planned
            raise UserError(
                f"{suite} has other results of {first.cell.describe(first.label)}"
                f"{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}: --replace puts these in their place",
                where=str(table.source),
            )
        kinds = set(map(_kind, found))
        gone = {place for place in old if place not in found and _other_kind(place) in kinds}
        kept = [place for place in found if place in old and place not in changed]
        for place in kept:  # under the source that it had first
            found[place] = _Found(old[place], found[place].episodes, found[place].status)
        together = {place: one for place, one in old.items() if place not in gone}
        together |= {place: one.planned for place, one in found.items()}
        _require_distinct({place.policy for place in together})
        cells = completed(list(together.values()), tasks, limits_of(together.values()))
        for one in found.values():
            _write(store, one)
        about = description or before.description or "Imported: nothing of it was run here."
        plan = Plan(suite=suite, description=about, cells=cells)
        store.write_plan(plan)
        _forget(store, before, store.plans())
    return Import(
        plan,
        added=len(found) - len(kept) - len(changed),
        replaced=len(changed),
        kept=len(kept),
        unfinished=sum(one.status.state == "failed" for one in found.values()),
        missing=sum(not one.cell.imported.content for one in cells if one.cell.imported),
    )


def require_free_name(store: Store, suite: str) -> None:
    """Refuse a name that no suite may have, or that one has which can be run.

    Raises:
        UserError: says which.
    """
    try:
        TypeAdapter(SuiteName).validate_python(suite)
    except ValidationError as error:
        raise UserError(
            f"a suite's name is of small letters and digits, with - or _ between them, at most {MOST_LETTERS}: not "
            f"{suite!r}"
        ) from error
    if suite in builtin_suites():
        raise UserError(f"{suite} is a built-in suite, which can be run: give the imported suite another name")
    store.require_no_archive()


def _plan_before(store: Store, suite: str, replace: bool) -> Plan:
    """What was imported into the suite before.

    Raises:
        UserError: it was run, or its plan is damaged and not to be replaced.
    """
    try:
        plan = store.plan(suite)
    except UserError as error:
        if not replace:
            raise UserError(f"{error}; with --replace the suite is what this import brings, alone") from error
        plan = None
    if plan is None:
        return Plan(suite=suite, description="", cells=[])
    if not plan.imported:
        raise UserError(f"{suite} was run in {str(store.root)!r}: give the imported suite another name")
    return plan


def _cells(table: Episodes, tasks: Mapping[str, Task], limits: Limits) -> dict[Place, _Found]:
    """The table's cells, in the order of tasks, then of the table."""
    rows, found = table.rows, {}
    if len(rows[KEY].drop_duplicates()) > MOST_CELLS:
        raise UserError(
            f"more than {MOST_CELLS} runs: is the seed the training run's, or each episode's?", where=str(table.source)
        )
    named = rows.dropna(subset="cost_limit").groupby("task")["cost_limit"].unique()
    last = rows.groupby(["task", "policy"])["step"].transform("max")
    rows = rows.assign(last=rows["last"].fillna(last))
    for key, group in rows.groupby(KEY, sort=False, dropna=False):
        task, policy, seed, told = cast(tuple[str, str, float, float], key)
        limit = None if np.isnan(told) else told
        judged = {float(one) for one in named.get(task, [])}
        if limit is None and limits == "dsrl":
            judged |= set(tasks[task].cost_limits)
        if not judged:
            raise UserError(
                f"no row of {tasks[task].name} names a cost limit; without --limits file DSRL's are taken",
                where=str(table.source),
            )
        place = Place(task, policy, int(seed), limit)
        found[place] = _cell(place, group, tasks[place.task], tuple(sorted(judged)), table)
    order = {name: index for index, name in enumerate(tasks)}
    return dict(sorted(found.items(), key=lambda item: order[item[0].task]))


def _cell(place: Place, group: pd.DataFrame, task: Task, judged: tuple[float, ...], table: Episodes) -> _Found:
    numbered = group["episode"].notna().all()
    episodes = pd.DataFrame(
        {
            "step": group["step"].astype(np.int64),
            "policy": place.policy,
            "cost_limit": np.nan,  # the cell's own says it
            "episode": group["episode"] if numbered else group.groupby("step").cumcount(),
            "seed": np.nan,  # of the episode: not known
            **{name: group[name].astype(float) for name in ("episode_return", "cost", "length")},
            "episodes": group["episodes"].astype(np.int64),
        }
    ).astype({"episode": np.int64})
    if (episodes["length"] % 1 == 0).all():  # not of means
        episodes["length"] = episodes["length"].astype(np.int64)
    step, last = int(group["last"].iloc[0]), int(group["step"].max())
    ended = f"it ends at step {last} of {step}"
    final = int(episodes.loc[episodes["step"] == last, "episodes"].sum())
    cell = _planned(
        place,
        task,
        judged if place.cost_limit is None else (place.cost_limit,),
        Imported(policy=place.policy, content=_digest(episodes, step), file=_name(table.source), sha256=table.sha256),
        step,
        Evaluation(final=min(final, MOST_EPISODES)),
    )
    return _Found(cell, episodes, Status("done") if last >= step else Status("failed", ended))


def _name(source: Path) -> str:
    """A file's name as it may stand in a table."""
    name = "".join(letter if letter.isprintable() else "?" for letter in source.resolve().name)
    return shortened(name, MOST_LETTERS)


def _planned(
    place: Place,
    task: Task,
    judged: tuple[float, ...],
    origin: Imported,
    step: int,
    evaluation: Evaluation,
) -> PlannedCell:
    cell = Cell(
        task=task.id,
        own_task=task if task.family == "own" else None,
        algorithm="imported",
        algorithm_version=1,
        hyperparameters={"steps": step},
        seed=place.seed,
        cost_limit=place.cost_limit,
        evaluation_limits=judged,
        evaluation=evaluation,
        data=CellData(source="unknown"),
        imported=origin,
    )
    row = place.policy + MARK
    return PlannedCell(cell=cell, label=row, rows={place.policy: row})


def _digest(episodes: pd.DataFrame, step: int) -> str:
    """Of what a cell's episodes say, in whatever order they stand."""
    values = episodes[CONTENT].sort_values(CONTENT).to_numpy(dtype="<f8")
    return hashlib.sha256(f"{step}\n".encode() + values.tobytes()).hexdigest()


def place_of(cell: Cell) -> Place:
    """The place of an imported cell."""
    assert cell.imported is not None
    return Place(cell.task, cell.imported.policy, cell.seed, cell.cost_limit)


def _changed(found: Mapping[Place, _Found], old: Mapping[Place, PlannedCell]) -> list[Place]:
    """Places for which other content is there, or runs of the other kind, which would count for the same limits."""
    kinds = set(map(_kind, old))
    return [
        place
        for place, one in found.items()
        if (place in old and old[place].cell.hash != one.planned.cell.hash) or _other_kind(place) in kinds
    ]


def _require_distinct(policies: Iterable[str]) -> None:
    """Refuse policies of several sources that look alike in tables.

    Raises:
        UserError: two do.
    """
    spellings: dict[str, str] = {}
    for policy in sorted(policies):
        if (other := spellings.setdefault(look(policy), policy)) != policy:
            raise UserError(f"the policies {other!r} and {policy!r} would look alike in tables: rename one")


def _kind(place: Place) -> tuple[str, str, int, bool]:
    """Whose run it is, and whether it was told a limit."""
    return (*place[:3], place.cost_limit is not None)


def _other_kind(place: Place) -> tuple[str, str, int, bool]:
    return (*place[:3], place.cost_limit is None)


def completed(planned: Sequence[PlannedCell], tasks: Mapping[str, Task], limits: Limited) -> list[PlannedCell]:
    """The cells, and behind them one without results for each (policy, seed, task, limit) that is not there.

    Whoever is compared is compared on the same tasks and limits, as in a suite that is run: who lacks some has no rank.

    Args:
        planned: imported cells.
        tasks: by id, those of the limits among them.
        limits: by task, those that count; cells of others are left out.

    Raises:
        UserError: these are more cells than a suite may have.
    """
    seeds: dict[str, dict[int, None]] = {}
    steps: dict[tuple[str, str], int] = {}
    for one in planned:
        place = place_of(one.cell)
        seeds.setdefault(place.policy, {})[place.seed] = None
        steps[place.policy, place.task] = one.cell.hyperparameters["steps"]
    runs = sum(map(len, seeds.values()))
    if (count := runs * sum(map(len, limits.values()))) > MOST_CELLS:
        raise UserError(
            f"{runs} (policy, seed) on {len(limits)} tasks at every limit make {count} runs, and a suite has at most "
            f"{MOST_CELLS}: is the seed the training run's, or each episode's?"
        )
    cells, there = [], set()
    for one in planned:
        place, of_task = place_of(one.cell), limits.get(one.cell.task, set())
        told_none = place.cost_limit is None
        judged = tuple(sorted(of_task if told_none else of_task & {*one.cell.evaluation_limits}))
        if judged:
            cells.append(one.model_copy(update={"cell": one.cell.model_copy(update={"evaluation_limits": judged})}))
            there |= {(*place[:3], limit) for limit in judged}
    for task, of_task in limits.items():
        for policy, of_policy in seeds.items():
            for seed, limit in itertools.product(of_policy, sorted(of_task)):
                place = Place(task, policy, seed, limit)
                if place not in there:
                    step = steps.get((policy, task), 0)
                    cells.append(_planned(place, tasks[task], (limit,), Imported(policy=policy), step, Evaluation()))
    order = {key: index for index, key in enumerate(tasks)}
    return sorted(cells, key=lambda one: order[one.cell.task])


def limits_of(planned: Iterable[PlannedCell]) -> Limited:
    """By task, all limits that cells are judged by."""
    limits: dict[str, set[float]] = {}
    for one in planned:
        limits.setdefault(one.cell.task, set()).update(one.cell.evaluation_limits)
    return limits


def _write(store: Store, found: _Found) -> None:
    """Write a cell, unless it is there and whole."""
    cell = found.planned.cell
    if store.status(cell).state == found.status.state:
        return
    if found.status.state != "done":
        store.set_status(cell, found.status)
        return
    assert cell.imported is not None
    record: dict[str, Any] = {
        "imported": {"file": cell.imported.file, "sha256": cell.imported.sha256},
        "dataset": {"sha256": None},
        "group": [cell.hash],
        "training_seconds": 0.0,
    }
    training = pd.DataFrame({"step": [cell.hyperparameters["steps"]]})
    store.write_results(cell, record, found.episodes, training, {}, {})


def _forget(store: Store, before: Plan, plans: Iterable[Plan]) -> None:
    """Remove the results of cells that no plan has any more."""
    wanted = {planned.cell.hash for plan in plans for planned in plan.cells}
    for planned in before.cells:
        if planned.cell.hash not in wanted:
            store.forget(planned.cell)
