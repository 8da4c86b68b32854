"""What choosing costs: the strategies of decoding, each beside the same model without it, without its cache, or without its draft."""

import math
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.acting import Policy, load_policy
from dtrl.acting.context import Counts, Full
from dtrl.acting.drafting import draft_of
from dtrl.acting.dreaming import after_prompt
from dtrl.acting.planning import plan
from dtrl.acting.runs import CONFIG_FILE
from dtrl.acting.state import Begins, PolicyState
from dtrl.acting.stream import ModelStream
from dtrl.bench import timing
from dtrl.bench.timing import Job, compare, document, interleaved, torch_threads
from dtrl.config import DRAFTS, DecodingConfig, ModelConfig, TrainingConfig
from dtrl.decoding.progress import Progress, Stop
from dtrl.decoding.speculative import speed_up
from dtrl.errors import InputError
from dtrl.training.trainer import Trainer
from dtrl.trajectories import Trajectories, load_trajectories
from dtrl.windows import Windows

__all__ = ["run", "table"]

STEPS = 22
"""Timed steps of a repetition: two periods of the `block` context at K = 20."""
CONTEXT_LENGTH, PLANNED_FROM = 20, 5
"""Steps that a policy looks back, and those before a plan is made."""
ACTIONS = 18
"""Of the Arcade Learning Environment."""
CHEETAH = (17, 6)
"""Widths of HalfCheetah's observations and actions."""
HOPPER = (11, 3)
SPECULATED = 100
"""Steps over which guesses are counted."""
Array = npt.NDArray[Any]


def run(
    repetitions: int = 20,
    plans: int = 2,
    horizon: int = 15,
    beam_width: int = 32,
    updates: int = 300,
    guesses: int = 5,
    threads: int = 1,
    speculative_run: str = "",
) -> dict[str, Any]:
    """`plans` are timed with and without the cache; the model of speculative decoding is trained for so many updates, as its draft can guess nothing of
    random weights, and `guesses` tokens are guessed at most. Or it is that of `speculative_run`, the run directory of a preset `dt_discrete` with
    a `draft_head`, on the dataset that it was trained on."""
    options = dict(locals())
    with torch_threads(threads):
        results = [
            *choosing_rows(repetitions, threads),
            planning_row(plans, horizon, beam_width, threads),
            *speculation_rows(repetitions, updates, guesses, threads, speculative_run),
        ]
    return document("decoding", options, results)


def table(document: dict[str, Any]) -> str:
    lines = [
        f"{row['dtrl']}: {row['acceptance_rate']:.2f} of the guesses accepted, {row['tokens_per_pass']:.2f} tokens a pass; "
        f"a guess costs {row['cost']:.3f} of a pass and judging all {row['judging']:.2f}; the formula promises {row['formula']:.2f}"
        for row in document["results"]
        if "acceptance_rate" in row
    ]
    return "\n".join([timing.table(document), "", *lines])


# choosing


def choosing_rows(repetitions: int, threads: int) -> list[dict[str, Any]]:
    """A step of 64 environments with 18 actions, greedy and by top-p, beside the same step in which nothing is chosen."""
    data = made_up(HOPPER[0], spaces.Discrete(ACTIONS))
    policy = Trainer(data, ModelConfig(context_length=CONTEXT_LENGTH), quick(1), None, resume=False).policy
    decodings = {
        "greedy": DecodingConfig(),
        "sampled by top-p 0.9": DecodingConfig(strategy="sample", top_p=0.9),
    }
    policies = {name: policy.variant(context="block", decoding=decoding) for name, decoding in decodings.items()}
    nothing = NothingChosen(**vars_of(policies["greedy"]))
    jobs: dict[str, Job] = {name: stepping(p, 64, name == "greedy") for name, p in policies.items()}
    times = interleaved({**jobs, "nothing chosen": stepping(nothing, 64, True)}, repetitions)
    work = "a step of 64 environments, 18 actions"
    return [compare(work, times, name, "nothing chosen", goal=1 / 1.1, threads=threads) for name in policies]


class NothingChosen(Policy):
    """Runs its model, and takes the first action whatever it says."""

    def choose_actions(self, state: PolicyState, observations: Any, first: Any, *_: Any) -> dict[str, Any]:
        with torch.inference_mode():
            self.distributions(state, observations, first)
        return {"": np.zeros(len(state.timesteps), np.int64)}


def vars_of(policy: Policy) -> dict[str, Any]:
    names = ("model", "config", "observation_space", "action_space", "data", "context", "context_length")
    return {name: getattr(policy, name) for name in names}


def stepping(policy: Policy, rows: int, deterministic: bool, observations: Array | None = None) -> Job:
    """A repetition: a context that is full, and then the timed steps; `observations` (T, B, S) are made up where none are given."""
    if observations is None:
        shape = (CONTEXT_LENGTH + STEPS, rows, *(policy.observation_space.shape or ()))
        observations = np.random.default_rng(0).standard_normal(shape, np.float32)

    def prepare() -> Callable[[], object]:
        state = policy.initial_state(rows)

        def play(begin: int, end: int) -> None:
            for step in range(begin, end):
                policy.predict(observations[step], state, deterministic=deterministic)

        play(0, CONTEXT_LENGTH)
        return lambda: play(CONTEXT_LENGTH, CONTEXT_LENGTH + STEPS)

    return prepare


# planning


class Recomputed(Full):
    """All tokens of the episode, run over again for each new one."""

    def __init__(self, backbone: Any, tokens: Tensor) -> None:
        self.backbone, self.seen = backbone, tokens

    def step(self, x: Tensor, counts: Counts, first: Begins) -> Tensor:
        return self.extend_all(x)[:, -1]

    def extend_all(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, x], dim=1)
        hidden: Tensor = self.backbone(self.seen)[0]
        return hidden[:, -x.shape[1] :]

    def select(self, rows: Counts) -> "Recomputed":
        return Recomputed(self.backbone, self.seen[rows])


def planning_row(plans: int, horizon: int, beam_width: int, threads: int) -> dict[str, Any]:
    """A plan of a Trajectory Transformer for Hopper, with random weights, in the fifth step of an episode. Raises RuntimeError where both ways differ."""
    data = made_up(HOPPER[0], spaces.Box(-1, 1, HOPPER[1:]))
    model = ModelConfig(preset="tt", context_length=PLANNED_FROM)
    policy = Trainer(data, model, quick(1), None, resume=False).policy
    config = DecodingConfig(strategy="plan", horizon=horizon, beam_width=beam_width)
    found = {}

    def job(name: str, stream: ModelStream) -> Job:
        def make() -> None:
            with torch.inference_mode():
                found[name] = plan(stream, config, [np.random.default_rng(0)], 1.0).actions

        return lambda: make

    ours, peer = "plan, cached", "plan, the sequence anew for each token"
    streams = dict(zip((ours, peer), streams_after(policy, data, PLANNED_FROM), strict=True))
    times = interleaved({name: job(name, stream) for name, stream in streams.items()}, plans, warm_up=0)
    if not torch.equal(found[ours], found[peer]):
        raise RuntimeError("the plans with and without the cache differ: their times can't be compared")
    work = f"a plan of {horizon} steps, {beam_width} beams, 11/3 dimensions"
    return compare(work, times, ours, peer, goal=10.0, threads=threads)


def streams_after(policy: Policy, data: Trajectories, steps: int) -> tuple[ModelStream, ModelStream]:
    """Two streams whose next token is an action's first, after the same steps: on the policy's context, and on one without a cache."""
    model, known = policy.model, policy.model.tokens_of(policy.before)
    with torch.inference_mode():
        cached = after_prompt(policy, data.select([0]), steps)
        batch = Windows(data, steps, 1, names=model.sources).gather(np.zeros(1, np.int64))
        everything = model.embed([f.name for f in model.fields if f.in_context], batch.values, batch.timesteps)
        tokens = everything[:, : (steps - 1) * model.tokens_per_step + known]
        context = Recomputed(model.backbone, tokens[:, :-1])
        hidden = context.extend(tokens[:, -1:])
    return cached, ModelStream(model, context, known, np.array([steps - 1]), hidden)


# speculation


def speculation_rows(repetitions: int, updates: int, guesses: int, threads: int, run: str) -> list[dict[str, Any]]:
    """Sampling an action of several dimensions in one environment, with each draft and without."""
    policy, data = trained_on(run) if run else quickly_trained(updates)
    policy = policy.variant(context="block")
    observations = np.array(data.observations[: max(CONTEXT_LENGTH + STEPS, SPECULATED)], np.float32)[:, None]
    plain = "token by token"
    drafted = {
        f"speculative, {draft} draft": policy.variant(
            decoding=DecodingConfig(strategy="speculative", draft=draft, draft_tokens=guesses)
        )
        for draft in DRAFTS
    }
    policies = {plain: policy.variant(decoding=DecodingConfig(strategy="sample")), **drafted}
    jobs = {name: stepping(p, 1, False, observations) for name, p in policies.items()}
    times = interleaved(jobs, repetitions)
    tokens = len(policy.decisions)
    work = f"sampling an action of {tokens} tokens, {observations.shape[-1]}/{tokens} dimensions"
    return [
        compare(work, times, name, plain, goal=2.0, threads=threads) | speculation_of(p, guesses, observations)
        for name, p in drafted.items()
    ]


def quickly_trained(updates: int) -> tuple[Policy, Trajectories]:
    data = made_up(CHEETAH[0], spaces.Box(-1, 1, CHEETAH[1:]))
    model = ModelConfig(preset="dt_discrete", draft_head=True, context_length=CONTEXT_LENGTH)
    trainer = Trainer(data, model, quick(updates), None, resume=False)
    for update in range(1, updates + 1):
        trainer.update(update)
    return trainer.policy, data


def trained_on(run: str) -> tuple[Policy, Trajectories]:
    """The policy of a run directory, and the data that it was trained on. Raises InputError where the run does not say which."""
    policy, config = load_policy(run), Path(run) / CONFIG_FILE
    if not config.is_file() or not isinstance(policy, Policy):
        raise InputError(
            f"speculative_run {run} is no run directory with a {CONFIG_FILE}, which names the data; give the --logdir of `dtrl train`."
        )
    data = tomllib.loads(config.read_text())["data"]
    return policy, load_trajectories(data.pop("datasets"), **data)


def speculation_of(policy: Policy, guesses: int, observations: Array) -> dict[str, float]:
    """How good and how dear the guesses are: the share accepted, tokens a pass of the model, the time of a guess and that of judging all, both in passes
    of one token, and what the formula of Leviathan et al. 2023 makes of them."""
    state = policy.initial_state(1)
    for observation in observations[:SPECULATED]:
        policy.predict(observation, state, deterministic=False)
    told, tokens = state.speculation, len(policy.decisions)
    with torch.inference_mode():
        policy.advance(state, None)
        seen = {"": observations[0]}
        hidden = policy.look(state, seen, None)
        stream = policy.stream(state, hidden)
        progress = Progress(1, tokens, Stop(), state.recent, hidden.device)

        def guess() -> None:
            draft = draft_of(policy, state, hidden, None, policy.decoding, seen)
            assert draft is not None
            draft.propose(progress, torch.tensor([guesses]), policy.decoding, state.generators)

        def passing(count: int) -> Callable[[], None]:
            def one_pass() -> None:
                stream.feed(torch.zeros(1, count, dtype=torch.long))
                stream.rollback(torch.full((1,), count))

            return one_pass

        one = fastest(passing(1))
        cost = fastest(guess) / guesses / one
        judging = fastest(passing(min(guesses, tokens - 1))) / one
    alpha = told.acceptance_rate
    return {
        "acceptance_rate": alpha,
        "tokens_per_pass": min(SPECULATED, len(observations)) * tokens / int(told.rounds.sum()),
        "cost": cost,
        "judging": judging,
        "formula": speed_up(alpha, guesses, cost),
    }


def fastest(call: Callable[[], object], times: int = 50) -> float:
    """Seconds of the fastest of so many calls."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken)


def quick(updates: int) -> TrainingConfig:
    return TrainingConfig(updates=updates, device="cpu", warmup_updates=0, learning_rate=1e-3)


def made_up(width: int, action_space: spaces.Space[Any]) -> Trajectories:
    """Episodes of a behaviour that can be learnt: each dimension of an action follows from the observation, up to a tenth of its range of noise; ids are
    the largest of as many numbers."""
    random = np.random.default_rng(0)
    discrete = isinstance(action_space, spaces.Discrete)
    dimensions = ACTIONS if discrete else math.prod(action_space.shape or ())
    weights = random.standard_normal((width, dimensions)) / np.sqrt(width)
    episodes = []
    for _ in range(20):
        observations = random.standard_normal((101, width)).astype(np.float32)
        numbers = np.tanh(observations[:-1] @ weights) + 0.1 * random.standard_normal((100, dimensions))
        episodes.append(
            {
                "observations": observations,
                "actions": numbers.argmax(axis=1) if discrete else np.clip(numbers, -1, 1),
                "rewards": random.random(100),
                "terminations": np.arange(100) == 99,
                "truncations": np.zeros(100, dtype=bool),
            }
        )
    return Trajectories.from_episodes(episodes, spaces.Box(-np.inf, np.inf, (width,)), action_space)
