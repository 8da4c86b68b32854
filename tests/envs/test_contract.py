"""What every environment of envs/ keeps: Gymnasium's contract, and what a dataset, a vector environment and a recipe ask for."""

import ast
import json
import pickle
import re
import warnings
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dtrl
from dtrl.acting.environments import make_environment
from dtrl.spaces import check_space

ENVS = Path(__file__).resolve().parent.parent.parent / "envs"
FILES = sorted(ENVS.glob("*.py"))
VARIANTS = {
    "dtrl/Stitch-v0": [{"start": "A"}],
    "dtrl/DarkRoom-v0": [{"episodes": 3}, {"goal": [0, 8]}],
    "dtrl/DelayedReward-v0": [
        {"env_id": "dtrl/KeyToDoor-v0"},
        {"env_id": "MountainCar-v0", "env_kwargs": {"max_episode_steps": 30}},
    ],
}
"""Arguments besides none at all with which the environments are made here."""
MADE = [(env_id, kwargs) for env_id in dtrl.ENVIRONMENTS for kwargs in ({}, *VARIANTS.get(env_id, []))]
every = pytest.mark.parametrize(("env_id", "kwargs"), MADE, ids=[f"{i}{k or ''}" for i, k in MADE])
every_id = pytest.mark.parametrize("env_id", dtrl.ENVIRONMENTS)
DRAWS_NOTHING = {}
"""Id → why: environments in which all seeds give the same episode, if actions are the same. There is none yet."""


def trace(env, seed, steps=60):
    """What 60 random steps show, through the ends of episodes; only the first episode is seeded."""
    env.action_space.seed(99)
    observation, info = env.reset(seed=seed)
    shown, ended = [(observation, 0.0, False, False, info)], False
    for _ in range(steps):
        if ended:
            observation, info = env.reset()
            shown.append((observation, 0.0, False, False, info))
        shown.append(env.step(env.action_space.sample()))
        ended = shown[-1][2] or shown[-1][3]
    return [json.dumps(step, default=lambda value: np.asarray(value).tolist()) for step in shown]


def test_the_table_lists_every_file_of_envs():
    assert dtrl.ENVIRONMENTS
    files = {f"dtrl.envs.{path.stem}" for path in FILES if path.stem != "__init__"}
    assert files == {entry_point.partition(":")[0] for entry_point in dtrl.ENVIRONMENTS.values()}
    assert set(VARIANTS) | set(DRAWS_NOTHING) <= set(dtrl.ENVIRONMENTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_environment_imports_gymnasium_and_numpy_only(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in imported} <= {"collections", "gymnasium", "numpy", "typing"}


@every_id
def test_the_docstring_is_a_specification(env_id):
    specification = type(gymnasium.make(env_id).unwrapped).__doc__
    headings = " ".join(re.findall(r"^    ([A-Z][^:.]*):", specification, re.MULTILINE)).lower()
    for heading in ("action", "observation", "reward", "start", "end", "tests", "reference", "versions"):
        assert heading in headings, heading


@every
def test_gymnasiums_checker_has_no_complaint(env_id, kwargs):
    # Without the wrappers, of which it would complain; a warning fails the test.
    mode = None if kwargs.get("env_id") == "MountainCar-v0" else "rgb_array"  # MountainCar's picture needs pygame
    check_env(gymnasium.make(env_id, render_mode=mode, **kwargs).unwrapped, skip_render_check=mode is None)


@every
def test_dtrl_can_learn_from_it(env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs)
    check_space(env.observation_space, "observation", env_id)
    check_space(env.action_space, "action", env_id)


@every
def test_a_seed_fixes_the_episode_and_those_after_it(env_id, kwargs):
    assert trace(gymnasium.make(env_id, **kwargs), 3) == trace(gymnasium.make(env_id, **kwargs), 3)


@every
def test_an_episode_does_not_depend_on_what_was_played_before(env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs)
    fresh = trace(env, 3)
    trace(env, 4)
    assert trace(env, 3) == fresh


@every_id
def test_seeds_differ(env_id):
    env = gymnasium.make(env_id)
    # Stitch draws one of two starts: that 20 seeds agree has probability 2e-6, and seeds are fixed.
    assert (len({str(trace(env, seed)) for seed in range(20)}) > 1) == (env_id not in DRAWS_NOTHING)


@every
def test_pickled_in_the_middle_of_an_episode_it_goes_on_as_if_nothing_had_been(env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs).unwrapped
    env.action_space.seed(0)
    env.reset(seed=8)
    env.step(env.action_space.sample())
    copy = pickle.loads(pickle.dumps(env))
    assert copy.spec == env.spec
    assert str(copy.step(0)) == str(env.step(0))
    assert str(copy.reset()) == str(env.reset())


@every
def test_its_spec_makes_the_same_environment_by_way_of_json(env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs)
    text = env.spec.to_json()
    assert EnvSpec.from_json(text).kwargs == kwargs
    shown = trace(env, 2)
    assert trace(EnvSpec.from_json(text).make(), 2) == shown
    assert trace(make_environment(text), 2) == shown  # dtrl's own reading of a dataset's environment


@every
def test_minari_remembers_it(env_id, kwargs):
    import minari
    from minari.data_collector import EpisodeBuffer

    env = gymnasium.make(env_id, **kwargs)
    env.action_space.seed(0)
    buffer = EpisodeBuffer(id=0, seed=1, observations=[env.reset(seed=1)[0]], actions=[])
    while not buffer.terminations or not (buffer.terminations[-1] or buffer.truncations[-1]):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        for column, value in (
            (buffer.observations, observation),
            (buffer.actions, action),
            (buffer.rewards, float(reward)),
            (buffer.terminations, terminated),
            (buffer.truncations, truncated),
        ):
            column.append(value)
    minari.create_dataset_from_buffers(
        "tests/env-v0", [buffer], env=env, eval_env=env, author="t", author_email="t", code_permalink="t", algorithm_name="t",
        description="t",
    )  # fmt: skip
    recovered = minari.load_dataset("tests/env-v0").recover_environment()
    assert recovered.spec.to_json() == env.spec.to_json()
    assert trace(recovered, 5) == trace(env, 5)


def vector_trace(envs, seeds, steps=40):
    """For each row, what these steps show when a row that ended is reset and seeded anew."""
    try:
        observations, _ = envs.reset(seed=seeds)
        shown = [[observations[row]] for row in range(len(seeds))]
        random = np.random.default_rng(7)
        for step in range(steps):
            choices = random.integers(envs.single_action_space.n)
            observations, rewards, terminated, truncated, _ = envs.step(np.full(len(seeds), choices))
            for row in range(len(seeds)):
                shown[row].append([*np.copy(observations[row]), rewards[row], terminated[row], truncated[row]])
            if (done := terminated | truncated).any():
                again = [seed + step if done[row] else None for row, seed in enumerate(seeds)]
                observations, _ = envs.reset(seed=again, options={"reset_mask": done})
                for row in np.flatnonzero(done):
                    shown[row].append([*np.copy(observations[row])])
        return [str(np.array(row, dtype=object).tolist()) for row in shown]
    finally:
        envs.close()


@every
def test_an_episode_does_not_depend_on_the_row_it_is_played_in(env_id, kwargs):
    def rows(*seeds):
        make = partial(gymnasium.make, env_id, **kwargs)
        return vector_trace(SyncVectorEnv([make] * len(seeds), autoreset_mode=AutoresetMode.DISABLED), list(seeds))

    together = rows(5, 6, 7)
    assert [*rows(5), *rows(6), *rows(7)] == together
    assert rows(7, 5, 6) == [together[2], together[0], together[1]]


@every
def test_it_runs_as_gymnasiums_vector_environment(env_id, kwargs):
    envs = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode="sync", **kwargs)
    envs.action_space.seed(0)
    observations, _ = envs.reset(seed=0)
    endings = 0
    for _ in range(200):
        assert observations in envs.observation_space
        observations, _, terminations, truncations, _ = envs.step(envs.action_space.sample())
        endings += int((terminations | truncations).sum())
    assert endings >= 3


@pytest.mark.slow
@every_id
def test_it_runs_in_processes_that_are_spawned(env_id):
    # By the spec: a new process has not imported dtrl, so it knows no ids, and the entry point leads it there.
    def envs(vectorization_mode, **kwargs):
        kwargs["autoreset_mode"] = AutoresetMode.DISABLED
        return gymnasium.make_vec(env_id, 2, vectorization_mode, vector_kwargs=kwargs)

    assert vector_trace(envs("async", context="spawn"), [5, 6]) == vector_trace(envs("sync"), [5, 6])


@every_id
def test_it_draws_a_picture_that_changes_with_the_state(env_id):
    env = gymnasium.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(env.unwrapped.demonstrate())
    assert before.dtype == np.uint8
    assert before.ndim == 3
    assert before.shape[2] == 3
    assert (before != env.render()).any()
    assert env.metadata["render_fps"] > 0


@every_id
def test_without_a_render_mode_there_is_no_picture(env_id):
    env = gymnasium.make(env_id).unwrapped
    env.reset(seed=0)
    assert env.render() is None


@every_id
def test_an_unknown_render_mode_is_refused_by_name(env_id):
    environment = load_env_creator(dtrl.ENVIRONMENTS[env_id])
    # Of the environment inside DelayedReward, Gymnasium complains first.
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=r"'ascii'.*rgb_array"):
        environment(render_mode="ascii")


@every_id
def test_a_recipe_can_ask_it_for_demonstrations(env_id, play):
    env = gymnasium.make(env_id)

    def choose(env):
        action = env.unwrapped.demonstrate()
        assert action in env.action_space
        return action

    returns = [play(env, choose, seed)[1].sum() for seed in range(10)]
    again = [play(env, choose, seed)[1].sum() for seed in range(10)]
    assert returns == again
