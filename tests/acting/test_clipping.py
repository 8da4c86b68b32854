"""`clip_return`: what is asked never exceeds what the data had left at that timestep."""

import json

import numpy as np
import pytest

import dtrl
from dtrl.acting import Episode, rollout
from dtrl.acting.summary import DataSummary, ceilings_of
from dtrl.config import DecodingConfig
from dtrl.errors import InputError

CLIPPED = {"decoding": DecodingConfig(clip_return=True)}


def told_along(policy, env, target):
    """The return-to-go at each step of an episode, and its rewards."""
    told, choose = [], policy.choose_actions
    policy.choose_actions = lambda state, *rest: told.append(float(state.returns_to_go[0])) or choose(state, *rest)
    played = rollout(policy, env, [Episode(target, 1)])
    return np.array(told), played.rewards


def test_ceilings_are_the_highest_returns_to_go_at_each_step(random_trajectories):
    data = random_trajectories([9, 5, 7])
    steps = np.concatenate([np.arange(n) for n in (9, 5, 7)])
    expected = [data.returns_to_go[steps == t].max() for t in range(9)]
    assert ceilings_of(data) == (tuple(map(float, expected)), 1)


def test_long_episodes_share_ceilings(random_trajectories):
    data = random_trajectories([2_500, 30])
    ceilings, width = ceilings_of(data)
    assert (len(ceilings), width) == (834, 3)
    assert ceilings[0] == max(data.returns_to_go[[0, 1, 2, 2_500, 2_501, 2_502]])
    assert ceilings[-1] == data.returns_to_go[2_499]


def test_a_target_within_reach_is_told_as_it_is_and_one_beyond_is_lowered_and_goes_on_from_there(
    policy_for, scripted_env
):
    ceilings = np.array(policy_for().data.ceilings)
    low = float(ceilings.min()) - 99
    plain, clipped = (told_along(policy_for(acting=acting), scripted_env, low)[0] for acting in ({}, CLIPPED))
    np.testing.assert_array_equal(plain, clipped)
    told, rewards = told_along(policy_for(acting=CLIPPED), scripted_env, 1e6)
    expected = [ceilings[0]]
    for step, reward in enumerate(rewards[:-1], start=1):
        expected.append(min(expected[-1] - reward, ceilings[step]))
    np.testing.assert_allclose(told, expected, rtol=1e-6)


@pytest.mark.slow
def test_an_exported_policy_clips_alike(policy_for, scripted_env):
    from dtrl.acting import ExportedPolicy

    policy = policy_for(acting={**CLIPPED, "context": "block"})
    exported = ExportedPolicy.of(policy, "numpy")
    (ours, _), (theirs, _) = (told_along(p, scripted_env, 1e6) for p in (policy, exported))
    np.testing.assert_array_equal(ours, theirs)


def test_the_ceilings_are_saved_and_a_policy_without_them_cannot_clip(policy_for, tmp_path):
    policy = policy_for()
    policy.save(tmp_path / "policy.safetensors")
    loaded = dtrl.load_policy(tmp_path / "policy.safetensors", decoding=DecodingConfig(clip_return=True))
    assert loaded.data == policy.data
    stored = json.loads(json.dumps(policy.document()["data"]))
    del stored["ceilings"], stored["ceiling_steps"]
    old = DataSummary.from_json(stored)
    assert old.ceilings == ()
    policy.data = old
    with pytest.raises(InputError, match="this policy was saved without them"):
        policy.variant(decoding=DecodingConfig(clip_return=True))


def test_where_no_return_is_told_there_is_none_to_clip(policy_for):
    with pytest.raises(InputError, match="preset bc is told none"):
        policy_for(preset="bc", acting=CLIPPED)
    with pytest.raises(InputError, match="clip_return changes the return that guidance and contrast compare"):
        DecodingConfig(clip_return=True, guidance=2.0)
