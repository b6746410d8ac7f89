"""Trained policies from Python and as files: loaded, acting, exported, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import harness
from harness.cli import main
from harness.errors import UserError
from harness.exchange import policies
from harness.plan import PlannedCell
from harness.store import Store

SUITE = """
name: kept
data: {source: demo}
tasks: [BallRun]
seeds: 1
cost_limits: [20]
steps: 3
algorithms:
  bc: {grid: {mode: [all, multi-task]}, hyperparameters: {hidden_sizes: [8]}}
  lspc: {hyperparameters: {hidden_sizes: [8], latent_dim: 4}}
  ccac: {hyperparameters: {actor_hidden_sizes: [8], critic_hidden_sizes: [8]}}
evaluation: {final: 1}
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["policy", *map(str, arguments)])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    (folder / "kept.yaml").write_text(SUITE)
    found = harness.run_suite(
        folder / "kept.yaml", folder / "results", options=harness.Options(workers=0, device="cpu")
    )
    assert set(found.runs["state"]) == {"done"}
    return folder / "results"


def cell_of(results: Path, policy: str) -> PlannedCell:
    (plan,) = Store(results).plans()
    return next(one for one in plan.cells if policy in one.rows)


def test_names_are_there_and_documented_and_nothing_is_imported_for_them() -> None:
    script = (
        "import sys, harness; assert set(harness.__all__) <= set(dir(harness)); "
        "print([name for name in ('torch', 'pandas', 'numpy', 'click') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert [name for name in harness.__all__ if name != "__version__" and not getattr(harness, name).__doc__] == []
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = harness.nothing


def test_a_plan_is_what_settings_make_of_a_suite() -> None:
    plan = harness.plan_suite(
        "smoke", {"seeds": 1, "algorithms.lspc.hyperparameters.steps": 7, "tasks": ["BallCircle"]}
    )
    assert {(one.cell.algorithm, one.cell.hyperparameters["steps"]) for one in plan.cells} == {("lspc", 7), ("bc", 200)}
    assert {one.cell.seed for one in plan.cells} == {0}
    assert {one.cell.definition.name for one in plan.cells} == {"BallCircle"}
    with pytest.raises(UserError, match="no such suite: 'smok'"):
        harness.plan_suite("smok")
    with pytest.raises(UserError, match="--set sed=1"):
        harness.plan_suite("smoke", {"sed": 1})


def test_what_fails_is_warned_of(tmp_path: Path) -> None:
    """No trajectory of the data is as risky as that."""
    path = tmp_path / "failing.yaml"
    path.write_text(
        "name: failing\ndata: {source: demo}\ntasks: [BallRun]\nseeds: 1\ncost_limits: [100000]\n"
        "algorithms: {bc: {hyperparameters: {mode: risky, steps: 2}}}\n"
    )
    with pytest.warns(UserWarning, match="some of suite failing failed: the column reason of 'runs' says why"):
        results = harness.run_suite(path, tmp_path / "results", options=harness.Options(workers=0, device="cpu"))
    (run,) = results.runs.to_dict("records")
    assert (run["state"], "selects no trajectory" in run["reason"]) == ("failed", True)
    refused = call(tmp_path / "results", "--cell", run["cell"], "--export", tmp_path / "p.pt2")
    assert refused.exit_code == 2
    assert "is failed (" in refused.stderr


def test_policies_act_on_one_observation_and_on_many(results: Path) -> None:
    policy = harness.load_policy(results, cell_of(results, "lspc-o").cell.hash[:8], "lspc-o")
    assert repr(policy) == f"<lspc-o of BallRun lspc seed 0 ({policy.cell.hash})>"
    assert repr(harness.load_results(results)) == f"<results of kept in {results}>"
    observations = np.random.default_rng(0).standard_normal((3, 7))
    policy.reset([4, 5, 6])
    together = policy.act(observations)
    policy.reset(5)
    alone = policy.act(observations[1])
    assert (together.shape, together.dtype, alone.shape) == ((3, 2), np.float32, (2,))
    np.testing.assert_allclose(alone, together[1], atol=1e-6)
    assert np.abs(together).max() <= 1
    with pytest.raises(ValueError, match=r"observations of BallRun are \(n, 7\), not \(3,\)"):
        policy.act([1, 2, 3])
    with pytest.raises(UserError, match="lspc-o does not act on a cost limit"):
        policy.reset(0, 20)


def test_policies_that_remember_are_told(results: Path) -> None:
    policy = harness.load_policy(results, cell_of(results, "ccac").cell.hash)
    with pytest.raises(UserError, match=r"ccac acts on a cost limit: give one \(it was evaluated at 20\)"):
        policy.reset()
    policy.reset(cost_limit=20)
    before = policy.act(np.ones(7))
    policy.observe(1.0, 15.0)
    assert (policy.act(np.ones(7)) != before).any()


def test_policies_are_listed(results: Path) -> None:
    done = call(results)
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert {row[3] for row in rows} == {"bc-all", "bc-multi-task", "lspc-s", "lspc-o", "ccac"}
    cell = cell_of(results, "lspc-s").cell.hash
    assert call(results, "--cell", cell[:6].upper()).stdout.count(cell) == 2


def exported(results: Path, path: Path, policy: str, *options: object) -> tuple[harness.TrainedPolicy, str]:
    cell = cell_of(results, policy).cell
    done = call(results, "--cell", cell.hash, "--policy", policy, "--export", path, *options)
    assert done.exit_code == 0, done.output
    assert f"Wrote {path}." in done.stderr
    return harness.load_policy(results, cell.hash, policy), done.stdout


def test_a_program_of_torch_acts_the_same(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.pt2"
    policy, told = exported(results, path, "bc-all")
    assert "bc-all of " in told
    assert "observations [n, 7] to actions" in told
    about = {"policy.json": ""}
    program = torch.export.load(path, extra_files=about)
    observations = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    policy.reset(range(5))
    torch.testing.assert_close(program.module()(observations), torch.from_numpy(policy.act(observations.numpy())))
    said: dict[str, Any] = json.loads(about["policy.json"])
    assert (said["policy"], said["cell"], said["inputs"]) == ("bc-all", policy.cell.hash, {"observations": ["n", 7]})


def test_a_limit_is_part_of_the_file(results: Path, tmp_path: Path) -> None:
    policy, told = exported(results, tmp_path / "policy.pt2", "bc-multi-task", "--limit", 20)
    assert "Acts on cost limit 20." in told
    observations = torch.ones(1, 7)
    acted = torch.export.load(tmp_path / "policy.pt2").module()(observations)
    for limit in (20, 40):
        policy.reset(0, limit)
        same = np.allclose(acted.detach().numpy(), policy.act(observations.numpy()), atol=1e-5)
        assert same == (limit == 20)


def test_onnx_acts_the_same_and_takes_its_noise(results: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "policy.onnx"
    policy, told = exported(results, path, "lspc-o")
    assert "noise [n, 4]" in told
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["observations", "noise"]
    about = session.get_modelmeta().custom_metadata_map
    assert (json.loads(about["policy"]), json.loads(about["cell"])) == ("lspc-o", policy.cell.hash)
    for count in (1, 3):
        observations = np.random.default_rng(count).standard_normal((count, 7)).astype(np.float32)
        policy.reset(range(count))
        noise = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in range(count)])
        (acted,) = session.run(["actions"], {"observations": observations, "noise": noise.numpy()})
        np.testing.assert_allclose(acted, policy.act(observations), atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("bc-all", ("--export", "p.txt"), "the policy's file must end in .pt2 or .onnx: 'p.txt'"),
        ("lspc-o", ("--export", "p.pt2"), "has several policies: choose one of lspc-s, lspc-o"),
        ("lspc-o", ("--export", "p.pt2", "--policy", "lspc-p"), "has no policy 'lspc-p', only lspc-s, lspc-o."),
        ("bc-all", ("--export", "p.pt2", "--limit", 20), "bc-all does not act on a cost limit"),
        ("bc-multi-task", ("--export", "p.pt2"), "bc-multi-task acts on a cost limit: give one"),
        ("ccac", ("--export", "p.pt2"), "ccac remembers: its action depends on the steps before"),
        ("bc-all", ("--limit", 20), "--policy and --limit go with --export"),
    ],
)
def test_what_cannot_be_written_is_refused(
    results: Path,
    policy: str,
    options: tuple[object, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(results, "--cell", cell_of(results, policy).cell.hash, *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_osrls_own_code_is_refused(tmp_path: Path) -> None:
    """Its policies act on numpy arrays."""
    pytest.importorskip("osrl")
    suite = SUITE.partition("algorithms:")[0].replace("kept", "osrl") + "algorithms: {osrl-bc: {hyperparameters: "
    (tmp_path / "osrl.yaml").write_text(suite + "{hidden_sizes: [8]}}}\nevaluation: {final: 1}\n")
    run = harness.run_suite(
        tmp_path / "osrl.yaml", tmp_path / "results", options=harness.Options(workers=0, device="cpu")
    )
    assert set(run.runs["state"]) == {"done"}
    done = call(tmp_path / "results", "--cell", run.runs["cell"][0], "--export", tmp_path / "p.pt2")
    assert done.exit_code == 2
    assert "osrl-bc-all cannot be written as a program of torch's operations: .numpy() is not supported" in done.stderr
    assert not (tmp_path / "p.pt2").exists()


def test_cells_must_be_there(results: Path, tmp_path: Path) -> None:
    assert "no cell 'zz' there" in call(results, "--cell", "zz", "--export", tmp_path / "p.pt2").stderr
    assert "--export needs --cell HASH" in call(results, "--export", tmp_path / "p.pt2").stderr
    assert "begin with ''" in call(results, "--cell", "", "--export", tmp_path / "p.pt2").stderr


def test_a_missing_package_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "find_spec", lambda package: None if package == "onnxscript" else object())
    done = call(results, "--cell", cell_of(results, "bc-all").cell.hash, "--export", "p.onnx")
    assert (done.exit_code, "ONNX needs onnxscript, not installed here: pip install 'lspc-bench[" in done.stderr) == (
        2,
        True,
    )


class Tape(torch.nn.Module):
    """Stands in for a program that acts otherwise."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return observations[:, :2] * 0


def test_a_file_that_acts_otherwise_is_not_written(
    results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = torch.export.export(Tape(), (torch.zeros(1, 7),))
    monkeypatch.setattr(policies, "_traced", lambda *arguments: (other, False))
    done = call(results, "--cell", cell_of(results, "bc-all").cell.hash, "--export", tmp_path / "p.pt2")
    assert done.exit_code == 2
    assert "bc-all as .pt2 acts otherwise than the policy itself, by 0." in done.stderr
    assert not (tmp_path / "p.pt2").exists()


def test_what_is_written_needs_no_lspc_bench(results: Path, tmp_path: Path) -> None:
    exported(results, tmp_path / "p.pt2", "lspc-s")
    script = (
        "import io, sys, torch; program = torch.export.load(io.BytesIO(open(sys.argv[1], 'rb').read())).module(); "
        "print(tuple(program(torch.zeros(2, 7), torch.zeros(2, 4)).shape), 'harness' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, tmp_path / "p.pt2"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(2, 2) False"
