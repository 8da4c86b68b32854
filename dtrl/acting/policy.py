"""A policy: the trained model with all it needs to act, in env units, under Stable-Baselines3's signature.

B environments, S width of an observation, A width of an action."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Distribution

import dtrl
from dtrl.acting.actor import Actor
from dtrl.acting.artefact import load_artefact, save_artefact
from dtrl.acting.context import CONTEXTS, Context, check_context
from dtrl.acting.masks import Masks
from dtrl.acting.state import Begins, PolicyState
from dtrl.acting.summary import DataSummary
from dtrl.config import DecodingConfig, ModelConfig
from dtrl.decoding import choose, mask_actions
from dtrl.errors import InputError
from dtrl.presets import build
from dtrl.sequence_model import SequenceModel
from dtrl.spaces import (
    Space,
    check_space,
    space_from_json,
    space_to_json,
)
from dtrl.trajectories import Trajectories

Array = npt.NDArray[Any]


class Policy(Actor):
    """The model run by PyTorch, as it was trained."""

    def __init__(
        self,
        model: SequenceModel,
        config: ModelConfig,
        observation_space: Space,
        action_space: Space,
        data: DataSummary,
        *,
        context: str | None = None,
        context_length: int | None = None,
        decoding: DecodingConfig | None = None,
        target_return: float | None = None,
        updates: int = 0,
    ) -> None:
        super().__init__(observation_space, action_space, data, decoding, target_return)
        self.model, self.config, self.updates = model.eval(), config, updates
        self.context, self.context_length = check_context(context, context_length, config, model.backbone.memory)
        context_fields = [f for f in model.fields if f.in_context]
        self.before = [f.name for f in context_fields if f.name not in self.acted]
        self.after = [f.name for f in context_fields if f.name in self.acted]
        self.tokens_after = sum(f.tokenizer.num_tokens for f in context_fields if f.name in self.acted and not f.joined)
        self.ages = np.array([1] * self.tokens_after + [0] * (model.tokens_per_step - self.tokens_after))
        self._anchor = next(model.parameters())

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    def tensor(self, values: Array) -> Tensor:
        """The values on the policy's device."""
        made = torch.from_numpy(np.ascontiguousarray(values))
        return made if self._anchor.is_cpu else made.to(self.device)

    def to(self, device: str | torch.device) -> "Policy":
        self.model.to(device)
        self._state = None
        return self

    def variant(self, **changes: Any) -> "Policy":
        """The same model, acting otherwise: context, context_length, decoding, target_return."""
        rest = {
            "context": self.context,
            "context_length": self.context_length,
            "decoding": self.decoding,
            "target_return": self.target_return,
            **changes,
        }
        if "context" in changes and "context_length" not in changes:
            rest["context_length"] = None
        if not self.model.backbone.memory:
            rest["context_length"] = None
        return Policy(
            self.model, self.config, self.observation_space, self.action_space, self.data, updates=self.updates, **rest
        )

    # acting

    def new_context(self, rows: int) -> Context:
        model = self.model
        return CONTEXTS[self.context](model.backbone, rows, self.context_length, model.tokens_per_step, model.width)

    def choose_actions(
        self,
        state: PolicyState,
        observations: Mapping[str, Array],
        first: Begins,
        allowed: Masks | None,
        decoding: DecodingConfig,
    ) -> dict[str, Array]:
        with torch.inference_mode():
            distributions = self.distributions(state, observations, first)
            if allowed is not None:
                distributions = mask_actions(distributions, allowed)
            chosen = choose(distributions, decoding, state.generators)
            return {leaf.path: self.to_actions(chosen[name], name) for name, leaf in self.acted.items()}

    def distributions(
        self, state: PolicyState, observations: Mapping[str, Array], first: Begins
    ) -> dict[str, Distribution]:
        """The model's distribution of each action token, by field, after one forward of what came since the last one: [a₍ₜ₋₁₎, Rₜ, sₜ].

        `observations` are the parts of the observations by path, (B, …) each."""
        model = self.model
        values = {"return": state.returns_to_go}
        values |= {name: observations[leaf.path] for name, leaf in self.observed.items()}
        values |= {name: state.actions[leaf.path] for name, leaf in self.acted.items()}
        beginning, names = first is not None and bool(first.all()), self.before
        if not beginning:
            names = self.after + self.before
        now = {name: self.tensor(values[name][:, None]) for name in names}
        ages = (
            self.ages[self.tokens_after :] if beginning else self.ages
        )  # of each token: 1 for those of the step before
        timesteps = np.maximum(state.timesteps[:, None, None] - ages, 0)
        x = model.embed(names, now, self.tensor(timesteps))
        counts = np.full(len(x), x.shape[1])
        if first is not None and not beginning:  # no action came before: these rows are padded on the right instead
            rows = self.tensor(np.flatnonzero(first))
            x[rows] = x[rows].roll(-self.tokens_after, dims=1)
            counts -= first * self.tokens_after
        hidden = state.context.step(x, counts, first).unsqueeze(1)
        return {name: model.head_of[name](hidden) for name in self.acted}

    def to_actions(self, tokens: Tensor, name: str) -> Array:
        """(B, 1) ids or (B, 1, d) vectors → (B, …) actions inside their part of the action space, in its dtype."""
        values = self.model.by_name[name].tokenizer.decode(tokens.unsqueeze(1)).squeeze(1).cpu()
        decoded = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # which has no bfloat16
        return self.limits[name](decoded)

    # proof

    def replay(self, trajectories: Trajectories, rows: int = 32) -> float:
        """The largest |acting − teacher forcing| over the episodes: in token units for continuous actions, in log-probability for discrete ones.

        Acting is fed the recorded observations, actions and rewards one step at a time, `rows` episodes side by side; teacher forcing is the training
        forward over what each action may depend on. Zero up to rounding, or acting is not the model that was trained."""
        from dtrl.acting.replay import largest_difference

        return largest_difference(self, trajectories, rows)

    # saving

    def save(self, path: str | Path) -> None:
        """Write the policy to one file (safetensors with a JSON header), atomically."""
        save_artefact(Path(path), self.model.state_dict(), self.document())

    def document(self) -> dict[str, Any]:
        return {
            "dtrl": dtrl.__version__,
            "model": asdict(self.config),
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "data": asdict(self.data),
            "updates": self.updates,
            "target_return": self.target_return,
        }

    @classmethod
    def load(cls, path: str | Path, **acting: Any) -> "Policy":
        """The policy in a file made by `save`; keyword arguments are those of `Policy`. Nothing else is needed: no dataset, no environment."""
        tensors, document = load_artefact(Path(path))
        try:
            config = ModelConfig(**{"goal": "", **document["model"]})  # older policies have no goal
            summary = DataSummary.from_json(document["data"])
            observation_space, action_space = (
                space_from_json(document["observation_space"]),
                space_from_json(document["action_space"]),
            )
            check_space(observation_space, "observation", str(path))
            check_space(action_space, "action", str(path))
            model = build(config, observation_space, action_space)
            model.load_state_dict(tensors)
            updates, target_return = int(document["updates"]), float(document["target_return"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path} does not describe a policy this dtrl can build ({reason}); use the dtrl that wrote it ({document.get('dtrl')})."
            ) from error
        acting.setdefault("target_return", target_return)
        return cls(model, config, observation_space, action_space, summary, updates=updates, **acting)
