"""One environment step of acting, without the environment: transformers' loops against dtrl's four contexts, eager, with the same weights."""

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dtrl.acting import Policy
from dtrl.acting.context import CONTEXTS
from dtrl.bench.peers import (
    MAX_TIMESTEP,
    OBSERVATION_WIDTH,
    RETURN_SCALE,
    TARGET,
    DocumentedLoop,
    LeanLoop,
    hopper_model,
)
from dtrl.bench.timing import Job, compare, document, interleaved, table, torch_threads
from dtrl.interop import from_transformers
from dtrl.presets import build

__all__ = ["run", "table"]

STEPS = 22
"""Timed steps of a repetition: two periods of the `block` context at K = 20, so that its refills are counted as often as they happen."""
DOCUMENTED, LEAN = "transformers, documented loop", "transformers, lean window"
GOALS = {1: 4.0, 64: 10.0}
"""Environments → the ratio to the documented loop that dtrl wants to reach with the same weights and the same function (`window`, `block`)."""
DIFFERENCE = 1e-4


class Actor(Protocol):
    def reset(self) -> None: ...

    def act(self, observation: npt.NDArray[np.float32], reward: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]: ...


class DtrlLoop:
    """`Policy.predict` for B environments."""

    def __init__(self, policy: Policy, rows: int) -> None:
        self.policy, self.rows = policy, rows
        self.reset()

    def reset(self) -> None:
        self.state = self.policy.initial_state(self.rows)

    def act(self, observation: npt.NDArray[np.float32], reward: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        self.state.reward += reward
        action: npt.NDArray[np.float32] = self.policy.predict(observation, self.state)[0]
        return action


def run(repetitions: int = 100, envs: int = 64, context_length: int = 20) -> dict[str, Any]:
    """One environment on one thread, and `envs` on two with a fifth of the repetitions."""
    results = rows_of_results(1, 1, repetitions, context_length) + rows_of_results(
        envs, 2, max(1, repetitions // 5), context_length
    )
    return document("acting", {"repetitions": repetitions, "envs": envs, "context_length": context_length}, results)


def rows_of_results(envs: int, threads: int, repetitions: int, context_length: int) -> list[dict[str, Any]]:
    model = hopper_model()
    policies = {f"dtrl {name}": policy for name, policy in policies_of(model, context_length).items()}
    actors: dict[str, Actor] = {
        DOCUMENTED: DocumentedLoop(model, envs, context_length),
        LEAN: LeanLoop(model, envs, context_length),
    }
    actors |= {name: DtrlLoop(policy, envs) for name, policy in policies.items()}
    random = np.random.default_rng(0)
    observations = random.standard_normal((context_length + STEPS, envs, OBSERVATION_WIDTH)).astype(np.float32)
    rewards = random.random((context_length + STEPS, envs))
    difference = largest_difference(actors[DOCUMENTED], actors["dtrl window"], observations, rewards)
    if difference > DIFFERENCE:
        raise RuntimeError(f"dtrl and transformers differ by {difference}: their times can't be compared")
    with torch_threads(threads):
        times = interleaved(
            {name: job(actor, observations, rewards, context_length) for name, actor in actors.items()}, repetitions
        )
    per_step = {name: seconds / STEPS for name, seconds in times.items()}
    work = (
        f"acting, a step of {envs} environment{'s' if envs > 1 else ''}, {threads} thread{'s' if threads > 1 else ''}"
    )
    results = []
    for peer in (DOCUMENTED, LEAN):
        for name in policies:
            goal = GOALS.get(envs) if peer == DOCUMENTED and name == "dtrl block" else None
            row = compare(
                work,
                per_step,
                name,
                peer,
                goal,
                threads=threads,
                largest_difference=difference if name == "dtrl window" else None,
            )
            results.append(
                row | {"env_steps_per_second": {key: envs / row[f"{key}_seconds"]["p10"] for key in ("dtrl", "peer")}}
            )
    return results


def policies_of(model: Any, context_length: int) -> dict[str, Policy]:
    """A policy a context, all with the weights of `model`; `banded` and `full` are what models trained for them cost, not the same function."""
    window = from_transformers(model, target_return=TARGET, return_scale=RETURN_SCALE, context_length=context_length)
    policies = {"window": window, "block": window.variant(context="block")}
    for attention, length in (("banded", context_length), ("full", MAX_TIMESTEP)):
        config = replace(window.config, attention=attention, context_length=length)
        network = build(config, window.observation_space, window.action_space)
        network.load_state_dict(window.model.state_dict())
        policies[attention] = Policy(
            network, config, window.observation_space, window.action_space, window.data, target_return=TARGET
        )
    assert policies.keys() == CONTEXTS.keys()
    return policies


def job(actor: Actor, observations: npt.NDArray[np.float32], rewards: npt.NDArray[np.float64], warm_up: int) -> Job:
    """A repetition: a new episode, `warm_up` steps to fill the context, and then the timed ones."""

    def play(begin: int, end: int) -> None:
        for step in range(begin, end):
            actor.act(observations[step], rewards[step])

    def prepare() -> Any:
        actor.reset()
        play(0, warm_up)
        return lambda: play(warm_up, len(observations))

    return prepare


def largest_difference(
    one: Actor, other: Actor, observations: npt.NDArray[np.float32], rewards: npt.NDArray[np.float64]
) -> float:
    """Of two actors' actions, over an episode that both play from its start."""
    one.reset()
    other.reset()
    return max(float(np.abs(one.act(o, r) - other.act(o, r)).max()) for o, r in zip(observations, rewards, strict=True))
