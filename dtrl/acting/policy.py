"""A policy: the trained model with all it needs to act, in env units, under Stable-Baselines3's signature.

B environments, S width of an observation, A width of an action."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Distribution

from dtrl.acting.actor import Actor, no_return_to_clip
from dtrl.acting.artefact import save_artefact, undescribed
from dtrl.acting.asking import ask
from dtrl.acting.chunks import check_chunks, next_actions, refuse_masks
from dtrl.acting.context import CONTEXTS, Context, check_context
from dtrl.acting.critic import best_of, load_critic
from dtrl.acting.decisions import Decision, decide, decisions_of, mask_part
from dtrl.acting.drafting import load_draft
from dtrl.acting.masks import Masks
from dtrl.acting.saving import document_of, read_policy
from dtrl.acting.searching import check_search, search
from dtrl.acting.state import Begins, PolicyState
from dtrl.acting.stream import ModelStream
from dtrl.acting.summary import DataSummary
from dtrl.config import DecodingConfig, ModelConfig
from dtrl.decoding import choose, mask_actions
from dtrl.errors import InputError
from dtrl.sequence_model import SequenceModel
from dtrl.spaces import (
    Space,
    column_layout,
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
        self.block_length = model.block_length
        """Actions that are decided at once, H."""
        self.execute = self.decoding.execute or self.block_length
        """How many of them are executed before the next are decided."""
        # ids of other tokenizers than bins need not be those that their own decoded values would be encoded as
        self.decisions = decisions_of(model, self.acted, self.block_length > 1 or config.action_tokenizer is not None)
        seen = [f.name for f in model.fields if f.in_context]
        decided = {name for decision in self.decisions for name in decision.names}
        acting = [name for name in seen if name in decided]
        begin = seen.index(acting[0]) if acting else len(seen)
        self.before = seen[:begin]
        """Fields of a step that are known before anything of it is decided."""
        self.told_return = "return" in self.before
        last = self.decisions[-1]
        pending = list(last.names) if model.by_name[last.names[0]].in_context and not last.fed else []
        self.after = pending + seen[begin + len(acting) :]
        """Fields that the next call brings: what was decided last, which nothing of its own step has to see, and what follows the action."""
        self.since = last.slot if pending else 0
        tokens = [model.tokens_of(names) for names in (self.after, self.before)]
        self.tokens_after = tokens[0] - self.since
        self.ages = np.array([self.block_length] * self.tokens_after + [0] * tokens[1])
        self.conditions = 2 if self.decoding.paired else 1
        """Rows of the context an environment has: guidance and contrast compare two returns."""
        if self.conditions == 2 and not self.told_return:
            raise InputError(
                f"guidance and contrast compare the wanted return with another, and preset {config.preset} is told none; leave them out."
            )
        if self.decoding.clip_return and not self.told_return:
            raise no_return_to_clip(config.preset)
        if not any(decision.asks for decision in self.decisions):
            self.decoding.refuse_tilt(config.preset)
        self._anchor = next(model.parameters())
        self.check_decoding()
        self.guesser = load_draft(self) if self.decoding.draft_path else None
        """The policy whose model guesses ahead, where one does."""
        self.critic = load_critic(self) if self.decoding.strategy == "best_of" else None
        """What compares the actions that are drawn, where something does."""

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    def tensor(self, values: Array) -> Tensor:
        """The values on the policy's device."""
        made = torch.from_numpy(np.ascontiguousarray(values))
        return made if self._anchor.is_cpu else made.to(self.device)

    def to(self, device: str | torch.device) -> "Policy":
        self.model.to(device)
        if self.guesser is not None:
            self.guesser.to(device)
        if self.critic is not None:
            self.critic.to(device)
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
        rows *= self.conditions
        context = CONTEXTS[self.context](model.backbone, rows, self.context_length, model.tokens_per_step, model.width)
        context.block_length = self.block_length
        return context

    def initial_state(
        self,
        num_envs: int = 1,
        target_returns: float | Sequence[float] | Array | None = None,
        generators: Sequence[np.random.Generator] | None = None,
    ) -> PolicyState:
        state = super().initial_state(num_envs, target_returns, generators)
        if self.block_length > 1:
            state.left = np.zeros(num_envs, dtype=np.int64)
            state.chunks = {
                leaf.path: np.zeros((num_envs, self.block_length, *column_layout(leaf.space)[0]), leaf.space.dtype)
                for leaf in self.acted.values()
            }
        return state

    def check_decoding(self) -> None:
        if not self.decoding.at_once:
            check_search(self, self.decoding)
        check_chunks(self)

    def choose_actions(
        self,
        state: PolicyState,
        observations: Mapping[str, Array],
        first: Begins,
        allowed: Masks | None,
        decoding: DecodingConfig,
    ) -> dict[str, Array]:
        with torch.inference_mode():
            if self.block_length > 1:
                if allowed is not None:
                    refuse_masks(self.block_length)
                return next_actions(self, state, observations, first, decoding)
            tokens = self.choose_tokens(state, observations, first, allowed, decoding)
            return {leaf.path: self.to_actions(tokens, name) for name, leaf in self.acted.items()}

    def choose_tokens(
        self,
        state: PolicyState,
        observations: Mapping[str, Array],
        first: Begins,
        allowed: Masks | None,
        decoding: DecodingConfig,
    ) -> dict[str, Tensor]:
        """The tokens (B, n) or (B, n, d) of each field of an action, or of a chunk of actions; arguments as of `choose_actions`."""

        def pick(distributions: Mapping[str, Distribution], decision: Decision) -> dict[str, Tensor]:
            if decision.asks:
                return ask(self.model, distributions, decoding, state.generators)
            if allowed is not None:
                distributions = mask_actions(distributions, allowed, mask_part(self.model, decision))
            if decoding.strategy == "best_of":
                assert self.critic is not None
                return best_of(
                    self.critic, distributions, decoding, state.generators, observations[""], self.whole_action
                )
            return choose(distributions, decoding, state.generators)

        def skipped(count: int) -> None:
            if not decoding.greedy:  # how soon a row's neighbours are complete may not change what it draws later
                for generator in state.generators:
                    generator.random(count)

        hidden = self.look(state, observations, first)
        if decoding.at_once:
            tokens = decide(self, state, hidden, pick, skipped)
            state.draft_context = None
            return tokens
        if allowed is not None:
            decoding.refuse_masks()
        return search(self, state, hidden, first, decoding, observations)

    def stream(self, state: PolicyState, hidden: Tensor) -> ModelStream:
        """The tokens so far, of which an action's first comes next, on the state's own context; `hidden` is what `look` gave."""
        timesteps = np.tile(state.timesteps, self.conditions)
        return ModelStream(self.model, state.context, self.model.tokens_of(self.before), timesteps, hidden)

    def distributions(
        self, state: PolicyState, observations: Mapping[str, Array], first: Begins
    ) -> dict[str, Distribution]:
        """The model's distribution of what is decided first of an action, by field; (B, 1) each. See `look`."""
        hidden = self.look(state, observations, first)
        return {name: self.model.predict(name, hidden) for name in self.decisions[0].names}

    def look(self, state: PolicyState, observations: Mapping[str, Array], first: Begins) -> Tensor:
        """The hidden vector (B, D) from which an action, or a chunk of them, is decided, after one forward of what came since the last one:
        [a₍ₜ₋₁₎, Rₜ, sₜ].

        `observations` are the parts of the observations by path, (B, …) each; rows in `first` begin an episode. Where two conditions are compared it is
        (2B, D): first the wanted return, then the middle one of the data."""
        model, steps = self.model, state.timesteps
        values = self.values_now(state, observations)
        if self.conditions == 2:
            middle = self.data.return_quantiles[50]
            values = {name: np.concatenate([value, value]) for name, value in values.items()}
            values["return"][len(steps) :] -= (state.target_returns - middle) / self.data.discount**steps
            first, steps = None if first is None else np.concatenate([first, first]), np.concatenate([steps, steps])
        beginning, names = first is not None and bool(first.all()), self.before
        if not beginning:
            names = self.after + self.before
        sources = dict.fromkeys(model.by_name[name].source for name in names)
        now = {name: self.tensor(values[name][:, None]) for name in sources}
        ages = (
            self.ages[self.tokens_after :] if beginning else self.ages
        )  # of each token: 1 for those of the step before
        timesteps = np.maximum(steps[:, None, None] - ages, 0)
        x = model.embed(names, now, self.tensor(timesteps), 0 if beginning else self.since)
        counts = np.full(len(x), x.shape[1])
        if first is not None and not beginning:  # no action came before: these rows are padded on the right instead
            rows = self.tensor(np.flatnonzero(first))
            x[rows] = x[rows].roll(-self.tokens_after, dims=1)
            counts -= first * self.tokens_after
        hidden: Tensor = state.context.step(x, counts, first)
        return hidden

    def values_now(self, state: PolicyState, observations: Mapping[str, Array]) -> dict[str, Array]:
        """(B, …) by column: all that may be told to the model at this step."""
        rows = len(state.timesteps)
        values = {"return": state.returns_to_go, "reward": state.last_reward}
        # nobody sees a value; and who still acts has not terminated
        values |= {"value": np.zeros(rows, np.float32), "terminal": np.zeros(rows, np.int64)}
        values |= {name: observations[leaf.path] for name, leaf in self.observed.items()}
        actions = state.actions if self.block_length == 1 else state.chunks
        return values | {name: actions[leaf.path] for name, leaf in self.acted.items()}

    def to_actions(self, tokens: Mapping[str, Tensor], name: str) -> Array:
        """The tokens of the fields, ids (B, n) or vectors (B, n, d) → (B, …) actions inside their part of the action space, in its dtype, or chunks
        (B, H, …) of them. Where several fields tell of one part, it is their sum."""
        parts = [
            self.model.decode(self.model.by_name[field], given.unsqueeze(1)).squeeze(1)
            for field, given in tokens.items()
            if self.model.by_name[field].source == name
        ]
        values = (parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)).cpu()
        decoded = (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # which has no bfloat16
        return self.limits[name](decoded)

    def whole_action(self, tokens: Mapping[str, Tensor]) -> Array:
        """(B, …) actions of a space that is one part, as `to_actions` gives them."""
        ((name, _),) = self.acted.items()
        return self.to_actions(tokens, name)

    def tokens_of(self, actions: Mapping[str, Array], returns: Array) -> dict[str, Tensor]:
        """The tokens (B, n) or (B, n, d) of each field that is decided, from an action's parts (B, …), or chunks (B, H, …) of them, by path and the
        returns-to-go (B,), in env units."""
        values = {name: self.tensor(np.array(actions[leaf.path])[:, None]) for name, leaf in self.acted.items()}
        values["return"] = self.tensor(returns[:, None])
        names = dict.fromkeys(name for decision in self.decisions for name in decision.names)
        fields = [self.model.by_name[name] for name in names]
        return {f.name: self.model.encode(f, values)[:, 0] for f in fields}

    def sample(
        self,
        prompt: Trajectories,
        steps: int,
        *,
        prompt_steps: int = 1,
        strategy: str = "greedy",
        seed: int = 0,
        **decoding: Any,
    ) -> Trajectories:
        """Let the model be its own environment: for each episode of the prompt, its first `prompt_steps` steps, and then at most `steps` that the model
        imagines, beginning with the action at the last of them, all in env units.

        `strategy` and other fields of `DecodingConfig` say how every token is chosen; rows have random numbers of their own from `seed`. An imagined
        episode ends where the model says that it terminates. Raises InputError for a model that does not predict observations and rewards (preset tt
        does), for a context that recomputes a window, and for episodes shorter than `prompt_steps`."""
        from dtrl.acting.dreaming import dream

        return dream(self, prompt, steps, prompt_steps, DecodingConfig(strategy=strategy, **decoding), seed)

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
        """What stands beside the parameters in its file."""
        return document_of(self)

    @classmethod
    def load(cls, path: str | Path, **acting: Any) -> "Policy":
        """The policy in a file made by `save`; keyword arguments are those of `Policy`. Nothing else is needed: no dataset, no environment."""
        path = Path(path)
        document, parts = read_policy(path)
        try:
            return cls(**{**parts, **acting})
        except InputError:  # what was asked of the policy
            raise
        except Exception as error:
            raise undescribed(path, document, "policy", error) from error
