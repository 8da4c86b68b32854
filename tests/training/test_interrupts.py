"""SIGUSR1 while a run trains: a checkpoint is written after the update that is running, and the run goes on as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest

import dtrl
from dtrl.acting.runs import checkpoints, newest_checkpoint, sha256, update_of
from dtrl.collect import write_minari
from dtrl.processes import outlive_save_signal, sheltered_from_save_signal
from dtrl.training import trainer as trainer_module
from dtrl.training.interrupts import Interrupts
from dtrl.trajectories.columns import Origin

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
UPDATES = 10
SMALL = {"batch_size": 4, "context_length": 4, "width": 16, "layers": 2, "warmup_updates": 0, "log_every": 1}
FLAGS = (
    "--updates 10 --batch-size 4 --context-length 4 --width 8 --layers 1 --log-every 1 --checkpoint-every 1000 --keep-checkpoints 99 --device cpu "
    "--eval-episodes 2 --target-returns -100 --env-workers 1"
)


@pytest.fixture
def train(random_trajectories):
    def run(logdir, **options):
        settings = {"updates": UPDATES, "checkpoint_every": 4, "keep_checkpoints": 9, **SMALL, **options}
        return dtrl.train(random_trajectories((9, 4, 6, 7)), logdir=logdir, **settings)

    return run


def strike(number=None):
    os.kill(os.getpid(), number or signal.SIGUSR1)


def strike_at(*updates):
    """A callback that sends SIGUSR1 to its process, three times."""

    def callback(event):
        if event.kind == "update" and event.update in updates:
            for _ in range(3):
                strike()

    return callback


def updates_kept(logdir):
    return [update_of(folder) for folder in checkpoints(logdir)]


def fingerprint_of(logdir):
    result = json.loads((logdir / "result.json").read_text())
    lines = [json.loads(line) for line in (logdir / "progress.jsonl").read_text().splitlines()]
    told = [line[name].hex() for line in lines for name in ("train/loss", "eval/mean_reward") if name in line]
    return result["parameters_sha256"], sha256(newest_checkpoint(logdir) / "optimizer.safetensors"), told


def strike_group(process):
    """Send SIGUSR1 to its whole group, a hundred times a second, from the moment at which the process handles it until it ends."""
    caught = 1 << signal.SIGUSR1 - 1
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if any(int(line.split()[1], 16) & caught for line in status.splitlines() if line[:7] in ("SigCgt:", "SigIgn:")):
            os.killpg(process.pid, signal.SIGUSR1)
        time.sleep(0.01)


def test_each_asks_for_a_checkpoint_that_goes_on_exactly(train, tmp_path):
    """Dropout is on. One comes where a checkpoint is due anyway."""
    before = signal.getsignal(signal.SIGUSR1)
    train(tmp_path / "straight")
    train(tmp_path / "asked", callbacks=[strike_at(2, 3, 8, 9)])
    assert signal.getsignal(signal.SIGUSR1) is before
    assert updates_kept(tmp_path / "straight") == [4, 8, 10]
    assert updates_kept(tmp_path / "asked") == [2, 3, 4, 8, 9, 10]
    assert fingerprint_of(tmp_path / "asked") == fingerprint_of(tmp_path / "straight")
    killed = tmp_path / "asked"
    (killed / "result.json").unlink()
    for folder in checkpoints(killed)[2:]:
        shutil.rmtree(folder)
    train(killed, resume=True)
    assert updates_kept(killed) == [2, 3, 4, 8, 10]
    assert fingerprint_of(killed) == fingerprint_of(tmp_path / "straight")


def test_one_that_comes_while_a_checkpoint_is_written_is_not_lost(train, tmp_path, monkeypatch):
    save = trainer_module.save_checkpoint

    def save_and_strike(run, policy, *rest):
        if policy.updates == 4:
            strike()
        return save(run, policy, *rest)

    monkeypatch.setattr(trainer_module, "save_checkpoint", save_and_strike)
    train(tmp_path)
    assert updates_kept(tmp_path) == [4, 5, 8, 10]


def test_before_the_first_update_it_saves_after_it_and_after_the_last_one_does_nothing(train, tmp_path):
    train(tmp_path, callbacks=[lambda event: strike() if event.kind != "update" else None])
    assert updates_kept(tmp_path) == [1, 4, 8, 10]


def test_without_a_folder_there_is_nothing_to_save(train):
    assert train(None, callbacks=[strike_at(2)]).updates == UPDATES


def test_it_comes_before_a_signal_to_stop_and_does_not_hide_it(train, tmp_path):
    def both(event):
        if event.kind == "update" and event.update == 3:
            strike()
            strike(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="interrupted after update 3"):
        train(tmp_path, callbacks=[both])
    assert updates_kept(tmp_path) == [3]


def test_a_handler_that_was_there_is_called_too_and_comes_back():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        mine = signal.getsignal(signal.SIGUSR1)
        outlive_save_signal()
        with Interrupts() as interrupts:
            strike()
            assert [interrupts.asked_to_save(), interrupts.asked_to_save()] == [True, False]
            strike()
            assert interrupts.asked_to_save()
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert seen == 2 * [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_process_that_is_being_started_outlives_it():
    """Though it does not handle it."""
    command = [sys.executable, "-c", "import time; time.sleep(0.2)"]
    with sheltered_from_save_signal():
        sheltered = subprocess.Popen(command)
    others = subprocess.Popen(command)
    for process in (sheltered, others):
        os.kill(process.pid, signal.SIGUSR1)
    assert [process.wait(timeout=20) for process in (sheltered, others)] == [0, -signal.SIGUSR1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads in /proc when the signal may come")
def test_many_to_the_whole_process_group_end_no_process_of_it(random_trajectories, tmp_path):
    """While the program loads, trains, starts a worker, and evaluates in it: from the moment at which it handles the signal until it ends."""
    spec = gymnasium.make("Pendulum-v1", max_episode_steps=20).spec
    env = gymnasium.make(spec)
    data = random_trajectories(
        (9, 4, 6, 7), env.observation_space, env.action_space, origin=Origin("pendulum", spec.to_json())
    )
    write_minari(data, "pendulum/short-v0")
    command = [sys.executable, "-m", "dtrl", "train", "pendulum/short-v0", *FLAGS.split(), "--logdir", str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    strike_group(process)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    assert "resource_tracker" not in errors  # which is told of where it has died
    assert len(updates_kept(tmp_path)) > 2
    logged = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["update"] for line in logged if "train/loss" in line] == list(range(1, UPDATES + 1))
    assert sum("eval/mean_reward" in line for line in logged) == 1
