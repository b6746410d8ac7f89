"""Whatever becomes of a file, no number changes in silence: tests/fuzz_damage.py with a fixed seed."""

from __future__ import annotations

from pathlib import Path

from fuzz_damage import HOW, fuzz


def test_no_damage_is_read_in_silence(tmp_path: Path) -> None:
    counts = fuzz(tmp_path, 120, every=40)
    assert {kind.partition(" ")[0] for kind in counts} == {"json", "parquet", "safetensors", "checkpoint"}
    assert {kind.partition(" ")[2] for kind in counts} == set(HOW)
