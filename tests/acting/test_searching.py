"""Strategies that look at several tokens of an action, run by a policy on its own context."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import chisquare

from dtrl.acting.decisions import decide
from dtrl.config import DecodingConfig
from dtrl.errors import InputError

OBSERVED, NUMBERS = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (3,))
STEPS, ROWS = 8, 3


@pytest.fixture
def policy_for(random_trajectories, untrained_policy):
    def make(action_space=NUMBERS, **options):
        data = random_trajectories((9, 12, 7), OBSERVED, action_space)
        return untrained_policy(data, **{"preset": "dt_discrete", "bins": 4, **options})

    return make


def play(policy, rows=ROWS, deterministic=True, steps=STEPS):
    """(steps, rows, …) actions for the same observations and rewards, with a row that begins anew on the way."""
    random = np.random.default_rng(0)
    observations, rewards = random.normal(size=(steps, ROWS, 2)).astype(np.float32), random.random((steps, ROWS))
    generators = [np.random.default_rng([1, row]) for row in range(rows)]
    state = policy.initial_state(rows, [5.0 + row for row in range(rows)], generators)
    actions = []
    for step in range(steps):
        first = np.array([step in (0, 5 + row) for row in range(rows)])
        action, state = policy.predict(observations[step, :rows], state, first, deterministic)
        state.reward += rewards[step, :rows]
        actions.append(action)
    return np.array(actions)


@pytest.mark.parametrize("context", ["window", "block", "banded", "full"])
def test_a_beam_of_every_sequence_finds_the_most_probable_action(policy_for, context):
    attention = context if context in ("banded", "full") else "window"
    policy = policy_for(attention=attention).variant(
        context=context, decoding=DecodingConfig(strategy="beam", beam_width=16)
    )
    state = policy.initial_state(1)
    for step in range(6):
        observation = np.full((1, 2), step / 3, np.float32)
        policy.predict(observation, state)
        before = state.context.select(np.zeros(64, np.int64))  # the step before the next one, 64 times
        reference = policy.initial_state(64)
        reference.context, reference.actions = before, {"": np.repeat(state.actions[""], 64, axis=0)}
        reference.timesteps, reference.returns_to_go = (
            np.repeat(state.timesteps, 64),
            np.repeat(state.returns_to_go, 64),
        )
        every = torch.tensor(list(itertools.product(range(4), repeat=3)))
        log_p = torch.zeros(64)

        def pick(distributions, decision, every=every, log_p=log_p):
            ids = every[:, decision.slot : decision.slot + 1]
            log_p += distributions["action"].log_prob(ids)[:, 0]
            return {"action": ids}

        policy.advance(reference, np.zeros(64, dtype=bool))
        with torch.inference_mode():
            seen = {"": np.repeat(np.full((1, 2), (step + 1) / 3, np.float32), 64, axis=0)}
            decide(policy, reference, policy.look(reference, seen, np.zeros(64, dtype=bool)), pick)
            best = policy.to_actions({"action": every[log_p.argmax()][None]}, "action")
        observation = np.full((1, 2), (step + 1) / 3, np.float32)
        chosen, _ = policy.predict(observation, copied(policy, state))
        np.testing.assert_array_equal(chosen, best)


def copied(policy, state):
    other = policy.initial_state(1)
    other.context, other.actions, other.started = state.context.select(np.zeros(1, np.int64)), state.actions, True
    other.timesteps, other.returns_to_go = state.timesteps.copy(), state.returns_to_go.copy()
    return other


@pytest.mark.parametrize("decoding", [
    DecodingConfig(strategy="beam", beam_width=1),
    DecodingConfig(strategy="contrastive", contrastive_alpha=0.0),
    DecodingConfig(guidance=1.0, contrast=1e-9, plausible_p=0.0),
    DecodingConfig(repetition_penalty=1.0000001),
], ids=["beam", "contrastive", "contrast", "penalty"])  # fmt: skip
def test_strategies_that_come_to_the_mode_do(policy_for, decoding):
    policy = policy_for()
    np.testing.assert_array_equal(play(policy.variant(decoding=decoding)), play(policy))


@pytest.mark.parametrize("draft", ["factorised", "ngram"])
def test_a_greedy_draft_changes_nothing(policy_for, draft):
    policy = policy_for(draft_head=True, attention="banded")
    drafted = policy.variant(decoding=DecodingConfig(strategy="speculative", temperature=0.0, draft=draft))
    np.testing.assert_array_equal(play(drafted, deterministic=False), play(policy))


@pytest.fixture
def small(policy_for, tmp_path):
    """The file of a smaller policy of the same tokens."""
    policy_for(width=8, layers=1, heads=1, attention="banded", seed=7).save(tmp_path / "small")
    return str(tmp_path / "small")


@pytest.mark.parametrize("context", ["window", "block", "banded", "full"])
def test_a_greedy_guess_of_a_smaller_policy_changes_nothing(policy_for, small, context):
    attention = context if context in ("banded", "full") else "window"
    policy = policy_for(attention=attention).variant(context=context)
    decoding = DecodingConfig(strategy="speculative", temperature=0.0, draft=small)
    drafted = policy.variant(decoding=decoding)
    np.testing.assert_array_equal(play(drafted, deterministic=False), play(policy))


def test_a_smaller_policy_that_is_the_policy_guesses_right(policy_for, tmp_path):
    """Over steps, and through rows that begin anew: so its own context holds what the policy's does."""
    policy = policy_for(attention="banded")
    policy.save(tmp_path / "same")
    drafted = policy.variant(decoding=DecodingConfig(strategy="speculative", draft=str(tmp_path / "same")))
    state = drafted.initial_state(2)
    observations = np.random.default_rng(0).normal(size=(8, 2, 2)).astype(np.float32)
    for step, observation in enumerate(observations):
        drafted.predict(observation, state, np.array([step in (0, 3), step in (0, 5)]), deterministic=False)
    assert state.speculation.tested.tolist() == [16, 16]
    assert state.speculation.acceptance_rate == 1


def test_a_guessing_policy_that_missed_a_step_begins_anew(policy_for, small):
    policy = policy_for(attention="banded")
    drafted = policy.variant(decoding=DecodingConfig(strategy="speculative", temperature=0.0, draft=small))
    observations = np.random.default_rng(0).normal(size=(6, 1, 2)).astype(np.float32)
    states = [p.initial_state(1) for p in (drafted, policy)]
    for step, observation in enumerate(observations):
        action, _ = drafted.predict(observation, states[0], deterministic=step % 3 == 1)
        assert (states[0].draft_context is None) == (step % 3 == 1)
        np.testing.assert_array_equal(action, policy.predict(observation, states[1])[0])


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["factorised", "small"])
def test_the_joint_distribution_of_an_action_is_the_model_s(policy_for, small, draft):
    """χ² over the 64 actions of 20,000 environments that have seen the same two steps; fails a correct sampler with probability 1e-4."""
    rows, policy = 20_000, policy_for(draft_head=True, attention="banded")
    path = small if draft == "small" else draft
    drafted = policy.variant(decoding=DecodingConfig(strategy="speculative", draft_tokens=2, draft=path))
    observations = np.random.default_rng(0).normal(size=(2, 1, 2)).astype(np.float32)

    def after_a_step(policy, rows):
        state = policy.initial_state(rows, 5.0)
        policy.predict(np.repeat(observations[0], rows, axis=0), state)
        state.reward += 1.0
        return state

    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    log_p, state = torch.zeros(64, dtype=torch.float64), after_a_step(policy, 64)

    def pick(distributions, decision):
        ids = every[:, decision.slot : decision.slot + 1]
        log_p.add_(distributions["action"].log_prob(ids)[:, 0])
        return {"action": ids}

    policy.advance(state, None)
    with torch.inference_mode():
        decide(policy, state, policy.look(state, {"": np.repeat(observations[1], 64, axis=0)}, None), pick)
    state = after_a_step(drafted, rows)
    drafted.predict(np.repeat(observations[1], rows, axis=0), state, deterministic=False)
    ids = drafted.tokens_of(state.actions, state.returns_to_go)["action"]
    counts = np.bincount((ids @ torch.tensor([16, 4, 1])).numpy(), minlength=64)
    assert chisquare(counts, log_p.exp().numpy() / log_p.exp().sum().item() * rows).pvalue > 1e-4
    assert 0 < state.speculation.acceptance_rate < 1


@pytest.mark.parametrize("options", [
    {"strategy": "speculative"}, {"strategy": "sample", "guidance": 2.0}, {"strategy": "sample", "repetition_penalty": 2.0},
    {"strategy": "plan", "beam_width": 3, "horizon": 3},
], ids=str)  # fmt: skip
def test_a_row_does_not_depend_on_its_neighbours(policy_for, options):
    preset = "tt" if options["strategy"] == "plan" else "dt_discrete"
    policy = policy_for(preset=preset, attention="banded", **({} if preset == "tt" else {"draft_head": True}))
    policy = policy.variant(decoding=DecodingConfig(**options))
    together = play(policy, deterministic=False)
    np.testing.assert_array_equal(together[:, :1], play(policy, rows=1, deterministic=False))
    assert (together[:, 0] != together[:, 1]).any()


def test_guidance_is_the_difference_of_two_conditions(policy_for):
    """Beside a policy that is asked for the wanted return, and one that is asked for the middle one of the data."""
    policy = policy_for(attention="banded")
    guided = policy.variant(decoding=DecodingConfig(guidance=3.0, plausible_p=0.0))
    middle = policy.data.return_quantiles[50]
    observation = np.array([[0.3, -1.0]], np.float32)
    states = [policy.initial_state(1, target) for target in (9.0, middle)]
    chosen, _ = guided.predict(observation, guided.initial_state(1, 9.0))
    with torch.inference_mode():
        hidden = []
        for state in states:
            policy.advance(state, np.ones(1, dtype=bool))
            hidden.append(policy.look(state, {"": observation}, np.ones(1, dtype=bool)))
        ids = []
        for slot in range(3):
            wanted, other = (policy.model.predict("action", h, slot).logits[0, 0] for h in hidden)
            ids.append(int((other + 3 * (wanted - other)).argmax()))
            for i, state in enumerate(states):
                x = policy.model.embed_ids("action", torch.tensor([[ids[-1]]]), slot, torch.zeros(1, dtype=torch.long))
                hidden[i] = state.context.extend(x)
    np.testing.assert_array_equal(chosen, policy.to_actions({"action": torch.tensor([ids])}, "action"))


def test_no_token_pair_is_repeated_where_that_is_forbidden(policy_for):
    policy = policy_for(spaces.Discrete(3), attention="banded")
    forbidding = policy.variant(decoding=DecodingConfig(no_repeat_ngram=2))
    actions = play(forbidding, rows=1, steps=4)[:, 0].tolist()
    assert len(set(itertools.pairwise(actions))) == 3


def test_a_row_that_begins_anew_remembers_no_earlier_action(policy_for):
    policy = policy_for(spaces.Discrete(3), attention="banded").variant(decoding=DecodingConfig(no_repeat_ngram=2))
    observations = np.random.default_rng(0).normal(size=(8, 2, 2)).astype(np.float32)
    state, fresh = policy.initial_state(2, 5.0), policy.initial_state(1, 5.0)
    for step, observation in enumerate(observations):
        actions, _ = policy.predict(observation, state, np.array([step == 4, False]))
        if step >= 4:
            assert actions[0] == policy.predict(observation[:1], fresh)[0][0]


# Bad input


def saved(policy, path):
    policy.save(path)
    return path


def test_what_a_policy_cannot_do_is_refused(policy_for, tmp_path):
    observation = np.zeros(2, np.float32)

    def act(policy, **options):
        policy.variant(decoding=DecodingConfig(**options)).predict(observation, deterministic=False)

    for options in ({"strategy": "beam"}, {"strategy": "plan"}, {"no_repeat_ngram": 2}):
        with pytest.raises(InputError, match="needs a model of discrete tokens such as preset tt or dt_discrete"):
            act(policy_for(preset="dt", bins=None), **options)
    with pytest.raises(InputError, match="preset dt_discrete predicts none; train with --preset tt"):
        act(policy_for(), strategy="plan")
    with pytest.raises(
        InputError, match="past the window that context window recomputes; train with --attention banded"
    ):
        act(policy_for(preset="tt", attention="window"), strategy="plan")
    with pytest.raises(InputError, match="train with --preset dt_discrete --draft-head"):
        act(policy_for(), strategy="speculative")
    with pytest.raises(InputError, match="preset tt is told none; leave them out"):
        act(policy_for(preset="tt"), guidance=2.0)
    for draft, reason in {
        "factorized": "is none of factorised, ngram, and there is no such path",
        str(saved(policy_for(bins=5), tmp_path / "bins")): "says an action by other tokens than the policy",
        str(saved(policy_for(binning="quantile"), tmp_path / "edges")): "has other bins than the policy",
        str(
            saved(policy_for(preset="dt", bins=None), tmp_path / "dt")
        ): "says an action by other tokens than the policy",
        str(saved(policy_for(spaces.Box(-1, 1, (2,))), tmp_path / "narrow")): "train it on the same environment",
    }.items():
        with pytest.raises(InputError, match=reason):
            act(policy_for(), strategy="speculative", draft=draft)
    masked = policy_for(spaces.Discrete(3)).variant(decoding=DecodingConfig(strategy="beam"))
    with pytest.raises(InputError, match="action masks go with strategy greedy or sample"):
        masked.predict(observation, action_masks=np.ones(3, dtype=bool))
