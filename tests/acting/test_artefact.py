"""One file holds a whole policy; a file that was cut or altered is refused, and so is one that is not ours."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import save_file

import dtrl
from dtrl.acting import Policy, load_policy
from dtrl.acting.artefact import digest, load_artefact, parameters_sha256, save_artefact, tensor_parts
from dtrl.errors import InputError

VECTOR = spaces.Box(-np.inf, np.inf, (3,))
SPACES = {
    "vector-discrete": (VECTOR, spaces.Discrete(4, start=2)),
    "discrete-vector": (spaces.Discrete(5), spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)),
}
FLIPS = 60
ONE_SENTENCE = r"^[^\n]+\.$"


@pytest.fixture
def policy(random_trajectories, untrained_policy):
    return untrained_policy(random_trajectories([7, 5]), width=8, layers=1, heads=1)


@pytest.fixture
def file(policy, tmp_path):
    policy.save(tmp_path / "policy.safetensors")
    return tmp_path / "policy.safetensors"


def rewritten(file, change):
    """The file with its document changed by `change(document)` and a hash that fits: what only someone who means it would do."""
    tensors, document = load_artefact(file)
    del document["format"]
    change(document)
    save_artefact(file, tensors, document)
    return file


def test_a_policy_whose_draft_shares_a_tokenizer_is_saved_and_guesses_alike(
    random_trajectories, untrained_policy, tmp_path
):
    policy = untrained_policy(random_trajectories([7, 5]), preset="dt_discrete", bins=5, draft_head=True)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    hidden = torch.randn(3, policy.model.width, generator=torch.Generator().manual_seed(0))
    guessed, again = (p.model.predict("draft:action", hidden).logits for p in (policy, loaded))
    assert torch.equal(guessed, again)
    assert loaded.model.state_dict().keys() == policy.model.state_dict().keys()


@pytest.mark.parametrize("preset", ["dt", "bc"])
@pytest.mark.parametrize("spaces_of", SPACES)
def test_a_saved_policy_acts_as_the_one_that_was_saved(
    random_trajectories, untrained_policy, tmp_path, spaces_of, preset
):
    data = random_trajectories([7, 5, 9], *SPACES[spaces_of])
    policy = untrained_policy(data, preset=preset, acting={"target_return": 3.25})
    policy.updates = 17
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert (loaded.config, loaded.data, loaded.target_return, loaded.updates) == (policy.config, policy.data, 3.25, 17)
    assert (loaded.observation_space, loaded.action_space) == SPACES[spaces_of]
    assert parameters_sha256(loaded.model) == parameters_sha256(policy.model)
    states = [None, None]
    for step in range(9):
        (one, states[0]), (other, states[1]) = (
            p.predict(data.observations[step : step + 2], state)
            for p, state in zip((policy, loaded), states, strict=True)
        )
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("attention", ["window", "banded", "full"])
def test_a_loaded_policy_can_act_otherwise_as_far_as_that_is_exact(
    random_trajectories, untrained_policy, tmp_path, attention
):
    untrained_policy(random_trajectories([7, 5]), attention=attention).save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy").context == attention
    if attention == "window":
        assert load_policy(tmp_path / "policy", context="block", context_length=2).context_length == 2
    else:
        with pytest.raises(InputError, match="context window is not exact"):
            load_policy(tmp_path / "policy", context="window")


@pytest.mark.slow
def test_a_saved_policy_needs_neither_dataset_nor_environment(policy, file, tmp_path):
    """In another process, in an empty folder, with no dataset in reach and Gymnasium's registry emptied."""
    observation = np.arange(3, dtype=np.float32)
    code = f"""
import gymnasium, numpy, dtrl
gymnasium.registry.clear()
action, _ = dtrl.load_policy({str(file)!r}).predict(numpy.arange(3, dtype=numpy.float32))
print(action.tobytes().hex())
"""
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "none"), "HOME": str(tmp_path / "empty")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "empty",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == policy.predict(observation)[0].tobytes().hex()
    assert not list((tmp_path / "empty").iterdir())


def test_saving_again_replaces_the_file_and_leaves_nothing_else(policy, file):
    before = parameters_sha256(load_policy(file).model)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)
    policy.save(file)
    assert parameters_sha256(load_policy(file).model) == parameters_sha256(policy.model) != before
    assert [f.name for f in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("part", ["anywhere", "header"])
def test_a_single_flipped_bit_is_noticed(file, part):
    """60 of 60, at positions drawn with a fixed seed; safetensors by itself notices none in the tensors."""
    whole = file.read_bytes()
    end = len(whole) if part == "anywhere" else 8 + int.from_bytes(whole[:8], "little")
    random = np.random.default_rng(0)
    for position, bit in zip(random.integers(end, size=FLIPS), random.integers(8, size=FLIPS), strict=True):
        altered = bytearray(whole)
        altered[position] ^= 1 << bit
        file.write_bytes(altered)
        with pytest.raises(InputError, match=ONE_SENTENCE) as caught:
            load_policy(file)
        assert str(file) in str(caught.value)
    file.write_bytes(whole)
    load_policy(file)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99, 1])
def test_a_file_that_was_cut_short_is_refused(file, share):
    """At 0, 1, 50 and 99 % of its bytes, and one byte before the end."""
    whole = file.read_bytes()
    file.write_bytes(whole[: min(int(share * len(whole)), len(whole) - 1)])
    with pytest.raises(InputError, match=rf"^{file} is not a whole safetensors file[^\n]+\.$"):
        load_policy(file)


def test_a_file_with_something_appended_is_refused(file):
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(InputError, match=ONE_SENTENCE):
        load_policy(file)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip", b"\x80\x04\x95 a pickle", b"{}", bytes(100), b"\xff" * 100])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(InputError, match=rf"{tmp_path / 'model.zip'} is not a whole safetensors file"):
        load_policy(tmp_path / "model.zip")


def test_a_safetensors_file_that_dtrl_did_not_write_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors was not written by dtrl"):
        load_policy(tmp_path / "other.safetensors")


def test_what_does_not_exist_and_a_folder_without_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{tmp_path} holds no checkpoint"):
        load_policy(tmp_path)


def test_another_format_number_is_refused(file, monkeypatch):
    monkeypatch.setattr("dtrl.acting.artefact.FORMAT", 2)
    with pytest.raises(
        InputError,
        match=rf"has format 1, and this dtrl reads format 2; use the dtrl that wrote it \({dtrl.__version__}\)",
    ):
        load_policy(file)


@pytest.mark.parametrize("change", ["name", "shape", "dtype"])
def test_the_hash_covers_more_than_bytes(file, change):
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}
    assert digest(tensor_parts(tensors), metadata["dtrl"]) == metadata["sha256"]
    name = max(tensors)
    weight = tensors.pop(name)
    renamed = {"name": (name + "_", weight), "shape": (name, weight[None]), "dtype": (name, weight.view(torch.int32))}
    save_file({**tensors, **dict([renamed[change]])}, file, metadata=metadata)
    with pytest.raises(InputError, match="does not match the sha256"):
        load_policy(file)


TAMPERINGS = {
    "another width": lambda d: d["model"].update(width=16),
    "another depth": lambda d: d["model"].update(layers=2),
    "a width that no memory holds": lambda d: d["model"].update(width=2**40),
    "layers without end": lambda d: d["model"].update(layers=10**12),
    "bins without end": lambda d: d["model"].update(preset="dt_discrete", bins=10**12),
    "a timestep table that no memory holds": lambda d: d["model"].update(max_timestep=2**45),
    "a space without end": lambda d: d.update(action_space=json.dumps({"type": "MultiBinary", "n": 10**12})),
    "choices without end": lambda d: d.update(
        action_space=json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 2**60})
    ),
    "a space that is a list": lambda d: d.update(observation_space="[]"),
    "a space in a space for ever": lambda d: d.update(
        observation_space='{"type": "Tuple", "subspaces": [' * 900 + "]}" * 900
    ),
    "a number that no float holds": lambda d: d.update(target_return=10**400),
    "negative width": lambda d: d["model"].update(width=-1),
    "heads that do not divide the width": lambda d: d["model"].update(heads=3),
    "code as a preset": lambda d: d["model"].update(preset="__import__('os').system('true')"),
    "a function as a head": lambda d: d["model"].update(head="subprocess.run"),
    "a list as a trunk": lambda d: d["model"].update(trunk=["modern"]),
    "an unknown setting": lambda d: d["model"].update(unknown=1),
    "no timestep table": lambda d: d["model"].update(max_timestep=None),
    "a list of settings": lambda d: d.update(model=[]),
    "a space that is not JSON": lambda d: d.update(observation_space="not JSON"),
    "an unknown space": lambda d: d.update(action_space=json.dumps({"type": "NoSuchSpace"})),
    "a space without a tokenizer": lambda d: d.update(
        action_space=json.dumps({"type": "Text", "max_length": 3, "min_length": 1, "charset": "ab"})
    ),
    "a word as a target": lambda d: d.update(target_return="much"),
    "an infinite target": lambda d: d.update(target_return=math.inf),
    "no quantiles": lambda d: d["data"].update(return_quantiles=None),
    "a word as data": lambda d: d.update(data="cartpole"),
    **{
        f"no {name}": lambda d, name=name: d.pop(name)
        for name in ("model", "data", "observation_space", "action_space", "updates", "target_return")
    },
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_document_that_makes_no_sense_is_refused_in_one_sentence(file, tampering, monkeypatch):
    """Even where its hash fits: nothing in it is looked up but in our own tables, and nothing is half-loaded."""
    monkeypatch.setattr(
        "json.dumps", lambda value, dumps=json.dumps, **options: dumps(value, **{**options, "allow_nan": True})
    )
    with pytest.raises(InputError, match=ONE_SENTENCE):
        load_policy(rewritten(file, TAMPERINGS[tampering]))


@pytest.mark.parametrize("preset", ["dt", "odt"])
def test_a_policy_of_a_version_that_had_the_option_expectile_acts_as_before(
    random_trajectories, untrained_policy, tmp_path, preset
):
    policy = untrained_policy(random_trajectories([7, 5]), preset=preset)
    policy.save(tmp_path / "policy")
    old = load_policy(rewritten(tmp_path / "policy", lambda d: d["model"].update(expectile=None)))
    assert old.config == policy.config
    observation = np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(old.predict(observation)[0], policy.predict(observation)[0])


def test_a_policy_of_the_dropped_preset_reinformer_is_refused_by_name(file):
    old = rewritten(file, lambda d: d["model"].update(preset="reinformer", expectile=0.99))
    says = rf"^{file} [^\n]*\(preset 'reinformer' is unknown; known: dt, odt, mgdt, [^\n]*\); use the dtrl that wrote it \({dtrl.__version__}\)\.$"
    with pytest.raises(InputError, match=says):
        load_policy(old)


def test_a_network_is_not_built_before_its_tensors_are_compared(file, monkeypatch):
    def build(*_):
        assert torch.empty(1).is_meta, "memory was taken"
        return torch.nn.Linear(7, 7)

    monkeypatch.setattr("dtrl.acting.saving.build", build)
    with pytest.raises(InputError, match=r"its settings ask for weight of shape \[7, 7\], and it holds no such tensor"):
        load_policy(file)


@pytest.mark.parametrize("text", ["[" * 5_000, "3", "null", "{", '{"a": 1'])
def test_a_document_of_another_form_is_refused(file, text):
    """With a hash that fits, as only someone who means it would write."""
    tensors, _ = load_artefact(file)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, file, metadata={"dtrl": text, "sha256": digest(tensor_parts(tensors), text)})
    with pytest.raises(InputError, match=r"policy.safetensors holds (no description|a description that is no JSON)"):
        load_policy(file)


def test_numbers_that_numpy_lacks_are_refused(tmp_path):
    text = '{"engine": "numpy", "format": 1}'
    for dtype in (torch.float8_e4m3fn, torch.bfloat16):
        tensors = {"a": torch.zeros(3, dtype=dtype)}
        metadata = {"dtrl": text, "sha256": digest(tensor_parts(tensors), text)}
        save_file(tensors, tmp_path / "odd.safetensors", metadata=metadata)
        with pytest.raises(InputError, match=r"odd\.safetensors"):
            load_policy(tmp_path / "odd.safetensors")


def test_a_place_that_cannot_be_written_is_refused_and_what_was_there_stays(policy, file):
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"policy\.safetensors/below[^\n]* cannot be written"):
        policy.save(file / "below")
    assert file.read_bytes() == before


def test_policy_load_takes_what_load_policy_takes(policy, file):
    assert Policy.load(file, target_return=2.0).target_return == 2.0
    with pytest.raises(InputError, match="target return nan is not finite"):
        load_policy(file, target_return=float("nan"))
