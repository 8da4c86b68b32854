"""Policies of Stable-Baselines3 become arrays that act as they do, and nothing of a file is run."""

import base64
import io
import json
import os
import pickle
import shutil
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from dtrl.collect.array_policy import policy_of
from dtrl.collect.stable_baselines import array_policy_of, load_zip, with_statistics
from dtrl.errors import InputError


def saved(tmp_path, algorithm, env, **options):
    """A model with weights so large that actions differ, saved as a zip."""
    torch.manual_seed(0)
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", **options)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if parameter.dim() == 2 and "log_std" not in name:
                torch.nn.init.normal_(parameter, std=0.4)
    model.save(tmp_path / "model.zip")
    return model, tmp_path / "model.zip"


def observations_of(space, count=30):
    space.seed(0)
    return [np.clip(space.sample(), -3, 3) if isinstance(space, Box) else space.sample() for _ in range(count)]


TANH = {"policy_kwargs": {"activation_fn": torch.nn.Tanh, "net_arch": [24, 16]}}
RELU = {"policy_kwargs": {"activation_fn": torch.nn.ReLU, "net_arch": {"pi": [24], "vf": [8]}}}


@pytest.mark.parametrize(
    ("algorithm", "env_id", "options"),
    [
        (PPO, "CartPole-v1", {}),
        (PPO, "Pendulum-v1", RELU),
        (PPO, "Pendulum-v1", {"use_sde": True}),
        (A2C, "CartPole-v1", {}),
        (DQN, "CartPole-v1", {"buffer_size": 10}),
        (DQN, "CartPole-v1", {"buffer_size": 10, **TANH}),
        (SAC, "Pendulum-v1", {"buffer_size": 10}),
        (SAC, "Pendulum-v1", {"buffer_size": 10, "use_sde": True, "policy_kwargs": {"clip_mean": 0.7}}),
        (TD3, "Pendulum-v1", {"buffer_size": 10, **TANH}),
        (DDPG, "Pendulum-v1", {"buffer_size": 10}),
    ],
)
def test_a_saved_model_acts_as_the_model_does(tmp_path, algorithm, env_id, options):
    model, path = saved(tmp_path, algorithm, env_id, **options)
    env = gymnasium.make(env_id)
    policy = load_zip(path, env.observation_space, env.action_space, deterministic=True)
    policy = (
        policy_of({"low": np.array([-2]), "high": np.array([2])} | policy.arrays(), "it")
        if env_id[0] == "P"
        else policy
    )
    random = np.random.default_rng(0)
    observations = observations_of(env.observation_space)
    ours = [policy.action(observation, random, 0.0) for observation in observations]
    theirs = [model.predict(observation, deterministic=True)[0] for observation in observations]
    np.testing.assert_allclose(ours, theirs, atol=2e-4)  # float32, weights ten times as large as usual
    assert np.std(theirs) > 0.01


def test_the_spread_of_sac_is_that_of_its_layer(tmp_path):
    model, path = saved(tmp_path, SAC, "Pendulum-v1", buffer_size=10)
    policy = load_zip(path, model.observation_space, model.action_space, deterministic=False)
    observation = np.array([0.3, -0.2, 0.5], np.float32)
    mean, log_std, _ = model.actor.get_action_dist_params(torch.tensor(observation)[None])
    out, hidden = policy.outputs(observation)
    np.testing.assert_allclose(out, mean[0].detach(), atol=1e-5)
    np.testing.assert_allclose(hidden @ policy.log_std_W + policy.log_std_b, log_std[0].detach(), atol=1e-5)


def test_probabilities_and_spread_of_ppo(tmp_path):
    model, path = saved(tmp_path, PPO, "CartPole-v1")
    policy = load_zip(path, model.observation_space, model.action_space, deterministic=False)
    observation = np.array([0.3, -0.2, 0.1, 0.2], np.float32)
    probability = model.policy.get_distribution(torch.tensor(observation)[None]).distribution.probs[0, 1].item()
    random = np.random.default_rng(0)
    share = np.mean([policy.action(observation, random) for _ in range(4_000)])
    assert abs(share - probability) < 5 * 0.5 / 4_000**0.5  # five standard errors
    model, path = saved(tmp_path, PPO, "Pendulum-v1", policy_kwargs={"log_std_init": -1.5})
    assert load_zip(path, model.observation_space, model.action_space, False).log_std.tolist() == [-1.5]


@pytest.mark.parametrize("channels_first", [False, True])
def test_images_are_read_as_stable_baselines_shows_them_to_its_networks(channels_first):
    from stable_baselines3.common.policies import ActorCriticPolicy

    shape = (3, 7, 6) if channels_first else (7, 6, 3)
    space, actions = Box(0, 255, shape, np.uint8), Discrete(5)
    theirs = ActorCriticPolicy(Box(0, 255, (3, 7, 6), np.uint8), actions, lambda _: 1e-3)
    parameters = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    ours = array_policy_of(parameters, space, actions, "it")
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tensor = torch.tensor(image if channels_first else image.transpose(2, 0, 1))[None]
    expected = theirs.get_distribution(tensor).distribution.logits[0].detach().numpy()
    logits = ours.outputs(image)[0]
    np.testing.assert_allclose(logits - logits.max(), expected - expected.max(), atol=1e-5)


def test_layers_that_both_nets_share_come_first():
    random = np.random.default_rng(0)
    sizes = {
        "mlp_extractor.shared_net.0": (3, 8),
        "mlp_extractor.policy_net.0": (8, 6),
        "action_net": (6, 2),
        "value_net": (8, 1),
    }
    parameters = {}
    for name, (one, other) in sizes.items():
        parameters |= {f"{name}.weight": random.normal(size=(other, one)), f"{name}.bias": random.normal(size=other)}
    policy = array_policy_of(parameters, Box(-1, 1, (3,)), Discrete(2), "it")
    assert [weight.shape for weight in policy.weights] == [(3, 8), (8, 6), (6, 2)]


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_statistics_are_those_of_vec_normalize(tmp_path, suffix):
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), clip_obs=1.5)
    env.seed(0)
    env.reset()
    for _ in range(50):
        env.step(np.array([[2.0]]))
    values = {
        "obs_mean": env.obs_rms.mean,
        "obs_var": env.obs_rms.var,
        "epsilon": env.epsilon,
        "obs_clip": env.clip_obs,
    }
    path = tmp_path / f"statistics{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps({name: np.asarray(value).tolist() for name, value in values.items()}))
    else:
        np.savez(path, **values)
    identity = {"W0": np.eye(3), "b0": np.zeros(3), "act": np.array("relu"), "head": np.array("box_clip")}
    policy = with_statistics(policy_of(identity, "it"), path)
    for observation in observations_of(env.observation_space, 5):
        np.testing.assert_allclose(policy.outputs(observation)[0], env.normalize_obs(observation), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "env_id"), [("TQC", "Pendulum-v1"), ("TRPO", "CartPole-v1"), ("QRDQN", "CartPole-v1")]
)
def test_models_of_contrib(tmp_path, name, env_id):
    contrib = pytest.importorskip("sb3_contrib")
    options = {} if name == "TRPO" else {"buffer_size": 10}
    model, path = saved(tmp_path, getattr(contrib, name), env_id, **options)
    policy = load_zip(path, model.observation_space, model.action_space, deterministic=True)
    policy = (
        policy_of({"low": np.array([-2]), "high": np.array([2])} | policy.arrays(), "it")
        if env_id[0] == "P"
        else policy
    )
    observations = observations_of(model.observation_space)
    ours = [policy.action(observation, np.random.default_rng(0), 0.0) for observation in observations]
    np.testing.assert_allclose(ours, [model.predict(o, deterministic=True)[0] for o in observations], atol=1e-5)


# What a file may not do


class Payload:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def replant(path, target, **members):
    """A copy of a zip with other members."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, members.get(name.replace(".", "_"), source.read(name)))
    return target


def test_pickles_in_a_file_are_not_run(tmp_path):
    model, path = saved(tmp_path, PPO, "CartPole-v1")
    mark = tmp_path / "run"
    payload = pickle.dumps(Payload(mark))
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    for entry in data.values():
        if isinstance(entry, dict) and ":serialized:" in entry:
            entry[":serialized:"] = base64.b64encode(payload).decode()
    data["policy_kwargs"] = {":type:": "<class 'dict'>", ":serialized:": base64.b64encode(payload).decode()}
    spaces = model.observation_space, model.action_space
    planted = replant(path, tmp_path / "data.zip", data=json.dumps(data))
    policy = load_zip(planted, *spaces, deterministic=True)
    np.testing.assert_array_equal(policy.weights[0], load_zip(path, *spaces, deterministic=True).weights[0])
    evil = io.BytesIO()
    torch.save(Payload(mark), evil)
    for content in (evil.getvalue(), payload):
        planted = replant(path, tmp_path / "pth.zip", policy_pth=content)
        with pytest.raises(
            InputError, match=r"policy.pth (names posix\S+ at byte .*Nothing was run|cannot be read as the tensors)"
        ):
            load_zip(planted, *spaces, deterministic=True)
    assert not mark.exists()
    # The payload is live: Stable-Baselines3's own loader runs it, twice.
    with pytest.raises(FileExistsError):
        PPO.load(tmp_path / "data.zip")
    assert mark.exists()


def test_statistics_are_not_unpickled(tmp_path):
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    for name in ("vecnormalize.pkl", "statistics.npz"):
        shutil.copy(path, tmp_path / "statistics.npz")
        identity = {"W0": np.eye(3), "b0": np.zeros(3), "act": np.array("relu"), "head": np.array("box_clip")}
        with pytest.raises(InputError, match=r"nothing is unpickled"):
            with_statistics(policy_of(identity, "it"), tmp_path / name)
    assert not (tmp_path / "run").exists()


def with_keys(*names):
    return {name: np.zeros((2, 2)) for name in names}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            with_keys("lstm_actor.weight_ih_l0", "action_net.weight"),
            r"it is a recurrent policy; only the MlpPolicy of PPO",
        ),
        (with_keys("features_extractor.cnn.0.weight"), r"it is a CnnPolicy"),
        (with_keys("features_extractor.extractors.image.cnn.0.weight"), r"it is a MultiInputPolicy"),
        (with_keys("actor.latent_pi.0.running_mean"), r"it is a policy with batch normalisation"),
        (with_keys("decoder.weight"), r"its parameters \(decoder.weight …\) are of another policy"),
        (with_keys("action_net.weight"), r"the parameter 'action_net.bias' is missing"),
    ],
)
def test_other_policies_are_refused_by_name(parameters, message):
    with pytest.raises(InputError, match=message):
        array_policy_of(parameters, Box(-1, 1, (3,)), Discrete(2), "it")


@pytest.mark.parametrize("odd", [{"epsilon": np.zeros(2)}, {"obs_clip": np.ones(3)}, {"obs_var": np.ones(2)}])
def test_statistics_of_other_shapes_are_refused(tmp_path, odd):
    np.savez(tmp_path / "statistics.npz", **({"obs_mean": np.zeros(3), "obs_var": np.ones(3)} | odd))
    identity = {"W0": np.eye(3), "b0": np.zeros(3), "act": np.array("relu"), "head": np.array("box_clip")}
    with pytest.raises(InputError, match=r"statistics\.npz"):
        with_statistics(policy_of(identity, "it"), tmp_path / "statistics.npz")


def test_files_that_are_no_models_are_refused(tmp_path):
    spaces = Box(-1, 1, (3,)), Discrete(2)
    with pytest.raises(InputError, match=r"none.zip cannot be read \(No such file"):
        load_zip(tmp_path / "none.zip", *spaces, deterministic=True)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(InputError, match=r"text.zip is no model saved by Stable-Baselines3"):
        load_zip(tmp_path / "text.zip", *spaces, deterministic=True)
    model, path = saved(tmp_path, PPO, "Pendulum-v1", use_sde=True)
    with pytest.raises(InputError, match=r"gSDE.*; set deterministic = true"):
        load_zip(path, model.observation_space, model.action_space, deterministic=False)
    model, path = saved(tmp_path, PPO, "Pendulum-v1", policy_kwargs={"activation_fn": torch.nn.ELU})
    with pytest.raises(InputError, match=r"the activation 'elu' is not supported"):
        load_zip(path, model.observation_space, model.action_space, deterministic=False)
