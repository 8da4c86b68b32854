"""Operations of the numpy engine beside torch's of the same name."""

import numpy as np
import pytest
import torch

from dtrl.acting.engines.operations import OPERATIONS
from dtrl.backbones.cache import GivenPast

X = torch.linspace(-2, 3, 24).reshape(2, 3, 4)
W, B = torch.linspace(-1, 1, 20).reshape(5, 4), torch.linspace(0, 1, 5)
IMAGES, KERNEL = (
    torch.linspace(-1, 1, 2 * 3 * 7 * 6).reshape(2, 3, 7, 6),
    torch.linspace(-1, 1, 4 * 3 * 3 * 2).reshape(4, 3, 3, 2),
)
IDS = torch.tensor([[0, 2], [1, 1]])
CALLS = {
    "aten.layer_norm.default": (X, [4], W[0], W[1], 1e-5),
    "aten.rms_norm.default": (X, [4], W[0], 1e-6),
    "aten.matmul.default": (X, X.transpose(1, 2).contiguous()),
    "aten.softmax.int": (X, -1),
    "aten.log_softmax.int": (X, -1),
    "aten.logsumexp.default": (X, [-1], True),
    "aten.relu.default": (X,),
    "aten.gelu.default": (X,),
    "aten.silu.default": (X,),
    "aten.sigmoid.default": (X,),
    "aten.clamp.default": (X, -1.0, 1.0),
    "aten.split_with_sizes.default": (X, [1, 3], -1),
    "aten.chunk.default": (X, 2, -1),
    "aten.slice.Tensor": (X, 1, 1, 9223372036854775807),
    "aten.select.int": (X, -1, 2),
    "aten.flatten.using_ints": (X, 1, 2),
    "aten.unflatten.int": (X, -1, [2, 2]),
    "aten.unsqueeze.default": (X, -2),
    "aten.transpose.int": (X, 0, 2),
    "aten.permute.default": (X, [2, 0, 1]),
    "aten.movedim.int": (X, -1, -3),
    "aten.repeat.default": (X, [1, 2, 1]),
    "aten.embedding.default": (W, IDS),
    "aten.scatter.value": (X, -1, torch.zeros(2, 3, 1, dtype=torch.long), 9.0),
    "aten.conv2d.default": (IMAGES, KERNEL, W[:4, 0], [2, 1], [1, 0]),
    "aten.pad.default": (IMAGES, [0, 1, 2, 0]),
    "aten.cat.default": ([X, X], 2),
    "aten.stack.default": ([X, X], 1),
    "aten.expand.default": (X[:, :1], [2, 3, -1]),
}  # fmt: skip


def as_arrays(value):
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return [as_arrays(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_does_what_torch_does(name):
    function, overload = name.removeprefix("aten.").split(".")
    theirs = getattr(getattr(torch.ops.aten, function), overload)(*CALLS[name])
    ours = OPERATIONS[name](*as_arrays(list(CALLS[name])))
    for one, other in zip(*((v if isinstance(v, list | tuple) else [v]) for v in (ours, theirs)), strict=True):
        assert one.shape == other.shape
        assert str(one.dtype) == str(other.dtype).removeprefix("torch.")
        np.testing.assert_allclose(one, other.numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("heads", "shared", "slots"), [(2, 2, 5), (4, 2, 5), (4, 1, 5), (2, 2, 0)])
def test_attention_to_past_and_new_is_that_to_both_joined(heads, shared, slots):
    """Beside torch's attention over the concatenation, in float64."""
    random = torch.Generator().manual_seed(0)
    rows, tokens, width = 3, 2, 4
    query = torch.randn(rows, heads, tokens, width, generator=random)
    new = torch.randn(rows, 2 * shared, tokens, width, generator=random)
    past = torch.randn(rows, 2 * shared, slots, width, generator=random) if slots else None
    hidden = torch.rand(rows, 1, tokens, slots + tokens, generator=random) < 0.4
    hidden[..., slots:] = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    key, value = (new if past is None else torch.cat([past, new], dim=2)).double().chunk(2, dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(query.double(), key, value, mask.double(), enable_gqa=True)  # fmt: skip
    arrays = (query.numpy(), new.numpy(), None if past is None else past.numpy(), mask.numpy())
    ours = OPERATIONS["dtrl.attend.default"](*arrays)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(GivenPast.mix(query, new, past, mask), expected.float(), rtol=1e-5, atol=1e-6)
