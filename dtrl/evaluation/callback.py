"""Evaluation while training: scalars, the asked-against-achieved figure, the sweep of targets over training, and a video."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dtrl.acting import Policy
from dtrl.acting.faults import check_on_env_error
from dtrl.acting.rollouts import check_workers
from dtrl.errors import InputError
from dtrl.evaluation.plots import calibration_figure, sweep_figure
from dtrl.evaluation.protocol import evaluate
from dtrl.evaluation.report import Report
from dtrl.evaluation.video import record
from dtrl.trajectories import Trajectories

DEFAULT_QUANTILES = (0.25, 0.5, 0.75, 0.95)
"""Targets asked for by default: these quantiles of the episode returns in the data."""


class TrainingEvent(Protocol):
    """What this callback reads of `dtrl.training.Event`."""

    @property
    def kind(self) -> str: ...
    @property
    def update(self) -> int: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def logger(self) -> Any: ...


class EvaluationCallback:
    """Evaluates a policy every `every` updates (0: only at the end), with `at_start` also before the first, and logs what it finds. `history` holds every
    (update, report).

    Where the data name no environment that can be made here, it says so once and evaluates nothing."""

    def __init__(
        self,
        trajectories: Trajectories,
        target_returns: Sequence[float] | None = None,
        episodes: int = 10,
        every: int = 0,
        seed: int = 0,
        env: Any = None,
        env_workers: int | str = 0,
        at_start: bool = False,
        env_timeout: float | None = None,
        on_env_error: str = "raise",
    ) -> None:
        quantiles = np.quantile(trajectories.episode_returns, DEFAULT_QUANTILES)
        self.targets = (
            sorted({float(f"{q:.4g}") for q in quantiles})
            if target_returns is None
            else [float(t) for t in target_returns]
        )
        if not self.targets or not np.isfinite(self.targets).all() or episodes < 1 or every < 0:
            raise InputError(
                f"target returns {self.targets} must be finite numbers, episodes ({episodes}) at least 1, and every ({every}) not negative."
            )
        self.data_returns = trajectories.episode_returns
        self.episodes, self.every, self.seed, self.env = episodes, every, seed, env
        check_workers(env_workers, env_timeout)
        check_on_env_error(on_env_error)
        self.playing = {
            "env": env,
            "env_workers": env_workers,
            "env_timeout": env_timeout,
            "on_env_error": on_env_error,
        }
        self.at_start, self.on_env_error = at_start, on_env_error
        self.history: list[tuple[int, Report]] = []
        self.unavailable = False

    def __call__(self, event: TrainingEvent) -> None:
        due = event.kind == "update" and self.every and event.update % self.every == 0
        if event.kind == "start" and self.at_start:
            due = event.update == 0  # a run that is resumed has been evaluated there
        if event.kind == "end" and (not self.history or self.history[-1][0] != event.update):
            due = True
        if due and not self.unavailable:
            self.evaluate(event)
        if event.kind == "end" and event.logger is not None and self.history:
            self.log_end(event)

    def evaluate(self, event: TrainingEvent) -> None:
        try:
            report = evaluate(event.policy, self.targets, self.episodes, self.seed, **self.playing)
        except InputError as error:
            if event.kind == "update" or self.history:
                raise
            import warnings

            warnings.warn(f"not evaluated: {error}", stacklevel=2)
            self.unavailable = True
            return
        self.history.append((event.update, report))
        if event.logger is not None:
            lost = {} if self.on_env_error == "raise" else {"eval/lost_episodes": float(report.lost)}
            event.logger.scalars({**scalars(report), **lost}, event.update)
            event.logger.figure("eval/asked_vs_achieved", calibration_figure(report, self.data_returns), event.update)

    def log_end(self, event: TrainingEvent) -> None:
        event.logger.figure("eval/target_sweep", sweep_figure(self.history), event.update)
        event.logger.text("eval/report", "```\n" + self.history[-1][1].table() + "\n```", event.update)
        try:
            frames, fps = record(event.policy, max(self.targets), self.seed, env=self.env)
        except InputError:
            return  # the environment draws no pictures
        event.logger.video("eval/video", frames, event.update, fps=fps)


def scalars(report: Report) -> dict[str, float]:
    """Stable-Baselines3's tags for the highest target, and one group a target; none for a number that is not finite, as of a target whose every episode
    was lost."""
    best = max(report.targets, key=lambda t: t.target_return)
    out = {
        "rollout/ep_rew_mean": best.mean,
        "rollout/ep_len_mean": best.mean_length,
        "eval/mean_reward": best.mean,
        "eval/mean_ep_length": best.mean_length,
    }
    for target in report.targets:
        out[f"eval/return@{target.target_return:.6g}"] = target.mean
        score = target.normalized_mean(report.reference)
        if score is not None:
            out[f"eval/score@{target.target_return:.6g}"] = score
    out["eval/mean_absolute_gap"] = float(np.nanmean([abs(t.mean - t.target_return) for t in report.targets]))
    if report.timing is not None:
        out["eval/env_seconds"], out["eval/model_seconds"] = report.timing.env_seconds, report.timing.model_seconds
        out["eval/steps_per_second"] = report.timing.steps_per_second
    if report.rank_correlation is not None:
        out["eval/rank_correlation"] = report.rank_correlation
    return {tag: value for tag, value in out.items() if np.isfinite(value)}
