"""Two processes that train one model: the data and settings of their tests, how they are started, and what they leave."""

import json
import os
import subprocess
import sys

import numpy as np
import torch
from gymnasium import spaces

import dtrl
from dtrl.acting.artefact import parameters_sha256
from dtrl.acting.runs import newest_checkpoint, sha256
from dtrl.bench.processes import free_port
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin

UPDATES = 8
SMALL = {
    "batch_size": 8,
    "context_length": 4,
    "width": 16,
    "layers": 2,
    "warmup_updates": 0,
    "log_every": 1,
    "checkpoint_every": 3,
    "device": "cpu",
}
OTHER_THREADS = "ignore:the run had . threads"  # the processes have one each, and the tests may be told to have more


def make_data():
    random = np.random.default_rng(0)
    episodes = [
        {
            "observations": random.normal(size=(length + 1, 3)),
            "actions": random.uniform(-1, 1, (length, 2)),
            "rewards": random.normal(size=length),
            "terminations": np.arange(length) == length - 1,
            "truncations": np.zeros(length, dtype=bool),
        }
        for length in (9, 2, 6, 3, 12, 7)
    ]
    return Trajectories.from_episodes(
        episodes, spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,)), origin=Origin("test/random-v0")
    )


def start(file, folder, *names):
    """Run a file as a program, in two processes of a group: how they ended, and what they wrote to stderr."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, file, str(folder), *names]
    processes = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "\n".join(errors)


def told(folder, scenario, ranks=(0, 1)):
    """What the processes told of a scenario."""
    return [json.loads((folder / f"{scenario.__name__}-{rank}.json").read_text()) for rank in ranks]


def record_of(logdir):
    """Parameters, optimiser state and losses of a finished run."""
    lines = [json.loads(line) for line in (logdir / "progress.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(1, UPDATES + 1))
    optimizer = sha256(newest_checkpoint(logdir) / "optimizer.safetensors")
    losses = [(line["train/loss"].hex(), line["train/gradient_norm"].hex()) for line in lines]
    return [parameters_sha256(dtrl.load_policy(logdir).model), optimizer, losses]


def check_weights(theirs, ours):
    """Models of one trunk gpt2 and one head, after the same windows, are the same but for the rounding of sums. A key's bias has no other gradient than that
    rounding, which AdamW makes whole steps of."""
    for (name, parameter), expected in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        bound = torch.full_like(expected, 1e-6)
        if name.endswith("query_key_value.bias"):
            bound.chunk(3)[1].fill_(1e-5)
        assert ((parameter - expected).abs() <= bound).all(), name
