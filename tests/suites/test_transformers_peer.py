"""benchmarks/transformers_peer.py: its acting is that of the weights as a dtrl policy, and its cells stand in the tables."""

import dataclasses
import importlib.util
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dtrl.config import ModelConfig
from dtrl.evaluation import evaluate
from dtrl.presets import resolve
from dtrl.suites.benchmark import prepare_suite, run_cells, write_results
from dtrl.suites.suite import LABEL, Entry
from dtrl.trajectories import Trajectories

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peer(repository):
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location(
        "transformers_peer", repository / "benchmarks" / "transformers_peer.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def torque():
    """Pendulum with actions in [−1, 1], the bare numbers of the model."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)
    low, high = np.float32([-1]), np.float32([1])
    return gymnasium.wrappers.TransformAction(env, lambda action: 2 * action, spaces.Box(low, high))


def test_it_acts_as_its_weights_do_as_a_policy_of_dtrl(peer, random_trajectories):
    import torch

    from dtrl.interop.huggingface import from_transformers

    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)
    data: Trajectories = random_trajectories([12, 9], env.observation_space, env.action_space)
    config = resolve(ModelConfig(width=16, layers=2, context_length=5), data)
    torch.manual_seed(0)
    actor = peer.PeerActor(peer.peer_model(config, data), config, data)
    for parameter in actor.model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    policy = from_transformers(
        actor.model,
        target_return=-50.0,
        context_length=5,
        observation_space=data.observation_space,
        action_space=spaces.Box(-1, 1, (1,)),
        observation_mean=actor.mean.numpy(),
        observation_std=actor.deviation.numpy(),
        return_scale=config.return_scale,
    )
    # two rows for five episodes: a row begins another one while its neighbour is in the middle of one
    ours = evaluate(actor, [-50.0], 5, 1, 2, env=lambda: gymnasium.make("Pendulum-v1", max_episode_steps=12))
    theirs = evaluate(policy, [-50.0], 5, 1, env=torque)
    np.testing.assert_allclose(ours.targets[0].returns, theirs.targets[0].returns, rtol=1e-4)


def test_other_settings_are_an_entry_of_their_own(peer, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(peer, "run_external", lambda arguments, label, task_of: asked.append(label))
    for options in ([], ["--learning-rate", "1e-3"], ["--return-scale", "1000"]):
        monkeypatch.setattr(sys, "argv", ["transformers_peer.py", "quick", "--logdir", str(tmp_path), *options])
        peer.main()
    assert asked == ["transformers DT", "transformers DT, rate 0.001", "transformers DT, scale 1000"]
    assert all(LABEL.fullmatch(label) for label in asked)


def test_its_cells_stand_in_the_tables_beside_the_others(peer, table, read, here, tmp_path):
    suite = read(table | {"seeds": 1, "entry": table["entry"][:1]})
    sizes = suite.entries[0].options
    suite = dataclasses.replace(suite, entries=(*suite.entries, Entry(peer.LABEL, "external", options=sizes)))
    benchmark = prepare_suite(suite, tmp_path, jobs=1, allow_missing=False, say=lambda line: None)
    run_cells(benchmark, jobs=1, say=lambda line: None)
    [cell] = [cell for cell in benchmark.todo if cell.entry.kind == "external"]
    assert write_results(benchmark)["missing"] == [cell.name]
    peer.PeerRun(cell, learning_rate=1e-3, return_scale=None)()
    results = write_results(prepare_suite(suite, tmp_path, jobs=1, allow_missing=False, say=lambda line: None))
    assert results["missing"] == []
    assert results["checkpoints"]["last"]["against"][peer.LABEL]["runs"] == 1
    row = next(row for row in results["cells"] if row["entry"] == peer.LABEL)
    assert (row["last"]["update"], row["best"]["of"]) == (4, 2)
