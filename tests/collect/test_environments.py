"""The environment of a recipe: what is asked of it and of its demonstrator, and that one of the user's own serves."""

import copy
import json

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.collect import make_dataset
from dtrl.errors import InputError
from dtrl.trajectories import load_trajectories

RECIPE = """
id = "tests/demonstrated-v0"
env = "%s"
seed = 3
description = "For tests."
[[behaviour]]
policy = "demonstrator"
episodes = 4
"""
DEMONSTRATORS = {
    "dtrl/Corridor-v0": ["reset_options = { asked_return = -3 }"],
    "dtrl/DarkRoom-v0": ["reset_options = { goal = [0, 8] }", "options = { explore = true }"],
    "dtrl/DelayedReward-v0": ["reset_options = { asked_return = 5 }"],
    "dtrl/KeyToDoor-v0": [],
    "dtrl/Stitch-v0": ["reset_options = { start = 'A' }", "options = { best = true }\nreset_options = { start = 'A' }"],
}
"""Environments of dtrl, and keys of behaviours that use all they have for a demonstrator."""


def recorded(recipe):
    dataset = minari.load_dataset(make_dataset(recipe))
    return list(dataset), list(dataset.storage.get_episode_metadata(range(dataset.total_episodes))), dataset


class Composite(gymnasium.Env):
    """Parts of all kinds; an observation shows what the last action was, and 13 as the number of a step brings bad luck."""

    observation_space = spaces.Dict(
        {
            "seen": spaces.Tuple([spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(5, start=1)]),
            "said": spaces.Text(4),
            "bits": spaces.MultiBinary(3),
        }
    )
    action_space = spaces.Tuple(
        [spaces.MultiDiscrete([2, 3]), spaces.Dict({"push": spaces.Box(-1, 1, (2,), np.float32)})]
    )
    bad_luck = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.length = 0, int(self.np_random.integers(3, 9))
        self.place = self.np_random.normal(size=2).clip(-1, 1).astype(np.float32)
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        self.place += action[1]["push"] * int(action[0][1])  # in place, as careless environments do
        reward = np.nan if self.bad_luck and self.steps == 3 else float(action[0][0])
        return self.observe(), reward, self.steps == self.length, False, {}

    def observe(self):
        return {
            "seen": (self.place, 1 + self.steps % 5),
            "said": "go"[: self.steps],
            "bits": np.eye(3, dtype=np.int8)[self.steps % 3],
        }

    def demonstrate(self):
        return ([1, 1], {"push": np.float32([1, 0])})


@pytest.fixture
def composite(monkeypatch):
    monkeypatch.setitem(
        gymnasium.registry, "Composite-v0", gymnasium.envs.registration.EnvSpec("Composite-v0", Composite)
    )


@pytest.mark.filterwarnings("ignore:the dataset .* does not name its environment")
@pytest.mark.parametrize("policy", ["random", "demonstrator"])
def test_environments_of_composite_spaces_are_recorded_whole(recipe_of, composite, policy):
    recipe = recipe_of((RECIPE % "Composite-v0").replace("demonstrator", policy))
    episodes, stored, _ = recorded(recipe)
    assert len({len(episode.rewards) for episode in episodes}) > 1
    for episode, its in zip(episodes, stored, strict=True):
        env = Composite()
        seen = [env.reset(seed=int(its["seed"]))[0]]
        for step in range(len(episode.rewards)):
            seen.append(
                copy.deepcopy(env.step((episode.actions[0][step], {"push": episode.actions[1]["push"][step]}))[0])
            )
        for step, each in enumerate(seen[1:], 1):
            np.testing.assert_array_equal(episode.observations["seen"][0][step], each["seen"][0])
            assert episode.observations["seen"][1][step] == each["seen"][1]
            assert episode.observations["said"][step] == each["said"]
            np.testing.assert_array_equal(episode.observations["bits"][step], each["bits"])
    loaded = load_trajectories(recipe.id, short_episodes="keep")
    assert loaded.observation_space == Composite.observation_space
    assert loaded.num_steps == sum(len(episode.rewards) for episode in episodes)


def test_what_is_not_finite_is_named_when_it_is_played(recipe_of, composite, monkeypatch):
    monkeypatch.setattr(Composite, "bad_luck", True)
    with pytest.raises(
        InputError,
        match=r"rewards of episode 0 of demonstrator \(seed \d+\) hold NaN or infinity at step 2; Composite-v0",
    ):
        make_dataset(recipe_of(RECIPE % "Composite-v0"))


@pytest.mark.parametrize(
    "behaviour", ["path = 'x.npz'", "[algorithm]\nname = 'PPO'\ntimesteps = 64\ncheckpoints = [64]"]
)
def test_policies_that_cannot_read_composite_observations_are_refused(recipe_of, composite, behaviour):
    text = (RECIPE % "Composite-v0").replace("demonstrator", "file" if "path" in behaviour else "random")
    with pytest.raises(
        InputError,
        match=r"trained policies and those of files do not read; choose a part of a Dict with observation_key",
    ):
        make_dataset(recipe_of(text + behaviour))


def test_an_environment_whose_rewards_are_delayed_has_the_returns_of_the_one_inside(recipe_of):
    text = (RECIPE % "CartPole-v1").replace("demonstrator", "random")
    plain, _, _ = recorded(recipe_of(text))
    text = text.replace("CartPole-v1", "dtrl/DelayedReward-v0").replace("demonstrated", "delayed")
    delayed, _, dataset = recorded(recipe_of("env_options = { env_id = 'CartPole-v1' }\n" + text))
    assert [episode.rewards[-1] for episode in delayed] == [episode.rewards.sum() for episode in plain]
    assert all((episode.rewards[:-1] == 0).all() for episode in delayed)
    assert dataset.env_spec.kwargs == {"env_id": "CartPole-v1"}


def test_every_environment_of_dtrl_is_tried():
    assert DEMONSTRATORS.keys() == dtrl.ENVIRONMENTS.keys()


@pytest.mark.parametrize(("env_id", "keys"), [(e, k) for e, more in DEMONSTRATORS.items() for k in ("", *more)])
def test_the_demonstrations_of_a_recipe_can_be_played_again(recipe_of, env_id, keys):
    episodes, stored, dataset = recorded(recipe_of(RECIPE % env_id + keys))
    env = dataset.recover_environment()
    assert len(episodes) == 4
    for episode, its in zip(episodes, stored, strict=True):
        observations = [env.reset(seed=int(its["seed"]), options=json.loads(its["reset_options"]))[0]]
        observations += [env.step(action)[0] for action in episode.actions]
        np.testing.assert_array_equal(observations, episode.observations)


@pytest.mark.parametrize(
    ("env_id", "keys", "achieved"),
    [
        ("dtrl/Corridor-v0", "reset_options = { asked_return = -3 }", [-3] * 4),
        ("dtrl/DarkRoom-v0", "reset_options = { goal = [0, 8] }", [13] * 4),
        ("dtrl/DarkRoom-v0", "reset_options = { goal = [0, 8] }\noptions = { explore = true }", [0] * 4),
        ("dtrl/Stitch-v0", "reset_options = { start = 'A' }", [2] * 4),
        ("dtrl/Stitch-v0", "reset_options = { start = 'A' }\noptions = { best = true }", [11] * 4),
        ("dtrl/DelayedReward-v0", "reset_options = { asked_return = 5 }", [5] * 4),
    ],
)
def test_options_choose_what_is_demonstrated_and_where_it_begins(recipe_of, env_id, keys, achieved):
    episodes, _, _ = recorded(recipe_of(RECIPE % env_id + keys))
    assert [episode.rewards.sum() for episode in episodes] == achieved


def test_the_metadata_name_the_options(recipe_of):
    keys = "options = { best = true }\nreset_options = { start = 'C' }\nepsilon = 0.1"
    _, stored, dataset = recorded(recipe_of(RECIPE % "dtrl/Stitch-v0" + keys))
    assert {its["behaviour"] for its in stored} == {"demonstrator best=True, epsilon 0.1, start=C"}
    assert {its["policy"] for its in stored} == {"demonstrator best=True"}
    assert dataset.storage.metadata["recipe"]["behaviour"][0]["reset_options"] == {"start": "C"}


class Slope(gymnasium.Env):
    """An environment of a user, with a demonstrator that has to be told how fast, and takes a list of its own."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.place = float((options or {}).pop("place", 0))  # a copy, or the next episode would begin elsewhere
        return np.float32([self.place]), {}

    def step(self, action):
        self.steps += 1
        self.place += float(action[0])
        return np.float32([self.place]), self.place, self.steps == 3, False, {}

    def demonstrate(self, speed: float, *, note: str = ""):
        return [speed]


@pytest.fixture
def slope(monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Slope-v0", gymnasium.envs.registration.EnvSpec("Slope-v0", Slope))


def test_the_demonstrator_of_another_environment_serves_too(recipe_of, slope):
    behaviour = "options = { speed = 1 }\nreset_options = { place = 4 }"
    with pytest.warns(
        UserWarning,
        match="tests/demonstrated-v0 does not name its environment, as Slope-v0 is registered with an object",
    ):
        episodes, _, dataset = recorded(recipe_of(RECIPE % "Slope-v0" + behaviour))
    assert dataset.env_spec is None
    assert [episode.observations[:, 0].tolist() for episode in episodes] == [[4, 5, 6, 7]] * 4


@pytest.mark.parametrize(
    ("env_id", "keys", "message"),
    [
        ("dtrl/Stitch-v0", "options = { bst = true }", r"behaviour 1: dtrl/Stitch-v0's demonstrate\(\) has no option 'bst'; did you mean 'best'"),
        ("dtrl/DarkRoom-v0", "options = { goal = 1 }", r"has no option 'goal'; known: explore"),
        ("dtrl/KeyToDoor-v0", "options = { best = true }", r"dtrl/KeyToDoor-v0's demonstrate\(\) has no option 'best'; none is known"),
        ("dtrl/Stitch-v0", "options = { best = 'yes' }", r"option 'best' is 'yes'; true or false is expected"),
        ("dtrl/Stitch-v0", "reset_options = { start = 'B' }", r"cannot be reset with reset_options \{'start': 'B'\} \(start 'B' is not in the maze"),
        ("dtrl/Stitch-v0", "reset_options = 3", r"behaviour 1: reset_options is 3; a table is expected"),
        ("dtrl/Stitch-v0", "reset_options = { day = 2026-01-01 }", r"reset_options hold a date or a time; write it as a text"),
        ("Slope-v0", "", r"Slope-v0's demonstrate\(\) needs the option 'speed'; write options = \{ speed = … \}"),
        ("Slope-v0", "options = { speed = 'slow' }", r"option 'speed' is 'slow'; a number is expected"),
        ("CartPole-v1", "", r"CartPole-v1 has no demonstrate\(\) method; use policy random"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_and_leave_nothing(recipe_of, minari_folder, slope, env_id, keys, message):
    with pytest.raises(InputError, match=message):
        make_dataset(recipe_of(RECIPE % env_id + keys))
    assert not minari_folder.exists() or list(minari_folder.iterdir()) == []


@pytest.mark.parametrize(("policy", "key"), [("random", "options"), ("replay", "reset_options")])
def test_options_mean_nothing_to_some_policies(recipe_of, policy, key):
    text = (RECIPE % "dtrl/Stitch-v0").replace("demonstrator", policy).replace("episodes = 4", "")
    with pytest.raises(
        InputError, match=f"{key} means nothing to policy {policy}; leave it out, or use .*demonstrator"
    ):
        recipe_of(text + key + " = { best = true }")
