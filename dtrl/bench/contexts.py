"""What a longer past costs: bytes of the cache and time of a step, from 20 to 128,000 tokens; and a long episode beside transformers' recompute of it.

The model is the paper's Hopper trunk, 3 layers of 128, for one environment: with one head as published beside transformers, and else with eight, whose
keys and values are their own or shared by four."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from dtrl.acting import Policy
from dtrl.acting.state import PolicyState
from dtrl.acting.summary import DataSummary
from dtrl.bench.acting import DIFFERENCE, DOCUMENTED, policies_of
from dtrl.bench.peers import ACTION_WIDTH, MAX_TIMESTEP, OBSERVATION_WIDTH, RETURN_SCALE, TARGET, DocumentedLoop
from dtrl.bench.peers import hopper_model as peer_model
from dtrl.bench.timing import LOW, Job, compare, document, heading, interleaved, ratios, torch_threads
from dtrl.config import ModelConfig
from dtrl.errors import InputError
from dtrl.presets import build

LENGTHS = (20, 100, 1_000, 10_000, 128_000)
"""Tokens of the past, three a step."""
HEADS, SHARED = 8, 2
BAND = 20
"""Steps."""
TOKENS = 3
STEPS = 10
"""Timed steps of a repetition, all of them at the same length."""
PEER_REPETITIONS = 5
"""At most: a recompute of 3,000 tokens takes most of a second."""


def run(repetitions: int = 20, longest: int = LENGTHS[-1], steps: int = 1_000, threads: int = 1) -> dict[str, Any]:
    """Contexts of up to `longest` tokens; beside transformers, the step at the end of an episode of `steps` (at most 1,000, its table of timesteps).

    The caches of the table hold random numbers: a prefill of 128,000 tokens takes minutes, and what a step costs does not depend on them."""
    if not 10 <= steps <= MAX_TIMESTEP or longest < LENGTHS[0]:
        raise InputError(
            f"steps {steps} must be between 10 and {MAX_TIMESTEP}, and longest {longest} at least {LENGTHS[0]} tokens."
        )
    options = {"repetitions": repetitions, "longest": longest, "steps": steps, "threads": threads}
    with torch_threads(threads):
        results = long_episode(min(repetitions, PEER_REPETITIONS), repetitions, steps, threads)
        contexts = table_of_lengths(repetitions, [tokens for tokens in LENGTHS if tokens <= longest])
    return document("contexts", options, results) | {"contexts": contexts}


def table_of_lengths(repetitions: int, lengths: list[int]) -> list[dict[str, Any]]:
    """A row a kind of context and a length. Raises RuntimeError where a cache has other bytes than the formula says."""
    jobs: dict[str, Job] = {}
    rows: list[dict[str, Any]] = []
    for attention in ("full", "banded"):
        for kv_heads in (HEADS, SHARED):
            # room for the longest everywhere: what a step costs must follow from the tokens that are there
            length = BAND if attention == "banded" else lengths[-1] // TOKENS + 2
            policy = hopper_policy(attention, length, kv_heads)
            state = policy.initial_state(1)
            fill(state, lengths[-1])
            for tokens in lengths:
                jobs[f"{attention} {kv_heads} {tokens}"] = at_length(policy, state, tokens)
                rows.append(
                    {
                        "context": attention,
                        "heads": HEADS,
                        "kv_heads": kv_heads,
                        "tokens": tokens,
                        "cache_bytes": bytes_in_use(policy, state, tokens),
                    }
                )
    for row, seconds in zip(rows, interleaved(jobs, repetitions).values(), strict=True):
        row["seconds"] = {
            "min": float(seconds.min()) / STEPS,
            "p10": float(np.percentile(seconds, LOW)) / STEPS,
        }
    return rows


def hopper_policy(attention: str, length: int, kv_heads: int) -> Policy:
    """A policy with random weights in the shape of the paper's Hopper model, apart from its heads."""
    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_WIDTH,))
    action_space = spaces.Box(-1, 1, (ACTION_WIDTH,))
    config = ModelConfig(
        context_length=length,
        attention=attention,
        heads=HEADS,
        kv_heads=kv_heads,
        max_timestep=MAX_TIMESTEP,
        return_scale=RETURN_SCALE,
        head="deterministic",
        timestep_embedding=True,
        goal="none",
    )
    data = DataSummary("random", None, None, None, discount=1.0, delayed=False, return_quantiles=())
    network = build(config, observation_space, action_space)
    return Policy(network, config, observation_space, action_space, data, target_return=TARGET)


def fill(state: PolicyState, tokens: int) -> None:
    """Random keys and values for so many tokens."""
    cache = state.context.state
    used = cache.keys_values.narrow(3, 0, min(tokens, cache.capacity))
    used.normal_(generator=torch.Generator().manual_seed(0))


def bytes_in_use(policy: Policy, state: PolicyState, tokens: int) -> int:
    """Of the cache's own tensor, with so many tokens in it."""
    cache, config = state.context.state, policy.config
    used = cache.keys_values.narrow(3, 0, min(tokens, cache.capacity))
    measured: int = used.numel() * used.element_size()
    slots = min(tokens, (BAND + 1) * TOKENS - 1) if config.attention == "banded" else tokens
    head_width = config.width // config.heads
    expected = 2 * config.layers * (config.kv_heads or config.heads) * head_width * slots * 4
    if measured != expected:
        raise RuntimeError(f"the cache of {tokens} tokens has {measured} bytes, and the formula says {expected}")
    return measured


def at_length(policy: Policy, state: PolicyState, tokens: int) -> Job:
    """A repetition: steps that each begin anew with so many tokens in the cache, the last action's not yet."""
    steps = tokens // TOKENS
    observation = np.ones((1, OBSERVATION_WIDTH), dtype=np.float32)

    def step() -> None:
        state.started = True
        state.timesteps[:] = steps
        state.context.state.lengths = np.array([TOKENS * steps - 1])
        policy.predict(observation, state)

    def play() -> None:
        for _ in range(STEPS):
            step()

    def prepare() -> Any:
        step()
        return play

    return prepare


def long_episode(peer_repetitions: int, repetitions: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """The last step of an episode, against transformers on the same history, and against dtrl's own at a tenth of it. Raises RuntimeError where
    actions differ."""
    model = peer_model()
    policy = policies_of(model, BAND)["full"]
    random = np.random.default_rng(0)
    observations = random.standard_normal((steps, 1, OBSERVATION_WIDTH)).astype(np.float32)
    rewards = random.random((steps, 1))
    state = policy.initial_state(1)
    actions: list[Any] = []
    for observation, reward in zip(observations, rewards, strict=True):
        state.reward += reward if actions else 0.0
        actions.append(policy.predict(observation, state)[0].copy())
    loop = DocumentedLoop(model, 1, steps)
    peer = at_last_step(loop, observations, np.stack(actions), rewards)
    difference = float(np.abs(peer()() - actions[-1]).max())
    if difference > DIFFERENCE:
        raise RuntimeError(f"dtrl and transformers differ by {difference}: their times can't be compared")
    now, before = f"dtrl full, step {steps:,}", f"dtrl full, step {steps // 10:,}"
    lengths = {now: steps, before: steps // 10}
    ours = {name: at_length(policy, state, TOKENS * (length - 1)) for name, length in lengths.items()}
    times = interleaved({now: ours[now], DOCUMENTED: peer}, peer_repetitions)
    own = interleaved(ours, repetitions)
    suffix = f"{threads} thread{'s' if threads > 1 else ''}"
    return [
        compare(
            f"acting, step {steps:,} of an episode, {suffix}",
            times | {now: times[now] / STEPS},
            now,
            DOCUMENTED,
            100.0 if steps == MAX_TIMESTEP else None,
            threads=threads,
            largest_difference=difference,
        ),
        compare(
            f"acting, step {steps:,} beside step {steps // 10:,}, {suffix}",
            {name: seconds / STEPS for name, seconds in own.items()},
            now,
            before,
            0.25,
            threads=threads,
        ),
    ]


def at_last_step(loop: DocumentedLoop, observations: Any, actions: Any, rewards: Any) -> Job:
    """A repetition of the peer: its loop's last step of an episode, on the history that dtrl acted along."""
    before = len(observations) - 1
    left = TARGET - np.concatenate([[0.0], np.cumsum(rewards[1:-1, 0])])

    def prepare() -> Any:
        loop.observations = torch.from_numpy(observations[:-1]).transpose(0, 1)
        loop.actions = torch.from_numpy(actions[:-1]).transpose(0, 1).float()
        loop.returns = torch.from_numpy(left / RETURN_SCALE).float().reshape(1, before, 1)
        loop.timesteps = torch.arange(before)[None]
        return lambda: loop.act(observations[-1], rewards[-1])

    return prepare


def table(document: Mapping[str, Any]) -> str:
    """The document as text."""
    body = [f"{'context':<10} {'heads':>6} {'kv heads':>9} {'tokens':>9} {'cache KiB':>12} {'a step, ms':>20}"]
    for row in document["contexts"]:
        low, least = (1e3 * row["seconds"][key] for key in ("p10", "min"))
        body.append(
            f"{row['context']:<10} {row['heads']:>6} {row['kv_heads']:>9} {row['tokens']:>9,} {row['cache_bytes'] / 1024:>12,.1f} "
            f"{f'{low:.4g} ({least:.4g})':>20}"
        )
    head = [*heading(document), "times are the 10th percentile (minimum) of the repetitions, taken in turns"]
    return "\n".join([*head, "", *body, "", *ratios(document["results"])])
