"""Heads: their distributions against scipy, against the formulas of the papers, and at the edges."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal

from dtrl.heads import HEADS, LOG_STD_RANGE, PointMass, TanhNormal

B, K, D, A = 3, 4, 16, 5


def hidden(seed=0, scale=1.0):
    return scale * torch.randn(B, K, 1, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(name):
    torch.manual_seed(0)
    return HEADS[name](D, A).double()


def tokens_of(distribution):
    """Tokens like those of the data: inside (−1, 1), or ids."""
    mode = distribution.mode
    return torch.rand(mode.shape, dtype=torch.float64) * 1.8 - 0.9 if mode.is_floating_point() else mode


# Every head of the table


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_one_distribution_for_each_hidden_vector(name):
    distribution = make(name)(hidden())
    event = () if name == "categorical" else (A,)
    assert distribution.batch_shape == (B, K, 1)
    assert distribution.event_shape == event
    assert distribution.mode.shape == distribution.sample().shape == (B, K, 1, *event)
    assert distribution.sample((7,)).shape == (7, B, K, 1, *event)
    assert distribution.log_prob(tokens_of(distribution)).shape == (B, K, 1)


@pytest.mark.parametrize(
    "name", sorted(set(HEADS) - {"tanh_gaussian"})
)  # whose `mode` is the tanh of the mean, as published
def test_no_token_is_more_probable_than_the_mode(name):
    distribution = make(name)(hidden())
    best = distribution.log_prob(distribution.mode)
    for _ in range(50):
        other = torch.randint(A, (B, K, 1)) if name == "categorical" else torch.randn(B, K, 1, A, dtype=torch.float64)
        assert (distribution.log_prob(other) <= best).all()


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_has_a_gradient_that_is_finite_for_extreme_hidden_vectors(name):
    head = make(name)
    distribution = head(hidden(scale=1e3))
    loss = -distribution.log_prob(tokens_of(distribution)).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_moves_every_parameter_of_a_head(name):
    head = make(name)
    distribution = head(hidden())
    (-distribution.log_prob(tokens_of(distribution))).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


@pytest.mark.parametrize("name", ["deterministic", "tanh_gaussian"])
def test_a_bounded_head_never_leaves_the_action_space(name):
    distribution = make(name)(hidden(scale=1e3))
    assert distribution.mode.abs().max() <= 1
    assert distribution.sample((20,)).abs().max() <= 1


# Deterministic: the published squared error


def test_minus_log_p_of_a_point_is_exactly_the_mean_squared_error():
    location, value = torch.randn(2, 6, A), torch.randn(2, 6, A)
    surprise = -PointMass(location).log_prob(value)
    assert torch.equal(surprise, (value - location).square().mean(-1))
    assert surprise.mean().item() == pytest.approx(F.mse_loss(location, value).item(), rel=1e-6)


def test_a_point_is_a_gaussian_of_deviation_root_half_d_without_its_constant():
    location, value = torch.randn(2, 6, A, dtype=torch.float64), torch.randn(2, 6, A, dtype=torch.float64)
    gaussian = Normal(location, math.sqrt(A / 2)).log_prob(value).sum(-1)
    constant = A * math.log(math.sqrt(A / 2) * math.sqrt(2 * math.pi))
    torch.testing.assert_close(PointMass(location).log_prob(value), gaussian + constant, rtol=1e-12, atol=1e-12)


def test_samples_of_a_point_are_the_point():
    location = torch.randn(2, A)
    assert torch.equal(PointMass(location).sample((3,)), location.expand(3, 2, A))
    assert torch.equal(PointMass(location).mean, location)


# Gaussian


def test_a_gaussian_has_the_density_of_scipy():
    distribution = make("gaussian")(hidden(scale=5))
    value = tokens_of(distribution)
    mean, deviation = distribution.mean.detach().numpy(), distribution.stddev.detach().numpy()
    expected = norm.logpdf(value.numpy(), mean, deviation).sum(-1)
    np.testing.assert_allclose(distribution.log_prob(value).detach(), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["gaussian", "tanh_gaussian"])
def test_the_deviation_keeps_its_range(name):
    _, deviation = make(name).moments(hidden(scale=1e4))
    low, high = (math.exp(x) for x in LOG_STD_RANGE)
    assert deviation.min().item() == pytest.approx(low, rel=1e-6)
    assert deviation.max().item() == pytest.approx(high, rel=1e-6)


# The squashed Gaussian


def squashed(mean, deviation):
    return TanhNormal(torch.tensor([mean], dtype=torch.float64), torch.tensor([deviation], dtype=torch.float64))


MOMENTS = [(0.0, 1.0), (0.5, 0.3), (-1.5, 0.7), (2.0, 0.1)]


def test_a_squashed_gaussian_has_the_density_of_a_change_of_variables():
    distribution = make("tanh_gaussian")(hidden(scale=3))
    value = tokens_of(distribution).numpy()
    mean, deviation = (x.detach().numpy() for x in make("tanh_gaussian").moments(hidden(scale=3)))
    expected = (norm.logpdf(np.arctanh(value), mean, deviation) - np.log1p(-(value**2))).sum(-1)
    np.testing.assert_allclose(distribution.log_prob(torch.from_numpy(value)).detach(), expected, rtol=1e-9)


@pytest.mark.parametrize(("mean", "deviation"), MOMENTS)
def test_a_squashed_density_is_the_slope_of_its_distribution_function(mean, deviation):
    step, value = 1e-6, np.linspace(-0.95, 0.95, 50)
    cdf = lambda y: norm.cdf(np.arctanh(y), mean, deviation)  # noqa: E731
    slope = (cdf(value + step) - cdf(value - step)) / (2 * step)
    density = squashed(mean, deviation).log_prob(torch.from_numpy(value)[:, None]).exp()
    np.testing.assert_allclose(density, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("mean", "deviation"), MOMENTS)
def test_a_squashed_density_integrates_to_one(mean, deviation):
    distribution = squashed(mean, deviation)
    density = lambda y: distribution.log_prob(torch.tensor([y], dtype=torch.float64)).exp().item()  # noqa: E731
    total, _ = quad(density, -1, 1, points=[math.tanh(mean)], limit=200, epsabs=1e-7)
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [-1.0, 1.0, 1.5])
def test_the_edge_of_the_action_space_has_a_finite_density_and_gradient(dtype, edge):
    mean = torch.zeros(A, dtype=dtype, requires_grad=True)
    distribution = TanhNormal(mean, torch.full((A,), math.exp(LOG_STD_RANGE[0]), dtype=dtype))
    surprise = -distribution.log_prob(torch.full((A,), edge, dtype=dtype))
    surprise.backward()
    assert surprise.isfinite()
    assert mean.grad.isfinite().all()
    assert (torch.sign(mean.grad) == -math.copysign(1, edge)).all()  # towards the edge


def test_the_density_of_a_sample_is_finite_even_where_tanh_saturates():
    distribution = TanhNormal(torch.full((1_000, 1), 12.0), torch.ones(1_000, 1))
    assert (distribution.sample() == 1).any()
    assert distribution.log_prob(distribution.sample()).isfinite().all()


def test_the_mode_of_a_squashed_gaussian_is_the_tanh_of_the_mean():
    assert squashed(0.7, 0.2).mode.item() == pytest.approx(math.tanh(0.7), rel=1e-12)
    assert torch.equal(squashed(0.7, 0.2).mean, squashed(0.7, 0.2).mode)


@pytest.mark.parametrize(
    ("mean", "deviation", "error"),
    [(0.0, 0.05, 1e-9), (1.5, 0.3, 1e-9), (0.3, 1.0, 2e-5), (-2.0, 1.0, 2e-5), (9.0, 1.0, 1e-9), (0.5, math.e, 0.02)],
)
def test_the_entropy_of_a_squashed_gaussian_is_the_integral_of_minus_p_log_p(mean, deviation, error):
    def integrand(u):  # over the Gaussian, so that no density at the edge of the action space is lost
        log_slope = 2 * (math.log(2) - u - np.logaddexp(0, -2 * u))
        return -norm.pdf(u, mean, deviation) * (norm.logpdf(u, mean, deviation) - log_slope)

    edges = (mean - 12 * deviation, mean + 12 * deviation)
    expected, _ = quad(integrand, *edges, points=[0, mean], limit=500, epsabs=1e-12)
    assert squashed(mean, deviation).entropy().item() == pytest.approx(expected, abs=error)


def test_entropies_add_up_over_the_dimensions_and_follow_the_deviation():
    mean, deviation = torch.tensor([0.2, -1.0]).double(), torch.tensor([0.5, 0.1]).double().requires_grad_()
    both = TanhNormal(mean, deviation).entropy()
    parts = [squashed(m, d).entropy() for m, d in zip(mean.tolist(), deviation.tolist(), strict=True)]
    assert both.item() == pytest.approx(sum(p.item() for p in parts), rel=1e-12)
    (slope,) = torch.autograd.grad(both, deviation)
    step = 1e-6
    higher, lower = (TanhNormal(mean, deviation.detach() + d).entropy() for d in (step, -step))
    assert slope.sum().item() == pytest.approx((higher - lower).item() / (2 * step), rel=1e-6)


# Categorical


def test_a_categorical_has_the_softmax_of_its_logits():
    head = make("categorical")
    distribution, logits = head(hidden()), head.logits(hidden())
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(distribution.probs, probabilities, rtol=1e-12, atol=1e-12)
    assert torch.equal(distribution.mode, logits.argmax(-1))
    for token in range(A):
        surprise = F.cross_entropy(logits.flatten(0, 2), torch.full((B * K,), token), reduction="none")
        ours = -distribution.log_prob(torch.full((B, K, 1), token))
        torch.testing.assert_close(ours.flatten(), surprise, rtol=1e-12, atol=1e-12)
