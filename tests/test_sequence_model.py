"""One model, one loss: which token stands where, what predicts what, and the loss against its formula in a loop.

B windows, K steps, D width."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from dtrl.backbones import Pointwise, Transformer
from dtrl.embeddings import SlotTables
from dtrl.heads import HEADS, OneHots
from dtrl.sequence_model import Field, SequenceModel, mode_error
from dtrl.tokenizers import Categories, Continuous, Tokenizer
from dtrl.windows import Batch

B, K, D = 4, 5, 16


class Pair(Tokenizer):
    """A vector of two entries as two tokens of one."""

    vocab_size, num_tokens, block_length, token_width = None, 2, 1, 1

    def fit(self, x):
        pass

    def encode(self, x):
        return x.to(torch.float64).unsqueeze(-1)

    def decode(self, tokens):
        return tokens.squeeze(-1)


def decision_transformer(action_weight=1.0):
    return [
        Field("return", Continuous(1, "scale", scale=2.0)),
        Field("observation", Continuous(3)),
        Field("action", Continuous(2), loss_weight=action_weight),
    ]


FIELDS = {
    "decision transformer": decision_transformer,
    "ids": lambda: [
        Field("return", Continuous(1)),
        Field("observation", Categories(7)),
        Field("action", Categories(5), loss_weight=2.0),
    ],
    "everything predicted": lambda: [
        Field("return", Continuous(1), loss_weight=0.3),
        Field("observation", Continuous(3), loss_weight=0.5),
        Field("action", Categories(5), loss_weight=2.0),
    ],
    "action out of context": lambda: [
        Field("observation", Continuous(3)),
        Field("action", Continuous(2), loss_weight=1.0, in_context=False),
    ],
    "return predicted and never seen": lambda: [
        Field("observation", Continuous(3)),
        Field("return", Continuous(1), loss_weight=0.5, in_context=False),
        Field("action", Continuous(2), loss_weight=1.0),
    ],
    "actions of two tokens": lambda: [
        Field("return", Continuous(1)),
        Field("observation", Continuous(3)),
        Field("action", Pair(), loss_weight=1.0),
    ],
}
every = pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)


def head_of(tokenizer):
    if tokenizer.vocab_size is not None:
        return HEADS["categorical"](D, tokenizer.vocab_size)
    return HEADS["gaussian"](D, tokenizer.token_width)


def make(fields, backbone=None, **rest):
    torch.manual_seed(0)
    backbone = backbone or Transformer(D, 2, 4)
    heads = {f.name: head_of(f.tokenizer) for f in fields if f.loss_weight}
    model = SequenceModel(fields, backbone, heads, width=D, **{"max_timestep": 30, **rest}).double().eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def batch_for(fields, lengths=(5, 3, 1, 4), seed=1):
    """Windows with as many valid steps as stated, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(K) < torch.tensor(lengths)[:, None]
    values = {}
    for f in fields:
        width = 2 if isinstance(f.tokenizer, Pair) else f.tokenizer.token_width
        if f.tokenizer.vocab_size is not None:
            values[f.name] = torch.randint(f.tokenizer.vocab_size, (B, K), generator=generator) * valid
        elif f.name == "return":
            values[f.name] = torch.randn(B, K, generator=generator) * valid
        else:
            values[f.name] = torch.randn(B, K, width, generator=generator) * valid[..., None]
    starts = torch.randint(10, (B, 1), generator=generator)
    return Batch(values, (starts + torch.arange(K)) * valid, valid)


def with_values(batch, **values):
    return dataclasses.replace(batch, values={**batch.values, **values})


# The order of tokens


class Recorder(nn.Module):
    """A backbone that keeps its input and gives it back."""

    memory = True

    def forward(self, x, state=None, read=None):
        self.x, self.read = x, torch.arange(x.shape[1])[read]
        return x[:, read], state


def plain_embedding(model):
    """Every real-vector token becomes the sum of its entries, in all D entries."""
    for layer in model.embeddings.values():
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)


def test_a_decision_transformers_sequence_is_return_observation_action_step_by_step():
    model = make(decision_transformer(), Recorder(), max_timestep=None, normalize=False)
    plain_embedding(model)
    returns = torch.tensor([[20.0, 40.0]])  # over the scale of 2
    observations = torch.tensor([[[1.0, 2, 3], [4, 5, 6]]])
    actions = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    values = {"return": returns, "observation": observations, "action": actions}
    tokens = model.embed(values, values, torch.zeros(1, 2, dtype=torch.int64))
    expected = torch.tensor([10, 6, 0.3, 20, 15, 0.7], dtype=torch.float64)
    torch.testing.assert_close(tokens[0], expected[:, None].expand(6, D), rtol=1e-6, atol=1e-6)


def test_the_timestep_is_added_to_every_token_of_its_step():
    model = make(decision_transformer(), Recorder(), max_timestep=10, normalize=False)
    plain_embedding(model)
    model.timestep_embedding.weight.data[:] = torch.arange(10)[:, None] * 100.0
    values = {"return": torch.zeros(1, 2), "observation": torch.zeros(1, 2, 3), "action": torch.zeros(1, 2, 2)}
    steps = torch.tensor([[3, 4]])
    assert model.embed(values, values, steps)[0, :, 0].tolist() == [300, 300, 300, 400, 400, 400]
    own = torch.tensor([[[2, 3, 3], [3, 4, 4]]])  # as in acting: the last action, and what followed it
    assert model.embed(values, values, own)[0, :, 0].tolist() == [200, 300, 300, 300, 400, 400]


def test_a_quiet_field_begins_as_ids_and_timesteps_do():
    """Deviations of 16,384 weights are right to 0.6 %; 4 % is seven deviations of that. Those of torch's map of 64 numbers are 0.125 / √3."""
    torch.manual_seed(0)
    fields = [
        Field("return", Continuous(64), quiet=True),
        Field("observation", Continuous(64)),
        Field("goal", Categories(64)),
    ]
    model = SequenceModel(fields, Recorder(), {}, width=256, max_timestep=64)
    told, observed, goal = (model.embeddings[f.name] for f in fields)
    for layer in (told, goal, model.timestep_embedding, SlotTables(8, 8, 256).table):
        assert layer.weight.numel() == 16_384
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.04)
    assert (told.bias == 0).all()
    assert observed.weight.std().item() == pytest.approx(0.125 / math.sqrt(3), rel=0.04)


def test_steps_beyond_the_table_share_its_last_row():
    model, batch = make(decision_transformer(), max_timestep=4), batch_for(decision_transformer(), (5, 5, 5, 5))
    late = dataclasses.replace(batch, timesteps=torch.full((B, K), 1_000))
    last = dataclasses.replace(batch, timesteps=torch.full((B, K), 3))
    assert torch.equal(model(late)["action"].mean, model(last)["action"].mean)


POSITIONS = {
    "decision transformer": {"action": [1, 4, 7, 10, 13]},
    "everything predicted": {"return": [0, 2, 5, 8, 11], "observation": [0, 3, 6, 9, 12], "action": [1, 4, 7, 10, 13]},
    "action out of context": {"action": [0, 1, 2, 3, 4]},
    "return predicted and never seen": {"return": [0, 2, 4, 6, 8], "action": [0, 2, 4, 6, 8]},
    "actions of two tokens": {"action": [1, 2, 5, 6, 9, 10, 13, 14, 17, 18]},
}
"""Fields → the positions that predict them: of each token, the one before it."""


@pytest.mark.parametrize(("name", "positions"), POSITIONS.items(), ids=POSITIONS)
def test_a_token_is_read_from_the_one_before_it(name, positions):
    model = make(FIELDS[name](), Recorder())
    model(batch_for(FIELDS[name]()))
    # heads that read the same positions share them
    distinct = {tuple(read): None for read in positions.values()}
    assert model.backbone.read.tolist() == [i for read in distinct for i in read]
    assert model.backbone.x.shape[1] == model.backbone.read.max() + 1  # what comes after is not computed


def test_a_field_of_several_tokens_cannot_be_out_of_context():
    with pytest.raises(ValueError, match=r"'action' has 2 tokens a step and is not in context"):
        make([Field("observation", Continuous(3)), Field("action", Pair(), loss_weight=1.0, in_context=False)])


# The loss


def loss_by_loop(model, batch):
    """Σ w·(−log p) and Σ w over the tokens of valid steps, each predicted from a sequence that ends right before it."""
    total, weight = 0.0, 0.0
    for b in range(B):
        row = [{name: x[b : b + 1, k : k + 1] for name, x in batch.values.items()} for k in range(K)]
        tokens = torch.zeros(1, 0, D, dtype=torch.float64)
        for k in range(int(batch.valid[b].sum())):
            time = batch.timesteps[b : b + 1, k : k + 1]
            for f in model.fields:
                wanted = f.tokenizer.encode(row[k][f.name])
                embedded = model.embed([f.name], row[k], time) if f.in_context else torch.zeros(1, 1, D)
                for i in range(f.tokenizer.num_tokens):
                    if f.loss_weight and not (k == 0 and model.slots[f.name] == 0):
                        hidden, _ = model.backbone(tokens)
                        distribution = model.heads[f.name](hidden[:, -1])
                        total += f.loss_weight * -distribution.log_prob(wanted[:, 0, i])
                        weight += f.loss_weight
                    if f.in_context:
                        tokens = torch.cat([tokens, embedded[:, i : i + 1]], dim=1)
    return total, weight


@every
@torch.no_grad()
def test_the_loss_is_its_formula(fields):
    model, batch = make(fields()), batch_for(fields())
    loss = model.loss(batch)
    total, weight = loss_by_loop(model, batch)
    torch.testing.assert_close(loss.total, total.squeeze(), rtol=1e-10, atol=1e-10)
    assert loss.weight.item() == pytest.approx(weight, rel=1e-6)


@every
@torch.no_grad()
def test_the_parts_of_a_loss_sum_to_it(fields):
    model, batch = make(fields()), batch_for(fields())
    loss, weights = model.loss(batch), {f.name: f.loss_weight for f in model.fields}
    total = sum(weights[name] * surprise for name, (surprise, _, _) in loss.by_field.items())
    weight = sum(weights[name] * count for name, (_, _, count) in loss.by_field.items())
    torch.testing.assert_close(loss.total, total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss.weight.double(), weight.double())


def test_the_error_of_a_field_is_that_of_the_mode():
    fields = FIELDS["everything predicted"]()
    model, batch = make(fields), batch_for(fields)
    loss, predicted = model.loss(batch), model(batch)
    wrong = (predicted["action"].mode.squeeze(-1) != batch.values["action"]) & batch.valid
    squared = (predicted["observation"].mode.squeeze(2) - batch.values["observation"]).square().mean(-1) * batch.valid
    assert loss.by_field["action"][1] == wrong.sum()
    torch.testing.assert_close(loss.by_field["observation"][1], squared.sum())
    assert loss.by_field["action"][2] == batch.valid.sum()


def test_the_error_of_several_choices_is_the_share_of_the_wrong_ones():
    sizes = (2, 3, 4, 1)
    right = OneHots(torch.randn(5, 10, generator=torch.Generator().manual_seed(0)), sizes)
    other = right.one_hot([(part.argmax(-1) + 1) % n for part, n in zip(right.parts, sizes, strict=True)])
    mixed = torch.cat([right.mode[:, :5], other[:, 5:]], dim=-1)
    assert mode_error(right, right.mode).tolist() == [0] * 5
    assert mode_error(right, other).tolist() == [0.75] * 5  # of one value there is no wrong one
    assert mode_error(right, mixed).tolist() == [0.25] * 5


@every
@torch.no_grad()
def test_the_loss_of_a_batch_is_the_sum_of_its_pieces(fields):
    model, batch = make(fields()), batch_for(fields())
    whole, pieces = model.loss(batch), [model.loss(piece) for piece in batch.split(2)]
    torch.testing.assert_close(whole.total, sum(piece.total for piece in pieces), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.weight, sum(piece.weight for piece in pieces))


def test_a_field_that_opens_the_block_leaves_its_first_step_out():
    fields = FIELDS["everything predicted"]()
    loss = make(fields).loss(batch_for(fields, lengths=(5, 3, 1, 4)))
    counts = {name: int(count) for name, (_, _, count) in loss.by_field.items()}
    assert counts == {"return": 4 + 2 + 0 + 3, "observation": 13, "action": 13}


def padded_with(batch, filler):
    def fill(x):
        x = x.clone()
        x[~batch.valid] = filler if x.is_floating_point() else min(int(filler), 4)
        return x

    timesteps = torch.where(batch.valid, batch.timesteps, 29)
    return Batch({name: fill(x) for name, x in batch.values.items()}, timesteps, batch.valid)


@every
@pytest.mark.parametrize("filler", [3.0, 1e30])
@torch.no_grad()
def test_padding_changes_nothing(fields, filler):
    model, batch = make(fields()), batch_for(fields())
    plain, padded = model.loss(batch), model.loss(padded_with(batch, filler))
    assert torch.equal(plain.total, padded.total)
    assert torch.equal(plain.weight, padded.weight)


@every
def test_padding_that_is_no_number_changes_neither_loss_nor_gradient(fields):
    model, batch = make(fields()), batch_for(fields())
    gradients = []
    for padded in (batch, with_values(batch, **{n: not_a_number(x, batch.valid) for n, x in batch.values.items()})):
        model.zero_grad()
        loss = model.loss(padded)
        loss.total.backward()
        gradients.append([loss.total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def not_a_number(x, valid):
    x = x.clone()
    if x.is_floating_point():
        x[~valid] = torch.nan
    return x


# What a prediction depends on


@every
@torch.no_grad()
def test_a_prediction_does_not_depend_on_what_comes_after(fields):
    model, batch = make(fields()), batch_for(fields(), lengths=(K,) * B)
    other = batch_for(fields(), lengths=(K,) * B, seed=2)
    before = model.loss(batch)
    for k in range(K - 1):
        mixed = {
            name: torch.cat([x[:, : k + 1], other.values[name][:, k + 1 :]], 1) for name, x in batch.values.items()
        }
        for name, distribution in model(with_values(batch, **mixed)).items():
            assert torch.equal(distribution.mode[:, : k + 1], model(batch)[name].mode[:, : k + 1])
    assert torch.equal(model.loss(batch).total, before.total)


@torch.no_grad()
def test_an_action_depends_on_its_return_and_observation_and_not_on_itself():
    model, batch = make(decision_transformer()), batch_for(decision_transformer(), (K,) * B)
    before = model(batch)["action"].mean
    for name, first_change in (("return", 2), ("observation", 2), ("action", 3)):
        changed = batch.values[name].clone()
        changed[:, 2] += torch.randn_like(changed[:, 2])
        difference = (model(with_values(batch, **{name: changed}))["action"].mean - before).abs().amax(dim=(0, 2, 3))
        assert ((difference > 1e-6) == (torch.arange(K) >= first_change)).all()


@torch.no_grad()
def test_what_is_out_of_context_is_never_seen():
    fields = FIELDS["return predicted and never seen"]
    model, batch = make(fields()), batch_for(fields())
    blind = with_values(batch, **{"return": batch.values["return"] + 7})
    for name, distribution in model(batch).items():
        assert torch.equal(distribution.mean, model(blind)[name].mean)
    assert model.loss(batch).total != model.loss(blind).total


@torch.no_grad()
def test_behaviour_cloning_is_the_model_without_a_memory():
    fields = FIELDS["action out of context"]
    model = make(fields(), Pointwise(D, 2, 0.0, "relu"), max_timestep=None)
    batch = batch_for(fields(), (K,) * B)
    whole = model(batch)["action"].mean
    for k in range(K):
        alone = Batch({n: x[:, k : k + 1] for n, x in batch.values.items()}, batch.timesteps[:, :1], batch.valid[:, :1])
        torch.testing.assert_close(model(alone)["action"].mean, whole[:, k : k + 1], rtol=1e-12, atol=1e-12)


def test_fitting_reaches_every_tokenizer():
    model = make(decision_transformer())
    columns = {"return": torch.zeros(6), "observation": torch.randn(6, 3) + 5, "action": torch.randn(6, 2) - 3}
    model.fit({name: x.numpy() for name, x in columns.items()})
    torch.testing.assert_close(model.tokenizers["observation"].shift, columns["observation"].mean(0).double())
    torch.testing.assert_close(model.tokenizers["action"].shift, columns["action"].mean(0).double())
    assert "tokenizers.action.shift" in model.state_dict()
