"""Draw a suite's leaderboard, reward against cost: python docs/draw_leaderboard.py RESULTS OUTPUT.png.

RESULTS is a results folder or an archive.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.archive import open_results
from harness.report.leaderboard import make_leaderboard
from harness.report.pictures import save_plane

if __name__ == "__main__":
    results = open_results(Path(sys.argv[1]))
    plan = results.plans()[0]
    save_plane(make_leaderboard(results, plan), plan, Path(sys.argv[2]))
