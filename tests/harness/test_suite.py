"""Reading suites: what is wrong in one is said with its place, and ``--set`` wins over the file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.errors import SuiteError, UserError
from harness.suite import MOST_SEEDS, SuiteFile, builtin_suites, read_suite

GOOD = """\
name: mine
tasks:
  - BallRun
  - Car*
algorithms:
  lspc:
    hyperparameters:
      batch_size: 32
    tasks:
      BallRun: {batch_size: 64, steps: 10}
  bc:
    hyperparameters: {steps: 7}
    grid:
      mode: [all, safe]
      batch_size: [1, 2]
seeds: [3, 5]
evaluation:
  final: 4
"""

WriteSuite = Callable[[str], Path]


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        SuiteFile(path, overrides)
    return str(caught.value)


def test_a_good_suite(write_suite: WriteSuite) -> None:
    suite = SuiteFile(write_suite(GOOD)).suite
    assert suite.tasks == ["BallRun", "Car*"]
    assert suite.seeds == [3, 5]
    assert suite.algorithms["bc"].grid == {"mode": ["all", "safe"], "batch_size": [1, 2]}
    assert suite.algorithms["lspc"].tasks == {"BallRun": {"batch_size": 64, "steps": 10}}
    assert suite.evaluation.model_dump() == {"every": None, "episodes": 10, "final": 4, "fqe": None}
    assert (suite.cost_limits, suite.steps, suite.data.source) == (None, None, "dsrl")


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        # unknown keys, at every level
        ("seeds: [3, 5]", "seed: [3, 5]", 16, ["unknown key 'seed'", "'seeds'"]),
        ("    grid:", "    grids:", 13, ["unknown key 'algorithms.bc.grids'", "'grid'", "hyperparameters"]),
        ("  final: 4", "  fqe: {gama: 0.9}", 18, ["unknown key 'evaluation.fqe.gama'", "'gamma'", "hidden_sizes"]),
        ("  final: 4", "  fqe: {gamma: 1}", 18, ["evaluation.fqe.gamma: ", "less than 1", "not 1"]),
        ("  final: 4", "  fqe: true", 18, ["evaluation.fqe: must not be true or false"]),
        ("  final: 4", "  finale: 4", 18, ["unknown key 'evaluation.finale'", "'final'", "episodes"]),
        ("seeds: [3, 5]", "data: {sorce: demo}", 16, ["unknown key 'data.sorce'", "'source'"]),
        ("  bc:\n", "  tasks:\n    algorthm: bc\n", 12, ["unknown key 'algorithms.tasks.algorthm'", "'algorithm'"]),
        # wrong types
        ("  - BallRun\n  - Car*\n", " BallRun\n", 2, ["tasks: ", "list", "not 'BallRun'"]),
        ("  - Car*", "  - 3", 4, ["tasks.1: ", "string", "not 3"]),
        ("  - Car*", "  -", 4, ["tasks.1: ", "string", "not None"]),
        ("name: mine", "name: [mine]", 1, ["name: ", "string"]),
        ("name: mine", "name: No Name", 1, ["name: ", "pattern"]),
        ("[1, 2]", "1", 15, ["algorithms.bc.grid.batch_size: ", "list", "not 1"]),
        (
            "      mode: [all, safe]\n      batch_size: [1, 2]\n",
            "      [1]\n",
            13,
            ["bc.grid: must be a mapping, not [1]"],
        ),
        ("hyperparameters: {steps: 7}", "hyperparameters: 7", 12, ["hyperparameters: must be a mapping, not 7"]),
        ("{steps: 7}", "{1: 7}", 12, ["algorithms.bc.hyperparameters.1: ", "string"]),
        ("    hyperparameters: {steps: 7}", "    algorithm: 1", 12, ["algorithms.bc.algorithm: ", "string"]),
        ("BallRun: {batch_size: 64, steps: 10}", "BallRun: 3", 10, ["lspc.tasks.BallRun: must be a mapping, not 3"]),
        ("evaluation:\n  final: 4\n", "evaluation: 4\n", 17, ["evaluation: must be a mapping, not 4"]),
        ("final: 4", "final: 4.5", 18, ["evaluation.final: ", "integer", "not 4.5"]),
        ("final: 4", "final: true", 18, ["evaluation.final: must not be true or false"]),
        ("seeds: [3, 5]", "steps: many", 16, ["steps: ", "integer", "not 'many'"]),
        ("seeds: [3, 5]", "steps: yes", 16, ["steps: must not be true or false"]),
        ("seeds: [3, 5]", "data: {source: mine}", 16, ["data.source: ", "'dsrl', 'agents' or 'demo'", "not 'mine'"]),
        ("seeds: [3, 5]", "cost_limits: 10", 16, ["cost_limits: ", "list"]),
        ("seeds: [3, 5]", "cost_limits: [10, low]", 16, ["cost_limits.1: ", "number", "not 'low'"]),
        # out of bounds
        ("final: 4", "final: 0", 18, ["evaluation.final: ", "greater than or equal to 1", "not 0"]),
        ("final: 4", "every: 0", 18, ["evaluation.every: ", "greater than or equal to 1", "not 0"]),
        ("seeds: [3, 5]", "steps: 0", 16, ["steps: ", "greater than or equal to 1", "not 0"]),
        ("seeds: [3, 5]", "cost_limits: [-1]", 16, ["cost_limits: must not be negative"]),
        ("seeds: [3, 5]", "cost_limits: [.inf]", 16, ["cost_limits.0: ", "finite"]),
        ("seeds: [3, 5]", "cost_limits: [.nan]", 16, ["cost_limits.0: ", "finite"]),
        ("seeds: [3, 5]", "cost_limits: [10, 10.0]", 16, ["cost_limits: names a value twice"]),
        # empty
        ("[1, 2]", "[]", 15, ["algorithms.bc.grid.batch_size: must not be empty"]),
        ("seeds: [3, 5]", "cost_limits: []", 16, ["cost_limits: must not be empty"]),
        ("seeds: [3, 5]", "cost_limits: {}", 16, ["cost_limits: must not be empty"]),
        ("seeds: [3, 5]", "cost_limits: {bulet: [5]}", 16, ["no family is called 'bulet'. Did you mean 'bullet'?"]),
        ("seeds: [3, 5]", "cost_limits: {bullet: [5, low]}", 16, ["cost_limits.bullet.1: ", "not 'low'"]),
        ("seeds: [3, 5]", "cost_limits: {bullet: []}", 16, ["cost_limits.bullet: must not be empty"]),
        ("seeds: [3, 5]", "seeds: []", 16, ["seeds: must not be empty"]),
        ("  - BallRun\n  - Car*\n", "  []\n", 2, ["tasks: must not be empty"]),
        # seeds
        ("seeds: [3, 5]", "seeds:", 16, ["seeds: ", "list", "not None"]),
        ("seeds: [3, 5]", "seeds: 0", 16, ["seeds: 0 is no number of seeds"]),
        ("seeds: [3, 5]", "seeds: -1", 16, ["seeds: -1 is no number of seeds"]),
        ("seeds: [3, 5]", "seeds: 123456789", 16, ["seeds: 123456789 is no number of seeds", "write a list"]),
        ("seeds: [3, 5]", "seeds: true", 16, ["seeds: must not be true or false"]),
        ("seeds: [3, 5]", "seeds: [true]", 16, ["seeds: must not be true or false"]),
        ("seeds: [3, 5]", "seeds: [3, -5]", 16, ["seeds: must not be negative"]),
        ("seeds: [3, 5]", "seeds: [3, 3]", 16, ["seeds: names a value twice"]),
        ("seeds: [3, 5]", "seeds: [3, 4.5]", 16, ["seeds.1: ", "integer", "not 4.5"]),
        # beyond all bounds
        ("final: 4", "final: 100000000000", 18, ["evaluation.final: ", "less than or equal to 100000"]),
        ("final: 4", "episodes: 100000000000", 18, ["evaluation.episodes: ", "less than or equal to 100000"]),
        ("final: 4", "fqe: {hidden_sizes: [0]}", 18, ["evaluation.fqe.hidden_sizes.0: ", "greater than or equal to 1"]),
        ("final: 4", "fqe: {hidden_sizes: [16384, 16384]}", 18, ["networks of 268435456 weights are refused"]),
        ("final: 4", "fqe: {hidden_sizes: [true]}", 18, ["fqe.hidden_sizes: must not be true or false"]),
        ("seeds: [3, 5]", "steps: 1000000000000", 16, ["steps: ", "less than or equal to 1000000000"]),
        ("seeds: [3, 5]", f"steps: {2**64}", 16, ["18446744073709551616 is too large"]),
        ("seeds: [3, 5]", "seeds: [4294967296]", 16, ["seeds.0: ", "less than 4294967296"]),
        ("seeds: [3, 5]", "cost_limits: [1.0e+300]", 16, ["cost_limits.0: ", "less than or equal to"]),
        ("seeds: [3, 5]", "cost_limits: [1.0e-300]", 16, ["cost_limits: must be 0, or at least 1e-6"]),
        ("seeds: [3, 5]", "data: {inpaint: [[false, true, 0, 1]]}", 16, ["data.inpaint: must not be true or false"]),
        ("name: mine", f"name: {'a' * 300}", 1, ["name: ", "at most 100"]),
        ("  bc:\n", f"  {'b' * 300}:\n", 11, ["a key: of 300 letters, at most 100"]),
        ("  - BallRun", f"  - {'B' * 3000}", 3, ["tasks.0: of 3000 letters, at most 1000"]),
        # what would break a table, or a terminal
        ("  bc:\n", '  "b\\nc":\n', 11, ["a key: must be one line", "not 'b\\nc'"]),
        ("  bc:\n", '  "b\\e[31mc":\n', 11, ["a key: must be one line"]),
        ("  bc:\n", '  "b\\u202ec":\n', 11, ["a key: must be one line"]),
        ("mode: [all, safe]", 'mode: ["all\\n"]', 14, ["bc.grid.mode.0: must be one line"]),
        ("seeds: [3, 5]", 'data: {files: {BallRun: "a\\0b"}}', 16, ["data.files.BallRun: must be one line"]),
        # numbers that are not what they look like
        ("final: 4", "final: 016", 18, ["'016' is no plain decimal number"]),
        ("seeds: [3, 5]", "cost_limits: [1:30]", 16, ["'1:30' is no plain decimal number"]),
        # a key twice
        ("seeds: [3, 5]", "name: other", 16, ["the key 'name' stands here twice"]),
        ("      batch_size: [1, 2]", "      mode: [risky]", 15, ["the key 'mode' stands here twice"]),
        ("  bc:\n", "  lspc:\n", 11, ["the key 'lspc' stands here twice"]),
        # no YAML
        ("[1, 2]", "[1, 2", 16, ["not valid YAML"]),
        ("    grid:", "   grid:", 13, ["not valid YAML"]),
        ("name: mine", "name: 'mine", 19, ["not valid YAML"]),
        ("name: mine", "name: *mine", 1, ["not valid YAML", "undefined alias"]),
        (
            "name: mine",
            "name: !!python/object:os.system mine",
            1,
            ["not valid YAML", "os.system' means nothing here"],
        ),
        ("name: mine", "[a]: 1\nname: mine", 1, ["not valid YAML", "unhashable key"]),
        ("name: mine", "name: mine\n\tx: 1", 2, ["not valid YAML"]),
    ],
)
def test_a_mistake_is_told_with_its_line(
    write_suite: WriteSuite, old: str, new: str, line: int, parts: list[str]
) -> None:
    assert GOOD.count(old) == 1
    path = write_suite(GOOD.replace(old, new))
    found = message(path)
    assert found.startswith(f"{path}:{line}: ")
    for part in parts:
        assert part in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "needs a mapping with keys such as name, tasks, algorithms"),
        ("- a\n- b\n", "needs a mapping with keys such as name, tasks, algorithms"),
        ("just text", "needs a mapping with keys such as name, tasks, algorithms"),
        ("name: mine\nalgorithms: [bc]\n", "the key 'tasks' is missing"),
        ("tasks: [all]\nalgorithms: [bc]\n", "the key 'name' is missing"),
        ("name: mine\ntasks: [all]\n", "the key 'algorithms' is missing"),
        ("name: 2020-13-45\n", "not valid YAML: month must be in 1..12"),
        ("name: " + "9" * 5000, "is too large"),
        ("a: &a [*a]\n", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("name: \x01", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("name: mine\ntasks: [all]\nalgorithms: 3\n", ":3: algorithms: must be a mapping, not 3"),
        ("name: mine\ntasks: [all]\nalgorithms:\n", ":3: algorithms: must be a mapping, not None"),
        ("name: mine\ntasks: [all]\nalgorithms: {}\n", ":3: algorithms: must not be empty"),
        ("name: mine\ntasks: [all]\nalgorithms: []\n", ":3: algorithms: must not be empty"),
        (
            "name: mine\ntasks: [all]\nalgorithms: {' ': {algorithm: bc}}\n",
            ":3: algorithms: an algorithm needs a label",
        ),
        ("name: mine\ntasks: [all]\nalgorithms: [bc, bc]\n", ":3: algorithms: names an algorithm twice"),
        ("name: mine\ntasks: [all]\nalgorithms: [{bc: 3}]\n", ":3: algorithms: must be a mapping"),
        ("name: mine\ntasks: [all]\nalgorithms: {bc: 3}\n", ":3: algorithms.bc: must be a mapping, not 3"),
        ("name: mine\ntasks: [all]\nalgorithms: {bc: [mode]}\n", ":3: algorithms.bc: must be a mapping"),
        ("name: mine\ntasks: [all]\nalgorithms:\n  7:\n", ":4: algorithms.7: "),
        ("name: mine\ntasks: [all]\nalgorithms: [bc]\n8: x\n", ":4: 8: "),
    ],
)
def test_what_is_no_suite_at_all(write_suite: WriteSuite, text: str, part: str) -> None:
    path = write_suite(text)
    found = message(path)
    assert found.startswith(str(path))
    assert part in found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(128, 256)))
    assert "cannot read it, it is no text" in message(binary)
    assert "cannot read it: it is a folder" in message(tmp_path)
    for name in ("absent.yaml", "a" * 5000, "nul\0"):
        with pytest.raises(UserError, match=r"no such suite: .* is neither a file nor built in"):
            read_suite(str(tmp_path / name))


def test_a_built_in_name_with_a_typo() -> None:
    with pytest.raises(UserError, match=r"no such suite: 'dmo' .* Did you mean 'demo'"):
        read_suite("dmo")


def test_built_in_suites_are_good_and_named_after_their_files() -> None:
    assert set(builtin_suites()) >= {"demo", "smoke", "dsrl", "dsrl-bullet"}
    for name in builtin_suites():
        assert read_suite(name).suite.name == name


@pytest.mark.parametrize("algorithms", ["[lspc, bc]", "{lspc: , bc: }", "{lspc: {}, bc: null}"])
def test_names_alone_are_algorithms(write_suite: WriteSuite, algorithms: str) -> None:
    suite = SuiteFile(write_suite(f"name: mine\ntasks: [all]\nseeds: 2\nalgorithms: {algorithms}")).suite
    assert list(suite.algorithms) == ["lspc", "bc"]
    assert all(entry.hyperparameters == {} for entry in suite.algorithms.values())
    assert suite.seeds == [0, 1]


@given(st.integers(1, MOST_SEEDS))
def test_a_number_of_seeds_counts_from_zero(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    path = tmp_path_factory.getbasetemp() / "seeds.yaml"
    path.write_text(f"name: mine\ntasks: [all]\nalgorithms: [bc]\nseeds: {count}")
    assert SuiteFile(path).suite.seeds == list(range(count))


def test_a_description_may_have_lines(write_suite: WriteSuite) -> None:
    suite = SuiteFile(write_suite(f"description: |\n  one\n  two\n{GOOD}")).suite
    assert suite.description == "one\ntwo\n"
    assert "description: must be one line" in message(write_suite(f'description: "a\\0"\n{GOOD}'))


def test_hidden_files_are_no_built_in_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("._demo.yaml", ".#demo.yaml", "demo.yaml"):
        (tmp_path / name).write_text(GOOD)
    monkeypatch.setattr("harness.suite.suites_folder", lambda: tmp_path)
    assert list(builtin_suites()) == ["demo"]


def test_what_is_long_is_not_repeated(write_suite: WriteSuite) -> None:
    assert len(message(write_suite(GOOD.replace("name: mine", f"name: {'a' * 10_000}")))) < 1500
    assert len(message(write_suite(GOOD), f"name={'a' * 10_000}")) < 1500
    assert len(message(write_suite(GOOD), f"{'a.' * 5_000}b=1")) < 1500


# --set


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "other"),
        ("description", ""),
        ("tasks", ["bullet", "Car*"]),
        ("steps", None),
        ("steps", 5),
        ("cost_limits", [1.5, 0.0]),
        ("evaluation.every", 3),
        ("data.source", "demo"),
        ("algorithms.new.algorithm", None),
        ("algorithms.bc.grid.mode", ["risky"]),
        ("algorithms.lspc.hyperparameters.anything", {"nested": [1, None, True, "x"]}),
    ],
)
def test_every_kind_of_value_can_be_set(write_suite: WriteSuite, key: str, value: Any) -> None:
    path = write_suite(GOOD)
    override = f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...').strip()}"
    if key == "algorithms.new.algorithm":
        assert "the suite has no algorithm 'new'" in message(path, override)
        return
    found: Any = SuiteFile(path, [override]).suite.model_dump()
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_the_last_of_two_overrides_wins_and_a_value_may_hold_equals_signs(write_suite: WriteSuite) -> None:
    suite = SuiteFile(write_suite(GOOD), ["description=a", "description=a=b"]).suite
    assert suite.description == "a=b"


def test_overrides_reach_algorithms_that_are_names_alone(write_suite: WriteSuite) -> None:
    path = write_suite("name: mine\ntasks: [all]\nalgorithms: [lspc, bc]")
    suite = SuiteFile(path, ["algorithms.bc.hyperparameters.batch_size=3"]).suite
    assert suite.algorithms["bc"].hyperparameters == {"batch_size": 3}
    assert suite.algorithms["lspc"].hyperparameters == {}
    path = write_suite("name: mine\ntasks: [all]\nalgorithms: {lspc: }")
    suite = SuiteFile(path, ["algorithms.lspc.hyperparameters.batch_size=3"]).suite
    assert suite.algorithms["lspc"].hyperparameters == {"batch_size": 3}


@pytest.mark.parametrize("form", ["batch_size=8", "={batch_size: 8}"])
def test_an_explicit_hyperparameter_wins_over_tasks_and_grid(write_suite: WriteSuite, form: str) -> None:
    prefix = "hyperparameters" + ("" if form[0] == "=" else ".") + form
    suite = SuiteFile(write_suite(GOOD), [f"algorithms.lspc.{prefix}", f"algorithms.bc.{prefix}"]).suite
    lspc, bc = suite.algorithms["lspc"], suite.algorithms["bc"]
    assert (lspc.hyperparameters["batch_size"], lspc.tasks) == (8, {"BallRun": {"steps": 10}})
    assert (bc.hyperparameters["batch_size"], bc.grid) == (8, {"mode": ["all", "safe"]})


@given(st.randoms(use_true_random=False))
def test_explicit_steps_win_and_the_special_wins_over_the_general(
    tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    path = tmp_path_factory.getbasetemp() / "steps.yaml"
    path.write_text(GOOD)
    overrides = ["steps=99", "algorithms.bc.hyperparameters.steps=1"]
    chance.shuffle(overrides)
    suite = SuiteFile(path, overrides).suite
    assert suite.steps == 99
    assert suite.algorithms["lspc"].tasks == {"BallRun": {"batch_size": 64}}
    assert suite.algorithms["bc"].hyperparameters == {"steps": 1}


def test_setting_one_of_two_aliases_leaves_the_other(write_suite: WriteSuite) -> None:
    path = write_suite(
        "name: mine\ntasks: [all]\nalgorithms:\n"
        "  lspc: &same {hyperparameters: {batch_size: 3}}\n  bc: *same\n  wide: {<<: *same, algorithm: bc}\n"
    )
    suite = SuiteFile(path, ["algorithms.lspc.hyperparameters.batch_size=8"]).suite
    sizes = {label: entry.hyperparameters["batch_size"] for label, entry in suite.algorithms.items()}
    assert sizes == {"lspc": 8, "bc": 3, "wide": 3}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seeds=", "seeds: "),
        ("seeds=[a, 1]", "seeds.0: "),  # the file has a line for seeds.0, which is not to blame
        ("seeds=[1", "not valid YAML"),
        ("seeds=[0x1]", "'0x1' is no plain decimal number"),
        ("evaluation={final: 1, final: 2}", "the key 'final' stands here twice"),
        ("algorithms.bc.hyperparameters.x='a\u2028b'", "must be one line"),
        ("seeds=2020-13-45", "not valid YAML"),
        ("seeds.0=1", "seeds is no mapping"),
        ("tasks=BallRun", "tasks: "),
        ("name.x=1", "name is no mapping"),
        ("evaluation.finale=3", "unknown key 'evaluation.finale'. Did you mean 'final'?"),
        ("evaluation.final=0", "evaluation.final: "),
        ("evaluation=3", "evaluation: must be a mapping"),
        ("evalution.final=3", "unknown key 'evalution'. Did you mean 'evaluation'?"),
        ("algorithms=[lspc, lspc]", "algorithms: names an algorithm twice"),
        ("algorithms=3", "algorithms: must be a mapping"),
        ("algorithms.lspc=3", "algorithms.lspc: must be a mapping"),
        ("algorithms.bcq.hyperparameters.steps=3", "the suite has no algorithm 'bcq'. Did you mean 'bc'?"),
        ("algorithms.bc.grid.mode=all", "algorithms.bc.grid.mode: "),
        ("algorithms.bc.grid.mode=[]", "algorithms.bc.grid.mode: must not be empty"),
        ("algorithms.bc.hyperparameters=3", "hyperparameters: must be a mapping"),
        ("algorithms.bc.hyperparameters.steps.x=3", "algorithms.bc.hyperparameters.steps is no mapping"),
    ],
)
def test_a_bad_override_is_blamed_by_name(write_suite: WriteSuite, override: str, part: str) -> None:
    found = message(write_suite(GOOD), override)
    assert found.startswith(f"--set {override}: ")
    assert part in found


@pytest.mark.parametrize("override", ["seeds", "=3", ".seeds=3", "evaluation..final=3", "evaluation.=3", "", "="])
def test_a_malformed_override(write_suite: WriteSuite, override: str) -> None:
    assert message(write_suite(GOOD), override) == (
        f"--set needs KEY=VALUE with a dotted key such as evaluation.final=5, not {override!r}"
    )


def test_algorithms_can_be_replaced(write_suite: WriteSuite) -> None:
    assert list(SuiteFile(write_suite(GOOD), ["algorithms=[lspc]"]).suite.algorithms) == ["lspc"]
    assert list(SuiteFile(write_suite(GOOD), ["algorithms={lspc: }"]).suite.algorithms) == ["lspc"]


def test_a_place_without_a_line_of_its_own_has_its_nearest_parents(write_suite: WriteSuite) -> None:
    path = write_suite(GOOD)
    file = SuiteFile(path, ["evaluation.episodes=3"])

    def told(*place: str) -> str:
        with pytest.raises(UserError) as caught, file.located():
            raise SuiteError("x", *place)
        return str(caught.value)

    assert told("algorithms", "bc", "tasks", "BallRun") == f"{path}:11: x"
    assert told("cost_limits") == f"{path}: x"
    assert told("evaluation", "episodes") == "--set evaluation.episodes=3: x"
    assert told("evaluation") == f"{path}:17: x"


SECTIONS = ["name", "tasks", "algorithms", "seeds", "steps", "cost_limits", "evaluation", "data", "grid"]
KEYS = st.sampled_from([*SECTIONS, "hyperparameters", "lspc", "bc", "mode", "final", "BallRun", "<<", "7", ""])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=5) | KEYS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def only_refused(path: Path, overrides: list[str]) -> None:
    """Read or refused, but nothing else."""
    try:
        SuiteFile(path, overrides)
    except UserError as error:
        assert str(error)  # noqa: PT017 - it may pass, too


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=5), VALUES | st.text()), max_size=3),
)
@example({"algorithms": {"bc": {"grid": [1]}}}, [(["algorithms", "bc", "hyperparameters", "mode"], 1)])
@example({"algorithms": {"bc": {"tasks": [1]}}}, [(["algorithms", "bc", "hyperparameters", "mode"], 1)])
@example({"algorithms": {"bc": {"tasks": {"BallRun": 3}}}}, [(["algorithms", "bc", "hyperparameters", "mode"], 1)])
@example({"algorithms": [{"bc": 1}]}, [(["algorithms", "bc", "hyperparameters", "mode"], 1)])
@example({"algorithms": {7: None}}, [(["algorithms", "7", "hyperparameters", "mode"], 1)])
def test_no_content_and_no_override_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], overrides: list[tuple[list[str], Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(GOOD), **changes}), encoding="utf-8")
    only_refused(
        path,
        [
            f"{'.'.join(key)}={value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)}"
            for key, value in overrides
        ],
    )


@settings(max_examples=150)
@given(st.text(max_size=40) | st.text(alphabet="[]{}:,&*-!<>'\"|#%@ \n\tax1.~=", max_size=40))
def test_no_text_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    only_refused(path, [])
    path.write_text(GOOD)
    only_refused(path, [f"seeds={text}", text])
