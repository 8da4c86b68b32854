"""A cache that grows costs what its tokens cost: masks that lengths share, and memory that is taken as it is used."""

import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dtrl.backbones import Transformer
from dtrl.backbones.cache import ALIGNED, growing_mask, known_mask


@given(new=st.integers(1, 5), length=st.integers(0, 70))
def test_the_mask_of_a_growing_cache_is_that_of_its_definition(new, length):
    one = growing_mask(new, length + new, torch.device("cpu"), torch.float64)
    other = known_mask(length, new, 100, None, torch.device("cpu"), torch.float64)
    assert torch.equal(one, other)


def test_lengths_of_one_size_share_their_mask():
    pointers = {
        growing_mask(3, used, torch.device("cpu"), torch.float32).untyped_storage().data_ptr()
        for used in range(600, 1000)
    }
    assert len(pointers) <= ALIGNED


@given(new=st.integers(1, 5), length=st.integers(0, 600))
def test_a_mask_begins_where_a_gpu_may_read_it(new, length):
    mask = growing_mask(new, length + new, torch.device("cpu"), torch.float32)
    assert mask.storage_offset() % ALIGNED == mask.stride(0) % ALIGNED == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured by Linux' /proc")
@torch.no_grad()
def test_a_long_context_costs_memory_as_it_is_used():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    backbone, before = Transformer(128, 3, 1).eval(), resident()
    state = backbone.initial_state(1, 128_000)
    assert state.keys_values.nbytes == 2 * 3 * 128 * 128_000 * 4
    backbone(torch.zeros(1, 3, 128), state)
    assert resident() - before < state.keys_values.nbytes / 4
