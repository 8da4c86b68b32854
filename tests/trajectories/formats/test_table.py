"""Tables: columns by name, ids of any kind, and the line of what is wrong."""

import tracemalloc

import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.errors import InputError
from dtrl.trajectories.formats import read_file
from dtrl.trajectories.formats import table as tables

COLUMNS = {"observation": ["x", "v"], "action": ["a"], "reward": ["r"], "episode": ["id"]}
TEXT = """id,x,v,a,r,over
walk,0.5,1,0,1.5,False
walk,0.25,2,2,-1,True
run,1e-3,3,1,0,false
run,0,4,0,2,0
"""


@pytest.fixture
def write_text(tmp_path):
    def write(text, name="table.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_columns_become_what_they_are_named_for(write_text):
    data, assumed = read_file(write_text(TEXT), columns={**COLUMNS, "terminal": ["over"]})
    np.testing.assert_array_equal(data.observations, np.float32([[0.5, 1], [0.25, 2], [1e-3, 3], [0, 4]]))
    np.testing.assert_array_equal(data.actions, [0, 2, 1, 0])
    np.testing.assert_array_equal(data.rewards, [1.5, -1, 0, 2])
    np.testing.assert_array_equal(data.episode_starts, [0, 2])
    np.testing.assert_array_equal(data.terminations, [False, True, False, False])
    np.testing.assert_array_equal(data.truncations, [False, False, False, True])
    assert data.action_space == spaces.Discrete(3)
    assert assumed["columns"].startswith("observation = x, v; action = a")
    assert assumed["episodes"] == "rows of the same id in succession; terminated where over says so"


def test_a_terminal_column_alone_splits_too(write_text):
    columns = {role: names for role, names in COLUMNS.items() if role != "episode"} | {"terminal": ["over"]}
    data, assumed = read_file(write_text(TEXT), columns=columns)
    np.testing.assert_array_equal(data.episode_starts, [0, 2])
    assert "the last 2 steps end nowhere" in assumed["episodes"]


@pytest.mark.parametrize(
    ("old", "new"), [(",", ";"), (",", "\t"), ("walk", '"walk, far"'), ("\n", "\r\n"), ("2\n", "2\n\n\n")]
)
def test_other_separators_quotes_and_ends_of_lines(write_text, old, new):
    expected = dtrl.load_trajectories(write_text(TEXT), columns=COLUMNS)
    data = dtrl.load_trajectories(write_text(TEXT.replace(old, new), encoding="utf-8-sig"), columns=COLUMNS)
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(data.columns[name], values)


def test_chunks_are_joined(write_text, monkeypatch):
    expected = dtrl.load_trajectories(write_text(TEXT), columns=COLUMNS)
    monkeypatch.setattr(tables, "CHUNK", 1)
    data = dtrl.load_trajectories(write_text(TEXT), columns=COLUMNS)
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(data.columns[name], values)


WRONG = {
    "a word": (TEXT.replace("0.25", "fast"), COLUMNS, "column 'x' of .* holds 'fast' at line 3, where a number"),
    "nothing": (TEXT.replace("0.25", ""), COLUMNS, "column 'x' of .* holds nothing at line 3"),
    "a short line": (TEXT.replace("run,0,4", "run,4"), COLUMNS, "line 5 of .* has 5 fields, and the header 6"),
    "an unknown column": (TEXT, COLUMNS | {"reward": ["rr"]}, "has no column 'rr'; did you mean 'r'"),
    "an unknown role": (TEXT, COLUMNS | {"rewards": ["r"]}, "no role 'rewards' for a column; did you mean 'reward'"),
    "no episodes": (TEXT, {k: v for k, v in COLUMNS.items() if k != "episode"}, r"no column of .* is named as episode \(or terminal\)"),
    "no names that speak": (TEXT, None, "is named as observation, action, reward, episode"),
    "two rewards": (TEXT, COLUMNS | {"reward": ["r", "a"]}, "reward is one column, and r, a of"),
    "an id that comes again": (TEXT + "walk,0,0,0,0,0\n", COLUMNS, "column 'id' of .* holds walk again at row 4"),
    "an end in the middle": (TEXT.replace("1.5,False", "1.5,True"), COLUMNS | {"terminal": ["over"]}, "column 'over' of .* is set at row 0"),
    "NaN": (TEXT.replace("0.25", "nan"), COLUMNS, "observations of .* hold NaN.* at row 1"),
    "the same name twice": (TEXT.replace("id,x,v", "id,x,x"), COLUMNS | {"observation": ["x"]}, "has 2 columns 'x'"),
    "next observations of another width": (
        TEXT, COLUMNS | {"next_observation": ["x"]}, r"next_observations of .* have shape \(\), and observations \(2,\)",
    ),
    "no rows and no episodes": (TEXT.split("\n")[0] + "\n", COLUMNS | {"terminal": ["over"]}, "holds no step"),
    "no rows": (TEXT.split("\n")[0] + "\n", COLUMNS, "holds no step"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "columns", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_table_is_refused_with_column_and_line(write_text, text, columns, message):
    with pytest.raises(InputError, match=message):
        dtrl.load_trajectories(write_text(text), columns=columns)


def test_one_long_id_takes_no_more_memory_than_its_letters(write_text):
    """NumPy's texts are all as long as the longest."""
    rows = TEXT.splitlines()
    cells = rows[1].split(",")
    longer = [",".join([id, *cells[1:]]) for id in ["x" * 100_000, *["y"] * 9_000]]
    path = write_text("\n".join([rows[0], *longer]))
    tracemalloc.start()
    assert read_file(path, columns=COLUMNS)[0].num_episodes == 2
    assert tracemalloc.get_traced_memory()[1] < 10**8
    tracemalloc.stop()


def test_other_encodings_are_refused(write_text):
    path = write_text(TEXT.replace("walk", "f\u00fcr"), encoding="latin1")
    with pytest.raises(InputError, match="cannot be read as a CSV table in UTF-8"):
        read_file(path, format="csv", columns=COLUMNS)


@pytest.fixture
def write_parquet_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    def write(**columns):
        path = tmp_path / "table.parquet"
        parquet.write_table(pa.table(columns), path)
        return path

    return write


def test_lists_of_parquet_are_vectors(write_parquet_table):
    path = write_parquet_table(
        observation=[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], action=[0, 1, 1], reward=[1, 2, 3], episode=["a", "a", "b"]
    )
    data = dtrl.load_trajectories(path, short_episodes="keep")
    np.testing.assert_array_equal(data.observations, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(data.episode_starts, [0, 2])


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ([[0.0, 1.0], [2.0]], "column 'observation' of .* holds 1 numbers at row 1, and 2 at row 0"),
        ([[0.0, 1.0], None], "column 'observation' of .* holds nothing at row 1"),
        (["a", "b"], "observations of .* hold object, where numbers are expected"),
    ],
)
def test_ragged_lists_and_gaps_of_parquet_are_refused(write_parquet_table, observation, message):
    path = write_parquet_table(observation=observation, action=[0, 1], reward=[1, 2], episode=[0, 0])
    with pytest.raises(InputError, match=message):
        dtrl.load_trajectories(path)
