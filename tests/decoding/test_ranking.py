"""The rules by which imagined futures are kept."""

import math

import pytest
import torch

from dtrl.decoding.ranking import rank
from dtrl.errors import InputError


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


def test_what_cannot_be_ranked_is_an_error():
    with pytest.raises(InputError, match="value of a plan of row 1 is not a number"):
        rank(torch.tensor([[0.0], [math.nan]]), torch.zeros(2, 1), torch.zeros(2, 1, 1), 1)
