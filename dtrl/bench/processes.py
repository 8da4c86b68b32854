"""Updates of the paper's Hopper model by several processes of one thread each, beside one process with as many threads, at the same batch."""

import contextlib
import multiprocessing
import os
import secrets
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from dtrl.bench.timing import compare, document, interleaved, table
from dtrl.bench.training import BATCH_SIZE, CONTEXT_LENGTH, hopper_shaped, make_trainer
from dtrl.processes import follow_parent
from dtrl.training.group import worker_group

__all__ = ["run", "table"]

GOAL = 1.0


def run(repetitions: int = 20, processes: int = 2, updates: int = 5, episodes: int = 200) -> dict[str, Any]:
    """A repetition is `updates` updates. Both sides live through the whole benchmark, and wait, without computing, while it is the other's turn."""
    ours, peer = f"{processes} processes, 1 thread each", f"dtrl, 1 process, {processes} threads"
    sides = {ours: start(processes, 1, episodes), peer: start(1, processes, episodes)}
    try:
        times = interleaved({name: turn(side, updates) for name, side in sides.items()}, repetitions, warm_up=2)
    finally:
        for side in sides.values():
            for connection in side:
                connection.close()
    work = f"training, {updates} updates of {BATCH_SIZE} windows, K = {CONTEXT_LENGTH}, {processes} cores"
    options = {"repetitions": repetitions, "processes": processes, "updates": updates, "episodes": episodes}
    return document("processes", options, [compare(work, times, ours, peer, GOAL)])


def start(processes: int, threads: int, episodes: int) -> list[Connection]:
    """Processes that train together; a number that is sent to each of them is answered when so many updates are made."""
    context, connections = multiprocessing.get_context("spawn"), []
    port = free_port()
    for rank in range(processes):
        ours, theirs = context.Pipe()
        arguments = (theirs, (rank, processes, port), threads, episodes)
        context.Process(target=serve, args=arguments, daemon=True).start()
        theirs.close()
        connections.append(ours)
    for connection in connections:
        connection.recv()
    return connections


def turn(side: list[Connection], updates: int) -> Callable[[], Callable[[], object]]:
    def make_updates() -> None:
        for connection in side:
            connection.send(updates)
        for connection in side:
            connection.recv()

    return lambda: make_updates


def serve(connection: Connection, place: tuple[int, int, int], threads: int, episodes: int) -> None:
    """What each process does until nobody asks it any more. Its place is its number, that of all, and the port at which they meet."""
    follow_parent()
    rank, processes, port = place
    variables = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(threads)
    with worker_group("cpu") as group:
        trainer, done = make_trainer(hopper_shaped(episodes), torch.device("cpu"), group), 0
        connection.send(0)
        while True:
            try:
                wanted = connection.recv()
            except EOFError:
                return
            for _ in range(wanted):
                done += 1
                trainer.update(done)
                trainer.agreed_stop()  # as after every update of a run
            connection.send(done)


def free_port() -> int:
    """A port of this machine at which nobody listens, of those that no system gives to whoever asks for any (these begin at 32,768 or above)."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
