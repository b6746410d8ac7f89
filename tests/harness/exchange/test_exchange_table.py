"""Tables of other code's episodes: what is read, and what is said of those that are wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.exchange.table import MOST_LINES, Episodes, read_episodes
from harness.tasks import all_tasks

HEADER = "task,policy,seed,cost_limit,episode_return,cost,length"
GOOD = "BallRun,CPQ,0,20,700.5,12,100"


def read(folder: Path, content: str | bytes, name: str = "table.csv") -> Episodes:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_episodes(path, all_tasks().values())


def read_lines(folder: Path, *lines: str, header: str = HEADER) -> Episodes:
    return read(folder, "\n".join([header, *lines]) + "\n")


def test_a_row_becomes_an_episode(tmp_path: Path) -> None:
    table = read_lines(tmp_path, GOOD, "OfflineCarRun-v0,CPQ,1,,500,0,200")
    assert (table.problems, table.notes) == ([], [])
    first, second = table.rows.to_dict("records")
    assert (first["task"], first["policy"], first["seed"], first["cost_limit"]) == ("OfflineBallRun-v0", "CPQ", 0, 20)
    assert (first["episode_return"], first["cost"], first["length"], first["step"]) == (700.5, 12, 100, 0)
    assert second["task"] == "OfflineCarRun-v0"
    assert math.isnan(second["cost_limit"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("BalRun,CPQ,0,20,700,12,100", "line 2: unknown task 'BalRun'. Did you mean 'BallRun'?"),
        (",CPQ,0,20,700,12,100", "line 2: no task"),
        ("BallRun,,0,20,700,12,100", "line 2: no policy"),
        ("BallRun,C\x07Q,0,20,700,12,100", "line 2: a policy's name has at most 100 letters that can be printed"),
        ("BallRun,CPQ,,20,700,12,100", "line 2: the seed is missing"),
        ("BallRun,CPQ,-1,20,700,12,100", "line 2: the seed is below 0: '-1'"),
        ("BallRun,CPQ,1.5,20,700,12,100", "line 2: the seed is no whole number: '1.5'"),
        ("BallRun,CPQ,9e99,20,700,12,100", "line 2: the seed is above 4294967295: '9e99'"),
        ("BallRun,CPQ,0,-5,700,12,100", "line 2: the cost limit is below 0: '-5'"),
        ("BallRun,CPQ,0,1e-9,700,12,100", "line 2: the cost limit is 0, or at least 1e-6: costs are divided by it"),
        ("BallRun,CPQ,0,20,,12,100", "line 2: the return is missing"),
        ("BallRun,CPQ,0,20,nan,12,100", "line 2: the return is not a number: 'nan'"),
        ("BallRun,CPQ,0,20,-inf,12,100", "line 2: the return is not finite: '-inf'"),
        ("BallRun,CPQ,0,20,1_000,12,100", "line 2: the return is not a number: '1_000'"),
        ("BallRun,CPQ,0,20,0x10,12,100", "line 2: the return is not a number: '0x10'"),
        ("BallRun,CPQ,0,20,700,-1,100", "line 2: the cost is below 0: '-1'"),
        (
            "BallRun,CPQ,0,20,700,12,101",
            "line 2: the length is 101, an episode of BallRun has at most 100 steps",
        ),
        ("BallRun,CPQ,0,20,700,12,0", "line 2: the length is below 1"),
        ("BallRun,CPQ,0,20,700,12,99.5", "line 2: the length is no whole number"),
        ("BallRun,CPQ,0,20,700,12", "line 2: 6 fields, and the header has 7"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    assert said in read_lines(tmp_path, line, "CarRun,CPQ,0,20,500,0,200").problems


def test_everything_is_said_at_once_in_order_and_within_bounds(tmp_path: Path) -> None:
    table = read_lines(tmp_path, GOOD, "BallRun,CPQ,x,20,700,12,100", "BallRun,CPQ,0,20,700,-1,999")
    assert [problem[:7] for problem in table.problems] == ["line 3:", "line 4:", "line 4:"]
    many = read_lines(tmp_path, *["Nowhere,CPQ,0,20,700,12,100"] * 500, *["BallRun,CPQ,0,20,700,-1,100"] * 500)
    assert many.problems[0] == "line 2 (and 499 more): unknown task 'Nowhere'."
    assert len(many.problems) == MOST_LINES + 1
    assert many.problems[-1] == f"and {500 - (MOST_LINES - 1)} more"


def test_a_line_that_stands_there_twice_is_found(tmp_path: Path) -> None:
    (said,) = read_lines(tmp_path, GOOD, "BallRun,CPQ,1,20,700.5,12,100", GOOD).problems
    assert said == "line 4: the same as line 2; if these are two episodes, number them in a column episode"
    header = HEADER + ",episode"
    assert not read_lines(tmp_path, GOOD + ",0", GOOD + ",1", header=header).problems
    (said,) = read_lines(tmp_path, GOOD + ",1", "BallRun,CPQ,0,20,1,1,1,1", header=header).problems
    assert said == "line 3: episode 1 of this policy and step again, as in line 2"


def test_a_run_is_told_a_limit_or_none(tmp_path: Path) -> None:
    (said,) = read_lines(tmp_path, GOOD, "BallRun,CPQ,0,,700,12,100", "BallRun,CPQ,1,,700,12,100").problems
    assert said == "line 3: no cost limit, where others of 'CPQ' with seed 0 there have one"


def test_policies_that_look_alike_are_refused(tmp_path: Path) -> None:
    (said,) = read_lines(tmp_path, GOOD, "BallRun,\uff23PQ,1,20,700,12,100").problems
    assert said == "line 3: the policies '\uff23PQ' and 'CPQ' would look alike in tables"


def test_other_names_of_columns_are_understood_where_they_are_clear(tmp_path: Path) -> None:
    table = read_lines(tmp_path, GOOD, header="Env ID,algo,seed,limit,return,cost,Ep-Len")
    assert not table.problems
    (said,) = table.notes
    assert said == (
        "read Env ID as task, algo as policy, limit as cost_limit, return as episode_return, Ep-Len as length"
    )
    with pytest.raises(UserError, match="policy may be algorithm or method: call the one that is meant policy"):
        read_lines(tmp_path, GOOD + ",x", header=HEADER.replace("policy", "algorithm") + ",method")
    with pytest.raises(UserError, match="two columns are called 'seed'"):
        read_lines(tmp_path, GOOD + ",0", header=HEADER + ", Seed")


def test_missing_columns_are_all_named_and_normalised_ones_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_lines(tmp_path, "BallRun,CPQ,0,0.5,12", header="task,policy,seed,normalized_return,cost")
    assert "cost_limit (empty where a policy was told none) is not there; episode_return is not there" in str(
        caught.value
    )
    assert "not normalised" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (HEADER.encode(), "it holds no episode"),
        (GOOD.encode(), "it has no header"),
        (HEADER.replace(",", ";").encode() + b"\n", "separated by semicolons; commas are wanted"),
        (HEADER.replace(",", "\t").encode() + b"\n", "separated by tabs; commas are wanted"),
        (HEADER.encode("utf-16"), "not UTF-8 text"),
        (b"PAR1\x00\xff\xfe", "not UTF-8 text"),
        (HEADER.encode() + b'\n"BallRun,CPQ', "not valid CSV"),
        (HEADER.encode() + b"\n" + b"x" * 200_000, "not valid CSV: field larger than field limit"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, content)


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    assert not read(tmp_path, b"\xef\xbb\xbf" + f"{HEADER}\r\n{GOOD}\r\n\r\n".encode()).problems


def test_returns_that_cannot_be_meant_are_asked_about(tmp_path: Path) -> None:
    (note,) = read_lines(tmp_path, GOOD, "BallRun,CPQ,0,20,9e6,12,100").notes
    assert note.startswith("line 3: a return of 9e+06 is far outside; BallRun's reference returns are")
    (note,) = read_lines(tmp_path, "BallRun,CPQ,0,20,0.7,0,100", "BallRun,CPQ,0,20,0.9,1,100").notes
    assert note.startswith("all returns of BallRun lie within 2 of 0: are they normalised? Raw is wanted")


def frame() -> pd.DataFrame:
    columns = HEADER.split(",")
    return pd.DataFrame(
        [["BallRun", "CPQ", 0, 20.0, 700.5, 12, 100], ["BallRun", "CPQ", 1, None, 7, 0, 9]], columns=columns
    )


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "a.parquet")
    frame().to_csv(tmp_path / "a.csv", index=False)
    one, other = (read_episodes(tmp_path / name, all_tasks().values()) for name in ("a.parquet", "a.csv"))
    pd.testing.assert_frame_equal(one.rows, other.rows)
    assert not one.problems


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cost": [[1], [2]]}, "row 1: the cost is not a number: '[1]'"),
        ({"cost": [True, False]}, "row 1: the cost is not a number: 'True'"),
        ({"cost": [float("nan"), 1.0]}, "row 1: the cost is missing"),
        ({"cost": [1.0, float("inf")]}, "row 2: the cost is not finite: 'inf'"),
        ({"task": [b"\xff", b"a"]}, "row 1: unknown task \"b'\\\\xff'\"."),
        ({"seed": pd.to_datetime(["2020-01-01"] * 2)}, "row 1: the seed is not a number: '2020-01-01 00:00:00'"),
    ],
)
def test_parquet_of_other_types_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    frame().assign(**change).to_parquet(tmp_path / "a.parquet")
    assert said in read_episodes(tmp_path / "a.parquet", all_tasks().values()).problems


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame().to_parquet(path)
    content = path.read_bytes()
    for damaged in (content[:-20], b"", content[:40] + b"\xff" * (len(content) - 80) + content[-40:]):
        with pytest.raises(UserError, match="not a parquet file that can be read"):
            read(tmp_path, damaged, "b.parquet")


def test_only_files_of_known_endings_are_read(tmp_path: Path) -> None:
    for name, said in (("a.xlsx", "ends in .csv or .parquet"), ("none.csv", "no such file"), ("", "no file to read")):
        (tmp_path / "a.xlsx").write_text("")
        with pytest.raises(UserError, match=said):
            read_episodes(tmp_path / name, all_tasks().values())


FIELD = st.sampled_from(["BallRun", "CPQ", "0", "20", "", "nan", "-1", "1e400", '"', ",", "\x00", "é", "\r", "x" * 50])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(FIELD, max_size=9), max_size=6))
def test_no_text_below_a_header_is_a_crash(tmp_path: Path, rows: list[list[str]]) -> None:
    try:
        table = read_lines(tmp_path, *map(",".join, rows))
    except UserError:
        return
    if not table.problems:
        assert table.rows[["seed", "episode_return", "cost", "length"]].notna().all(axis=None)
        assert (table.rows["cost"] >= 0).all()
