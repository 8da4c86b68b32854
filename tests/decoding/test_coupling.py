"""Reflection coupling: what comes out is the target's Gaussian, and as often the draft's sample as can be.

ALPHA is the level of each statistical test: a correct coupling fails one in 10,000 seeds, and the seeds are fixed."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from dtrl.decoding import reflect

ALPHA = 1e-4
MANY = 50_000
DRAFT, TARGET = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64), torch.tensor([0.0, -0.2, 0.7], dtype=torch.float64)
DEVIATION = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def coupled(draft=DRAFT, target=TARGET, seed=0):
    random = np.random.default_rng(seed)
    sample = draft + DEVIATION * torch.from_numpy(random.standard_normal((MANY, 3)))
    shape = (MANY, 3)
    made = reflect(sample, draft.expand(shape), target.expand(shape), DEVIATION.expand(shape), [random] * MANY)
    return sample, *made


def test_each_entry_is_the_target_s_gaussian():
    """Kolmogorov–Smirnov over 50,000 draws of each of three entries; and along the line between the means, where reflections are."""
    _, made, _ = coupled()
    for i in range(3):
        assert kstest(made[:, i], norm(TARGET[i], DEVIATION[i]).cdf).pvalue > ALPHA
    offset = (DRAFT - TARGET) / DEVIATION
    along = ((made - TARGET) / DEVIATION) @ (offset / offset.norm())
    assert kstest(along, norm.cdf).pvalue > ALPHA


def test_the_entries_are_independent():
    """Correlations of 50,000 pairs have a deviation of 0.0045; 0.02 is passed with probability 9e-6 for each of three."""
    _, made, _ = coupled()
    correlations = np.corrcoef(made.T)[np.triu_indices(3, 1)]
    assert (abs(correlations) < 0.02).all()


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0])
def test_a_sample_stays_as_it_is_with_the_probability_that_the_gaussians_share(distance):
    """2 Φ(−d / 2); the share of 50,000 has a deviation of at most 0.0022, and 0.009 is passed with probability 5e-5."""
    direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    draft = TARGET + DEVIATION * direction / direction.norm() * distance
    sample, made, accepted = coupled(draft)
    assert abs(accepted.double().mean() - 2 * norm.cdf(-distance / 2)) < 0.009
    assert torch.equal(made[accepted], sample[accepted])
    assert (made[~accepted] != sample[~accepted]).any(-1).all()


def test_a_rejected_sample_that_is_drawn_anew_would_be_seen():
    """The control: keep what is accepted, else draw from the target itself. The test of the entries leaves it no chance."""
    sample, _, accepted = coupled()
    random = np.random.default_rng(1)
    anew = TARGET + DEVIATION * torch.from_numpy(random.standard_normal((MANY, 3)))
    offset = (DRAFT - TARGET) / DEVIATION
    made = torch.where(accepted[:, None], sample, anew)
    along = ((made - TARGET) / DEVIATION) @ (offset / offset.norm())
    assert kstest(along, norm.cdf).pvalue < 1e-10


def test_equal_gaussians_accept_everything():
    sample, made, accepted = coupled(draft=TARGET)
    assert accepted.all()
    assert torch.equal(sample, made)


def test_a_row_draws_one_number_and_does_not_depend_on_its_neighbours(generators):
    random = torch.Generator().manual_seed(0)
    sample, draft, target = torch.randn(3, 6, 2, generator=random)
    deviation = torch.ones(6, 2)
    rows = generators(6)
    whole, accepted = reflect(sample, draft, target, deviation, rows)
    assert 0 < accepted.sum() < 6
    assert [g.random() for g in rows] == [g.random(2)[1] for g in generators(6)]
    some = [4, 1]
    own = [generators(6)[row] for row in some]
    alone, _ = reflect(sample[some], draft[some], target[some], deviation[some], own)
    assert torch.equal(alone, whole[some])
