"""The literature's numbers beside ours: where they are from, under which protocol, and what may be compared.

``results/published`` holds them: a line a number in ``published.csv``, a line a source in ``sources.csv``.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness import registry
from harness.errors import UserError, nearest
from harness.files import shipped
from harness.guard import UserCodeError, guard
from harness.plan import Cell, Plan
from harness.protocol import SAFETY_GYMNASIUM, Limits, Protocol
from harness.report.latex import PREAMBLE, escape, table
from harness.report.leaderboard import Foreign, Leaderboard
from harness.report.tables import csv_table, markdown_table, markdown_text
from harness.statistics import RUN, final_episodes, interval, mean, run_means
from harness.store import Results
from harness.tasks import FAMILIES, Task, all_tasks

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["agrees", "differs", "not comparable"]
PER_LABEL = "label"
"""In the place of a source's limits: each number's algorithm names them, as ``CDT @limit 5/10`` does."""
ALIASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bc": ("bc-all", {}),
    "caps": ("caps-iql", {}),
    "caps(iql)": ("caps-iql", {}),
    **{f"caps(iql) {heads} heads": ("caps-iql", {"heads": heads}) for heads in (2, 4, 8)},
    **{f"caps(sac+bc) {heads} heads": ("caps-sac", {"heads": heads}) for heads in (2, 4, 8)},
}
"""Published names, in lower case, of policies that are called otherwise here, with the settings that they say."""
LEGEND = (
    "Agrees: their reward and cost both lie in the 95% bootstrap intervals of our means over seeds, give or take what "
    "theirs are rounded by; their own spread mixes limits with seeds and plays no part. Difference: ours less theirs, "
    "reward and cost. Ours are judged at their limits, where our suite has them."
)


@dataclass(frozen=True)
class Source:
    """Where numbers are from.

    Args:
        name: its short name.
        citation: for people.
        provenance: primary, reprint, mirror or secondary.
        limits: cost limits by family, as far as they are known; ``None`` where each number's label says them.
        normalisation: of returns and costs.
    """

    name: str
    citation: str
    provenance: str
    limits: Mapping[str, Limits] | None
    normalisation: str

    @property
    def protocol(self) -> str:
        """For people."""
        if self.limits is None:
            return "a limit each, in the algorithm's name"
        name = Protocol(tuple(sorted(self.limits.items())), self.normalisation).name
        return name + ("" if len(self.limits) == len(FAMILIES) else f" ({', '.join(self.limits)})")


@dataclass(frozen=True)
class Number:
    """One published reward and cost on one task.

    Args:
        source: where it is from.
        algorithm: as it is called there.
        task: its id.
        reward: normalised mean.
        cost: mean, normalised by its limits.
        rounding: the most that either is off by being printed with so many digits.
        uncertain: whether the extraction is in doubt.
        limits: the cost limits behind it, ``None`` where they are not known.
    """

    source: Source
    algorithm: str
    task: str
    reward: float
    cost: float
    rounding: float
    uncertain: bool
    limits: Limits | None

    @property
    def policy(self) -> str:
        """What we would call it."""
        return self._alias[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its name says of its settings: ``heads``, of ``CAPS(IQL) 4 heads``."""
        return self._alias[1]

    @property
    def _alias(self) -> tuple[str, Mapping[str, Any]]:
        name = self.algorithm.partition(" @limit ")[0].lower()
        return ALIASES.get(name, (name, {}))

    @property
    def protocol(self) -> Protocol | None:
        """Under which it stands, as far as that is known."""
        family = all_tasks()[self.task].family
        return None if self.limits is None else Protocol(((family, self.limits),), self.source.normalisation)


@cache
def sources() -> dict[str, Source]:
    """Every source by name."""
    return {
        row["source"]: Source(
            row["source"], row["citation"], row["provenance"], _limits(row["limits"]), row["normalisation"]
        )
        for row in _rows("sources.csv")
    }


def find_sources(names: Sequence[str]) -> list[Source]:
    """The sources of these names; every one for none.

    Raises:
        UserError: there is no such source.
    """
    known = sources()
    for name in names:
        if name not in known:
            raise UserError(
                f"no published source is called {name!r}.{nearest(name, known)} 'lspc-bench published' lists them."
            )
    return [known[name] for name in dict.fromkeys(names)] or list(known.values())


@cache
def numbers() -> tuple[Number, ...]:
    """Every number on one of our tasks that has a reward and a cost; CoPDT's Velocity tasks, say, are v0, ours v1."""
    found = []
    for row in _rows("published.csv"):
        texts = row["normalized_reward"], row["normalized_cost"]
        if row["scope"] == "task" and row["task_id"] in all_tasks() and all(texts):
            source = sources()[row["source"]]
            digits = max(2, *(len(text.partition(".")[2]) for text in texts))
            limits = _at(source, row["algorithm"], all_tasks()[row["task_id"]])
            reward, cost = map(float, texts)
            found.append(
                Number(
                    source,
                    row["algorithm"],
                    row["task_id"],
                    reward,
                    cost,
                    0.5 * 10**-digits,
                    bool(row["uncertain"]),
                    limits,
                )
            )
    return tuple(found)


def counts() -> dict[str, dict[str, int]]:
    """Of each source how many numbers, averages among them, on how many tasks, of how many algorithms."""
    found = {}
    rows = _rows("published.csv")
    for name in sources():
        mine = [row for row in rows if row["source"] == name]
        found[name] = {
            "numbers": len(mine),
            "averages": sum(row["scope"] != "task" for row in mine),
            "tasks": len({row["task_id"] for row in mine} - {""}),
            "algorithms": len({row["algorithm"] for row in mine}),
        }
    return found


def _rows(name: str) -> list[dict[str, str]]:
    with shipped(f"published/{name}", f"results/published/{name}").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _limits(text: str) -> dict[str, Limits] | None:
    """Limits by family of ours, of ``bullet=5;safety-gymnasium=10``."""
    if text == PER_LABEL:
        return None
    found: dict[str, Limits] = {}
    for pair in text.split(";"):
        family, _, values = pair.partition("=")
        limits = tuple(map(float, values.split()))
        found |= dict.fromkeys(SAFETY_GYMNASIUM if family == "safety-gymnasium" else [family], limits)
    return found


def _at(source: Source, algorithm: str, task: Task) -> Limits | None:
    """The limits behind a number."""
    if source.limits is not None:
        return source.limits.get(task.family)
    tight, _, loose = algorithm.partition(" @limit ")[2].partition("/")
    return (float(loose if task.family in SAFETY_GYMNASIUM else tight),)


def published_rows(board: Leaderboard, chosen: Sequence[Source]) -> dict[str, list[Foreign]]:
    """The sources' rows by task of a board; under an empty name the means of those that have all its tasks."""
    found: dict[str, list[Foreign]] = {}
    together: dict[tuple[str, str], list[Number]] = {}
    for number in numbers():
        if number.source in chosen and number.task in board.tasks:
            protocol = number.protocol.name if number.protocol else ""
            row = Foreign(number.source.name, number.algorithm, number.reward, number.cost, protocol)
            found.setdefault(number.task, []).append(row)
            together.setdefault((row.source, row.policy), []).append(number)
    for (source, policy), mine in together.items():
        protocols = [number.protocol for number in mine if number.protocol]
        if len(mine) == len(board.tasks) and len(protocols) in (0, len(mine)):
            reward, cost = (float(np.mean([getattr(number, what) for number in mine])) for what in ("reward", "cost"))
            protocol = Protocol.together(protocols).name if protocols else ""
            found.setdefault("", []).append(Foreign(source, policy, reward, cost, protocol))
    return found


# Theirs and ours


@dataclass(frozen=True)
class Comparison:
    """A published number, and one of our rows.

    Args:
        number: theirs.
        row: ours, ``None`` where no policy of ours has its name.
        reward: our normalised mean, at their limits where our suite has them; ``None`` without results.
        cost: our normalised mean.
        reward_interval: 95% over seeds, ``None`` for fewer than two.
        cost_interval: the same of the cost.
        protocol: under which ours stands.
        seeds: with every limit.
        verdict: whether they agree.
        why: what forbids the comparison, or what differs.
    """

    number: Number
    row: str | None
    reward: float | None = None
    cost: float | None = None
    reward_interval: tuple[float, float] | None = None
    cost_interval: tuple[float, float] | None = None
    protocol: str = ""
    seeds: int = 0
    verdict: Verdict = "not comparable"
    why: tuple[str, ...] = ("no policy of ours has this name",)

    @property
    def differences(self) -> tuple[float, float] | None:
        """Ours less theirs, of reward and cost; ``None`` where the limits differ."""
        same = self.number.protocol is not None and self.number.protocol.name == self.protocol
        if self.reward is None or self.cost is None or not same:
            return None
        return self.reward - self.number.reward, self.cost - self.number.cost


def compare(
    store: Results, plan: Plan, chosen: Sequence[Source], episodes: pd.DataFrame | None = None
) -> list[Comparison]:
    """Every number of the sources on the suite's tasks, with each row of ours that has its policy.

    Args:
        store: the results.
        plan: the suite's.
        chosen: the sources.
        episodes: the suite's :func:`final_episodes`, where they have been read.
    """
    episodes = final_episodes(store, plan) if episodes is None else episodes
    runs = run_means(episodes)[[*RUN, "reward", "cost"]]
    by_row: dict[tuple[str, str], Means] = {}
    for row, task, seed, limit, reward, cost in runs.itertuples(index=False):
        by_row.setdefault((row, task), {})[seed, limit] = reward, cost
    cells: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for planned in plan.cells:
        for policy, row in planned.rows.items():
            cells.setdefault((policy.lower(), planned.cell.task), {}).setdefault(row, []).append(planned.cell)
    found = []
    for number in numbers():
        if number.source not in chosen or number.task not in plan.tasks:
            continue
        ours = cells.get((number.policy, number.task))
        if ours is None:
            found.append(Comparison(number, None))
            continue
        for row, mine in ours.items():
            found.append(_compared(number, row, mine, by_row.get((row, number.task), {})))
    return found


Means = dict[tuple[int, float], tuple[float, float]]
"""Of a row's runs on a task, reward and cost by seed and limit."""


def _compared(number: Number, row: str, cells: Sequence[Cell], means: Means) -> Comparison:
    """One number beside one row of ours on its task."""
    task = cells[0].definition
    planned = {(cell.seed, limit) for cell in cells for limit in cell.evaluation_limits}
    limits = tuple(sorted({limit for _, limit in planned}))
    why = [*_not_theirs(number, task, limits)]
    if number.limits is not None and set(number.limits) <= set(limits):
        limits = number.limits
    protocol = Protocol.of([(task, limits)])
    why += _not_as_published(number, cells)
    runs = {run: found for run, found in means.items() if run[1] in limits}
    if not runs:
        return Comparison(number, row, protocol=protocol.name, why=(*why, "missing runs: ours has none"))
    wanted = sum(limit in limits for _, limit in planned)
    if len(runs) < wanted:
        why.append(f"missing runs: ours has {len(runs)} of {wanted}")
    seeds = [seed for seed in dict.fromkeys(seed for seed, _ in runs) if all((seed, limit) in runs for limit in limits)]
    by_seed = np.array([[runs[seed, limit] for limit in limits] for seed in seeds]).reshape(-1, len(limits), 2).mean(1)
    intervals = [interval(by_seed[:, [what]], mean) if len(seeds) > 1 else None for what in (0, 1)]
    if len({seed for seed, _ in planned}) == 1:
        why.append("one seed: ours has no interval")
    verdict: Verdict = "not comparable"
    if not why and all(intervals):
        outside = [
            f"{what} {_outside(theirs, within, number.rounding)} our interval"
            for what, theirs, within in (("reward", number.reward, intervals[0]), ("cost", number.cost, intervals[1]))
            if within is not None and _outside(theirs, within, number.rounding)
        ]
        verdict, why = ("differs", [f"their {text}" for text in outside]) if outside else ("agrees", [])
    reward, cost = map(float, np.array(list(runs.values())).mean(0))
    of_reward, of_cost = intervals
    return Comparison(number, row, reward, cost, of_reward, of_cost, protocol.name, len(seeds), verdict, tuple(why))


def _outside(value: float, within: tuple[float, float], rounding: float) -> str:
    low, high = within
    return "below" if value + rounding < low else "above" if value - rounding > high else ""


def _not_theirs(number: Number, task: Task, limits: Limits) -> Iterator[str]:
    """What of protocol and extraction forbids the comparison."""
    if number.limits is None:
        yield "protocol: the limits behind theirs are not known"
    elif not set(number.limits) <= set(limits):
        names = [Protocol(((task.family, one),)).name for one in (number.limits, limits)]
        yield f"protocol: theirs {names[0]}, ours {names[1]}"
    if number.source.normalisation != "dsrl":
        yield f"normalisation: theirs {number.source.normalisation}, ours dsrl"
    if number.uncertain:
        yield "their number is uncertain: it was not read from the table beyond doubt"


def _not_as_published(number: Number, cells: Sequence[Cell]) -> Iterator[str]:
    """What of our data, settings and length of training is not what was published."""
    if any(cell.imported for cell in cells):
        yield "imported: its data, settings and length of training are not known"
        return
    data = {cell.data.describe() for cell in cells} - {"DSRL"}
    if data:
        yield f"data: ours is {', '.join(sorted(data))}"
    cell = cells[0]
    try:
        theirs = published_settings(cell, number.policy) | dict(number.settings)
    except (UserError, UserCodeError) as error:
        yield f"settings: those of {cell.algorithm} are not known here ({error})"
        return
    if cell.hyperparameters["steps"] != theirs["steps"]:
        yield f"training length: ours {cell.hyperparameters['steps']} updates, {theirs['steps']} as published"
    changed = [name for name, value in cell.hyperparameters.items() if name != "steps" and theirs.get(name) != value]
    if changed:
        yield f"settings: ours has another {', '.join(changed)} than published"


def published_settings(cell: Cell, policy: str) -> dict[str, Any]:
    """The algorithm's published settings for the cell's task; one that names the policy is taken from the cell.

    Raises:
        UserError: the algorithm is not here.
        UserCodeError: it does not say.
    """
    algorithm = registry.load(cell.algorithm)

    def dumped(changed: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        config = algorithm.Hyperparameters.model_validate(algorithm.published(cell.definition) | dict(changed))
        named = policy in (name.lower() for name in algorithm.policy_names(config))
        return config.model_dump(mode="json"), named

    with guard(registry.named(cell.algorithm), "published"):
        whole, named = dumped({})
        for name, value in () if named else cell.hyperparameters.items():
            if name in whole and whole[name] != value:
                settings, named = dumped({name: value})
                if named:
                    return settings
        return whole


def as_records(comparisons: Sequence[Comparison], plan: Plan) -> list[dict[str, Any]]:
    """A flat record a comparison."""
    records = []
    for one in comparisons:
        number, (reward, cost) = one.number, one.differences or (None, None)
        records.append(
            {
                "suite": plan.suite,
                "source": number.source.name,
                "task": plan.tasks[number.task].name,
                "algorithm": number.algorithm,
                "protocol": number.protocol.name if number.protocol else "not known",
                "reward": number.reward,
                "cost": number.cost,
                "ours": one.row,
                "our_protocol": one.protocol or None,
                "our_reward": one.reward,
                "our_reward_low": one.reward_interval[0] if one.reward_interval else None,
                "our_reward_high": one.reward_interval[1] if one.reward_interval else None,
                "our_cost": one.cost,
                "our_cost_low": one.cost_interval[0] if one.cost_interval else None,
                "our_cost_high": one.cost_interval[1] if one.cost_interval else None,
                "our_seeds": one.seeds,
                "reward_difference": reward,
                "cost_difference": cost,
                "verdict": one.verdict,
                "why": "; ".join(one.why),
            }
        )
    return records


# Tables of comparisons

Compared = Sequence[tuple[Plan, Sequence[Comparison]]]


def to_markdown(suites: Compared) -> str:
    """For people: a table a suite."""
    return "\n\n".join(_markdown(plan, found) for plan, found in suites) + "\n"


def _markdown(plan: Plan, found: Sequence[Comparison]) -> str:
    header = [*HEADER, "verdict", "why"]
    rows = [[*map(markdown_text, _texts(one, plan)), one.verdict, markdown_text("; ".join(one.why))] for one in found]
    parts = [f"# Published numbers: {plan.suite}", markdown_text(_summary(found))]
    return "\n\n".join([*parts, *([markdown_table(header, rows), LEGEND] if rows else [])])


def to_csv(suites: Compared) -> str:
    """For programs: a line a comparison."""
    return csv_table([record for plan, found in suites for record in as_records(found, plan)])


def to_json(suites: Compared) -> str:
    """For programs: the same with the sources."""
    content = [
        {
            "suite": plan.suite,
            "sources": {one.number.source.name: one.number.source.citation for one in found},
            "comparisons": as_records(found, plan),
        }
        for plan, found in suites
    ]
    return json.dumps(content, indent=1) + "\n"


def to_latex(suites: Compared) -> str:
    """For a paper: a table a suite."""
    return "\n\n".join([PREAMBLE, *(_latex(plan, found) for plan, found in suites)]) + "\n"


def _latex(plan: Plan, found: Sequence[Comparison]) -> str:
    rows = [[*map(escape, _texts(one, plan)), one.verdict] for one in found]
    reasons = Counter(reason for one in found for reason in one.why)
    notes = [f"{reason} ({count})." for reason, count in reasons.items()]
    caption = f"{plan.suite}: published numbers beside ours. {_summary(found)}"
    header = [" & ".join([*(escape(name.capitalize()) for name in HEADER), "Verdict"]) + r" \\"]
    return table("llllrrlrlrlrll", header, [rows], escape(caption), list(map(escape, [LEGEND, *notes])))


HEADER = (
    *("task", "source", "protocol", "theirs", "reward", "cost", "ours", "reward", "95% interval", "cost"),
    *("95% interval", "n", "difference"),
)


def _texts(one: Comparison, plan: Plan) -> list[str]:
    """The cells of :data:`HEADER`."""
    number, different = one.number, one.differences
    return [
        plan.tasks[number.task].name,
        number.source.name,
        number.protocol.name if number.protocol else "not known",
        number.algorithm,
        _number(number.reward),
        _number(number.cost),
        one.row or "-",
        _number(one.reward),
        _interval(one.reward_interval),
        _number(one.cost),
        _interval(one.cost_interval),
        str(one.seeds),
        f"{different[0]:+z.3f}, {different[1]:+z.3f}" if different else "-",
    ]


def _summary(found: Sequence[Comparison]) -> str:
    count = Counter(one.verdict for one in found)
    sources = ", ".join(dict.fromkeys(one.number.source.name for one in found))
    if not found:
        return "No published number is of a policy and a task that this suite has."
    verdicts = ", ".join(f"{count[verdict]} {verdict}" for verdict in ("agrees", "differs", "not comparable"))
    return f"{len(found)} numbers of {sources}: {verdicts}."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.3f}"


def _interval(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:z.3f} to {pair[1]:z.3f}" if pair else "-"


FORMATS = {"markdown": to_markdown, "csv": to_csv, "json": to_json, "latex": to_latex}
