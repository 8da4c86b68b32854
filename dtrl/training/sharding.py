"""A model of which each worker holds a part. N workers.

Parameters, gradients and AdamW's moments are cut along their first dimension into N parts, one a worker, by torch's fully_shard: FSDP2, after
FSDP [Zhao et al. 2023, arXiv:2304.11277] and ZeRO [Rajbhandari et al. 2020, arXiv:1910.02054]. Each block of a transformer is put together while it computes,
and what is in no block from the forward pass to the end of the backward pass."""

import copy
import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from dtrl.acting import Policy
from dtrl.backbones.attention import Transformer, refer_again
from dtrl.sequence_model import Loss, SequenceModel
from dtrl.training.group import Group
from dtrl.training.trained import Trained, local, share_of, whole


class Sharded(Trained):
    """Parts of the model. The policy's own is empty, NaN wherever it is read, but between `gather` and the next update."""

    def __init__(self, policy: Policy, group: Group) -> None:
        super().__init__(policy, group)
        self.shares = group.size
        # a copy that at first shares the memory of the parameters: of what is cut, each worker copies its own part alone
        aliases: dict[int, object] = {id(p): nn.Parameter(p.data) for p in policy.model.parameters()}
        self.model = copy.deepcopy(policy.model, aliases)
        self.multipliers = list(self.model.log_multipliers.parameters())
        for multiplier in self.multipliers:  # a single number cannot be cut: every worker has it
            multiplier.data = multiplier.data.to(group.device, copy=True)
        self.root = Root(self.model)
        assert dist.group.WORLD is not None
        mesh = DeviceMesh.from_group(dist.group.WORLD, group.device.type)
        if isinstance(self.model.backbone, Transformer):
            for block in self.model.backbone.blocks:
                fully_shard(block, mesh=mesh)
                # after fully_shard's own hook, which puts the parameters together
                block.register_forward_pre_hook(refer_again)
            self.model.backbone.register_forward_pre_hook(lambda backbone, _: backbone.refer())
        fully_shard(self.root, mesh=mesh, ignored_params=set(self.multipliers))
        refer_again(self.model)  # or it would keep the whole parameters until its first forward pass
        self.gathered = False
        """Whether worker 0 has the whole; the same in every worker."""

    @torch.no_grad()
    def take(self) -> None:
        """Cut the weights that worker 0's policy has, and empty the policy's own."""
        model, device = self.policy.model, self.group.device
        for parameter, part in zip(model.parameters(), self.model.parameters(), strict=True):
            value = parameter.data.to(device)
            dist.broadcast(value, src=0)
            local(part).copy_(local(share_of(value, part)))
            parameter.data = parameter.data.new_empty(0)
        model.to(device)
        for ours, theirs in zip(model.buffers(), self.model.buffers(), strict=True):
            # fitted to the same data, and not to the same bits on another kind of processor
            dist.broadcast(ours, src=0)
            theirs.copy_(ours)
        self.empty()

    def reducing(self, compiled: bool) -> Callable[..., Loss]:
        def loss(*batches: object) -> Loss:
            found: Loss = self.root(*batches)[1]
            return found

        return loss

    def add_up_rest(self) -> None:
        for multiplier in self.multipliers:
            if multiplier.grad is not None:
                self.group.sum(multiplier.grad).div_(self.group.size)

    def begin_update(self) -> None:
        if self.gathered:
            self.empty()

    def empty(self) -> None:
        for parameter, part in zip(self.policy.model.parameters(), self.model.parameters(), strict=True):
            # whoever reads it without having asked for it gets no number, and not those of some earlier update
            parameter.data = torch.full((), math.nan, dtype=part.dtype, device=part.device).expand(part.shape)
        self.gathered = False

    @torch.no_grad()
    def gather(self, everywhere: bool = False) -> None:
        if self.gathered and not everywhere:
            return
        for parameter, part in zip(self.policy.model.parameters(), self.model.parameters(), strict=True):
            value = whole(part.detach())
            if everywhere or self.group.first:
                parameter.data = value
        self.gathered = True

    def read(self) -> Policy:
        if not self.gathered:
            self.group.largest(1)
            self.gather()
        return self.policy

    def lend(self) -> None:
        while self.group.largest(0)[0]:
            self.gather()

    def close(self) -> None:
        self.group.largest(0)


class Root(nn.Module):
    """A model whose forward pass is its loss: what is put together for the one is there for all of the other."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batches: object) -> tuple[Tensor, Loss]:
        """The total stands by itself too: fully_shard sees it there, and begins the backward pass at it."""
        loss = self.model.loss(*batches)  # type: ignore[arg-type]
        return loss.total, loss
