"""Floating point operations of all matrix products in a suite.

python benchmarks/operations.py dsrl
"""

from __future__ import annotations

import argparse
from collections import Counter

from harness import registry
from harness.forecast import update_flops
from harness.plan import make_jobs
from harness.planning import make_plan
from harness.suite import read_suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="dsrl", help="its name or file  [default: dsrl]")
    plan = make_plan(read_suite(parser.parse_args().suite, ()))
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
