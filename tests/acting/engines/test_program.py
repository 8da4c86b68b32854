"""The interpreter of the numpy engine."""

import numpy as np
import pytest
import torch

from dtrl.acting.engines.operations import OPERATIONS
from dtrl.acting.engines.program import Program
from dtrl.errors import InputError

X = torch.linspace(-2, 3, 24).reshape(2, 3, 4)
W, B = torch.linspace(-1, 1, 20).reshape(5, 4), torch.linspace(0, 1, 5)


def test_a_program_is_a_list_of_calls_and_computes_its_constants_once(monkeypatch):
    calls = []
    monkeypatch.setitem(OPERATIONS, "aten.neg.default", lambda x: (calls.append(1), -x)[1])
    document = {
        "constants": ["w", "b"],
        "inputs": ["x"],
        "nodes": [
            ["aten.neg.default", [{"r": 1}], {}],
            ["aten.linear.default", [{"r": 2}, {"r": 0}, {"r": 3}], {}],
            ["aten.cat.default", [[{"r": 4}, {"r": 4}], -1], {}],
        ],
        "outputs": {"y": [{"r": 5}], "none": None},
    }
    program = Program(document, {"w": W.numpy(), "b": B.numpy()})
    for _ in range(3):
        out = program.bind(x=X.numpy())()
    expected = torch.nn.functional.linear(X, W, -B)
    np.testing.assert_allclose(out["y"][0], torch.cat([expected, expected], -1).numpy(), rtol=1e-5, atol=1e-6)
    assert (out["none"], len(calls)) == (None, 1)


def test_nothing_but_known_operations_is_called():
    document = {"constants": [], "inputs": ["x"], "nodes": [["eval", [{"r": 0}], {}]], "outputs": {"r": 1}}
    with pytest.raises(InputError, match="does not know the operation eval"):
        Program(document, {})


def test_a_bound_program_reads_what_its_inputs_hold_at_each_call():
    """Views of an input are taken once; what was computed from one is computed anew, and a copy is no view."""
    document = {
        "constants": [],
        "inputs": ["x"],
        "nodes": [
            ["aten.unsqueeze.default", [{"r": 0}, 0], {}],
            ["aten.to.dtype", [{"r": 1}, "float64"], {}],
            ["aten.transpose.int", [{"r": 1}, 1, 2], {}],
            ["aten.flatten.using_ints", [{"r": 3}], {}],
        ],
        "outputs": [{"r": 1}, {"r": 2}, {"r": 4}],
    }
    x = np.zeros((2, 3), np.float32)
    run = Program(document, {}).bind(x=x)
    run()
    x[:] = np.arange(6).reshape(2, 3)
    view, copy, flat = run()
    assert view[0].tolist() == copy[0].tolist() == x.tolist()
    assert flat.tolist() == x.T.ravel().tolist()
