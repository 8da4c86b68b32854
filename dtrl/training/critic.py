"""Trajectories → a critic, by implicit Q-learning [Kostrikov et al. 2021, arXiv:2110.06169]: Q and V are learned from the actions in the data alone, so
that no value of an action that nobody took is ever believed.

With u = Q(s, a) − V(s), V follows an expectile of Q over the actions of the data, |τ − 1(u < 0)|·u² (equation 5), and Q follows r + γ·V(s′)
(equation 6); s′ of a step that terminates is worth nothing. The Q that V follows moves slowly after the one that is learned."""

import copy
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from dtrl.acting.critic import Critic, vectors
from dtrl.config import CriticConfig
from dtrl.errors import InputError
from dtrl.training.optimization import choose_device
from dtrl.trajectories import Trajectories

RETURN_RANGE = 1_000.0
"""To which rewards are scaled: the returns of the data span so much, as in the paper's locomotion."""
TARGET_RATE = 0.005
"""Of the way to the learned Q, how much the slow one goes at every update."""


@dataclass(frozen=True)
class Steps:
    """What is learned from, on a device: N steps of E episodes, S and A widths of an observation and an action as vectors."""

    seen: Tensor
    """(N + E, S) observations of all steps, and behind them the final ones of the episodes."""
    done: Tensor
    """(N, A) actions."""
    rewards: Tensor
    """(N,) scaled."""
    goes_on: Tensor
    """(N,) 0 where the episode terminates, else 1."""
    after: npt.NDArray[np.int64]
    """(N,) where in `seen` the observation after each step is."""

    @staticmethod
    def of(critic: Critic, trajectories: Trajectories, device: torch.device) -> "Steps":
        observations = np.concatenate([trajectories.observations, trajectories.final_observations])
        rewards = np.asarray(trajectories.rewards, np.float32) / np.float32(critic.reward_scale)
        return Steps(
            vectors(critic.observing, torch.from_numpy(observations).to(device)[:, None])[:, 0],
            vectors(critic.acting, torch.from_numpy(np.array(trajectories.actions)).to(device)[:, None])[:, 0],
            torch.from_numpy(rewards).to(device),
            torch.from_numpy(~np.asarray(trajectories.terminations, dtype=bool)).to(device).float(),
            following(trajectories),
        )


def train_critic(trajectories: Trajectories, config: CriticConfig | None = None, progress: bool = False) -> Critic:
    """Train a critic on every step. The same data and configuration give the same critic.

    Raises InputError for spaces that are neither a vector nor choices, for data without a step, and for values that diverge."""
    config = config or CriticConfig()
    if not trajectories.num_steps:
        raise InputError(f"{trajectories.origin.name} has no step to learn from; give a dataset with episodes.")
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    critic = Critic(config, trajectories.observation_space, trajectories.action_space).to(device)
    critic.observing.fit(trajectories.observations)
    critic.acting.fit(trajectories.actions)
    span = float(np.ptp(trajectories.episode_returns))
    critic.reward_scale = span / RETURN_RANGE if span > 0 else 1.0
    steps = Steps.of(critic, trajectories, device)
    slow = copy.deepcopy(critic)
    followed: list[Tensor] = [p for net in (slow.first, slow.second) for p in net.parameters()]
    leading: list[Tensor] = [p for net in (critic.first, critic.second) for p in net.parameters()]
    optimizer = torch.optim.Adam(critic.parameters(), config.learning_rate)
    loss = torch.zeros(())
    for update in tqdm(
        range(config.updates), desc="critic", unit="update", disable=not (progress and sys.stderr.isatty()), leave=False
    ):
        drawn = np.random.default_rng([config.seed, update]).integers(len(steps.after), size=config.batch_size)
        now, then = (torch.from_numpy(index).to(device) for index in (drawn, steps.after[drawn]))
        seen, done = steps.seen[now], steps.done[now]
        with torch.no_grad():
            target = slow(seen, done)
            later = critic.value(steps.seen[then]).squeeze(-1)
            wanted = steps.rewards[now] + config.discount * steps.goes_on[now] * later
        known = torch.cat([seen, done], dim=-1)
        loss = expectile_loss(target - critic.value(seen).squeeze(-1), config.expectile)
        for estimate in (critic.first, critic.second):
            loss = loss + (estimate(known).squeeze(-1) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(followed, leading, TARGET_RATE)
    if not bool(torch.isfinite(loss)):
        raise InputError("the critic's values diverged; choose a lower --learning-rate or --discount.")
    return critic.eval()


def expectile_loss(u: Tensor, expectile: float) -> Tensor:
    """Mean of |τ − 1(u < 0)|·u²; least where Σ |τ − 1(u < 0)|·u is 0."""
    return (torch.where(u < 0, 1 - expectile, expectile) * u.square()).mean()


def following(trajectories: Trajectories) -> npt.NDArray[np.int64]:
    """(N,) where the observation after each step stands, among the N observations of all steps and, behind them, the final ones of the episodes."""
    rows = np.arange(1, trajectories.num_steps + 1)
    rows[trajectories.episode_ends - 1] = trajectories.num_steps + np.arange(trajectories.num_episodes)
    return rows
