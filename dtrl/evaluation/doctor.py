"""Everything that the meters say of one policy: with its data where they can be loaded, in its environment where that can be made."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dtrl.acting import Episode, Policy, rollout
from dtrl.errors import InputError
from dtrl.evaluation.meters import (
    exposure_bias,
    history_swap,
    out_of_support,
    repeat_lift,
    state_drift,
    target_sensitivity,
)
from dtrl.evaluation.meters.data import check_spaces, examine_data
from dtrl.evaluation.meters.finding import Finding
from dtrl.evaluation.meters.swaps import Probes, sees
from dtrl.evaluation.report import plain
from dtrl.trajectories import Trajectories

DRIFT_EPISODES = 8


def examine(
    policy: Policy,
    trajectories: Trajectories,
    *,
    target_return: float | None = None,
    episodes: int = 10,
    seed: int = 0,
    env: Any = None,
    episode_seeds: Sequence[int] | None = None,
) -> list[Finding]:
    """The findings of all meters.

    `trajectories` are the policy's data. `episodes` are played in `env` (default: the data's), asked for
    `target_return` (default: the policy's own). `episode_seeds` (E,) are those of the data's resets, where they are known: they let the state drift be
    measured. Raises InputError for data of other spaces, and for episodes below 1."""
    if episodes < 1:
        raise InputError(f"episodes ({episodes}) must be at least 1.")
    check_spaces(trajectories, policy.observation_space, policy.action_space)
    probes = Probes(policy, trajectories, seed=seed)
    findings = examine_data(trajectories, policy.config)
    findings += [
        target_sensitivity(policy, probes),
        history_swap(policy, probes),
        exposure_bias(policy, trajectories, seed=seed),
    ]
    target = policy.target_return if target_return is None else target_return
    seeds = np.random.default_rng([seed, 0]).integers(2**31, size=episodes)

    def in_environment() -> list[Finding]:
        played = rollout(policy, env, [Episode(target, int(s)) for s in seeds], deterministic=policy.decoding.greedy)
        told = sees(policy, "return")
        return [
            repeat_lift(played, trajectories),
            *out_of_support(played, np.full(episodes, target), trajectories, policy.data, told),
        ]

    def drift() -> list[Finding]:
        if episode_seeds is None:
            return [Finding("state drift", None, "the dataset does not tell the seeds of its episodes.")]
        chosen = drift_episodes(trajectories, seed)
        return [state_drift(policy, trajectories, chosen, [episode_seeds[i] for i in chosen], env)]

    for name, part in (("episodes", in_environment), ("state drift", drift)):
        findings += tried(name, part)
    return findings


def without_data(reason: str) -> list[Finding]:
    """What is left to say where the policy's data cannot be loaded."""
    hint = "" if "--data" in reason else " Name them with --data."
    return [
        Finding(
            "data",
            None,
            f"every meter compares with the policy's data, which were not loaded: {reason.rstrip('.')}.{hint}",
        )
    ]


def tried(name: str, part: Callable[[], list[Finding]]) -> list[Finding]:
    """A part's findings, or that it could not be examined."""
    try:
        return part()
    except InputError as error:
        return [Finding(name, None, f"could not be played: {error}")]


def drift_episodes(trajectories: Trajectories, seed: int) -> list[int]:
    """Some episodes from the better half, where a high return is asked for."""
    better = np.argsort(-trajectories.episode_returns, kind="stable")[: max(2, trajectories.num_episodes // 2)]
    return sorted(np.random.default_rng(seed).permutation(better)[:DRIFT_EPISODES].tolist())


def summary(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON values."""
    result = plain({"findings": [asdict(f) for f in findings], "warnings": sum(f.fine is False for f in findings)})
    assert isinstance(result, dict)
    return result
