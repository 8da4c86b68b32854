"""The proof that the preset `dt` is the published Decision Transformer: transformers' own model, with the same weights, gives the same actions.

transformers is run as its documentation and the original repository run it: histories joined step by step, cut to K steps, padded on the left, behind
an attention mask. dtrl pads on the right, masks nothing, and acts step by step."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

from dtrl.acting import CONTEXTS, Policy
from dtrl.errors import InputError
from dtrl.interop import from_transformers, huggingface
from dtrl.windows import Batch

transformers = pytest.importorskip("transformers")

K, S, A, ROWS, LONGEST = 6, 4, 2, 5, 40
MEAN, DEVIATION = np.array([0.5, -1.0, 2.0, 0.0]), np.array([2.0, 0.5, 1.0, 3.0])
TARGET, SCALE = 30.0, 10.0
TOLERANCE = 1e-5
SETTINGS = [
    pytest.param({"n_head": 1, "n_layer": 1, "activation_function": "relu", "action_tanh": True}, id="one-layer"),
    pytest.param({"n_head": 1, "n_layer": 3, "activation_function": "relu", "action_tanh": True}, id="published"),
    pytest.param(
        {"n_head": 4, "n_layer": 3, "activation_function": "gelu_new", "action_tanh": True}, id="four-heads-gelu"
    ),
    pytest.param(
        {"n_head": 4, "n_layer": 1, "activation_function": "gelu_new", "action_tanh": False}, id="gelu-no-tanh"
    ),
    pytest.param({"n_head": 1, "n_layer": 3, "activation_function": "relu", "action_tanh": False}, id="no-tanh"),
]


def peer(seed: int = 5, **settings):
    """transformers' model with weights, biases, norms and the constant position far from their initial values."""
    config = transformers.DecisionTransformerConfig(
        state_dim=S, act_dim=A, hidden_size=32, max_ep_len=LONGEST, bos_token_id=None, eos_token_id=None, **settings
    )
    model = transformers.DecisionTransformerModel(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if "ln_" in name or name.startswith("embed_ln"):
                # multiples of 1/64, so that adding the constant position to this bias rounds nothing
                parameter.copy_(((1 if name.endswith("weight") else 0) + 0.3 * noise).mul(64).round() / 64)
            elif "wpe" in name:
                parameter.copy_((2 * noise).mul(64).round() / 64)
            elif parameter.dim() == 2 and ".h." in name:
                parameter.copy_(3 / 32**0.5 * noise)
            else:
                parameter.copy_((1.0 if name.startswith("embed") else 0.2) * noise)
    return model


@pytest.fixture(scope="module", params=SETTINGS)
def model(request):
    return peer(**request.param)


def imported(model, **options) -> Policy:
    given = {"observation_mean": MEAN, "observation_std": DEVIATION, "return_scale": SCALE, "context_length": K}
    return from_transformers(model, target_return=TARGET, **{**given, **options})


def history(rows: int, steps: int, seed: int = 0, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Random steps in env units: what `Batch.values` holds, and rewards."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(random.standard_normal((rows, steps, *shape))).to(dtype)  # noqa: E731
    return {"return": TARGET * draw(), "observation": 2 * draw(S), "action": draw(A).clamp(-1, 1), "reward": 3 * draw()}


def left_padded(model, values, timesteps) -> torch.Tensor:
    """(B, A) transformers' action at the last of (B, n) steps, n ≤ K: padded on the left to K, with a mask over the padding."""
    dtype = model.dtype
    n, rows = timesteps.shape[1], len(timesteps)
    pad = lambda x: torch.cat([x.new_zeros(rows, K - n, *x.shape[2:]), x], dim=1)  # noqa: E731
    observations = (values["observation"] - torch.from_numpy(MEAN).to(dtype)) / torch.from_numpy(DEVIATION).to(dtype)
    with torch.no_grad():
        return model(
            states=pad(observations),
            actions=pad(torch.cat([values["action"][:, : n - 1], torch.zeros(rows, 1, A, dtype=dtype)], dim=1)),
            returns_to_go=pad(values["return"].unsqueeze(-1) / SCALE),
            timesteps=pad(timesteps),
            attention_mask=torch.cat([torch.zeros(rows, K - n), torch.ones(rows, n)], dim=1).long(),
        ).action_preds[:, -1]


def documented_loop(model, observations, rewards, start=CONTEXTS["window"].start) -> torch.Tensor:
    """(B, T, A) the actions of the documented evaluation loop, when the environment shows these observations and rewards.

    `start(step, K)` is the first step that the model is given; the documented one is that of a window."""
    rows, steps = rewards.shape
    actions, returns = observations.new_zeros(rows, 0, A), observations.new_full((rows, 1), TARGET)
    for step in range(steps):
        cut = slice(start(step, K), step + 1)
        seen = {"observation": observations[:, cut], "action": actions[:, cut], "return": returns[:, cut]}
        action = left_padded(model, seen, torch.arange(step + 1)[cut].expand(rows, -1))
        actions = torch.cat([actions, action[:, None]], dim=1)
        returns = torch.cat([returns, returns[:, -1:] - rewards[:, step : step + 1]], dim=1)
    return actions


def dtrl_loop(policy: Policy, observations, rewards) -> torch.Tensor:
    """The same through `predict`."""
    rows, steps = rewards.shape
    state, actions = policy.initial_state(rows), []
    for step in range(steps):
        action, state = policy.predict(observations[:, step].numpy(), state)
        state.reward += rewards[:, step].numpy()
        actions.append(torch.from_numpy(action.copy()))
    return torch.stack(actions, dim=1)


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def right_padded(values, steps: int, junk: float) -> Batch:
    """The first steps of a history as training pads them, at timesteps 3, 4, …, with junk for padding."""
    padded = {name: x[:, :K].clone() for name, x in values.items() if name != "reward"}
    timesteps, valid = torch.arange(3, 3 + K).repeat(len(values["return"]), 1), torch.arange(K) < steps
    for x in padded.values():
        x[:, steps:] = junk
    return Batch(padded, timesteps * valid, valid.expand_as(timesteps))


@pytest.mark.parametrize("rows", [1, ROWS])
def test_forward_equals_transformers_at_every_prefix(model, rows):
    policy, values = imported(model), history(rows, K)
    for n in range(1, K + 1):
        with torch.no_grad():
            ours = policy.model(right_padded(values, n, junk=1e4))["action"].mode[:, n - 1, 0]
        theirs = left_padded(
            model, {name: x[:, :n] for name, x in values.items()}, torch.arange(3, 3 + n).repeat(rows, 1)
        )
        assert largest(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("rows", [1, ROWS])
def test_acting_equals_the_documented_loop_beyond_the_window(model, rows):
    values = history(rows, 3 * K)
    theirs = documented_loop(model, values["observation"], values["reward"])
    ours = dtrl_loop(imported(model), values["observation"], values["reward"])
    assert largest(ours, theirs) <= TOLERANCE


def test_acting_in_blocks_equals_transformers_on_the_same_steps(model):
    values = history(ROWS, 3 * K)
    theirs = documented_loop(model, values["observation"], values["reward"], CONTEXTS["block"].start)
    ours = dtrl_loop(imported(model).variant(context="block"), values["observation"], values["reward"])
    assert largest(ours, theirs) <= TOLERANCE


def test_actions_of_the_proof_are_far_from_trivial(model):
    values = history(ROWS, 3 * K)
    actions = documented_loop(model, values["observation"], values["reward"])
    other = documented_loop(
        model, values["observation"], values["reward"], lambda step, length: max(0, step - length + 2)
    )
    assert actions.std(dim=(0, 1)).min() > 0.1
    assert (actions.abs() < 0.95).float().mean() > 0.6, "a saturated tanh hides differences"
    assert largest(actions, other) > 0.1, "a window one step shorter must be seen"


def test_in_double_precision_the_difference_is_rounding():
    model = peer(n_layer=3, n_head=4)
    policy, values = imported(model), history(ROWS, K, dtype=torch.float64)
    policy.model.double()
    policy.model.tokenizers["observation"].shift.copy_(torch.from_numpy(MEAN))
    with torch.no_grad():
        ours = policy.model(right_padded(values, K, junk=0))["action"].mode[:, -1, 0]
    assert largest(ours, left_padded(model.double(), values, torch.arange(3, 3 + K).repeat(ROWS, 1))) <= 1e-12


def test_constant_position_is_part_of_the_function():
    model = peer()
    policy = imported(model)
    with torch.no_grad():
        model.encoder.wpe.weight[0] = 0
        values = history(ROWS, K)
        ours = policy.model(right_padded(values, K, junk=0))["action"].mode[:, -1, 0]
    assert largest(ours, left_padded(model, values, torch.arange(3, 3 + K).repeat(ROWS, 1))) > 0.01


@pytest.mark.parametrize(
    "settings", [{"n_head": 1}, {"n_head": 4, "activation_function": "gelu_new"}], ids=["one-head", "four-heads"]
)
def test_full_context_equals_the_cache_of_transformers(settings):
    model, steps = peer(**settings), 5 * K
    imported_policy = imported(model)
    config = replace(imported_policy.config, attention="full", context_length=steps)
    whole = Policy(
        imported_policy.model,
        config,
        imported_policy.observation_space,
        imported_policy.action_space,
        imported_policy.data,
        target_return=TARGET,
    )
    values = history(ROWS, steps)
    ours = dtrl_loop(whole, values["observation"], values["reward"])
    returns = TARGET - torch.cat([torch.zeros(ROWS, 1), values["reward"].cumsum(dim=1)], dim=1)
    cache, theirs = transformers.DynamicCache(), []
    with torch.no_grad():
        for step in range(steps):
            time = model.embed_timestep(torch.tensor(step))
            observation = (values["observation"][:, step] - torch.tensor(MEAN).float()) / torch.tensor(
                DEVIATION
            ).float()
            tokens = [model.embed_return(returns[:, step, None] / SCALE) + time, model.embed_state(observation) + time]
            if theirs:
                tokens.insert(0, model.embed_action(theirs[-1]) + model.embed_timestep(torch.tensor(step - 1)))
            x = model.embed_ln(torch.stack(tokens, dim=1))
            hidden = model.encoder(
                inputs_embeds=x, past_key_values=cache, position_ids=torch.zeros(x.shape[:2]).long(), use_cache=True
            )
            theirs.append(model.predict_action(hidden.last_hidden_state[:, -1]))
    assert largest(ours, torch.stack(theirs, dim=1)) <= TOLERANCE


def original_names(model) -> dict[str, torch.Tensor]:
    """The state dict as the original repository's model saves it: another name for the trunk, causal masks, no positions."""
    weights = {
        name.replace("encoder.", "transformer."): tensor
        for name, tensor in model.state_dict().items()
        if "wpe" not in name
    }
    for layer in range(model.config.n_layer):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(64, 64).tril().to(torch.uint8).view(1, 1, 64, 64)
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return weights


def test_original_names_are_read():
    model = peer()
    with torch.no_grad():
        model.encoder.wpe.weight.zero_()
    settings = {
        "state_dim": S,
        "act_dim": A,
        "hidden_size": 32,
        "max_length": K,
        "max_ep_len": LONGEST,
        "n_layer": 3,
        "n_head": 1,
    }
    settings |= {
        "n_inner": 128,
        "activation_function": "relu",
        "n_positions": 1024,
        "resid_pdrop": 0.2,
        "attn_pdrop": 0.2,
    }
    policy = imported((original_names(model), settings), context_length=None)
    values = history(ROWS, 2 * K)
    assert policy.context_length == K
    assert policy.config.dropout == 0.2
    assert (
        largest(
            dtrl_loop(policy, values["observation"], values["reward"]),
            documented_loop(model, values["observation"], values["reward"]),
        )
        <= TOLERANCE
    )


@pytest.fixture
def folder(tmp_path):
    peer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folder_gives_the_same_policy_as_the_model(folder):
    values = history(1, 2 * K)
    ours, theirs = (dtrl_loop(imported(source), values["observation"], values["reward"]) for source in (folder, peer()))
    assert torch.equal(ours, theirs)
    assert imported(folder).data.dataset == "model"
    assert imported(peer()).data.dataset == "DecisionTransformerModel"


def test_pickled_weights_are_read_as_tensors_only(folder):
    values = history(1, 2 * K)
    expected = dtrl_loop(imported(folder), values["observation"], values["reward"])
    torch.save(peer().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(dtrl_loop(imported(str(folder)), values["observation"], values["reward"]), expected)
    torch.save({"model": np.random.default_rng}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin names numpy.random\S+ at byte"):
        imported(folder)
    torch.save({"model": {"weight": torch.zeros(1)}}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not a state dict"):
        imported(folder)


@pytest.mark.slow
def test_transformers_is_not_imported_to_read_a_folder(folder):
    code = """
import sys
from dtrl.interop import from_transformers
policy = from_transformers(sys.argv[1], target_return=1.0)
policy.predict(policy.observation_space.sample())
print(sorted(name for name in sys.modules if name.partition(".")[0] == "transformers"))"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("tanh", [True, False])
@pytest.mark.parametrize("bound", [0.4, 50.0, np.inf])
def test_actions_are_raw_numbers_clipped_to_the_space(tanh, bound):
    model = peer(action_tanh=tanh)
    space = spaces.Box(-bound, bound, (A,))
    if tanh and bound == np.inf:
        with pytest.raises(InputError, match=r"action_space Box.* has no bounds"):
            imported(model, action_space=space)
        return
    values = history(ROWS, 1)
    raw = documented_loop(model, values["observation"], values["reward"])
    ours = dtrl_loop(imported(model, action_space=space), values["observation"], values["reward"])
    assert largest(ours, raw.clamp(-bound, bound)) <= TOLERANCE


@pytest.mark.parametrize("tanh", [True, False])
def test_saved_policy_is_the_same_function(tanh, tmp_path):
    policy, values = imported(peer(action_tanh=tanh), action_space=spaces.Box(-50, 50, (A,))), history(ROWS, 2 * K)
    policy.save(tmp_path / "policy.safetensors")
    again = Policy.load(tmp_path / "policy.safetensors")
    assert (again.target_return, again.context_length) == (TARGET, K)
    assert torch.equal(*(dtrl_loop(p, values["observation"], values["reward"]) for p in (policy, again)))


def test_spaces_come_from_the_environment():
    config = transformers.DecisionTransformerConfig(
        state_dim=3, act_dim=1, hidden_size=16, bos_token_id=None, eos_token_id=None
    )
    policy = from_transformers(transformers.DecisionTransformerModel(config), target_return=-200, env="Pendulum-v1")
    assert policy.action_space == spaces.Box(-2, 2, (1,))
    assert policy.data.env_spec == "Pendulum-v1"
    assert (policy.context_length, policy.context) == (20, "window")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("layer_norm_epsilon", 1e-6),
        ("n_inner", 64),
        ("activation_function", "gelu"),
        ("activation_function", "tanh"),
        ("activation_function", None),
        ("n_layer", 4),
        ("n_layer", 2),
        ("n_head", "one"),
        ("max_ep_len", None),
        ("hidden_size", 16),
        ("activation_function", ["relu"]),
        ("resid_pdrop", {"a": 1}),
    ],
)
def test_setting_without_a_counterpart_is_refused_by_name(setting, value):
    model = peer()
    with pytest.raises(InputError) as caught:
        imported((model.state_dict(), {**model.config.to_dict(), setting: value}))
    message = str(caught.value)
    assert setting in message or "settings" in message
    if setting in ("n_layer", "hidden_size"):
        assert "backbone" in message or "embeddings" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_std": np.zeros(S)}, r"observation_std .* all above 0"),
        ({"observation_mean": np.zeros(S + 1)}, r"observation_mean .* must be 4 finite numbers"),
        ({"observation_mean": [np.nan] * S}, r"observation_mean .*nan"),
        ({"return_scale": 0.0}, r"return_scale 0"),
        ({"context_length": 0}, r"context_length 0"),
        ({"target_return": np.inf}, r"target return inf"),
        ({"action_space": spaces.Discrete(2)}, r"action_space is Discrete\(2\)"),
        ({"observation_space": spaces.Box(-1, 1, (S + 1,))}, r"state_dim 4; give a Box of shape \(4,\)"),
        ({"env": "Pendulum-v1"}, r"state_dim 4; give a Box of shape \(4,\)"),
    ],
)
def test_wrong_option_is_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        from_transformers(peer(), **{"target_return": TARGET, **options})


@pytest.mark.parametrize(("setting", "value"), [("hidden_size", 2**40), ("max_ep_len", 2**45)])
def test_settings_that_state_more_than_the_weights_hold_are_refused(setting, value):
    model = peer()
    with pytest.raises(InputError, match=f"{setting} in the settings of .* is {value}, and its tensors together hold"):
        imported((model.state_dict(), {**model.config.to_dict(), setting: value}))


@pytest.mark.parametrize("position", [torch.zeros(20, 9), torch.zeros(0, 32), torch.zeros(32), torch.zeros(())])
def test_a_position_table_of_another_shape_is_refused(position):
    model = peer()
    with pytest.raises(InputError, match=r"encoder\.wpe\.weight of .* has no row of the width"):
        imported(({**model.state_dict(), "encoder.wpe.weight": position}, model.config.to_dict()))


def test_more_layers_than_tensors_are_refused_before_they_are_built():
    model = peer()
    with pytest.raises(InputError, match=r"n_layer in the settings of .* is 50000, and it holds \d+ tensors"):
        imported((model.state_dict(), {**model.config.to_dict(), "n_layer": 50_000}))


def test_a_network_is_not_built_before_its_tensors_are_compared(monkeypatch):
    model, build = peer(), huggingface.build

    def build_without_memory(*given):
        assert torch.empty(1).is_meta, "memory was taken"
        return build(*given)

    monkeypatch.setattr(huggingface, "build", build_without_memory)
    with pytest.raises(InputError, match="lacks"):
        imported((model.state_dict(), {**model.config.to_dict(), "n_layer": 9}))


def test_foreign_weights_are_refused_by_name(folder):
    model = peer()
    settings = model.config.to_dict()
    with pytest.raises(InputError, match=r"'predict_action.mu.weight', which no part"):
        imported(({**model.state_dict(), "predict_action.mu.weight": torch.zeros(2)}, settings))
    with pytest.raises(InputError, match=r"'transformer.wpe.weight', which no part"):
        imported(({**original_names(model), "transformer.wpe.weight": torch.zeros(9, 32)}, settings))
    with pytest.raises(InputError, match=r"lacks 1 tensors .*norm.weight"):
        imported(({name: x for name, x in model.state_dict().items() if name != "embed_ln.weight"}, settings))
    with pytest.raises(InputError, match=r"Linear without a config"):
        imported(torch.nn.Linear(1, 1))


def test_broken_folder_is_refused_by_file(folder, tmp_path):
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        imported(tmp_path / "nowhere")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read as tensors"):
        imported(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model.safetensors nor pytorch_model.bin"):
        imported(folder)
    (folder / "config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r"config\.json cannot be read \(it holds a list"):
        imported(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        imported(folder)


def test_half_precision_weights_are_raised_before_they_are_summed(folder):
    model = peer().half()
    save_file(model.state_dict(), folder / "model.safetensors")
    values = history(ROWS, K)
    theirs = documented_loop(model.float(), values["observation"], values["reward"])
    assert largest(dtrl_loop(imported(folder), values["observation"], values["reward"]), theirs) <= TOLERANCE
