"""Oracle: the design's JSON, read back with the standard library."""

import dataclasses
import json
import math
import os
import re
import stat

import numpy as np
import pytest

from dtrl.acting import Timing
from dtrl.errors import InputError
from dtrl.evaluation.callback import scalars
from dtrl.evaluation.references import Reference
from dtrl.evaluation.report import Report, TargetResult, write_atomically
from dtrl.evaluation.statistics import mean_ci95

SCALE = Reference(20.0, 500.0, "100 episodes")


@pytest.fixture
def report():
    targets = [
        TargetResult(100.0, [90.0, 110.0, 115.0], [90, 110, 115]),
        TargetResult(500.0, [500.0, 440.0, 500.0], [500, 440, 500]),
    ]
    return Report(
        "cartpole/mixed-v0",
        "CartPole-v1",
        7,
        3,
        targets,
        SCALE,
        {"context": "window", "decoding": {"strategy": "greedy"}},
    )


def test_the_json_file_has_the_agreed_form(report, tmp_path):
    report.to_json(tmp_path / "new" / "report.json")
    value = json.loads((tmp_path / "new" / "report.json").read_text())
    assert set(value) == {
        "dataset",
        "env",
        "seed",
        "episodes",
        "targets",
        "rank_correlation",
        "reference",
        "settings",
        "faults",
    }
    assert (value["dataset"], value["env"], value["seed"], value["episodes"]) == (
        "cartpole/mixed-v0",
        "CartPole-v1",
        7,
        3,
    )
    assert value["rank_correlation"] == pytest.approx(1.0)
    assert value["reference"] == {
        "random": 20.0,
        "expert": 500.0,
        "source": "100 episodes",
        "random_error": None,
        "expert_error": None,
    }
    first, last = value["targets"]
    assert set(first) == {
        "target_return",
        "returns",
        "lengths",
        "mean",
        "ci95",
        "iqm",
        "normalized_mean",
        "mean_length",
        "lost",
    }
    assert first["mean"] == pytest.approx(105.0)
    assert first["ci95"] == list(mean_ci95([90.0, 110.0, 115.0])[1])
    assert last["normalized_mean"] == pytest.approx(100 * (480 - 20) / 480)
    assert last["mean_length"] == pytest.approx(480)


def test_a_report_survives_the_file(report, tmp_path):
    report.to_json(tmp_path / "report.json")
    assert Report.from_json(tmp_path / "report.json") == report


def test_nothing_but_finite_numbers_is_written_and_null_is_read_as_nan(tmp_path):
    targets = [TargetResult(np.float32(1.0), [np.float64(math.inf), 2.0], [np.int64(3), 4])]
    report = Report(
        None, None, np.int64(0), 2, targets, None, {"temperature": math.nan, "path": tmp_path, "shape": (1, 2)}
    )
    report.to_json(tmp_path / "report.json")
    value = json.loads(
        (tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )
    (target,) = value["targets"]
    assert (target["returns"], target["mean"], target["ci95"], target["normalized_mean"]) == (
        [None, 2.0],
        None,
        [None, None],
        None,
    )
    assert value["settings"] == {"temperature": None, "path": str(tmp_path), "shape": [1, 2]}
    assert np.isnan(Report.from_json(tmp_path / "report.json").targets[0].returns[0])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(report, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"report\.json cannot be written \(No space left on device\)"):
        report.to_json(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def interrupted(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", interrupted)
    assert os.listdir(tmp_path) == []


def test_a_written_file_can_be_read_by_whom_the_umask_allows(report, tmp_path):
    umask = os.umask(0o022)
    try:
        report.to_json(tmp_path / "report.json")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o644


def test_a_pipe_is_written_and_not_replaced(report):
    out, into = os.pipe()
    report.to_json(f"/dev/fd/{into}")
    os.close(into)
    with os.fdopen(out) as stream:
        assert json.load(stream) == report.to_dict()


def test_a_link_stays_a_link(report, tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    report.to_json(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert Report.from_json(tmp_path / "real.json") == report


@pytest.mark.parametrize("content", ["", "not JSON", "[]", "{}", '{"dataset": null}'])
def test_another_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(InputError, match=r"other\.json is not"):
        Report.from_json(tmp_path / "other.json")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"missing\.json cannot be read"):
        Report.from_json(tmp_path / "missing.json")


def test_returns_and_lengths_must_pair_up():
    for returns, lengths in (([], []), ([1.0], []), ([1.0], [1, 2])):
        with pytest.raises(InputError, match=f"target 5 has {len(returns)} returns and {len(lengths)} lengths"):
            TargetResult(5, returns, lengths)


def test_the_table_is_aligned_and_ends_with_the_rank_correlation(report):
    lines = report.table().splitlines()
    head, rule, *rows = lines[2:6]
    assert re.findall(r"\S+(?: \S+)*", head) == ["asked", "achieved", "95 % interval", "normalised"]
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert {line.index("[") for line in rows} == {rows[0].index("[")}
    assert [row.split()[0] for row in rows] == ["100", "500"]
    assert "105.0" in rows[0]
    assert "95.8" in rows[1]
    assert lines[-1].startswith("rank correlation of asked and achieved: 1.00")


def test_the_table_says_what_it_cannot_know():
    table = Report(None, "X-v0", 0, 1, [TargetResult(1.0, [0.913], [9])]).table()
    assert "normalised" not in table
    assert "[0.913, 0.913]" in table
    assert "one episode has no spread" in table
    assert table.splitlines()[-1].endswith("undefined (needs two targets, and means, that differ)")


def test_a_report_without_targets_still_has_a_table():
    assert "asked" in Report("d", "e", 0, 0, []).table()


def test_the_timing_is_kept_beside_the_report_and_makes_no_difference(report, tmp_path):
    timing = Timing(
        env_seconds=2.0, waited_seconds=0.5, model_seconds=1.5, wall_seconds=2.5, steps=5000, env_workers=2, jobs=3
    )
    timed = dataclasses.replace(report, timing=timing)
    assert timed == report
    assert timed.to_dict() == report.to_dict()
    timed.to_json(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())["timing"]
    assert written == {
        "env_seconds": 2.0,
        "waited_seconds": 0.5,
        "model_seconds": 1.5,
        "wall_seconds": 2.5,
        "steps": 5000,
        "env_workers": 2,
        "jobs": 3,
    }
    assert Report.from_json(tmp_path / "report.json").timing == timing
    logged = scalars(timed)
    assert (logged["eval/env_seconds"], logged["eval/model_seconds"], logged["eval/steps_per_second"]) == (
        2.0,
        1.5,
        2000,
    )
    assert timing.text() == (
        "environment 2.0 s in 2 workers, this process waited 0.5 s; model 1.5 s; 5,000 steps in 2.5 s, 2,000 steps/s, by 3 jobs"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda d: [],
        lambda d: d | {"dataset": 3.5},
        lambda d: d | {"seed": "0"},
        lambda d: d | {"targets": [d["targets"][0] | {"lengths": "ab"}]},
        lambda d: d | {"targets": [d["targets"][0] | {"lost": None}]},
        lambda d: d | {"settings": []},
        lambda d: d | {"faults": [3]},
        lambda d: d | {"sweep": {"support": 1}},
    ],
)
def test_a_report_that_cannot_be_shown_is_refused(tmp_path, change):
    path = tmp_path / "report.json"
    Report("tests/a-v0", "CartPole-v1", 0, 2, [TargetResult(1.0, [1.0, 2.0], [1, 2])]).to_json(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=r"report\.json is not an evaluation report"):
        Report.from_json(path)


@pytest.mark.parametrize("text", ["[" * 5000, '{"a": ' * 5000, "{"])
def test_a_report_that_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=r"report\.json is not JSON"):
        Report.from_json(tmp_path / "report.json")
