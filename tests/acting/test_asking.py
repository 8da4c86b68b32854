"""Policies that ask a return of themselves: what they predict is what they are then given."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical

from dtrl.acting import ExportedPolicy, Policy
from dtrl.acting.asking import tilted
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.tokenizers import numbers_of

VECTOR = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "numbers": spaces.Box(-1, 1, (2,)),
    "one": spaces.Discrete(4, start=1),
    "both": spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.MultiDiscrete([2, 3])}),
}
GOALS = spaces.Dict({"desired_goal": spaces.Box(-1, 1, (2,)), "observation": VECTOR})
LENGTHS = (9, 2, 12, 7)


def returns_of(model):
    """The return that each id stands for."""
    tokenizer = model.by_name["return"].tokenizer
    return numbers_of(tokenizer, torch.zeros(tokenizer.vocab_size))


@pytest.fixture
def data(random_trajectories):
    return random_trajectories(LENGTHS, VECTOR, ACTIONS["numbers"])


def composite(random_trajectories, observation_space, action_space):
    """Random trajectories of spaces with parts."""
    plain = random_trajectories(LENGTHS, VECTOR, ACTIONS["numbers"])
    random = np.random.default_rng(1)

    def values(space, count):
        if isinstance(space, spaces.Dict):
            return {key: values(part, count) for key, part in space.items()}
        if isinstance(space, spaces.Box):
            return random.uniform(-1, 1, (count, *space.shape)).astype(np.float32)
        if isinstance(space, spaces.Discrete):
            return random.integers(space.start, space.start + space.n, count)
        return random.integers(0, space.nvec, (count, *space.shape))

    episodes = [
        {
            **{name: plain.episode(i)[name] for name in ("rewards", "terminations", "truncations")},
            "observations": values(observation_space, n + 1),
            "actions": values(action_space, n),
        }
        for i, n in enumerate(LENGTHS)
    ]
    return type(plain).from_episodes(episodes, observation_space, action_space)


@pytest.mark.parametrize(
    ("preset", "attention", "kind"),
    [
        pytest.param(preset, attention, kind, marks=() if i == j else pytest.mark.slow)
        for preset, (i, attention), (j, kind) in itertools.product(
            ["odt", "mgdt"], enumerate(["window", "banded", "full"]), enumerate(ACTIONS)
        )
    ],
)
def test_acting_is_teacher_forcing(random_trajectories, untrained_policy, preset, attention, kind):
    episodes = composite(random_trajectories, GOALS, ACTIONS[kind])
    for action_context in (True, False):
        policy = untrained_policy(episodes, preset=preset, attention=attention, action_context=action_context)
        for context in ("window", "block") if attention == "window" else (attention,):
            assert policy.variant(context=context).replay(episodes) <= 1e-4


@pytest.mark.parametrize("trajectory", [{"discount": 0.9}, {"delayed": True}], ids=["discounted", "delayed"])
def test_acting_is_teacher_forcing_for_other_returns_too(data, untrained_policy, trajectory):
    episodes = dataclasses.replace(data, **trajectory)
    assert untrained_policy(episodes, preset="mgdt").replay(episodes) <= 1e-4


def test_replay_would_notice_another_return(data, untrained_policy, monkeypatch):
    policy = untrained_policy(data, preset="mgdt")
    encode = type(policy).tokens_of
    monkeypatch.setattr(type(policy), "tokens_of", lambda self, actions, returns: encode(self, actions, returns + 3))
    assert policy.replay(data) > 1e-3


def test_an_action_depends_on_the_return_that_the_model_predicts(data, untrained_policy):
    policy = untrained_policy(data, preset="mgdt")
    observation = data.observations[:1]
    before, _ = policy.predict(observation)
    with torch.no_grad():
        policy.model.head_of["return"].bias.view(-1)[-1] += 50  # the return is now another one
    assert np.abs(policy.predict(observation)[0] - before).max() > 1e-3


def test_the_asked_return_is_the_one_that_is_fed(data, untrained_policy, monkeypatch):
    policy = untrained_policy(data, preset="mgdt")
    fed = []
    embed = policy.model.embed_ids
    monkeypatch.setattr(
        policy.model, "embed_ids", lambda name, ids, *rest: (fed.append((name, ids)), embed(name, ids, *rest))[1]
    )
    state = None
    for step in range(7):  # past the window of 4 steps
        _, state = policy.predict(data.observations[step : step + 1], state)
    assert [name for name, _ in fed] == ["return"] * 7
    state = policy.initial_state(1)
    policy.advance(state, np.ones(1, bool))
    distribution = policy.distributions(state, {"": data.observations[:1]}, np.ones(1, bool))["return"]
    assert torch.equal(fed[0][1], tilted(distribution, returns_of(policy.model), 10.0).mode)


def test_nobody_asks_such_a_policy_for_a_return(data, untrained_policy):
    policy = untrained_policy(data, preset="mgdt")
    actions = [policy.predict(data.observations[:1], policy.initial_state(1, target))[0] for target in (-100.0, 100.0)]
    np.testing.assert_array_equal(*actions)


# The tilt


def test_a_tilted_distribution_is_bayes_rule():
    logits = torch.randn(5, 1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    returns, tilt = torch.tensor([-3.0, 0, 1, 2, 5, 6, 7], dtype=torch.float64), 4.0
    expert = torch.exp(tilt * (returns + 3) / 10)
    expected = logits.softmax(-1) * expert
    expected = expected / expected.sum(-1, keepdim=True)
    found = tilted(Categorical(logits=logits.log_softmax(-1)), returns, tilt)
    torch.testing.assert_close(found.probs, expected)


def test_returns_that_are_all_alike_are_not_tilted():
    even = Categorical(logits=torch.zeros(1, 1, 3).log_softmax(-1))
    torch.testing.assert_close(tilted(even, torch.full((3,), 2.0), 10.0).probs, torch.full((1, 1, 3), 1 / 3))


def test_the_ids_of_a_return_stand_for_the_range_of_the_data(data, untrained_policy):
    policy = untrained_policy(data, preset="mgdt", return_bins=9)
    returns = returns_of(policy.model)
    assert len(returns) == 9
    np.testing.assert_allclose(returns[[0, -1]], [data.returns_to_go.min(), data.returns_to_go.max()], rtol=1e-6)


def test_more_tilt_asks_for_more(data, untrained_policy, monkeypatch):
    asked = []
    for tilt in (0.0, 10.0, 1_000.0):
        policy = untrained_policy(data, preset="mgdt", acting={"decoding": DecodingConfig(return_tilt=tilt)})
        fed = []
        monkeypatch.setattr(
            policy.model, "embed_ids", lambda name, ids, *_, fed=fed: (fed.append(ids), torch.zeros(len(ids), 1, 16))[1]
        )
        policy.predict(data.observations[:8])
        asked.append(returns_of(policy.model)[fed[0]].mean().item())
    assert asked[0] < asked[1] < asked[2]
    assert asked[2] == pytest.approx(data.returns_to_go.max(), rel=1e-6)


def test_sampling_draws_the_return_by_each_rows_own_generator(data, untrained_policy):
    policy = untrained_policy(
        data, preset="mgdt", acting={"decoding": DecodingConfig(strategy="sample", return_tilt=0.0)}
    )

    def actions(rows):
        state = policy.initial_state(rows, generators=[np.random.default_rng([7, i]) for i in range(rows)])
        return policy.predict(data.observations[:rows], state, deterministic=False)[0]

    np.testing.assert_array_equal(actions(3), actions(3))
    np.testing.assert_allclose(actions(1)[0], actions(3)[0], atol=1e-5)
    many = policy.predict(np.repeat(data.observations[:1], 64, axis=0), deterministic=False)[0]
    # the rows' generators are always the same, so that this is not left to chance
    assert len(np.unique(many.round(4), axis=0)) > 1


# What goes with it, and what does not


def test_such_a_policy_is_saved_and_loaded_whole(data, untrained_policy, tmp_path):
    policy = untrained_policy(data, preset="mgdt")
    policy.save(tmp_path / "policy")
    again = Policy.load(tmp_path / "policy")
    np.testing.assert_array_equal(policy.predict(data.observations[:5])[0], again.predict(data.observations[:5])[0])


def test_masks_are_about_the_action_and_not_about_the_return(random_trajectories, untrained_policy):
    episodes = random_trajectories(LENGTHS, VECTOR, spaces.Discrete(4))
    policy = untrained_policy(episodes, preset="mgdt")
    for only in range(4):
        mask = np.arange(4)[None] == only
        assert policy.predict(episodes.observations[:1], action_masks=mask)[0] == only


def test_a_cut_to_one_id_leaves_the_best_return_and_the_best_action(random_trajectories, untrained_policy):
    episodes = random_trajectories(LENGTHS, VECTOR, spaces.Discrete(4))
    greedy = untrained_policy(episodes, preset="mgdt")
    cut = greedy.variant(decoding=DecodingConfig(strategy="sample", top_k=1))
    seen = episodes.observations[:20]
    np.testing.assert_array_equal(cut.predict(seen, deterministic=False)[0], greedy.predict(seen)[0])


@pytest.mark.parametrize("decoding", [{"strategy": "beam"}, {"repetition_penalty": 2.0}])
def test_a_search_over_the_actions_tokens_is_refused(random_trajectories, untrained_policy, decoding):
    episodes = random_trajectories(LENGTHS, VECTOR, spaces.Discrete(4))
    with pytest.raises(InputError, match="preset mgdt chooses a return first; use greedy or sample"):
        untrained_policy(episodes, preset="mgdt", acting={"decoding": DecodingConfig(**decoding)})


def test_guidance_is_refused_where_nobody_asks_for_a_return(data, untrained_policy):
    with pytest.raises(InputError, match="preset mgdt is told none"):
        untrained_policy(data, preset="mgdt", acting={"decoding": DecodingConfig(guidance=2.0)})


@pytest.mark.parametrize("preset", ["dt", "odt"])
def test_a_tilt_is_refused_where_no_return_is_drawn(data, untrained_policy, preset):
    with pytest.raises(InputError, match=f"return_tilt goes with policies of preset mgdt, .* and {preset} draws none"):
        untrained_policy(data, preset=preset, acting={"decoding": DecodingConfig(return_tilt=2.0)})


def test_engines_refuse_what_takes_two_passes_a_step(data, untrained_policy):
    with pytest.raises(InputError, match="of preset mgdt, does not; use engine eager"):
        ExportedPolicy.of(untrained_policy(data, preset="mgdt"), "numpy")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["window", "banded", "full"])
def test_engines_act_without_actions_in_context(data, untrained_policy, attention):
    policy = untrained_policy(data, preset="odt", action_context=False, attention=attention)
    if attention == "window":
        policy = policy.variant(context="block", context_length=4)
    exported = ExportedPolicy.of(policy, "numpy")
    states = [None, None]
    for step in range(9):
        seen = data.observations[[step, step + 9]]
        starts = np.array([False, step == 3])
        (one, states[0]), (other, states[1]) = (
            p.predict(seen, s, episode_start=starts) for p, s in zip((policy, exported), states, strict=True)
        )
        np.testing.assert_allclose(one, other, atol=1e-4)
