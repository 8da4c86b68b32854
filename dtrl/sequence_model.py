"""The one model: fields with tokenizers → causal backbone → heads, and its one loss.

A *block* is what one environment step contributes to the sequence: the tokens of each field in context, in the order of the fields: (return-to-go,
observation, action) for the Decision Transformer. The hidden vector at a token predicts the token after it.

A block may also be of H steps: its return and observation are those of the first, and its action is a chunk of H actions, whose tokenizer has a
`block_length` of H. All that is called a step below is then a block."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from dtrl.backbones import Backbone
from dtrl.backbones.dropout import dropout
from dtrl.embeddings import SlotTables, Unseen, embedding, table_of
from dtrl.heads import OneHots, Slots
from dtrl.tokenizers import Tokenizer
from dtrl.tokenizers.normalization import no_autocast
from dtrl.windows import Batch

FIRST_MULTIPLIER = 0.1
"""Of the entropy, before the first update, as in the published code of the Online Decision Transformer."""


@dataclass(frozen=True)
class Field:
    """One slot group of the block."""

    name: str
    tokenizer: Tokenizer
    loss_weight: float = 0.0
    """Weight of −log p of its tokens in the loss; 0 for a field that only conditions."""
    in_context: bool = True
    """Whether its tokens are fed to the model. A field that is not is predicted from the slot before it and never seen."""
    hidden: bool = False
    """Whether the tokens after it may not see what it says, as the values of a Trajectory Transformer: it is predicted, and in context there is a learned
    vector in its place [Janner et al. 2021, §3, hides it by the attention mask]."""
    chosen: bool = False
    """Whether acting lets the model choose it and go on from what it chose, although it is no action: the id of a return that the model asks of itself."""
    least_entropy: float | None = None
    """Nats below which the mean entropy of its token's distribution is not to fall; a multiplier in the loss sees to it. None for no bound."""
    at_once: bool = False
    """Whether all its tokens are predicted from the one slot before the first, each without knowing the others; such a field is not in context."""
    source: str = ""
    """Its key in `Batch.values`, and the column that its tokenizer is fitted to; the name where it is not given."""
    joined: bool = False
    """Whether it shares the token of the field before it: the parts of a Dict are embedded each in its own way and added up, and the parts of a
    composite action are predicted from the same hidden vector."""

    quiet: bool = False
    """Whether the vectors of its tokens begin as quiet as the timestep that is added to them, so that the two are learnt together: a return to go means
    little without the time that is left."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", self.source or self.name)


@dataclass(frozen=True)
class Loss:
    """Sums over the predicted tokens of a batch, so that losses of several batches add up exactly."""

    total: Tensor
    """Σ w·m·(−log p), a scalar with a gradient."""
    weight: Tensor
    """Σ w·m."""
    by_field: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    """Field → (Σ m·(−log p), Σ m·error, Σ m), detached; the error of a token is that of `mode_error`."""
    entropies: Mapping[str, tuple[Tensor, Tensor, Tensor]]
    """Field whose entropy is bounded → (Σ m·H, Σ m·λ, Σ m), detached."""


class SequenceModel(nn.Module):
    """Embeds and interleaves fields, runs the backbone, reads heads.

    `heads` has one head for each field with a loss weight. `max_timestep` is the number of rows of the learned timestep embedding that is added to
    every token of a step (None: no such embedding); later steps share the last row. `normalize` adds the published LayerNorm after embedding."""

    def __init__(
        self,
        fields: Sequence[Field],
        backbone: Backbone,
        heads: Mapping[str, nn.Module],
        *,
        width: int,
        max_timestep: int | None = None,
        normalize: bool = True,
        dropout: float = 0.0,
        image_encoder: str = "conv",
    ) -> None:
        super().__init__()
        self.fields, self.width, self.dropout = tuple(fields), width, dropout
        self.by_name = {f.name: f for f in fields}
        context = [f for f in fields if f.in_context]
        self.tokenizers = nn.ModuleDict({module_name(f.name): f.tokenizer for f in fields})
        embeddings = {
            f.name: Unseen(width) if f.hidden else embedding(f.tokenizer, width, image_encoder, f.quiet)
            for f in context
        }
        self.embeddings = nn.ModuleDict({module_name(name): layer for name, layer in embeddings.items()})
        # plain references: finding a module in a ModuleDict at every step of acting costs as much as a small kernel
        self.embedders = {f.name: (f, embeddings[f.name], f.joined) for f in context}
        self.timestep_embedding = table_of(max_timestep, width) if max_timestep else None
        self.norm = nn.LayerNorm(width) if normalize else nn.Identity()
        self.backbone = backbone
        self.heads = nn.ModuleDict({module_name(name): head for name, head in heads.items()})
        self.head_of = dict(heads)
        self.bounded = [f.name for f in fields if f.least_entropy is not None]
        start = math.log(FIRST_MULTIPLIER)
        self.log_multipliers = nn.ParameterList(nn.Parameter(torch.tensor(start)) for _ in self.bounded)
        lengths = {f.tokenizer.block_length for f in fields} - {1}
        if len(lengths) > 1:
            raise ValueError(f"fields have chunks of {sorted(lengths)} steps; those of one model are of one length")
        self.block_length = lengths.pop() if lengths else 1
        """Steps of a block, H."""
        self.tokens_per_step = sum(f.tokenizer.num_tokens for f in context if not f.joined)
        self.slots = self.slots_of_fields()
        self.sources = list(dict.fromkeys(f.source for f in fields))

    def slots_of_fields(self) -> dict[str, int]:
        """The slot of the block at which each field begins; for a field out of context, the slot that it would have."""
        slots: dict[str, int] = {}
        slot = 0
        for i, f in enumerate(self.fields):
            slots[f.name] = slot
            if f.joined:
                before = self.fields[i - 1]
                if i == 0 or (before.in_context, before.tokenizer.num_tokens, f.tokenizer.num_tokens) != (
                    f.in_context,
                    1,
                    1,
                ):
                    raise ValueError(
                        f"field {f.name!r} cannot join the field before it: both must have one token a step, in context or not"
                    )
                slots[f.name] = slots[before.name]
            elif f.in_context:
                slot += f.tokenizer.num_tokens
            elif f.tokenizer.num_tokens != 1 and not f.at_once:
                raise ValueError(
                    f"field {f.name!r} has {f.tokenizer.num_tokens} tokens a step and is not in context; only a single token can be predicted so"
                )
        return slots

    def tokens_of(self, names: Iterable[str]) -> int:
        """How many tokens a step the named fields of the context have."""
        return sum(f.tokenizer.num_tokens for f in map(self.by_name.__getitem__, names) if not f.joined)

    def fit(self, columns: Mapping[str, object]) -> None:
        """Fit each field's tokenizer to its column of data."""
        for f in self.fields:
            f.tokenizer.fit(columns[f.source])  # type: ignore[arg-type]

    def encode(self, f: Field, values: Mapping[str, Tensor]) -> Tensor:
        """The field's tokens (B, K, n) or (B, K, n, d) of values (B, K, …), or of chunks (B, K, H, …) where it has such."""
        x = values[f.source]
        return f.tokenizer.encode(x if f.tokenizer.block_length == 1 else x.flatten(1, 2))

    def decode(self, f: Field, tokens: Tensor) -> Tensor:
        """The inverse of `encode`."""
        x, h = f.tokenizer.decode(tokens), f.tokenizer.block_length
        return x if h == 1 else x.unflatten(1, (-1, h))

    def embed(self, names: Iterable[str], values: Mapping[str, Tensor], timesteps: Tensor, since: int = 0) -> Tensor:
        """Tokens (B, T · n, D) of the named fields, n a step, in the given order, without the first `since` of them. Training and acting both call this.

        `timesteps` are (B, T), or (B, T, n) where the tokens of a step differ in it, as they do in acting: the last action and what followed it."""
        tokens: list[Tensor] = []
        for name in names:
            f, embed, joined = self.embedders[name]
            token = embed(self.encode(f, values))
            if joined:
                tokens[-1] = tokens[-1] + token
            else:
                tokens.append(token)
        if since:
            tokens[0] = tokens[0][:, :, since:]
        return self.placed(tokens, timesteps)

    def embed_ids(self, name: str, ids: Tensor, slot: int, timesteps: Tensor) -> Tensor:
        """Tokens (B, n, D) of ids (B, n) that lie in the field's slots from `slot` on, all of the step `timesteps` (B,)."""
        embed = self.embedders[name][1]
        token = embed(ids.unsqueeze(1), slot) if isinstance(embed, SlotTables) else embed(ids.unsqueeze(1))
        return self.placed([token], timesteps.unsqueeze(1))

    def placed(self, tokens: list[Tensor], timesteps: Tensor) -> Tensor:
        """Embedded parts (B, T, ·, D) of a step, end to end, where they stand in time: (B, T · n, D)."""
        x = full_precision(tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=2))
        if self.timestep_embedding is not None:
            table = self.timestep_embedding.weight
            time = F.embedding(timesteps.clamp_max(len(table) - 1), table)
            x = x + (time.unsqueeze(2) if timesteps.dim() == 2 else time)
        return dropout(self.norm(x.flatten(1, 2)), self.dropout if self.training else 0.0)

    def forward(self, batch: Batch) -> dict[str, Distribution]:
        """The distribution of every field with a head, at every step: batch shape (B, K, n)."""
        steps = batch.timesteps.shape[1]
        x = self.embed([f.name for f in self.fields if f.in_context], batch.values, batch.timesteps)
        read = {name: 1 if f.at_once else f.tokenizer.num_tokens for name, f in self.by_name.items()}
        groups = {name: (self.slots[name], read[name]) for name in self.head_of}
        reads = {group: self.read_positions(*group, steps, x.device) for group in dict.fromkeys(groups.values())}
        positions = torch.cat([r.flatten() for r in reads.values()])
        last = max(slot + tokens for slot, tokens in reads)
        end = (steps - 1) * self.tokens_per_step + last - 1  # what follows the last token that is read cannot reach it
        # where one token a step is read, a slice is a view of them, and its gradient needs no scatter
        evenly = slice(last - 2, None, self.tokens_per_step) if len(positions) == steps and last > 1 else positions
        hidden, _ = self.backbone(x[:, : max(1, end)], read=evenly)
        pieces = hidden.split([r.numel() for r in reads.values()], dim=1)
        hidden_of = {
            group: full_precision(h).unflatten(1, reads[group].shape) for group, h in zip(reads, pieces, strict=True)
        }
        with no_autocast(x.device.type):  # bf16 has three digits, too few for log p and for an action
            return {name: self.head_of[name](hidden_of[group]) for name, group in groups.items()}

    def predict(self, name: str, hidden: Tensor, slot: int = 0) -> Distribution:
        """The distribution of the field's token in `slot`, of batch shape (B, 1), from the hidden vector (B, D) before it."""
        head = self.head_of[name]
        hidden = hidden.unsqueeze(1)
        return head(hidden, slot) if isinstance(head, Slots) else head(hidden)  # type: ignore[no-any-return]

    def read_positions(self, slot: int, tokens: int, steps: int, device: torch.device) -> Tensor:
        """(K, n) the positions whose hidden vectors predict the n tokens from a slot on: each the one before the token's own.

        A field that opens the block is predicted from the end of the block before; at the first step nothing is before it, and the loss leaves
        that step out."""
        first = torch.arange(steps, device=device)[:, None] * self.tokens_per_step + slot
        return torch.clamp(first + torch.arange(tokens, device=device) - 1, min=0)

    def loss(self, batch: Batch, seen: Batch | None = None) -> Loss:
        """Σⱼ wⱼ·m·(−log p(xⱼ | x<ⱼ)) and Σⱼ wⱼ·m over the tokens of valid steps (teacher forcing); their quotient is the loss.

        `seen` are the same windows as they are in the model's context, where that is not what it has to predict.

        Where the entropy H of a field is bounded by β, λ·(β − H) is added, whose gradient moves the weights towards more entropy, and the multiplier λ > 0
        itself the other way: it grows while H < β [Zheng et al. 2022, Online Decision Transformer, arXiv:2202.05607]. The value is without the β.

        Padding may hold anything, even NaN: its weight in attention and loss is 0, and 0 · NaN is NaN, so it is cleared first."""
        batch = batch.cleared()
        total, weight, by_field, entropies = (
            batch.timesteps.new_zeros((), dtype=torch.float32),
            batch.timesteps.new_zeros((), dtype=torch.float32),
            {},
            {},
        )
        for name, distribution in self(batch if seen is None else seen.cleared()).items():
            f = self.by_name[name]
            target = self.encode(f, batch.values)
            valid = batch.valid.unsqueeze(-1).expand(target.shape[:3])
            if self.slots[name] == 0:
                valid = valid & (torch.arange(valid.shape[1], device=valid.device)[:, None] > 0)
            surprise = torch.where(valid, -distribution.log_prob(target), 0.0)
            count = valid.sum()
            total = total + f.loss_weight * surprise.sum()
            weight = weight + f.loss_weight * count
            if f.least_entropy is not None:
                multiplier = self.log_multipliers[self.bounded.index(name)].exp()
                entropy = torch.where(valid, distribution.entropy(), 0.0).sum()
                slack = entropy.detach() - f.least_entropy * count
                dual = (multiplier - multiplier.detach()) * slack  # of value 0: a gradient for the multiplier alone
                total = total + f.loss_weight * (dual - multiplier.detach() * entropy)
                entropies[name] = (entropy.detach(), multiplier.detach() * count, count)
            by_field[name] = (
                surprise.sum().detach(),
                torch.where(valid, mode_error(distribution, target), 0.0).sum().detach(),
                count,
            )
        return Loss(total, weight, by_field, entropies)


def full_precision(x: Tensor) -> Tensor:
    """float32 where autocast has made less of it: of the residual stream, to which every layer adds, and of what the heads read."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) and torch.is_autocast_enabled(x.device.type) else x


def module_name(field: str) -> str:
    """A name that torch allows for a module: a Dict's own keys may have dots."""
    return field.replace("%", "%25").replace(".", "%2E")


def mode_error(distribution: Distribution, target: Tensor) -> Tensor:
    """How far the most probable token is from the target: the mean of the squared differences of a vector's entries, in token units; of ids 1 for a wrong
    one, and of several choices (MultiDiscrete, MultiBinary, the characters of a text) the share of those that are wrong."""
    mode = distribution.mode.detach()
    if isinstance(distribution, OneHots):  # a wrong choice differs in two entries
        return (mode - target).abs().sum(dim=-1) / (2 * len(distribution.sizes))
    return (mode - target).square().mean(dim=-1) if target.is_floating_point() else (mode != target).float()
