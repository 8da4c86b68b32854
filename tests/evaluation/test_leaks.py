"""Hundreds of evaluations, trainings and workers in one process leave nothing behind: no file, no process, no thread, no object and no memory.

Run as a program, this file is that process: `python test_leaks.py FOLDER` prints what it held, as JSON. A worker loads it too, so it imports late."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EVALUATIONS, TRAININGS, WITH_WORKERS = 200, 5, 2
WARM_UP = {"evaluations": 60, "trainings": 2, "workers": 1, "planted": 1}
"""So many come before the first sample: what is imported late, or kept for the next time, is there by then."""
OBJECTS, MEMORY_KIB = 50, 2048
"""Growth that counts as none, of all that follows: a third of an object, and 15 KiB, for each evaluation."""


def held():
    """Open files, children, threads, Python objects, and private memory in KiB, of this process."""
    import gc
    import threading

    gc.collect()
    status = Path("/proc/self/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "children": len(children),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "memory": memory,
    }


def work(folder):
    """What is done again and again, by name: how often, and what."""
    import tempfile

    import gymnasium
    import numpy as np

    import dtrl
    from dtrl.trajectories import Trajectories

    env, random = gymnasium.make("Pendulum-v1", max_episode_steps=5), np.random.default_rng(0)
    episodes = [
        {
            "observations": random.normal(size=(length + 1, 3)),
            "actions": random.uniform(-2, 2, (length, 1)),
            "rewards": random.normal(size=length),
            "terminations": np.arange(length) == length - 1,
            "truncations": np.zeros(length, dtype=bool),
        }
        for length in (9, 4, 6)
    ]
    data = Trajectories.from_episodes(episodes, env.observation_space, env.action_space)
    small = {"updates": 2, "batch_size": 4, "context_length": 4, "width": 16, "layers": 1, "checkpoint_every": 1}

    def train():
        with tempfile.TemporaryDirectory(dir=folder) as run:
            dtrl.train(data, logdir=run, **small)

    def evaluate(**options):
        dtrl.evaluate(policy, [1.0], episodes=2, env=env.spec.to_json(), num_envs=2, **options)

    policy = dtrl.train(data, **small)
    kept = []
    return {
        "evaluations": (EVALUATIONS, evaluate),
        "trainings": (TRAININGS, train),
        "workers": (WITH_WORKERS, lambda: evaluate(env_workers=1)),
        "planted": (60, lambda: kept.append([open(os.devnull), np.ones(2**15)])),
    }


def main(folder):
    samples = {}
    for name, (times, what) in work(folder).items():
        for done in range(times):
            if done == WARM_UP[name] - 1:
                held()  # its list of objects is the largest thing here, and the room for it is kept
            if done == WARM_UP[name]:
                samples[name] = [held()]
            what()
        samples[name].append(held())
    print(json.dumps(samples))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads in /proc what a process holds")
def test_hundreds_of_evaluations_leave_nothing_behind(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown = {
        name: {what: after[what] - before[what] for what in before}
        for name, (before, after) in json.loads(done.stdout).items()
    }
    planted = grown.pop("planted")
    assert planted["files"] == 59
    assert planted["objects"] > OBJECTS
    assert planted["memory"] > MEMORY_KIB
    for name, growth in grown.items():
        assert [growth[what] for what in ("files", "children", "threads")] == [0, 0, 0], name
        assert growth["objects"] <= OBJECTS, name
        assert growth["memory"] <= MEMORY_KIB, name


if __name__ == "__main__":
    main(sys.argv[1])
