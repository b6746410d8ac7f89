"""The command's way in, under a name that no module of the user's has.

It finds this project's packages also where a package of the user's is called ``harness``; so do the processes that
evaluate, which import it first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import harness  # noqa: F401

sys.path.pop(0)
from harness.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="lspc-bench")
