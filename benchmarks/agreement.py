"""Do our algorithms end where OSRL's own code ends? Reads the results of suite "reference".

    lspc-bench run reference --results results/runs/reference
    python benchmarks/agreement.py results/runs/reference

For each task and algorithm: the mean over seeds of the last checkpoint's mean return and cost, ours and OSRL's, their
difference with Welch's 95% interval, and Welch's p. Seeds are independent runs on both sides. Of m comparisons of
equals one in twenty intervals misses 0; what they say together is the smallest p times m (Bonferroni).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from harness.archive import open_results
from harness.report.tables import markdown_table
from harness.store import Results
from harness.tasks import find_task

METRICS = {"episode_return": "return", "cost": "cost"}
Samples = dict[tuple[str, str], dict[int, tuple[float, ...]]]


def final_means(results: Results) -> Samples:
    """By task and algorithm: for each seed the mean return and cost of the last checkpoint's episodes."""
    samples: Samples = {}
    (plan,) = results.plans()
    for planned in plan.cells:
        cell = planned.cell
        if results.status(cell).state != "done":
            raise SystemExit(f"{cell.describe()} is not done; finish the suite first")
        episodes = results.episodes(cell)
        last = episodes[episodes["step"] == episodes["step"].max()]
        means = tuple(float(last[metric].mean()) for metric in METRICS)
        samples.setdefault((cell.task, cell.algorithm), {})[cell.seed] = means
    return samples


def compare(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float, float]:
    """Difference of means, the ends of Welch's 95% interval, and his p."""
    difference = ours.mean() - theirs.mean()
    if ours.std() == theirs.std() == 0:
        return difference, difference, difference, float(difference == 0)
    result = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = result.confidence_interval(0.95)
    return float(difference), float(low), float(high), float(result.pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a folder of results")
    samples = final_means(open_results(parser.parse_args().results))
    rows, ps, missed = [], [], 0
    for task, algorithm in samples:
        if algorithm.startswith("osrl-"):
            continue
        pair = [np.array(list(samples[task, name].values())) for name in (algorithm, f"osrl-{algorithm}")]
        for index, metric in enumerate(METRICS.values()):
            ours, theirs = (values[:, index] for values in pair)
            difference, low, high, p = compare(ours, theirs)
            ps.append(p)
            missed += not low <= 0 <= high
            numbers = (ours.mean(), ours.std(ddof=1), theirs.mean(), theirs.std(ddof=1))
            cells = [f"{number:.1f}" for number in numbers]
            interval = f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
            rows.append([find_task(task).name, algorithm, metric, *cells, interval, f"{p:.2f}"])
    header = ["task", "algorithm", "", "ours", "sd", "OSRL's", "sd", "difference (95% interval)", "p"]
    print(markdown_table(header, rows))
    seeds = {len(values) for values in samples.values()}
    print(
        f"\n{len(ps)} comparisons, {'/'.join(map(str, sorted(seeds)))} seeds a side. {missed} intervals miss 0; by "
        f"chance {len(ps) * 0.05:.1f} would. Smallest p times {len(ps)}: {min(1.0, min(ps) * len(ps)):.2f}."
    )


if __name__ == "__main__":
    main()
