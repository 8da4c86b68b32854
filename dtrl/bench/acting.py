"""One environment step of acting, without the environment: transformers' loops against dtrl's contexts and engines, with the same weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from dtrl.acting import Actor, ExportedPolicy, Policy
from dtrl.acting.context import CONTEXTS
from dtrl.acting.engines import ENGINES
from dtrl.bench.peers import (
    MAX_TIMESTEP,
    OBSERVATION_WIDTH,
    RETURN_SCALE,
    TARGET,
    DocumentedLoop,
    LeanLoop,
    hopper_model,
)
from dtrl.bench.timing import Job, compare, document, interleaved, table, temporarily, torch_threads
from dtrl.interop import from_transformers
from dtrl.presets import build

__all__ = ["run", "table"]

STEPS = 22
"""Timed steps of a repetition: two periods of the `block` context at K = 20, so that its refills are counted as often as they happen."""
DOCUMENTED, LEAN = "transformers, documented loop", "transformers, lean window"
GOALS = {
    (1, "dtrl block"): 4.0,
    (1, "dtrl block, numpy"): 6.0,
    (1, "dtrl block, onnx"): 12.0,
    (1, "dtrl block, aoti"): 12.0,
    (1, "dtrl banded, aoti"): 25.0,
    (64, "dtrl block"): 10.0,
    (64, "dtrl block, onnx"): 20.0,
    (64, "dtrl block, aoti"): 20.0,
    (64, "dtrl banded, aoti"): 20.0,
}
"""Environments and side → the ratio to the documented loop that dtrl wants to reach with the same weights and the same function."""
DIFFERENCE = 1e-4


class Loop(Protocol):
    def reset(self) -> None: ...

    def act(self, observation: npt.NDArray[np.float32], reward: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]: ...


class DtrlLoop:
    """`predict` for B environments."""

    def __init__(self, policy: Actor, rows: int) -> None:
        self.policy, self.rows = policy, rows
        self.reset()

    def reset(self) -> None:
        self.state = self.policy.initial_state(self.rows)

    def act(self, observation: npt.NDArray[np.float32], reward: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        self.state.reward += reward
        action: npt.NDArray[np.float32] = self.policy.predict(observation, self.state)[0]
        return action


def run(
    repetitions: int = 100, envs: int = 1, threads: int = 1, context_length: int = 20, engines: int = 1, aoti: int = 0
) -> dict[str, Any]:
    """So many environments, on so many threads of torch and ONNX Runtime; NumPy takes those of OMP_NUM_THREADS, for the whole process.

    `engines` 0 leaves out exports; `aoti` 1 compiles one too, which takes minutes."""
    options = {
        "repetitions": repetitions,
        "envs": envs,
        "threads": threads,
        "context_length": context_length,
        "engines": engines,
        "aoti": aoti,
    }
    here = {"aoti": bool(aoti), "graph": torch.cuda.is_available()}
    which = [name for name in ENGINES if engines and here.get(name, True)]
    return document("acting", options, rows_of_results(envs, threads, repetitions, context_length, which))


def rows_of_results(
    envs: int, threads: int, repetitions: int, context_length: int, engines: Sequence[str]
) -> list[dict[str, Any]]:
    model = hopper_model()
    policies: dict[str, Actor] = {f"dtrl {name}": policy for name, policy in policies_of(model, context_length).items()}
    exports = [("block", engine) for engine in engines] + [("banded", engine) for engine in engines if engine == "aoti"]
    policies |= {
        f"dtrl {context}, {engine}": export(policies[f"dtrl {context}"], engine, envs, threads)
        for context, engine in exports
    }
    actors: dict[str, Loop] = {
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
            goal = GOALS.get((envs, name)) if peer == DOCUMENTED else None
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


def export(policy: Actor, engine: str, envs: int, threads: int) -> Actor:
    """The policy for an engine; ONNX Runtime takes its threads from the environment variable when it is made."""
    assert isinstance(policy, Policy)
    with temporarily("OMP_NUM_THREADS", str(threads)):
        return ExportedPolicy.of(policy, engine, rows=envs if engine == "aoti" else None)


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


def job(actor: Loop, observations: npt.NDArray[np.float32], rewards: npt.NDArray[np.float64], warm_up: int) -> Job:
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
    one: Loop, other: Loop, observations: npt.NDArray[np.float32], rewards: npt.NDArray[np.float64]
) -> float:
    """Of two actors' actions, over an episode that both play from its start."""
    one.reset()
    other.reset()
    return max(float(np.abs(one.act(o, r) - other.act(o, r)).max()) for o, r in zip(observations, rewards, strict=True))
