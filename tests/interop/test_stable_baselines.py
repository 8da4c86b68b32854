"""A policy that Stable-Baselines3 has saved plays as it does there, through dtrl's own evaluation."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC

from dtrl.cli import main
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.evaluation import evaluate
from dtrl.interop.stable_baselines import load_actor


def saved(folder, algorithm, env, **options):
    torch.manual_seed(0)
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, **options)
    model.save(folder / "model.zip")
    return model, folder / "model.zip"


def played(model, env_id, seeds):
    """Returns of the model, by its own `predict`, in Gymnasium's environment."""
    env, returns = gymnasium.make(env_id), []
    for seed in seeds:
        observation, _ = env.reset(seed=int(seed))
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


@pytest.mark.parametrize(
    ("algorithm", "env_id", "options"),
    [
        (PPO, "CartPole-v1", {"n_steps": 64}),
        (DQN, "CartPole-v1", {"buffer_size": 10}),
        (SAC, "Pendulum-v1", {"buffer_size": 10}),
    ],
)
def test_a_saved_model_is_evaluated_as_it_plays(tmp_path, algorithm, env_id, options):
    model, path = saved(tmp_path, algorithm, env_id, **options)
    report = evaluate(load_actor(path, env_id), episodes=3, seed=5, env=env_id)
    expected = played(model, env_id, np.random.default_rng([5, 0]).integers(2**31, size=3))
    np.testing.assert_allclose(report.targets[0].returns, expected, rtol=1e-3)
    assert report.env == env_id


def test_drawn_actions_follow_the_distribution_and_its_temperature(tmp_path):
    model, path = saved(tmp_path, PPO, "CartPole-v1", n_steps=64)
    observation = np.array([0.3, -0.2, 0.1, 0.2], np.float32)
    logits = model.policy.get_distribution(torch.tensor(observation)[None]).distribution.logits[0].detach()
    for temperature in (1.0, 0.1):
        actor = load_actor(path, "CartPole-v1", decoding=DecodingConfig(strategy="sample", temperature=temperature))
        rows = 4_000
        actions, _ = actor.predict(np.tile(observation, (rows, 1)), deterministic=False)
        probability = torch.softmax(logits / temperature, dim=0)[1].item()
        assert abs(actions.mean() - probability) < 5 * 0.5 / rows**0.5  # five standard errors: 6e-7 to fail by chance


def test_the_command_evaluates_a_saved_model(tmp_path, capsys):
    model, path = saved(tmp_path, PPO, "CartPole-v1", n_steps=64)
    command = ["evaluate", str(path), "--env", "CartPole-v1", "--episodes", "2"]
    assert main([*command, "--json", str(tmp_path / "out.json")]) == 0
    document = json.loads((tmp_path / "out.json").read_text())
    expected = played(model, "CartPole-v1", np.random.default_rng([0, 0]).integers(2**31, size=2))
    assert document["targets"][0]["returns"] == expected
    assert document["dataset"] == "model.zip"
    assert "this policy is told no return" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "does not say which environment it is for; name it by --env"),
        (["--env", "CartPole-v1", "--target-returns", "5"], "has no use for --target-returns"),
        (["--env", "CartPole-v1", "--engine", "numpy"], "has no use for --engine"),
        (["--env", "CartPole-v1", "--strategy", "sample", "--top-k", "2"], "not with top_k"),
        (["--env", "Pendulum-v1"], "reads 4 numbers"),
        (["--env", "dtrl/Corridor-v1"], "not registered"),
    ],
)
def test_what_does_not_go_with_a_saved_model_is_refused(tmp_path, capsys, arguments, words):
    _, path = saved(tmp_path, PPO, "CartPole-v1", n_steps=64)
    assert main(["evaluate", str(path), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_policy_that_has_no_distribution_draws_nothing(tmp_path):
    from stable_baselines3 import TD3

    _, path = saved(tmp_path, TD3, "Pendulum-v1", buffer_size=10)
    actor = load_actor(path, "Pendulum-v1", decoding=DecodingConfig(strategy="sample"))
    with pytest.raises(InputError, match=r"model\.zip holds no distribution to draw from"):
        evaluate(actor, episodes=1, env="Pendulum-v1")
    with pytest.raises(InputError, match=r"model\.pt ends in none of \.zip, \.npz"):
        load_actor(tmp_path / "model.pt", "Pendulum-v1")


def test_statistics_are_for_a_policy_of_another_library(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--normalize", "x.npz"]) == 2
    assert "--normalize is for a policy of Stable-Baselines3" in capsys.readouterr().err
