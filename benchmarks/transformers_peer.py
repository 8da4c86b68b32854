"""transformers' Decision Transformer as a paired entry of a suite: trained by its published recipe on the windows on which dtrl's runs of the same seeds are
trained, and evaluated on the same episodes, under the same target.

    dtrl benchmark quick --logdir runs/quick
    python benchmarks/transformers_peer.py quick --logdir runs/quick

It writes cells of the entry "transformers DT" beside the others, and the tables anew. The recipe is that of the library's own walk-through and of the paper's
code: AdamW at 1e-4 with weight decay 1e-4, a linear warm-up over the first tenth of the updates and a linear decline after it, gradients clipped at 0.25, a
squared error on actions behind a tanh; acting recomputes the last K steps, padded on the left behind a mask. Its size is that of the suite's baseline.

What the recipe does not say: actions are scaled to [−1, 1] by the bounds of their space, Discrete ones are one-hot vectors of which the largest is taken, and
returns are divided as dtrl's are (--return-scale 1000 is the published one for MuJoCo)."""

import argparse
import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

import dtrl
from dtrl.acting import Actor
from dtrl.acting.state import PolicyState
from dtrl.acting.summary import DataSummary
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.presets import resolve
from dtrl.suites.cells import CHOOSING_SEEDS, FINAL_SEEDS, Cell, write_cell
from dtrl.suites.data import data_options
from dtrl.suites.external import add_external, labelled, run_external, vector_spaces
from dtrl.suites.running import chosen, evaluated
from dtrl.trajectories import Trajectories, load_trajectories
from dtrl.windows import Batch, Windows

LABEL = "transformers DT"
LEARNING_RATE, WEIGHT_DECAY, CLIP, WARMUP = 1e-4, 1e-4, 0.25, 0.1


@dataclass(frozen=True)
class History:
    """The last K steps of B environments, on the right of arrays (B, K, …), and how many of them there are (B,)."""

    observations: Tensor
    actions: Tensor
    returns: Tensor
    timesteps: Tensor
    counts: Tensor


class PeerActor(Actor):
    """The model behind dtrl's interface for acting, so that one loop plays the episodes of both."""

    told_return = True

    def __init__(self, model: Any, config: ModelConfig, data: Trajectories) -> None:
        super().__init__(data.observation_space, data.action_space, DataSummary.of(data), None, None)
        self.model, self.config, self.updates = model, config, 0
        self.context, self.context_length = "window", config.context_length
        self.scale = float(config.return_scale or 1.0)
        self.mean = torch.from_numpy(data.observations.mean(axis=0, dtype=np.float64)).float()
        self.deviation = torch.from_numpy(data.observations.std(axis=0, dtype=np.float64)).float() + 1e-6

    def new_context(self, rows: int) -> History:
        k, size = self.context_length, self.model.config
        return History(
            torch.zeros(rows, k, size.state_dim),
            torch.zeros(rows, k, size.act_dim),
            torch.zeros(rows, k, 1),
            torch.zeros(rows, k, dtype=torch.long),
            torch.zeros(rows, dtype=torch.long),
        )

    def choose_actions(
        self, state: PolicyState, observations: Mapping[str, Any], first: Any, allowed: Any, decoding: Any
    ) -> dict[str, Any]:
        history: History = state.context
        history.actions[:, -1] = self.to_tokens(torch.from_numpy(np.asarray(state.actions[""])))
        if first is not None:
            history.counts[torch.from_numpy(np.array(first))] = 0
        for column in (history.observations, history.actions, history.returns, history.timesteps):
            column.copy_(column.roll(-1, dims=1))
        history.counts.add_(1).clamp_(max=self.context_length)
        history.observations[:, -1] = (torch.from_numpy(observations[""]).float() - self.mean) / self.deviation
        history.actions[:, -1] = 0
        history.returns[:, -1, 0] = torch.from_numpy(state.returns_to_go / self.scale).float()
        history.timesteps[:, -1] = torch.from_numpy(np.minimum(state.timesteps, self.model.config.max_ep_len - 1))
        mask = torch.arange(self.context_length) >= self.context_length - history.counts[:, None]
        with torch.inference_mode():
            predicted = self.model.eval()(
                states=history.observations,
                actions=history.actions,
                returns_to_go=history.returns,
                timesteps=history.timesteps * mask,
                attention_mask=mask.long(),
            ).action_preds[:, -1]
        return {"": self.limits["action"](self.to_actions(predicted.numpy()))}

    def to_tokens(self, actions: Tensor) -> Tensor:
        """Actions (…) or (…, A) as the model's vectors (…, A)."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return F.one_hot((actions - int(space.start)).clamp(min=0), int(space.n)).float()
        assert isinstance(space, spaces.Box)
        low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
        return ((2 * actions - low - high) / (high - low)).float()

    def to_actions(self, vectors: Any) -> Any:
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return vectors.argmax(axis=-1) + space.start
        assert isinstance(space, spaces.Box)
        return (vectors * (space.high - space.low) + space.high + space.low) / 2

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error over the real steps of windows, which dtrl pads on the right."""
        valid = batch.valid
        observations = (batch.values["observation"].float() - self.mean) / self.deviation
        actions = self.to_tokens(batch.values["action"])
        predicted = self.model(
            states=observations,
            actions=actions,
            returns_to_go=(batch.values["return"] / self.scale).float().unsqueeze(-1),
            timesteps=batch.timesteps,
            attention_mask=valid.long(),
        ).action_preds
        return F.mse_loss(predicted[valid], actions[valid])


@dataclass(frozen=True)
class PeerRun:
    """One cell: trained, evaluated and written down."""

    cell: Cell
    learning_rate: float
    return_scale: float | None

    def __call__(self) -> None:
        cell = self.cell
        data = load_trajectories(cell.prepared.where, **data_options(cell.options))
        config = resolve(ModelConfig(**chosen(cell.options, ModelConfig)), data)
        config = dataclasses.replace(config, return_scale=self.return_scale or config.return_scale)
        training = TrainingConfig(**chosen(cell.options, TrainingConfig))
        torch.manual_seed(cell.seed)
        actor = PeerActor(peer_model(config, data), config, data)
        windows = Windows(data, config.context_length, training.batch_size, training.sampling, cell.seed)
        best_score, best_update, best_state, count = -np.inf, 0, actor.model.state_dict(), 0
        for update in self.train(actor, windows):
            if update % cell.eval_every == 0 or update == cell.updates:
                report = evaluated(cell, actor, cell.eval_episodes, CHOOSING_SEEDS)
                count, score = count + 1, float(np.mean(report.targets[0].returns))
                if score > best_score:
                    best_score, best_update, best_state = score, update, copy.deepcopy(actor.model.state_dict())
        last = evaluated(cell, actor, cell.episodes, FINAL_SEEDS).to_dict()
        best = last
        if best_update != cell.updates:
            actor.model.load_state_dict(best_state)
            best = evaluated(cell, actor, cell.episodes, FINAL_SEEDS).to_dict()
        recipe = {"learning_rate": self.learning_rate, "return_scale": config.return_scale}
        write_cell(
            cell,
            {
                "last": {"update": cell.updates, "report": last},
                "best": {"update": best_update, "of": count, "report": best},
                "recipe": recipe,
                "seconds": 0.0,
                "dtrl": dtrl.__version__,
            },
        )

    def train(self, actor: PeerActor, windows: Windows) -> Any:
        """The number of each update, after it."""
        model, updates = actor.model, self.cell.updates
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=WEIGHT_DECAY)
        warmup = max(1, round(WARMUP * updates))
        for update in range(1, updates + 1):
            rate = min(update / warmup, (updates - update + 1) / max(1, updates - warmup))
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * min(1.0, rate)
            model.train()
            optimizer.zero_grad()
            actor.loss(windows.batch(update)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            yield update


def peer_model(config: ModelConfig, data: Trajectories) -> Any:
    """A `DecisionTransformerModel` of the size of dtrl's. Raises InputError for spaces that it has no form for."""
    shown, acted = vector_spaces(data, "transformers'")
    return DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=shown.shape[0],
            act_dim=int(acted.n) if isinstance(acted, spaces.Discrete) else acted.shape[0],
            hidden_size=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            max_ep_len=config.max_timestep,
            activation_function="relu",
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="published: 1e-4")
    add_external(parser)
    arguments = parser.parse_args()
    rate, scale = arguments.learning_rate, arguments.return_scale
    label = labelled(LABEL, rate=None if rate == LEARNING_RATE else rate, scale=scale)
    run_external(arguments, label, lambda cell: PeerRun(cell, rate, scale))


if __name__ == "__main__":
    main()
