"""What the model is shown in place of the recorded past, so that it learns to act on a past that is not: its own. B windows, K steps.

What it has to predict stays the recorded action. All options are off by default, and then nothing of this file is called."""

import torch
from gymnasium import spaces
from torch import Tensor

from dtrl.acting import Policy
from dtrl.config import TrainingConfig
from dtrl.errors import InputError
from dtrl.tokenizers import Continuous, Offset
from dtrl.windows import Batch


class Perturbation:
    """Observation noise and scheduled sampling. Draws from torch's generator, which training seeds with the number of the update."""

    def __init__(self, policy: Policy, config: TrainingConfig) -> None:
        self.model, self.config = policy.model, config
        shown = [f for f in policy.model.fields if f.source in policy.observed and f.in_context]
        self.noisy: dict[str, Continuous] = {
            f.source: f.tokenizer for f in shown if isinstance(f.tokenizer, Continuous)
        }
        self.own = dict.fromkeys(name for decision in policy.decisions for name in decision.names)
        self.bounds = {
            name: tuple(torch.as_tensor(bound, device=policy.device) for bound in (leaf.space.low, leaf.space.high))
            for name, leaf in policy.acted.items()
            if isinstance(leaf.space, spaces.Box)
        }
        preset = policy.config.preset
        if config.observation_noise and not self.noisy:
            raise InputError(
                f"observation_noise is added to observations that are embedded as numbers, and preset {preset} has none here; leave it out."
            )
        if config.scheduled_sampling:
            self.check_own_actions(policy)

    def check_own_actions(self, policy: Policy) -> None:
        """Raise InputError where the model does not see actions, or learns of an action's consequences, which those of another action are not."""
        fields, preset = policy.model.fields, policy.config.preset
        if not any(f.in_context and f.source in policy.acted for f in fields):
            raise InputError(
                f"scheduled_sampling shows the model its own actions, and preset {preset} sees none; leave it out."
            )
        learnt = [f for f in fields if f.loss_weight]
        if any(f.source not in policy.acted or isinstance(f.tokenizer, Offset) for f in learnt):
            raise InputError(
                f"scheduled_sampling replaces actions, and preset {preset} also learns what follows from them; use dt or dt_discrete, or leave it out."
            )

    def __call__(self, batch: Batch) -> Batch:
        """The same windows as the model is to see them."""
        values = dict(batch.values)
        for name, tokenizer in self.noisy.items() if self.config.observation_noise else ():
            deviation = self.config.observation_noise * tokenizer.scale.view(values[name].shape[2:])
            values[name] = values[name] + deviation * torch.randn_like(values[name])
        seen = Batch(values, batch.timesteps, batch.valid)
        return self.with_own_actions(seen) if self.config.scheduled_sampling else seen

    def with_own_actions(self, batch: Batch) -> Batch:
        """Each step's action replaced, with the probability of the setting, by the model's own most probable one on the batch's past: the second pass of
        Mihaylova and Martins [2019, arXiv:1906.07651] for the scheduled sampling of Bengio et al. [2015, arXiv:1506.03099], at a constant rate."""
        chosen = torch.rand(batch.valid.shape, device=batch.valid.device) < self.config.scheduled_sampling
        values = dict(batch.values)
        for name, own in self.own_actions(batch).items():
            recorded = values[name]
            values[name] = torch.where(
                chosen.view(*chosen.shape, *[1] * (recorded.dim() - 2)), own.to(recorded.dtype), recorded
            )
        return Batch(values, batch.timesteps, batch.valid)

    @torch.no_grad()
    def own_actions(self, batch: Batch) -> dict[str, Tensor]:
        """Column → the model's most probable actions (B, K, …), inside their bounds, without dropout."""
        was_training, out = self.model.training, {}
        self.model.eval()
        distributions = self.model(batch.cleared())
        self.model.train(was_training)
        for name in self.own:
            f = self.model.by_name[name]
            actions = self.model.decode(f, distributions[name].mode)
            if f.source in self.bounds:
                low, high = self.bounds[f.source]
                actions = torch.minimum(torch.maximum(actions, low), high)
            out[f.source] = actions
        return out


def perturbation_for(policy: Policy, config: TrainingConfig) -> Perturbation | None:
    """None where nothing is to be perturbed. Raises InputError where the preset has nothing to perturb."""
    return Perturbation(policy, config) if config.observation_noise or config.scheduled_sampling else None
