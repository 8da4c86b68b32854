"""One gradient update: forward, backward, clipping, AdamW. Nothing in it reads a number back from the device, so that CUDA can replay it whole."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dtrl.config import TrainingConfig
from dtrl.sequence_model import Loss
from dtrl.training.trained import Trained, local, whole
from dtrl.windows import Batch, ResidentWindows

WARM_UP = 3
"""Updates before the capture: libraries allocate and choose their kernels in the first ones."""


class Update:
    """An update in two halves, between which the ordinary loop looks at the loss. Of several workers, each computes the loss of its share of the windows."""

    def __init__(self, trained: Trained, optimizer: torch.optim.Optimizer, config: TrainingConfig) -> None:
        self.trained, self.optimizer, self.config = trained, optimizer, config
        self.group, self.device = trained.group, trained.group.device
        self.loss = trained.reducing(config.compile)
        self.parameters = list(trained.model.parameters())
        self.perturbation: Callable[[Batch], Batch] | None = None
        """From the recorded windows to what the model sees of them, where that differs."""
        self.conservative: Callable[[Batch, Batch], tuple[Batch, Batch]] | None = None
        """From both to the windows of a further loss, and what the model sees of those."""
        duals = set(trained.model.log_multipliers.parameters())
        self.clipped = [p for p in self.parameters if p not in duals]
        """All but the multipliers of the loss, whose gradient is a gap of entropy, and would shorten the others'."""

    def gradients(self, batch: Batch) -> Tensor:
        """Leave the clipped gradient of a batch's loss in the parameters; of several workers, that of all their batches together.

        Returns (2 + 3F + 3E,) on the device: the loss, the gradient's norm before clipping, of each of F fields Σ surprise, Σ error and the number of
        tokens, and of each of the E whose entropy is bounded Σ entropy, Σ multiplier and that number."""
        self.optimizer.zero_grad(set_to_none=True)
        parts, seen = [], None
        if self.perturbation is not None or self.conservative is not None:
            batch = batch.to(self.device)
            seen = batch if self.perturbation is None else self.perturbation(batch)
        with matrix_products(self.config.precision):
            for number, piece in enumerate(self.pieces(batch, seen), start=1):
                with self.adding_up(number == self.config.gradient_accumulation and self.conservative is None):
                    loss = self.loss_of(*piece)
                    loss.total.backward()
                parts.append(loss)
            if self.conservative is not None and seen is not None:
                self.regularize(batch, *self.conservative(batch, seen))
        self.trained.add_up_rest()
        fields = [
            sum_of(sums)
            for rows in ([part.by_field for part in parts], [part.entropies for part in parts])
            for name in rows[0]
            for sums in zip(*(row[name] for row in rows), strict=True)
        ]
        total, weight = sum_of([part.total.detach() for part in parts]), sum_of([part.weight for part in parts])
        sums = self.group.sum(torch.stack([x.float() for x in (total, weight, *fields)]))
        # of several workers, the gradients are means over the workers of what is to be added up
        torch._foreach_div_([local(p.grad) for p in self.parameters if p.grad is not None], sums[1] / self.group.size)
        return torch.cat([torch.stack([sums[0] / sums[1], self.clip().float()]), sums[2:]])

    def clip(self) -> Tensor:
        """Shorten the gradient to its largest norm, and return the norm that it had."""
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in self.clipped if p.grad is not None]))
        torch.nn.utils.clip_grads_with_norm_(self.clipped, self.config.gradient_clip, norm)
        return norm

    def adding_up(self, now: bool) -> contextlib.AbstractContextManager[object]:
        """A context of forward and backward passes that all but the last of an update's have: their gradients stay in their worker until then."""
        whole: object = self.loss
        return contextlib.nullcontext() if now or not isinstance(whole, DistributedDataParallel) else whole.no_sync()

    def pieces(self, batch: Batch, seen: Batch | None) -> Iterator[tuple[Batch, ...]]:
        """What the loss is called with, piece by piece on the device: windows, and what the model sees of them where it differs.

        A whole batch is perturbed before it is cut, so the number of pieces changes no random number of it."""
        count = self.config.gradient_accumulation
        if seen is None or seen is batch:
            for piece in batch.split(count):
                yield (piece.to(self.device),)
        else:
            yield from zip(batch.split(count), seen.split(count), strict=True)

    def loss_of(self, batch: Batch, *seen: Batch) -> Loss:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.loss(batch, *seen)

    def regularize(self, batch: Batch, best: Batch, raised: Batch) -> None:
        """Add the gradient of the conservative loss: its mean over its own windows, weighted, as the loss proper is a mean over all of the batch.

        The reported loss is without it. A batch without such windows adds nothing."""
        steps, best_steps = self.group.sum(torch.stack([batch.valid.sum(), best.valid.sum()]))
        share = steps / best_steps.clamp_min(1)
        for number, piece in enumerate(self.pieces(best, raised), start=1):
            with self.adding_up(number == self.config.gradient_accumulation):
                (self.config.conservative * share * self.loss_of(*piece).total).backward()

    def follow(self, rate: float) -> None:
        """Step along the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


class CapturedUpdate:
    """The whole update, from the gathering of its windows to AdamW, as one CUDA graph [torch's notes on CUDA, "CUDA graphs"].

    What differs from update to update lies at fixed addresses: where the windows begin, the rate, and the generator's seed, which a replay reads. The
    first updates run one kernel after the other on a side stream; then the graph is captured, and replayed from there on.

    Losses are not read at each update. From the first one that is not finite, AdamW leaves the weights as they are, so whoever reads the
    losses later still finds the last good weights. `capture=False` runs the same function without a graph, on any device."""

    def __init__(self, update: Update, windows: ResidentWindows, batch_size: int, capture: bool = True) -> None:
        self.update, self.windows, self.capture = update, windows, capture
        device = update.device
        self.starts = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.failed = torch.zeros((), device=device)
        self.rate = torch.zeros((), device=device)
        for group in update.optimizer.param_groups:
            group["lr"] = self.rate
            group["capturable"] = capture
        # the fused kernels leave everything as it is where this is 1: torch's GradScaler skips its steps by it
        update.optimizer.found_inf = self.failed  # type: ignore[attr-defined]
        self.stream = torch.cuda.Stream(device) if capture else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.measures = torch.empty(0)
        self.done = 0

    def __call__(self, starts: npt.NDArray[np.int64], rate: float) -> Tensor:
        """The measures of `Update.gradients`, as a tensor of their own, for windows that begin at the rows `starts` (B,)."""
        self.starts.copy_(torch.from_numpy(starts), non_blocking=True)
        self.rate.fill_(rate)
        self.done += 1
        if self.stream is None:
            return self.whole()
        if self.done <= WARM_UP:
            return self.on_side_stream()
        if self.graph is None:
            self.graph = self.captured()
        self.graph.replay()
        return self.measures.clone()

    def whole(self) -> Tensor:
        """What is captured."""
        measures = self.update.gradients(self.windows.gather(self.starts))
        failed = ~measures[:2].isfinite().all()
        self.failed.copy_(torch.maximum(self.failed, failed.float()))
        self.update.optimizer.step()
        return measures

    def on_side_stream(self) -> Tensor:
        assert self.stream is not None
        current = torch.cuda.current_stream(self.update.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            measures = self.whole()
        current.wait_stream(self.stream)
        return measures

    def captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.update.optimizer.zero_grad(set_to_none=True)  # gradients are to lie in the graph's own memory
        with torch.cuda.graph(graph, stream=self.stream):
            self.measures = self.whole()
        return graph


@contextlib.contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Where fp32 matrices are multiplied in TF32, if that is the precision: their elements rounded to 10 bits of mantissa, the sums in fp32
    [NVIDIA A100 whitepaper, 2020]. torch has one setting for the whole process, which is put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def sum_of(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum(dim=0)
