"""Floating point operations of all matrix products in a suite: python benchmarks/operations.py [SUITE]."""

from __future__ import annotations

import sys
from collections import Counter

from harness import registry
from harness.forecast import update_flops
from harness.plan import make_jobs, make_plan
from harness.suite import read_suite


def main() -> None:
    plan = make_plan(read_suite(sys.argv[1] if len(sys.argv) > 1 else "dsrl", ()))
    total: Counter[str] = Counter()
    for job in make_jobs(planned.cell for planned in plan.cells):
        config = job.cells[0].config
        flops = update_flops(registry.load(job.algorithm), config, job.task)
        total[job.algorithm] += round(flops * len(job.cells) * config.steps)
    for name, operations in total.most_common():
        print(f"{name:>10} {operations:.3g}")
    print(f"{'all':>10} {total.total():.3g}")


if __name__ == "__main__":
    main()
