"""Processes that train one model together: what they share out, add up and agree on. B windows of an update, N workers.

Each process, a *worker*, holds the whole model and draws the same B windows of an update, of which it computes B / N. The gradients are added by torch's
DistributedDataParallel [Li et al. 2020, arXiv:2006.15704], the sums of the loss beside them, so that an update is that of one process, up to the rounding
of sums in another order. Worker 0 alone writes, evaluates and is called back.

torchrun starts the workers, and starts all of them again when one dies (`--max-restarts`); here they only find each other, by the variables that it sets."""

import atexit
import contextlib
import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from dtrl.config import TrainingConfig
from dtrl.errors import InputError, WorkerLostError
from dtrl.processes import worker_numbers
from dtrl.training.optimization import choose_device

PATIENCE = timedelta(days=7)
"""How long a worker waits for another one: as long as worker 0 may evaluate. One that has died is noticed at once, by its connection or by torchrun."""
POLL_SECONDS = 0.05
REST_SECONDS = 0.1
"""How long a process lets the threads of its group run before it ends. They need microseconds, once they are given a processor."""
Rows = TypeVar("Rows", bound=npt.NDArray[Any])


class Group:
    """The workers of a training, as one of them sees them; by default it is alone, and every method is then a formality."""

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device, self.rank, self.size = device, rank, size
        """Where this worker computes; its number, from 0; the number of workers, N."""

    @property
    def first(self) -> bool:
        """Whether this is the worker that writes, evaluates and is called back."""
        return self.rank == 0

    def check(self, config: TrainingConfig) -> None:
        """Raise InputError for training settings that do not go with several workers, or not with so many."""
        if self.size == 1:
            if config.fsdp:
                warnings.warn(
                    "fsdp shares out a model among processes, and this training has one: it goes on, and holds all of it",
                    stacklevel=2,
                )
            return
        pieces = self.size * config.gradient_accumulation
        if config.batch_size % pieces:
            raise InputError(
                f"batch_size {config.batch_size} is not a multiple of {pieces} ({self.size} processes × gradient_accumulation "
                f"{config.gradient_accumulation}); choose one that is."
            )
        if config.cuda_graph:
            raise InputError(
                f"cuda_graph is of one process, and this training has {self.size}; leave it out, or start one process."
            )
        for name in ("compile", "scheduled_sampling"):
            if config.fsdp and getattr(config, name):
                raise InputError(
                    f"{name} does not go with fsdp, which puts the model together piece by piece, and for its loss alone; leave out one of the two."
                )

    def check_alike(self, settings: dict[str, Any]) -> None:
        """Raise InputError, in every worker, where one was given other data or settings than worker 0."""
        if self.size == 1:
            return
        mine = json.loads(json.dumps(settings))
        firsts = self.from_first(lambda: mine)
        others = [f"{name} {firsts.get(name)} → {value}" for name, value in mine.items() if firsts.get(name) != value]
        if self.largest(len(others))[0]:
            what = f"process {self.rank} ({'; '.join(others)})" if others else "another process"
            raise InputError(
                f"{what} was started with other data or settings than process 0; start all of them by the same command."
            )

    def share(self, rows: Rows) -> Rows:
        """(B / N, …) this worker's part of (B, …)."""
        part = len(rows) // self.size
        return rows[self.rank * part : (self.rank + 1) * part]  # type: ignore[return-value]

    def reducing(self, model: nn.Module, loss: Callable[..., Any]) -> Callable[..., Any]:
        """The `loss` of a model, after whose backward pass every worker has the mean of the gradients of all.

        The workers begin with the parameters and buffers of worker 0."""
        if self.size == 1:
            return loss
        for buffer in model.buffers():  # fitted to the same data, and not to the same bits on another kind of processor
            dist.broadcast(buffer, src=0)
        return DistributedDataParallel(Called(model, loss), gradient_as_bucket_view=True)

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all workers, of the same shape: the same bits in each."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number over all workers. Whoever is late is waited for."""
        if self.size == 1:
            return list(numbers)
        together = torch.tensor(numbers, device=self.device)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return [int(number) for number in together.tolist()]

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What worker 0 gets by `work`, which it alone does, in every worker; JSON has to be able to hold it. An InputError of its is raised in all."""
        if self.size == 1:
            return work()
        text = b""
        if self.first:
            try:
                answer = {"value": work()}
            except InputError as error:
                answer = {"error": str(error)}
            text = json.dumps(answer).encode()
        length = self.largest(len(text))[0]
        letters = torch.tensor(list(text) or [0] * length, dtype=torch.uint8, device=self.device)
        dist.broadcast(letters, src=0)
        answer = json.loads(bytes(letters.tolist()))
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["value"]


class Called(nn.Module):
    """A model's parameters, and its loss as the forward pass: DistributedDataParallel takes part in what is called through it alone.

    It knows no buffers: those that stay as they are need not be sent at every update."""

    def __init__(self, model: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.trained, self.loss = nn.ParameterList(model.parameters()), loss

    def forward(self, *arguments: Any) -> Any:
        return self.loss(*arguments)


@contextlib.contextmanager
def worker_group(device: str) -> Iterator[Group]:
    """The group that this process belongs to, if torchrun (or whoever sets the same variables) has started it with others; else a group of itself.

    A process group that the caller has made is used. One that is made here lasts as long as the process: the next training uses it again. Raises
    InputError for a device that cannot be used by several workers, and WorkerLostError where another worker does not answer any more."""
    rank, size, local_rank, local_size = worker_numbers()
    if size == 1:
        yield Group(choose_device(device))
        return
    chosen = own_device(choose_device(device), local_rank, local_size)
    try:
        if not dist.is_initialized():
            meet()
        yield Group(chosen, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if is_lost(error):
            atexit.unregister(leave)  # it might wait for the dead
            raise WorkerLostError(
                f"process {rank} of {size} lost another one, whose own message says why it ended; the run goes on from its newest checkpoint by --resume."
            ) from error
        raise


def meet() -> None:
    """Make the process group of all workers. Raises InputError where another program has the port at which they are to meet."""
    try:
        store, rank, size = next(rendezvous("env://"))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"port {os.environ['MASTER_PORT']}, at which the processes are to meet, is in use; start all of them with another MASTER_PORT."
            ) from error
        raise
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
        store=PrefixStore(new_name(store, rank, size), store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    atexit.register(rest)
    atexit.register(leave)  # what is registered last comes first


def leave() -> None:
    """End the process group while everything that its threads use is still there."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rest() -> None:
    """Let gloo's threads let go of the last tensors that were added up.

    That takes them Python's lock, and before Python 3.14 one that waits for it while the interpreter ends aborts the process, after all of its work
    (pytorch#179291). The group's end would wait for them; but torch remembers a sharded model's, and so it does not end."""
    time.sleep(REST_SECONDS)


def new_name(store: Store, rank: int, size: int) -> str:
    """A name that the workers of no earlier life had. In each worker the same.

    torchrun keeps its store when it starts them again, and what stands there under the same keys are the addresses of the dead (pytorch#135712). The first
    worker makes the name up and waits for the others' answers to it; they answer to whatever name they find, until one was completed with their answer."""
    own = secrets.token_hex(8)
    if rank == 0:
        store.set("dtrl/first", own)
        answers = [store.get(f"dtrl/{own}/{other}").decode() for other in range(1, size)]
        store.set(f"dtrl/{own}/complete", " ".join(answers))
        return own
    while True:
        first = str(store.get("dtrl/first").decode())
        store.set(f"dtrl/{first}/{rank}", own)
        complete = f"dtrl/{first}/complete"
        if store.check([complete]) and own in store.get(complete).decode().split():
            return first
        time.sleep(POLL_SECONDS)


def own_device(device: torch.device, local_rank: int, local_size: int) -> torch.device:
    """The device of a worker: its own GPU, by its number on its machine. Raises InputError where one GPU was named for several workers, and for a device
    on which torch adds up nothing between processes."""
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError(
            f"processes on device {device.type} cannot add up their gradients; use --device cpu, or one process."
        )
    if device.index is not None and local_size > 1:
        raise InputError(
            f"device {device} is one GPU, and {local_size} processes of this machine need one each; give --device cuda."
        )
    chosen = choose_device(f"cuda:{local_rank}") if device.index is None else device
    torch.cuda.set_device(chosen)
    return chosen


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is of the connection to another worker; gloo's have no class of their own, but name its source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
