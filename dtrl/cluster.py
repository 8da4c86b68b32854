"""A Ray cluster, whose machines do pieces of a work. Ray is imported when a cluster is asked for (`pip install 'dtrl[ray]'`).

Ray sends functions and results between its own processes by cloudpickle, so whoever reaches a cluster can run code in it: docs/scale.md says how to keep
it to yourself."""

import logging
import os
import socket
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import islice
from typing import Any

import dtrl
from dtrl.errors import InputError

RETRIES = 3
"""How often Ray begins a piece again whose process or machine has died."""
ANSWER_SECONDS = 5.0
"""In which an address has to answer. Ray itself would try for minutes."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What begins a connection of HTTP/2, over which Ray's processes talk: this, and a frame of settings, of which there are none [RFC 9113, §3.4]."""
SETTINGS = 4
"""Type of the frame with which a server answers."""
INSTALL = f"install it on every machine of the cluster by `pip install 'dtrl[ray]=={dtrl.__version__}'`"

Do = Callable[[Sequence[Any]], Iterator[tuple[int, Any]]]


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray itself, connected for the block; a connection that this process has already is used, and kept.

    Nothing of this machine is sent along: no files, no folder, no variables of the environment. Raises InputError where Ray is not installed, or no
    cluster answers at the address (HOST:PORT, or auto: the one that runs on this machine, or is named by RAY_ADDRESS)."""
    # under `uv run` Ray would otherwise send the working directory to all machines
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise InputError(
            f"the Ray cluster {address!r} needs the package ray, which is not installed; `pip install 'dtrl[ray]'`."
        ) from error
    if ray.is_initialized():
        yield ray
        return
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    if address != "auto":
        check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"the Ray cluster {address!r} cannot be joined ({reason}); start it with `ray start --head`, or let this machine join it with `ray start "
            "--address=HOST:PORT`, with the same token (RAY_AUTH_TOKEN), Python and Ray on all of them."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Raise InputError where an address is none, or no server of Ray's kind answers there."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise InputError(
            f"the address {address!r} of a Ray cluster is not HOST:PORT; give that of its head, such as 10.0.0.1:6379, or auto."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return  # encrypted, of which Ray knows more
            connection.sendall(PREFACE)
            answer = connection.recv(4)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one there with `ray start --head --port={port}`."
        ) from error
    if answer[3:] != bytes([SETTINGS]):
        raise InputError(
            f"what answers at {address} is no Ray cluster; give the port of its head (`ray start --head --port=…`, 6379 where none is given)."
        )


def number_of_tasks(ray: Any, address: str, jobs: int | None) -> int:
    """How many tasks run at once. Raises InputError where no machine of the cluster has a processor for any."""
    processors = int(ray.cluster_resources().get("CPU", 0))
    if processors < 1:
        raise InputError(
            f"the Ray cluster {address!r} has no processors for tasks; let machines join it with `ray start --address=HOST:PORT --num-cpus=N`."
        )
    return min(jobs or processors, processors)


def run_tasks_on(ray: Any, make: Callable[[], Callable[[Any], Any]], count: int, lost: str) -> Do:
    """The function that does pieces as tasks of the cluster, `count` at once; see `dtrl.pieces.Hands`."""
    key, sent = uuid.uuid4().hex, ray.put(make)
    task = ray.remote(task_of(dtrl.__version__)).options(num_cpus=1, max_retries=RETRIES)

    def do(pieces: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        waiting, running = iter(enumerate(pieces)), dict[Any, int]()
        try:
            while True:
                for number, piece in islice(waiting, count - len(running)):
                    running[task.remote(key, [sent], piece)] = number
                if not running:
                    return
                (done,), _ = ray.wait(list(running), num_returns=1)
                number = running.pop(done)
                yield number, result_of(ray, done, lost)
        finally:
            for left in running:
                with suppress(Exception):  # it may have ended by itself
                    ray.cancel(left, force=True)

    return do


def task_of(expected: str) -> Callable[[str, Sequence[Any], Any], tuple[str, Any, str]]:
    """What runs in a task: where dtrl has that version there, a piece.

    Being defined in here it is sent as code and not by its name, so that it can tell where dtrl is missing."""

    def task(key, sent, piece):  # type: ignore[no-untyped-def]
        import socket

        host = socket.gethostname()
        try:
            import dtrl
        except ImportError:
            return "missing", None, host
        if dtrl.__version__ != expected:
            return "version", dtrl.__version__, host
        from dtrl.cluster import do_piece

        return (*do_piece(key, sent, piece), host)

    return task


_works: dict[str, Callable[[Any], Any]] = {}
"""Of a process of the cluster: what does the pieces of the work that it has, by the work's key."""


def do_piece(key: str, sent: Sequence[Any], piece: Any) -> tuple[str, Any]:
    """A piece in a process of the cluster: "done" and its result; else "wrong", or "raised", with the words of the error and its traceback."""
    try:
        if key not in _works:
            _works.clear()
            _works[key] = import_module("ray").get(sent[0])()
        return "done", _works[key](piece)
    except Exception as error:
        kind, text = ("wrong", str(error)) if isinstance(error, InputError) else ("raised", "")
        text = text or f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")
        return kind, (text, traceback.format_exc())


def result_of(ray: Any, task: Any, lost: str) -> Any:
    """What came of a piece. Raises InputError for anything but a result."""
    try:
        kind, value, host = ray.get(task)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{lost} Ray says: {type(error).__name__}: {reason}.") from error
    if kind == "done":
        return value
    if kind == "missing":
        raise InputError(f"dtrl is not installed on {host}, a machine of the Ray cluster; {INSTALL}.")
    if kind == "version":
        raise InputError(
            f"dtrl is {value} on {host}, a machine of the Ray cluster, and {dtrl.__version__} here; {INSTALL}."
        )
    text, trace = value
    said = text if kind == "wrong" else f"a task of Ray on {host} raised {text}; without Ray a debugger can follow it."
    raise InputError(said) from RuntimeError(f"in a task on {host}:\n{trace}")
