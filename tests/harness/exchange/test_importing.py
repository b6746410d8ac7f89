"""Imported results as a suite's: their cells, what comes again, what is replaced, what is missing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from harness.archive import open_results, write_archive
from harness.errors import UserError
from harness.exchange import importing
from harness.exchange.exporting import episodes_of
from harness.exchange.importing import Import, Limits, import_episodes, importable_tasks
from harness.exchange.table import read_episodes
from harness.plan import MARK, Cell, CellData, Plan, PlannedCell
from harness.planning import make_plan
from harness.report.leaderboard import make_leaderboard, to_records
from harness.store import EVERYTHING, Store
from harness.suite import Evaluation, SuiteFile
from harness.tasks import find_task

Row = dict[str, object]


def rows(
    policies: Iterable[str] = ("CPQ",),
    tasks: Iterable[str] = ("BallRun",),
    seeds: Iterable[int] = (0, 1),
    limits: Iterable[float | None] = (10.0, 20.0),
    steps: Iterable[int] = (50, 100),
    better: float = 0.0,
) -> list[Row]:
    """Three episodes of each."""
    return [
        {
            "task": task,
            "policy": policy,
            "seed": seed,
            "cost_limit": limit,
            "step": step,
            "episode_return": 100.0 + 7 * seed + step + episode + better,
            "cost": 5.0 * episode + seed,
            "length": 100 - episode,
        }
        for policy, task, seed, limit, step, episode in itertools.product(
            policies, tasks, seeds, limits, steps, range(3)
        )
    ]


class Imports:
    """A results folder, and tables that are imported into it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.count = folder, Store(folder / "results", EVERYTHING), 0

    def __call__(
        self, content: list[Row], replace: bool = False, limits: Limits = "dsrl", suite: str = "others"
    ) -> Import:
        self.count += 1
        path = self.folder / f"table-{self.count}.csv"
        pd.DataFrame(content).to_csv(path, index=False)
        table = read_episodes(path, importable_tasks(self.store))
        assert not table.problems
        return import_episodes(self.store, suite, table, limits, replace)

    @property
    def plan(self) -> Plan:
        found = self.store.plan("others")
        assert found is not None
        return found

    def records(self, suite: str = "others") -> list[dict[str, object]]:
        plan = self.store.plan(suite)
        assert plan is not None
        return to_records([make_leaderboard(self.store, plan)])

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.store.root.rglob("*")) if path.is_file()}


@pytest.fixture
def imports(tmp_path: Path) -> Imports:
    return Imports(tmp_path)


def test_cells_are_done_and_marked(imports: Imports) -> None:
    done = imports(rows())
    assert (done.added, done.replaced, done.kept, done.missing, done.unfinished) == (4, 0, 0, 0, 0)
    assert {imports.store.status(planned.cell).state for planned in imports.plan.cells} == {"done"}
    assert imports.plan.imported == {"CPQ" + MARK}
    records = imports.records()
    assert [record["policy"] for record in records] == ["CPQ [imported]"] * 2
    assert all(record["imported"] is True for record in records)
    task = find_task("BallRun")
    # Of the last step alone, over seeds 0 and 1.
    assert records[0]["normalized_reward"] == pytest.approx(task.normalize_reward(100 + 3.5 + 100 + 1))
    assert records[0]["normalized_cost"] == pytest.approx((5.5 / 10 + 5.5 / 20) / 2)
    assert records[0]["satisfaction"] == pytest.approx((2 / 3 + 3 / 3) / 2 / 2 + (2 / 3 + 1) / 2 / 2, abs=0.2)
    assert records[0]["runs"] == records[0]["planned_runs"] == 4


def test_an_own_cell_keeps_its_name(tmp_path: Path) -> None:
    """What was stored before there were imports has the same hash: a new field must not rename results."""
    path = tmp_path / "suite.yaml"
    path.write_text("name: own\ntasks: [BallRun]\nalgorithms: [bc]\nseeds: 1\ndata: {source: demo}\n")
    (planned,) = make_plan(SuiteFile(path)).cells
    content = planned.cell.model_dump(mode="json")
    assert content.pop("imported") is None
    assert Cell.model_validate(content).hash == planned.cell.hash
    assert make_plan(SuiteFile(path)).imported == frozenset()


def test_no_own_row_is_called_as_imported_ones_are(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    for label in ("imported", "Imported"):
        path.write_text(
            "name: own\ntasks: [BallRun]\ndata: {source: demo}\n"
            f"algorithms: {{bc: {{}}, {label}: {{algorithm: bc, hyperparameters: {{steps: 5}}}}}}\n"
        )
        with pytest.raises(UserError, match=r"suite.yaml:4: .* as if it was imported: call it differently"):
            make_plan(SuiteFile(path))


def test_the_same_again_changes_no_byte(imports: Imports) -> None:
    imports(rows())
    before = imports.files()
    again = imports(list(reversed(rows())))  # of another file, whose lines stand in another order
    assert (again.added, again.replaced, again.kept) == (0, 0, 4)
    assert imports.files() == before


def test_more_of_it_comes_beside_what_is_there(imports: Imports) -> None:
    imports(rows(["CPQ"]))
    more = imports(rows(["CPQ", "BCQL"]))
    assert (more.added, more.kept) == (4, 4)
    assert imports.plan.imported == {"CPQ [imported]", "BCQL [imported]"}
    assert {one.cell.imported.file for one in imports.plan.cells if one.cell.imported} == {"table-1.csv", "table-2.csv"}


def test_policies_of_two_sources_that_look_alike_are_refused(imports: Imports) -> None:
    imports(rows(["CPQ"]))
    with pytest.raises(UserError, match="would look alike in tables"):
        imports(rows(["\uff23PQ"]))


def test_other_content_needs_to_be_asked_for(imports: Imports) -> None:
    imports(rows())
    before = imports.files()
    with pytest.raises(
        UserError, match=r"others has other results of BallRun CPQ \[imported\] seed 0 limit 10 and 3 more"
    ):
        imports(rows(better=1.0))
    assert imports.files() == before
    done = imports(rows(better=1.0), replace=True)
    assert (done.added, done.replaced, done.kept) == (0, 4, 0)
    assert len(list(imports.store.root.glob("[0-9a-f]" * 16))) == 4  # the old ones are gone


def test_a_replaced_cell_stays_where_another_suite_has_it(imports: Imports) -> None:
    imports(rows())
    imports(rows(), suite="twin")
    before = imports.records("twin")
    imports(rows(better=1.0), replace=True)
    assert imports.records("twin") == before


def test_runs_without_a_limit_are_judged_by_every_one(imports: Imports) -> None:
    done = imports(rows(["A"], limits=[None]) + rows(["B"], limits=[10.0, 15.0]))
    assert {one.cell.evaluation_limits for one in imports.plan.cells if one.rows.get("A")} == {
        tuple(sorted({10.0, 15.0, *find_task("BallRun").cost_limits}))
    }
    assert done.missing == 2 * (len({10.0, 15.0, *find_task("BallRun").cost_limits}) - 2)
    ranks = {record["policy"]: record["rank"] for record in imports.records() if not record["task"]}
    assert ranks == {"A [imported]": 1, "B [imported]": None}  # B lacks limits that A has


def test_the_files_limits_may_be_all_there_are(imports: Imports) -> None:
    imports(rows(["A"], limits=[None]) + rows(["B"], limits=[10.0, 15.0]), limits="file")
    assert {limit for one in imports.plan.cells for limit in one.cell.evaluation_limits} == {10.0, 15.0}
    with pytest.raises(UserError, match="no row of CarRun names a cost limit"):
        imports(rows(tasks=["CarRun"], limits=[None]), limits="file")


def test_the_other_kind_of_run_is_replaced_whole(imports: Imports) -> None:
    imports(rows(limits=[None]))
    with pytest.raises(UserError, match="--replace"):
        imports(rows(limits=[10.0]))
    imports(rows(limits=[10.0]), replace=True)
    assert {one.cell.cost_limit for one in imports.plan.cells} == {10.0}


def test_who_lacks_a_task_or_a_seed_has_no_rank(imports: Imports) -> None:
    done = imports(rows(["A", "B"]) + rows(["A"], ["CarRun"]))
    assert done.missing == 4
    board = {record["policy"]: record for record in imports.records() if not record["task"]}
    assert (board["A [imported]"]["rank"], board["B [imported]"]["rank"]) == (1, None)
    assert (board["B [imported]"]["runs"], board["B [imported]"]["planned_runs"]) == (4, 8)
    filled = imports(rows(["B"], ["CarRun"]))
    assert filled.missing == 0


def test_a_run_that_ended_early_counts_as_failed(imports: Imports) -> None:
    done = imports(rows(seeds=[0]) + rows(seeds=[1], steps=[50]))
    assert done.unfinished == 2
    states = {(one.cell.seed, imports.store.status(one.cell).state) for one in imports.plan.cells}
    assert states == {(0, "done"), (1, "failed")}
    status = imports.store.status(next(one.cell for one in imports.plan.cells if one.cell.seed == 1))
    assert status.brief == "it ends at step 50 of 100"


def test_means_are_not_taken_for_episodes(imports: Imports) -> None:
    single = rows(["A"])
    imports([{**row, "episodes": 1} for row in single] + [{**row, "policy": "B", "episodes": 20} for row in single])
    board = {record["policy"]: record for record in imports.records()}
    one, mean = board["A [imported]"], board["B [imported]"]
    assert one["normalized_cost"] == mean["normalized_cost"]
    assert one["satisfaction"] is not None
    assert mean["satisfaction"] is None
    overall = {record["policy"]: record for record in imports.records() if not record["task"]}
    assert overall["A [imported]"]["cost_tail"] is not None
    assert overall["B [imported]"]["cost_tail"] is None


def test_a_damaged_import_is_made_again(imports: Imports) -> None:
    imports(rows())
    before = imports.files()
    cell = imports.plan.cells[0].cell
    path = imports.store.folder(cell) / "episodes.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert imports.store.status(cell).state == "damaged"
    assert imports.store.status(cell).brief.endswith("or import it again")
    imports(rows())
    assert imports.files() == before


def test_a_damaged_plan_needs_to_be_asked_for(imports: Imports) -> None:
    imports(rows())
    path = imports.store.root / "suites" / "others.json"
    path.write_text("{")
    with pytest.raises(UserError, match="with --replace the suite is what this import brings, alone"):
        imports(rows())
    imports(rows(), replace=True)
    assert imports.plan.imported == {"CPQ [imported]"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smoke", "smoke is a built-in suite"),
        ("A b", "small letters and digits"),
        ("../x", "small letters and digits"),
        ("own", "own was run in"),
    ],
)
def test_names_that_are_not_free(imports: Imports, name: str, said: str) -> None:
    own = Plan(suite="own", description="", cells=[])
    imports.store.prepare()
    imports.store.write_plan(own)
    with pytest.raises(UserError, match=said):
        imports(rows(), suite=name)


def test_a_seed_an_episode_is_not_made_a_folder_each(imports: Imports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_CELLS", 30)
    with pytest.raises(UserError, match="is the seed the training run's, or each episode's"):
        imports(rows(seeds=range(100)))
    with pytest.raises(UserError, match=r"10 \(policy, seed\) on 2 tasks at every limit make 40 runs"):
        imports(rows(["A"], seeds=range(10)) + rows(["A"], ["CarRun"], seeds=[0]))
    assert not imports.store.plans()


def test_an_own_task_is_known_where_a_suite_has_it(imports: Imports) -> None:
    warehouse = dataclasses.replace(find_task("BallRun"), id="Warehouse", name="Warehouse", family="own")
    path = imports.folder / "table.csv"
    pd.DataFrame(rows(tasks=["Warehouse"], limits=[None])).to_csv(path, index=False)
    assert "unknown task 'Warehouse'" in read_episodes(path, importable_tasks(imports.store)).problems[0]
    cell = Cell(
        task="Warehouse",
        own_task=warehouse,
        algorithm="bc",
        algorithm_version=1,
        hyperparameters={"steps": 1},
        seed=0,
        cost_limit=None,
        evaluation_limits=(10.0,),
        evaluation=Evaluation(),
        data=CellData(),
    )
    own = Plan(suite="own", description="", cells=[PlannedCell(cell=cell, label="bc", rows={"bc-all": "bc-all"})])
    imports.store.prepare()
    imports.store.write_plan(own)
    done = import_episodes(imports.store, "others", read_episodes(path, importable_tasks(imports.store)))
    assert done.plan.tasks == {"Warehouse": warehouse}
    assert {record["task"] for record in imports.records()} == {"", "Warehouse"}


def test_a_files_name_cannot_break_a_table(imports: Imports) -> None:
    path = imports.folder / "a\n| b |.csv"
    pd.DataFrame(rows()).to_csv(path, index=False)
    plan = import_episodes(imports.store, "others", read_episodes(path, importable_tasks(imports.store))).plan
    assert {one.cell.imported.file for one in plan.cells if one.cell.imported} == {"a?| b |.csv"}


def test_an_archive_of_imports_says_the_same(imports: Imports, tmp_path: Path) -> None:
    imports(rows(["A", "B"]) + rows(["A"], ["CarRun"]))
    write_archive([imports.store], "others", tmp_path / "archive")
    archived = open_results(tmp_path / "archive")
    assert to_records([make_leaderboard(archived, archived.plans()[0])]) == imports.records()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("means", [1, 20])
def test_what_is_exported_can_be_imported(imports: Imports, tmp_path: Path, ending: str, means: int) -> None:
    content = [{**row, "episodes": means} for row in rows(["A"], limits=[None]) + rows(["B"], limits=[10.0, 20.0])]
    imports(content, limits="file")
    frame = episodes_of(imports.store, [imports.plan])
    path = tmp_path / f"all.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False)
    again = Store(tmp_path / "again", EVERYTHING)
    table = read_episodes(path, importable_tasks(again))
    assert table.problems == []
    plan = import_episodes(again, "others", table).plan
    assert to_records([make_leaderboard(again, plan)]) == imports.records()


def test_an_export_of_several_suites_is_refused(imports: Imports, tmp_path: Path) -> None:
    imports(rows())
    imports(rows(), suite="twin")
    path = tmp_path / "all.csv"
    episodes_of(imports.store, imports.store.plans()).to_csv(path, index=False)
    (said,) = read_episodes(path, importable_tasks(imports.store)).problems
    assert said.endswith("of suite 'twin', the first one of 'others': export one with --suite")
