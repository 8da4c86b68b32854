"""A run that was killed, interrupted, or has lost a file goes on exactly, or says why it can't.

Run as a program, this file is the run that its tests kill: `python test_checkpoint.py LOGDIR OPTIONS` (JSON)."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as save_tensors

import dtrl
from dtrl.acting.artefact import load_artefact, parameters_sha256, save_artefact
from dtrl.acting.runs import MANIFEST, POLICY_FILE, checkpoints, newest_checkpoint, sha256, verify, write_manifest
from dtrl.errors import InputError
from dtrl.files import held
from dtrl.training import checkpoint
from dtrl.training.logging import logged, newest_scalars
from dtrl.training.trainer import Interrupted
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin

UPDATES, EVERY = 10, 3
"""Updates of a run, and between its checkpoints."""
SMALL = {
    "batch_size": 4,
    "context_length": 4,
    "width": 16,
    "layers": 2,
    "warmup_updates": 0,
    "log_every": 1,
    "checkpoint_every": EVERY,
}
FILES = ("manifest.json", "optimizer.safetensors", "policy.safetensors", "training.json")


def make_data(seed=0):
    random = np.random.default_rng(seed)
    episodes = [
        {
            "observations": random.normal(size=(length + 1, 3)),
            "actions": random.uniform(-1, 1, (length, 2)),
            "rewards": random.normal(size=length),
            "terminations": np.arange(length) == length - 1,
            "truncations": np.zeros(length, dtype=bool),
        }
        for length in (9, 4, 6, 7)
    ]
    return Trajectories.from_episodes(
        episodes, spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,)), origin=Origin("test/random-v0")
    )


def train(logdir, data=None, **options):
    return dtrl.train(data or make_data(), logdir=logdir, **{"updates": UPDATES, **SMALL, **options})


def fail_at(update):
    """A callback that raises at an update: for what is on the disk, the same as a kill before that update's checkpoint."""

    def callback(event):
        if event.kind == "update" and event.update == update:
            raise ZeroDivisionError

    return callback


def losses_of(logdir):
    """Update → loss, bit for bit; each update stands once in the file."""
    lines = [json.loads(line) for line in (logdir / "progress.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["train/loss"].hex() for line in lines]


def fingerprint_of(logdir):
    """Parameters, optimiser state and losses of a finished run."""
    result = json.loads((logdir / "result.json").read_text())
    return (
        result["parameters_sha256"],
        sha256(newest_checkpoint(logdir) / "optimizer.safetensors"),
        losses_of(logdir),
        result["final_loss"],
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run directory of a run that nothing has disturbed. Treat it as read-only."""
    logdir = tmp_path_factory.mktemp("straight")
    train(logdir, keep_checkpoints=9)
    return logdir


@pytest.fixture
def finished(straight, tmp_path):
    """Makes a copy of it, to be damaged: as it was when it had ended, or when it was killed after the checkpoint of an update."""

    def copy(update=UPDATES):
        logdir = tmp_path / "finished"
        shutil.copytree(straight, logdir)
        if update < UPDATES:
            (logdir / "result.json").unlink()
        for folder in checkpoints(logdir):
            if int(folder.name.removeprefix("update-")) > update:
                shutil.rmtree(folder)
        return logdir

    return copy


@pytest.mark.slow
def test_a_run_that_stops_anywhere_goes_on_exactly(straight, tmp_path):
    """At every update, with dropout on: before the first checkpoint, right before one, and after the last."""
    for update in range(1, UPDATES + 1):
        logdir = tmp_path / str(update)
        with pytest.raises(ZeroDivisionError):
            train(logdir, callbacks=[fail_at(update)])
        assert [int(path.name[-8:]) for path in checkpoints(logdir)] == list(range(EVERY, update, EVERY))[-2:]
        train(logdir, resume=True)
        assert fingerprint_of(logdir) == fingerprint_of(straight)


@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_first(tmp_path):
    """Whenever it comes; and what was written goes on exactly."""
    logdirs = {number: tmp_path / number.name for number in (signal.SIGTERM, signal.SIGINT)}
    processes = {
        number: start_program(logdir, updates=1_000_000, checkpoint_every=1_000_000)
        for number, logdir in logdirs.items()
    }
    for number, logdir in logdirs.items():
        deadline = time.monotonic() + 60
        progress = (
            logdir / "progress.jsonl"
        )  # empty until the first update is over, and with it the handlers' installation
        while not (progress.exists() and progress.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes[number].send_signal(number)
        output, _ = processes[number].communicate(timeout=30)
        folder = newest_checkpoint(logdir)
        verify(folder)
        update = int(folder.name[-8:])
        where = f"the checkpoint is in {logdir}, and --resume goes on from it."
        assert json.loads(output) == [number, f"interrupted after update {update}; {where}"]
        assert not (logdir / "result.json").exists()
        train(logdir, resume=True, updates=update + 2)
        train(tmp_path / "straight" / number.name, updates=update + 2)
        assert fingerprint_of(logdir) == fingerprint_of(tmp_path / "straight" / number.name)


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    """Control-C raises where the program is; SIGTERM, which has its default action again, ends it without a word."""

    def interrupt_twice(event):
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on after the second")

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, callbacks=[interrupt_twice])
    assert not isinstance(caught.value, Interrupted)
    assert not checkpoints(tmp_path)

    def terminate_once(event):
        if event.update == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    with pytest.raises(Interrupted) as caught:
        train(tmp_path, callbacks=[terminate_once])
    assert caught.value.number == signal.SIGTERM
    assert [path.name for path in checkpoints(tmp_path)] == ["update-00000001"]


def test_a_signal_during_the_last_callback_is_not_lost(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    callbacks = [lambda event: os.kill(os.getpid(), signal.SIGINT) if event.kind == "end" else None]
    with pytest.raises(Interrupted, match=f"interrupted after update {UPDATES}"):
        train(tmp_path, callbacks=callbacks)
    assert (tmp_path / "result.json").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_training_works_outside_the_main_thread(straight, tmp_path):
    thread = threading.Thread(target=train, args=(tmp_path,))
    thread.start()
    thread.join()
    assert fingerprint_of(tmp_path) == fingerprint_of(straight)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "altered": flip_a_bit,
    "cut short": cut_in_half,
    "emptied": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_checkpoint_is_noticed_and_named(finished, damage, name):
    logdir = finished()
    path = newest_checkpoint(logdir) / name
    assert sorted(f.name for f in path.parent.iterdir()) == sorted(FILES)
    DAMAGES[damage](path)
    says = rf"^{path}[^\n]*delete that folder to go back to the checkpoint before it, or train again\.$"
    for ask in (lambda: verify(path.parent), lambda: dtrl.load_policy(logdir)):
        with pytest.raises(InputError, match=says):
            ask()
    if damage != "missing" or name != "manifest.json":  # a folder without a manifest is no checkpoint's
        with pytest.raises(InputError, match=says):
            dtrl.load_policy(path.parent)


def resealed(logdir, name, content):
    """The newest checkpoint with other content of a file, and a manifest that fits: what only someone who means it would do."""
    folder = newest_checkpoint(logdir)
    (folder / name).write_bytes(content)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    return logdir


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 5000, b"{}", b'{"training": 3}', b'{"training": {}, "online": []}', b"\xff"]
)
def test_settings_that_no_run_writes_are_refused(finished, content):
    with pytest.raises(InputError, match=r"training\.json is not what a run writes"):
        train(resealed(finished(), "training.json", content), resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"x": torch.zeros(1)},
        lambda t: {"999.step": torch.zeros(())},
        lambda t: {name: v[..., :1].contiguous() if v.dim() else v for name, v in t.items()},
        lambda t: {name: v for name, v in t.items() if name != "0.exp_avg"},
        lambda t: {name.replace("0.", "-1."): v for name, v in t.items()},
    ],
)
def test_the_state_of_another_optimiser_is_refused(finished, change):
    logdir = finished()
    path = newest_checkpoint(logdir) / "optimizer.safetensors"
    content = save_tensors(change(load_tensors(path)))
    with pytest.raises(InputError, match=r"optimizer\.safetensors is not of this run's optimiser"):
        train(resealed(logdir, path.name, content), resume=True)


@pytest.mark.parametrize("text", ["[" * 5000 + "\n", "3\n", '{"train/loss": "x"}\n', "{\n"])
def test_lines_of_progress_that_no_run_writes_are_passed_over(finished, text):
    logdir = finished()
    with open(logdir / "progress.jsonl", "a") as stream:
        stream.write(text)
    assert newest_scalars(logdir)["update"] == UPDATES
    train(logdir, resume=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.startswith("policy") else pytest.mark.slow) for name in FILES]
)
def test_resume_passes_over_a_damaged_checkpoint_with_a_warning(straight, finished, name):
    logdir = finished(3 * EVERY)
    path = newest_checkpoint(logdir) / name
    flip_a_bit(path)
    with pytest.warns(UserWarning, match=f"passed over: {path}"):
        train(logdir, resume=True)
    assert fingerprint_of(logdir) == fingerprint_of(straight)


def test_a_damaged_checkpoint_does_not_outlive_the_good_ones(finished):
    """With one checkpoint to keep, the newest by number is the damaged one until training has passed it."""
    logdir = finished(3 * EVERY)
    flip_a_bit(newest_checkpoint(logdir) / "policy.safetensors")
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(ZeroDivisionError):
        train(logdir, resume=True, keep_checkpoints=1, checkpoint_every=1, callbacks=[fail_at(2 * EVERY + 2)])
    assert [path.name for path in checkpoints(logdir)] == [f"update-{2 * EVERY + 1:08d}"]
    verify(newest_checkpoint(logdir))


def test_resume_without_any_good_checkpoint_is_refused(finished):
    logdir = finished()
    for folder in checkpoints(logdir):
        cut_in_half(folder / "policy.safetensors")
    newest = newest_checkpoint(logdir)
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(InputError, match=rf"{newest / 'policy.safetensors'} does not match"),
    ):
        train(logdir, resume=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 8}, "batch_size 4 → 8"),
        ({"seed": 1}, "seed 0 → 1"),
        ({"learning_rate": 1e-2, "weight_decay": 0.0}, "learning_rate 0.003 → 0.01; weight_decay 0.0001 → 0.0"),
        ({"precision": "bf16"}, "precision fp32 → bf16"),
        ({"width": 32}, "width 16 → 32"),
        (
            {"dropout": 0.2, "trunk": "modern"},
            "trunk gpt2 → modern; dropout 0.1 → 0.2; timestep_embedding True → False",
        ),
        ({"preset": "bc"}, "preset dt → bc"),
    ],
)
def test_resume_with_other_settings_is_refused_and_names_them(finished, options, says):
    with pytest.raises(
        InputError, match=rf"was begun with (other settings|another model) \({says}\); resume it with its own"
    ):
        train(finished(2 * EVERY), resume=True, **options)


@pytest.mark.parametrize("options", [{"log_every": 4}, {"checkpoint_every": 5}, {"keep_checkpoints": 1}])
def test_settings_that_change_no_number_may_change_at_a_resume(straight, finished, options):
    logdir = finished(2 * EVERY)
    train(logdir, resume=True, **options)
    assert json.loads((logdir / "result.json").read_text())["parameters_sha256"] == fingerprint_of(straight)[0]


def test_resume_on_other_data_is_refused(finished):
    other = make_data()
    other = dataclasses.replace(other, origin=Origin("test/other-v0", fingerprint="f" * 64))
    with pytest.raises(InputError, match=r"was trained on test/random-v0 .* these data are others"):
        train(finished(2 * EVERY), data=other, resume=True)


def test_a_resume_with_more_updates_is_the_longer_run(straight, tmp_path):
    train(tmp_path, updates=2 * EVERY + 1)
    train(tmp_path, resume=True)
    assert fingerprint_of(tmp_path) == fingerprint_of(straight)


def test_a_resume_of_a_finished_run_changes_nothing(straight, finished):
    logdir = finished()
    train(logdir, resume=True, keep_checkpoints=9)
    assert fingerprint_of(logdir) == fingerprint_of(straight)
    assert (logdir / "result.json").read_bytes() == (straight / "result.json").read_bytes()
    assert [path.name for path in checkpoints(logdir)] == [path.name for path in checkpoints(straight)]


def test_a_run_that_lost_only_its_result_gets_it_back(straight, finished):
    logdir = finished()
    (logdir / "result.json").unlink()
    train(logdir, resume=True)
    assert fingerprint_of(logdir) == fingerprint_of(straight)


def test_resume_in_a_new_directory_begins_a_run(straight, tmp_path):
    train(tmp_path / "new", resume=True)
    assert fingerprint_of(tmp_path / "new") == fingerprint_of(straight)


def test_a_folder_in_which_another_process_trains_is_refused(straight, tmp_path):
    with held(tmp_path, "taken"):
        for resume in (False, True):
            with pytest.raises(InputError, match=f"another process is training in {tmp_path}; wait until"):
                train(tmp_path, resume=resume)
        assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="preset 'none' is unknown"):  # which lets go of it, too
        train(tmp_path / "new", preset="none")
    assert not (tmp_path / "new").exists()
    train(tmp_path)
    assert fingerprint_of(tmp_path) == fingerprint_of(straight)


def test_another_number_of_threads_is_warned_of(finished, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.warns(UserWarning, match=r"the run had \d+ threads and has 7 now"):
        train(finished(2 * EVERY), resume=True)


def test_another_torch_is_warned_of(finished, monkeypatch):
    logdir, now = finished(9), torch.__version__
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.warns(UserWarning, match=f"the run had torch {re.escape(now)} and has 2.99.0 now: it goes on"):
        train(logdir, resume=True)


@pytest.mark.parametrize("keep", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    train(tmp_path, keep_checkpoints=keep)
    assert [int(path.name[-8:]) for path in checkpoints(tmp_path)] == [3, 6, 9, 10][-keep:]
    for folder in checkpoints(tmp_path):
        assert dtrl.load_policy(folder).updates == int(folder.name[-8:])


def test_the_last_update_always_has_a_checkpoint(tmp_path):
    policy = train(tmp_path, checkpoint_every=1_000, updates=2)
    assert parameters_sha256(dtrl.load_policy(tmp_path).model) == parameters_sha256(policy.model)


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so(tmp_path):
    """The disk is full from the update after the first checkpoint on."""
    ran = run_program(tmp_path, fill_disk_at=EVERY + 1)
    assert ran.returncode == 2
    *warnings, message = ran.stderr.splitlines()
    assert message.startswith(f"{tmp_path / 'checkpoints'}")
    assert "cannot be written (File too large); free some space" in message
    assert any("training goes on, and log entries are lost" in line for line in warnings)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000003"]
    verify(newest_checkpoint(tmp_path))
    assert not (tmp_path / "result.json").exists()


def start_program(logdir, **options):
    return subprocess.Popen(
        [sys.executable, __file__, str(logdir), json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_program(logdir, **options):
    process = start_program(logdir, **options)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def main(logdir, fill_disk_at=0, **options):
    """The run that the tests above disturb."""

    def callback(event):
        if event.kind == "update" and event.update == fill_disk_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # bytes; Python ignores SIGXFSZ

    try:
        train(Path(logdir), callbacks=[callback], **options)
    except Interrupted as error:
        print(json.dumps([error.number, str(error)]))
    except InputError as error:
        sys.exit(print(error, file=sys.stderr) or 2)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))


def test_a_finished_run_that_is_resumed_logs_nothing_more(tmp_path):
    seen = []

    def evaluate(event):
        seen.append((event.kind, event.logger is None))
        if event.kind == "end" and event.logger is not None:
            event.logger.scalars({"eval/mean_reward": 1.0}, event.update)

    def go(updates):
        dtrl.train(make_data(), updates=updates, logdir=tmp_path, resume=True, callbacks=[evaluate], **SMALL)
        return sorted((p.name, p.stat().st_size) for p in tmp_path.iterdir()), (tmp_path / "progress.jsonl").read_text()

    before = go(4)
    assert before[1].count("eval/mean_reward") == 1
    seen.clear()
    assert go(4) == before
    assert seen == [("start", True), ("end", True)]
    assert go(5)[1].count("eval/mean_reward") == 2
    (tmp_path / "result.json").unlink()  # killed after its last checkpoint: its end is still to be told
    seen.clear()
    assert go(5)[0] != before[0]
    assert ("end", False) in seen
    assert (tmp_path / "result.json").exists()
    assert (tmp_path / "progress.jsonl").read_text().count("eval/mean_reward") == 2  # each of the two ends told once
    assert set(logged(tmp_path, "train/loss")) == {1, 2, 3, 4, 5}


def test_a_run_of_a_version_that_had_the_option_expectile_goes_on(straight, finished):
    logdir = finished(2 * EVERY)
    folder = newest_checkpoint(logdir)
    tensors, document = load_artefact(folder / POLICY_FILE)
    del document["format"]
    document["model"]["expectile"] = None
    save_artefact(folder / POLICY_FILE, tensors, document)
    (folder / MANIFEST).unlink()
    write_manifest(folder)
    train(logdir, resume=True)
    assert fingerprint_of(logdir) == fingerprint_of(straight)


def test_a_resume_verifies_its_checkpoint_once_and_reads_the_policy_once(tmp_path, monkeypatch):
    from dtrl.acting import artefact, runs, saving

    dtrl.train(make_data(), updates=4, logdir=tmp_path, **SMALL)
    calls = []
    monkeypatch.setattr(checkpoint, "verify", lambda folder: calls.append("verify") or runs.verify(folder))
    monkeypatch.setattr(saving, "load_artefact", lambda path: calls.append("read") or artefact.load_artefact(path))
    assert dtrl.train(make_data(), updates=5, logdir=tmp_path, resume=True, **SMALL).updates == 5
    assert calls == ["verify", "read"]
