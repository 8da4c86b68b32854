"""What chunks of actions bring: environment steps a second of acting, and the returns, for several lengths of a chunk and several policies.

    OMP_NUM_THREADS=1 python benchmarks/chunks.py hopper/medium-v0 --updates 1000 --seeds 0 1 2

Every policy looks back on about the same number of steps: K = STEPS / H blocks, at least 2. Acting is timed in `--num-envs` environments, the model alone:
steps divided by the seconds that the policy took. Prints Markdown; benchmarks/RESULTS.md has a run's."""

import argparse
from typing import Any

import numpy as np

import dtrl
from dtrl.acting import Episode, Timing, rollout
from dtrl.evaluation.statistics import mean_ci95

STEPS = 20
POLICIES: dict[str, dict[str, Any]] = {
    "dt": {},
    "dt_discrete, bins": {"preset": "dt_discrete", "bins": 64},
    "dt_discrete, FAST": {"preset": "dt_discrete", "action_tokenizer": "sequential", "bins": 256},
    "dt_discrete, residual codes": {"preset": "dt_discrete", "action_tokenizer": "vector_quantization", "bins": 256},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--num-envs", type=int, default=20)
    parser.add_argument("--target-return", type=float)
    arguments = parser.parse_args()
    trajectories = dtrl.load_trajectories(arguments.dataset)
    print(f"### {arguments.dataset}\n")
    print("| policy | H | K | tokens a step | steps/s of the model | return by seed | mean | 95 % interval |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.policies:
        for length in arguments.lengths:
            print(row(name, length, trajectories, arguments), flush=True)


def row(name: str, length: int, trajectories: dtrl.Trajectories, arguments: argparse.Namespace) -> str:
    blocks, returns, speeds, tokens = max(2, STEPS // length), [], [], 0.0
    for seed in arguments.seeds:
        policy = dtrl.train(
            trajectories,
            updates=arguments.updates,
            batch_size=arguments.batch_size,
            width=arguments.width,
            heads=4,
            dropout=0.0,
            schedule="cosine",
            context_length=blocks,
            chunk_length=length,
            seed=seed,
            device="cpu",
            **POLICIES[name],
        ).variant(context="block")
        target = policy.target_return if arguments.target_return is None else arguments.target_return
        plan, timing = [Episode(target, 1000 * seed + i) for i in range(arguments.episodes)], Timing()
        played = rollout(policy, None, plan, num_envs=arguments.num_envs, timing=timing)
        returns.append(played.episode_returns)
        speeds.append(timing.steps / timing.model_seconds)
        tokens = policy.model.tokens_per_step / length
    mean, (low, high) = mean_ci95(np.concatenate(returns))
    by_seed = " / ".join(f"{one.mean():,.0f}" for one in returns)
    return f"| {name} | {length} | {blocks} | {tokens:.3g} | {np.median(speeds):,.0f} | {by_seed} | {mean:,.0f} | {low:,.0f} … {high:,.0f} |"


if __name__ == "__main__":
    main()
