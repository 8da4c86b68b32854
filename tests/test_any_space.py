"""Every space that Gymnasium has and dtrl takes, through the whole job: data → training → acting → file → acting."""

import gymnasium
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings

import dtrl
from dtrl.errors import InputError
from dtrl.spaces import flatten, leaves, numbers_of, unflatten
from dtrl.trajectories import Trajectories

TINY = {"updates": 2, "batch_size": 4, "context_length": 3, "width": 8, "layers": 1, "device": "cpu"}
LENGTHS = (5, 3)


def boxes(shapes):
    bounds = st.sampled_from([(-1.0, 1.0), (0.0, 4.0), (-2.0, 0.5), (-np.inf, np.inf), (0.0, np.inf)])
    return st.builds(lambda bound, shape: spaces.Box(*bound, shape), bounds, st.sampled_from(shapes))


SMALL = st.integers(1, 4)
ACTED = st.one_of(
    boxes([(1,), (3,), (2, 2), ()]),
    st.builds(spaces.Discrete, SMALL, start=st.integers(-3, 3)),
    st.lists(SMALL, min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.just(spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, -1], [2, 5]])),
    st.sampled_from([1, 3, (2, 2)]).map(spaces.MultiBinary),
)
OBSERVED = st.one_of(
    ACTED,
    st.sampled_from([(5, 6), (6, 5, 3), (3, 6, 5), (2, 6, 5, 3), (40, 36, 3)]).map(
        lambda s: spaces.Box(0, 255, s, np.uint8)
    ),
    st.just(spaces.Box(0, 9, (3,), np.uint8)),
    st.builds(spaces.Text, SMALL, charset=st.just("abc")),
)


def nested(simple):
    """A simple space, or a Dict or Tuple of such, up to two levels deep."""
    names = st.sampled_from(["a", "b.c", "keys", "goal", "%"])
    return st.recursive(
        simple,
        lambda part: st.one_of(
            st.lists(part, min_size=1, max_size=3).map(spaces.Tuple),
            st.dictionaries(names, part, min_size=1, max_size=3).map(spaces.Dict),
        ),
        max_leaves=4,
    )


def batch(space, count):
    """`count` samples of a space in the form in which vector environments give them."""
    samples = [flatten(space, space.sample()) for _ in range(count)]
    parts = {}
    for leaf in leaves(space):
        values = [sample[leaf.path] for sample in samples]
        parts[leaf.path] = values if isinstance(leaf.space, spaces.Text) else np.stack([np.asarray(v) for v in values])
    return unflatten(space, parts)


def sampled(observation_space, action_space, lengths=LENGTHS, seed=0):
    """Trajectories of samples of the spaces."""
    observation_space.seed(seed)
    action_space.seed(seed)
    episodes = [
        {
            "observations": batch(observation_space, length + 1),
            "actions": batch(action_space, length),
            "rewards": np.linspace(-1, 1, length) + i,
            "terminations": np.arange(length) == length - 1,
            "truncations": np.zeros(length, dtype=bool),
        }
        for i, length in enumerate(lengths)
    ]
    return Trajectories.from_episodes(episodes, observation_space, action_space)


def assert_same_action(space, one, other):
    """Equal ids, and numbers up to the rounding of weights that lie elsewhere in memory."""
    one, other = flatten(space, one), flatten(space, other)
    for leaf in leaves(space):
        np.testing.assert_allclose(one[leaf.path], other[leaf.path], rtol=1e-5, atol=1e-5)


def act_and_keep(observation_space, action_space, path, preset="dt", attention="banded"):
    data = sampled(observation_space, action_space)
    policy = dtrl.train(data, preset=preset, attention=attention, **TINY)
    observations = data.episode(1)["observations"]
    first = unflatten(observation_space, {k: v[0] for k, v in flatten(observation_space, observations).items()})
    action, _ = policy.predict(first)
    assert action_space.contains(action), (action, action_space)
    sampled_actions, _ = policy.predict(observations, deterministic=False)
    assert all(len(v) == LENGTHS[1] + 1 for v in flatten(action_space, sampled_actions).values())
    assert policy.replay(data) < 1e-4
    policy.save(path)
    again, _ = dtrl.load_policy(path).predict(first)
    assert_same_action(action_space, action, again)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nested(OBSERVED), nested(ACTED))
def test_any_pair_of_spaces_is_learnt_acted_and_kept(tmp_path, observation_space, action_space):
    act_and_keep(observation_space, action_space, tmp_path / "policy.safetensors")


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nested(OBSERVED), nested(ACTED), st.sampled_from(["dt", "bc"]))
def test_a_hundred_pairs_of_spaces_are_learnt_acted_and_kept(tmp_path, observation_space, action_space, preset):
    attention = "window" if preset == "bc" else "full"
    act_and_keep(observation_space, action_space, tmp_path / "policy.safetensors", preset, attention)


@settings(max_examples=30)
@given(nested(OBSERVED), nested(ACTED))
def test_episodes_come_out_of_trajectories_as_they_went_in(observation_space, action_space):
    data = sampled(observation_space, action_space)
    again = Trajectories.from_episodes([data.episode(i) for i in range(2)], observation_space, action_space)
    assert data.columns.keys() == again.columns.keys()
    for name, column in data.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])


COMPOSITE = spaces.Dict(
    image=spaces.Box(0, 255, (6, 6, 3), np.uint8), place=spaces.Discrete(3, start=1), goal=spaces.Text(3, charset="abc")
)
PARTS = spaces.Tuple([spaces.Box(-1, 3, (2,)), spaces.MultiDiscrete([2, 3]), spaces.Discrete(2)])


@pytest.fixture(scope="module")
def composite():
    """(data, a policy trained on them) with a Dict observed and a Tuple acted."""
    data = sampled(COMPOSITE, PARTS, lengths=(6, 4, 5))
    return data, dtrl.train(data, **TINY)


def test_the_parts_of_an_observation_share_a_token_and_each_matters(composite):
    data, policy = composite
    assert policy.model.tokens_per_step == 3
    for leaf in leaves(COMPOSITE):
        before, _ = policy.predict(data.episode(0)["observations"])
        parts = flatten(COMPOSITE, data.episode(0)["observations"])
        changed, _ = policy.predict(unflatten(COMPOSITE, parts | {leaf.path: parts[leaf.path][::-1]}))
        assert np.abs(before[0] - changed[0]).max() > 0, leaf.path


def test_the_loss_is_the_mean_over_the_parts_of_an_action(composite):
    data, policy = composite
    from dtrl.windows import Windows

    batch_ = Windows(data, 3, 8).batch(1)
    loss = policy.model.loss(batch_)
    assert loss.by_field.keys() == {"action/0", "action/1", "action/2"}
    total = sum(float(surprise) for surprise, _, _ in loss.by_field.values())
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == 3 * int(batch_.valid.sum())


@pytest.mark.parametrize("space", [spaces.Discrete(4, start=2), spaces.MultiDiscrete([2, 3])], ids=["ids", "choices"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_masked_action_is_never_taken(space, deterministic):
    data = sampled(spaces.Box(-1, 1, (2,)), space)
    policy = dtrl.train(data, **TINY)
    observations = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    free, _ = policy.predict(observations, deterministic=deterministic)
    n = 4 if isinstance(space, spaces.Discrete) else 5
    masks = np.random.default_rng(1).random((64, n)) < 0.4
    masks[:, [0, 2]] = True  # something is left of every choice
    acted, _ = policy.predict(observations, deterministic=deterministic, action_masks=masks)
    chosen = (acted - 2)[:, None] if n == 4 else acted + np.array([0, 2])
    assert np.take_along_axis(masks, chosen, axis=1).all()
    allowed, _ = policy.predict(observations, deterministic=True, action_masks=np.ones((64, n), dtype=bool))
    np.testing.assert_array_equal(allowed, policy.predict(observations)[0])
    assert free.shape == acted.shape


def test_a_mask_that_allows_nothing_names_its_environment():
    policy = dtrl.train(sampled(spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3])), **TINY)
    masks = np.ones((3, 5), dtype=bool)
    masks[1, 2:] = False
    with pytest.raises(InputError, match="mask of environment 1 allows no value of choice 1"):
        policy.predict(np.zeros((3, 2), np.float32), action_masks=masks)
    with pytest.raises(InputError, match=r"action_masks has shape \(2, 5\); give \(3, 5\)"):
        policy.predict(np.zeros((3, 2), np.float32), action_masks=masks[:2])


def test_pixels_are_divided_by_255_and_encoders_take_every_grid():
    from dtrl.embeddings import IMAGE_ENCODERS, embedding
    from dtrl.tokenizers import Image

    for name in IMAGE_ENCODERS:
        for shape in ((1, 1), (5, 6), (7, 7, 3), (3, 84, 84), (4, 36, 40, 3)):
            tokenizer = Image(shape)
            torch.manual_seed(0)
            layer = embedding(tokenizer, 8, name)
            tokens = tokenizer.encode(torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8))
            out = layer(tokens)
            assert out.shape == (2, 3, 1, 8)
            pixels = tokens.reshape(6, *tokenizer.grid).float() / 255
            torch.testing.assert_close(layer.out(layer.layers(pixels)).view(2, 3, 1, 8), out)


GOALS = spaces.Dict(
    observation=spaces.Box(-1, 1, (3,)), desired_goal=spaces.Box(-1, 1, (2,)), achieved_goal=spaces.Box(-1, 1, (2,))
)


def test_a_desired_goal_has_a_token_of_its_own_before_the_return():
    data = sampled(GOALS, spaces.Discrete(3))
    policy = dtrl.train(data, **TINY)
    assert [(f.name, f.joined) for f in policy.model.fields] == [
        ("observation/desired_goal", False),
        ("return", False),
        ("observation/observation", False),
        ("observation/achieved_goal", True),
        ("action", False),
    ]
    assert policy.model.tokens_per_step == 4
    assert policy.config.goal == "desired_goal"
    assert policy.replay(data) < 1e-5


def test_a_goal_is_chosen_or_left_among_the_rest():
    data = sampled(GOALS, spaces.Discrete(3))
    assert dtrl.train(data, goal="none", **TINY).model.tokens_per_step == 3
    chosen = dtrl.train(data, goal="achieved_goal", **TINY).model.fields[0]
    assert chosen.name == "observation/achieved_goal"
    with pytest.raises(InputError, match=r"goal 'desired' is no part of the observation.*did you mean 'desired_goal'"):
        dtrl.train(data, goal="desired", **TINY)


def test_a_policy_sees_its_part_of_a_richer_observation():
    from dtrl.acting.environments import seen_part

    rich = spaces.Dict(
        image=COMPOSITE["image"], extra=spaces.Discrete(7), inner=spaces.Tuple([spaces.Box(-1, 1, (2,))])
    )
    assert seen_part(rich, rich, None, "data") == ()
    assert seen_part(rich, COMPOSITE["image"], None, "data") == ("image",)
    assert seen_part(rich, spaces.Box(-1, 1, (2,)), None, "data") == ("inner", 0)
    assert seen_part(rich, spaces.Dict(extra=spaces.Discrete(7)), None, "data") == ()
    with pytest.raises(InputError, match="trained on data with Discrete"):
        seen_part(rich, spaces.Discrete(6), None, "data")
    twins = spaces.Dict(left=spaces.Discrete(3), right=spaces.Discrete(3))
    with pytest.raises(InputError, match=r"left, right .*choose one with observation"):
        seen_part(twins, spaces.Discrete(3), None, "data")
    assert seen_part(twins, spaces.Discrete(3), "right", "data") == ("right",)
    with pytest.raises(InputError, match="no part 'rigth'; did you mean 'right'"):
        seen_part(twins, spaces.Discrete(3), "rigth", "data")


class Guarded(gymnasium.Env):
    """Forbids one action a step, in its info or its observation, and fails when it is taken."""

    action_space = spaces.Discrete(3)

    def __init__(self, observed):
        self.observed = observed
        plain = spaces.Box(-1, 1, (2,))
        self.observation_space = spaces.Dict(x=plain, action_mask=spaces.MultiBinary(3)) if observed else plain

    def show(self):
        self.mask = np.ones(3, dtype=np.int8)
        self.mask[self.np_random.integers(3)] = 0
        x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"x": x, "action_mask": self.mask} if self.observed else x, {} if self.observed else {
            "action_mask": self.mask
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 6))
        return self.show()

    def step(self, action):
        assert self.mask[action], "took a forbidden action"
        self.left -= 1
        observation, info = self.show()
        return observation, 1.0, self.left == 0, False, info


@pytest.mark.parametrize("observed", [True, False], ids=["observation", "info"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_rollouts_obey_the_masks_of_the_environment(observed, deterministic):
    """30 episodes of some four steps: unmasked, an action would be forbidden once in three steps."""
    policy = dtrl.train(sampled(Guarded(observed).observation_space, Guarded.action_space), **TINY)
    episodes = [dtrl.acting.Episode(3.0, seed) for seed in range(30)]
    played = dtrl.rollout(policy, lambda: Guarded(observed), episodes, num_envs=7, deterministic=deterministic)
    assert played.num_episodes == 30


class Composite(gymnasium.Env):
    """Shows samples of a Dict with a text, and takes a Tuple."""

    observation_space, action_space = COMPOSITE, PARTS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = 1 if seed is None else 1 + seed % 4
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return self.observation_space.sample(), 0.5, self.left == 0, False, {}


def test_composite_rollouts_are_played_recorded_and_loaded_again(composite):
    _, policy = composite
    episodes = [dtrl.acting.Episode(1.0, seed) for seed in (3, 1, 2, 0, 5)]
    played = dtrl.rollout(policy, Composite, episodes, num_envs=3)
    assert played.episode_lengths.tolist() == [4, 2, 3, 1, 2]
    from dtrl.collect import write_minari

    again = dtrl.load_trajectories(write_minari(played, "tests/composite-v0"), short_episodes="keep")
    assert again.columns.keys() == played.columns.keys()
    for name, column in played.columns.items():
        np.testing.assert_array_equal(column, again.columns[name], err_msg=name)


def test_a_recorder_keeps_every_part_of_what_it_saw(tmp_path):
    with dtrl.Recorder(Composite(), "tests/seen-v0") as env:
        seen, acted = [], []
        for seed in (3, 2):
            env.action_space.seed(seed)
            observation, _ = env.reset(seed=seed)
            seen.append([observation])
            done = False
            while not done:
                acted.append(env.action_space.sample())
                observation, _, done, _, _ = env.step(acted[-1])
                seen[-1].append(observation)
    data = dtrl.load_trajectories("tests/seen-v0")
    assert data.episode_lengths.tolist() == [4, 3]
    for i, observations in enumerate(seen):
        episode = flatten(COMPOSITE, data.episode(i)["observations"])
        for leaf in leaves(COMPOSITE):
            expected = numbers_of(leaf.space, [observation[leaf.path] for observation in observations])
            np.testing.assert_array_equal(episode[leaf.path], expected)
    for step, action in enumerate(acted):
        for part, column in zip(action, data.actions, strict=True):
            np.testing.assert_array_equal(column[step], part)


class Ending(gymnasium.Env):
    """Its resets give no mask, and the mask of its last step allows nothing."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 5))
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(2, np.float32), 1.0, self.left == 0, False, {"action_mask": np.full(3, self.left > 0)}


@pytest.mark.parametrize("mode", list(gymnasium.vector.AutoresetMode))
def test_the_mask_of_an_end_does_not_reach_the_next_episode(mode):
    policy = dtrl.train(sampled(Ending.observation_space, Ending.action_space), **TINY)
    vector = gymnasium.vector.SyncVectorEnv([Ending] * 3, autoreset_mode=mode)
    played = dtrl.rollout(policy, vector, [dtrl.acting.Episode(3.0, seed) for seed in range(8)])
    assert played.num_episodes == 8


def test_texts_have_the_same_ids_after_a_way_through_a_file():
    from dtrl.spaces import space_from_json, space_to_json

    space = spaces.Text(5, charset="zyx")
    again = space_from_json(space_to_json(space))
    assert numbers_of(space, "xyzzy").tolist() == numbers_of(again, "xyzzy").tolist() == [1, 2, 3, 3, 2]


def test_whole_numbers_of_a_box_reach_their_bounds():
    data = sampled(spaces.Box(-1, 1, (2,)), spaces.Box(9, 10, (2,), np.int32), lengths=(9, 9))
    data.columns["actions"][:] = 10
    policy = dtrl.train(data, **{**TINY, "updates": 60})
    assert policy.predict(np.zeros(2, np.float32))[0].tolist() == [10, 10]


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 4)])
def test_a_mask_of_another_shape_is_refused(shape):
    policy = dtrl.train(sampled(spaces.Box(-1, 1, (2,)), spaces.Discrete(4)), **TINY)
    with pytest.raises(InputError, match=r"action_masks has shape .*; give \(2, 4\)"):
        policy.predict(np.zeros((2, 2), np.float32), action_masks=np.ones(shape, dtype=bool))


def test_parts_that_are_single_and_parts_that_are_batches_do_not_mix():
    policy = dtrl.train(
        sampled(spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (2,))), spaces.Discrete(2)), **TINY
    )
    with pytest.raises(InputError, match="single values and some are batches"):
        policy.predict({"a": 1, "b": np.zeros((1, 2), np.float32)})


def test_images_of_another_type_of_whole_numbers_are_bytes_all_the_way(tmp_path):
    wide, narrow = spaces.Box(0, 255, (6, 6, 3), np.int64), spaces.Box(0, 255, (6, 6, 3), np.uint8)
    data = sampled(wide, spaces.Discrete(3))
    assert data.observations.dtype == np.uint8
    policy = dtrl.train(data, **TINY)
    assert policy.model.by_name["observation"].tokenizer.grid == (3, 6, 6)
    image = data.observations[:2]
    np.testing.assert_array_equal(policy.predict(image.astype(np.int64))[0], policy.predict(image)[0])
    for wrong in (-1, 256):
        with pytest.raises(InputError, match="pixels are whole numbers from 0 to 255"):
            policy.predict(np.full((2, 6, 6, 3), wrong))
    assert dtrl.spaces.same_space(wide, narrow)


OF_EVERY_TOKENIZER = spaces.Dict(
    vector=spaces.Box(-1, 1, (3,)),
    id=spaces.Discrete(3),
    bits=spaces.MultiBinary(3),
    choices=spaces.MultiDiscrete([2, 3]),
    text=spaces.Text(3, charset="abc"),
    image=spaces.Box(0, 255, (6, 6, 3), np.uint8),
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("head", ["deterministic", "gaussian", "tanh_gaussian"])
def test_a_whole_model_works_in_another_type(dtype, head):
    """Observed and acted through every tokenizer that a space has by default; bfloat16 keeps eight bits, so an action may be off by some hundredths."""
    from dtrl.tokenizers import Categories, Continuous, Image, OneHot
    from dtrl.windows import Windows

    acted = spaces.Dict({name: OF_EVERY_TOKENIZER[name] for name in ("vector", "id", "bits", "choices")})
    data = sampled(OF_EVERY_TOKENIZER, acted)
    policy = dtrl.train(data, head=head, **TINY)
    assert {type(f.tokenizer) for f in policy.model.fields} == {Continuous, Categories, OneHot, Image}
    observations = data.episode(0)["observations"]
    exact, _ = policy.predict(observations)
    policy.model.to(dtype)
    rounded, _ = policy.predict(observations)
    np.testing.assert_allclose(rounded["vector"], exact["vector"], atol=0.05)
    assert policy.predict(observations, deterministic=False)[0]["vector"].dtype == np.float32
    policy.model.loss(Windows(data, 3, 4).batch(1)).total.backward()
    assert all(p.grad.dtype == dtype for p in policy.model.parameters() if p.grad is not None)
    assert policy.replay(data) < (0.1 if dtype == torch.bfloat16 else 1e-6)
