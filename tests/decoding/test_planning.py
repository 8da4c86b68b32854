"""Planning by value: the best plan of a tabular world where all are looked at, and the rules by which plans are ranked."""

import itertools
import math

import pytest
import torch

from dtrl.decoding import Continuation, RecomputedStream, rank_beam
from dtrl.decoding.planning import rank
from dtrl.errors import InputError

STATES, ACTIONS, HORIZON = 4, 3, 4
FIRST_ACTION, FIRST_STATE = 1, 10
"""Ids: 0 begins, 1 … 3 are actions, 10 … 13 states."""


@pytest.fixture(scope="module")
def world():
    """Rewards (S, A), the next state (S, A), and a token model of it: certain of states, equally torn between actions."""
    random = torch.Generator().manual_seed(0)
    rewards = torch.randn(STATES, ACTIONS, generator=random, dtype=torch.float64)
    successors = torch.randint(STATES, (STATES, ACTIONS), generator=random)

    def model(ids):
        logits = torch.full((*ids.shape, FIRST_STATE + STATES), -math.inf, dtype=torch.float64)
        states = ids >= FIRST_STATE
        logits[..., FIRST_ACTION : FIRST_ACTION + ACTIONS] = torch.where(states, 0.0, -math.inf)[..., None]
        before = torch.cat([torch.full_like(ids[:, :1], FIRST_STATE), ids[:, :-1]], dim=1)
        acting = (ids >= FIRST_ACTION) & (ids < FIRST_STATE)
        nexts = successors[(before - FIRST_STATE).clamp(min=0), (ids - FIRST_ACTION).clamp(0, ACTIONS - 1)]
        logits[acting] = logits[acting].scatter(1, (FIRST_STATE + nexts[acting])[:, None], 0.0)
        return logits, torch.zeros(*ids.shape, 1)

    return rewards, successors, model


def planner(rewards):
    """`extend` that proposes every action, one in each of the E neighbours; `complete` that asks the model for the state. Carried: state, return."""

    def extend(stream, carried, round_):
        assert stream.rows == len(carried)
        actions = torch.arange(stream.rows) % ACTIONS
        log_probs = stream.logits().log_softmax(-1)[torch.arange(stream.rows), FIRST_ACTION + actions]
        stream.feed((FIRST_ACTION + actions)[:, None])
        returns = carried[:, 1] + rewards[carried[:, 0].long(), actions]
        carried = torch.stack([carried[:, 0], returns], dim=1)
        return Continuation((FIRST_ACTION + actions)[:, None], log_probs, returns, carried)

    def complete(stream, carried, round_):
        ids = stream.logits().argmax(-1)
        stream.feed(ids[:, None])
        carried = torch.stack([ids - FIRST_STATE, carried[:, 1]], dim=1)
        return Continuation(ids[:, None], torch.zeros(len(ids)), carried[:, 1], carried)

    return extend, complete


def best_plans(rewards, successors, start):
    """Action sequences and their returns, best first."""
    found = []
    for actions in itertools.product(range(ACTIONS), repeat=HORIZON):
        state, total = start, 0.0
        for action in actions:
            total, state = total + float(rewards[state, action]), int(successors[state, action])
        found.append((total, [FIRST_ACTION + a for a in actions]))
    return sorted(found, reverse=True)


def plan(world, width):
    rewards, _, model = world
    prompts = FIRST_STATE + torch.arange(STATES)[:, None]
    carried = torch.stack([torch.arange(STATES, dtype=torch.float64), torch.zeros(STATES, dtype=torch.float64)], dim=1)
    stream = RecomputedStream(model, prompts)
    return rank_beam(stream, carried, HORIZON, width, ACTIONS, *planner(rewards)), stream


def test_a_wide_beam_finds_the_plans_of_an_exhaustive_search(world):
    plans, stream = plan(world, ACTIONS**HORIZON)
    for start in range(STATES):
        expected = best_plans(*world[:2], start)
        assert plans.ids[start, 0, ::2].tolist() == expected[0][1]
        returns = torch.tensor([total for total, _ in expected], dtype=torch.float64)
        torch.testing.assert_close(plans.values[start], returns)
        assert len({tuple(p) for p in plans.ids[start].tolist()}) == ACTIONS**HORIZON
        torch.testing.assert_close(
            plans.log_probs[start], torch.full((ACTIONS**HORIZON,), -HORIZON * math.log(ACTIONS), dtype=torch.float64)
        )
    torch.testing.assert_close(plans.carried[..., 1], plans.values)
    held = torch.tensor(stream.contents())
    assert torch.equal(held[:, 1:], plans.ids.flatten(0, 1))


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_a_plan_is_worth_what_its_actions_earn_and_never_more_than_the_best(world, width):
    plans, _ = plan(world, width)
    for start in range(STATES):
        returns = {tuple(actions): total for total, actions in best_plans(*world[:2], start)}
        for ids, value in zip(plans.ids[start, :, ::2].tolist(), plans.values[start].tolist(), strict=True):
            assert value == pytest.approx(returns[tuple(ids)])
        assert plans.values[start, 0] <= max(returns.values()) + 1e-12
        assert (plans.values[start].diff() <= 0).all()


def test_a_beam_of_one_takes_the_best_reward_at_each_step(world):
    plans, _ = plan(world, 1)
    state = 2
    for action in plans.ids[2, 0, ::2].tolist():
        assert action - FIRST_ACTION == int(world[0][state].argmax())
        state = int(world[1][state, action - FIRST_ACTION])


def test_plans_are_ranked_by_value_then_log_probability_then_place():
    values = torch.tensor([[1.0, 2.0, 2.0, 2.0, 3.0]])
    log_probs = torch.tensor([[0.0, -2.0, -1.0, -1.0, -9.0]])
    ids = torch.arange(5)[None, :, None]
    assert rank(values, log_probs, ids, 5).tolist() == [[4, 2, 3, 1, 0]]
    assert rank(values, log_probs, ids, 2).tolist() == [[4, 2]]


def test_the_same_plan_is_kept_once_and_repeated_only_to_fill_the_beam():
    values = torch.tensor([[3.0, 3.0, 2.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    ids = torch.tensor([[[7, 7], [7, 7], [1, 2], [7, 7], [1, 2]], [[7, 7], [1, 2], [3, 4], [5, 6], [0, 0]]])
    log_probs = torch.zeros(2, 5)
    assert rank(values, log_probs, ids, 5).tolist() == [[0, 2, 1, 3, 4], [0, 1, 2, 3, 4]]


def test_what_cannot_be_ranked_is_an_error(world):
    with pytest.raises(InputError, match="value of a plan of row 1 is not a number"):
        rank(torch.tensor([[0.0], [math.nan]]), torch.zeros(2, 1), torch.zeros(2, 1, 1), 1)
    with pytest.raises(InputError, match="rounds 4, width 0 and expansions 3 must be positive"):
        plan(world, 0)
