"""Recipes: those that come with dtrl, and what a recipe may say."""

import subprocess
import sys
import textwrap
from pathlib import Path

import gymnasium
import pytest

import dtrl.collect
from dtrl.collect import list_recipes, load_recipe
from dtrl.collect.environments import check_environment
from dtrl.errors import InputError
from dtrl.evaluation.references import REFERENCE_RETURNS

HERE = Path(__file__).parent
RANDOM = (HERE / "random.toml").read_text(encoding="utf-8")
TRAINED = (HERE / "trained.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid_and_fits_its_environment(name):
    recipe = load_recipe(name)
    gymnasium.spec(recipe.env)
    check_environment(recipe)
    assert f"dtrl datasets make {name}\n" in list_recipes()[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_and_the_table_of_references_agree(name):
    recipe = load_recipe(name)
    known = REFERENCE_RETURNS.get(recipe.env)
    assert recipe.reference is not None
    if known:
        assert (recipe.reference.random, recipe.reference.expert) == (known.random, known.expert)


def test_recipes_have_ids_of_their_own():
    ids = [load_recipe(name).id for name in list_recipes()]
    assert len(ids) >= 5
    assert len(set(ids)) == len(ids)


def test_the_recipe_in_the_documentation_is_valid(recipe_of):
    documentation = dtrl.collect.__doc__
    recipe = recipe_of(textwrap.dedent(documentation[documentation.index("    id = ") :]))
    assert [behaviour.name for behaviour in recipe.behaviour] == ["checkpoint 4000, epsilon 0.1", "random"]


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
