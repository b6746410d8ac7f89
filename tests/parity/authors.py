"""Authors' own code, out of a clone that whoever runs the tests has: none of it is shipped here."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Clone:
    """A repository at the commit that is compared with.

    Args:
        environment: the variable that names a clone of it.
        url: where it comes from.
        commit: how its hash begins.
    """

    environment: str
    url: str
    commit: str

    def source(self, path: str) -> str:
        """A file of it; without a clone that holds it the test is skipped."""
        clone = os.environ.get(self.environment)
        if not clone:
            pytest.skip(f"{self.environment} names no clone of {self.url}")
        done = subprocess.run(["git", "-C", clone, "show", f"{self.commit}:{path}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{clone} does not hold {path} at {self.commit}: {done.stderr.strip()}")
        return done.stdout
