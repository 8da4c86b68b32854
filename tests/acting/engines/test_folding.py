"""Norms folded into the products after them, beside torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dtrl.acting.engines.program import Program

N, EPS = 6, 1e-3
SHAPES = {"scale": (N,), "shift": (N,), "weight": (3, N), "bias": (3,), "plain": (2, N), "narrow": (2, 4)}
X, NORMAL = {"r": len(SHAPES)}, {"r": len(SHAPES) + 1}
"""Registers: the constants come first, then the input, then the results of the nodes."""
AFTER, LATER = {"r": len(SHAPES) + 2}, {"r": len(SHAPES) + 3}


def product(of, weight, bias=None):
    names = list(SHAPES)
    return ["aten.linear.default", [of, *({"r": names.index(name)} for name in (weight, bias) if name)], {}]


CASES = {
    "product": ([product(NORMAL, "weight", "bias")], [AFTER], lambda y, c: [F.linear(y, c["weight"], c["bias"])], True),
    "two products": (
        [product(NORMAL, "weight", "bias"), product(NORMAL, "plain")],
        [AFTER, LATER],
        lambda y, c: [F.linear(y, c["weight"], c["bias"]), F.linear(y, c["plain"])],
        True,
    ),
    "product of a slice of tokens": (
        [["aten.slice.Tensor", [NORMAL, 1, 1, 3], {}], product(AFTER, "weight", "bias")],
        [LATER],
        lambda y, c: [F.linear(y[:, 1:3], c["weight"], c["bias"])],
        True,
    ),
    "product of a slice of entries": (
        [["aten.slice.Tensor", [NORMAL, 2, 1, 5], {}], product(AFTER, "narrow")],
        [LATER],
        lambda y, c: [F.linear(y[..., 1:5], c["narrow"])],
        False,
    ),
    "a result too": (
        [product(NORMAL, "weight", "bias")],
        [NORMAL, AFTER],
        lambda y, c: [y, F.linear(y, c["weight"], c["bias"])],
        False,
    ),
    "read by another operation too": (
        [product(NORMAL, "weight", "bias"), ["aten.relu.default", [NORMAL], {}]],
        [AFTER, LATER],
        lambda y, c: [F.linear(y, c["weight"], c["bias"]), y.relu()],
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_norm_is_folded_into_the_products_that_alone_read_it(case):
    nodes, outputs, expected, folded = CASES[case]
    random = torch.Generator().manual_seed(0)
    constants = {name: torch.randn(*shape, generator=random) for name, shape in SHAPES.items()}
    norm = ["aten.layer_norm.default", [X, [N], {"r": 0}, {"r": 1}, EPS], {}]
    document = {"constants": list(SHAPES), "inputs": ["x"], "nodes": [norm, *nodes], "outputs": outputs}
    program = Program(document, {name: c.numpy() for name, c in constants.items()})
    x = 3 + 5 * torch.randn(2, 4, N, generator=random)
    given = program.bind(x=x.numpy())()
    normal = F.layer_norm(x, (N,), constants["scale"], constants["shift"], EPS)
    for one, other in zip(given, expected(normal, constants), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)
    assert any(step.name == "dtrl.standardize" for step in program.steps) == folded
