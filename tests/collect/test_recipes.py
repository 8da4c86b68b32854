"""Recipes: those that come with dtrl, and what a recipe may say."""

import dataclasses
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import dtrl.collect
from dtrl.cli import main
from dtrl.collect import Algorithm, Behaviour, Recipe, list_recipes, load_recipe, make_dataset
from dtrl.collect.array_policy import HEADS, ArrayPolicy
from dtrl.collect.environments import check_environment
from dtrl.collect.recipes import ALGORITHMS, POLICIES
from dtrl.collect.training import settings
from dtrl.envs.stitch import PLACES
from dtrl.errors import InputError
from dtrl.evaluation.references import REFERENCE_RETURNS
from dtrl.registration import package_of
from dtrl.trajectories import load_trajectories

HERE = Path(__file__).parent
RANDOM = (HERE / "random.toml").read_text(encoding="utf-8")
TRAINED = (HERE / "trained.toml").read_text(encoding="utf-8")


def checked_environment(recipe):
    """Skips what needs a package that is not installed, and says which."""
    for package in (package_of(recipe.env), recipe.algorithm and ALGORITHMS[recipe.algorithm.name].package):
        if package:
            pytest.importorskip(package)
    try:
        check_environment(recipe)
    except InputError as error:
        if isinstance(error.__cause__, (ImportError, gymnasium.error.DependencyNotInstalled)):
            pytest.skip(str(error))
        raise


def test_a_recipe_without_its_package_is_skipped_with_the_reason(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("dtrl/Stitch-v0", entry_point="no_such_package:Env")
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    with pytest.raises(pytest.skip.Exception, match="No module named 'no_such_package'"):
        checked_environment(load_recipe("stitch"))


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid_and_fits_its_environment(name):
    recipe = load_recipe(name)
    checked_environment(recipe)
    text = list_recipes()[name].read_text(encoding="utf-8")
    assert f"dtrl datasets make {name}\n" in text
    assert recipe.algorithm is None or re.search(r"\d+ (s|minutes)\b", text)
    if recipe.algorithm:
        assert set(recipe.algorithm.options) <= set(settings(recipe.algorithm.name, name))
        used = {behaviour.checkpoint for behaviour in recipe.behaviour}
        assert set(recipe.algorithm.checkpoints) <= used


SMALL = {"n_steps": 8, "batch_size": 8, "learning_starts": 8, "buffer_size": 500, "train_freq": 4, "gradient_steps": 1}
STEPS = 6


def shrunk(recipe):
    """The recipe with trainings of a few dozen steps, small networks, and an episode of each behaviour of 6 steps."""
    algorithm, places = recipe.algorithm, {None: None}
    if algorithm:
        envs = min(algorithm.envs, 2)
        places |= {step: 16 * envs * (i + 1) for i, step in enumerate(algorithm.checkpoints)}
        known = settings(algorithm.name, "it")
        network = {"policy_kwargs": {**algorithm.options.get("policy_kwargs", {}), "net_arch": [8]}}
        options = algorithm.options | network | {name: value for name, value in SMALL.items() if name in known}
        algorithm = dataclasses.replace(
            algorithm,
            timesteps=places[algorithm.checkpoints[-1]],
            checkpoints=tuple(places[step] for step in algorithm.checkpoints),
            envs=envs,
            options=options,
        )
    behaviours = [
        dataclasses.replace(b, episodes=b.episodes and 1, steps=b.steps and 1, checkpoint=places[b.checkpoint])
        for b in recipe.behaviour
    ]
    options = recipe.env_options | {"max_episode_steps": STEPS}
    return dataclasses.replace(recipe, algorithm=algorithm, behaviour=tuple(behaviours), env_options=options)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("cartpole-small", "pendulum", "stitch") else pytest.mark.slow)
        for name in list_recipes()
    ],
)
def test_every_recipe_runs_to_its_end_when_it_is_shrunk(name):
    recipe = load_recipe(name)
    checked_environment(recipe)
    trajectories = load_trajectories(make_dataset(shrunk(recipe)))
    played = [b for b in recipe.behaviour if b.policy != "replay"]
    assert trajectories.num_episodes >= len(recipe.behaviour)
    assert trajectories.episode_lengths.max() <= STEPS
    if len(played) < len(recipe.behaviour):  # all of the training but an episode that had not ended
        assert trajectories.num_steps > shrunk(recipe).algorithm.timesteps - STEPS


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_and_the_table_of_references_agree(name):
    recipe = load_recipe(name)
    known = REFERENCE_RETURNS[recipe.env]
    assert recipe.reference is not None
    assert (recipe.reference.random, recipe.reference.expert) == (known.random, known.expert)


@pytest.mark.slow
def test_the_best_way_of_stitch_is_in_no_episode():
    trajectories = load_trajectories(make_dataset(load_recipe("stitch")))
    returns, episodes = trajectories.episode_returns, map(trajectories.episode, range(trajectories.num_episodes))
    ways = [episode["observations"] * np.float32([9, 6]) for episode in episodes]
    ends = [(way[0].round().astype(int).tolist(), way[-1].round().astype(int).tolist()) for way in ways]
    a, d = list(PLACES["A"]), list(PLACES["D"])
    assert (a, d) not in ends
    assert {tuple(begin) for begin, _ in ends} == {PLACES["A"], PLACES["C"]}
    assert max(r for r, (begin, _) in zip(returns, ends, strict=True) if begin == a) == 2
    assert returns.max() == 8  # the best is 11, and test_stitch.py has it from the maze


def test_recipes_have_ids_of_their_own():
    ids = [load_recipe(name).id for name in list_recipes()]
    assert len(ids) >= 18
    assert len(set(ids)) == len(ids)


def test_the_recipe_in_the_documentation_is_valid(recipe_of):
    documentation = dtrl.collect.__doc__
    recipe = recipe_of(textwrap.dedent(documentation[documentation.index("    id = ") :]))
    assert [behaviour.name for behaviour in recipe.behaviour] == ["checkpoint 4000, epsilon 0.1", "random"]


def test_the_documentation_explains_every_key_once(repository):
    text = (repository / "docs" / "recipes.md").read_text(encoding="utf-8")
    tables = re.split(r"\n(?:Of |## )", text[text.index("## Every key") :])[1:4]
    for table, kind in zip(tables, (Recipe, Algorithm, Behaviour), strict=True):
        keys = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
        assert sorted(keys) == sorted(f.name for f in dataclasses.fields(kind) if f.name not in ("source", "text"))
    arrays = [f.name for f in dataclasses.fields(ArrayPolicy) if f.name not in ("weights", "biases")]
    assert all(f"`{name}`" in text for name in arrays)
    for word in (*POLICIES, *ALGORITHMS, *HEADS):
        assert word in text


def test_the_help_leads_to_the_documentation(capsys):
    with pytest.raises(SystemExit):
        main(["datasets", "make", "--help"])
    assert "docs/recipes.md" in " ".join(capsys.readouterr().out.split())


def test_importing_it_loads_no_heavy_package():
    code = "import sys, dtrl.collect; print(*{'torch', 'minari', 'stable_baselines3'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


# Bad input


def edit(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RANDOM + "episode = 3", r"recipe.toml: behaviour 1: there is no field 'episode'; did you mean 'episodes'"),
        ("sead = 3\n" + RANDOM, r"recipe.toml: there is no field 'sead'; did you mean 'seed'"),
        ("source = 'x'\n" + RANDOM, r"there is no field 'source'"),
        (edit(RANDOM, "seed = 7\n", ""), r"recipe.toml: the field 'seed' is missing"),
        (edit(RANDOM, "seed = 7", "seed = -1"), r"seed -1 is negative"),
        (edit(RANDOM, "seed = 7", "seed = 7.5"), r"seed is 7.5; an integer is expected"),
        (edit(RANDOM, "seed = 7", "seed = true"), r"seed is True; an integer is expected"),
        (edit(RANDOM, "[[behaviour]]", "[behaviour]"), r"behaviour is \{.*\}; a list is expected"),
        (edit(RANDOM, "seed = 7", "seed = 7\nalgorithm = 3"), r"algorithm is 3; a table is expected"),
        (RANDOM[: RANDOM.index("[[")] + "behaviour = []", r"behaviour is an empty list"),
        (RANDOM[: RANDOM.index("[[")], r"the field 'behaviour' is missing"),
        (edit(RANDOM, "tests/cartpole-v0", "t/cartpole-v0"), r"id 't/cartpole-v0' is no Minari dataset id"),
        (edit(RANDOM, "tests/cartpole-v0", "tests/cartpole"), r"id 'tests/cartpole' is no Minari dataset id"),
        (edit(RANDOM, "tests/cartpole-v0", "../cartpole-v0"), r"id '../cartpole-v0' is no Minari dataset id"),
        (edit(RANDOM, "episodes = 12", "episodes = 0"), r"episodes 0 must be 1 or more"),
        (
            edit(RANDOM, '"random"', '"rnadom"'),
            r"policy 'rnadom' is unknown; use one of random, checkpoint, replay, file",
        ),
        (RANDOM + "epsilon = 0.1", r"epsilon means nothing to policy random; leave it out, or use checkpoint or"),
        (RANDOM + "deterministic = true", r"deterministic means nothing to policy random"),
        (edit(RANDOM, '"random"', '"checkpoint"'), r"policy 'checkpoint' needs an \[algorithm\] table"),
        (RANDOM + "[reference]\nrandom = 5\nexpert = 5", r"reference.expert 5 must exceed reference.random 5"),
        (edit(TRAINED, "PPO", "PPPO"), r"algorithm.name 'PPPO' is unknown; use one of A2C"),
        (edit(TRAINED, "timesteps = 256", "timesteps = 0"), r"timesteps 0 and envs 2 must both be 1 or more"),
        (
            edit(TRAINED, "timesteps = 256", "timesteps = 200"),
            r"checkpoints \[128, 256\] must be ascending .* timesteps 200",
        ),
        (edit(TRAINED, "[128, 256]", "[256, 128]"), r"checkpoints \[256, 128\] must be ascending"),
        (edit(TRAINED, "[128, 256]", "[128, '256']"), r"checkpoints 2 is '256'; an integer is expected"),
        (
            edit(TRAINED, "checkpoint = 128", "checkpoint = 100"),
            r"behaviour 1: checkpoint 100 is not kept; .* \[128, 256\]",
        ),
        (edit(TRAINED, "epsilon = 0.5", "epsilon = 1.5"), r"epsilon 1.5 is no probability"),
        (edit(TRAINED, "epsilon = 0.5", "noise = inf"), r"noise inf must be 0 or a positive number"),
        ("id = ", r"recipe.toml is not a TOML file: Invalid value"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(recipe_of, text, message):
    with pytest.raises(InputError, match=message):
        recipe_of(text)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"no recipe 'cartpol'; did you mean 'cartpole'"):
        load_recipe("cartpol")
    with pytest.raises(InputError, match=r"nowhere.toml cannot be read .*cartpole"):
        load_recipe("nowhere.toml")
