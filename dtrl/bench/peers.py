"""transformers' Decision Transformer as its users run it, with the paper's Hopper model [Chen et al. 2021, table 8]."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtrl.errors import InputError

OBSERVATION_WIDTH, ACTION_WIDTH = 11, 3
"""Hopper-v5."""
MAX_TIMESTEP = 1_000
TARGET, RETURN_SCALE = 3_600.0, 1_000.0
"""The paper's target return for Hopper, and what the return token is divided by."""


def hopper_model() -> Any:
    """A `DecisionTransformerModel` with random weights: 3 layers, 128 wide, 1 head, dropout 0.1. Raises InputError without transformers."""
    try:
        from transformers import DecisionTransformerConfig, DecisionTransformerModel
    except ImportError as error:
        raise InputError(
            "this benchmark compares with transformers, which is not installed; `pip install 'dtrl[bench]'` brings it."
        ) from error
    config = DecisionTransformerConfig(
        state_dim=OBSERVATION_WIDTH,
        act_dim=ACTION_WIDTH,
        hidden_size=128,
        n_layer=3,
        n_head=1,
        max_ep_len=MAX_TIMESTEP,
        bos_token_id=None,  # its vocabulary has one entry, and the default ids are outside it
        eos_token_id=None,
    )
    return DecisionTransformerModel(config)


class DocumentedLoop:
    """The evaluation loop of its documentation and of the original repository, for B environments: the whole history, joined anew at every step, cut to K
    steps and padded on the left to K, behind an attention mask."""

    def __init__(self, model: Any, rows: int, context_length: int) -> None:
        self.model, self.rows, self.context_length = model.eval(), rows, context_length
        self.mean, self.deviation = torch.zeros(OBSERVATION_WIDTH), torch.ones(OBSERVATION_WIDTH)
        self.reset()

    def reset(self) -> None:
        self.observations, self.actions = (
            torch.zeros(self.rows, 0, OBSERVATION_WIDTH),
            torch.zeros(self.rows, 0, ACTION_WIDTH),
        )
        self.returns, self.timesteps = torch.zeros(self.rows, 0, 1), torch.zeros(self.rows, 0, dtype=torch.long)

    def act(self, observation: npt.NDArray[np.float32], reward: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """(B, A) actions for the observations (B, S), after the rewards (B,) of the last actions."""
        with torch.no_grad():
            begins = self.returns.shape[1] == 0
            asked = torch.full((self.rows, 1, 1), TARGET / RETURN_SCALE)
            left = (
                asked
                if begins
                else self.returns[:, -1:] - torch.from_numpy(reward / RETURN_SCALE).float().reshape(-1, 1, 1)
            )
            self.returns = torch.cat([self.returns, left], dim=1)
            self.observations = torch.cat([self.observations, torch.from_numpy(observation).unsqueeze(1)], dim=1)
            self.timesteps = torch.cat([self.timesteps, torch.full((self.rows, 1), self.timesteps.shape[1])], dim=1)
            self.actions = torch.cat([self.actions, torch.zeros(self.rows, 1, ACTION_WIDTH)], dim=1)
            self.actions[:, -1] = self.predict()
            return self.actions[:, -1].numpy()

    def predict(self) -> Tensor:
        k = self.context_length
        observations = (self.observations - self.mean) / self.deviation
        cut = [x[:, -k:] for x in (observations, self.actions, self.returns, self.timesteps)]
        steps = cut[0].shape[1]
        mask = torch.cat([torch.zeros(k - steps), torch.ones(steps)]).long().expand(self.rows, k)
        states, actions, returns, timesteps = (
            torch.cat([x.new_zeros(self.rows, k - steps, *x.shape[2:]), x], dim=1) for x in cut
        )
        out = self.model(
            states=states, actions=actions, returns_to_go=returns, timesteps=timesteps, attention_mask=mask
        )
        return out.action_preds[:, -1]  # type: ignore[no-any-return]


class LeanLoop:
    """The same model called as sparingly as its public interface allows: the last K steps in place, neither padding nor mask."""

    def __init__(self, model: Any, rows: int, context_length: int) -> None:
        self.model, self.rows, self.context_length = model.eval(), rows, context_length
        self.reset()

    def reset(self) -> None:
        shape = (self.rows, self.context_length)
        self.observations, self.actions = torch.zeros(*shape, OBSERVATION_WIDTH), torch.zeros(*shape, ACTION_WIDTH)
        self.returns, self.timesteps = torch.zeros(*shape, 1), torch.zeros(shape, dtype=torch.long)
        self.step, self.left = 0, np.full(self.rows, TARGET)

    def act(self, observation: npt.NDArray[np.float32], reward: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            columns = (self.observations, self.actions, self.returns, self.timesteps)
            if self.step >= self.context_length:
                for column in columns:
                    column[:, :-1] = column[:, 1:].clone()
            at = min(self.step, self.context_length - 1)
            self.left = self.left - reward if self.step else self.left
            self.observations[:, at] = torch.from_numpy(observation)
            self.actions[:, at] = 0
            self.returns[:, at, 0] = torch.from_numpy(self.left / RETURN_SCALE)
            self.timesteps[:, at] = self.step
            self.step += 1
            states, actions, returns, timesteps = (column[:, : at + 1] for column in columns)
            self.actions[:, at] = self.model(
                states=states, actions=actions, returns_to_go=returns, timesteps=timesteps
            ).action_preds[:, -1]
            return self.actions[:, at].numpy()
