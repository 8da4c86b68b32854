"""A policy: the trained model with all it needs to act, in env units, under Stable-Baselines3's signature.

B environments, S width of an observation, A width of an action."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Distribution

import dtrl
from dtrl.acting.artefact import load_artefact, save_artefact
from dtrl.acting.context import CONTEXTS, check_context
from dtrl.acting.masks import ACTION_MASK
from dtrl.acting.state import PolicyState
from dtrl.acting.summary import DataSummary
from dtrl.config import DecodingConfig, ModelConfig
from dtrl.decoding import choose, mask_actions
from dtrl.errors import InputError
from dtrl.presets import build
from dtrl.sequence_model import SequenceModel
from dtrl.spaces import (
    Space,
    batch_of,
    check_space,
    column_layout,
    leaves,
    space_from_json,
    space_to_json,
    unflatten,
)
from dtrl.trajectories import Trajectories

Array = npt.NDArray[Any]


class Policy:
    """Acts in env units: `predict` (Stable-Baselines3's signature), or `reset` and `act` for the simplest loop.

    The return-to-go falls as rewards come in, so they have to reach the policy: `act(observation, reward)` takes them; a caller of `predict` adds them to
    `state.reward`; Stable-Baselines3's `evaluate_policy` does so through `callback=policy.reward_callback`. A caller who never tells rewards
    asks for the whole target at every step."""

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
        self.model, self.config, self.data, self.updates = model.eval(), config, data, updates
        self.observation_space, self.action_space = observation_space, action_space
        self.context, self.context_length = check_context(context, context_length, config, model.backbone.memory)
        self.decoding = decoding or DecodingConfig()
        self.sampling = self.decoding if self.decoding.strategy == "sample" else DecodingConfig(strategy="sample")
        self.target_return = check_target(data.default_target_return if target_return is None else target_return)
        self.acted = {leaf.name("action"): leaf for leaf in leaves(action_space)}
        self.observed = {leaf.name("observation"): leaf for leaf in leaves(observation_space)}
        context_fields = [f for f in model.fields if f.in_context]
        self.before = [f.name for f in context_fields if f.name not in self.acted]
        self.after = [f.name for f in context_fields if f.name in self.acted]
        self.tokens_after = sum(f.tokenizer.num_tokens for f in context_fields if f.name in self.acted and not f.joined)
        self.ages = np.array([1] * self.tokens_after + [0] * (model.tokens_per_step - self.tokens_after))
        self._anchor = next(model.parameters())
        (name, acted), *others = self.acted.items()
        tokenizer = model.by_name[name].tokenizer
        self.mask_size = (
            None if others or isinstance(acted.space, spaces.Box) else tokenizer.vocab_size or tokenizer.token_width
        )
        """Entries of an action mask, n; None where actions cannot be masked: several parts, or a Box."""
        self.masked_by = [leaf.path for leaf in self.observed.values() if leaf.path.split("/")[0] == ACTION_MASK]
        self._state: PolicyState | None = None

    @property
    def device(self) -> torch.device:
        return self._anchor.device

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

    def initial_state(
        self,
        num_envs: int = 1,
        target_returns: float | Sequence[float] | Array | None = None,
        generators: Sequence[np.random.Generator] | None = None,
    ) -> PolicyState:
        """The state before the first observation of `num_envs` environments, with one target return for all or one each."""
        targets = np.asarray(self.target_return if target_returns is None else target_returns, dtype=np.float64)
        for target in targets.flat:
            check_target(float(target))
        if targets.ndim and targets.shape != (num_envs,):
            raise InputError(
                f"{targets.size} target returns were given for {num_envs} environments; give one, or one for each."
            )
        layouts = {leaf.path: column_layout(leaf.space) for leaf in self.acted.values()}
        context = CONTEXTS[self.context](
            self.model.backbone, num_envs, self.context_length, self.model.tokens_per_step, self.model.width
        )
        return PolicyState(
            context,
            np.broadcast_to(targets, (num_envs,)).copy(),
            np.zeros(num_envs),
            np.zeros(num_envs),
            np.zeros(num_envs, dtype=np.int64),
            {path: np.zeros((num_envs, *shape), dtype) for path, (shape, dtype) in layouts.items()},
            list(generators) if generators is not None else [np.random.default_rng([0, i]) for i in range(num_envs)],
        )

    def predict(
        self,
        observation: Any,
        state: PolicyState | None = None,
        episode_start: Array | None = None,
        deterministic: bool = True,
        action_masks: Array | None = None,
    ) -> tuple[Any, PolicyState]:
        """(action, state) for one observation (S,) or for B of them (B, S), under Stable-Baselines3's signature.

        Observations and actions of composite spaces are dicts or tuples of arrays, as Gymnasium's vector environments give and take them.
        `episode_start` (B,) says which environments have just been reset. `deterministic=False` samples, as `decoding` says
        where that samples. `action_masks` (B, n) bool allows a Discrete or MultiDiscrete action where it is True (of several choices, n is their sum), as
        in sb3-contrib; a part `action_mask` of a Dict observation is taken for one. The returned state is the given one, updated in place: add
        rewards to its `reward`."""
        observations, single = batch_of(observation, self.observation_space)
        rows = len(next(iter(observations.values())))
        if state is None:
            state = self.initial_state(rows)
        elif not isinstance(state, PolicyState):
            raise InputError(
                f"state is a {type(state).__name__}; pass the state that the last call of predict returned, or None to begin."
            )
        if rows != len(state.timesteps):
            raise InputError(
                f"{rows} observations came with a state of {len(state.timesteps)} environments; make a state of that size with initial_state."
            )
        first = np.full(rows, not state.started)
        if episode_start is not None:
            starts = np.atleast_1d(np.asarray(episode_start, dtype=bool))
            if starts.shape not in ((1,), first.shape):
                raise InputError(
                    f"episode_start has shape {starts.shape}, and there are {len(first)} observations; give one claim for each."
                )
            first = first | starts
        state.started = True
        self.advance(state, first)
        masks = action_masks
        if masks is None and self.mask_size is not None and self.masked_by:
            masks = np.concatenate([observations[path].reshape(rows, -1) for path in self.masked_by], axis=1)
        with torch.inference_mode():
            distributions = self.distributions(state, observations, first)
            if masks is not None:
                distributions = mask_actions(distributions, masks, rows)
            chosen = choose(distributions, GREEDY if deterministic else self.sampling, state.generators)
            state.actions = {leaf.path: self.to_actions(chosen[name], name) for name, leaf in self.acted.items()}
        actions = dict(state.actions)
        if single:  # a number of a Box stays an array, without axes: the space asks for one
            actions = {
                leaf.path: actions[leaf.path][0, ...] if isinstance(leaf.space, spaces.Box) else actions[leaf.path][0]
                for leaf in self.acted.values()
            }
        return unflatten(self.action_space, actions), state

    def advance(self, state: PolicyState, first: npt.NDArray[np.bool_]) -> None:
        """Move returns-to-go and timesteps to this step: R ← (R − r) / γ, the target where an episode begins."""
        if not self.data.delayed:  # trained on whole returns until the last step, it must see the whole target too
            state.returns_to_go = (state.returns_to_go - state.reward) / self.data.discount
        state.timesteps = state.timesteps + 1
        if first.any():
            state.returns_to_go = np.where(first, state.target_returns, state.returns_to_go)
            state.timesteps = np.where(first, 0, state.timesteps)
        state.reward = np.zeros(len(first))

    def distributions(
        self, state: PolicyState, observations: Mapping[str, Array], first: npt.NDArray[np.bool_]
    ) -> dict[str, Distribution]:
        """The model's distribution of each action token, by field, after one forward of what came since the last one: [a₍ₜ₋₁₎, Rₜ, sₜ].

        `observations` are the parts of the observations by path, (B, …) each."""
        model, device = self.model, self.device
        values = {"return": state.returns_to_go}
        values |= {name: observations[leaf.path] for name, leaf in self.observed.items()}
        values |= {name: state.actions[leaf.path] for name, leaf in self.acted.items()}
        beginning, names = bool(first.all()), self.before
        if not beginning:
            names = self.after + self.before
        now = {name: torch.from_numpy(np.ascontiguousarray(values[name])).to(device).unsqueeze(1) for name in names}
        ages = (
            self.ages[self.tokens_after :] if beginning else self.ages
        )  # of each token: 1 for those of the step before
        timesteps = np.maximum(state.timesteps[:, None] - ages, 0)
        x = model.embed(names, now, torch.from_numpy(timesteps).to(device).unsqueeze(1))
        counts = np.full(len(first), x.shape[1])
        if not beginning and first.any():  # no action came before: these rows are padded on the right instead
            rows = torch.from_numpy(np.flatnonzero(first)).to(device)
            x[rows] = x[rows].roll(-self.tokens_after, dims=1)
            counts -= first * self.tokens_after
        hidden = state.context.step(x, counts, first).unsqueeze(1)
        return {name: model.head_of[name](hidden) for name in self.acted}

    def to_actions(self, tokens: Tensor, name: str) -> Array:
        """(B, 1) ids or (B, 1, d) vectors → (B, …) actions inside their part of the action space, in its dtype."""
        values = self.model.by_name[name].tokenizer.decode(tokens.unsqueeze(1)).squeeze(1).cpu()
        decoded = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # which has no bfloat16
        space = self.acted[name].space
        if isinstance(space, spaces.Box):
            if space.dtype.kind in "iu":  # a tanh comes near its bound and never there
                decoded = np.rint(decoded)
            return np.asarray(np.minimum(np.maximum(decoded, space.low), space.high), dtype=space.dtype)
        return np.asarray(decoded, dtype=space.dtype)

    def reset(self, target_return: float | None = None, num_envs: int = 1) -> None:
        """Begin an episode for `act`."""
        self._state = self.initial_state(num_envs, target_return)

    def act(self, observation: Any, reward: float | Array = 0.0, deterministic: bool = True) -> Any:
        """The action for an observation, told the reward that the last action earned. The simplest loop: reset(), then act() at every step."""
        if self._state is None:
            self.reset(num_envs=len(next(iter(batch_of(observation, self.observation_space)[0].values()))))
        assert self._state is not None
        if self._state.started:
            self._state.reward += reward
        return self.predict(observation, self._state, deterministic=deterministic)[0]

    @staticmethod
    def reward_callback(local: dict[str, Any], _: dict[str, Any]) -> None:
        """For Stable-Baselines3: `evaluate_policy(policy, env, callback=policy.reward_callback)`. It is called for each environment after each step."""
        local["states"].reward[local["i"]] += local["rewards"][local["i"]]

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


GREEDY = DecodingConfig()


def check_target(target: float) -> float:
    if not np.isfinite(target):
        raise InputError(
            f"target return {target} is not finite; ask for a return such as those in `dtrl datasets show`."
        )
    return float(target)
