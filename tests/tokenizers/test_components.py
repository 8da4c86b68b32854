"""Choices as ids of one vocabulary."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.tokenizers import Components


def test_components_count_from_their_starts_in_a_vocabulary_of_the_largest():
    tokenizer = Components.for_space(spaces.MultiDiscrete([2, 5, 3], start=[-1, 0, 7]))
    assert (tokenizer.vocab_size, tokenizer.num_tokens, tokenizer.sizes) == (5, 3, [2, 5, 3])
    x = torch.tensor([[[-1, 0, 7], [0, 4, 9]]])
    assert tokenizer.encode(x).tolist() == [[[0, 0, 0], [1, 4, 2]]]
    assert torch.equal(tokenizer.decode(tokenizer.encode(x)), x)


def test_bits_are_components_of_two():
    tokenizer = Components.for_space(spaces.MultiBinary((2, 3)))
    assert (tokenizer.vocab_size, tokenizer.num_tokens) == (2, 6)


def test_ids_that_a_component_lacks_become_its_last():
    tokenizer = Components(np.array([2, 5]), np.array([3, 3]))
    assert tokenizer.decode(torch.tensor([[[4, 4], [-1, 9]]])).tolist() == [[[4, 7], [3, 7]]]


def test_padding_becomes_some_id_and_lies_outside():
    tokenizer = Components(np.array([2, 5]), np.array([3, 3]))
    x = torch.tensor([[[0, 99], [3, 7]]])
    assert tokenizer.encode(x).tolist() == [[[0, 4], [0, 4]]]
    assert tokenizer.outside(x).tolist() == [[[True, True], [False, False]]]


def test_a_value_outside_the_space_is_named():
    with pytest.raises(InputError, match="the data hold 5 in choice 1, and the space has 5 values from 0 on"):
        Components(np.array([2, 5])).fit(np.array([[0, 4], [1, 5]]))


def test_values_of_another_space_are_refused():
    tokenizer = Components(np.array([2, 5]))
    for call, value in (
        (tokenizer.fit, np.zeros((4, 3), int)),
        (tokenizer.encode, torch.zeros(1, 4, 3)),
        (tokenizer.decode, torch.zeros(1, 4, 3, dtype=torch.int64)),
    ):
        with pytest.raises(InputError, match=r"shape \(.*3\), and .*space"):
            call(value)


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_no_choice_and_choices_of_nothing_are_refused(sizes):
    with pytest.raises(InputError, match="are not numbers of values"):
        Components(np.array(sizes, dtype=np.int64))
