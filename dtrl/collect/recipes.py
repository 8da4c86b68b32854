"""What a recipe may say, and whether it makes sense. What needs the environment is checked in behaviour.py."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrl.collect.sizes import check_behaviour_size, check_size
from dtrl.errors import InputError


@dataclass(frozen=True)
class AlgorithmKind:
    """What is known of an algorithm without importing it."""

    package: str
    """Where the class of that name is."""
    actions: tuple[str, ...]
    """The action spaces that it can act in."""
    replay: bool
    """Whether it learns from a replay buffer."""


SB3, CONTRIB = "stable_baselines3", "sb3_contrib"
ALGORITHMS = {
    "A2C": AlgorithmKind(SB3, ("Discrete", "Box"), replay=False),
    "DDPG": AlgorithmKind(SB3, ("Box",), replay=True),
    "DQN": AlgorithmKind(SB3, ("Discrete",), replay=True),
    "PPO": AlgorithmKind(SB3, ("Discrete", "Box"), replay=False),
    "QRDQN": AlgorithmKind(CONTRIB, ("Discrete",), replay=True),
    "SAC": AlgorithmKind(SB3, ("Box",), replay=True),
    "TD3": AlgorithmKind(SB3, ("Box",), replay=True),
    "TQC": AlgorithmKind(CONTRIB, ("Box",), replay=True),
    "TRPO": AlgorithmKind(CONTRIB, ("Discrete", "Box"), replay=False),
}
"""The algorithms that a recipe may train; those of sb3_contrib need the extra `contrib`."""
POLICIES = {
    "random": "uniform over the action space",
    "checkpoint": "a copy of the trained policy",
    "replay": "nothing is played: the episodes of training that are in the replay buffer",
    "file": "a policy of plain arrays (.npz), or one saved by Stable-Baselines3 (.zip)",
    "demonstrator": "the `demonstrate()` of the environment",
}
"""Where the actions of a behaviour come from."""
DATASET_ID = re.compile(r"([\w-]{2,}/)*[\w-]+-v\d+", re.ASCII)
"""Minari's form; it refuses a namespace of one letter only after having made a folder for it."""


@dataclass(frozen=True)
class Algorithm:
    """A Stable-Baselines3 algorithm with its MlpPolicy, and when to keep a copy of that policy."""

    name: str
    """One of ALGORITHMS."""
    timesteps: int
    """Environment steps of training; an algorithm that learns once per rollout (PPO, A2C) rounds up to whole rollouts."""
    checkpoints: tuple[int, ...]
    """Ascending steps of training after which a copy of the policy is kept, as it stands then; the copy at `timesteps` is the
    trained policy."""
    envs: int = 1
    """Environments that are stepped side by side during training."""
    normalize: bool = False
    """Train on observations and rewards normalised by a running mean and variance (VecNormalize); checkpoints keep those of observations."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the algorithm's constructor, such as n_steps, as data: action_noise is the σ of Gaussian noise, activation_fn in policy_kwargs is
    "relu" or "tanh", and learning_rate and clip_range may be "lin_0.001", which falls to 0 over the training."""


@dataclass(frozen=True)
class Behaviour:
    """A policy and the episodes it plays."""

    policy: str
    """One of POLICIES."""
    episodes: int | None = None
    """Episodes to record. A behaviour has this size or the next; a replay buffer may have neither, and is recorded whole."""
    steps: int | None = None
    """Environment steps to record: as many whole episodes as it takes to have them."""
    checkpoint: int | None = None
    """Which copy, or up to which step the buffer: one of the algorithm's `checkpoints`, in steps of training."""
    path: str | None = None
    """File of the policy, from the folder of the recipe."""
    snapshot: str | None = None
    """Which of the policies of an .npz file that holds several."""
    normalize: str | None = None
    """File of the statistics of a VecNormalize (.npz or .json), for a .zip."""
    deterministic: bool = False
    """Take the most likely action instead of drawing one."""
    temperature: float | None = None
    """By which logits are divided and σ is multiplied; with Q-values, of softmax(Q / temperature) instead of the best action."""
    epsilon: float = 0.0
    """Probability of a uniformly random action instead of the policy's."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise added to an action, in halves of the action's range; Box actions only. The sum is
    clipped to the range."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment's `demonstrate`, such as { best = true }."""
    reset_options: dict[str, Any] = field(default_factory=dict)
    """Options of the environment's `reset`, in every episode of this behaviour."""

    @property
    def source(self) -> str:
        """The policy without its noise, as in "checkpoint 4000"."""
        if self.policy == "file":
            return " ".join(filter(None, [Path(self.path or "").stem, self.snapshot]))
        if self.checkpoint is not None:
            return f"{self.policy} {self.checkpoint}"
        return " ".join([self.policy, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def disturbance(self) -> str:
        """How actions differ from those of the policy as it is, as in "epsilon 0.1"; empty if they don't."""
        parts = ["deterministic"] if self.deterministic else []
        parts += [f"temperature {self.temperature:g}"] if self.temperature is not None else []
        parts += [f"epsilon {self.epsilon:g}"] if self.epsilon else []
        parts += [f"noise {self.noise:g}"] if self.noise else []
        return ", ".join(parts)

    @property
    def name(self) -> str:
        """What the dataset's metadata call it, as in "checkpoint 4000, epsilon 0.1, start=A"."""
        begins = [f"{name}={value}" for name, value in self.reset_options.items()]
        return ", ".join(filter(None, [self.source, self.disturbance, *begins]))


@dataclass(frozen=True)
class Reference:
    """Mean returns, in the environment's reward units, that stand for 0 and 1 in normalised scores."""

    random: float
    """Of uniformly random actions."""
    expert: float
    """Of a good policy."""


@dataclass(frozen=True)
class Recipe:
    """How a dataset is made: one TOML file."""

    id: str
    """Id of the Minari dataset, namespace/name-vN."""
    env: str
    """Id of the Gymnasium environment."""
    seed: int
    """Seed of all that is drawn: initial weights, training, initial states, actions."""
    description: str
    """What the dataset holds and what it is for; stored in it."""
    behaviour: tuple[Behaviour, ...]
    """In the order in which their episodes stand in the dataset."""
    algorithm: Algorithm | None = None
    """What the checkpoints are copies of."""
    env_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of gymnasium.make, such as max_episode_steps."""
    observation_key: str | None = None
    """Of Dict observations, the part that policies see and the dataset holds."""
    episodes: int | None = None
    """Episodes of the whole dataset; the sizes of the behaviours then say in which proportion they play."""
    steps: int | None = None
    """Likewise, in environment steps: as many whole episodes as it takes to have them."""
    reference: Reference | None = None
    """Stored as Minari's ref_min_score and ref_max_score."""
    source: str = "the recipe"
    """The file it was read from, which error messages name and from which paths go; not a field of the file."""
    text: str | None = None
    """The text of that file."""


def check_recipe(recipe: Recipe) -> None:
    """What can be told without making the environment."""
    where = recipe.source
    if not DATASET_ID.fullmatch(recipe.id):
        raise InputError(f"{where}: id {recipe.id!r} is no Minari dataset id; write namespace/name-v0.")
    if recipe.seed < 0:
        raise InputError(f"{where}: seed {recipe.seed} is negative; 0 is the usual seed.")
    if recipe.reference and not recipe.reference.random < recipe.reference.expert:
        raise InputError(
            f"{where}: reference.expert {recipe.reference.expert:g} must exceed reference.random {recipe.reference.random:g}."
        )
    if recipe.algorithm:
        check_algorithm(recipe.algorithm, f"{where}: algorithm")
    if not recipe.behaviour:
        raise InputError(f"{where}: behaviour is an empty list; add at least one [[behaviour]] table.")
    for number, behaviour in enumerate(recipe.behaviour, 1):
        check_behaviour(behaviour, recipe.algorithm, f"{where}: behaviour {number}")
    check_size(recipe)


def check_algorithm(algorithm: Algorithm, where: str) -> None:
    if algorithm.name not in ALGORITHMS:
        raise InputError(f"{where}.name {algorithm.name!r} is unknown; use one of {', '.join(ALGORITHMS)}.")
    if algorithm.timesteps < 1 or algorithm.envs < 1:
        raise InputError(f"{where}: timesteps {algorithm.timesteps} and envs {algorithm.envs} must both be 1 or more.")
    steps = algorithm.checkpoints
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] > algorithm.timesteps:
        raise InputError(
            f"{where}.checkpoints {list(steps)} must be ascending numbers of steps from 1 to timesteps {algorithm.timesteps}."
        )


OF_POLICIES = {
    "episodes": ("random", "checkpoint", "file", "demonstrator"),
    "steps": ("random", "checkpoint", "replay", "file", "demonstrator"),
    "checkpoint": ("checkpoint", "replay"),
    "path": ("file",),
    "snapshot": ("file",),
    "normalize": ("file",),
    "deterministic": ("checkpoint", "file"),
    "temperature": ("checkpoint", "file"),
    "epsilon": ("checkpoint", "file", "demonstrator"),
    "noise": ("checkpoint", "file", "demonstrator"),
    "options": ("demonstrator",),
    "reset_options": ("random", "checkpoint", "file", "demonstrator"),
}
"""The policies to which a field means something."""


def check_behaviour(behaviour: Behaviour, algorithm: Algorithm | None, where: str) -> None:
    policy = behaviour.policy
    if policy not in POLICIES:
        raise InputError(f"{where}: policy {policy!r} is unknown; use one of {', '.join(POLICIES)}.")
    for name, policies in OF_POLICIES.items():
        if getattr(behaviour, name) not in (None, False, 0, {}) and policy not in policies:
            raise InputError(
                f"{where}: {name} means nothing to policy {policy}; leave it out, or use {' or '.join(policies)}."
            )
    if policy in ("checkpoint", "replay"):
        check_copy(behaviour, algorithm, where)
    check_behaviour_size(behaviour, where)
    if not 0 <= behaviour.epsilon <= 1:
        raise InputError(f"{where}: epsilon {behaviour.epsilon:g} is no probability; choose a number from 0 to 1.")
    if not (behaviour.noise >= 0 and math.isfinite(behaviour.noise)):
        raise InputError(f"{where}: noise {behaviour.noise:g} must be 0 or a positive number of half action ranges.")
    if behaviour.temperature is not None and not (behaviour.temperature > 0 and math.isfinite(behaviour.temperature)):
        raise InputError(
            f"{where}: temperature {behaviour.temperature:g} must be positive; deterministic = true is the limit of 0."
        )
    if behaviour.deterministic and behaviour.temperature is not None:
        raise InputError(f"{where}: a deterministic policy has no temperature; leave one of the two out.")
    if policy == "file":
        check_file(behaviour, where)
    for name in ("options", "reset_options"):
        try:
            json.dumps(getattr(behaviour, name))
        except TypeError as error:
            raise InputError(f"{where}: {name} hold a date or a time; write it as a text.") from error


def check_file(behaviour: Behaviour, where: str) -> None:
    kind = Path(behaviour.path or "").suffix
    if kind not in (".npz", ".zip"):
        raise InputError(
            f"{where}: path {behaviour.path!r} ends neither in .npz (plain arrays) nor in .zip (Stable-Baselines3); name such a file."
        )
    if (kind == ".npz" and behaviour.normalize) or (kind == ".zip" and behaviour.snapshot):
        raise InputError(
            f"{where}: normalize belongs to a .zip and snapshot to an .npz; leave it out for {behaviour.path!r}."
        )


def check_copy(behaviour: Behaviour, algorithm: Algorithm | None, where: str) -> None:
    if not algorithm:
        raise InputError(
            f"{where}: policy {behaviour.policy!r} needs an [algorithm] table that says what is trained; add one."
        )
    if behaviour.checkpoint not in algorithm.checkpoints:
        kept = list(algorithm.checkpoints)
        raise InputError(
            f"{where}: checkpoint {behaviour.checkpoint} is not kept; choose one of algorithm.checkpoints {kept}."
        )
    if behaviour.policy == "checkpoint":
        if algorithm.options.get("use_sde") and not behaviour.deterministic:
            raise InputError(
                f"{where}: state-dependent noise (use_sde) is not reproduced; set deterministic = true, and noise if you like."
            )
        return
    if not ALGORITHMS[algorithm.name].replay:
        able = [name for name, kind in ALGORITHMS.items() if kind.replay]
        raise InputError(f"{where}: {algorithm.name} has no replay buffer; train one of {', '.join(able)}.")
    kwargs = algorithm.options.get("replay_buffer_kwargs")
    timeouts = kwargs.get("handle_timeout_termination", True) if isinstance(kwargs, dict) else True
    if algorithm.options.get("optimize_memory_usage") or not timeouts:
        raise InputError(
            f"{where}: with optimize_memory_usage, or without handle_timeout_termination, the replay buffer does not tell a timeout from a termination; "
            "leave them out of algorithm.options."
        )
