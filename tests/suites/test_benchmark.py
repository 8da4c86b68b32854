"""A suite from its file to its tables: what is finished is kept, what was cut off goes on, what fails leaves the rest."""

import json
import re
import signal
from functools import partial
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import dtrl
from dtrl.collect import load_recipe, make_dataset
from dtrl.errors import InputError
from dtrl.evaluation.aggregates import aggregate, iqm
from dtrl.suites import benchmark, page, run_suite, running
from dtrl.suites.cells import all_options
from dtrl.suites.data import why_missing
from dtrl.suites.running import read_means
from dtrl.suites.table import interval, markdown

DATASET = "tests/cartpole-v0"
PLOTS = page.PLOTS


def cell_files(folder):
    return {path: path.read_text() for path in sorted(folder.rglob("cell.json"))}


def test_a_suite_is_run_told_and_then_kept(table, read, here, tmp_path):
    table["entry"].append({"label": "the data", "kind": "behaviour"})
    lines = []
    results = run_suite(read(table), tmp_path, say=lines.append)
    assert lines[0] == f"making {DATASET} …"
    assert len(results["cells"]) == 6
    assert (results["failed"], results["missing"], results["skipped"]) == ({}, [], {})
    run = tmp_path / DATASET / "DT" / "seed-1"
    result, cell = (json.loads((run / name).read_text()) for name in ("result.json", "cell.json"))
    assert (result["seed"], result["updates"], result["dataset_sha256"]) == (1, 4, cell["data_sha256"])
    assert result["parameters_sha256"] == cell["parameters_sha256"]
    assert (run / "config.toml").is_file()
    assert dtrl.load_policy(run).updates == 4
    assert cell["best"]["of"] == 2
    assert cell["best"]["update"] in (2, 4)
    before = cell_files(tmp_path)
    assert run_suite(read(table), tmp_path, say=lines.append) == results
    assert cell_files(tmp_path) == before
    assert "6 of 6 cells are finished already" in lines


@pytest.mark.slow
def test_the_tables_say_what_the_cells_say(table, read, here, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PLOTS", PLOTS)
    results = run_suite(read(table), tmp_path)
    data = dtrl.load_trajectories(DATASET)
    [row] = results["datasets"]
    assert row["target_return"] == pytest.approx(np.quantile(data.episode_returns, 0.95))
    low, high = row["reference"]["random"], row["reference"]["expert"]
    scores = []
    for seed in (0, 1):
        cell = json.loads((tmp_path / DATASET / "BC" / f"seed-{seed}" / "cell.json").read_text())
        [target] = cell["last"]["report"]["targets"]
        assert len(target["returns"]) == 3
        scores.append(100 * (np.mean(target["returns"]) - low) / (high - low))
    last = results["checkpoints"]["last"]
    expected = aggregate([scores], iqm)
    np.testing.assert_allclose(last["overall"]["BC"]["iqm"], expected.to_list())
    np.testing.assert_allclose(last["by_dataset"][DATASET]["BC"]["score"], aggregate([scores]).to_list(), atol=1e-9)
    assert last["against"].keys() == {"BC"}
    text = (tmp_path / "results.md").read_text()
    assert text == markdown(results)
    assert interval(expected.to_list()) in text
    assert f"| {DATASET} | 4 | 3 |" in text
    document = (tmp_path / "results.html").read_text()
    assert interval(expected.to_list()) in document
    assert document.count("data:image/png;base64,") == 2
    assert not re.search(r"<script|https?://|<link", document), "it needs no other file"
    assert (tmp_path / "profiles.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_entries_play_the_same_episodes_and_seeds_play_others(table, read, here, tmp_path):
    table["entry"] = [{"label": label, "preset": "bc"} for label in ("one", "other")]
    run_suite(read(table), tmp_path)
    folders = [tmp_path / DATASET / label / f"seed-{seed}" for label in ("one", "other") for seed in (0, 1)]
    cells = [json.loads((folder / "cell.json").read_text()) for folder in folders]
    returns = [cell["last"]["report"]["targets"][0]["returns"] for cell in cells]
    assert cells[0]["last"] == cells[2]["last"]
    assert cells[0]["parameters_sha256"] == cells[2]["parameters_sha256"] != cells[1]["parameters_sha256"]
    assert returns[0] == returns[2]
    seeds = [cell["last"]["report"]["seed"] for cell in cells]
    assert seeds == [20_000, 20_001, 20_000, 20_001]


@pytest.mark.slow
def test_a_cell_that_was_cut_off_goes_on_and_ends_as_if_it_had_not(table, read, here, tmp_path, monkeypatch):
    table["entry"], table["seeds"] = table["entry"][:1], 1
    whole = run_suite(read(table), tmp_path / "whole")
    call = running.Choosing.__call__

    def cut(choosing, event):
        call(choosing, event)
        if event.update == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(running.Choosing, "__call__", cut)
    with pytest.raises(KeyboardInterrupt):
        run_suite(read(table), tmp_path / "cut")
    run = tmp_path / "cut" / DATASET / "DT" / "seed-0"
    assert json.loads((run / "cell.json").read_text())["finished"] is False
    assert json.loads((run / "evaluations.json").read_text()).keys() == {"2"}
    monkeypatch.setattr(running.Choosing, "__call__", call)
    resumed = run_suite(read(table), tmp_path / "cut")
    assert without_times(resumed) == without_times(whole)
    first, second = (
        json.loads((tmp_path / name / DATASET / "DT" / "seed-0" / "cell.json").read_text()) for name in ("whole", "cut")
    )
    assert first["parameters_sha256"] == second["parameters_sha256"]


def without_times(results):
    return {**results, "cells": [{k: v for k, v in row.items() if k != "seconds"} for row in results["cells"]]}


@pytest.mark.slow
def test_other_settings_are_refused_and_named(table, read, here, tmp_path):
    table["entry"], table["seeds"] = table["entry"][1:], 1
    run_suite(read(table), tmp_path)
    for change, words in (({"updates": 5}, "updates 4 → 5"), ({"episodes": 9}, "episodes 3 → 9")):
        with pytest.raises(InputError, match=rf"seed-0 was begun otherwise \({words}\)"):
            run_suite(read(table | change), tmp_path)
    table["entry"][0]["dropout"] = 0.5
    with pytest.raises(InputError, match=r"option dropout 0\.1 → 0\.5"):
        run_suite(read(table), tmp_path)
    del table["entry"][0]["dropout"]
    run_suite(read(table | {"seeds": 2}), tmp_path)  # more seeds are more cells
    make_dataset(load_recipe(table_recipe(read(table))), overwrite=True, progress=False, dataset_id=DATASET)


def test_cells_from_before_a_default_was_changed_are_refused(table, read, here, tmp_path):
    table["entry"], table["seeds"] = table["entry"][1:], 1
    run_suite(read(table), tmp_path)
    path = tmp_path / DATASET / "BC" / "seed-0" / "cell.json"
    cell = json.loads(path.read_text())
    defaults = all_options({})
    given = {name: value for name, value in cell["settings"].items() if name not in defaults or value != defaults[name]}
    assert "option sampling" not in given
    path.write_text(json.dumps(cell | {"settings": given}))
    run_suite(read(table), tmp_path)  # what a cell does not tell was left to dtrl
    path.write_text(json.dumps(cell | {"settings": cell["settings"] | {"option sampling": "episode"}}))
    with pytest.raises(InputError, match=r"begun otherwise \(option sampling episode → step\)"):
        run_suite(read(table), tmp_path)


def table_recipe(suite):
    return suite.path("../collect/random.toml")


def test_other_data_under_the_same_name_are_refused(table, read, here, tmp_path, random_trajectories):
    from dtrl.collect import write_minari

    table["entry"], table["seeds"] = table["entry"][1:], 1
    run_suite(read(table), tmp_path)
    data = dtrl.load_trajectories(DATASET)
    write_minari(data.select(range(5)), DATASET, description="Fewer episodes.", overwrite=True)
    with pytest.raises(InputError, match="the data are others"):
        run_suite(read(table), tmp_path)


def test_a_cell_that_fails_leaves_the_others_and_is_tried_again(table, read, here, tmp_path, monkeypatch):
    train = running.train

    def fail(*arguments, **options):
        if options["preset"] == "bc" and options["seed"] == 1:
            raise RuntimeError("the disk is full")
        return train(*arguments, **options)

    monkeypatch.setattr(running, "train", fail)
    table["entry"] = table["entry"][1:]
    results = run_suite(read(table), tmp_path)
    name = f"{DATASET} · BC · seed 1"
    assert results["failed"] == {name: "the disk is full"}
    assert results["missing"] == [name]
    assert len(results["cells"]) == 1
    assert f"failed: {name}: the disk is full" in (tmp_path / "results.md").read_text()
    trace = tmp_path / DATASET / "BC" / "seed-1" / "error.txt"
    assert "a trace" in trace.read_text()
    monkeypatch.setattr(running, "train", train)
    results = run_suite(read(table), tmp_path)
    assert (results["failed"], len(results["cells"])) == ({}, 2)
    assert not trace.exists()


@pytest.mark.slow
def test_a_process_that_is_killed_takes_one_cell_with_it(table, read, tmp_path, monkeypatch):
    table["entry"], table["updates"], table["eval_every"] = table["entry"][1:], 2, 2
    make_dataset(load_recipe(table_recipe(read(table))), progress=False)

    def task(cell):
        return partial(signal.raise_signal, signal.SIGKILL) if cell.seed == 0 else running.RunCell(cell)

    monkeypatch.setattr(benchmark, "RunCell", task)
    results = run_suite(read(table), tmp_path, jobs=1)
    assert results["failed"] == {f"{DATASET} · BC · seed 0": "its process died (signal 9)"}
    assert [row["seed"] for row in results["cells"]] == [1]


@pytest.mark.slow
def test_an_environment_that_is_not_installed_is_told_with_its_extra(table, read, here, tmp_path, monkeypatch):
    def missing(name, **options):
        if name == "LunarLander-v3":
            raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")
        return make(name, **options)

    make = gymnasium.make
    monkeypatch.setattr(gymnasium, "make", missing)
    table["dataset"].append({"recipe": "lunarlander-small"})
    table["seeds"] = 1
    words = r"dataset lunarlander/small-v0: .*Box2D is not installed.*`pip install 'dtrl\[box2d\]'`.*--allow-missing"
    with pytest.raises(InputError, match=words):
        run_suite(read(table), tmp_path)
    assert not list(tmp_path.iterdir()), "it is refused before anything runs"
    results = run_suite(read(table), tmp_path, allow_missing=True)
    assert results["skipped"].keys() == {"lunarlander/small-v0"}
    assert len(results["cells"]) == 2
    assert "left out: lunarlander/small-v0" in (tmp_path / "results.md").read_text()
    del table["dataset"][0]
    with pytest.raises(InputError, match="no dataset has an environment that is installed"):
        run_suite(read(table), tmp_path, allow_missing=True)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("BabyAI-None-v0", r"dtrl\[minigrid\]"),
        ("ALE/None-v5", "pip install ale_py"),
        ("mine/None-v0", "not registered"),
    ],
)
def test_an_environment_that_is_not_there_says_what_installs_it(env, words):
    assert re.search(words, why_missing(env))
    assert why_missing("CartPole-v1") is None


def test_what_does_not_go_with_the_data_is_refused_before_anything_runs(table, read, here, tmp_path):
    table["entry"][0]["head"] = "gaussian"
    with pytest.raises(InputError, match=f"DT on {DATASET}: head 'gaussian' does not fit"):
        run_suite(read(table), tmp_path)
    table["dataset"] = [{"id": "nobody/has-this-v0"}]
    with pytest.raises(InputError, match=r"dataset nobody/has-this-v0: .* is not in"):
        run_suite(read(table), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "nowhere"}, "device 'nowhere' cannot be used here"),
        ({"device": "cpu", "precision": "tf32"}, "precision tf32 needs an NVIDIA GPU"),
        ({"device": "cpu", "cuda_graph": True}, "cuda_graph needs a CUDA device"),
    ],
)
def test_a_device_that_is_not_there_is_told_before_anything_runs(table, read, here, tmp_path, options, words):
    table["entry"][1] |= options
    with pytest.raises(InputError, match=f"BC on {DATASET}: {words}"):
        run_suite(read(table), tmp_path)
    assert not list(tmp_path.iterdir())


def test_tables_of_finished_cells_are_made_where_their_device_is_not(table, read, here, tmp_path, monkeypatch):
    table["seeds"] = 1
    results = run_suite(read(table), tmp_path)
    monkeypatch.setattr(benchmark, "choose_device", mock.Mock(side_effect=InputError("no such device")))
    assert run_suite(read(table), tmp_path) == results
    table["seeds"] = 2
    with pytest.raises(InputError, match="no such device"):
        run_suite(read(table), tmp_path)


class Steered(gymnasium.Wrapper):
    """CartPole by a number."""

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,))


@pytest.mark.parametrize(("env", "space"), [("Pendulum-v1", "observation"), ("tests/Steered-v0", "action")])
def test_another_kind_of_environment_is_refused_before_anything_runs(
    table, read, here, tmp_path, monkeypatch, env, space
):
    spec = EnvSpec("tests/Steered-v0", entry_point=Steered)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    table["dataset"][0] |= {"env": env, "reference": {"random": 0.0, "expert": 1.0}}
    with pytest.raises(InputError, match=f"DT on {DATASET}: the {space} space of the environment is"):
        run_suite(read(table), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_critic_goes_from_the_suite_s_folder_and_is_read_before_anything_runs(table, read, here, tmp_path):
    table["entry"], table["seeds"] = [{"label": "A", "strategy": "best_of", "critic": "none.safetensors"}], 1
    suite = read(table)
    path = Path(suite.source).parent / "none.safetensors"
    assert suite.options_of(suite.datasets[0], suite.entries[0])["critic"] == str(path)
    with pytest.raises(InputError, match=f"A on {DATASET}: critic {path} is no file"):
        run_suite(suite, tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_are_not_looked_for_in_a_file(table, read, here, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="would lie in a file; give another --logdir"):
        run_suite(read(table), tmp_path / "file")


def test_data_without_a_scale_need_one(table, read, here, tmp_path, random_trajectories, monkeypatch):
    from gymnasium import spaces

    from dtrl.collect import write_minari
    from dtrl.evaluation.references import REFERENCE_RETURNS

    monkeypatch.delitem(REFERENCE_RETURNS, "dtrl/KeyToDoor-v0")
    data = random_trajectories([3, 4], spaces.Box(0, 1, (9,)), spaces.Discrete(4))
    write_minari(data, "tests/made-v0", description="Random numbers.")
    table["dataset"] = [{"id": "tests/made-v0", "env": "dtrl/KeyToDoor-v0"}]
    with pytest.raises(InputError, match="tests/made-v0 has no reference returns"):
        run_suite(read(table), tmp_path)
    table["dataset"][0]["reference"] = {"random": 0.0, "expert": 1.0}
    table["seeds"] = 1
    results = run_suite(read(table), tmp_path)
    assert results["datasets"][0]["reference"]["source"] == "the suite's own reference scores"
    del table["dataset"][0]["env"]
    with pytest.raises(InputError, match="its data name no environment"):
        run_suite(read(table), tmp_path)


@pytest.mark.slow
def test_a_policy_of_a_file_stands_in_the_tables(table, read, here, tmp_path):
    from stable_baselines3 import PPO

    PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").save(tmp_path / "model.zip")
    table["entry"] = [{"label": "PPO", "kind": "policy", "files": {DATASET: str(tmp_path / "model.zip")}}]
    results = run_suite(read(table), tmp_path / "runs")
    assert [row["seed"] for row in results["cells"]] == [0, 1]
    assert "best" not in results["cells"][0]
    last, best = (results["checkpoints"][name]["overall"]["PPO"] for name in ("last", "best"))
    assert last == best
    table["entry"][0]["files"][DATASET] = str(tmp_path / "none.zip")
    with pytest.raises(InputError, match=r"none\.zip cannot be read"):
        run_suite(read(table), tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_a_damaged_cell_is_named(table, read, here, tmp_path):
    table["entry"], table["seeds"] = table["entry"][1:], 1
    run_suite(read(table), tmp_path)
    (path,) = tmp_path.rglob("cell.json")
    whole = json.loads(path.read_text())
    damaged = [
        [],
        whole | {"settings": []},
        whole | {"settings": {"reference": 3}},
        whole | {"finished": "yes"},
        whole | {"last": None},
        whole | {"best": {"update": 1, "report": {"targets": []}}},
        {name: value for name, value in whole.items() if name != "seconds"},
    ]
    for document in damaged:
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=f"{path} is not what a suite writes"):
            run_suite(read(table), tmp_path)
    path.write_text(json.dumps(whole))
    assert len(run_suite(read(table), tmp_path)["cells"]) == 1


@pytest.mark.parametrize("text", ["[", "[" * 5000, "[1]", '{"a": 1}', '{"2": []}'])
def test_damaged_evaluations_are_named(tmp_path, text):
    (tmp_path / "evaluations.json").write_text(text)
    with pytest.raises(InputError, match=r"evaluations\.json is not what a suite writes"):
        read_means(tmp_path / "evaluations.json")
