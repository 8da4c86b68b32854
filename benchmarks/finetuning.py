"""What online fine-tuning changes: the same episodes before and after it.

    python benchmarks/finetuning.py lunarlander/mixed-v0 --target-return 250 --seeds 1 2 3

For each seed: a policy is trained offline, and fine-tuned; both are asked for the same return in the same 50 episodes, greedily and with sampled actions, the
last weights of each. `--control` also trains for as many updates in all on the data alone. Prints Markdown; RESULTS.md has a run's."""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import dtrl
from dtrl.acting import Policy
from dtrl.config import ONLINE_TRAINING, OnlineConfig

OFFLINE = {"batch_size": 32, "width": 64, "layers": 2, "heads": 4, "schedule": "cosine"}
ONLINE = (
    "updates",
    "batch_size",
    "learning_rate",
    "explore_return",
    "round_updates",
    "round_episodes",
    "buffer_episodes",
)
RESAMPLES = 10_000
Returns = npt.NDArray[np.float64]


def returns_of(policy: Policy, target: float, episodes: int) -> Returns:
    """(2, E) the returns of the same episodes for every policy: greedy, and sampled."""
    policy = policy.variant(context="block")
    reports = [dtrl.evaluate(policy, [target], episodes, seed=1, deterministic=greedy) for greedy in (True, False)]
    return np.array([report.targets[0].returns for report in reports])


def interval(differences: Returns) -> tuple[float, float, float]:
    """Mean of paired differences (seeds, episodes), and its 95 % interval by a bootstrap over seeds and over episodes within each."""
    random = np.random.default_rng(0)
    seeds, episodes = differences.shape
    rows = random.integers(seeds, size=(RESAMPLES, seeds, 1))
    means = differences[rows, random.integers(episodes, size=(RESAMPLES, seeds, episodes))].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def tell(name: str, differences: Sequence[Returns]) -> None:
    for how, values in zip(("greedy", "sampled"), np.stack(differences, axis=1), strict=True):
        mean, low, high = interval(values)
        print(f"{name}, {how}: {mean:+,.1f}, 95 % interval {low:+,.1f} … {high:+,.1f}")


def cell(returns: Returns) -> str:
    return " / ".join(f"{mean:,.0f}" for mean in returns.mean(axis=1))


def measure(a: argparse.Namespace, seed: int) -> tuple[Returns, Returns, Returns | None, float]:
    """Of a seed: returns before fine-tuning, after it and, with `control`, after as many updates on the data; and the minutes of processor time."""
    began = time.process_time()
    data = dtrl.load_trajectories(a.dataset, max_return=a.max_return)
    offline: dict[str, Any] = {
        **OFFLINE,
        "context_length": a.context_length,
        "action_context": not a.no_action_context,
        "preset": a.preset,
        "seed": seed,
    }
    online: dict[str, Any] = {name: getattr(a, name) for name in ONLINE}

    def returns(policy: Policy) -> Returns:
        return returns_of(policy, a.target_return, a.episodes)

    policy = dtrl.train(data, updates=a.offline_updates, **offline).variant(context="block")
    before = returns(policy)
    after = returns(dtrl.finetune(policy, data, seed=seed, **online))
    longer = returns(dtrl.train(data, updates=a.offline_updates + a.updates, **offline)) if a.control else None
    return before, after, longer, (time.process_time() - began) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--preset", default="dt")
    parser.add_argument("--max-return", type=float, help="leave better episodes out of the data")
    parser.add_argument("--target-return", type=float, required=True)
    parser.add_argument("--context-length", type=int, default=10)
    parser.add_argument(
        "--no-action-context", action="store_true", help="a policy that does not look back on its actions"
    )
    parser.add_argument("--offline-updates", type=int, default=2_000)
    parser.add_argument("--updates", type=int, default=ONLINE_TRAINING["updates"])
    parser.add_argument("--round-updates", type=int, default=OnlineConfig.round_updates)
    parser.add_argument("--round-episodes", type=int, default=OnlineConfig.round_episodes)
    parser.add_argument("--buffer-episodes", type=int, default=OnlineConfig.buffer_episodes)
    parser.add_argument("--explore-return", type=float)
    parser.add_argument("--learning-rate", type=float, default=ONLINE_TRAINING["learning_rate"])
    parser.add_argument("--batch-size", type=int, default=32, help="of fine-tuning")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time; set OMP_NUM_THREADS=1 beside it")
    parser.add_argument("--control", action="store_true")
    a = parser.parse_args()
    began = time.monotonic()
    print("| seed | offline | fine-tuned | as many updates offline | CPU minutes |\n|---|---|---|---|---|", flush=True)
    gains, controls = [], []
    with multiprocessing.get_context("spawn").Pool(min(a.jobs, len(a.seeds))) as pool:
        for seed, (before, after, longer, minutes) in zip(
            a.seeds, pool.imap(partial(measure, a), a.seeds), strict=True
        ):
            gains.append(after - before)
            if longer is not None:
                controls.append(after - longer)
            cells = [cell(before), cell(after), "" if longer is None else cell(longer)]
            print(f"| {seed} | {' | '.join(cells)} | {minutes:.1f} |", flush=True)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
    tell("fine-tuned less offline", gains)
    if controls:
        tell("fine-tuned less as many updates offline", controls)


if __name__ == "__main__":
    main()
