"""What each mitigation changes: on two made problems that have the failure it is for, and on datasets.

    python benchmarks/mitigations.py
    python benchmarks/mitigations.py hopper/medium-v0 --updates 500 --seeds 0

Without datasets, the problems. Walk: the action is a slow random walk, which the observation tells with noise, so a model leans on its last action; the
excess accumulated error of `dtrl.evaluation.meters.exposure_bias` over 40 steps. Level: the action is the return, from 0 to 0.8; the action when a return is
asked for. Prints Markdown; docs/evaluation.md has a run's."""

import argparse
from typing import Any

import numpy as np
from gymnasium import spaces

import dtrl
from dtrl.evaluation import sweep
from dtrl.evaluation.doctor import examine
from dtrl.evaluation.meters import exposure_bias
from dtrl.trajectories import Trajectories
from dtrl.trajectories.seeds import recorded_seeds

MITIGATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "observation noise 0.1": {"observation_noise": 0.1},
    "scheduled sampling 0.5": {"scheduled_sampling": 0.5},
    "conservative 1": {"conservative": 1.0},
}
SMALL = {"updates": 300, "batch_size": 32, "width": 32, "layers": 1, "dropout": 0.0}
ASKED = (0.4, 0.8, 1.2, 1.6)


def walk(seed: int) -> Trajectories:
    """60 episodes of 40 steps."""
    random = np.random.default_rng(seed)
    actions = np.clip(0.15 * random.normal(size=(60, 40, 2)).cumsum(axis=1), -1, 1)
    shown = actions + 0.5 * random.normal(size=actions.shape)
    return from_rows(shown, actions, random.normal(size=(60, 40)))


def level(seed: int) -> Trajectories:
    """300 episodes of 5 steps."""
    random = np.random.default_rng(seed)
    actions = np.broadcast_to(random.uniform(0, 0.8, size=(300, 1, 2)), (300, 5, 2)).copy()
    actions[..., 1] = actions[..., 0]
    rewards = np.zeros((300, 5))
    rewards[:, -1] = actions[:, 0, 0]
    return from_rows(random.normal(size=(300, 5, 2)), actions, rewards)


def from_rows(observations: Any, actions: Any, rewards: Any) -> Trajectories:
    steps = rewards.shape[1]
    ends = np.tile(np.arange(steps) == steps - 1, len(rewards))
    columns = observations.reshape(-1, 2), actions.reshape(-1, 2), rewards.reshape(-1), ends, np.zeros_like(ends)
    return Trajectories.from_arrays(*columns, spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (2,)))


def made_problems(seeds: list[int]) -> None:
    print("| walk | " + " | ".join(f"seed {seed}" for seed in seeds) + " |\n|---|" + "---|" * len(seeds))
    for name in ("none", "observation noise 0.1", "scheduled sampling 0.5"):
        excess = []
        for seed in seeds:
            data = walk(seed)
            options = {"context_length": 8, "learning_rate": 5e-3, "seed": seed, **SMALL}
            policy = dtrl.train(data, **options, **MITIGATIONS[name])
            excess.append(exposure_bias(policy, data, steps=40).numbers)
        cells = (f"{e['teacher_forced']:.2f} → {e['free_running']:.2f}: {e['excess']:+.0%}" for e in excess)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| level | seed | " + " | ".join(f"{asked}" for asked in ASKED) + " |\n|---|---|" + "---|" * len(ASKED))
    for name in ("none", "conservative 1"):
        for seed in seeds:
            data = level(seed)
            options = {"context_length": 2, "learning_rate": 3e-3, "seed": seed, **SMALL}
            policy = dtrl.train(data, **options, **MITIGATIONS[name])
            seen = data.observations[data.episode_starts[:64]]
            acted = [policy.predict(seen, policy.initial_state(64, asked))[0].mean() for asked in ASKED]
            print(f"| {name} | {seed} | " + " | ".join(f"{a:.2f}" for a in acted) + " |", flush=True)


def on_dataset(dataset: str, updates: int, seeds: list[int], episodes: int) -> None:
    trajectories = dtrl.load_trajectories(dataset)
    print(
        f"\n### {dataset}\n\n| mitigation | seed | excess error | observations outside | drift | best inside | beyond |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, options in MITIGATIONS.items():
        for seed in seeds:
            small = {"updates": updates, "context_length": 10, "width": 64, "layers": 2, "seed": seed}
            policy = dtrl.train(trajectories, **small, **options)
            found = {
                f.meter: f.numbers for f in examine(policy, trajectories, episode_seeds=recorded_seeds(trajectories))
            }
            swept = sweep(policy, 6, episodes).calibration
            assert swept is not None
            inside, beyond = (swept.means[swept.inside].max(), swept.means[swept.targets > swept.high].mean())
            cells = [
                f"{found['exposure bias'].get('excess', 0):+.1%}",
                f"{found['observations out of support']['share']:.1%}",
                f"{found['state drift'].get('drift', float('nan')):.2f}",
                f"{inside:,.0f}",
                f"{beyond:,.0f}",
            ]
            print(f"| {name} | {seed} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("datasets", nargs="*", metavar="DATASET")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if not arguments.datasets:
        made_problems(arguments.seeds)
    for dataset in arguments.datasets:
        on_dataset(dataset, arguments.updates, arguments.seeds, arguments.episodes)


if __name__ == "__main__":
    main()
