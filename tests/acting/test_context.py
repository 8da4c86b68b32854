"""Acting is the model that was trained: every legal context equals teacher forcing, and what is not equal is refused.

Rewards are multiples of 1/4, so that a return-to-go is the same number whether it is summed or counted down."""

import dataclasses
import itertools

import hypothesis
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import strategies as st

from dtrl.acting.context import CONTEXTS, EXACT, Banded, Block, Window
from dtrl.errors import InputError

K, TOKENS = 4, 3
"""Steps of a context, and tokens of a step."""
EXACT_PAIRS = [(attention, kind) for attention, kinds in EXACT.items() for kind in kinds]
INEXACT_PAIRS = [pair for pair in itertools.product(EXACT, CONTEXTS) if pair not in EXACT_PAIRS]
TRUNKS = {
    "gpt2": {},
    "modern": {"trunk": "modern"},
    "gpt2-gqa": {"kv_heads": 2},
    "modern-gqa": {"trunk": "modern", "kv_heads": 1},
}
VECTOR = spaces.Box(-np.inf, np.inf, (3,))
LOPSIDED = spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)
SPACES = {"vector-discrete": (VECTOR, spaces.Discrete(4, start=2)), "discrete-vector": (spaces.Discrete(5), LOPSIDED)}
LENGTHS = (6 * K, 1, K, 3 * K + 2, K + 1)
"""Episodes of every kind: so long that every ring turns over several times, exactly K, and a single step; three of them act side by side and end one by one."""


@pytest.fixture
def episodes(random_trajectories):
    """Makes trajectories with rewards whose sums are exact in float32."""

    def make(lengths=LENGTHS, observation_space=VECTOR, action_space=LOPSIDED, seed=0):
        made = random_trajectories(lengths, observation_space, action_space, seed)
        return dataclasses.replace(made, columns={**made.columns, "rewards": np.round(4 * made.rewards) / 4})

    return make


@pytest.fixture
def policy_for(episodes, untrained_policy):
    """Makes a policy that acts on `VECTOR` by `LOPSIDED`, in float64."""

    def make(attention, kind, **options):
        policy = untrained_policy(episodes(), attention=attention, acting={"context": kind}, **options)
        policy.model.to(torch.float64)
        return policy

    return make


def play(policy, observations, rewards, first, targets, state=None):
    """(T, rows, A) the actions of `predict` along given observations (T, rows, S), when row i begins an episode wherever first[:, i]."""
    state = state or policy.initial_state(observations.shape[1])
    actions = []
    for now in range(len(observations)):
        state.target_returns = np.where(first[now], targets[now], state.target_returns)
        actions.append(policy.predict(observations[now], state, episode_start=first[now])[0].copy())
        state.reward += rewards[now]
    return np.stack(actions)


def random_play(rows, steps, seed=0, resets=0.0):
    """What `play` takes; after the first step each row is reset with probability `resets`."""
    random = np.random.default_rng(seed)
    first = random.random((steps, rows)) < resets
    first[0] = True
    return (
        random.normal(size=(steps, rows, 3)),
        random.integers(-8, 9, (steps, rows)) / 4,
        first,
        random.integers(0, 9, (steps, rows)) * 1.0,
    )


def one_row(play_of, row, begin, end):
    """The part of `random_play` that row `row` sees from step `begin` to before `end`."""
    return tuple(x[begin:end, row : row + 1] for x in play_of)


def test_the_tables_are_complete():
    assert set(EXACT_PAIRS) >= {("window", "window"), ("window", "block"), ("banded", "banded"), ("full", "full")}
    assert {kind for _, kind in EXACT_PAIRS} == set(CONTEXTS)
    assert INEXACT_PAIRS


KINDS_OF_MODEL = [*itertools.product(TRUNKS, ["vector-discrete"]), ("gpt2", "discrete-vector")]


@pytest.mark.parametrize(
    ("attention", "kind", "trunk", "spaces_of"),
    [
        pytest.param(*pair, *model, marks=() if number == 0 or number % len(EXACT_PAIRS) == i else pytest.mark.slow)
        for (i, pair), (number, model) in itertools.product(enumerate(EXACT_PAIRS), enumerate(KINDS_OF_MODEL))
    ],
)
def test_acting_is_teacher_forcing(episodes, untrained_policy, attention, kind, trunk, spaces_of):
    data = episodes(LENGTHS, *SPACES[spaces_of])
    policy = untrained_policy(data, attention=attention, acting={"context": kind}, **TRUNKS[trunk])
    assert 0 < policy.replay(data.select([2, 3])) <= 1e-5
    policy.model.to(torch.float64)
    assert policy.replay(data, rows=3) <= 1e-12


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", EXACT["window"])
def test_a_window_model_also_acts_exactly_with_a_shorter_context(episodes, untrained_policy, kind, length):
    data = episodes()
    policy = untrained_policy(data, context_length=5, acting={"context": kind, "context_length": length})
    assert policy.context_length == length
    assert policy.replay(data, rows=3) <= 1e-5


@pytest.mark.parametrize(("attention", "kind"), EXACT_PAIRS)
def test_acting_is_teacher_forcing_beyond_the_timestep_table(episodes, untrained_policy, attention, kind):
    data = episodes()
    policy = untrained_policy(data, attention=attention, max_timestep=6, acting={"context": kind})
    assert policy.replay(data, rows=3) <= 1e-5


@pytest.mark.parametrize("head", ["gaussian", "tanh_gaussian"])
@pytest.mark.parametrize("preset", ["dt", "bc", "filtered_bc"])
def test_acting_is_teacher_forcing_for_other_heads_and_presets(episodes, untrained_policy, preset, head):
    data = episodes()
    assert untrained_policy(data, preset=preset, head=head).replay(data, rows=3) <= 1e-5


def test_acting_is_teacher_forcing_with_discounted_and_with_delayed_returns(episodes, untrained_policy):
    for changes in ({"discount": 0.9}, {"delayed": True}, {"discount": 0.9, "delayed": True}):
        data = dataclasses.replace(episodes(), **changes)
        assert untrained_policy(data).replay(data, rows=3) <= 1e-5


def test_replay_finds_a_wrong_schedule(episodes, untrained_policy, monkeypatch):
    """Teacher forcing that follows another schedule than the cache: the windows of `window` in the place of those of `block`."""
    data = episodes()
    policy = untrained_policy(data, acting={"context": "block"})
    monkeypatch.setattr(Block, "start", Window.start)
    assert policy.replay(data, rows=3) > 1e-3


def test_replay_finds_a_cache_that_forgets_too_early(episodes, untrained_policy, monkeypatch):
    data = episodes()
    policy = untrained_policy(data, acting={"context": "block"})
    initial_state = policy.initial_state

    def forgetful(*arguments):
        state = initial_state(*arguments)
        state.context.dropped = K * TOKENS
        return state

    monkeypatch.setattr(policy, "initial_state", forgetful)
    assert policy.replay(data, rows=3) > 1e-3


@pytest.mark.parametrize("trunk", ["gpt2", "modern"])
def test_a_ring_cache_on_a_window_model_is_not_the_window(policy_for, trunk):
    """The reason for `block` and `banded`: from the second layer on, old keys remember steps that have left the window."""
    policy = policy_for("window", "window", trunk=trunk)
    played = random_play(rows=2, steps=3 * K)
    ring = policy.initial_state(2)
    ring.context = Banded(policy.model.backbone, 2, K, TOKENS, policy.model.width)
    difference = np.abs(play(policy, *played) - play(policy, *played, state=ring)).max(axis=(1, 2))
    assert difference[:K].max() <= 1e-12
    assert difference[K:].min() > 1e-4


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_ring_of_banded_has_the_window_and_a_call_less_one_token(policy_for, trunk):
    """The oldest token of a call sees a whole window back while the newest is already in: one slot fewer and it is overwritten."""
    policy = policy_for("banded", "banded", **TRUNKS[trunk])
    state = policy.initial_state(1)
    assert state.context.state.capacity == K * TOKENS + TOKENS - 1
    played = random_play(rows=1, steps=3 * K)
    expected = play(policy, *played)
    for slots, exact in ((0, True), (1, True), (-1, False)):
        other = policy.initial_state(1)
        other.context.state = policy.model.backbone.initial_state(1, state.context.state.capacity + slots)
        difference = np.abs(play(policy, *played, state=other) - expected).max()
        assert difference <= 1e-12 if exact else difference > 1e-4


@pytest.mark.parametrize(("attention", "kind"), EXACT_PAIRS)
def test_a_batch_acts_as_its_rows_do_one_by_one(policy_for, attention, kind):
    policy = policy_for(attention, kind)
    played = random_play(rows=5, steps=3 * K + 1)
    alone = [play(policy, *one_row(played, row, 0, 3 * K + 1)) for row in range(5)]
    np.testing.assert_allclose(play(policy, *played), np.concatenate(alone, axis=1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("attention", "kind"), EXACT_PAIRS)
@hypothesis.settings(max_examples=4, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 4), resets=st.sampled_from([0.15, 0.02, 0.5]))
def test_episodes_that_begin_at_any_time_in_any_row_are_each_as_alone(policy_for, attention, kind, seed, rows, resets):
    policy, steps = policy_for(attention, kind), 3 * K + 3
    played = random_play(rows, steps, seed, resets)
    together = play(policy, *played)
    for row in range(rows):
        begins = [*np.flatnonzero(played[2][:, row]), steps]
        for begin, end in itertools.pairwise(begins):
            alone = play(policy, *one_row(played, row, begin, end))
            np.testing.assert_allclose(together[begin:end, row : row + 1], alone, atol=1e-12, rtol=0)


def poison(memory, first):
    """Overwrite everything that the next call must not look at, given the rows (B,) that it resets."""
    if isinstance(memory, Window):
        for row, length in enumerate(np.where(first, 0, memory.lengths)):
            memory.tokens[row, length:] = 1e4
    if isinstance(memory, Block | Banded):
        state = memory.state
        tensors = [
            value for value in vars(state).values() if isinstance(value, torch.Tensor) and value.is_floating_point()
        ]
        assert tensors
        for row, length in enumerate(np.where(first, 0, state.lengths)):
            oldest = max(0, length // TOKENS - K + 1) * TOKENS if type(memory) is Banded else 0
            stale = torch.ones(state.capacity, dtype=torch.bool)
            stale[torch.arange(oldest, length) % state.capacity] = False
            for tensor in tensors:
                tensor[:, row, :, stale] = 1e4


@pytest.mark.parametrize("trunk", ["gpt2", "modern"])
@pytest.mark.parametrize(("attention", "kind"), EXACT_PAIRS)
def test_stale_slots_and_padding_change_nothing(policy_for, attention, kind, trunk):
    """Bit for bit, over staggered resets: a masked key has weight 0, and what a padded token says is never read."""
    policy, rows, steps = policy_for(attention, kind, trunk=trunk), 3, 3 * K + 3
    random = np.random.default_rng(0)
    clean, poisoned = (policy.initial_state(rows).context for _ in range(2))
    resets = random.random((steps, rows)) < 0.15
    resets[0] = True
    assert resets[1:].any(axis=0).all()
    assert not resets[-K:].all()
    for first in resets:
        x = torch.from_numpy(random.normal(size=(rows, TOKENS, policy.model.width)))
        counts = np.where(first, TOKENS - 1, TOKENS)
        with torch.inference_mode():
            expected = clean.step(x, counts, first)
            poison(poisoned, first)
            x[first, -1] = 1e4
            hidden = poisoned.step(x, counts, first)
        assert torch.isfinite(hidden).all()
        assert torch.equal(hidden, expected)


@pytest.mark.parametrize(("attention", "kind"), INEXACT_PAIRS)
def test_an_inexact_context_is_refused_with_the_reason(episodes, untrained_policy, attention, kind):
    reason = {
        "window": "steps that have left the window",
        "banded": "layers reach further back",
        "full": "never saw a window that begins later",
    }
    data = episodes()
    with pytest.raises(
        InputError,
        match=f"context {kind} is not exact .* {attention} attention: .*{reason[attention]}.*; use {EXACT[attention][0]}",
    ):
        untrained_policy(data, attention=attention, acting={"context": kind})
    with pytest.raises(InputError, match=f"context {kind} is not exact"):
        untrained_policy(data, attention=attention).variant(context=kind)


def test_an_unknown_context_is_refused_by_name(episodes, untrained_policy):
    with pytest.raises(InputError, match=r"context 'ring' is unknown; one of window, block, banded, full\."):
        untrained_policy(episodes(), acting={"context": "ring"})


@pytest.mark.parametrize("length", [K + 1, 0, -1])
def test_a_context_longer_than_the_model_was_trained_for_is_refused(episodes, untrained_policy, length):
    with pytest.raises(InputError, match=rf"context length {length} is outside 1 … {K}"):
        untrained_policy(episodes(), acting={"context_length": length})


@pytest.mark.parametrize("attention", ["banded", "full"])
def test_the_length_of_banded_and_full_attention_is_a_part_of_the_model(episodes, untrained_policy, attention):
    with pytest.raises(InputError, match=f"context length 3 differs from the .* {attention} attention"):
        untrained_policy(episodes(), attention=attention, acting={"context_length": 3})


def test_full_attention_raises_at_the_first_step_past_the_trained_length(episodes, untrained_policy):
    policy = untrained_policy(episodes([6, 4]), attention="full")
    observations, rewards, first, targets = random_play(rows=2, steps=7)
    state = policy.initial_state(2)
    play(policy, observations[:6], rewards[:6], first[:6], targets[:6], state)
    with pytest.raises(InputError, match=r"an episode has reached step 7, .* at most 6 steps"):
        play(policy, observations[6:], rewards[6:], first[6:], targets[6:], state)


def test_full_attention_counts_the_steps_of_each_row_by_itself(policy_for, episodes):
    policy = policy_for("full", "full")
    longest = max(LENGTHS)
    observations, rewards, first, targets = random_play(rows=2, steps=2 * longest - 1)
    first[longest, 0] = first[longest - 1, 1] = True
    assert np.isfinite(play(policy, observations, rewards, first, targets)).all()


def test_block_feeds_the_backbone_five_and_a_half_tokens_a_step(episodes, untrained_policy, monkeypatch):
    """At K = 20 the window recomputes 59. In the long run it is 59 tokens every 11 steps: 29 at a refill, and 3 at each of 10 others."""
    policy = untrained_policy(episodes(), context_length=20, layers=1, width=4, heads=1)
    backbone, rows, steps, fed = policy.model.backbone, 3, 300, []
    forward = type(backbone).forward
    monkeypatch.setattr(
        backbone,
        "forward",
        lambda x, *rest, **named: (fed.append(x.shape[:2].numel()), forward(backbone, x, *rest, **named))[1],
    )
    played = random_play(rows, steps, resets=0.01)
    tokens = {}
    for kind in EXACT["window"]:
        fed.clear()
        play(policy.variant(context=kind), *played)
        tokens[kind] = sum(fed) / (rows * steps)
    assert 3 <= tokens["block"] <= 5.5
    assert tokens["window"] > 40
