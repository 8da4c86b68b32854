"""Choosing a token: the mode, or samples with the right frequencies from a generator of each row's own."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch.distributions import Categorical, Independent, Normal

from dtrl.config import DecodingConfig
from dtrl.decoding import choose as choose_parts
from dtrl.decoding import process
from dtrl.decoding.choice import draw
from dtrl.errors import InputError
from dtrl.heads import PointMass, TanhNormal

ALPHA = 1e-4
"""A correct sampler fails a test of this level once in 10,000 seeds; the seeds are fixed."""
LOGITS = torch.tensor([0.1, 2.0, -math.inf, 1.0, -1.0, 2.0])
MANY = (100, 200)
"""Rows, and tokens of a row: 20,000 draws."""


def choose(distribution, config, rows=()):
    """The token of an action of one part."""
    return choose_parts({"action": distribution}, config, rows)["action"]


def sample(**options):
    return DecodingConfig(strategy="sample", **options)


def generators(count, seed=0):
    return [np.random.default_rng([seed, row]) for row in range(count)]


def gaussian(mean, deviation):
    return Independent(Normal(mean, deviation), 1)


def continuous(rows=4, width=3):
    mean = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    return {
        "point": PointMass(mean),
        "gaussian": gaussian(mean, torch.full_like(mean, 0.5)),
        "tanh": TanhNormal(mean, torch.full_like(mean, 0.5)),
    }


# Greedy


@pytest.mark.parametrize("config", [DecodingConfig(), sample(temperature=0.0)], ids=["greedy", "temperature 0"])
def test_greedy_is_the_mode_and_draws_nothing(config):
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choose(Categorical(logits=logits), config), logits.argmax(-1))
    for distribution in continuous().values():
        assert torch.equal(choose(distribution, config), distribution.mode)


def test_sampling_at_a_tiny_temperature_is_greedy():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    chosen = choose(Categorical(logits=logits), sample(temperature=1e-40), generators(50))
    assert torch.equal(chosen, logits.argmax(-1))
    for distribution in continuous().values():
        chosen = choose(distribution, sample(temperature=1e-30), generators(4))
        torch.testing.assert_close(chosen, distribution.mode)


# Categorical


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.3}, {"top_k": 4, "min_p": 0.1}],
    ids=str,
)
def test_ids_are_drawn_with_the_probabilities_that_the_processors_leave(options):
    """Chi-square over 20,000 draws; fails a correct sampler with probability 1e-4."""
    config = sample(**options)
    chosen = choose(Categorical(logits=LOGITS.expand(*MANY, 6)), config, generators(100))
    expected = process(LOGITS.double()[None], config)[0].softmax(-1).numpy() * math.prod(MANY)
    counts, possible = np.bincount(chosen.flatten(), minlength=6), expected > 0
    assert counts[~possible].sum() == 0
    assert possible.sum() > 1
    assert chisquare(counts[possible], expected[possible]).pvalue > ALPHA


def test_a_token_of_no_probability_is_never_drawn_even_at_the_edges():
    class Fixed:
        def __init__(self, value):
            self.value = value

        def random(self, shape=()):
            return np.full(shape, self.value)

    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    for value, token in ((0.0, 1), (np.nextafter(1, 0), 3)):
        assert choose(Categorical(logits=logits), sample(), [Fixed(value)]).item() == token


@pytest.mark.parametrize("kind", ["random", "standard_normal"])
def test_a_row_that_draws_one_number_draws_the_first_of_several(kind):
    like = torch.zeros(1, dtype=torch.float64)
    one, three = (draw(generators(5), torch.Size((5, n)), like, kind) for n in (1, 3))
    assert one.shape == (5, 1)
    assert torch.equal(one, three[:, :1])


def test_several_tokens_of_a_row_are_drawn_apart():
    """200 pairs of fair coins agree in 62 to 138 cases but for one seed in 2e7."""
    chosen = choose(Categorical(logits=torch.zeros(200, 2, 2)), sample(), generators(200))
    assert chosen.shape == (200, 2)
    assert 62 < (chosen[:, 0] == chosen[:, 1]).sum() < 138


# Continuous


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
def test_a_gaussian_is_sampled_with_its_deviation_times_the_temperature(temperature):
    """Kolmogorov–Smirnov over 20,000 draws; fails a correct sampler with probability 1e-4."""
    mean, deviation = torch.full((*MANY, 1), 0.7), torch.full((*MANY, 1), 0.4)
    config = sample(temperature=temperature)
    plain = choose(gaussian(mean, deviation), config, generators(100)).flatten()
    squashed = choose(TanhNormal(mean, deviation), config, generators(100)).flatten()
    expected = norm(0.7, 0.4 * temperature).cdf
    assert kstest(plain.double(), expected).pvalue > ALPHA
    assert squashed.abs().max() <= 1
    torch.testing.assert_close(squashed, torch.tanh(plain))


def test_the_entries_of_an_action_are_drawn_apart():
    """Correlation of 20,000 pairs has a deviation of 0.0071; 0.04 is passed with probability 2e-8."""
    mean = torch.zeros(*MANY, 2)
    chosen = choose(gaussian(mean, torch.ones_like(mean)), sample(), generators(100))
    assert abs(np.corrcoef(chosen.flatten(0, 1).T)[0, 1]) < 0.04


def test_a_point_has_one_sample():
    point = continuous()["point"]
    assert torch.equal(choose(point, sample(temperature=2.0), generators(4)), point.mode)


# Randomness


def some(kind, rows):
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    if kind == "categorical":
        return Categorical(logits=logits[rows])
    mean = logits[rows][:, :2]
    return {"gaussian": gaussian, "tanh": TanhNormal}[kind](mean, torch.ones_like(mean))


@pytest.mark.parametrize("kind", ["categorical", "gaussian", "tanh"])
def test_a_sample_does_not_depend_on_the_other_rows(kind):
    whole = choose(some(kind, range(6)), sample(), generators(6))
    for rows in ([2], [5, 2], [0, 1, 2, 3]):
        own = [generators(6)[row] for row in rows]
        assert torch.equal(choose(some(kind, rows), sample(), own), whole[rows])


@pytest.mark.parametrize("kind", ["categorical", "gaussian", "tanh"])
def test_samples_follow_their_generators_and_nothing_else(kind):
    torch.manual_seed(0)
    one = choose(some(kind, range(6)), sample(), generators(6))
    torch.manual_seed(1)
    assert torch.equal(choose(some(kind, range(6)), sample(), generators(6)), one)
    assert not torch.equal(choose(some(kind, range(6)), sample(), generators(6, seed=1)), one)


def test_a_generator_goes_on_from_draw_to_draw():
    rows = generators(6)
    draws = [choose(some("gaussian", range(6)), sample(), rows) for _ in range(2)]
    assert not torch.equal(*draws)


def test_there_is_one_generator_for_each_row():
    with pytest.raises(ValueError, match="3 generators for 6 rows"):
        choose(some("categorical", range(6)), sample(), generators(3))


# What is refused


@pytest.mark.parametrize("strategy", ["beam", "contrastive", "speculative", "plan"])
def test_a_strategy_for_sequences_is_refused(strategy):
    with pytest.raises(InputError, match=f"^strategy {strategy} needs a model of discrete tokens such as preset tt or"):
        choose(Categorical(logits=LOGITS.expand(4, 6)), DecodingConfig(strategy=strategy), generators(4))


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.1}, {"no_repeat_ngram": 2}, {"guidance": 1.5}, {"contrast": 1.0}], ids=str
)
def test_an_option_for_sequences_is_refused(options):
    (name,) = options
    with pytest.raises(InputError, match=f"^{name} needs a model of discrete tokens"):
        choose(Categorical(logits=LOGITS.expand(4, 6)), sample(**options), generators(4))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 3}, "top_k"),
        ({"top_p": 0.5}, "top_p"),
        ({"min_p": 0.1}, "min_p"),
        ({"top_k": 3, "min_p": 0.1}, "top_k, min_p"),
    ],
    ids=str,
)
@pytest.mark.parametrize("distribution", continuous().values(), ids=continuous())
def test_a_continuous_distribution_has_no_list_to_cut(distribution, options, named):
    with pytest.raises(InputError, match=f"^{named} cut a list of tokens, and this policy's actions are continuous"):
        choose(distribution, sample(**options), generators(4))


def test_cuts_hold_for_the_categorical_parts_of_an_action_alone():
    """A part of ids keeps its two most probable ones; the Gaussian beside it is what it is without a cut."""
    parts = {
        "go": Categorical(logits=LOGITS.expand(*MANY, 6)),
        "how": gaussian(torch.zeros(100, 3), torch.ones(100, 3)),
    }
    cut = choose_parts(parts, sample(top_k=2, temperature=0.5), generators(100))
    assert set(cut["go"].unique().tolist()) == {1, 5}
    alone = generators(100)
    choose_parts({"go": parts["go"]}, sample(), alone)
    assert torch.equal(cut["how"], choose(parts["how"], sample(temperature=0.5), alone))
    with pytest.raises(InputError, match="top_k cut a list of tokens"):
        choose_parts({"how": parts["how"], "where": continuous(100)["point"]}, sample(top_k=2), generators(100))


def test_a_mask_that_leaves_nothing_is_an_error_and_not_a_token():
    logits = torch.zeros(3, 4)
    logits[1] = -math.inf
    with pytest.raises(InputError, match=r"action mask.*row \(1,\)"):
        choose(Categorical(logits=logits, validate_args=False), sample(), generators(3))
