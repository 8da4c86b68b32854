"""The return that a policy asks of itself, where its model predicts one before it acts.

B environments, V ids of a return."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from dtrl.config import DecodingConfig
from dtrl.decoding.choice import token_of
from dtrl.sequence_model import SequenceModel
from dtrl.tokenizers import numbers_of


def ask(
    model: SequenceModel,
    distributions: Mapping[str, Distribution],
    config: DecodingConfig,
    generators: Sequence[np.random.Generator],
) -> dict[str, Tensor]:
    """The id (B, 1) of a return, from its distribution over V ids, of batch shape (B, 1), by field; `generators` has one for each row.

    The distribution is tilted first, by `return_tilt`. Then the return is chosen like everything else: its mode when greedy, else a sample."""
    ((name, distribution),) = distributions.items()
    assert isinstance(distribution, Categorical)
    returns = numbers_of(model.by_name[name].tokenizer, distribution.logits)
    return {name: token_of(tilted(distribution, returns, config.return_tilt), config, generators)}


def tilted(distribution: Categorical, returns: Tensor, tilt: float) -> Categorical:
    """p(R) · exp(κ · (R − lowest) / (highest − lowest)), normalised, for the returns (V,) of the ids: the distribution of returns given that an expert acts,
    if the odds of an expert rise so with the return [Lee et al. 2022, arXiv:2205.15241]."""
    span = (returns.max() - returns.min()).clamp_min(torch.finfo(returns.dtype).tiny)
    share = ((returns - returns.min()) / span).to(distribution.logits.dtype)
    return Categorical(logits=(distribution.logits + tilt * share).log_softmax(dim=-1), validate_args=False)
