"""What a run says of itself in its folder: config.toml at its beginning, its log, hparams and result.json at its end."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dtrl.acting import Policy
from dtrl.acting.artefact import parameters_sha256
from dtrl.acting.runs import CONFIG_FILE, RESULT_FILE
from dtrl.config import OnlineConfig, TrainingConfig
from dtrl.documents import parse_json
from dtrl.files import write_atomically
from dtrl.training.experience import Experience
from dtrl.training.logging import RunLogger, newest_scalars, of_training
from dtrl.trajectories import Trajectories


class Record:
    """The documents of a run in the folder `logdir`, and what they are written from."""

    def __init__(
        self,
        logdir: Path,
        policy: Policy,
        config: TrainingConfig,
        data: Trajectories,
        experience: Experience | None,
        processes: int,
    ) -> None:
        self.logdir, self.policy, self.config = logdir, policy, config
        self.data, self.experience, self.processes = data, experience, processes

    def begin(self) -> None:
        """Write config.toml: every setting, and which data were loaded."""
        import tomli_w

        data, loaded = self.data, self.data.origin.loaded or ()
        said = {name: value for config in loaded for name, value in asdict(config).items()}
        document: dict[str, Any] = {
            "dataset": self.policy.data.dataset,
            "data": {**said, "discount": data.discount, "delayed": data.delayed},
            "model": asdict(self.policy.config),
            "training": asdict(self.config),
        }
        if self.online is not None:
            document["online"] = asdict(self.online)
        for table in document.keys() - {"dataset"}:  # TOML has no word for None
            document[table] = {name: value for name, value in document[table].items() if value is not None}
        write_atomically(self.logdir / CONFIG_FILE, tomli_w.dumps(document).encode())

    @contextlib.contextmanager
    def log(self) -> Iterator[RunLogger]:
        """The run's log, which goes on after the updates that the policy has had.

        A run that was killed before its first checkpoint has left a log too, and one that was killed in its last evaluation a part of that."""
        begun = self.policy.updates
        ended = begun == self.config.updates
        again = of_training(self.logdir, begun) if ended else []
        purge_step = begun if ended or not begun else begun + 1
        with RunLogger(self.logdir, purge_step) as logger:
            for scalars in again:
                logger.scalars(scalars, begun)
            yield logger

    @property
    def online(self) -> OnlineConfig | None:
        """The settings of the playing, where the run plays."""
        return None if self.experience is None else self.experience.config

    def finish(self, logger: RunLogger, last: dict[str, float]) -> None:
        """Write the settings as hparams into the run's own event file, and result.json.

        `last` are the scalars that were logged last; a run that had no update left has none, and they are read from its log."""
        last = last or newest_scalars(self.logdir)
        online = {} if self.online is None else asdict(self.online)
        settings = {**asdict(self.policy.config), **asdict(self.config), **online}
        logger.hparams(settings, dict.fromkeys(sorted(logger.tags)))
        model, data = self.policy.model, self.policy.data
        result = {
            "updates": self.policy.updates,
            "final_loss": last.get("train/loss"),
            "parameters_sha256": parameters_sha256(model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "dataset": data.dataset,
            "dataset_sha256": data.fingerprint,
            "preset": self.policy.config.preset,
            "seed": self.config.seed,
            "model": asdict(self.policy.config),
            "training": asdict(self.config),
            "threads": torch.get_num_threads(),
            "processes": self.processes,
            "torch": torch.__version__,
        }
        if self.experience is not None:
            result["online"] = self.experience.summary()
        write_atomically(self.logdir / RESULT_FILE, (json.dumps(result, indent=2) + "\n").encode())

    def finished(self) -> bool:
        """Whether a run was resumed that has nothing left to do, not even to be evaluated and logged at its end."""
        if self.policy.updates < self.config.updates:
            return False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            result = parse_json((self.logdir / RESULT_FILE).read_text())
            return bool(result.get("updates") == self.policy.updates)
        return False
