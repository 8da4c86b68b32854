"""Actions that are decided token by token: acting is teacher forcing, whatever the context and the parts of the action."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.windows import Windows

VECTOR = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "numbers": spaces.Box(-1, 1, (2, 2)),
    "one": spaces.Discrete(4, start=1),
    "choices": spaces.MultiDiscrete([2, 5, 3]),
}
LENGTHS = (9, 2, 12, 7)


@pytest.fixture
def episodes(random_trajectories):
    return lambda kind: random_trajectories(LENGTHS, VECTOR, ACTIONS[kind])


@pytest.mark.parametrize(
    ("preset", "attention", "kind"),
    [
        pytest.param(preset, attention, kind, marks=() if i == j else pytest.mark.slow)
        for preset, (i, attention), (j, kind) in itertools.product(
            ["dt_discrete", "tt"], enumerate(["window", "banded", "full"]), enumerate(ACTIONS)
        )
    ],
)
def test_acting_token_by_token_is_teacher_forcing(episodes, untrained_policy, preset, attention, kind):
    data = episodes(kind)
    policy = untrained_policy(data, preset=preset, attention=attention, bins=7)
    assert len(policy.decisions) == int(np.prod(ACTIONS[kind].shape))
    contexts = ("window", "block") if attention == "window" else (attention,)
    for context in contexts:
        assert policy.variant(context=context).replay(data) <= 1e-4


@pytest.mark.parametrize("attention", ["window", "banded", "full"])
def test_codes_and_what_they_leave_over_are_teacher_forcing_too(episodes, untrained_policy, attention):
    data = episodes("numbers")
    policy = untrained_policy(data, preset="vq_dt", attention=attention, bins=4)
    assert [(d.names, d.fed) for d in policy.decisions] == [(("action",), True)] * 2 + [(("offset:action",), False)]
    assert policy.replay(data) <= 1e-4
    fields, actions = policy.model.by_name, torch.from_numpy(data.actions)[None]
    parts = [fields[name].tokenizer for name in ("action", "offset:action")]
    whole = sum(tokenizer.decode(tokenizer.encode(actions)) for tokenizer in parts)
    torch.testing.assert_close(whole, actions, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_draft_head_changes_nothing_of_the_model_that_it_guesses_for(episodes, untrained_policy, kind):
    data = episodes(kind)
    policy = untrained_policy(data, preset="dt_discrete", bins=7, draft_head=True, attention="banded")
    assert policy.replay(data) <= 1e-4
    model = policy.model
    batch = Windows(data, 4, 5, names=model.sources).batch(0)
    loss = model.loss(batch)
    tokens = int(np.prod(ACTIONS[kind].shape))
    assert model(batch)["draft:action"].batch_shape == (5, 4, tokens)
    assert loss.by_field["draft:action"][2] == loss.by_field["action"][2] == batch.valid.sum() * tokens
    drafted = -model(batch)["draft:action"].log_prob(model.by_name["action"].tokenizer.encode(batch.values["action"]))
    drafted.sum().backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"heads"}
