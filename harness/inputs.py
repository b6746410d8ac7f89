"""Whether all is there that a plan needs."""

from __future__ import annotations

from harness import registry
from harness.data.dataset import require_file
from harness.errors import SuiteError, UserError, at
from harness.guard import TookTooLong, UserCodeError
from harness.notes import Note, silent
from harness.options import Options
from harness.plan import Plan
from harness.simulators import require_simulator
from harness.suite_tasks import in_time


def require_inputs(
    plan: Plan,
    note: Note = silent,
    options: Options | None = None,
) -> None:
    """Refuse a plan whose datasets, simulators or packages are not there. Own environments are tried.

    What only trains needs no simulators, and what only evaluates no datasets.

    Args:
        plan: what is to run.
        note: is told what is tried, which may take a while.
        options: of the run.

    Raises:
        SuiteError: says which is missing first, how many more, and how to get it.
    """
    for label, name in {planned.label.split(" ")[0]: planned.cell.algorithm for planned in plan.cells}.items():
        with at("algorithms", label, also=UserCodeError):
            registry.require_packages(name)
    missing, options = [], options or Options()
    for task in plan.tasks.values():
        try:
            for source in {used.source for used in plan.data[task.id]} if not options.only_evaluation else ():
                if source != "own" and source != "unknown":
                    require_file(task, source)
            if options.no_evaluation:
                continue
            if task.family == "own":
                note(f"trying {task.environment}")
            with in_time(plan.time_limits):
                require_simulator(task)
        except TookTooLong as late:
            missing.append(f"the environment {task.environment!r} in a trial {late}")
        except UserError as refused:
            missing.append(str(refused))
    if missing:
        more = (
            f" ({len(missing) - 1} more of the suite's {len(plan.tasks)} tasks cannot run)" if len(missing) > 1 else ""
        )
        raise SuiteError(missing[0] + more, "tasks")
