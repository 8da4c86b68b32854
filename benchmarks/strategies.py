"""Which way of choosing changes what: return, diversity and repetition of one dt_discrete policy a dataset, under each strategy, on the same episodes.

    python benchmarks/strategies.py cartpole/mixed-v0 pendulum/mixed-v0 hopper/medium-v0 --updates 2000

Diversity is the share of different ones among all triples of successive actions (tokens of three steps), repetition the share of steps that repeat the
action before, both within episodes; beside them those of the data. Prints Markdown; docs/decoding.md has a run's."""

import argparse
import itertools
from collections.abc import Iterable

import numpy as np
import torch

import dtrl
from dtrl.acting import Episode, Policy, rollout
from dtrl.config import DecodingConfig
from dtrl.evaluation.statistics import mean_ci95
from dtrl.trajectories import Trajectories

STRATEGIES: dict[str, DecodingConfig] = {
    "greedy": DecodingConfig(),
    "sample": DecodingConfig(strategy="sample"),
    "sample, temperature 0.5": DecodingConfig(strategy="sample", temperature=0.5),
    "sample, top-p 0.9": DecodingConfig(strategy="sample", top_p=0.9),
    "sample, min-p 0.1": DecodingConfig(strategy="sample", min_p=0.1),
    "sample, typical 0.9": DecodingConfig(strategy="sample", typical_p=0.9),
    "beam of 8": DecodingConfig(strategy="beam", beam_width=8),
    "contrastive search, α = 0.3": DecodingConfig(strategy="contrastive", contrastive_alpha=0.3),
    "guidance 2": DecodingConfig(guidance=2.0),
    "contrastive decoding, β = 0.5": DecodingConfig(contrast=0.5),
    "repetition penalty 1.5": DecodingConfig(repetition_penalty=1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--bins", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for dataset in arguments.datasets:
        trajectories = dtrl.load_trajectories(dataset)
        policy = dtrl.train(
            trajectories,
            preset="dt_discrete",
            updates=arguments.updates,
            bins=arguments.bins,
            width=64,
            attention="banded",
            schedule="cosine",
            seed=arguments.seed,
            device="cpu",
        )
        print(f"\n### {dataset}, target {policy.target_return:,.0f}\n")
        print("| strategy | return | 95 % interval | different triples | repeated actions |\n|---|---|---|---|---|")
        different, repeated = variety(tokens_of(policy, trajectories))
        mean = trajectories.episode_returns.mean()
        print(f"| *the data* | {mean:,.0f} | – | {different:.2f} | {repeated:.2f} |", flush=True)
        for name, decoding in STRATEGIES.items():
            print(row(name, policy.variant(decoding=decoding), arguments.episodes, arguments.seed), flush=True)


def row(name: str, policy: Policy, episodes: int, seed: int) -> str:
    plan = [Episode(policy.target_return, seed + i) for i in range(episodes)]
    played = rollout(policy, None, plan, deterministic=policy.decoding.greedy)
    returns = played.episode_returns
    mean, (low, high) = mean_ci95(returns)
    different, repeated = variety(tokens_of(policy, played))
    return f"| {name} | {mean:,.0f} | {low:,.0f} … {high:,.0f} | {different:.2f} | {repeated:.2f} |"


def tokens_of(policy: Policy, episodes: Trajectories) -> list[torch.Tensor]:
    """The action tokens (T, n) of each episode."""
    tokens = []
    for begin, end in zip(episodes.episode_starts, episodes.episode_ends, strict=True):
        taken = {"": episodes.actions[begin:end]}
        tokens.append(policy.tokens_of(taken, episodes.returns_to_go[begin:end])["action"])
    return tokens


def variety(episodes: Iterable[torch.Tensor]) -> tuple[float, float]:
    """Of the action tokens (T, n) of each episode: the share of different triples of steps, and of steps that repeat the one before."""
    triples, total, repeats, pairs = set(), 0, 0, 0
    for tokens in episodes:
        actions = [tuple(action) for action in tokens.tolist()]
        three = list(zip(actions, actions[1:], actions[2:], strict=False))
        triples.update(three)
        total += len(three)
        repeats += sum(one == other for one, other in itertools.pairwise(actions))
        pairs += max(0, len(actions) - 1)
    return len(triples) / max(1, total), repeats / max(1, pairs)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
