"""What chunks of actions bring: environment steps a second of acting, and the returns, for several lengths of a chunk and several policies.

    OMP_NUM_THREADS=1 python benchmarks/chunks.py pendulum/mixed-v0 --updates 1000 --seeds 0 1 2

Every policy looks back on about the same number of steps: K = STEPS / H blocks, at least 2. Its speed is that of the policy alone, on recorded observations, in
environment steps a second of processor time: once with all rows deciding in the same step, once with rows that began one step after the other, so that
some of them decide at every step. Prints Markdown; benchmarks/RESULTS.md has a run's."""

import argparse
import time
from typing import Any

import numpy as np

import dtrl
from dtrl.acting import Episode, Policy, rollout
from dtrl.evaluation.statistics import mean_ci95

STEPS = 20
TIMED, REPETITIONS = 160, 3
POLICIES: dict[str, dict[str, Any]] = {
    "dt": {},
    "dt_discrete, bins": {"preset": "dt_discrete", "bins": 64},
    "dt_discrete, FAST": {"preset": "dt_discrete", "action_tokenizer": "sequential", "bins": 256},
    "dt_discrete, residual codes": {"preset": "dt_discrete", "action_tokenizer": "vector_quantization", "bins": 64},
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
    print(f"### {arguments.dataset}, {arguments.num_envs} environments\n")
    print("| policy | H | K | tokens a step | steps/s in step | steps/s one after the other | returns by seed | mean |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.policies:
        for length in arguments.lengths:
            print(row(name, length, trajectories, arguments), flush=True)


def row(name: str, length: int, trajectories: dtrl.Trajectories, arguments: argparse.Namespace) -> str:
    blocks, returns = max(2, STEPS // length), []
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
        plan = [Episode(target, 1000 * seed + i) for i in range(arguments.episodes)]
        returns.append(rollout(policy, None, plan, num_envs=arguments.num_envs).episode_returns)
    fast = [f"{speed(policy, trajectories, arguments.num_envs, apart):,.0f}" for apart in (False, True)]
    shown = [(one.mean(), *mean_ci95(one)[1]) for one in returns]
    by_seed = " / ".join(f"{mean:,.0f} ({low:,.0f} … {high:,.0f})" for mean, low, high in shown)
    tokens = policy.model.tokens_per_step / length
    cells = [name, length, blocks, f"{tokens:.3g}", *fast, by_seed, f"{np.mean(returns):,.0f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def speed(policy: Policy, trajectories: dtrl.Trajectories, rows: int, apart: bool) -> float:
    """Environment steps a second of processor time, the best of some repetitions; rows begin one step after the other where they are `apart`."""
    seen = trajectories.observations[np.random.default_rng(0).integers(trajectories.num_steps, size=rows)]
    best = np.inf
    for _ in range(REPETITIONS):
        state = policy.initial_state(rows)
        for step in range(STEPS + policy.block_length):
            late = np.arange(rows) == step
            policy.predict(
                seen, state, episode_start=late if apart and step else np.ones(rows, dtype=bool) & (step == 0)
            )
        started = time.process_time()
        for _ in range(TIMED):
            policy.predict(seen, state)
        best = min(best, time.process_time() - started)
    return rows * TIMED / best


if __name__ == "__main__":
    main()
