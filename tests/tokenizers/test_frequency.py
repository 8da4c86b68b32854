"""Frequencies: the cosine transform against SciPy's, FAST's closed form of the error, and byte pairs over them on recorded data."""

import math

import numpy as np
import pytest
import scipy.fft
import torch
from gymnasium import spaces

import dtrl
from dtrl.errors import InputError
from dtrl.tokenizers import Frequency, Sequential
from dtrl.tokenizers.frequency import cosines


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_the_matrix_is_the_orthonormal_transform(steps):
    x = np.random.default_rng(0).normal(size=(steps, 4))
    np.testing.assert_allclose(cosines(steps) @ x, scipy.fft.dct(x, axis=0, norm="ortho"), atol=1e-13)
    np.testing.assert_allclose(cosines(steps) @ cosines(steps).T, np.eye(steps), atol=1e-13)


def test_ids_are_scipys_coefficients_rounded_low_frequencies_first():
    x = np.random.default_rng(0).uniform(-1, 1, (200, 8, 3))
    tokenizer = Frequency((3,), block_length=8, scale=10, box=spaces.Box(-1, 1, (3,)))
    tokenizer.fit(x)
    units = tokenizer.encode(torch.from_numpy(x))[:, 0].numpy() - tokenizer.zero
    expected = 10 * scipy.fft.dct(x, axis=1, norm="ortho").reshape(200, -1)
    assert np.abs(units - expected).max() <= 0.5 + 1e-4  # 1e-4: in float32 a coefficient of 28 has a resolution of 2e-6


@pytest.mark.parametrize("scale", [10.0, 30.0])
@pytest.mark.parametrize("steps", [1, 10, 20])
def test_the_error_is_that_of_rounding(steps, scale):
    # 60,000 errors uniform over one unit: the mean square has a standard error of 0.9 / √60,000 = 0.37 % of itself, the root half of that. 1 % is more
    # than five of them, which chance exceeds once in a million runs; the seed is fixed besides.
    x = np.random.default_rng(0).uniform(-0.8, 0.8, (60_000 // (3 * steps), steps, 3))
    box = spaces.Box(np.array([-1, -2, 3], np.float32), np.array([1, 2, 7], np.float32))
    half, middle = np.array([1, 2, 2]), np.array([0, 0, 5])
    tokenizer = Frequency((3,), block_length=steps, scale=scale, box=box)
    values = x * half + middle
    tokenizer.fit(values if steps > 1 else values[:, 0])
    error = (tokenizer.decode(tokenizer.encode(torch.from_numpy(values))).numpy() - values) / half
    assert math.sqrt((error**2).mean()) == pytest.approx(1 / (scale * math.sqrt(12)), rel=0.01)
    assert np.linalg.norm(error, axis=1).max() <= math.sqrt(steps) / (2 * scale) + 1e-5


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_every_coefficient_has_an_id_even_the_largest(steps):
    tokenizer = Frequency((1,), block_length=steps, scale=10, box=spaces.Box(-1, 1, (1,)))
    extreme = np.concatenate([np.sign(cosines(steps)), -np.sign(cosines(steps))])[
        ..., None
    ]  # each makes one coefficient largest
    tokenizer.fit(extreme if steps > 1 else extreme[:, 0])
    units = tokenizer.encode(torch.from_numpy(extreme))[:, 0] - tokenizer.zero
    assert units[0, 0] == tokenizer.zero == round(10 * math.sqrt(steps))
    expected = 10 * scipy.fft.dct(extreme[..., 0], axis=1, norm="ortho")
    assert np.abs(units.numpy() - expected).max() <= 0.5 + 1e-4


def test_a_constant_chunk_has_one_frequency():
    tokenizer = Frequency((2,), block_length=5, box=spaces.Box(-1, 1, (2,)))
    tokenizer.fit(np.eye(5)[None, :, :2])
    units = tokenizer.encode(torch.tensor([0.5, -0.25]).expand(1, 5, 2)).reshape(5, 2) - tokenizer.zero
    assert units[0].tolist() == [11, -6]  # 10 · √5 · 0.5 = 11.2 and 10 · √5 · −0.25 = −5.6
    assert not units[1:].any()


def test_a_dimension_whose_tails_are_equal_takes_its_bounds():
    x = np.zeros((1000, 2, 1), np.float32)
    x[0], x[1] = -3, 5  # of 2000 values, four are not 0
    tokenizer = Frequency((1,), block_length=2, rule="quantiles")
    tokenizer.fit(x)
    assert (tokenizer.normalization.low.item(), tokenizer.normalization.high.item()) == (-3, 5)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_rounds_nothing_is_refused(scale):
    with pytest.raises(InputError, match=f"scale = {scale} cannot round"):
        Frequency((1,), scale=scale)


def test_it_offers_itself_for_vectors():
    assert Frequency.for_space(spaces.Box(-1, 1, (3,))).num_tokens == 60
    assert Frequency.for_space(spaces.Box(0, 255, (7, 7, 3), np.uint8)) is None
    assert Frequency.for_space(spaces.Discrete(3)) is None


@pytest.mark.slow
def test_hopper_needs_at_most_1_6_tokens_a_step_and_loses_nothing(shared_data, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))
    trajectories = dtrl.load_trajectories("hopper/medium-v0")
    actions = np.asarray(trajectories.actions)
    starts = [int(start) for start in trajectories.episode_starts]
    episodes = np.split(actions, [start for start in starts if 0 < start < len(actions)])
    # a last chunk that is too short goes on with its last action, so that every action of the dataset is encoded
    longer = [np.concatenate([e, e[-1:].repeat(-len(e) % 20, axis=0)]) for e in episodes]
    chunks = np.concatenate([e.reshape(-1, 20, 3) for e in longer])
    tokenizer = Sequential.for_space(trajectories.action_space)
    tokenizer.fit(chunks)
    x = torch.from_numpy(chunks).reshape(1, -1, 3)
    tokens = tokenizer.encode(x)
    assert not tokenizer.outside(x).any()
    assert torch.equal(tokenizer.second.decode(tokens).flatten(), tokenizer.first.encode(x).flatten())
    content = (tokens != tokenizer.padding_id).sum().item()
    assert content / len(actions) <= 1.6
    assert (tokenizer.decode(tokens) - x).square().mean().sqrt() <= 0.03
