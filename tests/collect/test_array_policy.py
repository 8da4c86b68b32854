"""Policies of arrays: what they do, and files of them."""

from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch

from dtrl.collect import make_dataset
from dtrl.collect.array_policy import ArrayPolicy, fitted, load_array_policy, policy_of
from dtrl.errors import InputError


def arrays(head="categorical", act="tanh", **rest):
    random = np.random.default_rng(0)
    sizes = (4, 8, 2)
    made = {"act": np.array(act), "head": np.array(head), "source": np.array("here")}
    for i, (one, other) in enumerate(pairwise(sizes)):
        made |= {f"W{i}": random.normal(size=(one, other)), f"b{i}": random.normal(size=other)}
    return made | {name: np.asarray(value) for name, value in rest.items()}


@pytest.fixture
def saved(tmp_path):
    def save(**values):
        np.savez(tmp_path / "policy.npz", **values)
        return tmp_path / "policy.npz"

    return save


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_outputs_are_those_of_torch(act):
    made = arrays(act=act, obs_mean=np.ones(4), obs_std=np.full(4, 0.1), obs_clip=3.0)
    observation = np.array([1.5, 0.9, 1.0, 1.1])
    x = torch.tensor((observation - 1) / 0.1).clamp(-3, 3)
    weights = {name: torch.tensor(value) for name, value in made.items() if name[0] in "Wb"}
    hidden = getattr(torch, act)(x @ weights["W0"] + weights["b0"])
    expected = hidden @ weights["W1"] + weights["b1"]
    np.testing.assert_allclose(policy_of(made, "it").outputs(observation)[0], expected, rtol=1e-5)


def test_box_heads_draw_around_the_mean_and_stay_in_the_bounds():
    for head in ("box_clip", "box_tanh"):
        policy = policy_of(arrays(head, log_std=[-1.0, -2.0], low=[-1, -3], high=[1, 5]), "it")
        mean = policy.outputs(np.zeros(4))[0]
        random = np.random.default_rng(0)
        drawn = np.array([policy.action(np.zeros(4), random) for _ in range(3_000)])
        assert (drawn >= [-1, -3]).all()
        assert (drawn <= [1, 5]).all()
        expected = mean + np.exp([-1.0, -2.0]) * np.random.default_rng(1).standard_normal((100_000, 2))
        expected = np.clip(expected, [-1, -3], [1, 5]) if head == "box_clip" else [0, 1] + np.tanh(expected) * [1, 4]
        # Two independent samples: five standard errors of the means and of the standard deviations.
        np.testing.assert_allclose(drawn.mean(0), expected.mean(0), atol=5 * expected.std(0).max() / 3_000**0.5)
        np.testing.assert_allclose(drawn.std(0), expected.std(0), atol=5 * expected.std(0).max() / 3_000**0.5)


def test_a_policy_that_was_saved_is_the_same(tmp_path):
    policy = policy_of(
        arrays("box_tanh", log_std_W=np.ones((8, 2)), log_std_b=np.zeros(2), mu_clip=2.0, low=[-1, -1], high=[1, 1]),
        "it",
    )
    (tmp_path / "policy.npz").write_bytes(policy.to_bytes())
    again = load_array_policy(tmp_path / "policy.npz")
    for name, value in policy.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], value)


def test_one_of_several_snapshots(saved):
    path = saved(**{f"{which}/{name}": value for which in ("it0", "it1") for name, value in arrays().items()})
    assert isinstance(load_array_policy(path, "it1"), ArrayPolicy)
    with pytest.raises(InputError, match=r"no snapshot 'it2'; did you mean 'it"):
        load_array_policy(path, "it2")
    with pytest.raises(InputError, match=r"holds several policies; choose one with snapshot, of it0, it1"):
        load_array_policy(path)


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "policy.npz", W0=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"policy.npz cannot be read as NPZ .*nothing is unpickled"):
        load_array_policy(tmp_path / "policy.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act": "elu"}, r"act 'elu' is unknown; use one of tanh, relu"),
        ({"head": "softmax"}, r"head 'softmax' is unknown; use one of argmax"),
        ({"W1": np.zeros((7, 2))}, r"W1 has shape \(7, 2\); \(8, 2\) is expected"),
        ({"b1": [np.nan, 0]}, r"b1 holds float64 that are not all finite"),
        ({"obs_mean": np.zeros(4)}, r"obs_mean and obs_std go together"),
        ({"obs_mean": np.zeros(4), "obs_std": np.zeros(4)}, r"obs_std must be positive"),
        ({"obs_clip": -1.0}, r"obs_clip must be one positive number"),
        ({"W2": np.zeros((2, 2))}, r"the array 'b2' of the policy is missing"),
        ({"logstd": np.zeros(2)}, r"'logstd' is none of a policy's; did you mean 'log_std'"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(saved, change, message):
    with pytest.raises(InputError, match=r"policy.npz: .*" + message):
        load_array_policy(saved(**(arrays() | change)))


def test_a_policy_of_another_environment_is_refused():
    cartpole, pendulum = gymnasium.make("CartPole-v1"), gymnasium.make("Pendulum-v1")
    for env, message in ((pendulum, "reads 4 numbers"), (gymnasium.make("Acrobot-v1"), "reads 4 numbers")):
        with pytest.raises(InputError, match=message):
            fitted(policy_of(arrays(), "it"), env.observation_space, env.action_space, "it")
    with pytest.raises(InputError, match="head box_clip cannot act in Discrete"):
        fitted(policy_of(arrays("box_clip"), "it"), cartpole.observation_space, cartpole.action_space, "it")


def test_a_policy_of_the_zoo_is_as_good_as_it_was(shared_data, recipe_of):
    path = shared_data / "policies" / "CartPole-v1__ppo__final.npz"
    recipe = recipe_of(
        f"id = 'tests/x-v0'\nenv = 'CartPole-v1'\nseed = 0\ndescription = 'x'\n[[behaviour]]\npolicy = 'file'\npath = '{path}'\nepisodes = 2\n"
    )
    import minari

    make_dataset(recipe)
    assert [e.rewards.sum() for e in minari.load_dataset("tests/x-v0").iterate_episodes()] == [500.0, 500.0]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Hopper-v5"])
def test_every_policy_of_the_zoo_fits_its_environment(shared_data, env_id):
    env = gymnasium.make(env_id)
    files = sorted((shared_data / "policies").glob(f"{env_id}__*__final.npz"))
    assert len(files) >= 6
    for file in files:
        policy = fitted(load_array_policy(file), env.observation_space, env.action_space, file.name)
        action = policy.action(env.observation_space.sample(), np.random.default_rng(0))
        assert env.action_space.contains(np.int64(action) if env_id.startswith("Cart") else action)
