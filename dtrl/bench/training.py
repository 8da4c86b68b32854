"""One gradient update of the paper's Hopper model: batch, forward, backward, clipping, AdamW; dtrl's trainer against transformers' model."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.bench import timing
from dtrl.bench.peers import ACTION_WIDTH, MAX_TIMESTEP, OBSERVATION_WIDTH, RETURN_SCALE, hopper_model
from dtrl.bench.timing import LOW, compare, device_of, document, interleaved, torch_threads
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.training.group import Group
from dtrl.training.hardware import synchronize
from dtrl.training.trainer import Trainer
from dtrl.training.update import WARM_UP
from dtrl.trajectories import Trajectories
from dtrl.windows import Windows

__all__ = ["run", "table"]

BATCH_SIZE, CONTEXT_LENGTH = 64, 20
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 1e-4, 0.25
"""The paper's [Chen et al. 2021, table 8]."""
OUR_BATCHES, COLLATOR = "transformers, batches by dtrl", "transformers, documented collator"
GOAL = 2.5
BF16, BATCH, BF16_GOAL = "dtrl, bf16", "a batch of windows", 5.0
GRAPH, TF32_GRAPH, BF16_GRAPH = "dtrl, CUDA graph", "dtrl, TF32, CUDA graph", "dtrl, bf16, CUDA graph"


def run(repetitions: int = 50, threads: int = 2, episodes: int = 200, bf16: int = 0, cuda: int = 0) -> dict[str, Any]:
    """Both are in training mode with dropout 0.1 and use torch's fused AdamW, as transformers' Trainer does by default. With `bf16`, dtrl's update under
    autocast too, beside the same peer in fp32. With `cuda`, all of them on the GPU, and dtrl's as a CUDA graph too."""
    device = device_of(cuda)
    trajectories = hopper_shaped(episodes)
    ours: dict[str, dict[str, Any]] = {"dtrl": {}}
    ours |= {BF16: {"precision": "bf16"}} if bf16 else {}
    ours |= {GRAPH: {"cuda_graph": True}, TF32_GRAPH: {"cuda_graph": True, "precision": "tf32"}} if cuda else {}
    ours |= {BF16_GRAPH: {"cuda_graph": True, "precision": "bf16"}} if bf16 and cuda else {}
    with torch_threads(threads):
        trainers = {name: make_trainer(trajectories, device, **options) for name, options in ours.items()}
        numbers = itertools.count(1)
        jobs: dict[str, Callable[[], object]] = {
            **{name: updates_of(trainer) for name, trainer in trainers.items()},
            OUR_BATCHES: peer_update(dtrl_batches(trajectories), device),
            COLLATOR: peer_update(Collator(trajectories), device),
            BATCH: lambda: trainers["dtrl"].batch(next(numbers)),
        }
        times = interleaved(
            {name: partial(always, job, device) for name, job in jobs.items()}, repetitions, warm_up=WARM_UP + 2
        )
        used = {name: utilization(trainer, times[name], times[BATCH]) for name, trainer in trainers.items()}
    place = "on the GPU" if cuda else f"{threads} thread{'s' if threads > 1 else ''}"
    work = f"training, an update of {BATCH_SIZE} windows, K = {CONTEXT_LENGTH}, {place}"
    goals = {} if cuda else {"dtrl": GOAL, BF16: BF16_GOAL}
    rows = [(name, OUR_BATCHES, goals.get(name)) for name in ours]
    rows.insert(1, ("dtrl", COLLATOR, None))
    results = [compare(work, times, name, peer, goal, threads=threads, **used[name]) for name, peer, goal in rows]
    options = {"repetitions": repetitions, "threads": threads, "episodes": episodes, "bf16": bf16, "cuda": cuda}
    return document("training", options, results)


def utilization(
    trainer: Trainer, update_seconds: npt.NDArray[np.float64], batch_seconds: npt.NDArray[np.float64]
) -> dict[str, float]:
    """What an update needs of the hardware and what it gets, and the share of it that drawing and cutting its windows takes."""
    flops, flops_per_second = trainer.hardware()
    update, batch = (float(np.percentile(seconds, LOW)) for seconds in (update_seconds, batch_seconds))
    return {
        "model_flops": flops,
        "matmul_flops_per_second": flops_per_second,
        "model_flops_utilization": flops / update / flops_per_second,
        "batch_share": batch / update,
    }


def table(document: Mapping[str, Any]) -> str:
    """The document as text."""
    lines = {
        row[
            "dtrl"
        ]: f"{row['dtrl']}: {row['model_flops'] / 1e9:.3g} GFLOP an update; matrix products run at {row['matmul_flops_per_second'] / 1e9:.3g} GFLOP/s "
        f"here; model FLOPs utilisation {row['model_flops_utilization']:.1%}; drawing and cutting the batch is {row['batch_share']:.2%} of an update"
        for row in document["results"]
    }
    return "\n".join([timing.table(document), "", *lines.values()])


def always(update: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A job that needs no preparation, and ends when the device has done it."""

    def job() -> None:
        update()
        synchronize(device)

    return job


def hopper_shaped(episodes: int) -> Trajectories:
    """Random numbers in the shape of Hopper's data: up to 1,000 steps an episode, half of them as in its medium data."""
    random = np.random.default_rng(0)
    made = []
    for length in random.integers(100, MAX_TIMESTEP + 1, size=episodes):
        ends = np.arange(length) == length - 1
        made.append(
            {
                "observations": random.standard_normal((length + 1, OBSERVATION_WIDTH)),
                "actions": random.uniform(-1, 1, (length, ACTION_WIDTH)),
                "rewards": random.random(length),
                "terminations": ends,
                "truncations": np.zeros(length, dtype=bool),
            }
        )
    return Trajectories.from_episodes(
        made, spaces.Box(-np.inf, np.inf, (OBSERVATION_WIDTH,)), spaces.Box(-1, 1, (ACTION_WIDTH,))
    )


def make_trainer(
    trajectories: Trajectories, device: torch.device, group: Group | None = None, **options: Any
) -> Trainer:
    model = ModelConfig(context_length=CONTEXT_LENGTH, max_timestep=MAX_TIMESTEP, return_scale=RETURN_SCALE)
    config = TrainingConfig(
        updates=10**6,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        gradient_clip=CLIP,
        device=str(device),
        log_every=10**6,
        **options,
    )
    trainer = Trainer(trajectories, model, config, None, False, group=group)
    trainer.model.train()
    return trainer


def updates_of(trainer: Trainer) -> Callable[[], object]:
    numbers = itertools.count(1)
    return lambda: trainer.update(next(numbers))


Inputs = dict[str, Tensor]
"""What the peer's model takes."""


def peer_update(draw: Callable[[], Inputs], device: torch.device) -> Callable[[], object]:
    """An update as in transformers' documentation: the mean squared error of the actions that are not padding."""
    model = hopper_model().train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def update() -> float:
        inputs = {name: value.to(device) for name, value in draw().items()}
        optimizer.zero_grad(set_to_none=True)
        predicted = model(**inputs).action_preds
        valid = inputs["attention_mask"].reshape(-1) > 0
        wanted = inputs["actions"].reshape(-1, ACTION_WIDTH)[valid]
        loss = (predicted.reshape(-1, ACTION_WIDTH)[valid] - wanted).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    return update


def dtrl_batches(trajectories: Trajectories) -> Callable[[], Inputs]:
    """dtrl's windows as the peer's inputs: what is left is the model and the optimiser alone."""
    windows = Windows(trajectories, CONTEXT_LENGTH, BATCH_SIZE)
    updates = iter(range(10**6))

    def draw() -> Inputs:
        batch = windows.batch(next(updates))
        return {
            "states": batch.values["observation"],
            "actions": batch.values["action"],
            "returns_to_go": batch.values["return"].unsqueeze(-1) / RETURN_SCALE,
            "timesteps": batch.timesteps,
            "attention_mask": batch.valid.long(),
        }

    return draw


class Collator:
    """The documented data collator: a loop over the windows of a batch that cuts, normalises and pads each on the left, and sums its returns anew.

    It reads arrays in memory, which is faster than the documented one's reading of a Hugging Face dataset."""

    def __init__(self, trajectories: Trajectories) -> None:
        self.episodes = [trajectories.episode(i) for i in range(trajectories.num_episodes)]
        self.share = trajectories.episode_lengths / trajectories.num_steps
        self.mean, self.deviation = trajectories.observations.mean(axis=0), trajectories.observations.std(axis=0) + 1e-6
        self.random = np.random.default_rng(0)

    def __call__(self) -> Inputs:
        windows = [
            self.window(self.episodes[i]) for i in self.random.choice(len(self.episodes), size=BATCH_SIZE, p=self.share)
        ]
        return {name: torch.from_numpy(np.stack([window[name] for window in windows])) for name in windows[0]}

    def window(self, episode: dict[str, Any]) -> dict[str, Any]:
        start = int(self.random.integers(len(episode["rewards"])))
        cut = slice(start, start + CONTEXT_LENGTH)
        states = (episode["observations"][:-1][cut] - self.mean) / self.deviation
        steps = len(states)
        to_go = np.zeros(len(episode["rewards"]) - start)
        left = 0.0
        for i in range(len(to_go) - 1, -1, -1):
            left += float(episode["rewards"][start + i])
            to_go[i] = left
        return {
            "states": pad(states, 0.0),
            "actions": pad(episode["actions"][cut], -10.0),
            "returns_to_go": pad(to_go[:steps, None].astype(np.float32), 0.0) / np.float32(RETURN_SCALE),
            "timesteps": pad(np.arange(start, start + steps), 0),
            "attention_mask": pad(np.ones(steps, dtype=np.int64), 0),
        }


def pad(x: npt.NDArray[Any], value: float) -> npt.NDArray[Any]:
    """(n, …) → (K, …), padded on the left."""
    return np.concatenate([np.full((CONTEXT_LENGTH - len(x), *x.shape[1:]), value, dtype=x.dtype), x])
