"""The file of the optimiser's state is what safetensors itself reads and writes."""

import io

import pytest
import safetensors.torch
import torch

from dtrl.training.optimizer_state import load_optimizer, save_optimizer


def make_optimizer(seed=0, updates=3):
    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 2), (5,), (), (2, 1, 2))]
    optimizer = torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}])
    for _ in range(updates):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    return optimizer


def tensors_of(optimizer):
    return {f"{i}.{name}": x for i, values in optimizer.state_dict()["state"].items() for name, x in values.items()}


def saved(optimizer):
    stream = io.BytesIO()
    save_optimizer(stream, optimizer)
    return stream.getvalue()


def test_safetensors_reads_what_is_written():
    optimizer = make_optimizer()
    read, held = safetensors.torch.load(saved(optimizer)), tensors_of(optimizer)
    assert read.keys() == held.keys()
    assert len(read) == 12
    for name, tensor in held.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_what_safetensors_writes_is_read_and_written_again_as_before(tmp_path):
    """As it stands in a checkpoint of an earlier version, in another order."""
    optimizer, other = make_optimizer(), make_optimizer(seed=1)
    (tmp_path / "other").write_bytes(safetensors.torch.save(tensors_of(optimizer)))
    assert saved(other) != saved(optimizer)
    load_optimizer(other, tmp_path / "other")
    assert saved(other) == saved(optimizer)


def test_a_state_of_nothing_is_a_file_too(tmp_path):
    optimizer = make_optimizer(updates=0)
    (tmp_path / "state").write_bytes(saved(optimizer))
    assert safetensors.torch.load(saved(optimizer)) == {}
    load_optimizer(optimizer, tmp_path / "state")
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda t: {"4.step": torch.zeros(())}, "4.step of shape () is of no parameter"),
        (lambda t: {"0.exp_avg": t["0.exp_avg"].T.contiguous()}, "0.exp_avg of shape (2, 3) is of no parameter"),
        (lambda t: {"1.more": t["1.exp_avg"].clone()}, "its parameters have different entries"),
    ],
)
def test_the_state_of_another_optimizer_is_refused(tmp_path, changed, says):
    optimizer = make_optimizer()
    tensors = tensors_of(optimizer)
    (tmp_path / "state").write_bytes(safetensors.torch.save({**tensors, **changed(tensors)}))
    with pytest.raises(ValueError) as caught:
        load_optimizer(optimizer, tmp_path / "state")
    assert says in str(caught.value)
