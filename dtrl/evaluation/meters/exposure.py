"""Exposure bias: a model that was trained on recorded pasts acts on its own. T steps, E episodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dtrl.acting import Episode, Policy, rollout
from dtrl.acting.rollouts import check_actions, maker
from dtrl.errors import InputError
from dtrl.evaluation.meters.finding import (
    WITHOUT_ACTIONS,
    ActionScale,
    Finding,
    actions_at,
    observations_at,
    quotient_ci95,
)
from dtrl.spaces import flatten, leaves, numbers_of, unflatten
from dtrl.tokenizers.continuous import CONSTANT
from dtrl.trajectories import Trajectories

EPISODES, STEPS = 16, 100
EXCESS = 0.1
"""A tenth more error on its own past than on the recorded one is a bias worth a warning."""
REPEATS = 1e-3
"""Standard deviations by which an observation may differ where an environment repeats a recorded episode."""
Errors = npt.NDArray[np.float64]


def errors_along(policy: Policy, episodes: Trajectories, scale: ActionScale, steps: int, own: bool) -> Errors:
    """(T, E) distance of the greedy action and the recorded one at each of the first `steps` steps, NaN after an episode's end.

    Observations, rewards and returns-to-go are the recorded ones. The actions that the model looks back on are its `own`, or the recorded ones (teacher
    forcing)."""
    starts, lengths = episodes.episode_starts, episodes.episode_lengths
    state = policy.initial_state(len(starts), episodes.returns_to_go[starts])
    out = np.full((min(steps, int(lengths.max())), len(starts)), np.nan)
    for step in range(len(out)):
        at = np.minimum(starts + step, starts + lengths - 1)  # a finished row repeats its last step, unread
        first = np.ones(len(starts), dtype=bool) if step == 0 else None
        policy.advance(state, first)
        state.returns_to_go = episodes.returns_to_go[at].astype(np.float64)
        taken = actions_at(episodes, at)
        chosen = policy.choose_actions(state, observations_at(episodes, at), first, None, policy.best)
        out[step] = np.where(step < lengths, scale.distance(chosen, taken), np.nan)
        state.actions = chosen if own else taken
        state.reward = np.asarray(episodes.rewards[at], dtype=np.float64)
    return out


def drawn(trajectories: Trajectories, episodes: int, seed: int) -> Trajectories:
    """So many of the episodes, or all, in their own order."""
    chosen = np.random.default_rng(seed).permutation(trajectories.num_episodes)[:episodes]
    return trajectories.select(np.sort(chosen))


def exposure_bias(
    policy: Policy, trajectories: Trajectories, episodes: int = EPISODES, steps: int = STEPS, seed: int = 0
) -> Finding:
    """How much larger the action error becomes when the model looks back on its own actions instead of the recorded ones.

    The excess accumulated error is R(l) / (l·ε) − 1 [Arora et al. 2022, arXiv:2204.01171]: R(l) adds up the errors of the first l steps on the
    model's own past, l·ε those on the recorded past. The error of an action is its distance from the recorded one, in place of the paper's regret in
    log-probability, which needs the behaviour policy. Trips where the lower end of the 95 % interval, over episodes, is above 0.1."""
    if policy.block_length > 1:
        return Finding("exposure bias", None, "a policy that decides chunks of actions is not measured step by step.")
    some, scale = drawn(trajectories, episodes, seed), ActionScale(trajectories)
    forced, free = (errors_along(policy, some, scale, steps, own) for own in (False, True))
    excess = quotient_ci95(np.nansum(free, axis=0), np.nansum(forced, axis=0))
    meter, marks = "exposure bias", [max(1, round(len(forced) * share)) for share in (0.1, 0.5, 1.0)]
    means = {"teacher_forced": float(np.nanmean(forced)), "free_running": float(np.nanmean(free))}
    says = (
        f"action error {means['teacher_forced']:.3g} on recorded pasts, {means['free_running']:.3g} on its own actions"
    )
    if excess is None:
        return Finding(meter, not np.nansum(free) > 0, f"{says}.", "--scheduled-sampling 0.5.", means)
    curve = {str(n): float(np.nansum(free[:n]) / max(np.nansum(forced[:n]), 1e-12) - 1) for n in marks}
    value, (low, high) = excess[0] - 1, (excess[1][0] - 1, excess[1][1] - 1)
    numbers = {**means, "excess": value, "excess_ci95": [low, high], "excess_by_length": curve, "steps": len(forced)}
    says += f": {value:+.1%} [{low:+.1%}, {high:+.1%}] accumulated over {len(forced)} steps."
    return Finding(
        meter,
        not low > EXCESS,
        says,
        f"{WITHOUT_ACTIONS} or --scheduled-sampling 0.5 in training; for actions that are choices, --strategy sample.",
        numbers,
    )


def state_drift(
    policy: Policy,
    trajectories: Trajectories,
    episodes: Sequence[int],
    seeds: Sequence[int],
    env: Any = None,
    steps: int = STEPS,
) -> Finding:
    """How far the policy's observations move away from recorded ones, in the environment, from the same start and asked for the recorded return.

    `seeds` are those of the recorded `episodes`' resets. 0: it lives the recorded episode again; 1: as far as two recorded episodes are from each other.
    Trips where the lower end of the 95 % interval is above 1. Raises InputError where the environment cannot be made."""
    meter, some = "state drift", trajectories.select(np.asarray(episodes))
    env = env or trajectories.origin.env_spec
    if not repeats(some, int(seeds[0]), env):
        return Finding(
            meter,
            None,
            "the environment does not repeat a recorded episode from its seed, so there is nothing to compare with.",
        )
    asked = some.returns_to_go[some.episode_starts]
    played = rollout(policy, env, [Episode(float(r), int(s)) for r, s in zip(asked, seeds, strict=True)])
    deviation = deviations(trajectories)
    drift, apart = [], []
    for i in range(some.num_episodes):
        other = (i + 1) % some.num_episodes
        own, theirs, others = (observed(t, j, steps) for t, j in ((played, i), (some, i), (some, other)))
        length = min(len(own), len(theirs), len(others))
        gap = [
            np.sqrt(np.square((x - theirs[:length]) / deviation).mean(axis=1)) for x in (own[:length], others[:length])
        ]
        drift.append(gap[0].sum())
        apart.append(gap[1].sum())
    found = quotient_ci95(np.array(drift), np.array(apart))
    if found is None or some.num_episodes < 2:
        return Finding(meter, None, "needs two recorded episodes that differ.")
    value, (low, high) = found
    says = f"its observations are {value:.2f} [{low:.2f}, {high:.2f}] times as far from the recorded ones as those of another recorded episode."
    return Finding(
        meter,
        not low > 1,
        says,
        "more data around the states that it reaches, --observation-noise 0.1, or more updates.",
        {"drift": value, "drift_ci95": [low, high]},
    )


def repeats(episodes: Trajectories, seed: int, env: Any) -> bool:
    """Whether the environment gives the observations of the first of the episodes again, for its seed and actions (at most the first 20). Raises InputError
    for one that takes other actions."""
    world = maker(env)()
    space, deviation = episodes.observation_space, deviations(episodes)
    recorded, rows = observed(episodes, 0, 20), range(int(episodes.episode_lengths[0]))[:19]
    try:
        check_actions(world.action_space, episodes.action_space, episodes.origin.name)
        shown = [world.reset(seed=seed)[0]]
        for row in rows:
            actions = {path: values[0] for path, values in actions_at(episodes, [row]).items()}
            shown.append(world.step(unflatten(episodes.action_space, actions))[0])
    finally:
        world.close()
    try:
        parts = [flatten(space, one) for one in shown[: len(recorded)]]
        again = np.stack(
            [row_of({leaf.path: numbers_of(leaf.space, part[leaf.path]) for leaf in leaves(space)}) for part in parts]
        )
    except (KeyError, TypeError, ValueError, InputError):  # the policy sees a part of what the environment shows
        return False
    return again.shape == recorded[: len(again)].shape and bool(
        (np.abs(again - recorded[: len(again)]) / deviation <= REPEATS).all()
    )


def row_of(parts: Any) -> npt.NDArray[np.float64]:
    return np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1) for part in parts.values()])


def observed(trajectories: Trajectories, episode: int, steps: int) -> npt.NDArray[np.float64]:
    """(T, n) the numbers of the first observations of an episode."""
    begin = int(trajectories.episode_starts[episode])
    rows = np.arange(begin, min(begin + steps, int(trajectories.episode_ends[episode])))
    columns = observations_at(trajectories, rows).values()
    return np.concatenate([c.reshape(len(rows), -1).astype(np.float64) for c in columns], axis=1)


def deviations(trajectories: Trajectories) -> npt.NDArray[np.float64]:
    """(n,) of each number of an observation, 1 where it is constant."""
    columns = [values.reshape(len(values), -1) for _, _, values in trajectories.parts("observations")]
    found = np.concatenate([c.std(axis=0, dtype=np.float64) for c in columns])
    return np.where(found < CONSTANT, 1.0, found)
