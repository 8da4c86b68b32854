"""Presets: what a configuration becomes, and that each of them learns."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.config import ModelConfig
from dtrl.embeddings import SlotTables
from dtrl.errors import InputError
from dtrl.presets import (
    BINS,
    PRESETS,
    RETURN_DEVIATION,
    WHOLE_ACTIONS,
    build,
    columns_for,
    resolve,
    training_data,
    window_length,
)
from dtrl.trajectories.columns import Origin
from dtrl.windows import Windows

SPACES = {
    "vectors": (spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (2,))),
    "an open box": (spaces.Box(-1, 1, (3,)), spaces.Box(-np.inf, np.inf, (2,))),
    "ids": (spaces.Discrete(6), spaces.Discrete(4, start=-2)),
}
SMALL = {"width": 16, "layers": 2, "heads": 2, "context_length": 4, "dropout": 0.0}


def made(trajectories, **options):
    """(resolved configuration, fitted model)."""
    config = resolve(ModelConfig(**{**SMALL, **options}), trajectories)
    torch.manual_seed(0)
    model = build(config, trajectories.observation_space, trajectories.action_space)
    model.fit(columns_for(model, trajectories))
    return config, model


def one_batch(trajectories, config, size=8):
    names = build(config, trajectories.observation_space, trajectories.action_space).sources
    return Windows(trajectories, window_length(config), size, names=names).batch(0)


def spec(limit):
    return Origin("tests/made-v0", env_spec=json.dumps({"id": "x-v0", "max_episode_steps": limit}))


# Every preset of the table


@pytest.mark.parametrize(
    ("preset", "kinds"),
    [
        pytest.param(preset, kinds, marks=() if preset == "dt" and kinds == "vectors" else pytest.mark.slow)
        for preset, kinds in itertools.product(PRESETS, SPACES)
    ],
)
def test_a_preset_learns_eight_windows_by_heart(random_trajectories, preset, kinds):
    data = random_trajectories([9, 7, 12], *SPACES[kinds])
    config, model = made(data, preset=preset, width=32)
    batch, losses = one_batch(data, config), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model.loss(batch)
        optimizer.zero_grad()
        (loss.total / loss.weight).backward()
        optimizer.step()
        losses.append((loss.total / loss.weight).item())
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=pytest.mark.slow if name in ("vq_dt", "tt") else ()) for name in PRESETS]
)
def test_a_preset_has_every_option_of_its_configuration(random_trajectories, preset):
    data = random_trajectories([9, 7])
    for options in (
        {"head": "gaussian"}, {"head": "tanh_gaussian"}, {"trunk": "modern"}, {"kv_heads": 1}, {"attention": "banded"},
        {"attention": "full"}, {"activation": "gelu"}, {"timestep_embedding": False}, {"dropout": 0.5},
    ):  # fmt: skip
        if preset in BINS and "head" in options:
            continue  # its head is categorical
        config, model = made(data, preset=preset, **options)
        loss = model.loss(one_batch(data, config))
        loss.total.backward()
        assert loss.total.isfinite(), options


@pytest.mark.parametrize("preset", PRESETS)
def test_the_resolved_configuration_is_all_that_is_needed_to_build_the_network_again(random_trajectories, preset):
    data = random_trajectories([9, 7])
    config, model = made(data, preset=preset)
    again = build(config, data.observation_space, data.action_space)
    again.load_state_dict(model.state_dict())
    batch = one_batch(data, config)
    assert torch.equal(again.loss(batch).total, model.loss(batch).total)
    assert resolve(config, data) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_the_network_is_drawn_from_torchs_seed(random_trajectories, preset):
    data = random_trajectories([9, 7])
    one, other = (made(data, preset=preset)[1].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


# What a configuration becomes


def test_defaults_come_from_the_data(random_trajectories):
    data = random_trajectories([9, 30])
    config = resolve(ModelConfig(), data)
    assert config.head == "deterministic"
    assert config.max_timestep == 30
    assert (data.returns_to_go / config.return_scale).std() == pytest.approx(RETURN_DEVIATION)
    assert resolve(ModelConfig(), random_trajectories([9], *SPACES["ids"])).head == "categorical"


def test_what_was_given_stays(random_trajectories):
    given = ModelConfig(
        head="gaussian",
        max_timestep=7,
        return_scale=2.0,
        context_length=3,
        timestep_embedding=False,
        attention="banded",
        goal="",
    )
    assert resolve(given, random_trajectories([9, 30])) == given


@pytest.mark.parametrize(("limit", "rows"), [(1_000, 1_000), (5, 30), (None, 30)])
def test_the_timestep_table_reaches_to_the_longest_episode_or_the_limit(random_trajectories, limit, rows):
    assert resolve(ModelConfig(), random_trajectories([9, 30], origin=spec(limit))).max_timestep == rows


def test_returns_of_zero_are_not_divided_by(random_trajectories):
    data = random_trajectories([4])
    data.rewards[:] = 0
    assert resolve(ModelConfig(), data).return_scale == 1


def test_the_return_scale_counts_the_returns_to_go_of_every_step(random_trajectories):
    data = random_trajectories([3, 2])
    data.rewards[:] = [1, -8, 2, 1, 1]
    assert resolve(ModelConfig(), data).return_scale == pytest.approx(np.std([-5, -6, 2, 2, 1]) / RETURN_DEVIATION)


@pytest.mark.parametrize(("trunk", "learned"), [("gpt2", True), ("modern", False)])
def test_the_published_trunk_learns_its_timesteps_and_the_modern_one_does_not(random_trajectories, trunk, learned):
    data = random_trajectories([9])
    assert resolve(ModelConfig(trunk=trunk), data).timestep_embedding == learned
    assert (made(data, trunk=trunk)[1].timestep_embedding is not None) == learned


@pytest.mark.parametrize(("attention", "context", "window"), [("window", 4, 4), ("banded", 4, 8), ("full", 9, 9)])
def test_windows_are_as_long_as_the_attention_needs(random_trajectories, attention, context, window):
    config, model = made(random_trajectories([9, 7]), attention=attention)
    assert (config.context_length, window_length(config)) == (context, window)
    assert model.backbone.band == ((4, 3) if attention == "banded" else None)


def test_a_decision_transformer_scales_returns_standardises_observations_and_bounds_actions(random_trajectories):
    box = spaces.Box(np.float32([-3, 0]), np.float32([1, 10]))
    data = random_trajectories([9, 7], None, box)
    config, model = made(data)
    assert [f.name for f in model.fields] == ["return", "observation", "action"]
    assert [f.loss_weight for f in model.fields] == [0, 0, 1]
    assert model.tokenizers["return"].scale.item() == pytest.approx(config.return_scale)
    np.testing.assert_allclose(model.tokenizers["observation"].shift, data.observations.mean(0), rtol=1e-5)
    assert model.tokenizers["action"].shift.tolist() == [-1, 5]


def test_behaviour_cloning_sees_the_observation_alone(random_trajectories):
    _, model = made(random_trajectories([9]), preset="bc")
    assert not model.backbone.memory
    assert list(model.embeddings) == ["observation"]
    assert model.timestep_embedding is None


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-1, np.inf), (-np.inf, 1)])
def test_actions_reach_the_bounds_of_the_space_or_else_of_the_data(random_trajectories, low, high):
    data = random_trajectories([9], None, spaces.Box(np.float32([-1, low]), np.float32([1, high])))
    _, model = made(data)
    edges = model.tokenizers["action"].decode(torch.tensor([[[[-1.0, -1.0]], [[1.0, 1.0]]]]))[0]
    finite = np.isfinite(low) and np.isfinite(high)
    column = data.actions[:, 1]
    expected = [[-1, low if finite else column.min()], [1, high if finite else column.max()]]
    np.testing.assert_allclose(edges, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("preset", "order"),
    [
        ("dt", ["return", "observation", "action"]),
        ("odt", ["return", "observation", "action"]),
        ("mgdt", ["observation", "return", "action"]),
    ],
)
def test_who_chooses_the_return_itself_has_seen_the_observation(random_trajectories, preset, order):
    _, model = made(random_trajectories([9, 7]), preset=preset)
    assert [f.name for f in model.fields] == order
    chosen = {f.name: (f.chosen, f.loss_weight) for f in model.fields}
    assert chosen["return"] == ((True, 1.0) if order[1] == "return" else (False, 0.0))
    assert chosen["action"] == (False, 1.0)


def test_a_squashed_gaussian_keeps_the_entropy_of_its_dimensions(random_trajectories):
    config, model = made(random_trajectories([9, 7]), preset="odt")
    assert config.head == "tanh_gaussian"
    assert {f.name: f.least_entropy for f in model.fields if f.least_entropy is not None} == {"action": -2.0}
    assert model.bounded == ["action"]
    ids = made(random_trajectories([9, 7], *SPACES["ids"]), preset="odt")[1]
    assert (ids.bounded, len(ids.log_multipliers)) == ([], 0)


@pytest.mark.parametrize("preset", WHOLE_ACTIONS)
def test_actions_stay_out_of_the_context_where_it_is_asked_for(random_trajectories, preset):
    data = random_trajectories([9, 7])
    config, model = made(data, preset=preset, action_context=False)
    assert model.tokens_per_step == 2
    assert sorted(model.embeddings) == ["observation", "return"]
    batch = one_batch(data, config)
    other = dataclasses.replace(batch, values={**batch.values, "action": -batch.values["action"]})
    assert torch.equal(model(batch)["action"].mode, model(other)["action"].mode)
    _, sees = made(data, preset=preset)
    assert not torch.equal(sees(batch)["action"].mode, sees(other)["action"].mode)


# Data


def test_filtered_cloning_learns_from_the_best_episodes(random_trajectories):
    data = random_trajectories([3] * 20)
    chosen = training_data(ModelConfig(preset="filtered_bc", top_fraction=0.2), data)
    np.testing.assert_array_equal(np.sort(chosen.episode_returns), np.sort(data.episode_returns)[-4:])
    assert training_data(ModelConfig(preset="bc"), data) is data
    assert training_data(ModelConfig(preset="dt"), data) is data


# What is refused


@pytest.mark.parametrize(
    ("preset", "suggestion"),
    [
        ("filtered-bc", "did you mean 'filtered_bc'"),
        ("zzz", "known: dt, odt, mgdt, dt_discrete, vq_dt, tt, bc, filtered_bc, rvs"),
    ],
)
def test_an_unknown_preset_names_the_nearest(random_trajectories, preset, suggestion):
    with pytest.raises(InputError, match=f"preset '{preset}' is unknown; {suggestion}"):
        resolve(ModelConfig(preset=preset), random_trajectories([4]))


@pytest.mark.parametrize(
    ("head", "kinds", "use"),
    [
        ("categorical", "vectors", "use deterministic, gaussian or tanh_gaussian"),
        ("gaussian", "ids", "use categorical"),
        ("deterministic", "ids", "use categorical"),
    ],
)
def test_a_head_that_does_not_fit_the_action_space_is_refused(random_trajectories, head, kinds, use):
    data = random_trajectories([4], *SPACES[kinds], origin=Origin("tests/made-v0"))
    with pytest.raises(InputError, match=f"head '{head}' does not fit the action space .* of tests/made-v0; {use}"):
        resolve(ModelConfig(head=head), data)


def test_an_action_outside_its_discrete_space_is_refused_before_training(random_trajectories):
    data = random_trajectories([4], *SPACES["ids"])
    data.actions[2] = 9
    with pytest.raises(InputError, match=r"the data hold 9 where the space is Discrete\(4, start=-2\)"):
        made(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_bins": 9, "preset": "odt"}, "return_bins is of preset mgdt, and odt does not predict returns so; leave it out"),
        ({"action_context": False, "preset": "tt"}, "action_context is of presets with one token an action .*, and tt is none"),
        ({"head": "deterministic", "preset": "odt"}, "head deterministic has no entropy for preset odt to keep; .* take preset dt"),
    ],
)  # fmt: skip
def test_an_option_of_another_preset_is_refused(random_trajectories, options, message):
    with pytest.raises(InputError, match=message):
        resolve(ModelConfig(**options), random_trajectories([4]))


@pytest.mark.parametrize(("preset", "actions"), [("tt", "vectors"), ("dt_discrete", "vectors"), ("dt", "discrete")])
def test_tables_of_ids_do_not_drown_the_timestep_at_the_beginning(random_trajectories, preset, actions):
    options = {"action_space": spaces.Discrete(40)} if actions == "discrete" else {}
    _, model = made(random_trajectories([9, 7], **options), preset=preset, width=32)
    time = model.timestep_embedding.weight.std().item()
    layers = [layer.table if isinstance(layer, SlotTables) else layer for layer in model.embeddings.values()]
    tables = [layer.weight for layer in layers if isinstance(layer, torch.nn.Embedding)]
    assert tables
    for table in tables:
        assert table.std().item() == pytest.approx(time, rel=0.3)
