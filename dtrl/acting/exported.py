"""A policy that an engine runs: it predicts as the policy with the same context from which it was exported, and needs no torch to do so (`aoti` apart).

B environments, n tokens of a call, D width."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.acting.actor import Actor, no_return_to_clip
from dtrl.acting.artefact import load_arrays, save_arrays
from dtrl.acting.engines import ENGINES, Engine
from dtrl.acting.engines.call import Call
from dtrl.acting.engines.choosing import allow, choose_id, choose_vector
from dtrl.acting.engines.operations import split
from dtrl.acting.engines.past import Sizes
from dtrl.acting.masks import Masks
from dtrl.acting.state import Begins, PolicyState
from dtrl.acting.summary import DataSummary
from dtrl.config import DecodingConfig, ModelConfig
from dtrl.errors import InputError, did_you_mean
from dtrl.spaces import check_space, choices_of, column_layout, space_from_json

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy

Array = npt.NDArray[Any]


class ExportedPolicy(Actor):
    """Made by `ExportedPolicy.of(policy, engine)` or read from a file of `dtrl export`; acts as a `Policy` of the same context does.

    Its context is part of what was compiled; decoding and target return are free. With the engine `aoti` its number of environments is fixed too."""

    def __init__(
        self,
        document: Mapping[str, Any],
        arrays: Mapping[str, Array],
        *,
        decoding: DecodingConfig | None = None,
        target_return: float | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(
            space_from_json(document["observation_space"]),
            space_from_json(document["action_space"]),
            DataSummary.from_json(document["data"]),
            decoding,
            document["target_return"] if target_return is None else target_return,
        )
        self.document, self.arrays = dict(document), dict(arrays)
        self.config = ModelConfig.saved(document["model"])
        self.updates, self.engine_name, self.rows = document["updates"], document["engine"], document["rows"]
        self.context, self.context_length = document["context"], document["context_length"]
        model = document["network"]
        self.names, self.width, self.heads = model["names"], model["width"], model["heads"]
        self.told_return = "return" in self.names
        if self.decoding.clip_return and not self.told_return:
            raise no_return_to_clip(self.config.preset)
        self.ages = np.array(model["ages"])[None, None]
        self.band = None if model["band"] is None else (int(model["band"][0]), int(model["band"][1]))
        self.past_shape: tuple[int, int, int] | None = None if model["past"] is None else tuple(model["past"])
        self.scales = {
            name: (arrays[f"{name}:scale"][None], arrays[f"{name}:shift"][None])
            for name, leaf in self.acted.items()
            if isinstance(leaf.space, spaces.Box)
        }
        parts = {
            name: (part, {key.removeprefix(f"{name}/"): a for key, a in arrays.items() if key.startswith(f"{name}/")})
            for name, part in document["programs"].items()
        }
        self.engine: Engine = engine or ENGINES[self.engine_name](parts)

    @classmethod
    def of(cls, policy: "Policy", engine: str, *, rows: int | None = None) -> "ExportedPolicy":
        """Export a policy in memory. `rows` fixes the number of environments; the engine `aoti` needs it, and takes 1.

        A policy with the context `window` is exported with `block`, which is as exact and keeps a cache. Raises InputError for an engine that is
        unknown or cannot run here, and for a model that it cannot express."""
        from dtrl.acting.engines.exporting import FusedPast, decoders, describe, export_programs
        from dtrl.backbones.cache import GivenPast

        if engine not in ENGINES:
            raise InputError(f"engine {engine!r} is unknown; {did_you_mean(engine, list(ENGINES))}")
        if rows is not None and rows < 1:
            raise InputError(f"an export is for 1 environment or more at a time, not {rows}.")
        if policy.block_length > 1:
            raise InputError(
                f"engines run a policy that chooses one action a step, and this one decides {policy.block_length} at once; use engine eager."
            )
        told = {"return", *policy.observed, *policy.acted}
        by_token = len(policy.decisions) > 1 or any(
            isinstance(leaf.space, spaces.Box) and policy.model.by_name[name].tokenizer.vocab_size is not None
            for name, leaf in policy.acted.items()
        )
        if by_token or policy.conditions > 1 or not told.issuperset(policy.after + policy.before):
            raise InputError(
                f"engines run a policy that chooses an action at once from observations and returns, and this one, of preset {policy.config.preset}, does not; "
                "use engine eager."
            )
        if policy.context == "window" and policy.model.backbone.memory:
            policy = policy.variant(context="block", context_length=policy.context_length)
        rows = 1 if rows is None and engine == "aoti" else rows
        maker = ENGINES[engine]
        programs = export_programs(policy, rows, FusedPast if maker.fused else GivenPast)
        made = {name: maker.make(program) for name, program in programs.items()}
        document = {
            **policy.document(),
            "engine": engine,
            "rows": rows,
            "context": policy.context,
            "context_length": policy.context_length,
            "network": describe(policy),
            "programs": {name: part for name, (part, _) in made.items()},
        }
        arrays = {f"{name}/{key}": a for name, (_, some) in made.items() for key, a in some.items()}
        return cls(document, arrays | decoders(policy), decoding=policy.decoding)

    def save(self, path: str | Path) -> None:
        """Write the policy to one file (safetensors with a JSON header), atomically."""
        save_arrays(Path(path), self.arrays, {**self.document, "target_return": self.target_return})

    @classmethod
    def load(cls, path: str | Path, *, engine: str | None = None, **acting: Any) -> "ExportedPolicy":
        """The policy in a file made by `save`. `acting`: decoding, target_return. Raises InputError for a file that was altered, or cannot be run here, and
        for machine code where `engine` does not ask for `aoti`: loading it runs it."""
        arrays, document = load_arrays(Path(path))
        if document.get("engine") == "aoti" and engine != "aoti":
            raise InputError(
                f"{path} holds machine code, which loading it runs; where you have made it yourself, say so by engine='aoti' (--engine aoti)."
            )
        for name in ("context", "context_length"):
            if acting.pop(name, None) not in (None, document.get(name)):
                raise InputError(
                    f"{path} was exported with the context {document.get('context')} of {document.get('context_length')} steps, which is a part of it; "
                    "leave context out, or export the run again."
                )
        if unknown := acting.keys() - {"decoding", "target_return"}:
            raise InputError(
                f"{', '.join(sorted(unknown))} is nothing that an export can change; give decoding or target_return."
            )
        try:
            for role in ("observation", "action"):
                check_space(space_from_json(document[f"{role}_space"]), role, str(path))
            return cls(document, arrays, **acting)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path} does not describe a policy this dtrl can run ({type(error).__name__}: {reason}); use the dtrl that wrote it ({document.get('dtrl')})."
            ) from error

    def variant(self, **changes: Any) -> "ExportedPolicy":
        """The same model, acting otherwise: decoding, target_return."""
        if unknown := changes.keys() - {"decoding", "target_return"}:
            raise InputError(f"{', '.join(sorted(unknown))} is a part of an export; export the run again.")
        rest = {"decoding": self.decoding, "target_return": self.target_return, **changes}
        return ExportedPolicy(self.document, self.arrays, engine=self.engine, **rest)

    def replay(self, *_: Any, **__: Any) -> float:
        """Not of an export: raises InputError."""
        raise InputError(
            "replay compares acting with the model, which an export does not hold; replay the policy that it was made from."
        )

    # acting

    def new_context(self, rows: int) -> Call:
        if self.rows not in (None, rows):
            raise InputError(
                f"this policy was exported for {self.rows} environment{'s' if self.rows > 1 else ''} at a time, and is asked for {rows}; use so many "
                f"(--num-envs), or export it again with --num-envs {rows}."
            )
        sizes = None
        if self.past_shape is not None:
            before, count = int(self.ages.sum()), self.ages.size
            sizes = Sizes(self.context, self.context_length, count, before, self.width, self.past_shape, self.band)
        leaf_of = {**self.observed, **self.acted}
        layouts = [column_layout(leaf_of[name].space) if name in leaf_of else ((), np.float32) for name in self.names]
        values = [np.zeros((rows, 1, *shape), dtype) for shape, dtype in layouts]
        return self.engine.call(values, np.zeros((rows, 1, self.ages.size), np.int64), sizes, self.rows)

    def choose_actions(
        self,
        state: PolicyState,
        observations: Mapping[str, Array],
        first: Begins,
        allowed: Masks | None,
        decoding: DecodingConfig,
    ) -> dict[str, Array]:
        decoding.refuse_sequences()
        if decoding.strategy == "sample" and not {"categorical", "one_hots"} & set(self.heads.values()):
            decoding.refuse_cuts()
        call: Call = state.context
        for name, buffer in zip(self.names, call.now, strict=True):
            if name in self.observed:
                buffer[...] = observations[self.observed[name].path]
            elif name in self.acted:
                buffer[...] = state.actions[self.acted[name].path]
                if first is not None:  # nobody sees these, but what is no number hides from nobody
                    buffer[first] = 0
            else:
                buffer[...] = state.returns_to_go
        np.subtract(state.timesteps[:, None, None], self.ages, out=call.timesteps)
        if first is not None:
            np.maximum(call.timesteps, 0, out=call.timesteps)
        heads = call.forward(first)
        return {
            leaf.path: self.decide(name, heads[name], allowed, decoding, state) for name, leaf in self.acted.items()
        }

    def decide(
        self,
        name: str,
        parameters: Sequence[Array],
        allowed: Masks | None,
        decoding: DecodingConfig,
        state: PolicyState,
    ) -> Array:
        """(B, …) values of one part of the action, in env units."""
        space, rows = self.acted[name].space, [part[:, 0] for part in parameters]
        if isinstance(space, spaces.Box):
            scale, shift = self.scales[name]
            decoded = choose_vector(self.heads[name], rows, decoding, state.generators) * scale
            decoded += shift
            return self.limits[name](decoded.reshape(len(decoded), *space.shape))
        if isinstance(space, spaces.Discrete):
            sizes, start = np.array([space.n]), space.start
        else:
            sizes, first = choices_of(space)
            start = 0 if first is None else first
        flat = sizes.ravel().tolist()
        logits = rows[0] if allowed is None else allow(rows[0], allowed, flat)
        ids = [choose_id(part, decoding, state.generators) for part in split(logits, flat, -1)]
        return self.limits[name](np.stack(ids, axis=-1).reshape(len(logits), *(space.shape or ())) + start)
