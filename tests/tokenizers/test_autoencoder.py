"""Networks of buffers, and the loop that trains them."""

import pytest
import torch
from torch import nn

from dtrl.tokenizers.autoencoder import FitOptions, draw_weights, perceptron, train


def test_a_perceptron_is_that_of_torch_with_buffers_for_weights():
    ours, theirs = perceptron((3, 5, 2)), nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    assert not list(ours.parameters())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))


def test_first_weights_keep_the_variance():
    network = perceptron((400, 400))
    draw_weights([network], torch.Generator().manual_seed(0))
    weight, bias = network[0].weight, network[0].bias
    assert not bias.any()
    # of 160,000 uniform numbers of variance 2 / 400; the standard error of their variance is 0.9 / 400 of it, and 1 % four times that
    assert weight.var().item() == pytest.approx(2 / 400, rel=0.01)


def test_the_rate_falls_linearly_to_nothing():
    network = perceptron((1, 1))
    # a gradient of 1 at every update, of which Adam makes steps of the size of its rate
    options = FitOptions(steps=100, batch_size=1, learning_rate=0.01)
    rates = []

    def loss(batch):
        rates.append(network[0].bias.item())
        return network[0].bias.sum() + 0 * network[0].weight.sum()

    train([network], loss, torch.zeros(1, 1), options, torch.Generator())
    assert network[0].bias.item() == pytest.approx(-0.01 * sum(1 - k / 100 for k in range(100)), rel=1e-4)
    assert rates[1] == pytest.approx(-0.01, rel=1e-4)


def test_weights_are_let_go_when_training_fails():
    network = perceptron((1, 1))

    def loss(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([network], loss, torch.zeros(1, 1), FitOptions(steps=1), torch.Generator())
    assert not any(weight.requires_grad for weight in network.buffers())


def test_batches_are_rows_of_the_data():
    data, seen = torch.arange(5.0)[:, None], []
    train(
        [], lambda batch: seen.append(batch) or batch.sum(), data, FitOptions(steps=50, batch_size=4), torch.Generator()
    )
    assert {tuple(batch.shape) for batch in seen} == {(4, 1)}
    assert torch.cat(seen).unique().tolist() == [0, 1, 2, 3, 4]
