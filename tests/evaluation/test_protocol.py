"""Evaluation at several target returns: the same starts for every target, whatever the number of environments, and a report of it."""

from dataclasses import asdict

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dtrl
from dtrl.acting import Episode, rollout
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.evaluation import evaluate, play
from dtrl.evaluation.references import REFERENCE_RETURNS
from dtrl.trajectories import Trajectories
from dtrl.trajectories.columns import Origin

TARGETS = [0.0, 12.0, 6.0]


@pytest.fixture
def policy_for(random_trajectories, untrained_policy, scripted_env):
    """Makes a policy for `scripted_env`; `origin` is that of its data."""

    def make(origin=None, **options):
        data = random_trajectories(
            [9, 5, 7],
            scripted_env.observation_space,
            scripted_env.action_space,
            origin=origin or Origin("test/random-v0"),
        )
        return untrained_policy(data, **options)

    return make


@pytest.fixture
def cartpole_policy(random_trajectories, untrained_policy):
    env = gymnasium.make("CartPole-v1")
    origin = Origin("test/cartpole-v0", env_spec=env.spec.to_json())
    return untrained_policy(
        random_trajectories([9, 5], env.observation_space, env.action_space, origin=origin),
        acting={"target_return": 9.0},
    )


def returns_of(report):
    return [target.returns for target in report.targets]


def test_a_report_holds_the_returns_of_the_episodes_played(policy_for, scripted_env):
    diary = []
    report, played = play(policy_for(), TARGETS, 4, 0, None, env=lambda: scripted_env(diary))
    assert [target.target_return for target in report.targets] == TARGETS
    assert returns_of(report) == played.episode_returns.reshape(3, 4).tolist()
    assert [target.lengths for target in report.targets] == played.episode_lengths.reshape(3, 4).tolist()
    begun = [played.observations[start].tobytes() for start in played.episode_starts]
    assert set(zip(begun, played.episode_returns, strict=True)) <= set(diary)


@pytest.mark.parametrize(("preset", "told"), [("dt", True), ("rvs", True), ("bc", False), ("mgdt", False)])
def test_a_report_says_whether_the_policy_was_told_what_is_asked_for(policy_for, scripted_env, preset, told):
    report, _ = play(policy_for(preset=preset), [7.0], 2, 0, None, env=scripted_env)
    assert report.told_return is told
    lines = report.table().splitlines()
    assert ("7" in lines[4].split()[0]) is told
    assert lines[-1].startswith("rank correlation" if told else "this policy is told no return")


def test_every_target_is_asked_from_the_same_starts(policy_for, scripted_env):
    _, played = play(policy_for(), TARGETS, 5, 0, None, env=scripted_env)
    starts = played.observations[played.episode_starts].reshape(3, 5, -1)
    assert (starts == starts[0]).all()
    assert len(np.unique(starts[0], axis=0)) == 5


def test_a_target_s_returns_do_not_depend_on_the_other_targets(policy_for, scripted_env):
    policy = policy_for()
    together = evaluate(policy, TARGETS, 4, env=scripted_env)
    assert returns_of(together) == [
        returns_of(evaluate(policy, [target], 4, env=scripted_env))[0] for target in TARGETS
    ]
    assert len({tuple(returns) for returns in returns_of(together)}) > 1, (
        "the target makes no difference, and this test no sense"
    )


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_number_of_environments_changes_nothing(policy_for, scripted_env, deterministic):
    policy = policy_for(acting={"decoding": DecodingConfig(strategy="sample")})
    reports = [
        evaluate(policy, TARGETS, 4, num_envs=n, env=scripted_env, deterministic=deterministic)
        for n in (None, 1, 3, 100)
    ]
    assert all(report.to_dict() == reports[0].to_dict() for report in reports)


def test_all_targets_are_rows_of_one_vector_environment(policy_for, scripted_env, monkeypatch):
    made, rows = [], []
    policy = policy_for()
    predict = policy.predict
    monkeypatch.setattr(
        policy, "predict", lambda seen, *rest, **named: (rows.append(len(seen)), predict(seen, *rest, **named))[1]
    )
    report = evaluate(policy, TARGETS, 4, env=lambda: made.append(None) or scripted_env())
    assert len(made) == 12
    assert set(rows) == {12}
    assert len(rows) == max(max(target.lengths) for target in report.targets), (
        "as many calls as the longest episode has steps"
    )


def test_the_seed_fixes_the_report_and_more_episodes_begin_with_the_same(policy_for, scripted_env):
    policy = policy_for()
    five, again, other = (evaluate(policy, [6.0], 5, seed, env=scripted_env) for seed in (0, 0, 1))
    assert five.to_dict() == again.to_dict()
    assert returns_of(five) != returns_of(other)
    assert returns_of(evaluate(policy, [6.0], 9, env=scripted_env))[0][:5] == returns_of(five)[0]


def test_an_evaluation_is_a_rollout_with_seeds_from_its_own(policy_for, scripted_env):
    policy = policy_for()
    seeds = np.random.default_rng([3, 0]).integers(2**31, size=2)
    played = rollout(policy, scripted_env, [Episode(target, int(seed)) for target in TARGETS for seed in seeds])
    assert (
        np.array(returns_of(evaluate(policy, TARGETS, 2, seed=3, env=scripted_env))).flatten().tolist()
        == played.episode_returns.tolist()
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [({"strategy": "beam"}, "strategy beam"), ({"strategy": "contrastive"}, "strategy contrastive"), ({"no_repeat_ngram": 2}, "no_repeat_ngram")],
)  # fmt: skip
def test_a_strategy_that_the_policy_cannot_follow_is_refused_and_not_left_out(policy_for, options, named):
    with pytest.raises(InputError, match=f"^{named} needs a model of discrete tokens such as preset tt or dt_discrete"):
        policy_for(preset="bc", acting={"decoding": DecodingConfig(**options)})


def test_the_policy_s_decoding_says_whether_to_sample(policy_for, scripted_env):
    greedy, sampling = policy_for(), policy_for(acting={"decoding": DecodingConfig(strategy="sample", temperature=5.0)})
    reports = [evaluate(policy, TARGETS, 4, env=scripted_env) for policy in (greedy, sampling)]
    assert [report.settings["deterministic"] for report in reports] == [True, False]
    assert returns_of(reports[0]) != returns_of(reports[1])
    assert returns_of(evaluate(sampling, TARGETS, 4, env=scripted_env, deterministic=True)) == returns_of(reports[0])


def test_the_report_tells_how_it_was_made(policy_for, scripted_env):
    policy = policy_for(
        acting={"context": "block", "context_length": 3, "decoding": DecodingConfig(strategy="sample", top_k=2)}
    )
    policy.updates = 17
    report = evaluate(policy, [1.0], 2, seed=5, env=scripted_env)
    assert (report.dataset, report.env, report.seed, report.episodes, report.reference) == (
        "test/random-v0",
        None,
        5,
        2,
        None,
    )
    assert report.settings == {
        "context": "block",
        "context_length": 3,
        "decoding": asdict(DecodingConfig()) | {"strategy": "sample", "top_k": 2},
        "deterministic": False,
        "updates": 17,
        "preset": "dt",
        "told_return": True,
    }


def test_environment_target_and_scale_come_from_the_data(cartpole_policy):
    report = evaluate(cartpole_policy, episodes=2)
    assert (report.dataset, report.env) == ("test/cartpole-v0", "CartPole-v1")
    assert [target.target_return for target in report.targets] == [9.0]
    assert report.reference == REFERENCE_RETURNS["CartPole-v1"]
    assert all(0 < length <= 500 for length in report.targets[0].lengths)


def test_the_data_s_own_references_win(policy_for, scripted_env):
    report = evaluate(policy_for(Origin("test/random-v0", reference=(-1.0, 9.0))), [4.0], 3, env=scripted_env)
    assert report.to_dict()["targets"][0]["normalized_mean"] == pytest.approx(100 * (report.targets[0].mean + 1) / 10)


def test_a_vector_environment_can_be_given(policy_for, scripted_env):
    policy = policy_for()
    vector = SyncVectorEnv([scripted_env] * 2, autoreset_mode=AutoresetMode.DISABLED)
    assert returns_of(evaluate(policy, TARGETS, 4, env=vector)) == returns_of(
        evaluate(policy, TARGETS, 4, env=scripted_env)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target_returns": [1.0, np.nan]}, r"target returns \[1\.0, nan\] are not one or more finite numbers"),
        ({"target_returns": [np.inf]}, r"target returns \[inf\]"),
        ({"target_returns": []}, r"target returns \[\]"),
        ({"target_returns": 500.0}, "target returns 500.0 are not a list of numbers"),
        ({"target_returns": ["much"]}, r"target returns \['much'\] are not a list of numbers"),
        ({"episodes": 0}, r"episodes \(0\)"),
        ({"num_envs": 0}, r"num_envs \(0\)"),
        ({"seed": -1}, r"seed \(-1\)"),
        ({"env": None}, "the policy's data name no environment"),
        ({"env": "CartPole-v1"}, "the observation space of the environment is Box"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(policy_for, scripted_env, arguments, says):
    with pytest.raises(InputError, match=rf"^[^\n]*{says}[^\n]*\.$"):
        evaluate(policy_for(), **{"target_returns": TARGETS, "episodes": 2, "env": scripted_env, **arguments})


class Payout(gymnasium.Env):
    """Four steps; the reward of each is its action, 0 to 4. So every return from 0 to 16 can be had, and only the asked one tells which to take."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.steps / 4], np.float32), float(action), self.steps == 4, False, {}


@pytest.mark.slow
def test_a_decision_transformer_gives_the_return_it_is_asked_for():
    """Trained on random actions alone. The achieved return follows the asked one, as behaviour cloning's could not."""
    random = np.random.default_rng(0)
    actions = random.integers(5, size=(400, 4))
    episodes = [
        {
            "observations": np.arange(5)[:, None] / 4,
            "actions": row,
            "rewards": row.astype(float),
            "terminations": np.arange(4) == 3,
            "truncations": np.zeros(4, dtype=bool),
        }
        for row in actions
    ]
    data = Trajectories.from_episodes(episodes, Payout.observation_space, Payout.action_space)
    options = {
        "updates": 200,
        "batch_size": 32,
        "context_length": 4,
        "width": 32,
        "layers": 1,
        "learning_rate": 5e-3,
        "dropout": 0.0,
    }
    report = evaluate(dtrl.train(data, **options), [0, 4, 8, 12, 16], episodes=2, env=Payout)
    assert report.rank_correlation == 1
    assert max(abs(target.mean - target.target_return) for target in report.targets) <= 1
    cloned = dtrl.train(data, preset="bc", **{**options, "updates": 20})
    assert evaluate(cloned, [0, 16], episodes=2, env=Payout).rank_correlation is None
