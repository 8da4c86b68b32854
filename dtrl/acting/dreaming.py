"""Dreams: a model that predicts observations and rewards goes on from recorded steps as its own environment.

B rows, T steps, n tokens of a field."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.acting.decisions import Decision, decide
from dtrl.acting.planning import OUTCOMES
from dtrl.acting.stream import ModelStream
from dtrl.config import DecodingConfig
from dtrl.decoding.generate import generate
from dtrl.errors import InputError
from dtrl.spaces import flatten, leaves, unflatten
from dtrl.trajectories import Trajectories

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy


def dream(
    policy: "Policy", prompt: Trajectories, steps: int, prompt_steps: int, config: DecodingConfig, seed: int
) -> Trajectories:
    """Episodes of at most `prompt_steps` − 1 + `steps` steps: the beginnings of the prompt's, and what the model imagines from the action at their last
    observation on. One that the model believes to terminate ends there, the others are truncated. See `Policy.sample`."""
    model = policy.model
    check_dream(policy, prompt, steps, prompt_steps, config)
    generators = [np.random.default_rng([seed, row]) for row in range(prompt.num_episodes)]
    with torch.inference_mode():
        stream = after_prompt(policy, prompt, prompt_steps)
        rows = np.arange(prompt.num_episodes)
        told: dict[str, list[list[Tensor]]] = {name: [[] for _ in rows] for name in model.by_name}
        for step in range(steps + 1):  # the last one is for the observation after the last action
            for f in model.fields:
                if step == 0 and f.name in policy.before:
                    continue
                if step == steps and f.name not in policy.before:
                    break
                ids = generate(stream, config, [generators[row] for row in rows], f.tokenizer.num_tokens).ids
                stream.feed(ids[:, -1:])
                for row, one in zip(rows, ids, strict=True):
                    told[f.name][row].append(one)
                if f.name == "terminal" and bool(ids.any()):
                    going = torch.nonzero(ids[:, 0] == 0)[:, 0]
                    stream.reorder(going)
                    rows = rows[going.cpu().numpy()]
            if not len(rows):
                break
    return Trajectories.from_episodes(
        [
            whole_episode(policy, prompt.episode(row), {name: parts[row] for name, parts in told.items()}, prompt_steps)
            for row in range(prompt.num_episodes)
        ],
        policy.observation_space,
        policy.action_space,
    )


def check_dream(policy: "Policy", prompt: Trajectories, steps: int, prompt_steps: int, config: DecodingConfig) -> None:
    model = policy.model
    if any(name not in model.head_of for name in (*OUTCOMES, *policy.before)):
        raise InputError(
            f"a dream is made of observations and rewards, and preset {policy.config.preset} predicts none; train with --preset tt."
        )
    if policy.context not in ("banded", "full"):
        raise InputError(
            f"a dream goes on past the window that context {policy.context} recomputes; train with --attention banded or full."
        )
    if config.clip_return:
        raise InputError(
            "clip_return lowers the return that is wanted in an environment, and a dream wants none; leave it out."
        )
    if config.strategy not in ("greedy", "sample"):
        raise InputError(f"a dream goes with strategy greedy or sample, not {config.strategy}.")
    if min(steps, prompt_steps) < 1:
        raise InputError(f"steps {steps} and prompt_steps {prompt_steps} must be positive numbers.")
    shortest = int(prompt.episode_lengths.min())
    if shortest < prompt_steps:
        raise InputError(
            f"the prompt's shortest episode has {shortest} steps, and {prompt_steps} are asked for; choose longer episodes."
        )
    for role in ("observation_space", "action_space"):
        if getattr(prompt, role) != getattr(policy, role):
            raise InputError(
                f"the prompt's {role} is {getattr(prompt, role)}, and the policy's {getattr(policy, role)}; give episodes of its own environment."
            )


def recorded_ones(tokens: Mapping[str, Tensor], _: object, decision: Decision) -> dict[str, Tensor]:
    return decision.part(tokens)


def after_prompt(policy: "Policy", prompt: Trajectories, prompt_steps: int) -> ModelStream:
    """The stream after the observation of the prompt's last step, whose next token is an action's first."""
    starts = prompt.episode_starts
    state = policy.initial_state(prompt.num_episodes, prompt.returns_to_go[starts].astype(np.float64))
    for step in range(prompt_steps):
        at = starts + step
        first = np.ones(len(starts), dtype=bool) if step == 0 else None
        policy.advance(state, first)
        seen = {leaf.path: prompt.columns[leaf.name("observations")][at] for leaf in leaves(prompt.observation_space)}
        hidden = policy.look(state, seen, first)
        if step < prompt_steps - 1:
            state.actions = {
                leaf.path: prompt.columns[leaf.name("actions")][at] for leaf in leaves(prompt.action_space)
            }
            tokens = policy.tokens_of(state.actions, state.returns_to_go)
            decide(policy, state, hidden, partial(recorded_ones, tokens))
            state.reward = np.asarray(prompt.rewards[at], dtype=np.float64)
    return policy.stream(state, hidden)


def whole_episode(
    policy: "Policy", recorded: Mapping[str, Any], told: Mapping[str, list[Tensor]], prompt_steps: int
) -> dict[str, Any]:
    """The recorded beginning and the dream, in env units. `told` holds, by field, the ids (n,) of each step."""
    fields = policy.model.by_name

    def values(name: str) -> npt.NDArray[Any]:
        tokenizer = fields[name].tokenizer
        ids = torch.stack(told[name]) if told[name] else torch.zeros(0, tokenizer.num_tokens, dtype=torch.long)
        decoded: npt.NDArray[Any] = tokenizer.decode(ids.cpu()[None].to(policy.device))[0].cpu().numpy()
        return decoded

    steps = len(told["terminal"])
    observations, actions = {}, {}
    for leaf in leaves(policy.observation_space):
        imagined = values(leaf.name("observation"))
        known = flatten(policy.observation_space, recorded["observations"])[leaf.path][:prompt_steps]
        seen = np.concatenate([known, imagined.astype(known.dtype)])
        if len(seen) == prompt_steps - 1 + steps:  # nothing is predicted after a termination
            seen = np.concatenate([seen, seen[-1:]])
        observations[leaf.path] = seen
    for leaf in leaves(policy.action_space):
        known = flatten(policy.action_space, recorded["actions"])[leaf.path][: prompt_steps - 1]
        actions[leaf.path] = np.concatenate([known, policy.limits[leaf.name("action")](values(leaf.name("action")))])
    terminations = np.zeros(prompt_steps - 1 + steps, dtype=bool)
    terminations[-1] = bool(told["terminal"][-1])
    truncations = np.zeros_like(terminations)
    truncations[-1] = not terminations[-1]
    return {
        "observations": unflatten(policy.observation_space, observations),
        "actions": unflatten(policy.action_space, actions),
        "rewards": np.concatenate([recorded["rewards"][: prompt_steps - 1], values("reward")]),
        "terminations": terminations,
        "truncations": truncations,
    }
