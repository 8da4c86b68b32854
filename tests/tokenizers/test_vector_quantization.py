"""Vector quantization: against vector-quantize-pytorch's numbers, brute force, and the formulas of the averages."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.tokenizers import VectorQuantization
from dtrl.tokenizers.autoencoder import FitOptions
from dtrl.tokenizers.vector_quantization import Codebooks, draw, nearest

GOLDEN = Path(__file__).parent.parent / "golden" / "quantization.npz"
FEW = FitOptions(steps=200, batch_size=64)


@pytest.fixture(scope="module")
def oracle():
    """Numbers that tests/golden/quantization.py made with vector-quantize-pytorch 1.32.0."""
    with np.load(GOLDEN) as tables:
        return {name: torch.from_numpy(table) for name, table in tables.items()}


@pytest.fixture
def books(oracle):
    books = Codebooks(*oracle["codes"].shape)
    books.codes.copy_(oracle["codes"])
    books.counts.fill_(30)
    books.sums.copy_(oracle["codes"] * 30)
    return books


def test_residual_ids_are_bit_equal_to_the_oracle(books, oracle):
    ids = books.ids(oracle["vectors"])
    assert torch.equal(ids, oracle["ids"].long())
    assert torch.equal(books.vectors(ids), oracle["quantized"])


def test_the_commitment_is_that_of_the_oracle(books, oracle):
    quantized, ids, commitment = books(oracle["vectors"])
    assert torch.equal(ids, oracle["ids"].long())
    torch.testing.assert_close(quantized, oracle["quantized"], rtol=0, atol=1e-6)
    torch.testing.assert_close(commitment, oracle["commitment"].sum(), rtol=1e-6, atol=0)


def test_one_update_moves_codes_and_averages_as_the_oracle_does(books, oracle):
    books.learn(oracle["vectors"], oracle["ids"].long())
    torch.testing.assert_close(books.counts, oracle["counts_after"], rtol=1e-6, atol=0)
    torch.testing.assert_close(books.sums, oracle["sums_after"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(books.codes, oracle["codes_after"], rtol=1e-6, atol=1e-6)
    assert (books.codes - oracle["codes"]).abs().max() > 1e-3


def test_the_averages_have_their_closed_form():
    books = Codebooks(1, 2, 1)
    books.codes.copy_(torch.tensor([[[0.0], [10.0]]]))
    books.counts.copy_(torch.tensor([[4.0, 2.0]]))
    books.sums.copy_(books.codes * books.counts[..., None])
    books.learn(torch.tensor([[1.0], [1.0], [1.0], [9.0]]), torch.tensor([[0], [0], [0], [1]]))
    counts = np.array([4 * 0.99 + 3 * 0.01, 2 * 0.99 + 1 * 0.01])
    sums = np.array([0 * 0.99 + 3 * 0.01, 20 * 0.99 + 9 * 0.01])
    smooth = (counts + 1e-5) / (counts.sum() + 2e-5) * counts.sum()
    np.testing.assert_allclose(books.codes.flatten(), sums / smooth, rtol=1e-6)


def test_the_nearest_code_is_found_by_brute_force_too():
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(500, 5, generator=generator), torch.randn(40, 5, generator=generator)
    distances = (vectors.double()[:, None] - codes.double()).square().sum(-1)
    assert torch.equal(nearest(vectors, codes), distances.argmin(-1))


def test_a_table_of_distances_larger_than_memory_is_made_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(500, 5, generator=generator), torch.randn(40, 5, generator=generator)
    whole = nearest(vectors, codes)
    monkeypatch.setattr("dtrl.tokenizers.vector_quantization.MOST_DISTANCES", 1000)
    assert torch.equal(nearest(vectors, codes), whole)


def test_of_two_equal_codes_the_first_is_taken():
    assert nearest(torch.zeros(1, 2), torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0]])).item() == 0


def test_the_gradient_goes_straight_through_and_the_commitment_moves_the_vectors_only(books, oracle):
    vectors = oracle["vectors"].clone().requires_grad_(True)
    quantized, _, commitment = books(vectors)
    (direct,) = torch.autograd.grad((quantized * oracle["quantized"]).sum(), vectors, retain_graph=True)
    assert torch.equal(direct, oracle["quantized"])
    (pull,) = torch.autograd.grad(commitment, vectors)
    rest, expected = oracle["vectors"].clone(), torch.zeros_like(vectors)
    for codes, ids in zip(oracle["codes"], oracle["ids"].long().T, strict=True):
        rest = rest - codes[ids]
        expected += 2 * rest / rest.numel()
    torch.testing.assert_close(pull, expected, rtol=1e-4, atol=1e-8)


def test_a_code_that_nothing_chooses_is_replaced_by_a_vector_of_the_batch():
    books = Codebooks(1, 3, 1)
    books.codes.copy_(torch.tensor([[[0.0], [1.0], [100.0]]]))
    books.counts.fill_(20)
    books.sums.copy_(books.codes * 20)
    batch = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    updates = 0
    while books.codes.max() > 50:
        books.learn(batch, books.ids(batch), torch.Generator().manual_seed(0))
        updates += 1
    # with q = 0.99^n its count is 20 q, and the mean one 20 q + 4 / 3 · (1 − q), of which 20 q is 3 % where q = 0.00206
    assert updates == math.ceil(math.log(0.04 / 19.44) / math.log(0.99))
    assert books.codes[0, 2] in batch
    assert torch.equal(books.sums[0, 2], books.codes[0, 2] * books.counts[0, 2])
    assert books.counts[0, 2].item() == pytest.approx(4 / 3 + (20 - 4 / 3) * 0.99**updates, rel=1e-4)


def test_a_living_code_is_never_replaced(books, oracle):
    expected = Codebooks(*oracle["codes"].shape)
    expected.load_state_dict(books.state_dict())
    expected.learn(oracle["vectors"], oracle["ids"].long())
    books.learn(oracle["vectors"], oracle["ids"].long(), torch.Generator())
    assert torch.equal(books.codes, expected.codes)


def test_draws_differ_until_there_are_too_few():
    generator = torch.Generator().manual_seed(0)
    assert sorted(draw(10, 10, generator).tolist()) == list(range(10))
    assert sorted(draw(3, 7, generator).tolist()) in (
        [0, 0, 0, 1, 1, 2, 2],
        [0, 0, 1, 1, 1, 2, 2],
        [0, 0, 1, 1, 2, 2, 2],
    )


def test_as_many_codes_as_values_make_no_error():
    values = np.array([[-1.0, 0.5], [0.0, 0.25], [1.0, -2.0], [3.0, 3.0]], np.float32)
    tokenizer = VectorQuantization((2,), 4, options=FEW)
    tokenizer.fit(values.repeat(50, axis=0))
    x = torch.from_numpy(values)[None]
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(x)), x, rtol=0, atol=1e-2)
    assert len(tokenizer.encode(x).unique()) == 4


@pytest.mark.slow
def test_more_layers_lower_the_error_and_all_codes_are_used():
    x = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
    errors = []
    for layers in (1, 2, 3):
        tokenizer = VectorQuantization((3,), 32, layers=layers, options=FEW)
        tokenizer.fit(x)
        tokens = tokenizer.encode(torch.from_numpy(x)[None])
        assert [len(tokens[..., i].unique()) for i in range(layers)] == [32] * layers
        errors.append((tokenizer.decode(tokens) - torch.from_numpy(x)).square().mean().sqrt().item())
    # 32 codes of three dimensions are about 32^(1/3) = 3.2 a dimension, whose rounding leaves at least 1 / 3.2 of the deviation or so
    assert errors[0] < 0.5
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_one_layer_is_as_good_as_the_best_k_means_of_scipy():
    from scipy.cluster.vq import kmeans2

    x = np.random.default_rng(0).normal(size=(2000, 2))
    x = (x - x.mean(0)) / x.std(0)  # what is clustered is standardised
    tokenizer = VectorQuantization((2,), 8, options=FEW)
    tokenizer.fit(x)
    ours = (tokenizer.decode(tokenizer.encode(torch.from_numpy(x)[None]))[0].numpy() - x).var(axis=0).sum()

    def inertia(seed):
        centres, labels = kmeans2(x, 8, minit="++", seed=seed)
        return ((centres[labels] - x) ** 2).sum(1).mean()

    assert ours < 1.1 * min(map(inertia, range(10)))  # one start against the best of ten, and averages that still move


@pytest.mark.slow
def test_a_network_finds_the_line_on_which_chunks_lie():
    t = np.random.default_rng(0).uniform(-1, 1, (4000, 1))
    x = (t[:, None] * np.array([1.0, -2.0, 0.5, 3.0])).reshape(4000, 4, 1).astype(np.float32)
    tokenizer = VectorQuantization(
        (1,), 16, layers=2, block_length=4, hidden=(32,), latent=1, options=FitOptions(steps=1500)
    )
    tokenizer.fit(x)
    found = tokenizer.decode(tokenizer.encode(torch.from_numpy(x))).numpy()
    # 256 sums of codes along a line leave 1 / 256 of the deviation at best; of one number a chunk, training leaves some more
    assert np.sqrt(((found - x) ** 2).mean()) / x.std() < 0.03


def test_what_cannot_be_is_refused():
    for options, message in (
        ({"codes": 0}, "codes = 0 of a vector quantization cannot be"),
        ({"layers": 0}, "layers = 0 of a vector quantization cannot be"),
        ({"latent": 2}, "latent = 2 is the width that a network makes; give `hidden`"),
        ({"latent": 0, "hidden": (4,)}, "latent = 0 of a vector quantization cannot be"),
    ):
        with pytest.raises(InputError, match=message):
            VectorQuantization((3,), **options)


def test_it_offers_itself_for_vectors():
    tokenizer = VectorQuantization.for_space(spaces.Box(-1, 1, (3,)), 64)
    assert (tokenizer.vocab_size, tokenizer.num_tokens) == (64, 2)
    assert VectorQuantization.for_space(spaces.Discrete(3)) is None
