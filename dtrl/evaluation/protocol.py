"""Policy → report: what it achieves when it is asked for each of several returns."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from dtrl.acting import Actor, Episode, EpisodeFault, Timing, rollout
from dtrl.acting.environments import environment_id
from dtrl.acting.sharing import shared_rollout
from dtrl.errors import InputError
from dtrl.evaluation.calibration import support, sweep_targets
from dtrl.evaluation.references import reference_for
from dtrl.evaluation.report import Report, TargetResult
from dtrl.trajectories import Trajectories


def evaluate(
    policy: Actor,
    target_returns: Sequence[float] | None = None,
    episodes: int = 20,
    seed: int = 0,
    num_envs: int | None = None,
    *,
    env: "str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any] | None" = None,
    deterministic: bool | None = None,
    observation: str | None = None,
    env_workers: int | str = 0,
    env_timeout: float | None = None,
    on_env_error: str = "raise",
    jobs: int | None = None,
    ray: str | None = None,
    progress: bool = False,
) -> Report:
    """Play `episodes` episodes for each target return, all targets together as rows of one vector environment.

    Episode i has the same seed for every target, so targets are compared on the same starts. Without `target_returns`, the policy's own (from its
    data) is asked. `deterministic` None follows the policy's decoding: greedy unless its strategy is to sample. `env`, `observation`, `env_workers`,
    `env_timeout` and `on_env_error` as in `rollout`: the report tells which episodes were lost, and its numbers are over the others.

    With `jobs`, or `ray`, other processes, or tasks of a Ray cluster, play the episodes in pieces, `num_envs` at once, with the same report whatever their
    number; see `dtrl.acting.sharing.shared_rollout`."""
    return play(
        policy,
        target_returns,
        episodes,
        seed,
        num_envs,
        env=env,
        deterministic=deterministic,
        observation=observation,
        env_workers=env_workers,
        env_timeout=env_timeout,
        on_env_error=on_env_error,
        jobs=jobs,
        ray=ray,
        progress=progress,
    )[0]


def sweep(
    policy: Actor, points: int = 12, episodes: int = 20, seed: int = 0, num_envs: int | None = None, **rest: Any
) -> Report:
    """`evaluate` over the range of the data's returns and beyond, at the targets of `sweep_targets`; the report then has a `calibration`.

    `rest` is that of `evaluate`. Raises InputError as it does, and where the policy knows no range to sweep."""
    targets = sweep_targets(policy.data.return_quantiles, points)
    report = evaluate(policy, targets, episodes, seed, num_envs, **rest)
    return replace(report, support=support(policy.data.return_quantiles))


def play(
    policy: Actor,
    target_returns: Sequence[float] | None,
    episodes: int,
    seed: int,
    num_envs: int | None,
    *,
    env: Any = None,
    deterministic: bool | None = None,
    observation: str | None = None,
    env_workers: int | str = 0,
    env_timeout: float | None = None,
    on_env_error: str = "raise",
    jobs: int | None = None,
    ray: str | None = None,
    progress: bool = False,
) -> tuple[Report, Trajectories]:
    """`evaluate`, with the trajectories it played: target by target, episode by episode, without those that were lost."""
    try:
        targets = [float(t) for t in (target_returns if target_returns is not None else [policy.target_return])]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"target returns {target_returns!r} are not a list of numbers; ask for returns such as those in `dtrl datasets show`."
        ) from error
    if not targets or not np.isfinite(targets).all():
        raise InputError(
            f"target returns {targets} are not one or more finite numbers; ask for returns such as those in `dtrl datasets show`."
        )
    if episodes < 1 or (num_envs is not None and num_envs < 1) or seed < 0:
        raise InputError(
            f"episodes ({episodes}) and num_envs ({num_envs}) must be at least 1, and seed ({seed}) not negative."
        )
    policy.check_decoding()
    seeds = np.random.default_rng([seed, 0]).integers(2**31, size=episodes)
    plan = [Episode(target, int(s)) for target in targets for s in seeds]
    playing = partial(rollout, env_workers=env_workers, env_timeout=env_timeout)
    if jobs is not None or ray is not None:
        refuse_env_workers(env_workers, env_timeout)
        playing = partial(shared_rollout, jobs=jobs, ray=ray)
    timing = Timing()
    faults: list[EpisodeFault] = []
    from tqdm import tqdm

    with tqdm(
        total=len(plan), desc="evaluating", unit="episode", disable=not (progress and sys.stderr.isatty()), leave=False
    ) as bar:
        greedy = policy.decoding.greedy if deterministic is None else deterministic
        played = playing(
            policy,
            env,
            plan,
            num_envs=num_envs,
            deterministic=greedy,
            observation=observation,
            on_env_error=on_env_error,
            on_episode=lambda _: bar.update(),
            on_fault=faults.append,
            timing=timing,
        )
    name = env if isinstance(env, str) else policy.data.env_spec
    report = Report(
        dataset=policy.data.dataset,
        env=environment_id(name),
        seed=seed,
        episodes=episodes,
        targets=results_of(targets, episodes, played, faults),
        reference=reference_for(environment_id(name), *(policy.data.reference or (None, None))),
        settings={
            "context": policy.context,
            "context_length": policy.context_length,
            "decoding": asdict(policy.decoding),
            "deterministic": greedy,
            "updates": policy.updates,
            "preset": policy.config.preset,
            "told_return": policy.told_return,
        },
        timing=timing,
        faults=faults,
    )
    return report, played


def refuse_env_workers(env_workers: int | str, env_timeout: float | None) -> None:
    """Raise InputError where what is for this process alone goes with jobs."""
    if env_workers or env_timeout is not None:
        asked = f"env_workers is {env_workers!r}" if env_workers else f"env_timeout is {env_timeout:g}"
        raise InputError(f"{asked}, and jobs play environments in their own processes; leave it out, or jobs and ray.")


def results_of(
    targets: Sequence[float], episodes: int, played: Trajectories, faults: Sequence[EpisodeFault]
) -> list[TargetResult]:
    """Target by target, what was played of its episodes and which of them were lost."""
    lost = {fault.episode for fault in faults if fault.lost}
    left = iter(zip(played.episode_returns.tolist(), played.episode_lengths.tolist(), strict=True))
    results = []
    for i, target in enumerate(targets):
        gone = [episode for episode in range(episodes) if i * episodes + episode in lost]
        own = [next(left) for _ in range(episodes - len(gone))]
        results.append(TargetResult(target, [float(r) for r, _ in own], [int(n) for _, n in own], gone))
    return results
