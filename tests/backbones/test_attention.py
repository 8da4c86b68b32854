"""The parts of a transformer, each against its definition written out."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from dtrl.backbones import Transformer, cache
from dtrl.backbones.attention import rotate
from dtrl.backbones.base import ACTIVATIONS
from dtrl.backbones.cache import additive, attend, visible
from dtrl.backbones.dropout import dropout

B, H, L, S, W = 2, 4, 5, 7, 6
"""Rows, heads, queries, keys, width of a head."""


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def query_key_value(kv_heads=H):
    return random(B, H, L, W), random(B, kv_heads, S, W, seed=1), random(B, kv_heads, S, W, seed=2)


def some_mask():
    mask = torch.rand(B, 1, L, S, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[..., 0] = True  # a query that sees no key has no output
    return mask


# What a token sees


def may_see(query, key, band):
    """Causality and the band in words: not the future, not an empty slot, not more than K − 1 steps back."""
    if key < 0 or key > query:
        return False
    if band is None:
        return True
    steps, tokens = band
    return query // tokens - key // tokens < steps


@given(
    st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.lists(st.integers(-5, 30), min_size=1, max_size=6),
)
def test_the_mask_is_causality_and_the_band(band, queries, keys):
    expected = [[may_see(q, k, band) for k in keys] for q in queries]
    assert visible(torch.tensor(queries), torch.tensor(keys), band).tolist() == expected


def test_a_band_of_one_step_is_the_step_itself():
    mask = visible(torch.arange(6), torch.arange(6), (1, 3))
    assert torch.equal(mask, torch.block_diag(*[torch.ones(3, 3).tril()] * 2).bool())


# Attention


def softmax_by_hand(query, key, value, mask):
    out = torch.zeros(B, H, L, W, dtype=query.dtype)
    shared = H // key.shape[1]
    for b in range(B):
        for h in range(H):
            for i in range(L):
                seen = [j for j in range(S) if mask[b, 0, i, j]]
                weights = [math.exp(float(query[b, h, i] @ key[b, h // shared, j]) / math.sqrt(W)) for j in seen]
                for j, weight in zip(seen, weights, strict=True):
                    out[b, h, i] += weight / sum(weights) * value[b, h // shared, j]
    return out


@pytest.fixture(params=["evaluation", "training", "acting", "acting on many keys"])
def rate(request, monkeypatch):
    """All ways through `attend`; in training the weights pass through dropout, which here drops nothing."""
    if request.param.startswith("acting"):
        monkeypatch.setattr(cache, "MANY_ROWS" if request.param == "acting" else "MANY_KEYS", 1)
        with torch.no_grad():
            yield 0.0
        return
    monkeypatch.setattr(cache, "dropout", lambda x, rate: x)
    yield 0.0 if request.param == "evaluation" else 0.5


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_the_softmax_written_out(kv_heads, rate):
    inputs, mask = query_key_value(kv_heads), some_mask()
    expected = softmax_by_hand(*inputs, mask)
    torch.testing.assert_close(attend(*inputs, additive(mask, torch.float64), rate), expected, rtol=1e-12, atol=1e-12)


def test_attention_is_torchs_own(rate):
    query, key, value = query_key_value()
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=some_mask())
    torch.testing.assert_close(
        attend(query, key, value, additive(some_mask(), torch.float64), rate), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_heads_are_repeated_heads(kv_heads, rate):
    query, key, value = query_key_value(kv_heads)
    repeated = [t.repeat_interleave(H // kv_heads, dim=1) for t in (key, value)]
    ours, full = (
        attend(query, key, value, additive(some_mask(), torch.float64), rate),
        attend(query, *repeated, additive(some_mask(), torch.float64), rate),
    )
    torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)


def test_attention_in_training_drops_weights_and_keeps_their_mean():
    """Means of 1,000 outputs, which are near normal: one of the 240 is off by six deviations with probability 5e-7."""
    torch.manual_seed(0)
    query, key, value = query_key_value()
    mask = some_mask()
    dropped = torch.stack([attend(query, key, value, additive(mask, query.dtype), 0.25) for _ in range(1_000)])
    deviation = dropped.std(dim=0)
    assert deviation.max() > 0.1
    error = (dropped.mean(dim=0) - attend(query, key, value, additive(mask, query.dtype), 0.0)).abs()
    assert (error <= 6 * deviation / math.sqrt(1_000) + 1e-6).all()  # an output of a single key may have no deviation


# Rotary positions


def angles(positions, width=W):
    transformer = Transformer(2 * width, 1, 2, trunk="modern").double()
    return transformer.rotation(positions, torch.float64)


def test_a_rotation_turns_pairs_of_entries_by_their_frequency():
    x, position = random(1, 1, 1, W), 7
    expected = torch.empty(W, dtype=torch.float64)
    for i in range(W // 2):
        angle = position * 10_000 ** (-2 * i / W)
        one, other = x[0, 0, 0, i], x[0, 0, 0, i + W // 2]
        expected[i] = one * math.cos(angle) - other * math.sin(angle)
        expected[i + W // 2] = one * math.sin(angle) + other * math.cos(angle)
    turned = rotate(x, *angles(torch.tensor([position])))[0, 0, 0]
    torch.testing.assert_close(turned, expected, rtol=1e-6, atol=1e-6)  # the frequencies are float32


@pytest.mark.parametrize("shift", [1, 17, 1_000])
def test_rotated_scores_depend_on_distance_alone(shift):
    query, key, _ = query_key_value()
    here = [rotate(x, *angles(torch.arange(x.shape[2]))) for x in (query, key)]
    there = [rotate(x, *angles(torch.arange(x.shape[2]) + shift)) for x in (query, key)]
    scores, shifted = (q @ k.transpose(-1, -2) for q, k in (here, there))
    torch.testing.assert_close(scores, shifted, rtol=1e-10, atol=1e-10)
    assert (scores - query @ key.transpose(-1, -2)).abs().max() > 0.1


def test_rows_may_have_positions_of_their_own():
    positions = torch.tensor([[0, 1, 2, 3, 4], [9, 10, 11, 12, 13]])
    together = rotate(random(2, H, 5, W), *angles(positions))
    for row in range(2):
        alone = rotate(random(2, H, 5, W)[row : row + 1], *angles(positions[row]))
        assert torch.equal(together[row : row + 1], alone)


# The whole network against its formulas


def linear(x, weights, name):
    bias = weights.get(f"{name}.bias")
    return x @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def layer_norm(x, weights, name):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rms_norm(x, weights, name):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]


def by_formula(x, weights, heads, kv_heads, modern):
    """A causal pre-norm transformer from its saved weights, one head at a time."""
    norm, length, width = rms_norm if modern else layer_norm, x.shape[1], x.shape[2] // heads
    rotation = angles(torch.arange(length), width)
    for block in sorted({name.split(".")[1] for name in weights if name.startswith("blocks.")}):
        prefix = f"blocks.{block}"
        slices = linear(norm(x, weights, f"{prefix}.attention_norm"), weights, f"{prefix}.query_key_value").split(
            width, -1
        )
        turn = (lambda t: rotate(t[:, None], *rotation)[:, 0]) if modern else (lambda t: t)
        mixed = []
        for h in range(heads):
            shared = h // (heads // kv_heads)
            query, key, value = turn(slices[h]), turn(slices[heads + shared]), slices[heads + kv_heads + shared]
            scores = query @ key.transpose(1, 2) / math.sqrt(width)
            hidden = torch.ones(length, length).triu(1).bool()
            mixed.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ value)
        x = x + linear(torch.cat(mixed, -1), weights, f"{prefix}.projection")
        inner = norm(x, weights, f"{prefix}.mlp_norm")
        if modern:
            gate, up = linear(inner, weights, f"{prefix}.mlp.gate_up").chunk(2, -1)
            inner = gate * torch.sigmoid(gate) * up
        else:
            inner = linear(inner, weights, f"{prefix}.mlp.up").clamp(min=0)
        x = x + linear(inner, weights, f"{prefix}.mlp.down")
    return norm(x, weights, "norm")


@pytest.mark.parametrize("trunk", ["gpt2", "modern"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_the_network_is_its_formulas(trunk, kv_heads):
    torch.manual_seed(0)
    transformer = Transformer(24, 2, 4, kv_heads, trunk=trunk).double().eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = random(2, 9, 24)
    expected = by_formula(x, transformer.state_dict(), 4, kv_heads, trunk == "modern")
    torch.testing.assert_close(transformer(x)[0], expected, rtol=1e-10, atol=1e-10)


def test_weights_that_end_a_residual_branch_begin_smaller():
    """Deviations of 16,384 and more weights are right to 0.6 %; 4 % is seven deviations of that."""
    torch.manual_seed(0)
    block = Transformer(128, 3, 1).blocks[0]
    for weight, expected in (
        (block.query_key_value.weight, 0.02),
        (block.mlp.up.weight, 0.02),
        (block.projection.weight, 0.02 / math.sqrt(6)),
        (block.mlp.down.weight, 0.02 / math.sqrt(6)),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.04)
    assert all((parameter == 0).all() for name, parameter in block.named_parameters() if name.endswith("bias"))


def test_a_gated_layer_has_about_as_many_weights_as_the_plain_one():
    def count(trunk):
        return sum(parameter.numel() for parameter in Transformer(128, 1, 1, trunk=trunk).blocks[0].mlp.parameters())

    assert count("modern") == pytest.approx(count("gpt2"), rel=0.02)


def test_the_gelu_is_gpt2s():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    expected = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), expected, rtol=1e-12, atol=1e-12)


# Dropout

N = 400_000


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share(rate):
    """Share of 400,000; six standard deviations are passed with probability 2e-9."""
    torch.manual_seed(0)
    share = (dropout(torch.ones(N), rate) == 0).double().mean().item()
    assert abs(share - rate) < 6 * math.sqrt(rate * (1 - rate) / N)


@pytest.mark.parametrize("rate", [0.1, 1 / 3, 0.9])
def test_the_rate_is_rounded_to_sixteen_bits_and_the_rest_scaled_to_be_unbiased(rate):
    torch.manual_seed(0)
    kept = 65536 - round(rate * 65536)
    values = dropout(torch.ones(10_000), rate).unique().tolist()
    assert values == [0, pytest.approx(65536 / kept, rel=1e-7)]


def test_the_four_decisions_of_a_random_number_are_independent():
    """Correlation of 100,000 pairs has a deviation of 0.0032: 0.02 is passed by one of six with probability 2e-9."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(N), 0.3) != 0).reshape(-1, 4).numpy()
    assert np.abs(np.corrcoef(kept.T) - np.eye(4)).max() < 0.02
    assert abs(np.corrcoef(kept[:-1, 3], kept[1:, 0])[0, 1]) < 0.02


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (2, 3, 5)])
def test_any_shape_may_be_dropped(shape):
    torch.manual_seed(0)
    draws = torch.stack([dropout(torch.ones(shape), 0.5) for _ in range(60)])
    assert draws.shape == (60, *shape)
    assert set(draws.unique().tolist()) == {0.0, 2.0}
    assert (draws == 0).any(dim=0).all()  # an entry is kept 60 times with probability 9e-19
    assert (draws == 2).any(dim=0).all()


def test_the_gradient_is_zero_where_x_was_dropped_and_scaled_elsewhere():
    torch.manual_seed(0)
    x = torch.randn(1_000, requires_grad=True)
    y = dropout(x, 0.25)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    torch.testing.assert_close(x.grad[y != 0], torch.full_like(x.grad[y != 0], 4 / 3))


def test_dropout_follows_torchs_seed_and_no_rate_is_no_change():
    x = torch.randn(50)
    draws = [torch.manual_seed(seed) and dropout(x, 0.5) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert dropout(x, 0.0) is x
