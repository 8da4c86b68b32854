"""d3rlpy's Decision Transformer as an entry of a suite: trained with its published settings on the datasets, seeds and numbers of updates of dtrl's runs, and
evaluated from the same first states, under the same target.

It pins an old Gymnasium and cannot live beside dtrl, so it has an environment of its own, in which d3rlpy_training.py runs:

    python -m venv d3rlpy-venv
    d3rlpy-venv/bin/pip install -c benchmarks/d3rlpy-constraints.txt d3rlpy==2.8.1 mujoco imageio pygame Box2D
    dtrl benchmark quick --logdir runs/quick
    python benchmarks/d3rlpy_peer.py quick --logdir runs/quick --python d3rlpy-venv/bin/python

It writes cells of the entry "d3rlpy DT" beside the others, and the tables anew. Settings are those of d3rlpy's own reproductions of the paper (AdamW, a linear
warm-up, gradients clipped at 0.25, standardised observations; for Discrete actions cosine decline over all tokens and a clip at 1), in the size of the
suite's baseline and with its batches. It draws its own windows: they end at a random step and are padded on the left.

What the settings do not say: the warm-up of 10,000 updates is a tenth of them where there are fewer than 100,000, actions are scaled to [−1, 1] by the bounds
of their space, the largest logit of Discrete ones is taken, and returns are divided as dtrl's are (--return-scale 1000 is the published one for MuJoCo)."""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

import dtrl
from dtrl.acting.environments import environment_id, make_environment
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.errors import InputError
from dtrl.evaluation import Report, TargetResult
from dtrl.presets import resolve
from dtrl.suites.cells import CHOOSING_SEEDS, FINAL_SEEDS, Cell, write_cell
from dtrl.suites.data import data_options
from dtrl.suites.external import add_external, labelled, run_external, vector_spaces
from dtrl.suites.running import chosen
from dtrl.trajectories import Trajectories, load_trajectories

LABEL = "d3rlpy DT"
TRAINING = Path(__file__).resolve().parent / "d3rlpy_training.py"
WARMUP = 10_000
CHECKED_STEPS = 20
"""Of an episode with given actions, in which the environments of both sides must agree."""


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Those with which `dtrl.evaluate` begins its episodes."""
    seeds: list[int] = np.random.default_rng([seed, 0]).integers(2**31, size=episodes).tolist()
    return seeds


def environment_of(env_spec: str) -> dict[str, Any]:
    """How the other side makes the environment, and a few steps of it to compare. Raises InputError for one that only dtrl has."""
    env = make_environment(env_spec)
    spec = env.spec
    assert spec is not None
    if spec.id.startswith("dtrl/"):
        raise InputError(f"{spec.id} is part of dtrl, which is not installed beside d3rlpy; leave that dataset out.")
    kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    made = {"id": spec.id, "kwargs": {**kwargs, "max_episode_steps": spec.max_episode_steps}}
    env.action_space.seed(0)
    observations, actions = [env.reset(seed=0)[0]], list[Any]()
    for _ in range(CHECKED_STEPS):
        actions.append(env.action_space.sample())
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation)
        if terminated or truncated:
            break
    env.close()
    check = {"seed": 0, "actions": np.array(actions).tolist(), "observations": np.array(observations).tolist()}
    return {"env": made, "check": check}


def job_of(cell: Cell, data: Trajectories, return_scale: float | None) -> dict[str, Any]:
    """All that the other side needs to know beside the arrays. Raises InputError for what d3rlpy has no form for."""
    _, acted = vector_spaces(data, "d3rlpy's")
    config = resolve(ModelConfig(**chosen(cell.options, ModelConfig)), data)
    training = TrainingConfig(**chosen(cell.options, TrainingConfig))
    discrete = isinstance(acted, spaces.Discrete)
    return {
        **environment_of(cell.prepared.env),
        "seed": cell.seed,
        "target_return": cell.prepared.target_return,
        "updates": cell.updates,
        "eval_every": cell.eval_every,
        "choosing_seeds": episode_seeds(CHOOSING_SEEDS + cell.seed, cell.eval_episodes),
        "final_seeds": episode_seeds(FINAL_SEEDS + cell.seed, cell.episodes),
        "discrete": discrete,
        "start": int(acted.start) if isinstance(acted, spaces.Discrete) else 0,
        "action_size": int(acted.n) if isinstance(acted, spaces.Discrete) else acted.shape[0],
        "low": None if isinstance(acted, spaces.Discrete) else acted.low.tolist(),
        "high": None if isinstance(acted, spaces.Discrete) else acted.high.tolist(),
        "batch_size": training.batch_size,
        "context_length": config.context_length,
        "max_timestep": config.max_timestep,
        "width": config.width,
        "layers": config.layers,
        "heads": config.heads,
        "dropout": config.dropout,
        "return_scale": float(return_scale or config.return_scale or 1.0),
        "learning_rate": 6e-4 if discrete else 1e-4,
        "warmup": max(1, min(WARMUP, cell.updates // 10)),
    }


def arrays_of(data: Trajectories) -> dict[str, Any]:
    """The dataset as flat arrays, every episode with an end."""
    ends = np.zeros(data.num_steps, bool)
    ends[np.asarray(data.episode_ends) - 1] = True
    terminals = ends & np.asarray(data.terminations)
    start = int(data.action_space.start) if isinstance(data.action_space, spaces.Discrete) else 0
    return {
        "observations": np.asarray(data.observations, np.float32),
        "actions": np.asarray(data.actions) - start,
        "rewards": np.asarray(data.rewards, np.float32),
        "terminals": terminals.astype(np.float32),
        "timeouts": (ends & ~terminals).astype(np.float32),
    }


@dataclass(frozen=True)
class PeerRun:
    """One cell: trained and played by the other Python, and written down."""

    cell: Cell
    python: str
    return_scale: float | None

    def __call__(self) -> None:
        cell = self.cell
        data = load_trajectories(cell.prepared.where, **data_options(cell.options))
        job = job_of(cell, data, self.return_scale)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "job.json").write_text(json.dumps(job), encoding="utf-8")
            np.savez(Path(folder) / "data.npz", **arrays_of(data))
            run_python([self.python, str(TRAINING), folder])
            result = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
        recipe = {name: job[name] for name in ("learning_rate", "return_scale", "warmup")} | result["versions"]
        write_cell(
            cell,
            {
                "last": {"update": cell.updates, "report": report_of(cell, result["last"])},
                "best": {
                    "update": result["best_update"],
                    "of": result["of"],
                    "report": report_of(cell, result["best"]),
                },
                "parameters": result["parameters"],
                "recipe": recipe,
                "seconds": 0.0,
                "dtrl": dtrl.__version__,
            },
        )


def run_python(command: Sequence[str]) -> None:
    """Raises InputError with the last line of what it says where it fails. The other Python finds none of our packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(
            f"{command[0]} cannot be run ({error.strerror}); name the Python of d3rlpy by --python."
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{command[0]} failed with exit code {done.returncode}: {last}")


def report_of(cell: Cell, played: tuple[list[float], list[int]]) -> dict[str, Any]:
    """The evaluation as dtrl writes its own."""
    result = TargetResult(cell.prepared.target_return, *played)
    settings = {"preset": LABEL, "deterministic": True}
    return Report(
        cell.prepared.where,
        environment_id(cell.prepared.env),
        FINAL_SEEDS + cell.seed,
        cell.episodes,
        [result],
        cell.prepared.reference,
        settings,
    ).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the Python with d3rlpy, such as d3rlpy-venv/bin/python")
    add_external(parser)
    arguments = parser.parse_args()
    run_python([arguments.python, "-c", "import d3rlpy"])
    label = labelled(LABEL, scale=arguments.return_scale)
    run_external(arguments, label, lambda cell: PeerRun(cell, arguments.python, arguments.return_scale))


if __name__ == "__main__":
    main()
