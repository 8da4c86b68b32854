"""A dataset from a recipe: train, play, write."""

from collections.abc import Sequence
from pathlib import Path

from dtrl.collect.array_policy import ArrayPolicy, load_array_policy
from dtrl.collect.behaviour import check_policy, load_file
from dtrl.collect.environments import check_environment, make_environment
from dtrl.collect.episodes import to_bytes
from dtrl.collect.job import job_folder
from dtrl.collect.playing import play_missing
from dtrl.collect.provenance import fingerprint
from dtrl.collect.recipes import Algorithm, Recipe, check_recipe
from dtrl.collect.recording import check_target, write_recipe, write_whole
from dtrl.files import write_atomically
from dtrl.pool import check_jobs
from dtrl.registration import import_modules


def make_dataset(
    recipe: Recipe,
    *,
    dataset_id: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    jobs: int | None = None,
    modules: Sequence[str] = (),
    ray: str | None = None,
) -> str:
    """Train the recipe's algorithm, play its behaviours, write the Minari dataset and return its id.

    The dataset lies in Minari's folder (MINARI_DATASETS_PATH). A run that fails or is interrupted leaves no dataset there, and with
    `overwrite` one that exists is replaced only when the new one is complete; what was finished is kept aside, and the next run of
    the same recipe goes on from there: with the episodes that are missing, or, if it was not over, with the training from its start.
    `jobs` processes play (None: this one), with the same result whatever their number; a script that asks for several does so under
    `if __name__ == "__main__"`. With `ray`, the address of a Ray cluster (HOST:PORT, or auto), so many of its tasks play (None: one for each of its
    processors), and this process trains and writes. `modules` are imported first, here and in these processes: those that register an environment of
    your own. `progress` shows bars on a terminal. As Stable-Baselines3 does, this seeds the global generators of
    torch, numpy and random.

    InputError if the dataset exists or is being made, or if environment, algorithm and behaviours do not go together."""
    check_recipe(recipe)
    import_modules(modules)
    check_jobs(jobs)
    dataset_id = dataset_id or recipe.id
    check_target(dataset_id, overwrite)
    check_environment(recipe)
    policies = policies_of_files(recipe)
    with job_folder(dataset_id, fingerprint(recipe)) as folder:
        check_target(dataset_id, overwrite)  # again, as another process may have made it until now
        if recipe.algorithm:
            train_once(folder, recipe, recipe.algorithm, progress)
            policies |= policies_of_training(folder, recipe)
        play_missing(folder, recipe, policies, jobs, progress, modules, ray)
        write_whole(dataset_id, lambda: write_recipe(recipe, folder, dataset_id), folder)
    return dataset_id


def policies_of_files(recipe: Recipe) -> "dict[int, ArrayPolicy]":
    """By index of the behaviour."""
    env = make_environment(recipe)
    spaces = env.observation_space, env.action_space
    env.close()
    found = {i: load_file(b, recipe, *spaces) for i, b in enumerate(recipe.behaviour) if b.policy == "file"}
    for index, policy in found.items():
        check_policy(recipe.behaviour[index], policy, f"{recipe.source}: behaviour {index + 1}")
    return found


def train_once(folder: Path, recipe: Recipe, algorithm: Algorithm, progress: bool) -> None:
    """Train, unless the folder holds the whole training."""
    from dtrl.collect.training import train

    if (folder / "trained.json").is_file():
        return
    train(
        recipe,
        algorithm,
        progress,
        lambda step, policy: write_atomically(folder / f"policy-{step}.npz", policy.to_bytes()),
        lambda step, episodes: write_atomically(folder / f"replay-{step}.npz", to_bytes(episodes)),
    )
    write_atomically(folder / "trained.json", b"{}")


def policies_of_training(folder: Path, recipe: Recipe) -> "dict[int, ArrayPolicy]":
    """By index of the behaviour."""
    found = {}
    for index, behaviour in enumerate(recipe.behaviour):
        if behaviour.policy == "checkpoint":
            found[index] = load_array_policy(folder / f"policy-{behaviour.checkpoint}.npz")
            check_policy(behaviour, found[index], f"{recipe.source}: behaviour {index + 1}")
    return found
