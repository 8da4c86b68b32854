"""What learned tokenizers share: networks whose weights are buffers, and the loop that trains them inside `fit`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from dtrl.errors import InputError


@dataclass(frozen=True)
class FitOptions:
    """How a learned tokenizer trains in `fit`: Adam, at a rate that falls linearly to 0."""

    steps: int = 2000
    """Updates. More lower the error further: VQ-BeT's published number is 20,000."""
    batch_size: int = 256
    """Blocks an update is computed from, drawn with replacement."""
    learning_rate: float = 3e-3
    """Of the first update."""
    seed: int = 0
    """Of the first weights, the first codes and the batches. torch's own generator is neither read nor moved."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} of a learned tokenizer cannot be; choose 1 or more.")
        if not self.learning_rate > 0:
            raise InputError(
                f"learning_rate = {self.learning_rate} of a learned tokenizer cannot be; choose a number above 0."
            )


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    """(…, widths[0]) → (…, widths[−1]): linear layers with ReLU between them. The weights are buffers, 0 until `draw_weights`."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer, device="meta"), nn.ReLU()]
    return weights_as_buffers(nn.Sequential(*layers[:-1]))


def weights_as_buffers(network: nn.Sequential) -> nn.Sequential:
    """The network, made on the meta device so that torch's generator is not read, with buffers of zeros for parameters.

    As a parameter, a weight would be counted, decayed and trained with the model that reads the tokens."""
    for layer in network.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, torch.zeros(weight.shape))
    return network


def draw_weights(networks: Iterable[nn.Module], generator: torch.Generator) -> None:
    """First weights, in place: uniform, of the variance that keeps that of the inputs through a ReLU [He et al. 2015]; biases are 0."""
    for network in networks:
        for weight in network.buffers():
            if weight.dim() > 1:
                drawn = torch.empty(weight.shape)
                nn.init.kaiming_uniform_(drawn, nonlinearity="relu", generator=generator)
                weight.copy_(drawn)
            else:
                weight.zero_()


def train(
    networks: Iterable[nn.Module],
    loss_of: Callable[[Tensor], Tensor],
    data: Tensor,
    options: FitOptions,
    generator: torch.Generator,
) -> None:
    """Minimise `loss_of` of batches of the rows of `data` (N, …) over the buffers of the networks; where these have none, it is only called."""
    weights = [weight for network in networks for weight in network.buffers()]
    optimiser = torch.optim.Adam(weights, lr=options.learning_rate, fused=True) if weights else None
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for step in range(options.steps):
                rows = torch.randint(len(data), (options.batch_size,), generator=generator)
                loss = loss_of(data[rows.to(data.device)])
                if optimiser is not None:
                    optimiser.param_groups[0]["lr"] = options.learning_rate * (1 - step / options.steps)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
