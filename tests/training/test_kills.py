"""Runs that are killed at random moments, and checkpoints while they are written: nothing is lost, and the end is the same.

Run as a program, this file starts what its tests kill, as copies of itself, so that torch is imported once, and prints what came of it:
`python test_kills.py FOLDER WHAT`, with WHAT `runs`, or `saves` and how many."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtrl.acting import Policy
from dtrl.acting.runs import POLICY_FILE, checkpoints, newest_checkpoint, sha256, verify
from dtrl.cli import main as dtrl_main
from dtrl.collect import write_minari
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.training.checkpoint import check_logdir
from dtrl.training.trainer import Trainer
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin

UPDATES = 200
DATASET = "pendulum/short-v0"
RUN = "--updates 200 --checkpoint-every 15 --log-every 1 --batch-size 4 --context-length 4 --width 8 --layers 1"
EVALUATED = "dt, fp32"
CASES = {
    f"{preset}, {precision}": f"{RUN} --preset {preset} --precision {precision} --eval-episodes 0"
    for preset in ("dt", "bc", "odt")
    for precision in ("fp32", "bf16")
}
CASES[EVALUATED] += " --eval-episodes 2 --eval-every 120 --target-returns -100"
TIMES = ("fps", "time_elapsed", "share", "per_second", "seconds", "utilization")
"""How scalars end that no two runs have in common."""
SAVES = 20


def short_pendulum():
    """Six episodes of twenty random actions, whose environment an evaluation can make."""
    env, random = gymnasium.make("Pendulum-v1", max_episode_steps=20), np.random.default_rng(0)
    episodes = []
    for seed in range(6):
        observations, rewards = [env.reset(seed=seed)[0]], []
        actions = random.uniform(-2, 2, (20, 1)).astype(np.float32)
        for action in actions:
            observation, reward, *_ = env.step(action)
            observations.append(observation)
            rewards.append(reward)
        ends = np.arange(20) == 19
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        episodes.append(dict(zip(names, (observations, actions, rewards, np.zeros_like(ends), ends), strict=True)))
    origin = Origin("pendulum", env.spec.to_json())
    return Trajectories.from_episodes(episodes, env.observation_space, env.action_space, origin=origin)


def run_program(folder, what):
    result = subprocess.run(
        [sys.executable, __file__, str(folder), what],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_at_two_random_moments_a_run_ends_as_if_it_had_not_been(tmp_path):
    """Three kinds of policy in two precisions: weights, optimiser, and every loss and return that was logged, bit for bit."""
    write_minari(short_pendulum(), DATASET)
    told = run_program(tmp_path, "runs")
    assert set(told) == set(CASES)
    for name, case in told.items():
        assert case["ends"] == [-signal.SIGKILL, -signal.SIGKILL, 0], name
        assert case["killed"] == case["straight"], name
        events = EventAccumulator(str(tmp_path / name / "killed")).Reload()  # by default it keeps 10,000 scalars a tag
        assert [event.step for event in events.Scalars("train/loss")] == list(range(1, UPDATES + 1)), name
        logged = [json.loads(line) for line in case["straight"]["logged"]]
        assert [line["update"] for line in logged if "train/loss" in line] == list(range(1, UPDATES + 1))
        assert sum("eval/mean_reward" in line for line in logged) == 2 * (name == EVALUATED)
    ends = [json.dumps(case["straight"]) for case in told.values()]
    assert len(set(ends)) == len(CASES)


@pytest.mark.slow
def test_killed_twenty_times_in_a_save_no_checkpoint_is_unreadable(tmp_path):
    told = run_program(tmp_path, "saves")
    assert told["in_a_save"] == SAVES
    assert told["unreadable"] == []
    assert told["lost"] == []
    assert told["left"] == []


def start(arguments):
    """The process id of a copy of this program that does what `dtrl` does with these arguments."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        warnings.simplefilter("ignore")  # that this processor is slow in bf16
        code = dtrl_main(arguments)
    finally:
        os._exit(code)


def end_of(process, kill=False):
    """How it ends: its exit code, or −9 where it was killed."""
    if kill:
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "what was to be killed does not go on"
        time.sleep(0.001)


def updates_of(run):
    """How many updates it has logged."""
    progress = run / "progress.jsonl"
    return progress.read_bytes().count(b"\n") if progress.exists() else 0


def fingerprint_of(run):
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    bits = [
        {k: v.hex() if isinstance(v, float) else v for k, v in line.items() if not k.endswith(TIMES)} for line in lines
    ]
    return {
        "parameters": result["parameters_sha256"],
        "optimizer": sha256(newest_checkpoint(run) / "optimizer.safetensors"),
        "logged": [json.dumps(line, sort_keys=True) for line in bits],
    }


def kill_runs(folder):
    for module in ("torch._dynamo", "matplotlib.figure", "scipy.stats"):
        importlib.import_module(module)  # here, and not in every process
    random, told = np.random.default_rng(0), {}
    for name, flags in CASES.items():
        straight, killed = folder / name / "straight", folder / name / "killed"
        command = ["train", DATASET, "--resume", *flags.split(), "--logdir"]
        assert end_of(start([*command, str(straight)])) == 0
        ends = []
        for mark in sorted(random.choice(np.arange(1, UPDATES - 20), 2, replace=False)):
            process = start([*command, str(killed)])
            wait_until(lambda mark=mark, killed=killed: updates_of(killed) >= mark)
            time.sleep(random.uniform(0, 0.01))
            ends.append(end_of(process, kill=True))
        ends.append(end_of(start([*command, str(killed)])))
        told[name] = {"ends": ends, "straight": fingerprint_of(straight), "killed": fingerprint_of(killed)}
    return told


def kill_saves(folder, saves=SAVES):
    """Until so many kills have come between the beginning of a checkpoint and its name."""
    run, random = folder / "run", np.random.default_rng(0)
    told = {"in_a_save": 0, "kills": 0, "unreadable": [], "lost": []}
    trainer = Trainer(
        short_pendulum(), ModelConfig(width=128, layers=2), TrainingConfig(device="cpu"), run, resume=False
    )
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()  # so that there are moments to be saved
    while told["in_a_save"] < saves and told["kills"] < 10 * saves:
        before = newest_update(run)
        process = os.fork() or save_again_and_again(trainer, run, before)
        wait_until(lambda before=before: newest_update(run) > before)
        time.sleep(random.uniform(0, 0.1))
        end_of(process, kill=True)
        told["kills"] += 1
        told["in_a_save"] += bool(list((run / "checkpoints").glob(".writing-*")))
        if newest_update(run) <= before:
            told["lost"].append(before)
        for checkpoint in checkpoints(run):
            try:
                verify(checkpoint)
                Policy.load(checkpoint / POLICY_FILE)
            except Exception as error:
                told["unreadable"].append(f"{checkpoint.name}: {error!r}")
    check_logdir(run, resume=True)
    return {**told, "left": [path.name for path in (run / "checkpoints").iterdir() if path.name[0] == "."]}


def newest_update(run):
    return int(newest_checkpoint(run).name[-8:]) if checkpoints(run) else 0


def save_again_and_again(trainer, run, update):
    """What a process does until it is killed: begin as a resumed run does, and write checkpoints of one update after the other."""
    try:
        check_logdir(run, resume=True)
        while True:
            update += 1
            trainer.policy.updates = update
            trainer.save()
    finally:
        os._exit(1)


if __name__ == "__main__":
    how_many = [int(number) for number in sys.argv[3:]]
    print(json.dumps({"runs": kill_runs, "saves": kill_saves}[sys.argv[2]](Path(sys.argv[1]), *how_many)))
