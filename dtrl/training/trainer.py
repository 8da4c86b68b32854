"""The training loop: teacher forcing, AdamW, a schedule. It knows no environment and no evaluation; callbacks are handed in."""

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtrl.acting import Policy
from dtrl.acting.summary import DataSummary
from dtrl.config import ModelConfig, TrainingConfig, split_options
from dtrl.presets import build, columns_for, resolve, training_data, window_length
from dtrl.training.callbacks import Callback, Event
from dtrl.training.checkpoint import find_checkpoint, hold_run, load_checkpoint, save_checkpoint
from dtrl.training.conservative import Conservative
from dtrl.training.experience import Experience
from dtrl.training.finite import check_finite
from dtrl.training.group import Group, worker_group
from dtrl.training.hardware import matmul_rate, update_flops
from dtrl.training.holdout import HeldOut, split_off
from dtrl.training.interrupts import Interrupted, Interrupts
from dtrl.training.logging import RunLogger
from dtrl.training.meter import Meter
from dtrl.training.optimization import (
    check_device,
    check_precision,
    choose_device,
    learning_rate,
    make_optimizer,
    resident_windows,
)
from dtrl.training.optimizer_state import put_together
from dtrl.training.perturbation import perturbation_for
from dtrl.training.record import Record
from dtrl.training.trained import trained_by
from dtrl.training.update import CapturedUpdate, Update, matrix_products
from dtrl.trajectories import Trajectories
from dtrl.windows import EPISODE_RETURN, Batch, Windows


def train(
    trajectories: Trajectories,
    *,
    preset: str = "dt",
    updates: int,
    batch_size: int = 64,
    context_length: int = 20,
    seed: int = 0,
    logdir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    **options: Any,
) -> Policy:
    """Train a preset on trajectories and return the policy.

    With a `logdir`, TensorBoard events, checkpoints, config.toml and result.json are written there; `resume=True` goes on from its newest checkpoint,
    bit for bit on the same machine and thread count. Further options are the fields of `ModelConfig` and `TrainingConfig`.

    In processes that torchrun has started, all of them train this one policy (docs/training.md), and return it; the first one writes and calls back.

    Raises InputError for wrong options, a logdir that holds another run, and a loss that is not finite (naming the batch; the last good checkpoint
    stays), and WorkerLostError where another process has ended. SIGINT and SIGTERM write a checkpoint first and then raise `Interrupted`;
    SIGUSR1 writes one, and training goes on."""
    given = {
        "preset": preset,
        "context_length": context_length,
        "updates": updates,
        "batch_size": batch_size,
        "seed": seed,
        **options,
    }
    model_options, training_options = split_options(given, ModelConfig, TrainingConfig)
    model_config, config = ModelConfig(**model_options), TrainingConfig(**training_options)
    where = None if logdir is None else Path(logdir)
    with worker_group(config.device) as group, hold_run(where, group):
        return Trainer(trajectories, model_config, config, where, resume, group=group).run(list(callbacks), progress)


class Trainer:
    """One run: its model, optimiser, windows and log.

    With `experience`, it goes on from the weights of the policy there, whose configuration `model_config` then is, and learns from what is played.
    With a `group` of several workers, it is one of them."""

    def __init__(
        self,
        trajectories: Trajectories,
        model_config: ModelConfig,
        config: TrainingConfig,
        logdir: Path | None,
        resume: bool,
        experience: Experience | None = None,
        group: Group | None = None,
    ) -> None:
        self.config, self.logdir, self.experience = config, logdir, experience
        self.group = Group(choose_device(config.device)) if group is None else group
        self.device = self.group.device
        self.group.check(config)
        check_device(config, self.device)
        self.origin = trajectories.origin
        self.data = training_data(model_config, trajectories)
        self.model_config = resolve(model_config, self.data) if experience is None else model_config
        held_out = None
        if config.holdout:
            self.data, held_out = split_off(self.data, config.holdout, config.seed)
        self.group.check_alike(self.settings())
        checkpoint = find_checkpoint(logdir, resume, self.group) if logdir is not None else None
        torch.manual_seed(config.seed)
        self.model = build(self.model_config, trajectories.observation_space, trajectories.action_space)
        if experience is None:
            self.model.fit(columns_for(self.model, self.data))
        else:
            self.model.load_state_dict(experience.start.model.state_dict())
        shared_out = config.fsdp and self.group.size > 1
        self.model.to("cpu" if shared_out else self.device)  # each worker's device takes its parts, one after the other
        self.policy = Policy(
            self.model,
            self.model_config,
            trajectories.observation_space,
            trajectories.action_space,
            DataSummary.of(trajectories),
            target_return=None if experience is None else experience.start.target_return,
        )
        self.record = None
        if logdir is not None:
            self.record = Record(logdir, self.policy, config, trajectories, experience, self.group.size)
        self.trained = trained_by(self.group, self.policy, shared_out)
        self.optimizer = make_optimizer(self.trained.model, config, self.device)
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.policy, self.optimizer, config, experience, self.counts())
        self.trained.take()
        self.held_out = None
        if held_out is not None and self.group.first:
            self.held_out = HeldOut(self.policy, held_out, window_length(self.model_config), config.batch_size)
        self.step = Update(self.trained, self.optimizer, config)
        self.step.perturbation = perturbation_for(self.policy, config)
        self.learn_from(self.data if experience is None else experience.trajectories)
        self.captured: CapturedUpdate | None = None
        if config.cuda_graph:
            assert self.resident is not None
            self.captured = CapturedUpdate(self.step, self.resident, config.batch_size)
        self.meter = Meter(self.model, config, self.windows.length)
        self.interrupts = Interrupts(patient=self.group.size > 1)
        self.stop_signal = 0
        """Of the signal that came to a worker and that all of them know of; 0 for none."""
        self.save_asked = False
        """Whether a worker was asked for a checkpoint since the update before, as all of them know."""

    def settings(self) -> dict[str, Any]:
        """All that makes a run what it is, and has to be the same in every worker."""
        data = {"dataset": self.origin.name, "fingerprint": self.origin.fingerprint, "steps": self.data.num_steps}
        return {**data, "torch": torch.__version__, **asdict(self.model_config), **asdict(self.config)}

    def counts(self) -> dict[str, int]:
        """Into how many parts the work is cut, of which the rounding of sums depends."""
        return {
            "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "shards": self.trained.shares,
        }

    def learn_from(self, trajectories: Trajectories) -> None:
        """Draw windows from these episodes from now on."""
        config, self.data = self.config, trajectories
        self.windows = Windows(
            self.data,
            window_length(self.model_config),
            config.batch_size,
            config.sampling,
            config.seed,
            names=[*self.model.sources, EPISODE_RETURN] if config.conservative else self.model.sources,
            block_length=self.model.block_length,
        )
        self.step.conservative = Conservative(self.policy, self.data) if config.conservative else None
        self.resident = resident_windows(self.windows, config, self.device)

    def run(self, callbacks: list[Callback], progress: bool) -> Policy:
        config, begun, first = self.config, self.policy.updates, self.group.first
        callbacks = callbacks if first else []
        check_precision(config, self.device)
        with contextlib.ExitStack() as stack:
            logger = None
            if self.record is not None and first and not self.record.finished():
                self.record.begin()
                logger = stack.enter_context(self.record.log())
            stack.enter_context(self.interrupts)
            bar = stack.enter_context(progress_bar(config.updates, begun, progress and first))
            if logger is not None:
                self.meter.hardware = self.hardware()
            self.meter.start()
            self.tell(callbacks, "start", logger)
            last: dict[str, float] = {}
            for update in range(begun + 1, config.updates + 1):
                if self.experience is not None and self.experience.due(update):
                    self.play(self.experience, update, logger)
                self.trained.begin_update()
                self.trained.model.train()
                self.update(update)
                self.policy.updates = update
                bar.update()
                if update % config.log_every == 0 or update == config.updates:
                    last = self.log(logger, bar)
                self.trained.model.eval()
                stop = self.agreed_stop(self.tell(callbacks, "update", logger))
                if update % config.checkpoint_every == 0 or update == config.updates or stop or self.save_asked:
                    self.save()
                if stop:
                    break
            if self.meter.rows:  # stopped between two entries
                last = self.log(logger, bar)
            self.leave_if_interrupted()
            self.trained.model.eval()
            self.trained.gather(everywhere=True)
            self.tell(callbacks, "end", logger)
            if self.record is not None and logger is not None:
                self.record.finish(logger, last)
            self.leave_if_interrupted()
        return self.policy

    def agreed_stop(self, told: bool = False) -> bool:
        """Whether the run is to stop, because a callback has told so or a signal came, to whichever worker. Sets `save_asked` too."""
        save = self.interrupts.asked_to_save()
        stop, self.stop_signal, asked = self.group.largest(int(told), self.interrupts.number, int(save))
        self.save_asked = bool(asked)
        return bool(stop or self.stop_signal)

    def save(self) -> None:
        self.check_unread()
        if self.logdir is None:
            return
        self.trained.gather()
        if self.group.first:
            save_checkpoint(self.logdir, self.policy, self.optimizer, self.config, self.experience, self.counts())
        elif self.trained.shares > 1:
            put_together(self.optimizer)

    def hardware(self) -> tuple[int, float]:
        """FLOPs of an update, and FLOP/s of a matrix product here, in the dtype of the update's."""
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        with matrix_products(self.config.precision):
            rate = matmul_rate(self.device, dtype)
        return update_flops(self.model, self.batch(1)), rate

    def play(self, experience: Experience, update: int, logger: RunLogger | None) -> None:
        """Play the round before an update, and go on with what is then in the buffer."""
        scalars = experience.play(self.policy, update)
        self.learn_from(experience.trajectories)
        if logger is not None:
            logger.scalars(scalars, update)  # a resume removes what was logged after its checkpoint, and plays it again

    def log(self, logger: RunLogger | None, bar: Any) -> dict[str, float]:
        """Log the means since the last entry, and return them."""
        self.check_unread()
        scalars = self.meter.read(learning_rate(self.policy.updates, self.config))
        if self.config.holdout:
            self.trained.gather()
        if self.held_out is not None:
            scalars |= self.held_out.measure()
        bar.set_postfix(loss=f"{scalars['train/loss']:.4g}")
        if logger is not None:
            logger.scalars(scalars, self.policy.updates)
        return scalars

    def update(self, update: int) -> None:
        """One gradient update, whose measures go to the meter. Raises InputError where its loss or gradient is not finite: at once, or, of a CUDA graph,
        when the losses are read.

        The generator is seeded with the update's number, so that dropout after a resume is what it would have been without."""
        began = time.perf_counter()
        torch.manual_seed(seed_of(self.config.seed, update, self.group.rank))
        rate = learning_rate(update, self.config)
        starting = time.perf_counter()
        if self.captured is not None:
            starts = self.windows.draw(update)
            drawn = time.perf_counter()
            measures = self.captured(starts, rate)
        else:
            batch = self.batch(update)
            drawn = time.perf_counter()
            measures = self.step.gradients(batch).cpu()
            check_finite(update, measures.tolist(), self.windows, self.logdir)
            self.step.follow(rate)
        self.meter.add(update, measures, drawn - starting, time.perf_counter() - began)

    def batch(self, update: int) -> Batch:
        """The windows of an update, or this worker's share of them; on the device where the data lie there."""
        starts = self.group.share(self.windows.draw(update))
        if self.resident is None:
            return self.windows.gather(starts)
        return self.resident.gather(torch.from_numpy(starts).to(self.device))

    def check_unread(self) -> None:
        """Raise InputError where the loss or gradient of an update is not finite that nobody has read yet."""
        if self.captured is not None:
            for update, measures in self.meter.values():
                check_finite(update, measures, self.windows, self.logdir)

    def tell(self, callbacks: list[Callback], kind: str, logger: RunLogger | None) -> bool:
        """Tell every callback; whether one of them wants to stop. The workers that have none stand by."""
        if not self.group.first:
            self.trained.lend()
            return False
        answers = [callback(Event(kind, self.policy.updates, self.trained.read, logger)) for callback in callbacks]
        self.trained.close()
        return any(answer is False for answer in answers)

    def leave_if_interrupted(self) -> None:
        self.agreed_stop()
        if self.stop_signal:
            where = (
                f"; the checkpoint is in {self.logdir}, and --resume goes on from it" if self.logdir is not None else ""
            )
            raise Interrupted(self.stop_signal, f"interrupted after update {self.policy.updates}{where}.")


def progress_bar(total: int, initial: int, wanted: bool) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, initial=initial, desc="training", unit="update", disable=not (wanted and sys.stderr.isatty())
    )


def seed_of(seed: int, update: int, rank: int = 0) -> int:
    """A seed for torch's generator that differs for every update of every run, and for every worker of it."""
    return int(np.random.SeedSequence([2, seed, update, rank]).generate_state(1, np.uint64)[0] >> 1)
