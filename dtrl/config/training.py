"""How a policy is trained, how it is fine-tuned by playing, and what a critic of it learns."""

import math
from dataclasses import dataclass
from typing import Any

from dtrl.config.options import check_choices, check_positive, option
from dtrl.errors import InputError


@dataclass(frozen=True)
class TrainingConfig:
    """How it is trained."""

    updates: int = option(10_000, "gradient updates in all")
    batch_size: int = option(64, "windows in one update, B")
    learning_rate: float = option(3e-3, "peak learning rate of AdamW; the paper uses 1e-4 over 100,000 updates")
    weight_decay: float = option(1e-4, "weight decay of AdamW")
    warmup_updates: int = option(100, "updates of linear warm-up; 10,000 in the paper, of 100,000")
    schedule: str = option(
        "constant",
        "learning rate after the warm-up: constant (as published) or cosine (to a tenth of the peak)",
        ("constant", "cosine"),
    )
    gradient_clip: float = option(0.25, "largest norm of the gradient")
    gradient_accumulation: int = option(
        1, "pieces in which one batch is computed, for less memory; the update stays the same"
    )
    sampling: str = option(
        "step",
        "how a window is drawn: every step alike as published (step), every episode alike (episode), steps by the rank of their episode's return (return)",
        ("step", "episode", "return"),
    )
    observation_noise: float = option(
        0.0,
        "deviation σ of Gaussian noise on the observations that the model sees, in deviations of the data's; 0 is off",
    )
    scheduled_sampling: float = option(
        0.0,
        "probability p with which an action that the model looks back on is its own and not the recorded one; 0 is off",
    )
    conservative: float = option(
        0.0,
        "weight α of the loss on the best episodes with returns raised beyond the data's maximum, so that asking for more is safe; 1 in the paper, 0 is off",
    )
    precision: str = option(
        "fp32",
        "fp32, tf32 (on NVIDIA GPUs: matrix products rounded to 10 bits of mantissa) or bf16 (autocast)",
        ("fp32", "tf32", "bf16"),
    )
    compile: bool = option(False, "compile the model with torch.compile (needs a C++ compiler; pays on long runs)")
    data_on_device: str = option(
        "auto",
        "keep the dataset on the device and cut its windows there: auto (on CUDA, where it takes at most half of the free memory), always or never",
        ("auto", "always", "never"),
    )
    cuda_graph: bool = option(
        False, "replay the whole update as one CUDA graph; losses are then checked only when they are logged"
    )
    fsdp: bool = option(
        False,
        "of several processes: share out parameters, gradients and AdamW's moments among them (FSDP2), for a model that is too large for each",
    )
    device: str = option("auto", "auto (CUDA, then MPS, then CPU), or a torch device such as cpu or cuda:0")
    seed: int = option(0, "seed of the initial weights, the batches and the dropout")
    holdout: float = option(
        0.0,
        "share of the episodes that training leaves out; action error and log-likelihood on them are logged as val/…",
    )
    log_every: int = option(50, "updates between two log entries")
    checkpoint_every: int = option(
        1_000, "updates between two checkpoints; one is always written at the end, and when SIGUSR1 comes"
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep")

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(
            self,
            "updates",
            "batch_size",
            "learning_rate",
            "gradient_clip",
            "gradient_accumulation",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        )
        if self.batch_size % self.gradient_accumulation:
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of gradient_accumulation {self.gradient_accumulation}; choose pieces of equal size."
            )
        if not 0 <= self.scheduled_sampling <= 1:
            raise InputError(f"scheduled_sampling {self.scheduled_sampling} is outside [0, 1]; 0 turns it off.")
        if not 0 <= self.holdout < 1:
            raise InputError(f"holdout {self.holdout} is outside [0, 1); 0.1 holds out a tenth of the episodes.")
        if self.cuda_graph and self.data_on_device == "never":
            raise InputError("cuda_graph does not go with data_on_device never; choose one of the two.")
        for name in ("weight_decay", "warmup_updates", "seed", "observation_noise", "conservative"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name} {value} must be 0 or a positive number.")


@dataclass(frozen=True)
class OnlineConfig:
    """How a trained policy plays while it is fine-tuned, and what it learns from."""

    explore_return: float | None = option(
        None,
        "return that is asked of the episodes that are played; by default as far beyond the best of the data as that is beyond their median",
    )
    round_episodes: int = option(16, "episodes that are played in a round, side by side; 1 as published")
    round_updates: int = option(100, "updates after each round; 300 as published")
    buffer_episodes: int = option(
        300,
        "episodes to learn from: at first the best of the data; as new ones are played, the oldest leave; 1,000 as published",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "round_episodes", "round_updates", "buffer_episodes")
        if self.explore_return is not None and not math.isfinite(self.explore_return):
            raise InputError(
                f"explore_return {self.explore_return} is not finite; ask for a return somewhat above the best of the data."
            )


ONLINE_TRAINING: dict[str, Any] = {"updates": 3_000, "learning_rate": 3e-4}
"""Training settings of which fine-tuning has other defaults."""


@dataclass(frozen=True)
class CriticConfig:
    """What says how much an action is worth, by implicit Q-learning [Kostrikov et al. 2021, arXiv:2110.06169], with its published settings but for fewer
    updates."""

    updates: int = option(10_000, "gradient updates; a million in the paper")
    batch_size: int = option(256, "steps of an update")
    learning_rate: float = option(3e-4, "of Adam")
    width: int = option(256, "units of each of the two hidden layers")
    expectile: float = option(
        0.7, "of the actions in the data, whose value a state has: 0.5 is their mean, near 1 the best"
    )
    discount: float = option(0.99, "γ, by which a later reward counts less")
    seed: int = option(0, "seed of the initial weights and the batches")
    device: str = option("auto", "auto (CUDA, then MPS, then CPU), or a torch device such as cpu or cuda:0")

    def __post_init__(self) -> None:
        check_positive(self, "updates", "batch_size", "learning_rate", "width")
        if not 0 < self.expectile < 1:
            raise InputError(
                f"expectile {self.expectile} is outside (0, 1); 0.7 is usual, and 0.9 where the best counts."
            )
        if not 0 <= self.discount < 1:
            raise InputError(f"discount {self.discount} is outside [0, 1); 0.99 is usual.")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; choose 0 or more.")
