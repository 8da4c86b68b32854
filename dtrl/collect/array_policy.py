"""Policies as plain arrays: a perceptron, what is done to observations before it, and how its output becomes an action.

Every policy that was trained, here or elsewhere, is acted with in this form. It needs numpy alone, one episode's actions depend on nothing but that
episode, and it is stored without pickle: as the arrays of an .npz file whose names are the fields below.

    W0, b0 … Wn, bn   layers, x @ W + b                      act        tanh or relu, between layers
    head              argmax, categorical, box_clip or box_tanh; see HEADS
    obs_mean, obs_std, obs_clip   optional: observations become (x - mean) / std, clipped to ± obs_clip
    log_std           optional: (A,) logarithm of the Gaussian's σ    log_std_W, log_std_b   the same, as a layer on the last hidden one (SAC)
    mu_clip           optional: the Gaussian's mean is clipped to ± mu_clip
    low, high         bounds of the actions of a box head"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.archives import anything, read_npz
from dtrl.errors import InputError, did_you_mean

Array = npt.NDArray[Any]

ACTIVATIONS = ("tanh", "relu")
HEADS = {
    "argmax": "the action of the largest output, such as a Q-value; at temperature τ drawn from softmax(outputs / τ)",
    "categorical": "drawn from softmax(outputs)",
    "box_clip": "outputs plus Gaussian noise of σ, clipped to the bounds",
    "box_tanh": "tanh(outputs plus Gaussian noise of σ), scaled to the bounds",
}
LOG_STD_RANGE = (-20.0, 2.0)
"""To which Stable-Baselines3 clips the log σ that a layer of SAC gives."""
MAY_BE_THERE = ("source", "env", "note")
"""Texts for the reader of a file; nothing depends on them."""


@dataclass(frozen=True)
class ArrayPolicy:
    """A policy of arrays; the docstring of the module says what they are. A: actions' dimension or count."""

    weights: tuple[Array, ...]
    """(in, out) each, float32."""
    biases: tuple[Array, ...]
    """(out,) each, float32."""
    act: str
    head: str
    obs_mean: Array | None = None
    obs_std: Array | None = None
    obs_clip: float | None = None
    log_std: Array | None = None
    log_std_W: Array | None = None
    log_std_b: Array | None = None
    mu_clip: float | None = None
    low: Array | None = None
    high: Array | None = None

    @property
    def has_spread(self) -> bool:
        """Whether its actions can be drawn, so that a temperature means something."""
        return self.head in ("argmax", "categorical") or self.log_std is not None or self.log_std_W is not None

    def outputs(self, observation: Array) -> tuple[Array, Array]:
        """The last layer's output (A,) and the last hidden layer (H,), for an observation of any shape.

        einsum, not @: the sums have one order whatever the number of BLAS's threads."""
        x = np.asarray(observation, np.float64).reshape(-1)
        if self.obs_mean is not None and self.obs_std is not None:
            x = (x - self.obs_mean) / self.obs_std
        if self.obs_clip is not None:
            x = np.clip(x, -self.obs_clip, self.obs_clip)
        hidden = x.astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.einsum("i,io->o", hidden, weight) + bias
            hidden = np.tanh(hidden) if self.act == "tanh" else np.maximum(hidden, 0)
        return np.einsum("i,io->o", hidden, self.weights[-1]) + self.biases[-1], hidden

    def action(self, observation: Array, random: np.random.Generator, temperature: float | None = None) -> Array:
        """An action: (A,) float32 for a box head, an index otherwise.

        `temperature` divides logits and multiplies σ; 0 is the most likely action. Without one, `argmax` takes the largest output and the other
        heads draw as they are."""
        out, hidden = self.outputs(observation)
        if self.head in ("argmax", "categorical"):
            if temperature is None:
                temperature = 1.0 if self.head == "categorical" else 0.0
            return np.asarray(choice(out, random, temperature))
        mean = out if self.mu_clip is None else np.clip(out, -self.mu_clip, self.mu_clip)
        log_std = self.log_std
        if self.log_std_W is not None:
            log_std = np.clip(np.einsum("i,io->o", hidden, self.log_std_W) + self.log_std_b, *LOG_STD_RANGE)
        if log_std is not None and temperature != 0:
            spread = np.exp(log_std) * (1.0 if temperature is None else temperature)
            mean = mean + spread * random.standard_normal(mean.shape)
        assert self.low is not None
        assert self.high is not None
        if self.head == "box_tanh":
            mean = self.low + (np.tanh(mean) + 1) / 2 * (self.high - self.low)
        return np.asarray(np.clip(mean, self.low, self.high), np.float32)

    def arrays(self) -> dict[str, Array]:
        """The arrays of its file."""
        found = {f"W{i}": w for i, w in enumerate(self.weights)} | {f"b{i}": b for i, b in enumerate(self.biases)}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("weights", "biases")}
        return found | {name: np.asarray(value) for name, value in rest.items() if value is not None}

    def to_bytes(self) -> bytes:
        """The content of its .npz file."""
        stream = io.BytesIO()
        np.savez(stream, **self.arrays())  # type: ignore[arg-type]
        return stream.getvalue()


def choice(logits: Array, random: np.random.Generator, temperature: float) -> int:
    """An index drawn from softmax(logits / temperature); of the largest at temperature 0."""
    if temperature == 0:
        return int(np.argmax(logits))
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return int(np.searchsorted(np.cumsum(weights), random.random() * weights.sum(), side="right"))


def snapshots_of(path: Path) -> list[str]:
    """Names of the policies of an .npz file that holds several, in the order of their numbers: it2 before it10. Empty for one that holds one."""
    return snapshot_names(read_npz(path, f"policy {path}", anything)[0])


def snapshot_names(arrays: Mapping[str, Array]) -> list[str]:
    def by_number(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

    return sorted({name.rpartition("/")[0] for name in arrays if "/" in name}, key=by_number)


def load_array_policy(path: Path, snapshot: str | None = None) -> ArrayPolicy:
    """The policy of an .npz file; `snapshot` chooses among several, whose arrays are named SNAPSHOT/W0 and so on.

    InputError, naming the file and the array, for what is missing, unknown, not finite or of a shape that does not fit."""
    arrays = read_npz(path, f"policy {path}", anything)[0]
    snapshots = snapshot_names(arrays)
    if snapshot is not None:
        if snapshot not in snapshots:
            raise InputError(f"{path} holds no snapshot {snapshot!r}; {did_you_mean(snapshot, snapshots)}")
        arrays = {name.rpartition("/")[2]: value for name, value in arrays.items() if name.startswith(snapshot + "/")}
    elif snapshots:
        raise InputError(f"{path} holds several policies; choose one with snapshot, of {', '.join(snapshots)}.")
    return policy_of(arrays, str(path))


def policy_of(arrays: Mapping[str, Array], where: str) -> ArrayPolicy:
    """The policy that arrays make up, checked on its own; `fitted` checks it against an environment."""
    layers = [name for name in arrays if re.fullmatch(r"W\d+", name)]
    optional = [f.name for f in fields(ArrayPolicy) if f.name not in ("weights", "biases", "act", "head")]
    wanted = [f"{letter}{i}" for i in range(len(layers)) for letter in "Wb"] + ["act", "head"]
    for name in wanted or ["W0"]:
        if name not in arrays:
            raise InputError(
                f"{where}: the array {name!r} of the policy is missing; a policy has W0, b0 …, act and head."
            )
    for name in arrays:
        if name not in (*wanted, *optional, *MAY_BE_THERE):
            raise InputError(
                f"{where}: the array {name!r} is none of a policy's; {did_you_mean(name, wanted + optional)}"
            )
    act, head = str(arrays["act"]), str(arrays["head"])
    if not layers:
        raise InputError(f"{where}: the policy has no layer W0, b0; give at least one.")
    if act not in ACTIVATIONS:
        raise InputError(f"{where}: act {act!r} is unknown; use one of {', '.join(ACTIVATIONS)}.")
    if head not in HEADS:
        raise InputError(f"{where}: head {head!r} is unknown; use one of {', '.join(HEADS)}.")
    numbers: dict[str, Any] = {
        name: number(arrays[name], f"{where}: {name}") for name in (*wanted[:-2], *optional) if name in arrays
    }
    scalars: dict[str, Any] = {name: float(numbers.pop(name)) for name in ("obs_clip", "mu_clip") if name in numbers}
    weights, biases = ([numbers.pop(f"{letter}{i}").astype(np.float32) for i in range(len(layers))] for letter in "Wb")
    policy = ArrayPolicy(tuple(weights), tuple(biases), act, head, **numbers, **scalars)
    check_shapes(policy, where)
    return policy


def number(value: Array, where: str) -> Array:
    if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise InputError(f"{where} holds {value.dtype} that are not all finite numbers; give finite ones.")
    if where.endswith("_clip") and not (value.ndim == 0 and value > 0):
        raise InputError(f"{where} must be one positive number.")
    return value


def check_shapes(policy: ArrayPolicy, where: str) -> None:
    """Whether each array fits its neighbours."""
    width = policy.weights[0].shape[0] if policy.weights[0].ndim else 0
    actions, hidden = policy.biases[-1].size, policy.weights[-1].shape[0] if policy.weights[-1].ndim else 0
    expected: list[tuple[str, Array | None, tuple[int, ...]]] = []
    before = width
    for i, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        expected += [(f"W{i}", weight, (before, bias.size)), (f"b{i}", bias, (bias.size,))]
        before = bias.size
    expected += [(name, getattr(policy, name), (width,)) for name in ("obs_mean", "obs_std")]
    expected += [(name, getattr(policy, name), (actions,)) for name in ("log_std", "log_std_b", "low", "high")]
    expected += [("log_std_W", policy.log_std_W, (hidden, actions))]
    for name, value, shape in expected:
        if value is not None and value.shape != shape:
            raise InputError(f"{where}: {name} has shape {value.shape}; {shape} is expected.")
    for one, other in (("obs_mean", "obs_std"), ("log_std_W", "log_std_b"), ("low", "high")):
        if (getattr(policy, one) is None) != (getattr(policy, other) is None):
            raise InputError(f"{where}: {one} and {other} go together; give both or none.")
    if policy.obs_std is not None and not (policy.obs_std > 0).all():
        raise InputError(f"{where}: obs_std must be positive; divide by 1 where an observation is constant.")


def fitted(policy: ArrayPolicy, observation_space: Any, action_space: Any, where: str) -> ArrayPolicy:
    """The policy with the bounds of the action space, where it has none of its own. InputError if it cannot act in the spaces; `where` names it."""
    width, advice = policy.weights[0].shape[0], "choose a policy of that environment."
    discrete = isinstance(observation_space, spaces.Discrete)
    size = int(observation_space.n) if discrete else int(np.prod(observation_space.shape))
    if width != size:
        raise InputError(f"{where}: the policy reads {width} numbers, and {observation_space} has {size}; {advice}")
    discrete, actions = isinstance(action_space, spaces.Discrete), policy.biases[-1].size
    if discrete != (policy.head in ("argmax", "categorical")):
        raise InputError(f"{where}: a policy with head {policy.head} cannot act in {action_space}; {advice}")
    size = int(action_space.n) if discrete else int(np.prod(action_space.shape))
    if actions != size:
        raise InputError(f"{where}: the policy has {actions} outputs, and {action_space} needs {size}; {advice}")
    if discrete or policy.low is not None:
        return policy
    if not np.isfinite([action_space.low, action_space.high]).all():
        raise InputError(f"{where}: {action_space} has no finite bounds to clip to; give the policy low and high.")
    return replace(policy, low=action_space.low.reshape(-1), high=action_space.high.reshape(-1))


def seen(observation: Any, space: Any) -> Array:
    """An observation as the perceptron reads it: Discrete ones as one-hot vectors, the others as they are."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(np.eye(1, int(space.n), int(observation) - int(space.start))[0])
    return np.asarray(observation)
