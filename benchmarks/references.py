"""Measures the reference returns of `dtrl.evaluation.references` whose experts need no file: closed forms, controllers that an environment brings, and
the last behaviour of a recipe. Mean and standard error of random actions and of the expert, beside what dtrl ships.

    python benchmarks/references.py                            # those that take seconds
    python benchmarks/references.py Acrobot-v1                 # makes the dataset of its recipe first, where it is not there: minutes
    dtrl datasets reference Hopper-v5 --policy sac-hopper.npz  # of an expert in a file

It leaves with exit code 1 where a mean is further than four standard errors (of both) from what dtrl ships: by chance in 1 of 16,000."""

import argparse
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import minari

from dtrl.acting.environments import make_environment
from dtrl.collect import load_recipe, make_dataset
from dtrl.evaluation.reference_runs import Measured, random_return
from dtrl.evaluation.references import REFERENCE_RETURNS, with_error
from dtrl.files import write_atomically
from dtrl.trajectories.sources import local_datasets

Expert = Callable[["gymnasium.Env[Any, Any]", Any], Any]
"""An environment and its observation to an action."""


def mountain_car(env: "gymnasium.Env[Any, Any]", observation: Any) -> int:
    """Push to where the car goes anyway, but turn early on a swing that is too low; the curves are of the leaderboard of OpenAI Gym."""
    position, velocity = map(float, observation)
    low = min(-0.09 * (position + 0.25) ** 2 + 0.03, 0.3 * (position + 0.9) ** 4 - 0.008)
    return 2 if low < velocity < -0.07 * (position + 0.38) ** 2 + 0.07 else 0


def lunar_lander(env: "gymnasium.Env[Any, Any]", observation: Any) -> Any:
    """The controller that Gymnasium ships with the environment."""
    from gymnasium.envs.box2d.lunar_lander import heuristic

    return heuristic(env.unwrapped, observation)


def door_key(env: "gymnasium.Env[Any, Any]", observation: Any) -> int:
    """The first action of a shortest way to the goal, by breadth-first search over place, direction, and whether key and door are dealt with."""
    room: Any = env.unwrapped
    things = {
        type(thing).__name__: (x, y)
        for x in range(room.width)
        for y in range(room.height)
        if (thing := room.grid.get(x, y))
    }
    key, door, goal = things.get("Key"), things["Door"], things["Goal"]
    walls = {
        (x, y) for x in range(room.width) for y in range(room.height) if type(room.grid.get(x, y)).__name__ == "Wall"
    }
    begin = (*map(int, room.agent_pos), int(room.agent_dir), key is None, bool(room.grid.get(*door).is_open))
    first_action: dict[Any, int | None] = {begin: None}
    queue = deque([begin])
    while queue:
        x, y, direction, has_key, is_open = state = queue.popleft()
        if (x, y) == goal:
            break
        ahead = (x + (1, 0, -1, 0)[direction], y + (0, 1, 0, -1)[direction])
        free = ahead not in walls and (ahead != key or has_key) and (ahead != door or is_open)
        moves = {
            room.actions.left: (x, y, (direction - 1) % 4, has_key, is_open),
            room.actions.right: (x, y, (direction + 1) % 4, has_key, is_open),
            room.actions.forward: (*ahead, direction, has_key, is_open) if free else state,
            room.actions.pickup: (x, y, direction, has_key or ahead == key, is_open),
            room.actions.toggle: (x, y, direction, has_key, is_open or (has_key and ahead == door)),
        }
        for action, after in moves.items():
            if after not in first_action:
                first = first_action[state]
                first_action[after] = int(action) if first is None else first
                queue.append(after)
    first = first_action[state]
    assert first is not None
    return first


EXPERTS: dict[str, tuple[str, Expert]] = {
    "MountainCar-v0": ("a closed form of position and velocity", mountain_car),
    "LunarLanderContinuous-v3": ("the controller that Gymnasium ships with it", lunar_lander),
    "MiniGrid-DoorKey-5x5-v0": ("a search for the shortest way", door_key),
    "dtrl/KeyToDoor-v0": ("its demonstrate()", lambda env, _: env.unwrapped.demonstrate()),  # type: ignore[attr-defined]
    "dtrl/Stitch-v0": ("its demonstrate(best=True)", lambda env, _: env.unwrapped.demonstrate(best=True)),  # type: ignore[attr-defined]
}
RECIPES = {"Acrobot-v1": "acrobot"}
"""Environments whose expert is the last behaviour of a recipe."""
MORE_OF_RANDOM = {
    "dtrl/KeyToDoor-v0": 20_000,
    "dtrl/Stitch-v0": 2_000,
    "LunarLanderContinuous-v3": 1_000,
    "MiniGrid-DoorKey-5x5-v0": 1_000,
}
"""Episodes of random actions where a reward is rare, or their returns are far apart, and 100 would tell little."""


def expert_return(env_id: str, episodes: int, seed: int) -> Measured:
    """Returns of the expert in episodes that begin with the seeds of `random_return`, or those of a recipe."""
    if env_id in RECIPES:
        return behaviour_return(RECIPES[env_id])
    name, expert = EXPERTS[env_id]
    env = make_environment(env_id)
    returns = tuple(play(env, expert, seed + i) for i in range(episodes))
    env.close()
    return Measured(returns, f"{episodes} episodes of {name}, seeds {seed} to {seed + episodes - 1}")


def play(env: "gymnasium.Env[Any, Any]", expert: Expert, seed: int) -> float:
    observation, total, ended = env.reset(seed=seed)[0], 0.0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(expert(env, observation))
        total, ended = total + float(reward), terminated or truncated
    return total


def behaviour_return(name: str) -> Measured:
    """Returns of the last behaviour of a recipe, whose dataset is made where it is not there."""
    recipe = load_recipe(name)
    if recipe.id not in local_datasets():
        make_dataset(recipe)
    dataset = minari.load_dataset(recipe.id)
    metadata = list(dataset.storage.get_episode_metadata(range(dataset.total_episodes)))
    last = metadata[-1]["behaviour"]
    returns = tuple(float(e.rewards.sum()) for e, m in zip(dataset, metadata, strict=True) if m["behaviour"] == last)
    return Measured(returns, f"{len(returns)} episodes of {last} in the recipe {name}")


def compared(env_id: str, name: str, measured: Measured) -> tuple[str, bool]:
    """A line about a mean, and whether it is what dtrl ships."""
    shipped = REFERENCE_RETURNS.get(env_id)
    line = f"{env_id} {name}: {with_error(measured.mean, measured.standard_error)} ({measured.how})"
    if shipped is None:
        return line, True
    mean, error = (shipped.random, shipped.random_error) if name == "random" else (shipped.expert, shipped.expert_error)
    # what is shipped is rounded: to a half in its last digit, of which six are looked at
    allowed = 4 * math.hypot(measured.standard_error, error or 0.0) + 1e-3 * abs(mean) + 1e-9
    good = abs(measured.mean - mean) <= allowed
    return f"{line}; dtrl ships {with_error(mean, error)}{'' if good else ', which it is not'}", good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("\n", " "), formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    known = [*EXPERTS, *RECIPES]
    parser.add_argument("envs", nargs="*", metavar="ENV", choices=[*known, []], help=f"of {', '.join(known)}")
    parser.add_argument(
        "--episodes", type=int, default=100, help="of each, at least; some environments have more of random actions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results, all_good = {}, True
    for env_id in arguments.envs or EXPERTS:
        episodes = max(arguments.episodes, MORE_OF_RANDOM.get(env_id, 0))
        measured = {
            "random": random_return(env_id, episodes, arguments.seed, progress=True),
            "expert": expert_return(env_id, arguments.episodes, arguments.seed),
        }
        for name, one in measured.items():
            line, good = compared(env_id, name, one)
            print(line, flush=True)
            all_good &= good
        results[env_id] = {name: one.to_dict() for name, one in measured.items()}
    if arguments.json is not None:
        import json

        write_atomically(arguments.json, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
    return 0 if all_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
