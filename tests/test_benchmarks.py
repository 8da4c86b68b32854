"""Each benchmark runs, small, and writes what its readers expect. What it measures here means nothing.

One is a process of its own, as a user's is; the others are calls of `main`, since a process spends most of its time on imports."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from dtrl.bench import BENCHMARKS, acting, contexts, decoding
from dtrl.bench.paper_loop import PaperLoop
from dtrl.bench.timing import compare, interleaved, torch_threads
from dtrl.bench.training import Collator, dtrl_batches, hopper_shaped
from dtrl.cli import main
from dtrl.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "acting": {"repetitions": 1, "envs": 2, "threads": 1, "context_length": 20, "engines": 0, "aoti": 0},
    "contexts": {"repetitions": 1, "longest": 200, "steps": 12, "threads": 1},
    "training": {"repetitions": 1, "threads": 1, "episodes": 3, "bf16": 0, "cuda": 0},
    "processes": {"repetitions": 1, "processes": 2, "updates": 1, "episodes": 3},
    "rollouts": {
        "repetitions": 1,
        "steps": 3,
        "max_envs": 8,
        "envs": 2,
        "microseconds": 10,
        "workers": 2,
        "threads": 1,
        "cuda": 0,
        "graph": 0,
    },
    "decoding": {
        "repetitions": 1,
        "plans": 1,
        "horizon": 2,
        "beam_width": 2,
        "updates": 1,
        "guesses": 2,
        "threads": 1,
    },
    "loading": {"repetitions": 1, "episodes": 5, "steps": 20},
    "recording": {"repetitions": 1, "steps": 50},
    "startup": {"repetitions": 1},
    "memory": {"episodes": 500, "steps": 50, "megabytes": 2, "updates": 2},
}
TIMED = [name for name in SMALL if name != "memory"]


def command(name: str, *more: str) -> list[str]:
    flags = [word for key, value in SMALL[name].items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "dtrl", "bench", name, *flags, *more]


@pytest.fixture
def measured(tmp_path, capsys):
    return lambda name: measure(name, tmp_path / "out.json", capsys)


def measure(name: str, file: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    """The document of a small run, which the command prints as a table too."""
    if name == "recording":
        pytest.importorskip("jax", reason="Minari's DataCollector, the peer, needs jax, which no extra of dtrl brings")
    words = command(name, "--json", str(file))
    if name == "loading":
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    else:
        with warnings.catch_warnings():
            warnings.resetwarnings()  # here they are errors, and there they are lines on stderr
            assert main(words[3:]) == 0
        printed = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["benchmark"] == name
    assert document["command"].split() == ["dtrl", *command(name)[3:]]
    assert {"dtrl", "python", "torch"} <= document["versions"].keys()
    assert {"processor", "cores", "load"} <= document["machine"].keys()
    assert document["results"]
    assert printed.strip() == BENCHMARKS[name].table(document).strip()
    assert printed.startswith("dtrl bench")
    return document


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMED)
def test_benchmark_writes_ratios_and_how_they_were_made(name, measured):
    for row in measured(name)["results"]:
        assert {"work", "peer", "ratio_of_minima", "goal", "dtrl_seconds", "repetitions"} <= row.keys()
        assert row["ratio"] > 0
        assert row["peer_seconds"]["min"] <= row["peer_seconds"]["p10"]
        if name == "training":
            achieved = row["model_flops"] / row["dtrl_seconds"]["p10"]
            assert row["model_flops_utilization"] == pytest.approx(achieved / row["matmul_flops_per_second"])
            assert 0 < row["batch_share"] < 0.5


@pytest.mark.slow
def test_acting_is_measured_with_exports_too():
    """With one of the engines; an export takes most of the time of such a benchmark, and test_exported.py makes those of the others."""
    rows = acting.rows_of_results(envs=2, threads=1, repetitions=1, context_length=4, engines=["numpy"])
    exported = [row for row in rows if row["dtrl"] == "dtrl block, numpy"]
    assert [row["peer"] for row in exported] == [acting.DOCUMENTED, acting.LEAN]
    assert all(row["ratio"] > 0 for row in exported)


@pytest.mark.slow
def test_caches_grow_as_the_formula_says_and_those_of_banded_do_not():
    rows = contexts.table_of_lengths(1, [20, 200, 2_000])
    sizes = {(row["context"], row["kv_heads"], row["tokens"]): row["cache_bytes"] for row in rows}
    for tokens in (20, 200, 2_000):
        assert sizes["full", 8, tokens] == 4 * sizes["full", 2, tokens] == 2 * 3 * 128 * tokens * 4
        assert sizes["banded", 8, tokens] == 4 * sizes["banded", 2, tokens] == 2 * 3 * 128 * min(tokens, 62) * 4
    assert all(0 < row["seconds"]["min"] <= row["seconds"]["p10"] for row in rows)


@pytest.mark.parametrize("numbers", [{"steps": 1_001}, {"steps": 9}, {"longest": 19}])
def test_contexts_that_cannot_be_measured_are_refused(numbers):
    with pytest.raises(InputError, match=str(next(iter(numbers.values())))):
        contexts.run(**numbers)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux' /proc")
def test_memory_is_measured_beside_the_size_of_the_data(measured):
    results = measured("memory")["results"]
    for row in results[:2]:  # what is loaded and read is in memory
        assert 0.9 * row["arrays_bytes"] < row["peak_bytes"] < row["arrays_bytes"] + 50e6
    for row in results:
        assert row["ratio"] == row["peak_bytes"] / row["arrays_bytes"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by Linux' /proc")
def test_training_takes_no_more_memory_than_it_may_have():
    """With 400 MiB of private memory, of which some 300 are torch's: the images alone would not fit."""
    script = ROOT / "benchmarks" / "larger_than_memory.py"
    command = [sys.executable, script, "--megabytes", "320", "--limit", "400", "--updates", "3", "--least", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 losses, bit for bit the same: yes" in done.stdout


def test_peer_that_is_not_installed_is_asked_for_by_its_extra(tmp_path, monkeypatch, capsys):
    # A name that maps to None in sys.modules can't be imported: what an install without the extra looks like.
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main([*command("training")[3:], "--json", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "dtrl: this benchmark compares with transformers, which is not installed; `pip install 'dtrl[bench]'` brings it."
    ]
    assert not (tmp_path / "x").exists()


@pytest.fixture
def drafting_run(tmp_path):
    """A run of two updates on a table of two episodes, with actions of two dimensions."""
    table = tmp_path / "walk.csv"
    lines = [f"{e},{t / 10},{e - t},{t / 50},{e / 2},1" for e in range(2) for t in range(50)]
    table.write_text("\n".join(["id,x,v,a,b,r", *lines, ""]))
    columns = ["observation=x,v", "action=a,b", "reward=r", "episode=id"]
    small = {"context-length": 2, "width": 8, "heads": 1, "layers": 1, "bins": 4, "updates": 2, "eval-episodes": 0}
    flags = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    run = str(tmp_path / "run")
    preset = ["--preset", "dt_discrete", "--draft-head", "--device", "cpu"]
    assert main(["train", str(table), "--columns", *columns, "--logdir", run, *preset, *flags]) == 0
    return run


@pytest.mark.slow
def test_speculative_decoding_is_measured_on_a_run_and_its_data(drafting_run):
    rows = decoding.speculation_rows(1, 1, 1, 1, drafting_run)
    assert [row["dtrl"] for row in rows] == ["speculative, factorised draft", "speculative, ngram draft"]
    for row in rows:
        assert row["work"] == "sampling an action of 2 tokens, 2/2 dimensions"
        assert 1 <= row["tokens_per_pass"] <= 2
        assert row["ratio"] > 0
        assert row["judging"] > 0


def test_a_run_that_does_not_name_its_data_is_refused(random_trajectories, untrained_policy, tmp_path):
    untrained_policy(random_trajectories([7, 5])).save(tmp_path / "policy")
    with pytest.raises(InputError, match=r"policy is no run directory with a config\.toml, which names the data"):
        decoding.trained_on(str(tmp_path / "policy"))


def test_jobs_take_turns_and_every_one_begins_a_round():
    order = []
    jobs = {name: lambda name=name: lambda: order.append(name) for name in "abc"}
    times = interleaved(jobs, repetitions=3, warm_up=0)
    assert "".join(order) == "abcbcacab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratio_is_how_many_times_faster_dtrl_is():
    times = {"ours": np.array([1.0, 1.0, 9.0]), "theirs": np.array([2.0, 2.0, 2.0])}
    row = compare("work", times, "ours", "theirs", goal=3.0, threads=1)
    assert (row["ratio"], row["ratio_of_minima"], row["goal"], row["threads"]) == (2.0, 2.0, 3.0, 1)


def test_threads_are_set_back():
    import torch

    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_both_ways_to_make_the_peers_batches_have_one_form():
    trajectories = hopper_shaped(4)
    one, other = dtrl_batches(trajectories)(), Collator(trajectories)()
    assert {name: (x.shape, x.dtype) for name, x in one.items()} == {
        name: (x.shape, x.dtype) for name, x in other.items()
    }
    assert other["attention_mask"][:, -1].all(), "the documented collator pads on the left"


def test_the_paper_s_loop_makes_the_windows_of_the_data():
    """Each is found in the data again, by the observation that it ends with."""
    trajectories = hopper_shaped(3)
    loop = PaperLoop(trajectories, length=4, batch_size=8)
    batch = {name: x.numpy() for name, x in loop.batch().items()}
    assert {name: x.shape for name, x in batch.items()} == {
        "observations": (8, 4, 11), "actions": (8, 4, 3), "rewards": (8, 4, 1), "returns_to_go": (8, 4, 1),
        "timesteps": (8, 4), "valid": (8, 4),
    }  # fmt: skip
    assert batch["valid"][:, -1].all(), "padding is on the left"
    normalised = (trajectories.observations - loop.mean) / loop.deviation
    for i in range(8):
        row = int(np.abs(normalised - batch["observations"][i, -1]).sum(axis=1).argmin())
        steps = int(batch["valid"][i].sum())
        rows = slice(row + 1 - steps, row + 1)
        np.testing.assert_array_equal(batch["actions"][i, -steps:], trajectories.actions[rows])
        np.testing.assert_allclose(batch["returns_to_go"][i, -steps:, 0], trajectories.returns_to_go[rows], rtol=1e-4)


def test_every_benchmark_is_described():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for name in BENCHMARKS:
        assert f"dtrl bench {name}" in text
