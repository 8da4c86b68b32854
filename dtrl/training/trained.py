"""What the updates are made to: the policy's own model, in every worker; or, in `sharding`, parts of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from dtrl.acting import Policy
from dtrl.sequence_model import Loss, SequenceModel
from dtrl.training.group import Group


class Trained:
    """The model of a policy, which is updated itself: every worker has all of it, and most methods are formalities."""

    def __init__(self, policy: Policy, group: Group) -> None:
        self.policy, self.group = policy, group
        self.model: SequenceModel = policy.model
        """What is updated."""
        self.shares = 1
        """Into how many parts it is cut."""

    def take(self) -> None:
        """Begin with the weights that the policy has now."""

    def reducing(self, compiled: bool) -> Callable[..., Loss]:
        """The loss of the model, after whose backward pass every worker has the mean of the gradients of all, or its part of that."""
        return self.group.reducing(self.model, torch.compile(self.model.loss) if compiled else self.model.loss)

    def add_up_rest(self) -> None:
        """Take the mean over the workers of the gradients that the backward passes of an update have left in their worker."""

    def begin_update(self) -> None:
        """The policy is not read until the update is over."""

    def gather(self, everywhere: bool = False) -> None:
        """Give the policy of worker 0, or of all, the weights of now. Every worker calls it."""

    def read(self) -> Policy:
        """The policy as it is now, for worker 0 alone, while the others `lend`."""
        return self.policy

    def lend(self) -> None:
        """Wait, and give worker 0 what it reads, until it has called `close`."""

    def close(self) -> None:
        """What worker 0 does when it reads no more."""


def trained_by(group: Group, policy: Policy, shared_out: bool) -> Trained:
    """What the workers of a group update, each all of it or parts."""
    if not shared_out:
        return Trained(policy, group)
    from dtrl.training.sharding import Sharded

    return Sharded(policy, group)


# torch's class of tensors that are shared out is known by its methods: to import it takes a second, and most runs have none


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor that is shared out; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is shared out, put together; any other as it is. Every worker has to call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of which every worker has all, shared out as `like` is."""
    if not hasattr(like, "to_local"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
