"""A critic says how much an action is worth, and lets a policy take the best of several it would take.

A Decision Transformer imitates what earned its target; it does not compare. Of several actions that are likely under it, a critic that was trained on the
same data by dynamic programming takes the one with the highest value, as the Q-value regularised Decision Transformer does when it acts [Hu et al. 2024,
arXiv:2405.17098, which also trains the model towards it; that is not done here].

B rows, N candidates, S and A widths of an observation and an action as vectors."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

import dtrl
from dtrl.acting.artefact import load_artefact, save_artefact, undescribed
from dtrl.acting.rebuilding import rebuild
from dtrl.config import CriticConfig, DecodingConfig
from dtrl.decoding import choose
from dtrl.errors import InputError
from dtrl.presets import fields_of
from dtrl.spaces import Space, is_image, leaves, same_space, space_from_json, space_to_json
from dtrl.tokenizers import Tokenizer

if TYPE_CHECKING:
    from dtrl.acting.policy import Policy

Array = npt.NDArray[Any]
GREEDY = DecodingConfig()


class Critic(nn.Module):
    """Q(s, a), the smaller of two estimates, and V(s), of single steps: an observation and an action that are one vector, or choices, each.

    Values are sums of discounted rewards, divided by `reward_scale`."""

    def __init__(self, config: CriticConfig, observation_space: Space, action_space: Space) -> None:
        super().__init__()
        self.config, self.observation_space, self.action_space = config, observation_space, action_space
        self.observing = vector_tokenizer("observation", observation_space)
        self.acting = vector_tokenizer("action", action_space)
        seen, done = (entries(tokenizer) for tokenizer in (self.observing, self.acting))
        self.first, self.second = (perceptron(seen + done, config.width) for _ in range(2))
        self.value = perceptron(seen, config.width)
        self.reward_scale = 1.0

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(…,) Q of observations (…, S) and actions (…, A), as vectors."""
        known = torch.cat([observations, actions], dim=-1)
        return torch.minimum(self.first(known), self.second(known)).squeeze(-1)

    def judge(self, observations: Array, actions: Array) -> Tensor:
        """(B, N) Q of the actions (B, N, …) at the observations (B, …), in env units."""
        device = next(self.parameters()).device
        seen = vectors(self.observing, torch.from_numpy(np.ascontiguousarray(observations)).to(device)[:, None])
        done = vectors(self.acting, torch.from_numpy(np.ascontiguousarray(actions)).to(device))
        return self(seen.expand(-1, done.shape[1], -1), done)  # type: ignore[no-any-return]

    def save(self, path: str | Path) -> None:
        """Write the critic to one file, atomically."""
        save_artefact(
            Path(path),
            self.state_dict(),
            {
                "dtrl": dtrl.__version__,
                "critic": asdict(self.config),
                "observation_space": space_to_json(self.observation_space),
                "action_space": space_to_json(self.action_space),
                "reward_scale": self.reward_scale,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "Critic":
        """The critic in a file made by `save`. Raises InputError for any other file."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"critic {path} is no file; make one with `dtrl critic DATASET --output FILE`.")
        tensors, document = load_artefact(path)
        if "critic" not in document:
            raise InputError(f"{path} holds no critic; make one with `dtrl critic DATASET --output FILE`.")
        try:
            config = CriticConfig(**document["critic"])
            seen, done = (space_from_json(document[f"{role}_space"]) for role in ("observation", "action"))
            critic = rebuild(config, seen, done, tensors, lambda: cls(config, seen, done))
            critic.reward_scale = float(document["reward_scale"])
        except Exception as error:
            raise undescribed(path, document, "critic", error) from error
        return critic.eval()


def perceptron(entries: int, width: int) -> nn.Sequential:
    """(…, d) → (…, 1), two hidden layers, as in the paper of IQL."""
    return nn.Sequential(nn.Linear(entries, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def vector_tokenizer(role: str, space: Space) -> Tokenizer:
    """Of a space that is one vector, or choices. Raises InputError for another."""
    parts = leaves(space)
    if len(parts) != 1 or is_image(parts[0].space):
        raise InputError(
            f"a critic judges vectors and choices, and the {role} space is {space}; choose --observation, or do without a critic."
        )
    (field,) = fields_of(role, space, "standardize" if role == "observation" else "bounds")
    if field.tokenizer.num_tokens != 1:
        raise InputError(f"a critic judges vectors and choices, and the {role} space is {space}; do without one.")
    return field.tokenizer


def entries(tokenizer: Tokenizer) -> int:
    """Of the vector that a value becomes."""
    return tokenizer.token_width if tokenizer.vocab_size is None else tokenizer.vocab_size


def vectors(tokenizer: Tokenizer, values: Tensor) -> Tensor:
    """(B, T, …) values in env units → (B, T, d): the tokenizer's vectors, one-hot for ids."""
    tokens = tokenizer.encode(values).squeeze(2)
    return tokens if tokenizer.vocab_size is None else F.one_hot(tokens, tokenizer.vocab_size).float()


def load_critic(policy: "Policy") -> Critic:
    """The critic that the policy's decoding names. Raises InputError where there is none, it judges other spaces, or the policy cannot be led by one."""
    if len(policy.decisions) != 1 or len(policy.decisions[0].names) != 1:
        raise InputError(
            f"strategy best_of compares whole actions, and preset {policy.config.preset} chooses this action in parts; use a preset of one token an action "
            "(dt, odt, bc)."
        )
    if policy.block_length > 1:
        raise InputError(
            f"a critic judges single actions, and this policy decides {policy.block_length} at once; train with chunk_length 1."
        )
    critic = Critic.load(policy.decoding.critic)
    for what in ("observation_space", "action_space"):
        ours, theirs = getattr(policy, what), getattr(critic, what)
        if not same_space(ours, theirs):
            raise InputError(
                f"critic {policy.decoding.critic} judges the {what.replace('_', ' ')} {theirs}, and the policy has {ours}; train it on the policy's data."
            )
    return critic.to(policy.device)


def best_of(
    critic: Critic,
    distributions: Mapping[str, Distribution],
    decoding: DecodingConfig,
    generators: list[np.random.Generator],
    observations: Array,
    to_actions: Callable[[Mapping[str, Tensor]], Array],
) -> dict[str, Tensor]:
    """The token (B, 1, …) of the candidate that the critic values most: the mode, or one of `samples` draws from the distribution of batch shape (B, 1).

    `to_actions` turns tokens into actions (B, …) in env units. Draws of a row come from its own generator; of equal values the mode wins, then the
    earliest draw."""
    drawing = replace(decoding, strategy="sample", critic="", samples=DecodingConfig.samples)
    tokens = [
        choose(distributions, GREEDY),
        *(choose(distributions, drawing, generators) for _ in range(decoding.samples)),
    ]
    values = critic.judge(observations, np.stack([to_actions(candidate) for candidate in tokens], axis=1))
    best = values.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return {name: torch.stack([candidate[name] for candidate in tokens], dim=1)[rows, best] for name in distributions}
