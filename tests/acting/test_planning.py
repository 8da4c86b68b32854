"""Planning by beams of imagined steps: against exhaustive search in a small world that the model knows exactly, and with a real model and its cache."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.acting.planning import plan
from dtrl.acting.stream import ModelStream
from dtrl.config import DecodingConfig

STATES, ACTIONS, HORIZON, DISCOUNT = 5, 2, 3, 0.9
LEVELS = torch.linspace(-2, 2, 9, dtype=torch.float64)
"""What the ids of rewards and values stand for."""


class World:
    """A deterministic world of a few states, as a stream of tokens: observation, action, reward, value, terminal. It knows each next token."""

    layout = ("observation", "action", "reward", "value", "terminal")

    def __init__(self, seed, states):
        random = np.random.default_rng(seed)
        self.next_state = torch.from_numpy(random.integers(STATES, size=(STATES, ACTIONS)))
        self.reward = torch.from_numpy(random.integers(9, size=(STATES, ACTIONS)))
        self.value = torch.from_numpy(random.integers(9, size=STATES))
        self.ends = torch.from_numpy(random.random((STATES, ACTIONS)) * 0.8)
        numbers = SimpleNamespace(decode=lambda ids: LEVELS[ids])
        flags = SimpleNamespace(decode=lambda ids: ids)
        of = {"reward": numbers, "value": numbers, "terminal": flags}
        self.model = SimpleNamespace(by_name={name: SimpleNamespace(tokenizer=t) for name, t in of.items()})
        self.now, self.action, self.place = torch.tensor(states), torch.zeros(len(states), dtype=torch.long), 1

    @property
    def rows(self):
        return len(self.now)

    def next_field(self):
        return self.layout[self.place]

    def fork(self, times):
        other = World.__new__(World)
        other.__dict__.update(self.__dict__)
        other.reorder(torch.arange(self.rows).repeat_interleave(times))
        return other

    def reorder(self, index):
        self.now, self.action = self.now[index], self.action[index]

    def logits(self):
        field, after = self.next_field(), self.next_state[self.now, self.action]
        if field == "action":
            return torch.zeros(self.rows, ACTIONS).log_softmax(-1)
        if field == "terminal":
            ends = self.ends[self.now, self.action]
            return torch.stack([1 - ends, ends], dim=-1).log()
        sure = {"observation": after, "reward": self.reward[self.now, self.action], "value": self.value[after]}[field]
        width = STATES if field == "observation" else len(LEVELS)
        return torch.full((self.rows, width), -torch.inf).scatter(1, sure[:, None], 0.0)

    def feed(self, ids):
        if self.next_field() == "action":
            self.action = ids[:, 0]
        if self.next_field() == "observation":
            self.now = ids[:, 0]
        self.place = (self.place + 1) % len(self.layout)

    def worth(self, state, actions):
        """Σ γⁱ·Sᵢ·rᵢ + γʰ·Sₕ·Vₕ of a sequence of actions, by a loop."""
        total, alive = 0.0, 1.0
        for i, action in enumerate(actions):
            total += DISCOUNT**i * alive * LEVELS[self.reward[state, action]].item()
            alive *= 1 - self.ends[state, action].item()
            state = self.next_state[state, action].item()
        return total + DISCOUNT ** len(actions) * alive * LEVELS[self.value[state]].item()


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_plan_is_the_best_of_all_sequences(seed):
    """Width 4 keeps every sequence of two steps, so the search is exhaustive as long as each of 4 beams (and the first) is continued by both actions in
    20 tries: it is not with a probability below 7 · 2⁻¹⁹, and the seeds are fixed."""
    world = World(seed, states=[0, 3])
    config = DecodingConfig(strategy="plan", beam_width=ACTIONS ** (HORIZON - 1), expansions=20, horizon=HORIZON)
    beams = plan(world, config, [np.random.default_rng(i) for i in range(2)], DISCOUNT)
    for row, state in enumerate((0, 3)):
        every = {actions: world.worth(state, actions) for actions in itertools.product(range(ACTIONS), repeat=HORIZON)}
        assert beams.value[row, 0].item() == pytest.approx(max(every.values()))
        for actions, value in zip(beams.actions[row].tolist(), beams.value[row].tolist(), strict=True):
            assert every[tuple(actions)] == pytest.approx(value)
        assert len({tuple(actions) for actions in beams.actions[row].tolist()}) == config.beam_width
    assert (world.place, world.rows) == (1, 2)


def test_a_rows_plan_does_not_depend_on_its_neighbours():
    config = DecodingConfig(strategy="plan", beam_width=2, expansions=2, horizon=HORIZON)
    generators = lambda: [np.random.default_rng(i) for i in range(3)]  # noqa: E731
    together = plan(World(0, states=[0, 3, 1]), config, generators(), DISCOUNT)
    alone = plan(World(0, states=[3]), config, generators()[1:2], DISCOUNT)
    assert torch.equal(together.actions[1], alone.actions[0])
    torch.testing.assert_close(together.value[1], alone.value[0])


@pytest.fixture
def policy(random_trajectories, untrained_policy):
    data = random_trajectories((9, 12, 7), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (2,)))
    return untrained_policy(data, preset="tt", bins=5)


def test_a_stream_says_what_the_model_says_of_the_whole_sequence(policy, random_trajectories):
    """Fed a recorded episode's tokens, in pieces, it gives the log-probabilities of one forward over all of them."""
    data = random_trajectories((9,), policy.observation_space, policy.action_space, seed=1)
    model = policy.model
    from dtrl.windows import Windows

    batch = Windows(data, 9, 1, names=model.sources).gather(np.array([0]))
    with torch.inference_mode():
        forced = {name: d.logits[0] for name, d in model(batch).items()}
        ids = torch.cat([f.tokenizer.encode(batch.values[f.source])[0] for f in model.fields], dim=-1)
        steps, tokens = ids.shape
        context = policy.new_context(2)
        x = model.embed_ids("observation", ids[:1, :1].expand(2, 1), 0, torch.zeros(2, dtype=torch.long))
        stream = ModelStream(model, context, 1, np.zeros(2, np.int64), context.extend(x))
        rest, at, logits = ids.flatten()[1:], 0, [stream.logits()]
        random = np.random.default_rng(0)
        while at < len(rest):
            count = int(random.integers(1, 7))
            piece = rest[at : at + count].expand(2, -1)
            if at == 20:
                stream = stream.fork()
            logits += stream.feed(piece).unbind(1)
            at += piece.shape[1]
    place = 1
    for said in logits[:-1]:
        step, within = divmod(place, tokens)
        name, slot = stream.layout[within]
        expected = forced[name][step, slot]
        for row in said:
            torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)
            assert (row[len(expected) :] == -torch.inf).all()
        place += 1
    assert place == steps * tokens


@torch.inference_mode()
def test_imagining_leaves_the_stream_as_it_is(policy):
    context = policy.new_context(2)
    x = policy.model.embed_ids("observation", torch.tensor([[1, 2], [3, 0]]), 0, torch.zeros(2, dtype=torch.long))
    stream = ModelStream(policy.model, context, 2, np.zeros(2, np.int64), context.extend(x))
    before = stream.logits(), context.state.keys_values.clone(), context.state.lengths.copy()
    config = DecodingConfig(strategy="plan", beam_width=3, expansions=2, horizon=4)
    beams = plan(stream, config, [np.random.default_rng(i) for i in range(2)], 1.0)
    assert beams.actions.shape == (2, 3, 4 * 2)
    assert (beams.value.diff(dim=1) <= 0).all()
    assert torch.equal(stream.logits(), before[0])
    assert torch.equal(context.state.keys_values, before[1])
    assert (context.state.lengths == before[2]).all()
