"""The laws of every backbone: causal, the same in one piece as in any chunks, rows that do not see each other, and caches
that forget exactly what may be forgotten.

B rows, L tokens, D width; weights are made large, so that a mistake anywhere in the past is seen in the output."""

import copy

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from dtrl.backbones import BACKBONES, Pointwise, Transformer

B, L, D = 3, 17, 16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
WRONG = 1e-3
"""What is not equal differs by more than this."""

MADE = {
    "gpt2": lambda **rest: Transformer(D, 3, 4, **rest),
    "gpt2, gelu": lambda **rest: Transformer(D, 1, 1, activation="gelu", **rest),
    "gpt2, shared heads": lambda **rest: Transformer(D, 2, 4, 1, **rest),
    "gpt2, banded": lambda **rest: Transformer(D, 3, 4, band=(2, 3), **rest),
    "modern": lambda **rest: Transformer(D, 3, 2, trunk="modern", **rest),
    "modern, shared heads": lambda **rest: Transformer(D, 2, 4, 2, trunk="modern", **rest),
    "modern, banded": lambda **rest: Transformer(D, 3, 4, 2, trunk="modern", band=(3, 2), **rest),
    "pointwise": lambda dropout=0.0: Pointwise(D, 2, dropout, "relu"),
}
BANDED = [name for name in MADE if "banded" in name]
every = pytest.mark.parametrize("name", MADE)
in_both_types = pytest.mark.parametrize("dtype", TOLERANCE)


def make(name, dtype=torch.float64, **rest):
    torch.manual_seed(0)
    backbone = MADE[name](**rest).to(dtype)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() == 2 else torch.nn.init.normal_(parameter, 1, 0.3)
    return backbone.eval()


def tokens(length=L, dtype=torch.float64, seed=1):
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def room(backbone, length, chunk):
    """Slots that the longest chunk needs: a whole band back from its first token, wherever in a step that is."""
    band = getattr(backbone, "band", None)
    return length if band is None else band[0] * band[1] + chunk - 1


def in_chunks(backbone, x, sizes, capacity):
    """Outputs of consecutive calls on chunks of the given sizes."""
    state, outputs = backbone.initial_state(len(x), capacity), []
    for piece in x.split(sizes, dim=1):
        output, state = backbone(piece, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def distance(one, other):
    return (one - other).abs().max().item()


def test_every_backbone_of_the_table_is_tried():
    assert {type(make(name)) for name in MADE} == set(BACKBONES.values())


# One call


@every
@in_both_types
@torch.no_grad()
def test_future_tokens_cannot_change_the_past(name, dtype):
    backbone, x = make(name, dtype), tokens(dtype=dtype)
    before, _ = backbone(x)
    for t in range(1, L):
        changed = torch.cat([x[:, :t], 10 * tokens(L - t, dtype, seed=2)], dim=1)
        assert torch.equal(backbone(changed)[0][:, :t], before[:, :t])


@every
@torch.no_grad()
def test_an_output_depends_on_earlier_tokens_where_the_backbone_has_a_memory(name):
    backbone, x = make(name), tokens()
    changed = x.clone()
    changed[:, 3] *= -1
    difference = (backbone(x)[0] - backbone(changed)[0]).abs().amax(dim=(0, 2))
    assert difference[3] > WRONG
    assert (difference[4] > WRONG) == backbone.memory


@every
@torch.no_grad()
def test_rows_do_not_see_each_other(name):
    backbone, x = make(name), tokens()
    for i in range(B):
        assert distance(backbone(x[i : i + 1])[0], backbone(x)[0][i : i + 1]) <= 1e-12


@every
@in_both_types
@pytest.mark.parametrize("read", [[2, 4, 16, 4, 1], [2, 1], [3]], ids=str)
@torch.no_grad()
def test_reading_some_positions_is_a_slice_of_reading_all(name, dtype, read):
    backbone, x = make(name, dtype), tokens(max(read) + 1, dtype)
    output, _ = backbone(x, read=torch.tensor(read))
    assert distance(output, backbone(x)[0][:, read]) <= TOLERANCE[dtype]


@every
def test_every_parameter_learns_and_no_gradient_reaches_back_from_the_future(name):
    backbone, x = make(name), tokens().requires_grad_()
    output, _ = backbone(x)
    output[:, 5].square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in backbone.parameters())
    assert (x.grad[:, 6:] == 0).all()
    assert (x.grad[:, 5] != 0).any()


@every
def test_dropout_is_for_training_alone(name):
    backbone, x = make(name, dropout=0.5), tokens()
    with torch.no_grad():
        assert torch.equal(backbone(x)[0], make(name)(x)[0])
        backbone.train()
        assert distance(backbone(x)[0], backbone(x)[0]) > WRONG
        assert distance(make(name).train()(x)[0], make(name)(x)[0]) <= 1e-12


@every
def test_a_forward_in_inference_mode_does_not_disturb_training(name):
    """What is kept between calls, masks for one, must not belong to the mode in which it was first made."""
    backbone, x = make(name), tokens(length=23)
    with torch.inference_mode():
        backbone(x)
        backbone(x, read=torch.tensor([3]))
    for arguments in ({}, {"read": torch.tensor([3])}):
        backbone(x, **arguments)[0].sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


def loaded(backbone, weights):
    backbone.load_state_dict(weights)


def assigned(backbone, weights):
    backbone.load_state_dict(weights, assign=True)


def changed_in_place(backbone, weights):
    for name, parameter in backbone.named_parameters():
        parameter.data.copy_(weights[name])


def moved(backbone, weights):
    backbone.float().double().load_state_dict(weights)


@every
@pytest.mark.parametrize("replace", [loaded, assigned, changed_in_place, moved])
@torch.no_grad()
def test_new_weights_are_used_at_once_however_they_came(name, replace):
    backbone, x = make(name), tokens()
    weights = {key: value + 0.1 for key, value in backbone.state_dict().items()}
    replace(backbone, weights)
    new = MADE[name]().double().eval()
    new.load_state_dict(weights)
    assert torch.equal(backbone(x)[0], new(x)[0])
    assert distance(backbone(x)[0], make(name)(x)[0]) > WRONG


@every
@torch.no_grad()
def test_a_copy_has_weights_of_its_own(name):
    backbone, x = make(name), tokens()
    before = backbone(x)[0]
    copied = copy.deepcopy(backbone)
    for parameter in copied.parameters():
        parameter.add_(0.1)
    assert torch.equal(backbone(x)[0], before)
    assert distance(copied(x)[0], before) > WRONG


# Call after call


@every
@settings(max_examples=5)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=8))
@torch.no_grad()
def test_chunks_of_any_size_give_the_outputs_of_one_call(name, sizes):
    for dtype, tolerance in TOLERANCE.items():
        backbone, x = make(name, dtype), tokens(sum(sizes), dtype)
        chunked = in_chunks(backbone, x, sizes, room(backbone, sum(sizes), max(sizes)))
        assert distance(chunked, backbone(x)[0]) <= tolerance


@every
def test_chunks_may_come_while_gradients_are_tracked(name):
    backbone, x = make(name), tokens()
    length = x.shape[1]
    chunked = in_chunks(backbone, x, (length - 1, 1), room(backbone, length, length))
    assert distance(chunked, backbone(x)[0]) <= TOLERANCE[torch.float32]


@every
@pytest.mark.parametrize("begin", [2, 13])
@torch.no_grad()
def test_reading_works_in_chunks_too(name, begin):
    backbone, x = make(name), tokens()
    state = backbone.initial_state(B, L)
    _, state = backbone(x[:, :begin], state)
    output, _ = backbone(x[:, begin:], state, read=torch.tensor([3, 1]))
    assert distance(output, backbone(x)[0][:, [begin + 3, begin + 1]]) <= 1e-12


@every
@torch.no_grad()
def test_what_a_fresh_state_holds_is_never_seen(name):
    backbone, x = make(name), tokens()
    state = backbone.initial_state(B, L)
    poison(state)
    outputs = []
    for piece in x.split([1, 5, 2, 9], dim=1):
        output, state = backbone(piece, state)
        outputs.append(output)
    assert distance(torch.cat(outputs, dim=1), backbone(x)[0]) <= 1e-12


def poison(state):
    for value in vars(state).values() if state is not None else ():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.fill_(1e4)


CALLS = st.lists(
    st.tuples(
        st.integers(1, 4),  # tokens of the call
        st.lists(st.integers(0, 4), min_size=B, max_size=B),  # how many of them each row keeps
        st.lists(st.booleans(), min_size=B, max_size=B),  # which rows begin a new episode
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("name", [name for name in MADE if name != "pointwise"])  # which has no state to keep
@settings(max_examples=5)
@given(CALLS)
@torch.no_grad()
def test_rows_of_different_lengths_may_begin_anew_and_be_padded(name, calls):
    """Each row keeps the first tokens of a call, the rest is padding that the next call writes over."""
    backbone = make(name)
    state = backbone.initial_state(B, room(backbone, length=4 * len(calls), chunk=4) + 4)  # 4: for the padding
    past = [x[:0] for x in tokens()]
    for i, (new, keeps, firsts) in enumerate(calls):
        x = tokens(new, seed=i)
        state.lengths = np.where(firsts, 0, state.lengths)
        past = [row[:0] if first else row for row, first in zip(past, firsts, strict=True)]
        output, state = backbone(x, state)
        keeps = np.minimum(keeps, new)
        state.lengths = state.lengths - (new - keeps)
        for b, keep in enumerate(keeps):
            whole, _ = backbone(torch.cat([past[b], x[b]])[None])
            assert distance(output[b], whole[0, len(past[b]) :]) <= 1e-12
            past[b] = torch.cat([past[b], x[b, :keep]])


# The ring


def most_different(backbone, capacity, chunk, offset, length=40):
    """The largest difference between outputs in chunks, the first of `offset` tokens, and the outputs of one call."""
    x = tokens(length)
    sizes = [offset, *[chunk] * ((length - offset) // chunk)]
    x = x[:, : sum(sizes)]
    return distance(in_chunks(backbone, x, sizes, capacity), backbone(x)[0])


@pytest.mark.parametrize("name", BANDED)
@pytest.mark.parametrize("acting", [False, True], ids=["token by token", "the last action and what followed it"])
@torch.no_grad()
def test_a_ring_of_the_right_size_is_exact_and_one_slot_fewer_is_not(name, acting):
    backbone = make(name)
    steps, m = backbone.band
    chunk, offset, capacity = (m, m - 1, (steps + 1) * m - 1) if acting else (1, 1, steps * m)
    assert most_different(backbone, capacity, chunk, offset) <= 1e-12
    assert most_different(backbone, capacity + 1, chunk, offset) <= 1e-12
    assert most_different(backbone, capacity - 1, chunk, offset) > WRONG


@pytest.mark.parametrize("name", BANDED)
@torch.no_grad()
def test_a_ring_of_the_right_size_is_exact_for_rows_that_begin_at_different_times(name):
    backbone, x = make(name), tokens(30)
    steps, m = backbone.band
    for capacity, exact in ((steps * m, True), (steps * m - 1, False)):
        state, worst = backbone.initial_state(B, capacity), 0.0
        for t in range(30):
            state.lengths = np.where(t == np.arange(B) * 7, 0, state.lengths)
            output, state = backbone(x[:, t : t + 1], state)
            for b in range(B):
                whole, _ = backbone(x[b : b + 1, 7 * b if t >= 7 * b else 0 : t + 1])
                worst = max(worst, distance(output[b, -1], whole[0, -1]))
        assert worst <= 1e-12 if exact else worst > WRONG


@pytest.mark.parametrize("name", ["gpt2", "modern"])
@torch.no_grad()
def test_a_rolling_cache_of_a_model_without_a_band_is_not_the_window_recomputed(name):
    """The reason for bands: from the second layer on, old keys remember steps that have left the window."""
    backbone, x = make(name), tokens()
    rolled = in_chunks(backbone, x, [1] * L, capacity=6)
    assert distance(rolled[:, :6], backbone(x[:, :6])[0]) <= 1e-12
    assert distance(rolled[:, -1], backbone(x[:, -6:])[0][:, -1]) > WRONG


@pytest.mark.parametrize("name", BANDED)
@torch.no_grad()
def test_a_banded_model_forgets_what_no_layer_reaches_and_not_a_step_more(name):
    """Each of the layers looks K − 1 steps back. That outputs do not change also means that no absolute position is used."""
    backbone, x = make(name), tokens(length=48)
    steps, m = backbone.band
    reach = len(backbone.blocks) * (steps - 1)
    last = backbone(x)[0][:, -1]
    assert distance(backbone(x[:, -m * (reach + 1) :])[0][:, -1], last) <= 1e-10
    assert distance(backbone(x[:, -m * reach :])[0][:, -1], last) > 1e-6


@every
def test_a_state_has_the_type_of_the_weights(name):
    for dtype in TOLERANCE:
        state = make(name, dtype).initial_state(B, 5)
        assert state is None or all(v.dtype == dtype for v in vars(state).values() if isinstance(v, torch.Tensor))
