"""Small models of ids for the strategies: tables that can be enumerated, and a transformer with random weights."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def markov():
    """Makes a model of second order: its next token depends on the last two, and on its place. `scale` says how sure it is."""

    def make(vocabulary=5, seed=0, scale=1.5, width=6):
        random = torch.Generator().manual_seed(seed)
        table = scale * torch.randn(vocabulary, vocabulary, vocabulary, generator=random, dtype=torch.float64)
        places = scale * torch.randn(64, vocabulary, generator=random, dtype=torch.float64)
        vectors = torch.randn(vocabulary, vocabulary, width, generator=random, dtype=torch.float64)

        def model(ids):
            before = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)
            return table[before, ids] + places[: ids.shape[1]], vectors[before, ids]

        return model

    return make


@pytest.fixture(scope="session")
def gpt2():
    """A GPT-2 of two layers over 11 ids, in float64, with weights so large that it is sure of something."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=None
    )
    network = GPT2LMHeadModel(config).double().eval()
    for parameter in network.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture(scope="session")
def gpt2_model(gpt2):
    """The same as a function of ids."""

    @torch.inference_mode()
    def model(ids):
        out = gpt2(ids, output_hidden_states=True)
        return out.logits, out.hidden_states[-1]

    return model


@pytest.fixture(scope="session")
def generators():
    """Makes generators of rows."""

    def make(count, seed=0):
        return [np.random.default_rng([seed, row]) for row in range(count)]

    return make


@pytest.fixture(scope="session")
def log_probability():
    """The log-probability of continuations ids (N, n) of a prompt (L,), from a model."""

    def of(model, prompt, ids):
        whole = torch.cat([prompt.expand(len(ids), -1), ids], dim=1)
        log_p = model(whole)[0].log_softmax(-1)[:, len(prompt) - 1 : -1]
        return log_p.gather(-1, ids[..., None]).squeeze(-1).sum(-1)

    return of
