"""Running one cell: train, evaluate the last checkpoint and the best, write it down."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import dtrl
from dtrl.acting import Actor, Policy
from dtrl.acting.environments import environment_id
from dtrl.acting.runs import RESULT_FILE
from dtrl.config import DecodingConfig, ModelConfig, TrainingConfig
from dtrl.documents import parse_json
from dtrl.errors import InputError, reason_of
from dtrl.evaluation import Report, TargetResult, evaluate
from dtrl.files import write_atomically
from dtrl.suites.cells import BEST_FILE, CHOOSING_SEEDS, EVALUATIONS_FILE, FINAL_SEEDS, Cell, read_cell, write_cell
from dtrl.suites.data import data_options
from dtrl.training import train
from dtrl.trajectories import load_trajectories


@dataclass(frozen=True)
class RunCell:
    """A cell as a task of a process."""

    cell: Cell

    def __call__(self) -> None:
        """Run the cell to its end, going on where an earlier attempt was cut off."""
        cell = self.cell
        if read_cell(cell.folder) is None:
            write_cell(cell)
        began = time.perf_counter()
        found = FINISHERS[cell.entry.kind](cell)
        write_cell(cell, {**found, "seconds": time.perf_counter() - began, "dtrl": dtrl.__version__})


def run_training(cell: Cell) -> dict[str, Any]:
    """Train and evaluate. Raises InputError for settings that do not go with the data."""
    trajectories = load_trajectories(cell.prepared.where, **data_options(cell.options))
    decoding = DecodingConfig(**chosen(cell.options, DecodingConfig))
    choosing = Choosing(cell, decoding)
    policy = train(
        trajectories,
        logdir=cell.folder,
        resume=True,
        callbacks=[choosing],
        updates=cell.updates,
        seed=cell.seed,
        checkpoint_every=cell.eval_every,
        keep_checkpoints=1,
        **chosen(cell.options, ModelConfig, TrainingConfig),
    )
    best = Policy.load(cell.folder / BEST_FILE).to(policy.device)
    last_report = evaluated(cell, policy.variant(decoding=decoding), cell.episodes, FINAL_SEEDS)
    same = best.updates == policy.updates  # then the episodes are the same too
    best_report = last_report if same else evaluated(cell, best.variant(decoding=decoding), cell.episodes, FINAL_SEEDS)
    result = json.loads((cell.folder / RESULT_FILE).read_text())
    return {
        "last": {"update": policy.updates, "report": last_report.to_dict()},
        "best": {"update": best.updates, "of": len(choosing.means), "report": best_report.to_dict()},
        "parameters": result["parameters"],
        "parameters_sha256": result["parameters_sha256"],
    }


def read_means(path: Path) -> dict[int, float]:
    """What evaluations.json says. Raises InputError for another file of that name."""
    try:
        return {int(update): float(mean) for update, mean in parse_json(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not what a suite writes ({reason_of(error)}); remove that folder, and run the suite again."
        ) from error


class Choosing:
    """Evaluates a policy while it trains, and keeps the best so far.

    A run that goes on after it was cut off has the same updates again, bit for bit; evaluations that are written down already are not made again."""

    def __init__(self, cell: Cell, decoding: DecodingConfig) -> None:
        self.cell, self.decoding = cell, decoding
        self.path = cell.folder / EVALUATIONS_FILE
        self.means: dict[int, float] = {}
        """Update → mean return of its episodes."""
        if self.path.is_file():
            self.means = read_means(self.path)

    def __call__(self, event: Any) -> None:
        due = event.kind == "end" or (event.kind == "update" and event.update % self.cell.eval_every == 0)
        if not due or event.update in self.means:
            return
        policy = event.policy.variant(decoding=self.decoding)
        report = evaluated(self.cell, policy, self.cell.eval_episodes, CHOOSING_SEEDS)
        mean = float(np.mean(report.targets[0].returns))
        if not self.means or mean > max(self.means.values()):  # of equal ones the earliest
            event.policy.save(self.cell.folder / BEST_FILE)
        self.means[event.update] = mean
        write_atomically(self.path, (json.dumps(self.means, indent=2) + "\n").encode())
        if event.logger is not None:
            event.logger.scalars({"eval/mean_reward": mean}, event.update)


def run_policy(cell: Cell) -> dict[str, Any]:
    """Evaluate the policy of a file, which was trained elsewhere. Its episodes are those of the other entries' runs with that seed."""
    from dtrl.interop.stable_baselines import load_actor

    assert cell.file is not None
    report = evaluated(cell, load_actor(cell.file, cell.prepared.env), cell.episodes, FINAL_SEEDS)
    return {"last": {"update": None, "report": report.to_dict()}, "best": None}


def run_behaviour(cell: Cell) -> dict[str, Any]:
    """What recorded the data: as many of its episodes as others are evaluated on, drawn with the seed."""
    trajectories = load_trajectories(cell.prepared.where, **cell.prepared.options)
    random = np.random.default_rng([FINAL_SEEDS + cell.seed, 1])
    drawn = random.integers(trajectories.num_episodes, size=cell.episodes)
    result = TargetResult(
        cell.prepared.target_return,
        [float(r) for r in trajectories.episode_returns[drawn]],
        [int(n) for n in trajectories.episode_lengths[drawn]],
    )
    report = Report(
        trajectories.origin.name,
        environment_id(cell.prepared.env),
        FINAL_SEEDS + cell.seed,
        cell.episodes,
        [result],
        cell.prepared.reference,
        {"preset": "behaviour"},
    )
    return {"last": {"update": None, "report": report.to_dict()}, "best": None}


FINISHERS = {"train": run_training, "policy": run_policy, "behaviour": run_behaviour}
"""Kind of an entry → what a cell of it does."""


def evaluated(cell: Cell, policy: Actor, episodes: int, seeds: int) -> Report:
    """The policy asked for the target of its dataset, in episodes that depend on the seed of the run alone."""
    report = evaluate(policy, [cell.prepared.target_return], episodes, seeds + cell.seed, env=cell.prepared.env)
    if not all(map(np.isfinite, report.targets[0].returns)):
        raise InputError(f"{cell.name}: a return of its evaluation is not finite; look at the environment.")
    return replace(report, reference=cell.prepared.reference)


def chosen(options: Mapping[str, Any], *configs: type) -> dict[str, Any]:
    """Those options that belong to the configurations."""
    known = [f.name for config in configs for f in fields(config)]
    return {name: value for name, value in options.items() if name in known}
