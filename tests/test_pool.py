"""Processes that share tasks: one that dies takes its task with it, and nothing else."""

import os
import signal
from functools import partial

import pytest

from dtrl.errors import InputError
from dtrl.pool import THREADS, one_thread, run_tasks


def test_a_task_that_fails_and_a_process_that_dies_leave_the_others_alone(tmp_path):
    tasks = {
        "killed": partial(signal.raise_signal, getattr(signal, "SIGKILL", signal.SIGTERM)),
        "wrong": partial(int, "x"),
        "left": partial(os._exit, 3),
        "fine": partial(os.mkdir, tmp_path / "made"),
    }
    done = {d.name: d for d in run_tasks(tasks, jobs=2)}
    assert done.keys() == tasks.keys()
    assert "its process died" in done["killed"].error
    assert done["left"].error == "its process died (exit code 3)"
    assert done["wrong"].error == "ValueError: invalid literal for int() with base 10: 'x'"
    assert "Traceback" in done["wrong"].trace
    assert done["fine"].error is None
    assert (tmp_path / "made").is_dir()


WAITING = """
import pathlib, time
try:
    pathlib.Path("begun").touch()
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("ended").touch()
    raise
"""
OTHER = """
import pathlib, time
while not pathlib.Path("begun").exists():
    time.sleep(0.01)
"""


def test_a_process_that_is_stopped_ends_its_task_by_an_exception(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running = run_tasks({"waiting": partial(exec, WAITING, {}), "other": partial(exec, OTHER, {})}, jobs=2)
    assert next(running).name == "other"
    running.close()
    assert (tmp_path / "ended").exists()


def test_there_is_at_least_one_job():
    with pytest.raises(InputError, match="jobs 0 must be 1 or more"):
        list(run_tasks({}, jobs=0))


def test_threads_are_one_for_the_block_alone(monkeypatch):
    monkeypatch.setenv(THREADS[0], "7")
    monkeypatch.delenv(THREADS[1], raising=False)
    with one_thread():
        assert [os.environ[name] for name in THREADS] == ["1"] * len(THREADS)
    assert os.environ[THREADS[0]] == "7"
    assert THREADS[1] not in os.environ
