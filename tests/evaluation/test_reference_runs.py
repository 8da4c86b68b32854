"""Measured reference returns against environments whose returns are known."""

import json
import math

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dtrl.cli import main
from dtrl.errors import InputError
from dtrl.evaluation.reference_runs import Measured, policy_return, random_return
from dtrl.evaluation.references import REFERENCE_RETURNS


class Coin(gymnasium.Env):
    """Four steps; the reward is the action, 0 or 1, and 100 times the seed's draw at the first step."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.start = 0, int(self.np_random.integers(2))
        return np.full(3, self.start, np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = float(action) + (100 * self.start if self.steps == 1 else 0)
        return np.full(3, self.steps, np.float32), reward, False, self.steps == 4, {}


@pytest.fixture
def coin():
    gymnasium.register("tests/Coin-v0", entry_point=Coin)
    yield "tests/Coin-v0"
    del gymnasium.registry["tests/Coin-v0"]


def test_random_actions_are_uniform_and_seeds_are_those_stated(coin):
    """The mean of 2,000 fair coins is within 0.5 ± 0.0112 (one deviation), so 0.05 is passed with probability 1e-5."""
    measured = random_return(coin, episodes=500, seed=7)
    starts = [int(np.random.Generator(np.random.PCG64(7 + i)).integers(2)) for i in range(500)]
    assert [int(total >= 100) for total in measured.returns] == starts
    flips = np.array(measured.returns) - 100 * np.array(starts)
    assert abs(flips.mean() / 4 - 0.5) < 0.05
    assert measured.returns == random_return(coin, episodes=500, seed=7).returns
    assert measured.returns != random_return(coin, episodes=500, seed=8).returns
    assert measured.how == "500 episodes of uniform random actions, seeds 7 to 506"


def test_the_mean_and_its_standard_error():
    measured = Measured((1.0, 2.0, 6.0), "by hand")
    assert measured.mean == 3
    assert measured.standard_error == pytest.approx(math.sqrt(7) / math.sqrt(3))
    assert Measured((4.0,), "once").to_dict() == {"mean": 4.0, "standard_error": None, "how": "once", "returns": [4.0]}


def test_the_expert_plays_the_same_starts(coin, random_trajectories, untrained_policy):
    policy = untrained_policy(random_trajectories((4, 4), action_space=spaces.Discrete(2)))
    expert = policy_return(policy, coin, episodes=20, seed=3, target_return=2.5)
    random = random_return(coin, episodes=20, seed=3)
    assert [r >= 100 for r in expert.returns] == [r >= 100 for r in random.returns]
    assert "asked for 2.5, seeds 3 to 22" in expert.how


def test_wrong_numbers_are_refused(coin):
    with pytest.raises(InputError, match=r"episodes \(0\) must be at least 1"):
        random_return(coin, episodes=0)
    with pytest.raises(InputError, match=r"seed \(-1\) not negative"):
        random_return(coin, seed=-1)
    with pytest.raises(InputError, match="environment 'CartPole-v7'"):
        random_return("CartPole-v7")


def test_the_command_prints_and_writes_both(coin, random_trajectories, untrained_policy, tmp_path, capsys):
    policy = untrained_policy(random_trajectories((4, 4), action_space=spaces.Discrete(2)))
    policy.save(tmp_path / "expert.safetensors")
    flags = ["--episodes", "5", "--json", str(tmp_path / "out.json")]
    assert main(["datasets", "reference", coin, "--policy", str(tmp_path / "expert.safetensors"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "5 episodes of uniform random actions" in printed
    assert "5 episodes of a policy trained on" in printed
    assert "dtrl ships none" in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["random"]["returns"]) == len(written["expert"]["returns"]) == 5
    assert written["shipped"] is None
    assert main(["datasets", "reference", "CartPole-v1", "--episodes", "2"]) == 0
    assert f"dtrl's   {REFERENCE_RETURNS['CartPole-v1'].text()}; " in capsys.readouterr().out
    assert main(["datasets", "reference", coin, "--target-return", "3"]) == 2
    assert "name it with --policy" in capsys.readouterr().err


def test_the_expert_may_be_a_policy_of_plain_arrays(tmp_path, capsys):
    lean = np.array([[0.0], [0.0], [1.0], [0.5]])
    np.savez(tmp_path / "lean.npz", W0=np.hstack([-lean, lean]), b0=np.zeros(2), act="tanh", head="argmax")
    flags = ["--policy", str(tmp_path / "lean.npz"), "--episodes", "3", "--json", str(tmp_path / "out.json")]
    assert main(["datasets", "reference", "CartPole-v1", *flags]) == 0
    assert "3 episodes of lean.npz, seeds 0 to 2" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert min(written["expert"]["returns"]) > max(written["random"]["returns"])
    assert main(["datasets", "reference", "CartPole-v1", *flags, "--target-return", "3"]) == 2
    assert "lean.npz cannot be asked for a return" in capsys.readouterr().err
