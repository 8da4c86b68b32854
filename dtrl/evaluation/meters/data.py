"""What in a dataset stands in the way of learning with these settings: asked before training, or after, when a policy disappoints."""

import numpy as np

from dtrl.config import ModelConfig
from dtrl.errors import InputError
from dtrl.evaluation.meters.finding import Finding
from dtrl.presets import RETURN_DEVIATION, resolve, training_data
from dtrl.tokenizers.continuous import CONSTANT
from dtrl.trajectories import Trajectories
from dtrl.trajectories.describe import find_problems

SMALL = 1e-3
"""A deviation below this share of the largest magnitude: standardized, rounding and noise fill the token."""
MANY_RETURNS = 5


def examine_data(trajectories: Trajectories, config: ModelConfig) -> list[Finding]:
    """One finding for each problem of `dtrl datasets show`, and for those that come with a model's settings; one that says so where there is none.

    Raises InputError where the settings do not go with the data at all."""
    used = training_data(config, trajectories)
    settings = resolve(config, used)
    rows = settings.max_timestep
    short_table = settings.timestep_embedding and rows is not None and rows < int(used.episode_lengths.max())
    problems = [(problem, "") for problem in find_problems(used, rows if short_table else None)]
    problems += [
        *long_context(used, settings),
        *few_returns(used),
        *nearly_constant(used),
        *return_scale(used, settings),
    ]
    if not problems:
        return [Finding("data", True, f"nothing in {trajectories.origin.name} is known to stand in the way.")]
    return [Finding("data", False, says, advice) for says, advice in problems]


def long_context(trajectories: Trajectories, config: ModelConfig) -> list[tuple[str, str]]:
    lengths, h = trajectories.episode_lengths, config.chunk_length
    shorter = float((lengths < config.context_length * h).mean())
    if config.attention == "full" or shorter <= 0.5:
        return []
    says = (
        f"context_length {config.context_length}{f' (blocks of {h} steps)' if h > 1 else ''} is longer than {shorter:.0%} of the episodes "
        f"(their median is {np.median(lengths):.0f} steps): most of a window is padding."
    )
    return [(says, f"--context-length {max(1, int(np.median(lengths)) // h)}.")]


def few_returns(trajectories: Trajectories) -> list[tuple[str, str]]:
    levels = len(np.unique(np.round(trajectories.episode_returns, 6)))
    if levels == 1 or levels >= min(MANY_RETURNS, trajectories.num_episodes):  # a single one is told by `find_problems`
        return []
    return [
        (
            f"the episodes have only {levels} different returns: a target between them has not been seen.",
            "targets among them.",
        )
    ]


def nearly_constant(trajectories: Trajectories) -> list[tuple[str, str]]:
    """Dimensions that vary, and so little that standardizing blows up rounding or noise."""
    out = []
    for name, _, values in trajectories.parts("observations"):
        if values.dtype.kind != "f":
            continue
        flat = values.reshape(len(values), -1)
        deviation, size = flat.std(axis=0, dtype=np.float64), np.abs(flat).max(axis=0)
        small = np.flatnonzero((deviation > 0) & ((deviation < CONSTANT) | (deviation < SMALL * size)))
        if len(small):
            shown = ", ".join(map(str, small[:10]))
            says = f"{name} hardly vary in dimension {shown} (deviation {deviation[small].min():.2g}): standardized, what is left may be noise."
            out.append((says, "leaving them out, or --observation-noise 0.1."))
    return out


def return_scale(trajectories: Trajectories, config: ModelConfig) -> list[tuple[str, str]]:
    """Return tokens so narrow that returns look alike, or so wide that they drown the rest."""
    assert config.return_scale is not None
    deviation = float(trajectories.returns_to_go.std(dtype=np.float64))
    token = deviation / config.return_scale
    if deviation == 0 or RETURN_DEVIATION / 40 <= token <= RETURN_DEVIATION * 10:
        return []
    how = "wide" if token > RETURN_DEVIATION else "narrow"
    says = f"with return_scale {config.return_scale:.4g} the return tokens have deviation {token:.2g}, too {how} to be told apart well."
    return [(says, f"--return-scale {deviation / RETURN_DEVIATION:.4g}, the default.")]


def check_spaces(trajectories: Trajectories, observation_space: object, action_space: object) -> None:
    """Raise InputError where the data are not of the policy's spaces."""
    if (trajectories.observation_space, trajectories.action_space) != (observation_space, action_space):
        raise InputError(
            f"{trajectories.origin.name} has other spaces than the policy's data; give the dataset that the policy was trained on."
        )
