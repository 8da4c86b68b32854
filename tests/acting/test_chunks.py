"""Policies that decide several actions at once: what they compute is teacher forcing, what they execute is what they decided, and every row counts for
itself."""

import dataclasses
import itertools
from functools import partial

import hypothesis
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import strategies as st

import dtrl
from dtrl.acting import Episode, rollout
from dtrl.acting.context import CONTEXTS, EXACT
from dtrl.acting.exported import ExportedPolicy
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.evaluation.meters import exposure_bias, target_sensitivity
from dtrl.evaluation.meters.swaps import Probes
from dtrl.tokenizers import finite_scalar, vector_quantization
from dtrl.windows import Batch, fitted_chunks

K, H = 3, 3
"""Blocks of a context, and steps of a block."""
EXACT_PAIRS = [(attention, kind) for attention, kinds in EXACT.items() for kind in kinds]
VECTOR = spaces.Box(-np.inf, np.inf, (3,))
LOPSIDED = spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)
CHOICES = spaces.Discrete(4, start=2)
LENGTHS = (7 * H, 1, K * H, 4 * H + 2, K * H + 1, H - 1)
"""Episodes of whole blocks and of others, longer and shorter than a context, one of a single step; they act side by side and end one by one."""
FEW = {"width": 8, "heads": 2}
ASKED = {
    "dt": {},
    "gaussian": {"head": "gaussian"},
    "odt": {"preset": "odt"},
    "mgdt": {"preset": "mgdt"},
    "no actions in context": {"action_context": False},
    "uniform": {"preset": "dt_discrete", "bins": 8},
    "FAST": {"preset": "dt_discrete", "action_tokenizer": "sequential", "bins": 100},
    "residual codes": {"preset": "dt_discrete", "action_tokenizer": "vector_quantization", "bins": 6},
    "finite scalars": {"preset": "dt_discrete", "action_tokenizer": "finite_scalar", "bins": 256},
    "codes and rest": {"preset": "vq_dt", "bins": 4},
    "bc": {"preset": "bc"},
    "rvs": {"preset": "rvs"},
}
ONE_SENTENCE = r"[^\n]*\.$"


def pairs_and(names):
    """(attention, kind, name): every pair with every name. Those that `make fast` runs have each pair and each name."""
    pairs, names = len(EXACT_PAIRS), list(names)
    quick = {(i % pairs, i % len(names)) for i in range(max(pairs, len(names)))}
    return [
        pytest.param(*EXACT_PAIRS[i], names[j], marks=() if (i, j) in quick else pytest.mark.slow)
        for i, j in itertools.product(range(pairs), range(len(names)))
    ]


@pytest.fixture(autouse=True)
def tokenizers_learn_for_a_moment(monkeypatch):
    """Codes need not be good here."""
    for module in (finite_scalar, vector_quantization):
        monkeypatch.setattr(module, "train", partial(briefly, module.train))


def briefly(train, networks, loss, chunks, options, generator):
    train(networks, loss, chunks, dataclasses.replace(options, steps=10), generator)


@pytest.fixture
def episodes(random_trajectories):
    """Makes trajectories with rewards whose sums are exact in float32."""

    def make(lengths=LENGTHS, action_space=LOPSIDED, seed=0):
        made = random_trajectories(lengths, VECTOR, action_space, seed)
        return dataclasses.replace(made, columns={**made.columns, "rewards": np.round(4 * made.rewards) / 4})

    return make


@pytest.fixture
def policy_for(episodes, untrained_policy):
    """Makes a policy of chunks, in float64."""

    def make(action_space=LOPSIDED, **options):
        policy = untrained_policy(
            episodes(action_space=action_space), **{"chunk_length": H, "context_length": K, **options}
        )
        policy.model.to(torch.float64)
        return policy

    return make


def random_play(rows, steps, seed=0, resets=0.0):
    """Observations, rewards, which rows begin, and target returns of `steps` steps."""
    random = np.random.default_rng(seed)
    first = random.random((steps, rows)) < resets
    first[0] = True
    return (
        random.normal(size=(steps, rows, 3)).astype(np.float32),
        random.integers(-8, 9, (steps, rows)) / 4,
        first,
        random.integers(0, 9, (steps, rows)) * 1.0,
    )


def play(policy, observations, rewards, first, targets, state=None, **how):
    """(T, rows, A) the actions of `predict` along given observations (T, rows, S)."""
    state = state or policy.initial_state(observations.shape[1])
    actions = []
    for now in range(len(observations)):
        state.target_returns = np.where(first[now], targets[now], state.target_returns)
        actions.append(policy.predict(observations[now], state, episode_start=first[now], **how)[0].copy())
        state.reward += rewards[now]
    return np.stack(actions)


def one_row(play_of, row, begin, end):
    return tuple(x[begin:end, row : row + 1] for x in play_of)


# the model that acts is the one that was trained


@pytest.mark.parametrize(("attention", "kind", "name"), pairs_and(ASKED))
def test_acting_is_teacher_forcing(episodes, untrained_policy, attention, kind, name):
    data, asked = episodes(), ASKED[name]
    memory = asked.get("preset") not in ("bc", "rvs")
    acting = {"context": kind} if memory else {}
    policy = untrained_policy(
        data, chunk_length=H, context_length=K, attention=attention, acting=acting, **FEW, **asked
    )
    assert policy.model.block_length == H
    assert 0 <= policy.replay(data.select([3, 1])) <= 1e-5
    policy.model.to(torch.float64)
    assert policy.replay(data) <= 1e-12


@pytest.mark.parametrize("preset", ["dt", "dt_discrete", "vq_dt"])
@pytest.mark.parametrize("action_space", [CHOICES, spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)], ids=str)
def test_choices_come_in_chunks_too(episodes, untrained_policy, action_space, preset):
    data = episodes(action_space=action_space)
    policy = untrained_policy(data, chunk_length=H, context_length=K, preset=preset)
    assert policy.replay(data, rows=4) <= 1e-5
    played = play(policy, *random_play(rows=3, steps=2 * H + 1))
    assert all(action_space.contains(action) for step in played for action in step)


@pytest.mark.parametrize("preset", ["dt", "dt_discrete"])
def test_parts_of_a_composite_action_come_in_chunks(episodes, untrained_policy, random_trajectories, preset):
    space = spaces.Dict({"grip": spaces.Discrete(2), "move": LOPSIDED})
    parts = [episodes(action_space=part) for part in space.spaces.values()]
    data = dataclasses.replace(parts[0], action_space=space)
    columns = {name: column for name, column in data.columns.items() if name != "actions"}
    columns |= {f"actions/{key}": part.actions for key, part in zip(space.spaces, parts, strict=True)}
    data = dataclasses.replace(data, columns=columns)
    policy = untrained_policy(data, chunk_length=H, context_length=K, preset=preset)
    assert policy.replay(data, rows=4) <= 1e-5


def test_discounted_and_delayed_returns(episodes, untrained_policy):
    for changes in ({"discount": 0.9}, {"delayed": True}):
        data = dataclasses.replace(episodes(), **changes)
        assert untrained_policy(data, chunk_length=H, context_length=K).replay(data, rows=4) <= 1e-5


def test_replay_finds_blocks_that_lie_otherwise(episodes, untrained_policy, monkeypatch):
    """A policy that places the actions of the block before one step ago, and not H."""
    data = episodes()
    policy = untrained_policy(data, chunk_length=H, context_length=K)
    policy.ages = np.minimum(policy.ages, 1)
    assert policy.replay(data, rows=4) > 1e-3


@pytest.mark.parametrize("asked", ["dt", "uniform", "codes and rest"])
def test_a_later_chunk_changes_no_earlier_prediction(policy_for, asked):
    policy, random = policy_for(**ASKED[asked]), np.random.default_rng(0)
    shapes = {"return": (1, K), "observation": (1, K, 3), "action": (1, K, H, 2)}
    values = {name: torch.from_numpy(random.uniform(0, 0.5, shape)) for name, shape in shapes.items()}
    timesteps, valid = H * torch.arange(K)[None], torch.ones(1, K, dtype=torch.bool)
    decided = [name for decision in policy.decisions for name in decision.names]

    def values_of(changed):
        found = policy.model(Batch(changed, timesteps, valid))
        return {name: getattr(found[name], "logits", found[name].mode) for name in decided}

    before = values_of(values)
    for block in range(K):
        changed = {name: x.clone() for name, x in values.items()}
        changed["action"][:, block, H - 1] = torch.tensor([2.0, 0.4])
        after = values_of(changed)
        for name in decided:
            assert torch.equal(after[name][:, :block], before[name][:, :block])
            if block < K - 1:
                assert not torch.equal(after[name][:, block + 1 :], before[name][:, block + 1 :])


# what is executed is what was decided


def blocks_along(policy, observations, returns, actions, row, until):
    """The batch of one window of the blocks up to the one that begins at step `until`, as the policy has lived them."""
    begin = CONTEXTS[policy.context].start(until // H, policy.context_length)
    at = np.arange(begin, until // H + 1) * H
    chunks = np.stack([actions[t : t + H, row] for t in at])
    return Batch(
        {
            "return": torch.from_numpy(returns[at, row])[None],
            "observation": torch.from_numpy(observations[at, row])[None],
            "action": torch.from_numpy(chunks)[None],
        },
        torch.from_numpy(at)[None],
        torch.ones(1, len(at), dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("attention", "kind", "asked"), pairs_and(["dt", "gaussian", "uniform", "no actions in context"])
)
def test_each_chunk_is_the_mode_given_what_was_lived_before(policy_for, attention, kind, asked):
    """Two rows, seven blocks, greedy: the training forward over a row's own past gives the very chunks that `predict` handed out one by one."""
    policy = policy_for(attention=attention, acting={"context": kind}, **ASKED[asked])
    observations, rewards, first, targets = random_play(rows=2, steps=7 * H)
    actions = play(policy, observations, rewards, first, targets)
    returns = targets[0] - np.concatenate([np.zeros((1, 2)), np.cumsum(rewards, axis=0)[:-1]])
    for row, until in itertools.product(range(2), range(0, 7 * H, H)):
        with torch.inference_mode():
            found = policy.model(blocks_along(policy, observations, returns, actions, row, until))["action"].mode
        chunk = policy.to_actions({"action": found[:, -1]}, "action")[0]
        np.testing.assert_allclose(chunk, actions[until : until + H, row], atol=1e-9)


@pytest.mark.parametrize("asked", ["FAST", "residual codes", "finite scalars", "uniform"])
def test_ids_are_decoded_to_the_actions_that_are_executed(policy_for, monkeypatch, asked):
    policy, chosen = policy_for(**ASKED[asked]), []
    choose = policy.choose_tokens

    def watched(*arguments):
        chosen.append(choose(*arguments))
        return chosen[-1]

    monkeypatch.setattr(policy, "choose_tokens", watched)
    actions = play(policy, *random_play(rows=2, steps=3 * H), deterministic=False)
    assert len(chosen) == 3
    for i, tokens in enumerate(chosen):
        ids = tokens["action"]
        assert ids.shape == (2, policy.model.by_name["action"].tokenizer.num_tokens)
        decoded = policy.model.tokenizers["action"].decode(ids[:, None]).numpy()
        expected = np.clip(decoded, LOPSIDED.low, LOPSIDED.high)
        np.testing.assert_allclose(actions[i * H : (i + 1) * H].swapaxes(0, 1), expected)


def test_the_model_is_told_the_ids_that_were_chosen(policy_for):
    """FAST's ids need not be those that their own actions would be encoded as, so the last one is not read off the actions either."""
    policy = policy_for(**ASKED["FAST"])
    assert all(decision.fed for decision in policy.decisions)
    assert policy.after == []
    state = policy.initial_state(1)
    play(policy, *random_play(rows=1, steps=1), state=state)
    assert state.context.lengths.tolist() == [policy.model.tokens_per_step]


@pytest.mark.parametrize(("greedy", "rows"), [(True, 3), (False, 3), (False, 1)])
def test_after_a_complete_chunk_comes_padding_at_once(policy_for, monkeypatch, greedy, rows):
    """FAST's ids of a chunk end where they stand for all of its coefficients, or where the model says padding; each row by itself."""
    policy = policy_for(**ASKED["FAST"])
    tokenizer, chosen, fed = policy.model.tokenizers["action"], [], []
    choose, embed = policy.choose_tokens, policy.model.embed_ids
    monkeypatch.setattr(
        policy, "choose_tokens", lambda *a: (chosen.append(choose(*a)["action"]), {"action": chosen[-1]})[1]
    )
    monkeypatch.setattr(
        policy.model, "embed_ids", lambda name, ids, *a: (fed.append(ids.shape[1]), embed(name, ids, *a))[1]
    )
    play(policy, *random_play(rows, steps=24 * H), deterministic=greedy)
    lengths = tokenizer.second.lengths
    needed = []
    for ids in chosen:
        assert ids.shape == (rows, tokenizer.num_tokens)
        for row in ids:
            stop = torch.nonzero(row == tokenizer.padding_id).flatten()
            n = int(stop[0]) if len(stop) else tokenizer.num_tokens
            assert (row[n:] == tokenizer.padding_id).all()
            assert lengths[row[: n - 1]].sum() < tokenizer.num_tokens
            needed.append(n)
    assert min(needed) < tokenizer.num_tokens
    assert sum(fed) == len(chosen) * tokenizer.num_tokens
    if greedy or rows == 1:
        assert len(fed) < sum(fed)


def test_training_data_hold_nothing_but_padding_after_a_complete_chunk(policy_for, episodes):
    """So to take it for granted is no other distribution than the one that is learnt."""
    policy, data = policy_for(**ASKED["FAST"]), episodes()
    tokenizer = policy.model.tokenizers["action"]
    ids = tokenizer.encode(torch.from_numpy(fitted_chunks(data, data.actions, H)))[:, 0]
    over = torch.stack([tokenizer.complete(ids[:, :n]) for n in range(1, tokenizer.num_tokens)], dim=1)
    assert over.any()
    assert (~over).any()
    assert torch.equal(ids[:, 1:] == tokenizer.padding_id, over)


def test_the_model_is_asked_once_a_chunk(policy_for, monkeypatch):
    policy, asked = policy_for(), []
    look = policy.look
    monkeypatch.setattr(
        policy, "look", lambda state, *rest: (asked.append(state.timesteps.tolist()), look(state, *rest))[1]
    )
    play(policy, *random_play(rows=2, steps=3 * H + 1))
    assert asked == [[t, t] for t in range(0, 3 * H + 1, H)]


def test_the_return_goes_on_falling_within_a_chunk(policy_for, monkeypatch):
    policy, seen = policy_for(acting={"target_return": 8.0}), []
    tokenizer = policy.model.tokenizers["return"]
    encode = type(tokenizer).encode
    monkeypatch.setattr(tokenizer, "encode", lambda x: (seen.append(x.flatten().tolist()), encode(tokenizer, x))[1])
    for _ in range(2 * H + 1):
        policy.act(np.zeros(3), reward=1.0)
    assert seen == [[8], [8 - H], [8 - 2 * H]]


@pytest.mark.parametrize("preset", ["bc", "rvs"])
@pytest.mark.parametrize("execute", [1, 2, H])
def test_fewer_actions_may_be_executed_where_nothing_is_looked_back_on(policy_for, preset, execute):
    policy = policy_for(preset=preset, acting={"decoding": DecodingConfig(execute=execute)})
    observations, rewards, first, targets = random_play(rows=2, steps=3 * H)
    actions = play(policy, observations, rewards, first, targets)
    returns = targets[0] - np.concatenate([np.zeros((1, 2)), np.cumsum(rewards, axis=0)[:-1]])
    for step in range(3 * H):
        asked = step - step % execute
        values = {"return": returns[asked], "observation": observations[asked], "action": np.zeros((2, H, 2))}
        batch = Batch(
            {name: torch.from_numpy(x)[:, None] for name, x in values.items()},
            torch.full((2, 1), asked),
            torch.ones(2, 1, dtype=torch.bool),
        )
        with torch.inference_mode():
            chunks = policy.to_actions({"action": policy.model(batch)["action"].mode[:, 0]}, "action")
        np.testing.assert_allclose(actions[step], chunks[:, step - asked], atol=1e-9)


# rows


@pytest.mark.parametrize(("attention", "kind", "asked"), pairs_and(["dt", "FAST", "uniform"]))
@hypothesis.settings(max_examples=3, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 4), resets=st.sampled_from([0.15, 0.02, 0.5]))
def test_episodes_that_begin_at_any_time_are_each_as_alone(policy_for, attention, kind, asked, seed, rows, resets):
    policy, steps = policy_for(attention=attention, acting={"context": kind}, **FEW, **ASKED[asked]), 4 * H + 2
    played = random_play(rows, steps, seed, resets)
    together = play(policy, *played)
    for row in range(rows):
        begins = [*np.flatnonzero(played[2][:, row]), steps]
        for begin, end in itertools.pairwise(begins):
            alone = play(policy, *one_row(played, row, begin, end))
            np.testing.assert_allclose(together[begin:end, row : row + 1], alone, atol=1e-12, rtol=0)


def test_how_soon_neighbours_are_complete_does_not_change_what_a_row_draws(policy_for):
    policy = policy_for(**ASKED["FAST"])
    played = random_play(rows=4, steps=4 * H + 2, resets=0.15)

    def drawn(rows):
        state = policy.initial_state(len(rows), generators=[np.random.default_rng(row) for row in rows])
        of_rows = tuple(x[:, rows] for x in played)
        return play(policy, *of_rows, state=state, deterministic=False)

    together = drawn([0, 1, 2, 3])
    for row in range(4):
        np.testing.assert_allclose(drawn([row]), together[:, row : row + 1], atol=1e-12, rtol=0)


STRATEGIES = {
    "beam": {"strategy": "beam", "beam_width": 3},
    "contrastive": {"strategy": "contrastive"},
    "guidance": {"guidance": 2.0},
    "no repeats": {"no_repeat_ngram": 2},
    "penalty": {"repetition_penalty": 3.0},
    "sample": {"strategy": "sample", "top_p": 0.9},
}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, id=name, marks=() if name in ("beam", "guidance", "sample") else pytest.mark.slow)
        for name, how in STRATEGIES.items()
    ],
)
def test_strategies_choose_chunks_and_rows_stay_apart(policy_for, how):
    policy = policy_for(**ASKED["uniform"], attention="banded", acting={"decoding": DecodingConfig(**how)})
    played = random_play(rows=3, steps=4 * H + 2, resets=0.15)
    assert played[2][1:].any()

    def generators(rows):
        return policy.initial_state(len(rows), generators=[np.random.default_rng(row) for row in rows])

    deterministic = how.get("strategy") != "sample"
    together = play(policy, *played, state=generators(range(3)), deterministic=deterministic)
    for row in range(3):
        alone = play(policy, *one_row(played, row, 0, 4 * H + 2), state=generators([row]), deterministic=deterministic)
        np.testing.assert_allclose(together[:, row : row + 1], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_envs", [1, 2, 4, 7])
def test_an_episode_does_not_depend_on_the_rows_beside_it(
    random_trajectories, untrained_policy, scripted_env, num_envs
):
    """Episodes of 2 to 9 steps end within chunks; more rows than episodes are idle from the start."""
    data = random_trajectories([9, 5, 7], scripted_env.observation_space, scripted_env.action_space)
    policy = untrained_policy(data, chunk_length=4, context_length=2)
    asked = [Episode(float(i), i) for i in range(6)]
    alone = rollout(policy, scripted_env, asked, num_envs=1)
    played = rollout(policy, scripted_env, asked, num_envs=num_envs)
    assert len(set(played.episode_lengths)) > 2
    for name, column in alone.columns.items():
        np.testing.assert_array_equal(played.columns[name], column)


def test_nothing_is_decided_for_rows_that_play_nothing(
    random_trajectories, untrained_policy, scripted_env, monkeypatch
):
    data = random_trajectories([9, 5, 7], scripted_env.observation_space, scripted_env.action_space)
    policy, sizes = untrained_policy(data, chunk_length=4, context_length=2), []
    look = policy.look
    monkeypatch.setattr(
        policy, "look", lambda state, *rest: (sizes.append(len(state.timesteps)), look(state, *rest))[1]
    )
    played = rollout(policy, scripted_env, [Episode(1.0, i) for i in range(5)], num_envs=5)
    assert sum(sizes) == sum(-(-length // 4) for length in played.episode_lengths)


# from data to the environment and back


def test_saved_and_loaded_it_acts_the_same(policy_for, tmp_path):
    for asked in ("dt", "FAST", "residual codes", "codes and rest"):
        policy = policy_for(**ASKED[asked])
        policy.model.to(torch.float32)
        policy.save(tmp_path / "policy.safetensors")
        again = dtrl.load_policy(tmp_path / "policy.safetensors")
        played = random_play(rows=2, steps=3 * H)
        np.testing.assert_array_equal(play(again, *played), play(policy, *played))
        assert again.config.chunk_length == H


def known_songs():
    """Episodes whose first observation says which of two sequences of six actions is played; later observations say nothing."""
    songs = np.array([[0, 2, 1, 1, 0, 2], [1, 1, 0, 2, 2, 0]])
    played = [
        {
            "observations": np.concatenate([np.eye(2)[which][None], np.zeros((6, 2))]),
            "actions": songs[which],
            "rewards": np.ones(6),
            "terminations": np.arange(6) == 5,
            "truncations": np.zeros(6, dtype=bool),
        }
        for which in (0, 1) * 8
    ]
    return songs, dtrl.Trajectories.from_episodes(played, spaces.Box(-1, 1, (2,)), spaces.Discrete(3))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"preset": "bc"}, {}, {"preset": "dt_discrete"}], ids=["bc", "dt", "dt_discrete"])
def test_a_chunk_holds_what_no_later_observation_tells(options):
    """Cloning step by step cannot know the song after its first note; a chunk of all six is decided while it is seen."""
    songs, data = known_songs()
    small = {"updates": 300, "width": 32, "layers": 1, "context_length": 1, "dropout": 0.0, "seed": 0, **options}
    policy = dtrl.train(data, chunk_length=6, **small)
    blind = dtrl.train(data, **small) if options.get("preset") == "bc" else None
    for which, song in enumerate(songs):
        observations = np.concatenate([np.eye(2)[which][None], np.zeros((5, 2))])
        policy.reset(6.0)
        assert [int(policy.act(seen, 1.0)) for seen in observations] == song.tolist()
        if blind is not None:
            blind.reset(6.0)
            assert [int(blind.act(seen, 1.0)) for seen in observations] != song.tolist()


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(episodes, tmp_path):
    data = episodes()
    options = {"chunk_length": H, "context_length": K, "width": 16, "batch_size": 4, "preset": "dt_discrete", "bins": 8}
    whole = dtrl.train(data, updates=6, logdir=tmp_path / "whole", **options)

    def stop(event):
        return event.update < 3

    dtrl.train(data, updates=6, logdir=tmp_path / "parts", callbacks=[stop], **options)
    resumed = dtrl.train(data, updates=6, logdir=tmp_path / "parts", resume=True, **options)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    loaded = dtrl.load_policy(tmp_path / "whole")
    assert loaded.replay(data) <= 1e-5


def test_a_holdout_and_perturbations_take_chunks(episodes, tmp_path):
    data = episodes()
    policy = dtrl.train(
        data,
        updates=2,
        chunk_length=H,
        context_length=K,
        width=16,
        batch_size=4,
        holdout=0.3,
        observation_noise=0.1,
        scheduled_sampling=0.5,
        conservative=1.0,
        logdir=tmp_path,
        log_every=1,
    )
    assert policy.replay(data) <= 1e-5


def test_meters_probe_the_first_action_of_a_chunk(policy_for, episodes):
    policy, data = policy_for(), episodes()
    probes = Probes(policy, data, count=20)
    assert probes.before[""].shape == (20, 2)
    assert (probes.last < K).all()
    np.testing.assert_array_equal(probes.batch.values["action"][np.arange(20), probes.last][:, 0], probes.recorded[""])
    assert target_sensitivity(policy, probes).numbers["share"] > 0
    assert exposure_bias(policy, data).fine is None


# what does not go with chunks


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "tt"}, "chunk_length is of presets that predict actions alone"),
        ({"preset": "dt_discrete", "draft_head": True}, "draft_head is for strategy speculative"),
        ({"action_tokenizer": "frequency"}, "action_tokenizer is of preset dt_discrete, and dt has"),
        (
            {"preset": "dt_discrete", "action_tokenizer": "frequency", "binning": "uniform"},
            "action_tokenizer frequency takes the place of binning uniform",
        ),
        (
            {"preset": "dt_discrete", "action_tokenizer": "byte_pairs"},
            "action_tokenizer byte_pairs is not for the action",
        ),
        ({"preset": "dt_discrete", "action_tokenizer": "fast"}, "action_tokenizer 'fast' is unknown"),
        ({"chunk_length": 0}, "chunk_length 0 must be a positive number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(policy_for, options, says):
    with pytest.raises(InputError, match=says + ONE_SENTENCE):
        policy_for(**options)


def test_engines_masks_and_drafts_are_refused(policy_for):
    with pytest.raises(InputError, match="this one decides 3 at once; use engine eager" + ONE_SENTENCE):
        ExportedPolicy.of(policy_for(), "numpy")
    with pytest.raises(
        InputError, match="action masks are known for one step, and this policy decides 3" + ONE_SENTENCE
    ):
        policy_for(CHOICES).predict(np.zeros((1, 3)), action_masks=np.ones((1, 4), dtype=bool))
    with pytest.raises(InputError, match="strategy speculative guesses the tokens of single steps" + ONE_SENTENCE):
        policy_for(**ASKED["uniform"], acting={"decoding": DecodingConfig(strategy="speculative", draft="ngram")})


@pytest.mark.parametrize(
    ("options", "execute", "says"),
    [
        ({}, 2, "execute 2 is not exact for preset dt: it looks back on whole blocks of 3 steps"),
        ({"preset": "bc"}, 4, "execute 4 is more than the 3 actions"),
        ({"chunk_length": 1}, 1, "execute 1 is for policies that decide chunks"),
    ],
)
def test_a_number_of_executed_actions_that_is_not_exact_is_refused(policy_for, options, execute, says):
    with pytest.raises(InputError, match=says + ONE_SENTENCE):
        policy_for(**options, acting={"decoding": DecodingConfig(execute=execute)})


def test_an_episode_that_is_longer_than_full_attention_knows_is_refused_at_its_step(policy_for):
    policy = policy_for(attention="full")
    blocks = -(-max(LENGTHS) // H)
    observations, rewards, first, targets = random_play(rows=2, steps=blocks * H + 1)
    state = policy.initial_state(2)
    some = slice(0, blocks * H)
    play(policy, observations[some], rewards[some], first[some], targets[some], state)
    with pytest.raises(InputError, match=rf"reached step {blocks * H + 1}, .* at most {blocks * H} steps"):
        policy.predict(observations[-1], state)
