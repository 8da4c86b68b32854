"""What is in a dataset, and what in it stands in the way of learning: the content of `dtrl datasets show`."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from dtrl.trajectories.columns import Trajectories

MAX_IMAGES = 2_000
"""Images that are looked at for warnings."""
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Description:
    """Counts, distributions and warnings of one dataset; `to_dict` is the JSON, `text` the page."""

    dataset: str
    observation_space: str
    action_space: str
    num_episodes: int
    num_steps: int
    num_terminated: int
    num_truncated: int
    return_quantiles: dict[str, float]
    length_quantiles: dict[str, float]
    reward_range: tuple[float, float]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        def row(quantiles: dict[str, float]) -> str:
            return "   ".join(f"{name} {value:.6g}" for name, value in quantiles.items())

        lines = [
            self.dataset,
            f"  observations   {self.observation_space}",
            f"  actions        {self.action_space}",
            f"  episodes       {self.num_episodes:,} ({self.num_terminated:,} terminated, {self.num_truncated:,} truncated)",
            f"  steps          {self.num_steps:,}",
            f"  returns        {row(self.return_quantiles)}",
            f"  lengths        {row(self.length_quantiles)}",
            f"  rewards        {self.reward_range[0]:.6g} … {self.reward_range[1]:.6g}",
        ]
        lines += [f"  warning: {warning}" for warning in self.warnings] or ["  no warnings"]
        return "\n".join(lines)


def describe(trajectories: Trajectories, max_timestep: int | None = None) -> Description:
    """Counts, quantiles of returns and lengths, and the warnings of `find_problems`."""
    ends = trajectories.episode_ends - 1
    rewards = trajectories.rewards
    return Description(
        dataset=trajectories.origin.name,
        observation_space=str(trajectories.observation_space),
        action_space=str(trajectories.action_space),
        num_episodes=trajectories.num_episodes,
        num_steps=trajectories.num_steps,
        num_terminated=int(trajectories.terminations[ends].sum()),
        num_truncated=int((trajectories.truncations[ends] & ~trajectories.terminations[ends]).sum()),
        return_quantiles=quantiles(trajectories.episode_returns),
        length_quantiles=quantiles(trajectories.episode_lengths),
        reward_range=(float(rewards.min()), float(rewards.max())),
        warnings=find_problems(trajectories, max_timestep),
    )


def quantiles(values: Any) -> dict[str, float]:
    names = ["min" if q == 0 else "max" if q == 1 else f"{q:.0%}" for q in QUANTILES]
    return {name: float(v) for name, v in zip(names, np.quantile(values, QUANTILES), strict=True)}


def find_problems(trajectories: Trajectories, max_timestep: int | None = None) -> list[str]:
    """One sentence for each property of the data that is known to spoil return-conditioned learning."""
    problems = []
    rewards, returns, lengths = trajectories.rewards, trajectories.episode_returns, trajectories.episode_lengths
    if np.ptp(rewards) == 0:
        problems.append(f"every reward is {rewards[0]:.6g}: a return-to-go says no more than how many steps are left.")
    if np.ptp(returns) <= 1e-6 * max(1.0, float(np.abs(returns).max())):
        problems.append(
            f"every episode returns {returns[0]:.6g}: with one return level, conditioning on the return can have no effect."
        )
    for name, _, column in [*trajectories.parts("observations"), *trajectories.parts("actions")]:
        problems += problems_of_column(name, column)
    problems += open_bounds(trajectories)
    if trajectories.origin.lossy_images:
        problems.append(
            "the images were stored as JPEG, which changed their pixels; the environment will show others: record with jpeg_encoding=False."
        )
    if share := repeated_actions(trajectories):
        problems.append(
            f"{share:.0%} of the actions repeat the one before them exactly: a model can score well by copying its own last action."
        )
    limit = max_timestep if max_timestep is not None else env_step_limit(trajectories.origin.env_spec)
    if limit is not None and int(lengths.max()) > limit:
        problems.append(
            f"{int((lengths > limit).sum())} episodes are longer than the timestep table of {limit} steps: later steps share its last row "
            f"(give max_timestep {int(lengths.max())})."
        )
    if short := int((lengths == 1).sum()):
        problems.append(f"{short} episodes have a single step.")
    cut = trajectories.truncations[trajectories.episode_ends - 1] & (lengths < (limit or 0))
    if cut.any():
        problems.append(
            f"{int(cut.sum())} episodes were truncated before the env's limit: their returns-to-go leave out what would have followed the cut."
        )
    return problems


def problems_of_column(name: str, column: npt.NDArray[Any]) -> list[str]:
    """A column that says nothing, in whole or in some dimensions; of an image only the whole is of interest, and a sample of its rows is looked at."""
    image = column.dtype == np.uint8 and column.ndim > 2
    if image:
        column = column[:: max(1, len(column) // MAX_IMAGES)]
    flat = column.reshape(len(column), -1)
    constant = np.flatnonzero(flat.max(axis=0) == flat.min(axis=0))
    if len(constant) == flat.shape[1] and (column.ndim == 1 or image):
        return [
            f"{name} are all {flat[0, 0] if column.ndim == 1 else 'the same'}: there is nothing to learn from them."
        ]
    if image or not len(constant):
        return []
    shown = ", ".join(map(str, constant[:10]))
    return [f"{name} are constant in dimension {shown}{' …' if len(constant) > 10 else ''}."]


def open_bounds(trajectories: Trajectories) -> list[str]:
    """Actions without finite bounds: a policy then stays within what the data hold."""
    return [
        f"{name} have no finite bounds in the space: a policy will stay within those of the data, {values.min():.6g} … {values.max():.6g}."
        for name, space, values in trajectories.parts("actions")
        if isinstance(space, spaces.Box) and not (np.isfinite(space.low) & np.isfinite(space.high)).all()
    ]


def repeated_actions(trajectories: Trajectories) -> float | None:
    """Share of steps that repeat the action before them, when it is above a half and the actions are continuous (in a discrete space holding is legal)."""
    boxes = [values for _, space, values in trajectories.parts("actions") if isinstance(space, spaces.Box)]
    if not boxes or trajectories.num_steps < 2:
        return None
    columns = [values.reshape(trajectories.num_steps, -1) for values in boxes]
    same = np.logical_and.reduce([(column[1:] == column[:-1]).all(axis=1) for column in columns])
    same[trajectories.episode_starts[1:] - 1] = False
    share = float(same.mean())
    return share if share > 0.5 else None


def env_step_limit(env_spec: str | None) -> int | None:
    """`max_episode_steps` of an EnvSpec in JSON."""
    import json

    try:
        limit = json.loads(env_spec or "{}").get("max_episode_steps")
    except (ValueError, AttributeError):
        return None
    return int(limit) if isinstance(limit, int) and limit > 0 else None
