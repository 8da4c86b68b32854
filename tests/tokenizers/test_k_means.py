"""k-means: the best codebook of tiny sets, and SciPy's on larger ones."""

import itertools

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2, vq

from dtrl.errors import InputError
from dtrl.tokenizers import KMeans
from dtrl.tokenizers.k_means import lloyd


def fitted(column, codes, **rest):
    tokenizer = KMeans(column.shape[1:], codes, **rest)
    tokenizer.fit(column)
    return tokenizer


def inertia(tokenizer, column):
    x = torch.from_numpy(column)[None]
    return float((tokenizer.decode(tokenizer.encode(x)) - x).double().square().sum())


def best_inertia(x, codes):
    """Of every way to put the rows into `codes` groups."""
    best = np.inf
    for group in itertools.product(range(codes), repeat=len(x)):
        parts = [x[np.array(group) == g] for g in set(group)]
        best = min(best, sum(np.square(part - part.mean(0)).sum() for part in parts))
    return best


@pytest.mark.parametrize(("rows", "codes"), [(6, 2), (7, 3), (8, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_tiny_sets_get_the_best_codebook_there_is(rows, codes, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    assert inertia(fitted(x, codes, restarts=20), x) == pytest.approx(best_inertia(x.astype(float), codes), rel=1e-5)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_larger_sets_are_within_one_percent_of_the_best_of_scipy(spread):
    random = np.random.default_rng(3)
    x = np.concatenate([random.normal(centre, spread, (150, 3)) for centre in random.uniform(-5, 5, (16, 3))])
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    found = [kmeans2(wide, 16, iter=50, minit="++", rng=i, missing="warn")[0] for i in range(5)]
    best = min(np.square(vq(wide, codes)[1]).sum() for codes in found)
    assert inertia(fitted(x, 16), x) <= 1.01 * best


def test_a_centre_that_loses_all_its_values_moves_to_the_farthest():
    x = np.array([[100.0], [101.0], [110.0]])
    centres, total = lloyd(x, np.array([[100.0], [500.0], [900.0]]))
    assert total == 0
    assert sorted(centres.flatten()) == [100, 101, 110]


def test_the_id_is_that_of_the_nearest_code():
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    tokenizer = fitted(x, 32)
    codes, _ = vq(x, tokenizer.codebook.numpy())
    assert tokenizer.encode(torch.from_numpy(x).reshape(5, 100, 4)).flatten().tolist() == codes.tolist()


def test_the_codes_are_the_means_of_their_values():
    x = np.concatenate([np.random.default_rng(0).normal(c, 0.1, (50, 2)) for c in range(4)]).astype(np.float32)
    tokenizer = fitted(x, 4)
    ids = tokenizer.encode(torch.from_numpy(x)[None]).flatten().numpy()
    for code in range(4):
        np.testing.assert_allclose(tokenizer.codebook[code], x[ids == code].mean(0), rtol=1e-5)


def test_few_different_values_come_back_exactly_and_the_rest_is_not_used():
    x = np.float32([[0.1, 5], [0.3, 5], [0.1, 5], [9, 5]]).repeat(10, axis=0)
    tokenizer = fitted(x, 8)
    ids = tokenizer.encode(torch.from_numpy(x)[None])
    assert torch.equal(tokenizer.decode(ids)[0], torch.from_numpy(x))
    assert len(ids.unique()) == 3


def test_a_seed_gives_one_codebook():
    x = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    assert torch.equal(fitted(x, 8, seed=1).codebook, fitted(x, 8, seed=1).codebook)
    assert not torch.equal(fitted(x, 8, seed=1).codebook, fitted(x, 8, seed=2).codebook)


def test_values_beyond_the_data_are_counted_and_get_the_nearest_code():
    tokenizer = fitted(np.float32([[0], [1], [10]]), 3)
    x = torch.tensor([[[-5.0], [11.0], [4.0]]])
    assert tokenizer.decode(tokenizer.encode(x)).flatten().tolist() == [0, 10, 1]
    assert tokenizer.outside(x).flatten().tolist() == [True, True, False]


@pytest.mark.parametrize("wrong", [{"codes": 0}, {"restarts": 0}])
def test_no_code_and_no_start_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} 0"):
        KMeans((1,), **wrong)
