"""Files of torch.save: the same tensors as torch's own reader gives, and nothing that only states to be large."""

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from dtrl.collect.state_dicts import DTYPES, read_state_dict
from dtrl.errors import InputError


def saved(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_tensors_are_those_that_torch_reads(dtype):
    base = torch.arange(24).to(dtype)
    value = {
        "plain": base,
        "transposed": base.reshape(4, 6).t(),
        "every second": base[1::2],
        "a scalar": base[3],
        "empty": base[:0].reshape(0, 3),
        "again": base,
        "parameter": nn.Parameter(base.clone(), requires_grad=False),
    }
    found = read_state_dict(saved(value), "x")
    assert found.keys() == value.keys()
    for name, tensor in value.items():
        assert found[name].dtype == dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.detach())


def test_a_state_dict_of_a_module_and_a_path_are_read(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "a.pth")
    found = read_state_dict(tmp_path / "a.pth", "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())
    assert list(found) == list(module.state_dict())


def rewritten(value, change):
    """A file of torch.save with its data.pkl changed, or with other members where `change` is a dict."""
    source, target = zipfile.ZipFile(io.BytesIO(saved(value))), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            if isinstance(change, dict):
                data = change.get(name.rpartition("/")[2], data)
            elif name.endswith("data.pkl"):
                new = change(data)
                assert new != data
                data = new
            archive.writestr(name, data)
    return target.getvalue()


TEN = {"a": torch.zeros(10)}
WRONG = {
    "a storage of more numbers": (lambda d: d.replace(b"K\x0at", b"M\xff\xfft"), "a tensor of 65535 numbers in 40 bytes"),
    "a shape beyond the storage": (lambda d: d.replace(b"K\x0a\x85", b"K\x0b\x85"), r"a tensor of shape \(11,\) in 10 numbers"),
    "one number named for ever": (
        lambda d: d.replace(b"K\x0a\x85", b"J\xff\xff\xff\x7f\x85").replace(b"K\x01\x85", b"K\x00\x85"),
        r"a tensor of shape \(2147483647,\) in 10 numbers",
    ),
    "a negative offset": (lambda d: d.replace(b"QK\x00", b"QJ\xff\xff\xff\xff"), "a shape that cannot be"),
    "a constructor": (lambda d: d.replace(b"ctorch\nFloatStorage\n", b"cbuiltins\nbytearray\n"), "names builtins.bytearray"),
    "a call of a storage": (lambda d: d.replace(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"), "a call of what is no tensor"),
    "big-endian numbers": ({"byteorder": b"big"}, "big-endian"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_states_more_than_it_holds_is_refused(wrong):
    change, message = WRONG[wrong]
    with pytest.raises(InputError, match=message):
        read_state_dict(rewritten(TEN, change), "x")


def test_the_same_numbers_may_not_be_named_for_ever():
    many = torch.zeros(20_000)
    with pytest.raises(InputError, match="the same numbers again and again"):
        read_state_dict(saved({str(i): many for i in range(500)}), "x")


class Payload:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved({"a": Payload()}), r"names \w+\.print at byte"),
        (saved([torch.zeros(1)]), "is not a state dict"),
        (saved({"a": {"b": torch.zeros(1)}}), "is not a state dict"),
        (saved(OrderedDict(a=3)), "is not a state dict"),
        (pickle.dumps({"a": 1}), "cannot be read as the tensors that torch.save writes"),
        (b"", "cannot be read as the tensors"),
        (saved(TEN)[:-30], "cannot be read as the tensors"),
    ],
)
def test_other_content_is_refused_and_not_run(content, message, capsys):
    with pytest.raises(InputError, match=message):
        read_state_dict(content, "x")
    assert "run" not in capsys.readouterr().out
