"""A policy's model → its *programs*: pure functions of tensors, traced by torch.export, that engines run without the model.

`step`    [a₍ₜ₋₁₎, Rₜ, sₜ] on top of a past that is given → what the heads say at the last token, the embedded tokens, and their keys and values
`refill`  embedded tokens that begin a context → the same, without the tokens
`embed`   [a₍ₜ₋₁₎, Rₜ, sₜ] → embedded tokens

A model without memory has `step` alone, and a model that never refills has no more. B rows, n tokens a call, L tokens of a refill, S slots of the past,
D width."""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from dtrl.acting.state import refilled_tokens
from dtrl.backbones import Transformer
from dtrl.backbones.cache import GivenPast
from dtrl.errors import InputError
from dtrl.heads import OneHots, PointMass, TanhNormal
from dtrl.sequence_model import SequenceModel
from dtrl.spaces import column_layout, leaves
from dtrl.tokenizers import Continuous

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy

STATIC = Dim.STATIC
KINDS: dict[type[Distribution], str] = {
    PointMass: "point",
    Independent: "gaussian",
    TanhNormal: "tanh_gaussian",
    Categorical: "categorical",
    OneHots: "one_hots",
}
"""Distribution of a head → its name in an exported policy."""
ROWS, SLOTS = 2, 6
"""Sizes of the examples; torch.export takes 0 and 1 for constants."""


@torch.library.custom_op("dtrl::attend", mutates_args=())
def attend(query: Tensor, new: Tensor, past: Tensor | None, mask: Tensor) -> Tensor:
    """`GivenPast.mix` as one operation, for an engine that has it (`Engine.fused`)."""
    return GivenPast.mix(query, new, past, mask)


@attend.register_fake
def _(query: Tensor, new: Tensor, past: Tensor | None, mask: Tensor) -> Tensor:
    return query.new_empty(query.shape)


class FusedPast(GivenPast):
    """A past whose attention is traced as one operation."""

    mix = staticmethod(attend)


class Step(nn.Module):
    """`names` are the fields of a call in order; each input is (B, 1, …). `past` is `GivenPast`, or `FusedPast`."""

    def __init__(
        self, model: SequenceModel, names: Sequence[str], acted: Sequence[str], past: type[GivenPast] = GivenPast
    ) -> None:
        super().__init__()
        self.model, self.names, self.acted, self.past = model, list(names), list(acted), past

    def forward(
        self,
        values: list[Tensor],
        timesteps: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        past: Tensor | None = None,
    ) -> dict[str, Any]:
        x = self.embed(values, timesteps)
        state = None if positions is None or mask is None else self.past(past, positions, mask)
        return {**read(self.model, self.acted, x, state), "tokens": x}

    def embed(self, values: list[Tensor], timesteps: Tensor) -> Tensor:
        return self.model.embed(self.names, dict(zip(self.names, values, strict=True)), timesteps)


class Embed(Step):
    def forward(self, values: list[Tensor], timesteps: Tensor) -> dict[str, Any]:  # type: ignore[override]
        return {"tokens": self.embed(values, timesteps)}


class Refill(nn.Module):
    """Of `length` tokens, L."""

    positions: Tensor
    mask: Tensor

    def __init__(self, model: SequenceModel, acted: Sequence[str], length: int, past: type[GivenPast]) -> None:
        super().__init__()
        self.model, self.acted, self.past = model, list(acted), past
        self.register_buffer("positions", torch.arange(length)[None])
        self.register_buffer("mask", torch.full((1, 1, length, length), -math.inf).triu(1))

    def forward(self, tokens: Tensor) -> dict[str, Any]:
        return read(self.model, self.acted, tokens, self.past(None, self.positions, self.mask))


def read(model: SequenceModel, acted: Sequence[str], x: Tensor, state: GivenPast | None) -> dict[str, Any]:
    """What the heads say at the last token, by field, and the keys and values (layers, B, 2 · H_kv, L, D/H) of x."""
    hidden, _ = model.backbone(x, state, read=slice(x.shape[1] - 1, x.shape[1]))
    heads = {name: parameters(model.head_of[name](hidden)) for name in acted}
    return {"heads": heads} if state is None else {"heads": heads, "past": torch.stack(state.new)}


def parameters(distribution: Distribution) -> list[Tensor]:
    """The tensors that make a distribution."""
    if isinstance(distribution, PointMass):
        return [distribution.location]
    if isinstance(distribution, Categorical | OneHots):
        return [distribution.logits]
    normal = distribution.normal if isinstance(distribution, TanhNormal) else distribution
    assert isinstance(normal, Independent)
    assert isinstance(normal.base_dist, Normal)
    return [normal.mean, normal.base_dist.stddev]


def describe(policy: "Policy") -> dict[str, Any]:
    """What an exported policy has to know of its model besides the programs: the fields of a call, the sizes of the past, and the kind of each head."""
    model, backbone = policy.model, policy.model.backbone
    past = backbone.initial_state(1, 1)
    kinds = {}
    with torch.no_grad():
        hidden = next(model.parameters()).new_zeros(1, 1, model.width)
        for name in policy.acted:
            kind = type(model.head_of[name](hidden))
            if kind not in KINDS:
                raise InputError(
                    f"the head of {name} gives a {kind.__name__}, which no engine expresses; use engine eager."
                )
            kinds[name] = KINDS[kind]
    return {
        "names": policy.after + policy.before,
        "ages": policy.ages.tolist(),
        "width": model.width,
        "past": None if past is None else [past.keys_values.shape[i] for i in (0, 2, 4)],
        "band": backbone.band if isinstance(backbone, Transformer) else None,
        "heads": kinds,
    }


def decoders(policy: "Policy") -> dict[str, np.ndarray[Any, Any]]:
    """Shift and scale of each continuous part of the action."""
    found = {}
    for name in policy.acted:
        tokenizer = policy.model.by_name[name].tokenizer
        if isinstance(tokenizer, Continuous):
            found[f"{name}:shift"] = tokenizer.shift.float().cpu().numpy()
            found[f"{name}:scale"] = tokenizer.scale.float().cpu().numpy()
    return found


def exportable(model: SequenceModel) -> SequenceModel:
    """The same model in float32 on the CPU, its parts without names: a field is called `return`, and torch.export writes Python."""
    model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
    for name in ("tokenizers", "embeddings", "heads"):
        setattr(model, f"_{name}", nn.ModuleList(getattr(model, name).values()))
        del model._modules[name]
    return model


def export_programs(
    policy: "Policy", rows: int | None = None, past: type[GivenPast] = GivenPast
) -> dict[str, ExportedProgram]:
    """The programs of a policy with a cached context, for any number of rows, or for `rows` alone.

    Raises InputError for a part that torch.export cannot trace."""
    model = exportable(policy.model)
    names, tokens = policy.after + policy.before, model.tokens_per_step
    batch = ROWS if rows is None else rows
    b = Dim("rows", min=1) if rows is None else STATIC
    leaf_of = {
        leaf.name(role): leaf
        for role, space in (("observation", policy.observation_space), ("action", policy.action_space))
        for leaf in leaves(space)
    }
    values = [
        empty(batch, *column_layout(leaf_of[name].space) if name in leaf_of else ((), np.float32)) for name in names
    ]
    inputs: dict[str, Any] = {"values": values, "timesteps": torch.zeros(batch, 1, tokens, dtype=torch.long)}
    dims: dict[str, Any] = {"values": [{0: b} for _ in values], "timesteps": {0: b}}
    step = Step(model, names, list(policy.acted), past)
    if not model.backbone.memory:
        return {"step": trace(step, inputs, dims)}
    s = Dim("slots", min=2) if policy.context == "full" else None
    slots = SLOTS if s is not None else policy.context_length * tokens
    memory = {
        "positions": torch.arange(slots, slots + tokens).repeat(batch, 1),
        "mask": torch.zeros(batch, 1, tokens, slots + tokens),
        "past": model.backbone.initial_state(batch, slots).keys_values,
    }
    memory_dims = {
        "positions": {0: b},
        "mask": {0: b, 3: s + tokens if s is not None else STATIC},
        "past": {1: b, 3: s or STATIC},
    }
    programs = {"step": trace(step, inputs | memory, dims | memory_dims)}
    if policy.context == "block":
        kept = refilled_tokens(policy.context_length, tokens, policy.tokens_after)
        refill = torch.zeros(batch, kept, model.width)
        programs["refill"] = trace(
            Refill(model, list(policy.acted), kept, past), {"tokens": refill}, {"tokens": {0: b}}
        )
        programs["embed"] = trace(Embed(model, names, list(policy.acted)), inputs, dims)
    return programs


def empty(rows: int, shape: tuple[int, ...], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.zeros((rows, 1, *shape), dtype))


def trace(module: nn.Module, inputs: dict[str, Any], dims: dict[str, Any]) -> ExportedProgram:
    try:
        return torch.export.export(module.eval(), (), inputs, dynamic_shapes=dims)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"this policy's model cannot be exported ({type(error).__name__}: {reason}).") from error


def as_document(program: ExportedProgram) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The program as data (see `program.Program`), and its constants by name; what nothing uses is left out."""
    program.graph.eliminate_dead_code()
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    given = {**program.state_dict, **program.constants}
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and "_assert" not in str(n.target)]
    wanted = [n for n in program.graph.nodes if n.op == "placeholder"]
    constants = [n for n in wanted if specs[n.name].kind.name != "USER_INPUT" and n.users]
    inputs = [n for n in wanted if specs[n.name].kind.name == "USER_INPUT"]
    register = {node: i for i, node in enumerate([*constants, *inputs, *nodes])}

    def encode(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return {"r": register[value]}
        if isinstance(value, (list, tuple)):
            return [encode(part) for part in value]
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

    ignored = {"device", "layout", "pin_memory", "memory_format"}
    returned = next(n for n in program.graph.nodes if n.op == "output").args[0]
    document = {
        "inputs": [n.name for n in inputs],
        "constants": [n.name for n in constants],
        "nodes": [
            [
                str(n.target) if isinstance(n.target, torch._ops.OpOverload) else n.target.__name__,
                encode(n.args),
                {key: encode(value) for key, value in n.kwargs.items() if key not in ignored},
            ]
            for n in nodes
        ],
        "outputs": pytree.tree_unflatten([encode(value) for value in returned], program.call_spec.out_spec),
    }
    return document, {n.name: given[specs[n.name].target].detach().numpy() for n in constants}


def nest_of(program: ExportedProgram) -> Any:
    """The form of what a program returns, with each tensor replaced by its number among them, `{"r": i}`."""
    returned = next(n for n in program.graph.nodes if n.op == "output").args[0]
    count = iter(range(len(returned)))
    numbers = [{"r": next(count)} if isinstance(value, torch.fx.Node) else None for value in returned]
    return pytree.tree_unflatten(numbers, program.call_spec.out_spec)


def inputs_of(program: ExportedProgram) -> list[str]:
    """The names of a program's inputs, in its order."""
    return [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
