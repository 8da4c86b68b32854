"""A critic knows what actions are worth, and a policy that is led by it takes the best of those it draws.

Oracles: a bandit and a chain of states, whose values have closed forms."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import dtrl
from dtrl.acting import Policy
from dtrl.acting.critic import Critic
from dtrl.cli import main
from dtrl.config import CriticConfig, DecodingConfig
from dtrl.decoding import choose
from dtrl.errors import InputError
from dtrl.training.critic import expectile_loss, following, train_critic
from dtrl.trajectories import Trajectories

FAST = {"updates": 500, "batch_size": 64, "learning_rate": 1e-2, "width": 32}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """The slow Q catches up ten times as fast, so that what values come to is seen after few updates."""
    monkeypatch.setattr("dtrl.training.critic.TARGET_RATE", 0.05)


def episode(observations, actions, rewards, terminated=True):
    length = len(actions)
    last = np.arange(length) == length - 1
    return {
        "observations": np.asarray(observations, np.float32),
        "actions": np.asarray(actions),
        "rewards": np.asarray(rewards, np.float32),
        "terminations": last & terminated,
        "truncations": last & (not terminated),
    }


def bandit(shares=(3, 1)):
    """One step a state, of which there is one: action 0 earns 0, action 1 earns 1, and they were taken in these shares."""
    actions = np.repeat([0, 1], shares)
    episodes = [episode([[0.0], [0.0]], [a], [float(a)]) for a in actions]
    return Trajectories.from_episodes(episodes, spaces.Box(-1, 1, (1,)), spaces.Discrete(2))


def chain(terminated):
    """Three steps along a line, the last of which earns 1; then it is over, or it was cut off where nothing is known of what comes."""
    one = episode([[0.0], [0.3], [0.6], [0.9]], [0, 0, 0], [0.0, 0.0, 1.0], terminated)
    two = episode([[0.0], [0.3]], [1], [0.0])  # of another return, so that returns have a range
    return Trajectories.from_episodes([one, two], spaces.Box(-1, 1, (1,)), spaces.Discrete(2))


def q_of(critic, observation, action):
    with torch.inference_mode():
        return critic.judge(np.array([[observation]], np.float32), np.array([[action]])).item() * critic.reward_scale


def test_the_expectile_loss_is_least_at_the_expectile():
    values = torch.linspace(-2, 3, 11, dtype=torch.float64)
    grid = torch.linspace(-2, 3, 5_001, dtype=torch.float64)
    from scipy.stats import expectile

    for tau in (0.1, 0.5, 0.9):
        losses = torch.stack([expectile_loss(values - m, tau) for m in grid])
        assert grid[losses.argmin()].item() == pytest.approx(expectile(values.numpy(), alpha=tau), abs=2e-3)


@pytest.mark.parametrize("tau", [pytest.param(0.5, marks=pytest.mark.slow), 0.9])
def test_a_bandit_s_values_are_its_rewards_and_a_state_has_their_expectile(tau):
    """Of 0 with share 3/4 and 1 with 1/4 the τ-expectile is τ/4 / (τ/4 + (1 − τ)·3/4)."""
    critic = train_critic(bandit(), CriticConfig(expectile=tau, **FAST))
    assert [q_of(critic, 0.0, a) for a in (0, 1)] == pytest.approx([0, 1], abs=0.05)
    observation = critic.observing.encode(torch.zeros(1, 1, 1)).reshape(1, 1)
    with torch.inference_mode():
        value = critic.value(observation).item() * critic.reward_scale
    assert value == pytest.approx(tau / (tau + 3 * (1 - tau)), abs=0.06)


@pytest.mark.slow
def test_a_later_reward_counts_less_and_an_end_is_worth_nothing():
    critic = train_critic(
        chain(terminated=True), CriticConfig(discount=0.5, **{**FAST, "updates": 1_000, "learning_rate": 3e-3})
    )
    assert [q_of(critic, s, 0) for s in (0.6, 0.3)] == pytest.approx([1, 0.5], abs=0.1)
    assert q_of(critic, 0.0, 1) == pytest.approx(0, abs=0.1)


@pytest.mark.slow
def test_what_comes_after_a_truncation_is_worth_what_its_observation_is():
    """The final observation is in the data; where it looks like an earlier one, it has the value of that one."""
    loop = episode([[0.0], [0.0], [0.0]], [0, 0], [1.0, 1.0], terminated=False)
    other = episode([[0.5], [0.5]], [0], [0.0])
    data = Trajectories.from_episodes([loop, other], spaces.Box(-1, 1, (1,)), spaces.Discrete(2))
    critic = train_critic(data, CriticConfig(discount=0.5, **{**FAST, "updates": 1_000}))
    assert q_of(critic, 0.0, 0) == pytest.approx(2, abs=0.15)  # 1 / (1 − γ)
    assert following(data).tolist() == [1, 3, 4]


def test_the_same_seed_gives_the_same_critic():
    config = CriticConfig(**{**FAST, "updates": 20})
    one, other = (train_critic(bandit(), config).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = train_critic(bandit(), CriticConfig(**{**FAST, "updates": 20, "seed": 1})).state_dict()
    assert not all(torch.equal(one[name], different[name]) for name in one)


@pytest.fixture
def led(random_trajectories, untrained_policy, tmp_path):
    """Makes an untrained policy and a critic that knows one thing: what is nearest to an action of its liking is best."""

    def make(action_space, liked, preset="dt", **decoding):
        data = random_trajectories([9, 7], action_space=action_space)
        critic = Critic(CriticConfig(width=8), data.observation_space, action_space)
        critic.observing.fit(data.observations)
        critic.acting.fit(data.actions)
        critic.save(tmp_path / "critic.safetensors")
        head = {} if isinstance(action_space, spaces.Discrete) else {"head": "gaussian"}
        policy = untrained_policy(data, preset=preset, **head)
        config = DecodingConfig(strategy="best_of", critic=str(tmp_path / "critic.safetensors"), **decoding)
        policy = policy.variant(decoding=config)

        def forward(observations, actions):
            wanted = (
                torch.nn.functional.one_hot(torch.tensor(liked), actions.shape[-1])
                if head == {}
                else torch.tensor(liked)
            )
            return -(actions - wanted).square().sum(dim=-1)

        policy.critic.forward = forward
        return policy

    return make


def test_what_the_critic_likes_is_taken_where_it_is_among_what_is_drawn(led):
    """Of 4 actions drawn 400 times each at a temperature that makes them alike; one is missed with probability 0.75⁴⁰⁰ < 1e-49 a row."""
    policy = led(spaces.Discrete(4), 2, temperature=1_000.0, samples=400)
    observations = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    assert set(policy.predict(observations)[0].tolist()) == {2}


def test_it_is_the_best_of_the_mode_and_the_draws(led):
    liked = np.array([0.5, -0.5], np.float32)
    policy = led(spaces.Box(-1, 1, (2,)), liked.tolist(), samples=6)
    observations = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    states = [policy.initial_state(30, generators=[np.random.default_rng(i) for i in range(30)]) for _ in range(2)]
    actions, _ = policy.predict(observations, states[0])
    drawn = [DecodingConfig(), *[DecodingConfig(strategy="sample")] * 6]
    with torch.inference_mode():
        policy.advance(states[1], np.ones(30, dtype=bool))
        distributions = policy.distributions(states[1], {"": observations}, np.ones(30, dtype=bool))
        tokens = [choose(distributions, decoding, states[1].generators) for decoding in drawn]
        candidates = np.stack([policy.whole_action(token) for token in tokens], axis=1)
    nearest = np.square(candidates - liked).sum(axis=-1).argmin(axis=1)
    assert len(set(nearest.tolist())) > 3
    np.testing.assert_array_equal(actions, candidates[np.arange(30), nearest])


def test_a_row_s_action_depends_on_its_generator_alone(led):
    policy = led(spaces.Box(-1, 1, (2,)), [0.5, -0.5])
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    generators = [np.random.default_rng(seed) for seed in range(5)]
    whole, _ = policy.predict(observations, policy.initial_state(5, generators=generators))
    for row in range(5):
        state = policy.initial_state(1, generators=[np.random.default_rng(row)])
        alone, _ = policy.predict(observations[row : row + 1], state)
        np.testing.assert_allclose(alone[0], whole[row], rtol=1e-5, atol=1e-6)


def test_a_forbidden_action_is_not_taken_however_it_is_liked(led):
    policy = led(spaces.Discrete(4), 2, temperature=1_000.0, samples=100)
    masks = np.ones((8, 4), dtype=bool)
    masks[:, 2] = False
    actions, _ = policy.predict(np.zeros((8, 3), np.float32), action_masks=masks)
    assert 2 not in actions.tolist()


@pytest.mark.slow
def test_it_finds_what_cloning_does_not(tmp_path, monkeypatch):
    """Cue, an environment of one step: the action that the observation names earns 1. From uniformly random data cloning earns a quarter; 200 episodes
    would have to earn 0.5 by chance, seven standard errors (1e-12)."""

    class Cue(gymnasium.Env):
        observation_space, action_space = spaces.Box(0, 1, (4,)), spaces.Discrete(4)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.cue = int(self.np_random.integers(4))
            return np.eye(4, dtype=np.float32)[self.cue], {}

        def step(self, action):
            return np.eye(4, dtype=np.float32)[self.cue], float(action == self.cue), True, False, {}

    random = np.random.default_rng(0)
    cues, actions = random.integers(4, size=(2, 400))
    episodes = [episode(np.eye(4)[[c, c]], [a], [float(a == c)]) for c, a in zip(cues, actions, strict=True)]
    data = Trajectories.from_episodes(episodes, Cue.observation_space, Cue.action_space)
    policy = dtrl.train(data, preset="bc", updates=30, width=16, layers=1, heads=1)
    train_critic(data, CriticConfig(**FAST)).save(tmp_path / "critic.safetensors")
    config = DecodingConfig(strategy="best_of", critic=str(tmp_path / "critic.safetensors"), samples=40)
    means = [
        dtrl.evaluate(policy.variant(decoding=decoding), target_returns=[1], episodes=200, env=Cue).targets[0].mean
        for decoding in (DecodingConfig(strategy="sample"), config)
    ]
    assert means[0] < 0.5
    assert means[1] > 0.95


def test_a_saved_critic_judges_alike(tmp_path):
    critic = train_critic(bandit(), CriticConfig(**{**FAST, "updates": 30}))
    critic.save(tmp_path / "critic.safetensors")
    again = Critic.load(tmp_path / "critic.safetensors")
    assert again.config == critic.config
    assert [q_of(again, 0.3, a) for a in (0, 1)] == [q_of(critic, 0.3, a) for a in (0, 1)]


def test_what_a_critic_cannot_do_is_refused(random_trajectories, untrained_policy, tmp_path):
    path = tmp_path / "critic.safetensors"
    data = random_trajectories([9, 7])
    config = CriticConfig(updates=1, width=8)
    train_critic(data, config).save(path)
    decoding = DecodingConfig(strategy="best_of", critic=str(path))
    other = random_trajectories([9, 7], action_space=spaces.Discrete(3))
    with pytest.raises(InputError, match=r"judges the action space Box.*the policy has Discrete"):
        untrained_policy(other).variant(decoding=decoding)
    with pytest.raises(InputError, match="compares whole actions, and preset dt_discrete chooses this action in parts"):
        untrained_policy(data, preset="dt_discrete").variant(decoding=decoding)
    with pytest.raises(InputError, match="judges single actions, and this policy decides 2 at once"):
        untrained_policy(data, chunk_length=2).variant(decoding=decoding)
    with pytest.raises(InputError, match="is no file; make one with `dtrl critic"):
        untrained_policy(data).variant(decoding=DecodingConfig(strategy="best_of", critic=str(tmp_path / "none")))
    untrained_policy(data).save(tmp_path / "policy.safetensors")
    with pytest.raises(InputError, match="holds no critic"):
        Critic.load(tmp_path / "policy.safetensors")
    with pytest.raises(InputError, match="is a critic and no policy"):
        Policy.load(path)
    image = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    with pytest.raises(InputError, match="judges vectors and choices, and the observation space is"):
        Critic(config, image, data.action_space)
    exported = dtrl.acting.ExportedPolicy.of(untrained_policy(data, preset="bc"), "numpy")
    with pytest.raises(InputError, match="best_of needs dtrl's own policy, run by PyTorch"):
        dtrl.acting.ExportedPolicy(exported.document, exported.arrays, decoding=decoding).check_decoding()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best_of"}, "needs a critic; make one"),
        ({"strategy": "greedy", "critic": "x"}, "has no use for critic; add --strategy best_of"),
        ({"strategy": "best_of", "critic": "x", "samples": 0}, "samples 0 must be a positive number"),
        ({"strategy": "best_of", "critic": "x", "guidance": 2.0}, "compares whole actions, and guidance shape"),
    ],
)  # fmt: skip
def test_contradictory_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DecodingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expectile": 1.0}, r"expectile 1.0 is outside \(0, 1\)"),
        ({"discount": 1.0}, r"discount 1.0 is outside \[0, 1\)"),
        ({"updates": 0}, "updates 0 must be a positive number"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_settings_of_a_critic_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CriticConfig(**options)


def test_the_command_trains_and_says_how_to_go_on(tmp_path, capsys):
    np.savez(
        tmp_path / "data.npz",
        observations=np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32),
        actions=np.arange(20) % 2,
        rewards=np.ones(20, np.float32),
        terminals=np.arange(20) % 10 == 9,
    )
    output = tmp_path / "critic.safetensors"
    assert main(["critic", str(tmp_path / "data.npz"), "--output", str(output), "--updates", "3"]) == 0
    assert f"--strategy best_of --critic {output}" in capsys.readouterr().out
    assert Critic.load(output).config.updates == 3
