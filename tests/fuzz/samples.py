"""Small valid files of every kind that dtrl reads, from which the mutations start: each writer makes folders below the one it is given."""

import importlib.util
import io
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces

import dtrl
from dtrl.acting import ExportedPolicy, Policy
from dtrl.acting.critic import Critic
from dtrl.acting.summary import DataSummary
from dtrl.config import CriticConfig, ModelConfig
from dtrl.presets import build, columns_for, resolve
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin

TESTS = Path(__file__).resolve().parent.parent
VECTOR, TORQUE, CHOICE = spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
NESTED = spaces.Dict({"where": spaces.Box(-1, 1, (2,)), "what": spaces.Tuple((CHOICE, spaces.MultiBinary(2)))})


def module_at(path: Path):
    """A file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(f"fuzzed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trajectories(observation_space=VECTOR, action_space=TORQUE, lengths=(4, 3)) -> Trajectories:
    random = np.random.default_rng(0)
    episodes = []
    for i, length in enumerate(lengths):
        discrete = isinstance(action_space, spaces.Discrete)
        actions = random.integers(0, 3, length) if discrete else random.uniform(-1, 1, (length, 2))
        last = np.arange(length) == length - 1
        episodes.append(
            {
                "observations": random.normal(size=(length + 1, 3)).astype(np.float32), "actions": actions,
                "rewards": random.normal(size=length), "terminations": last & (i % 2 == 0), "truncations": last & (i % 2 == 1),
            }
        )  # fmt: skip
    return Trajectories.from_episodes(episodes, observation_space, action_space, origin=Origin("tests/fuzzed-v0"))


def policy(data: Trajectories, **options) -> Policy:
    config = resolve(ModelConfig(**{"context_length": 3, "width": 8, "layers": 1, "heads": 2, **options}), data)
    torch.manual_seed(0)
    model = build(config, data.observation_space, data.action_space)
    model.fit(columns_for(model, data))
    return Policy(model, config, data.observation_space, data.action_space, DataSummary.of(data))


# Data


def minari_of(folder: Path, name: str, observation_space=VECTOR, action_space=TORQUE, **options) -> None:
    """A dataset of Minari's, moved from Minari's folder to `folder/name`."""
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    observation_space.seed(0), action_space.seed(0)
    episodes = []
    for i, length in enumerate((4, 3)):
        last = np.arange(length) == length - 1
        nested = isinstance(observation_space, spaces.Dict)
        seen = [observation_space.sample() for _ in range(length + 1)]
        observations = (
            {"where": np.array([s["where"] for s in seen]), "what": tuple(np.array([s["what"][j] for s in seen]) for j in (0, 1))}
            if nested
            else seen if isinstance(observation_space, spaces.Text) else np.array(seen)
        )  # fmt: skip
        actions = np.array([action_space.sample() for _ in range(length)])
        episodes.append(
            EpisodeBuffer(
                seed=i,
                observations=observations,
                actions=actions,
                rewards=np.ones(length),
                terminations=last,
                truncations=last & False,
            )
        )
    root = folder / ".minari"
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author and the like
        minari.create_dataset_from_buffers(
            "fuzz/made-v0", episodes, observation_space=observation_space, action_space=action_space, **options
        )
    shutil.move(root / "fuzz" / "made-v0" / "data", folder / name)
    shutil.rmtree(root)


def write_minari(folder: Path) -> None:
    minari_of(folder, "vectors", env="CartPole-v1")
    minari_of(folder, "nested", NESTED, CHOICE)


def write_minari_encoded(folder: Path) -> None:
    minari_of(folder, "arrow", data_format="arrow")
    minari_of(folder, "parquet", NESTED, CHOICE, data_format="parquet")
    minari_of(folder, "texts", spaces.Text(6), CHOICE)
    minari_of(folder, "images", spaces.Box(0, 255, (32, 32, 3), np.uint8), CHOICE, jpeg_encoding=True)


def write_cached(folder: Path) -> None:
    """A dataset, and the cache that its first load has made."""
    minari_of(folder / "cached", "dataset", NESTED, CHOICE)
    os.environ["DTRL_CACHE"] = str(folder / "cached" / "cache")
    dtrl.load_trajectories(folder / "cached" / "dataset")


def write_formats(folder: Path, *names: str) -> None:
    """A file in each of the layouts for which the tests of the formats have a writer, with vectors and with choices as actions."""
    writers = module_at(TESTS / "trajectories" / "formats" / "conftest.py").WRITERS
    for name in names:
        for kind, space in (("torque", TORQUE), ("choice", CHOICE)):
            place = folder / f"{name} {kind}"
            place.mkdir(parents=True)
            ending = {"d4rl": "hdf5", "d3rlpy": "hdf5", "d3rlpy, flat": "hdf5", "pickle": "pkl"}.get(name, name)
            writers[name](place / f"data.{ending}", trajectories(action_space=space))


# Policies


def write_policies(folder: Path) -> None:
    """Everything in the form of `dtrl.acting.artefact`."""
    for name in ("dt", "discrete", "tt", "critic", "numpy"):
        (folder / name).mkdir(parents=True)
    vectors, choices = trajectories(), trajectories(action_space=CHOICE)
    policy(vectors).save(folder / "dt" / "policy.safetensors")
    policy(choices, attention="full").save(folder / "discrete" / "policy.safetensors")
    policy(vectors, preset="tt", bins=4).save(folder / "tt" / "policy.safetensors")
    Critic(CriticConfig(width=4), VECTOR, TORQUE).save(folder / "critic" / "critic.safetensors")
    ExportedPolicy.of(policy(vectors, attention="full"), "numpy").save(folder / "numpy" / "policy.safetensors")


def write_onnx(folder: Path) -> None:
    """A policy exported for ONNX Runtime, of the preset whose export takes the least time; the form around it is that of `write_policies`."""
    (folder / "bc").mkdir(parents=True)
    ExportedPolicy.of(policy(trajectories(), preset="bc"), "onnx").save(folder / "bc" / "policy.safetensors")


RUN = {
    "updates": 2, "batch_size": 2, "context_length": 3, "width": 8, "layers": 1, "heads": 2, "warmup_updates": 0, "log_every": 1, "checkpoint_every": 1,
}  # fmt: skip


def write_run(folder: Path) -> None:
    """A finished training run."""
    run = folder / "run"
    dtrl.train(trajectories(), logdir=run, keep_checkpoints=2, **RUN)
    for path in run.glob("events*"):
        path.unlink()


def write_models(folder: Path) -> None:
    """A model as Stable-Baselines3 saves it, of PPO and of SAC; statistics; and a policy of arrays, one and several in a file."""
    random = torch.Generator().manual_seed(0)
    layers = {
        "ppo": {"mlp_extractor.policy_net.0": (4, 3), "mlp_extractor.value_net.0": (4, 3), "action_net": (2, 4), "value_net": (1, 4)},
        "sac": {"actor.latent_pi.0": (4, 3), "actor.mu": (2, 4), "actor.log_std": (2, 4)},
    }  # fmt: skip
    for name, shapes in layers.items():
        place = folder / name
        place.mkdir(parents=True)
        weights = {f"{layer}.weight": torch.randn(shape, generator=random) for layer, shape in shapes.items()}
        weights |= {f"{layer}.bias": torch.randn(shape[0], generator=random) for layer, shape in shapes.items()}
        if name == "ppo":
            weights["log_std"] = torch.zeros(2)
        stream = io.BytesIO()
        torch.save(weights, stream)
        data = {
            "policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.Tanh'>", ":serialized:": "gASVA"},
            "use_sde": False,
        }
        with zipfile.ZipFile(place / "model.zip", "w") as archive:
            archive.writestr("data", json.dumps(data))
            archive.writestr("policy.pth", stream.getvalue())
            archive.writestr("_stable_baselines3_version", "2.7.0")
        statistics = {
            "obs_mean": np.zeros(3),
            "obs_var": np.ones(3),
            "epsilon": np.array(1e-8),
            "obs_clip": np.array(5.0),
        }
        np.savez(place / "statistics.npz", **statistics)
        (place / "statistics.json").write_text(json.dumps({key: value.tolist() for key, value in statistics.items()}))
    arrays = {
        "W0": np.ones((3, 4)),
        "b0": np.zeros(4),
        "W1": np.ones((4, 2)),
        "b1": np.zeros(2),
        "log_std": np.zeros(2),
    }
    words = {
        "act": np.array("tanh"),
        "head": np.array("box_clip"),
        "low": -np.ones(2),
        "high": np.ones(2),
        "obs_clip": np.array(5.0),
    }
    for name, content in (
        ("arrays", arrays | words),
        ("several", {f"it{i}/{k}": v for i in (2, 10) for k, v in (arrays | words).items()}),
    ):
        (folder / name).mkdir()
        np.savez_compressed(folder / name / "policy.npz", **content)


def write_huggingface(folder: Path) -> None:
    """A model of transformers, as safetensors and as a pickle of tensors: the smallest that has every part."""
    from safetensors.torch import save_file

    width, S, A = 8, 3, 2
    shapes = {
        "embed_timestep": ((20, width), False), "embed_return": ((width, 1), True), "embed_state": ((width, S), True),
        "embed_action": ((width, A), True), "embed_ln": ((width,), True), "encoder.ln_f": ((width,), True), "encoder.wpe": ((20, width), False),
        "predict_action.0": ((A, width), True), "encoder.h.0.ln_1": ((width,), True), "encoder.h.0.ln_2": ((width,), True),
        "encoder.h.0.attn.c_attn": ((width, 3 * width), True), "encoder.h.0.attn.c_proj": ((width, width), True),
        "encoder.h.0.mlp.c_fc": ((width, 4 * width), True), "encoder.h.0.mlp.c_proj": ((4 * width, width), True),
    }  # fmt: skip
    random = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": torch.randn(shape, generator=random) for name, (shape, _) in shapes.items()}
    for name, (shape, bias) in shapes.items():
        if bias:
            transposed = ".attn." in name or ".mlp." in name
            weights[f"{name}.bias"] = torch.zeros(shape[1 if transposed else 0])
    settings = {
        "state_dim": S, "act_dim": A, "hidden_size": width, "max_ep_len": 20, "n_layer": 1, "n_head": 2, "n_inner": None,
        "activation_function": "relu", "action_tanh": True, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "max_length": 5,
    }  # fmt: skip
    for name in ("safetensors", "pickle"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "safetensors" / "model.safetensors")
    torch.save(weights, folder / "pickle" / "pytorch_model.bin")


# Documents

SUITE = """
name = "tiny"
seeds = [0, 1]
updates = 4
eval_every = 2
episodes = 3
metrics = ["iqm", "mean"]

[options]
width = 8
batch_size = 4

[[dataset]]
id = "tests/cartpole-v0"
label = "cart"
env = "CartPole-v1"
reference = { random = 20.0, expert = 500.0 }
episodes = 2
discount = 0.9

[[dataset]]
recipe = "recipe.toml"

[[entry]]
label = "DT"
preset = "dt"
learning_rate = 0.001

[[entry]]
label = "best"
kind = "policy"
files = { "cart" = "policy.zip" }
"""


def write_documents(folder: Path) -> None:
    """Recipes, a suite, a run's settings, an environment, a report, and the cells of a finished suite."""
    from suite_of_cells import cells_in, finished_cell

    from dtrl.evaluation.report import Report, TargetResult

    recipes = [*(TESTS / "collect").glob("*.toml"), TESTS.parent / "datasets" / "cartpole-mixed.toml"]
    for path in [path for path in recipes if path.is_file()]:
        (folder / path.stem).mkdir(parents=True)
        shutil.copy(path, folder / path.stem / "recipe.toml")
    for name in ("suite", "settings", "environment", "report"):
        (folder / name).mkdir()
    (folder / "suite" / "suite.toml").write_text(SUITE)
    shutil.copy(TESTS / "collect" / "random.toml", folder / "suite" / "recipe.toml")
    write_run(folder / "settings")
    shutil.copy(folder / "settings" / "run" / "config.toml", folder / "settings" / "config.toml")
    shutil.rmtree(folder / "settings" / "run")
    spec = {
        "id": "CartPole-v1",
        "entry_point": "gymnasium.envs.classic_control.cartpole:CartPoleEnv",
        "kwargs": {"sutton_barto_reward": False},
        "max_episode_steps": 50,
        "additional_wrappers": [],
    }
    (folder / "environment" / "environment.json").write_text(json.dumps(spec))
    report = Report(
        "tests/fuzzed-v0", "CartPole-v1", 0, 2, [TargetResult(10.0, [9.0, 11.0], [9, 11])], None, {"strategy": "greedy"}
    )
    report.to_json(folder / "report" / "report.json")
    for cell in cells_in(folder / "cells"):
        finished_cell(cell, report)
