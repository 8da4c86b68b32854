"""How much memory each of several processes takes that train one model, where each holds all of it and where they share it out (`--fsdp`).

    python benchmarks/fsdp.py --layers 12 --width 768

Told is what a process has at its peak that no file backs, beyond what it has when everything is imported: while the model is made, in the updates, and while
a checkpoint is written; and the processor time of an update. Linux only, whose /proc it reads; on the CPU, one thread a process. What torch frees is given
back to the system at once (MALLOC_MMAP_THRESHOLD_): by itself glibc keeps it, in pieces that do not fit what is asked for next, and that hides the saving."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from dtrl.bench.memory import bytes_of
from dtrl.bench.processes import free_port

MIB = 2**20
EVERY_SECONDS = 0.005
PHASES = ("made", "updates", "checkpoint")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--updates", type=int, default=4, help="of 8 windows of 20 steps (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one-of-them", choices=("whole", "fsdp"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_of_them:
        print(
            json.dumps(measure(arguments.layers, arguments.width, arguments.updates, arguments.one_of_them == "fsdp"))
        )
        return 0
    found = {kind: start(kind, arguments) for kind in ("whole", "fsdp")}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    size = found["whole"][0]["parameters"]
    print(f"{size:,} parameters, {4 * size / MIB:,.0f} MiB; {arguments.processes} processes; MiB a process at its peak")
    print(f"{'':<10}{'process':>8}" + "".join(f"{phase:>12}" for phase in PHASES) + f"{'CPU s':>9}")
    for kind, processes in found.items():
        for rank, told in enumerate(processes):
            peaks = "".join(f"{told[phase] / MIB:>12,.0f}" for phase in PHASES)
            print(f"{kind:<10}{rank:>8}{peaks}{told['seconds']:>9.2f}")
    return 0


def start(kind: str, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """What each process of one kind tells."""
    size = ["--layers", str(arguments.layers), "--width", str(arguments.width), "--updates", str(arguments.updates)]
    place = {"WORLD_SIZE": str(arguments.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    with tempfile.TemporaryDirectory(prefix="dtrl-fsdp-") as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), *size, "--one-of-them", kind],
                env={**environment, "RANK": str(rank)}, cwd=folder, stdout=subprocess.PIPE,
            )
            for rank in range(arguments.processes)
        ]  # fmt: skip
        texts = [process.communicate()[0] for process in processes]
    return [json.loads(text) for text in texts]


def measure(layers: int, width: int, updates: int, fsdp: bool) -> dict[str, float]:
    """What one process tells."""
    from dtrl.bench.training import hopper_shaped
    from dtrl.config import ModelConfig, TrainingConfig
    from dtrl.training import sharding  # noqa: F401 (its import is no part of what is measured)
    from dtrl.training.group import worker_group
    from dtrl.training.trainer import Trainer

    trajectories = hopper_shaped(20)
    model = ModelConfig(layers=layers, width=width, heads=max(1, width // 64))
    config = TrainingConfig(updates=updates, batch_size=8, device="cpu", warmup_updates=0, fsdp=fsdp)
    before, told, peak = bytes_of("RssAnon"), dict[str, float](), Peak()
    with worker_group("cpu") as group:
        trainer = Trainer(trajectories, model, config, Path("run"), False, group=group)
        told["made"] = peak.read() - before
        trainer.trained.model.train()
        trainer.update(1)  # which also allocates the moments
        started = time.process_time()
        for update in range(2, updates + 1):
            trainer.trained.begin_update()
            trainer.update(update)
        told["seconds"] = (time.process_time() - started) / (updates - 1)
        told["updates"] = peak.read() - before
        trainer.policy.updates = updates
        trainer.save()
        group.largest(0)
        told["checkpoint"] = peak.read() - before
    return {**told, "parameters": sum(p.numel() for p in trainer.model.parameters())}


class Peak:
    """The most private memory since it was last read, looked at some 200 times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, bytes_of("RssAnon"))
            time.sleep(EVERY_SECONDS)

    def read(self) -> int:
        found, self.bytes = max(self.bytes, bytes_of("RssAnon")), 0
        return found


if __name__ == "__main__":
    sys.exit(main())
