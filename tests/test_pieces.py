"""Pieces are done the same by any number of processes. What a Ray cluster does stands in test_cluster.py."""

import multiprocessing
import signal
from functools import partial

import pytest

from dtrl.errors import InputError
from dtrl.pieces import hands
from dtrl.registration import registered

LOST = "a process is gone."


@pytest.fixture(autouse=True)
def no_process_is_left_behind():
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_piece_is_done_once_whoever_does_it(jobs):
    with hands(partial(partial, pow, 2), jobs, None, LOST) as some:
        assert some.jobs == jobs
        done = list(some.do(range(10)))
        again = dict(some.do([40]))
    assert len(done) == 10
    assert dict(done) == {number: 2**number for number in range(10)}
    assert again == {0: 2**40}


def test_an_error_is_that_of_a_piece():
    with (
        pytest.raises(InputError, match="environment 'Nowhere-v0' is not registered"),
        hands(partial(registered, "Nowhere-v0"), 1, None, LOST) as some,
    ):
        list(some.do([0]))


def test_a_process_that_is_killed_is_told_of():
    with (
        pytest.raises(InputError, match=LOST),
        hands(partial(partial, signal.raise_signal), 2, None, LOST) as some,
    ):
        list(some.do([getattr(signal, "SIGKILL", signal.SIGTERM)] * 3))


def test_there_is_at_least_one_job():
    with pytest.raises(InputError, match="jobs 0 must be 1 or more"), hands(dict, 0, None, LOST):
        pass
