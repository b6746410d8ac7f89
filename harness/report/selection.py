"""Choosing by the data alone, against choosing by roll-outs: which checkpoint of a policy, and which policy of a suite.

Offline reinforcement learning has no environment to try policies in before one is deployed, so what cannot be told from
the data costs something: the regret of a rule is the reward of what roll-outs would have chosen less that of its own
choice, both judged by the same roll-outs (after Paine et al., 2020, arXiv 2007.09055, with the cost beside it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.plan import Plan, PlannedCell
from harness.report.tables import csv_table, markdown_table, markdown_text
from harness.report.warnings import describe_damage
from harness.statistics import RUN, checkpoint_episodes, interval, mean, run_states
from harness.store import Results
from harness.tasks import normalize_cost, within

LEGEND = (
    "Reward and cost are DSRL's normalised ones, means over runs (seed, cost limit) of what each rule's choice reaches "
    "in its evaluation episodes; violations is the share of runs whose choice costs more than the limit. Regret is the "
    "reward of the choice that peeks less the rule's own: negative where a rule chose more reward at more cost, so "
    "read it beside the violations. Its 95% interval is a stratified bootstrap over n seeds. What peeks is judged by "
    "the very episodes that it chose by, so its own numbers flatter it."
)
ESTIMATES = ("fqe_return", "fqe_cost", "action_error")
Choose = Callable[[pd.DataFrame], NDArray[np.intp]]


@dataclass(frozen=True)
class Rule:
    """A way to choose one of several candidates.

    Args:
        name: in tables.
        description: for people.
        choose: positions of the chosen candidate, of several where any of them is chosen by chance, of none where the
            rule knows nothing of them.
    """

    name: str
    description: str
    choose: Choose


def _safest_best(reward: str, cost: str) -> Choose:
    """The most reward among those within the limit, else the least cost; of equals the later one."""

    def choose(candidates: pd.DataFrame) -> NDArray[np.intp]:
        rewards, costs = candidates[reward].to_numpy(), candidates[cost].to_numpy()
        known = np.isfinite(rewards) & np.isfinite(costs)
        safe = known & within(costs, 1)
        return _least(np.where(safe, -rewards, np.inf) if safe.any() else np.where(known, costs, np.inf))

    return choose


def _least(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Where the last of the least finite values is."""
    finite = np.isfinite(values)
    return np.flatnonzero(finite & (values == values[finite].min()))[-1:] if finite.any() else np.zeros(0, np.intp)


AT_RANDOM = Rule("at random", "any of them", lambda candidates: np.arange(len(candidates)))
LAST = Rule("last", "the last checkpoint", lambda candidates: _least(-candidates["step"].to_numpy(dtype=float)))
FQE = Rule(
    "FQE",
    "most predicted return among those whose predicted cost is within the limit, else least predicted cost",
    _safest_best("fqe_return", "fqe_cost"),
)
HELD_OUT = Rule(
    "held-out loss",
    "least error of its actions on held-out data",
    lambda candidates: _least(candidates["action_error"].to_numpy(dtype=float)),
)
PEEKS = Rule(
    "best of evaluations",
    "peeks (online selection): safe by its roll-outs, then most reward",
    _safest_best("reward", "cost"),
)


def best_by_roll_outs(means: pd.DataFrame, run: Sequence[str]) -> pd.DataFrame:
    """The checkpoint of every run that :data:`PEEKS` chooses, of all runs at once.

    Args:
        means: a row a checkpoint: reward and cost, finite, step, and the columns ``run``.
        run: what tells runs apart.
    """
    safe = within(means["cost"], 1)
    worth = means.assign(unsafe=~safe, worth=np.where(safe, -means["reward"], means["cost"]))
    ordered = worth.sort_values([*run, "unsafe", "worth", "step"], ascending=[*[True] * len(run), True, True, False])
    return ordered.drop_duplicates(list(run))[list(means.columns)]


OF_CHECKPOINTS = (AT_RANDOM, LAST, FQE, HELD_OUT, PEEKS)
OF_POLICIES = (AT_RANDOM, FQE, HELD_OUT, PEEKS)


@dataclass(frozen=True)
class Outcome:
    """What one rule's choices reach, over runs.

    Args:
        policy: whose checkpoints are chosen from; empty over all policies, or where policies are chosen from.
        rule: its name.
        reward: mean normalised reward of what was chosen.
        cost: mean normalised cost of it.
        violations: share of runs in which its mean cost is above the limit.
        regret: mean of the reward of what peeks would have chosen less its own.
        interval: of the regret, 95%, ``None`` for fewer than two seeds.
        seeds: that the interval rests on: those with a choice in every column of the table.
        runs: (policy, task, seed, cost limit), or without policy where policies are chosen from.
    """

    policy: str
    rule: str
    reward: float
    cost: float
    violations: float
    regret: float
    interval: tuple[float, float] | None
    seeds: int
    runs: int


@dataclass(frozen=True)
class SelectionReport:
    """Of one suite.

    Args:
        suite: its name.
        checkpoints: which checkpoint of a policy to keep, over all policies and for each.
        policies: which policy of the suite to take, at its last checkpoint.
        notes: what a reader must know beside the numbers.
    """

    suite: str
    checkpoints: list[Outcome]
    policies: list[Outcome]
    notes: list[str]


@dataclass(frozen=True)
class Table:
    """What the rules choose of one kind.

    Args:
        of: ``checkpoint`` or ``policy``.
        title: for people.
        key: what the rules in it are.
        outcomes: its rows.
    """

    of: str
    title: str
    key: str
    outcomes: list[Outcome]


def tables(report: SelectionReport) -> list[Table]:
    """Those that have rows."""
    kinds = (
        ("checkpoint", "Which checkpoint of a policy", OF_CHECKPOINTS, report.checkpoints),
        ("policy", "Which policy of the suite, at its last checkpoint", OF_POLICIES, report.policies),
    )
    return [Table(of, title, _key(rules, found), found) for of, title, rules, found in kinds if found]


def make_report(store: Results, plan: Plan, episodes: pd.DataFrame | None = None) -> SelectionReport:
    """Read a suite's results and let every rule choose.

    Args:
        store: of the results.
        plan: of the suite.
        episodes: what :func:`harness.statistics.checkpoint_episodes` gives, where they are read already.
    """
    candidates = read_candidates(store, plan, episodes)
    by_checkpoint = chosen(candidates, RUN, OF_CHECKPOINTS)
    by_policy = chosen(candidates[candidates["last"]], ["task", "seed", "limit"], OF_POLICIES)
    checkpoints = outcomes(by_checkpoint, "")
    for row in by_checkpoint["row"].unique() if len(by_checkpoint) else []:
        checkpoints += outcomes(by_checkpoint[by_checkpoint["row"] == row], row)
    policies = outcomes(by_policy, "")
    notes = _notes(store, plan, candidates, checkpoints, policies)
    notes += [
        f"Warning: {line}." for line in describe_damage((store.status(planned.cell) for planned in plan.cells), plan)
    ]
    return SelectionReport(plan.suite, checkpoints, policies, notes)


def read_candidates(store: Results, plan: Plan, episodes: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every evaluated checkpoint of every policy, once for each limit it is judged by, in the order of training.

    Args:
        store, plan, episodes: as of :func:`make_report`.

    Returns:
        Columns row, task, seed, limit, step, last, reward and cost (normalised means of its episodes), and what is
        known without roll-outs, NaN where it is not: fqe_return and fqe_cost (normalised, too) and action_error.
    """
    keys = [*RUN, "step"]
    episodes = checkpoint_episodes(store, plan) if episodes is None else episodes
    reached = episodes.groupby(keys, sort=False, as_index=False)[["last", "reward", "cost"]].mean()
    done = [planned for planned in plan.cells if store.status(planned.cell).state == "done"]
    estimates = [_estimates(store, planned, limit) for planned in done for limit in planned.cell.evaluation_limits]
    estimates = [frame for frame in estimates if len(frame)]
    known = pd.concat(estimates) if estimates else pd.DataFrame(columns=[*keys, "metric", "value"])
    wide = known.pivot(index=keys, columns="metric", values="value").reindex(columns=list(ESTIMATES))
    candidates = reached.merge(wide.reset_index(), on=keys, how="left")
    return candidates.astype({"last": bool} | dict.fromkeys(ESTIMATES, float)).sort_values("step", kind="stable")


def _estimates(store: Results, planned: PlannedCell, limit: float) -> pd.DataFrame:
    """What is known of a cell's checkpoints without roll-outs, where the limit is this one.

    Returns:
        Columns row, task, seed, limit, step, metric (of :data:`ESTIMATES`) and value.
    """
    cell = planned.cell
    diagnostics = store.diagnostics(cell)
    told, of = diagnostics["cost_limit"], diagnostics["policy"].isin(list(planned.rows))
    frame = diagnostics[of & diagnostics["metric"].isin(ESTIMATES) & (told.isna() | (told == limit))]
    settings, task = cell.evaluation.fqe, cell.definition
    if settings is not None:
        # From a discounted sum without end to what the same mean of every step gives in a whole episode.
        metric, value = frame["metric"].to_numpy(), frame["value"].to_numpy(dtype=float)
        summed = value * (1 - settings.gamma) * task.max_episode_steps
        normalised = [task.normalize_reward(summed), np.asarray(normalize_cost(summed, np.float64(limit)))]
        frame = frame.assign(value=np.select([metric == "fqe_return", metric == "fqe_cost"], normalised, value))
    frame = frame.assign(row=frame["policy"].map(planned.rows), task=cell.task, seed=cell.seed, limit=limit)
    return frame[[*RUN, "step", "metric", "value"]]


def chosen(candidates: pd.DataFrame, run: Sequence[str], rules: Sequence[Rule]) -> pd.DataFrame:
    """What each rule chooses in every run that has more than one candidate.

    Args:
        candidates: as :func:`read_candidates` gives them.
        run: the columns that tell runs apart; each is chosen in by itself.
        rules: the last one is what the others are compared with.

    Returns:
        Columns row (empty where rules choose among rows), task, seed, limit, rule, reward, cost, violations, regret.
    """
    found = []
    for key, group in candidates.groupby(list(run), sort=False):
        if len(group) == 1:
            continue
        picks = {rule.name: group.iloc[rule.choose(group)] for rule in rules}
        best = picks[rules[-1].name]["reward"].mean()
        for name, pick in picks.items():
            if len(pick):
                reached = {"reward": pick["reward"].mean(), "cost": pick["cost"].mean()}
                reached |= {"violations": (~within(pick["cost"], 1)).mean(), "regret": best - pick["reward"].mean()}
                found.append({"row": ""} | dict(zip(run, key, strict=True)) | {"rule": name} | reached)
    return pd.DataFrame(found)


def outcomes(choices: pd.DataFrame, policy: str) -> list[Outcome]:
    """Means over the runs in which every rule could choose that could in any."""
    if choices.empty:
        return []
    runs = RUN
    rules = choices["rule"].unique()
    able = choices.groupby(runs)["rule"].transform("size") == len(rules)
    results = []
    for rule in rules if able.any() else []:
        mine = choices[able & (choices["rule"] == rule)]
        wide = mine.pivot(index="seed", columns=["row", "task", "limit"], values="regret").dropna()
        matrix = wide.T.groupby(level=["row", "task"]).mean().T.to_numpy(dtype=np.float64)
        between = interval(matrix, mean) if len(matrix) > 1 else None
        means = {name: float(mine[name].mean()) for name in ("reward", "cost", "violations", "regret")}
        results.append(Outcome(policy, str(rule), **means, interval=between, seeds=len(matrix), runs=len(mine)))
    return results


def _notes(
    store: Results,
    plan: Plan,
    candidates: pd.DataFrame,
    checkpoints: Sequence[Outcome],
    policies: Sequence[Outcome],
) -> list[str]:
    notes = []
    states = run_states(store, plan)
    partial = dict.fromkeys(row for (row, _), counts in states.items() if counts["done"] < counts.total())
    if partial:
        notes.append(f"Rests on the runs that there are: some are missing of {', '.join(partial)}.")
    if not checkpoints:
        notes.append("No policy has more than one checkpoint: a suite's evaluation.every makes some to choose from.")
    if not policies:
        notes.append("There are not two policies to choose from.")
    if candidates.empty:
        return notes
    for rule, estimate, remedy in ((FQE, "fqe_return", "evaluation.fqe"), (HELD_OUT, "action_error", "data.holdout")):
        known = candidates.groupby("row", sort=False)[estimate].agg(lambda values: np.isfinite(values).any())
        if not known.any():
            notes.append(f"{rule.name} has nothing to choose by: the suite does not ask for it ({remedy}).")
        elif not known.all():
            without = ", ".join(known.index[~known])
            notes.append(
                f"{rule.name} knows nothing of {without}; over all policies, runs that it cannot judge are out."
            )
    return notes


def to_markdown(reports: Sequence[SelectionReport]) -> str:
    """For people: both tables of each suite."""
    return "\n\n".join(_markdown(report) for report in reports) + "\n"


def _markdown(report: SelectionReport) -> str:
    parts = [f"# Selection: {report.suite}"]
    for table in tables(report):
        parts += [f"## {table.title}", _table(table.outcomes), table.key]
    return "\n\n".join([*parts, LEGEND, *map(markdown_text, report.notes)])


def _table(found: Sequence[Outcome]) -> str:
    header = ["policy", "rule", "reward", "cost", "violations", "regret", "95% interval", "n", "runs"]
    rows = [
        [
            markdown_text(one.policy) or "all",
            one.rule,
            *(f"{value:z.3f}" for value in (one.reward, one.cost, one.violations, one.regret)),
            "-" if one.interval is None else f"{one.interval[0]:z.3f} to {one.interval[1]:z.3f}",
            str(one.seeds),
            str(one.runs),
        ]
        for one in found
    ]
    return markdown_table(header, rows)


def _key(rules: Sequence[Rule], found: Sequence[Outcome]) -> str:
    present = {one.rule for one in found}
    return "; ".join(f"{rule.name}: {rule.description}" for rule in rules if rule.name in present) + "."


def to_records(reports: Sequence[SelectionReport]) -> list[dict[str, Any]]:
    """One flat record a row; ``of`` says what is chosen, a checkpoint or a policy."""
    records = []
    for report in reports:
        for table in tables(report):
            for one in table.outcomes:
                fields = {"suite": report.suite, "of": table.of} | asdict(one)
                low, high = fields.pop("interval") or (None, None)
                records.append(fields | {"regret_low": low, "regret_high": high})
    return records


def to_csv(reports: Sequence[SelectionReport]) -> str:
    """For programs: :func:`to_records` as CSV."""
    return csv_table(to_records(reports))


def to_json(reports: Sequence[SelectionReport]) -> str:
    """For programs: :func:`to_records` and the notes of each suite."""
    suites = [{"suite": one.suite, "notes": one.notes, "rows": to_records([one])} for one in reports]
    return json.dumps(suites, indent=1) + "\n"


FORMATS = {"markdown": to_markdown, "csv": to_csv, "json": to_json}
