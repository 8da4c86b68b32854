"""Masks of actions: found in the info or in the observation, whatever part of it the policy sees, and obeyed."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dtrl
from dtrl.acting import Episode
from dtrl.acting.masks import MaskReader, joined_info, mask_part
from dtrl.errors import InputError
from dtrl.evaluation.video import record

FLAT = spaces.Dict(image=spaces.Box(0, 9, (2,)), action_mask=spaces.MultiBinary(3))
DEEP = spaces.Dict(seen=FLAT, action_mask=spaces.MultiBinary(3), clock=spaces.Discrete(9))


@pytest.mark.parametrize(
    ("space", "seen", "expected"),
    [
        (FLAT, (), ("action_mask",)),
        (FLAT, ("image",), ("action_mask",)),
        (DEEP, ("seen", "image"), ("seen", "action_mask")),
        (DEEP, ("seen",), ("seen", "action_mask")),
        (DEEP, ("clock",), ("action_mask",)),
        (spaces.Tuple([FLAT, spaces.Discrete(2)]), (0, "image"), (0, "action_mask")),
        (spaces.Dict(image=spaces.Discrete(2)), ("image",), None),
        (spaces.Discrete(2), (), None),
    ],
)
def test_the_nearest_mask_is_found(space, seen, expected):
    assert mask_part(space, seen) == expected


def test_the_mask_of_the_info_comes_before_that_of_the_observation():
    reader = MaskReader(FLAT, ("image",), 3)
    observations = {"image": np.zeros((2, 2)), "action_mask": np.array([[1, 0, 0], [0, 1, 1]], np.int8)}
    assert reader.read(observations, {}, 2).tolist() == [[True, False, False], [False, True, True]]
    info = {"action_mask": np.array([[0, 0, 1], [0, 0, 0]]), "_action_mask": np.array([True, False])}
    assert reader.read(observations, info, 2).tolist() == [[False, False, True], [True, True, True]]
    assert reader.read_one({"action_mask": [0, 1, 0]}, {}).tolist() == [[False, True, False]]
    assert reader.read_one({"action_mask": [0, 1, 0]}, {"action_mask": [1, 1, 0]}).tolist() == [[True, True, False]]
    assert MaskReader(spaces.Discrete(2), (), 3).read(np.zeros(2), {}, 2) is None


def test_masks_of_several_choices_may_be_a_tuple():
    reader = MaskReader(spaces.Dict(action_mask=spaces.Tuple([spaces.MultiBinary(2), spaces.MultiBinary(3)])), (), 5)
    parts = (np.array([[1, 0], [0, 1]]), np.array([[1, 1, 0], [0, 0, 1]]))
    expected = [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    assert reader.read({"action_mask": parts}, {}, 2).tolist() == np.array(expected, bool).tolist()
    info = {"action_mask": np.empty(2, object)}
    info["action_mask"][:] = list(zip(*parts, strict=True))
    assert reader.read({}, info, 2).tolist() == np.array(expected, bool).tolist()


def test_a_mask_of_another_size_names_its_environment_and_both_sizes():
    masks = np.empty(2, object)
    masks[:] = [np.ones(3), np.ones(5)]
    with pytest.raises(InputError, match="mask of environment 1 has 5 entries, and its action has 3"):
        MaskReader(FLAT, (), 3).read({}, {"action_mask": masks}, 2)
    with pytest.raises(InputError, match="mask of environment 0 has 3 entries, and its action has 4"):
        MaskReader(FLAT, ("image",), 4).read({"action_mask": np.ones((2, 3))}, {}, 2)


def test_masks_for_an_action_that_has_none_are_refused_in_the_info_and_left_alone_in_the_observation():
    reader = MaskReader(FLAT, ("image",), None)
    assert reader.read({"action_mask": np.ones((2, 3))}, {}, 2) is None
    with pytest.raises(InputError, match="for one Discrete, MultiDiscrete or MultiBinary action"):
        reader.read({}, {"action_mask": np.ones((2, 3))}, 2)


def test_after_a_reset_of_some_rows_their_masks_are_those_of_the_reset():
    before = {"action_mask": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])}
    begun = {"action_mask": np.array([[0, 0, 0], [1, 1, 0], [0, 0, 0]]), "_action_mask": np.array([False, True, False])}
    info = joined_info(before, begun, np.array([False, True, True]))
    masks = MaskReader(spaces.Discrete(3), (), 3).read(None, info, 3)
    assert masks.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert joined_info({}, {}, np.array([True, False])) == {}


class Guarded(gymnasium.Env):
    """Two of five actions are allowed at any time; the mask is a part of the observation. Another action ends the test."""

    observation_space = spaces.Dict(image=spaces.Box(0, 255, (5, 5, 3), np.uint8), action_mask=spaces.MultiBinary(5))
    action_space = spaces.Discrete(5)
    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def look(self):
        self.mask = np.zeros(5, np.int8)
        self.mask[self.np_random.choice(5, 2, replace=False)] = 1
        return {"image": self.np_random.integers(0, 256, (5, 5, 3), dtype=np.uint8), "action_mask": self.mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 7))
        return self.look(), {}

    def step(self, action):
        assert self.mask[action], "this action was not allowed"
        self.left -= 1
        return self.look(), 1.0, self.left == 0, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def policy_of_the_image(random_trajectories, untrained_policy):
    image = Guarded.observation_space["image"]
    data = random_trajectories((6, 4), spaces.Box(-1, 1, (1,)), Guarded.action_space)
    columns = {
        **data.columns,
        "observations": np.zeros((10, 5, 5, 3), np.uint8),
        "final_observations": np.zeros((2, 5, 5, 3), np.uint8),
    }
    data = dtrl.Trajectories(columns, data.episode_starts, image, Guarded.action_space)
    return untrained_policy(data)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("part", [None, "image"])
def test_the_mask_beside_the_part_that_the_policy_sees_is_obeyed(policy_of_the_image, mode, part):
    vector = SyncVectorEnv([Guarded] * 3, autoreset_mode=mode)
    played = dtrl.rollout(
        policy_of_the_image, vector, [Episode(5.0, seed) for seed in range(8)], deterministic=False, observation=part
    )
    assert played.num_episodes == 8
    assert len(np.unique(played.actions)) > 2


def test_a_video_obeys_it_too(policy_of_the_image):
    frames, _ = record(policy_of_the_image, 5.0, env=Guarded)
    assert len(frames) > 3


def test_a_mask_of_a_wrong_size_beside_the_image_is_refused(policy_of_the_image):
    class Wrong(Guarded):
        observation_space = spaces.Dict(
            image=Guarded.observation_space["image"], action_mask=spaces.Box(0, 1, (4,), np.int8)
        )

        def look(self):
            return {"image": super().look()["image"], "action_mask": np.ones(4, np.int8)}

    with pytest.raises(InputError, match="mask of environment 0 has 4 entries, and its action has 5"):
        dtrl.rollout(policy_of_the_image, Wrong, [Episode(5.0, 0)])
