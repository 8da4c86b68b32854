"""A trained policy → a better one: it plays, and the same training loop learns from what it played.

Online Decision Transformer [Zheng et al. 2022, algorithms 1 and 2, arXiv:2202.05607]. Different from the paper: a round plays several episodes side by
side, AdamW begins without the moments of the training before, and the return that is explored for is not twice a target, which means little where
returns are negative."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from dtrl.acting import Policy
from dtrl.acting.rollouts import Env, check_spaces, maker
from dtrl.config import ONLINE_TRAINING, OnlineConfig, TrainingConfig, split_options
from dtrl.errors import InputError
from dtrl.processes import refuse_workers
from dtrl.spaces import same_space
from dtrl.training.callbacks import Callback
from dtrl.training.checkpoint import hold_run
from dtrl.training.experience import Experience
from dtrl.training.group import Group
from dtrl.training.optimization import choose_device
from dtrl.training.trainer import Trainer
from dtrl.trajectories import Trajectories


def finetune(
    policy: Policy,
    trajectories: Trajectories,
    *,
    updates: int,
    batch_size: int = 64,
    seed: int = 0,
    env: Env | None = None,
    logdir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    **options: Any,
) -> Policy:
    """Fine-tune a policy by what it plays, and return a new one; the given one stays as it is.

    Before updates 1, `round_updates` + 1, … it plays `round_episodes` episodes in `env` (by default that of its data), asked for `explore_return`, with
    actions sampled at temperature 1 and the context of the given policy (`block` is several times as fast as `window`). They go into a buffer that begins
    with the best episodes of `trajectories`, and of which the windows are drawn. Updates are counted from 1, and the optimiser begins anew. Further
    options are the fields of `OnlineConfig` and `TrainingConfig`; `logdir`, `resume`, `callbacks` and interrupts are as in `train`.

    Raises InputError, before anything is written, for a policy that cannot explore (its actions are not drawn from a distribution, or it is told no
    return), for data or an environment of other spaces than the policy's, for wrong options, and as `train` does."""
    given = {**ONLINE_TRAINING, "updates": updates, "batch_size": batch_size, "seed": seed, **options}
    online_options, training_options = split_options(given, OnlineConfig, TrainingConfig)
    config = TrainingConfig(**training_options)
    refuse_workers("fine-tuning")
    check_policy(policy)
    check_training(config)
    check_data(policy, trajectories)
    env = env or policy.data.env_spec or trajectories.origin.env_spec
    make = maker(env)
    check_environment(policy, make)
    experience = Experience(policy, trajectories, OnlineConfig(**online_options), seed, env or make)
    where = None if logdir is None else Path(logdir)
    group = Group(choose_device(config.device))
    with hold_run(where, group):
        return Trainer(trajectories, policy.config, config, where, resume, experience, group).run(
            list(callbacks), progress
        )


def check_policy(policy: Policy) -> None:
    """Raise InputError for a policy that cannot explore."""
    if not isinstance(policy, Policy):
        raise InputError(
            "the policy was exported to act, and only a trained model learns on; give the run that it is from."
        )
    if not policy.told_return:
        raise InputError(
            f"preset {policy.config.preset} is told no return, so it cannot be asked to explore for a higher one; fine-tune a policy of preset odt or dt."
        )
    if policy.config.head == "deterministic":
        raise InputError(
            f"this policy of preset {policy.config.preset} has a deterministic head, which explores nothing; train one by --preset odt, or with "
            "--head gaussian."
        )


def check_training(config: TrainingConfig) -> None:
    """Raise InputError for training settings that need data which stay as they are."""
    for name in ("holdout", "cuda_graph"):
        if getattr(config, name):
            raise InputError(f"{name} needs data that stay as they are, and fine-tuning adds to them; leave it out.")


def check_data(policy: Policy, trajectories: Trajectories) -> None:
    """Raise InputError where the policy cannot learn from these data what a return means."""
    for role, ours, theirs in (
        ("observation", policy.observation_space, trajectories.observation_space),
        ("action", policy.action_space, trajectories.action_space),
    ):
        if not same_space(ours, theirs):
            raise InputError(
                f"the {role} space of {trajectories.origin.name} is {theirs}, and the policy was trained on {policy.data.dataset} with {ours}; "
                "give the data that it was trained on."
            )
    ours_rule, theirs_rule = (policy.data.discount, policy.data.delayed), (trajectories.discount, trajectories.delayed)
    if ours_rule != theirs_rule:
        raise InputError(
            f"the data were loaded with discount {theirs_rule[0]} and delayed {theirs_rule[1]}, and the policy was trained with {ours_rule[0]} and "
            f"{ours_rule[1]}; load them alike."
        )


def check_environment(policy: Policy, make: "Callable[[], gymnasium.Env[Any, Any]]") -> None:
    """Raise InputError where the environment cannot be made, or its spaces are not the policy's."""
    if isinstance(make, VectorEnv):
        raise InputError(
            "env is a vector environment, whose episodes cannot all be seeded; give its id, or a function that makes one environment."
        )
    example = make()
    try:
        check_spaces(policy, example.observation_space, example.action_space, None)
    finally:
        example.close()
