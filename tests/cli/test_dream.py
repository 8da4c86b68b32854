"""`dtrl dream`, and the settings of decoding from a file."""

import json

import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.cli import main


@pytest.fixture
def saved(random_trajectories, untrained_policy, tmp_path):
    """A policy's file, and that of its data."""
    data = random_trajectories((9, 12, 7), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (2,)))
    untrained_policy(data, preset="tt", bins=5).save(tmp_path / "policy.safetensors")
    names = ("observations", "actions", "rewards", "terminations", "truncations", "episode_starts")
    np.savez(tmp_path / "data.npz", **{name: getattr(data, name) for name in names})
    return str(tmp_path / "policy.safetensors"), str(tmp_path / "data.npz")


def test_a_dream_is_written_drawn_and_compared(saved, tmp_path, capsys):
    policy, data = saved
    files = {name: tmp_path / f"dream.{name}" for name in ("npz", "png", "json")}
    code = main([
        "dream", policy, "--dataset", data, "--episodes", "2", "--steps", "5", "--prompt-steps", "3", "--strategy", "sample",
        "--output", str(files["npz"]), "--plot", str(files["png"]), "--json", str(files["json"]),
    ])  # fmt: skip
    assert code == 0
    told = json.loads(files["json"].read_text())
    assert [row["recorded_steps"] for row in told["episodes"]] == [9, 12]
    dreamt = dtrl.load_trajectories(str(files["npz"]))
    assert dreamt.episode_lengths.tolist() == [row["steps"] for row in told["episodes"]]
    np.testing.assert_allclose(dreamt.episode_returns, [row["episode_return"] for row in told["episodes"]], rtol=1e-5)
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_settings_of_decoding_come_from_a_file_and_flags_win(saved, tmp_path, capsys):
    policy, data = saved
    (tmp_path / "acting.toml").write_text('[decoding]\nstrategy = "beam"\n[training]\nupdates = 3\n')
    common = ["dream", policy, "--dataset", data, "--config", str(tmp_path / "acting.toml")]
    assert main(common) == 2
    assert "a dream goes with strategy greedy or sample, not beam" in capsys.readouterr().err
    assert main([*common, "--strategy", "sample", "--steps", "2"]) == 0
    (tmp_path / "wrong.toml").write_text("[decoding]\ntopk = 3\n")
    assert main([*common[:-1], str(tmp_path / "wrong.toml")]) == 2
    assert "has no use for 'topk' in [decoding]; did you mean 'top_k'" in capsys.readouterr().err
    assert main(["train", data, "--logdir", str(tmp_path / "run"), "--config", str(tmp_path / "acting.toml")]) == 2
    assert "give it to dtrl evaluate --config" in capsys.readouterr().err


@pytest.mark.slow
def test_an_export_does_not_dream(saved, random_trajectories, untrained_policy, tmp_path, capsys):
    data = random_trajectories((9,), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (2,)))
    dtrl.acting.ExportedPolicy.of(untrained_policy(data, preset="bc"), "numpy").save(tmp_path / "export.safetensors")
    assert main(["dream", str(tmp_path / "export.safetensors")]) == 2
    assert "is an export, which acts and does not dream" in capsys.readouterr().err
