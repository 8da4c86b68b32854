"""What every policy does, however its model is run: predict, and the bookkeeping of returns, timesteps and episodes. Nothing here needs torch.

B environments, S width of an observation, A width of an action."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.acting.masks import ACTION_MASK, Masks, mask_rows, mask_size
from dtrl.acting.observing import ObservationReader
from dtrl.acting.state import Begins, PolicyState, zero_where
from dtrl.acting.summary import DataSummary
from dtrl.config import DecodingConfig, ModelConfig
from dtrl.errors import InputError
from dtrl.spaces import Space, column_layout, leaves, unflatten

Array = npt.NDArray[Any]
GREEDY = DecodingConfig()


class Actor(ABC):
    """Acts in env units: `predict` (Stable-Baselines3's signature), or `reset` and `act` for the simplest loop.

    The return-to-go falls as rewards come in, so they have to reach the policy: `act(observation, reward)` takes them; a caller of `predict` adds them to
    `state.reward`; Stable-Baselines3's `evaluate_policy` does so through `callback=policy.reward_callback`. A caller who never tells rewards
    asks for the whole target at every step."""

    context: str
    context_length: int
    updates: int
    config: ModelConfig
    told_return: bool = False
    """Whether the model is told the return that is asked for. Others act alike whatever it is."""
    rows: int | None = None
    """How many environments it can act in at once, where that is fixed."""

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        data: DataSummary,
        decoding: DecodingConfig | None,
        target_return: float | None,
    ) -> None:
        self.observation_space, self.action_space, self.data = observation_space, action_space, data
        self.decoding = decoding or DecodingConfig()
        drawn = self.decoding.strategy in ("sample", "speculative")
        self.best = GREEDY if drawn else self.decoding
        """What a deterministic `predict` does, and what the other does."""
        greedy = self.decoding.strategy == "greedy"
        self.sampling = replace(self.decoding, strategy="sample", temperature=1.0) if greedy else self.decoding
        self.target_return = check_target(data.default_target_return if target_return is None else target_return)
        self.acted = {leaf.name("action"): leaf for leaf in leaves(action_space)}
        self.observed = {leaf.name("observation"): leaf for leaf in leaves(observation_space)}
        self.observing = ObservationReader(observation_space)
        self.limits = {name: Limits(leaf.space) for name, leaf in self.acted.items()}
        self.mask_size = mask_size(action_space)
        """Entries of an action mask, n; None where actions cannot be masked: several parts, or a Box."""
        self.masked_by = [leaf.path for leaf in self.observed.values() if leaf.path.split("/")[0] == ACTION_MASK]
        self.ceilings = np.array(data.ceilings) if self.decoding.clip_return else None
        """Highest returns-to-go of the data, by timestep, where those of acting are lowered to them."""
        if self.ceilings is not None and not len(self.ceilings):
            raise InputError(
                "clip_return needs the data's highest returns-to-go, and this policy was saved without them; leave it out, or train again."
            )
        self._state: PolicyState | None = None

    @abstractmethod
    def new_context(self, rows: int) -> Any:
        """What the model looks back on, for so many environments that have seen nothing yet."""

    @abstractmethod
    def choose_actions(
        self,
        state: PolicyState,
        observations: Mapping[str, Array],
        first: Begins,
        allowed: Masks | None,
        decoding: DecodingConfig,
    ) -> dict[str, Array]:
        """Path of each leaf of the action space → (B, …) actions, in env units and in its dtype.

        `observations` are the parts of the observations by path, (B, …) each; rows in `first` begin an episode; `allowed` is (B, n)."""

    def check_decoding(self) -> None:
        """Raise InputError where this policy cannot choose as its decoding says."""
        self.decoding.refuse_sequences()
        self.decoding.refuse_critic()
        self.decoding.refuse_tilt(self.config.preset)
        self.decoding.refuse_execute()

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
        return PolicyState(
            self.new_context(num_envs),
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
        observations, single = self.observing.read(observation)
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
        first = None if state.started else np.ones(rows, dtype=bool)
        if episode_start is not None:
            starts = np.atleast_1d(np.asarray(episode_start, dtype=bool))
            if starts.shape not in ((1,), (rows,)):
                raise InputError(
                    f"episode_start has shape {starts.shape}, and there are {rows} observations; give one claim for each."
                )
            if first is None and np.count_nonzero(starts):
                first = np.broadcast_to(starts, (rows,))
        state.started = True
        self.advance(state, first)
        masks = action_masks
        if masks is None and self.mask_size is not None and self.masked_by:
            masks = np.concatenate([observations[path].reshape(rows, -1) for path in self.masked_by], axis=1)
        allowed = None if masks is None else mask_rows(masks, rows, self.mask_size)
        config = self.best if deterministic else self.sampling
        state.actions = self.choose_actions(state, observations, first, allowed, config)
        actions = state.actions
        if single:  # a number of a Box stays an array, without axes: the space asks for one
            actions = {
                leaf.path: actions[leaf.path][0, ...] if isinstance(leaf.space, spaces.Box) else actions[leaf.path][0]
                for leaf in self.acted.values()
            }
        return unflatten(self.action_space, actions), state

    def advance(self, state: PolicyState, first: Begins) -> None:
        """Move returns-to-go and timesteps to this step: R ← (R − r) / γ, the target where an episode begins."""
        if not self.data.delayed:  # trained on whole returns until the last step, it must see the whole target too
            state.returns_to_go = state.returns_to_go - state.reward
            if self.data.discount != 1:
                state.returns_to_go /= self.data.discount
        state.timesteps = zero_where(first, state.timesteps + 1)
        if first is not None:
            state.returns_to_go = np.where(first, state.target_returns, state.returns_to_go)
        if self.ceilings is not None:
            now = np.minimum(state.timesteps // self.data.ceiling_steps, len(self.ceilings) - 1)
            state.returns_to_go = np.minimum(state.returns_to_go, self.ceilings[now])
        state.last_reward, state.reward = state.reward, np.zeros(len(state.timesteps))

    def reset(self, target_return: float | None = None, num_envs: int = 1) -> None:
        """Begin an episode for `act`."""
        self._state = self.initial_state(num_envs, target_return)

    def act(self, observation: Any, reward: float | Array = 0.0, deterministic: bool = True) -> Any:
        """The action for an observation, told the reward that the last action earned. The simplest loop: reset(), then act() at every step."""
        if self._state is None:
            self.reset(num_envs=len(next(iter(self.observing.read(observation)[0].values()))))
        assert self._state is not None
        if self._state.started:
            self._state.reward += reward
        return self.predict(observation, self._state, deterministic=deterministic)[0]

    @staticmethod
    def reward_callback(local: dict[str, Any], _: dict[str, Any]) -> None:
        """For Stable-Baselines3: `evaluate_policy(policy, env, callback=policy.reward_callback)`. It is called for each environment after each step."""
        local["states"].reward[local["i"]] += local["rewards"][local["i"]]


def no_return_to_clip(preset: str) -> InputError:
    return InputError(f"clip_return lowers the wanted return, and preset {preset} is told none; leave it out.")


def check_target(target: float) -> float:
    if not np.isfinite(target):
        raise InputError(
            f"target return {target} is not finite; ask for a return such as those in `dtrl datasets show`."
        )
    return float(target)


class Limits:
    """Decoded values (B, …) → actions of a simple space: inside its bounds, and in its dtype."""

    def __init__(self, space: Space) -> None:
        self.dtype = space.dtype
        self.whole = isinstance(space, spaces.Box) and space.dtype.kind in "iu"
        # with the axes of a batch: NumPy's loops over arrays of one shape are the fast ones
        self.bounds = (space.low[None], space.high[None]) if isinstance(space, spaces.Box) else None

    def __call__(self, values: Array) -> Array:
        if self.bounds is not None:
            low, high = self.bounds
            if self.whole:  # a tanh comes near its bound and never there
                values = np.rint(values)
            values = np.maximum(values, low)
            values = np.minimum(values, high, out=values)
        return values.astype(self.dtype, copy=False)
