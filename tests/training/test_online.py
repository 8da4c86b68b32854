"""Online fine-tuning: what is in the buffer, what it is relabelled with, an exact resume, and a policy that gets better."""

import json
import os
import signal
from collections import deque
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dtrl
from dtrl.acting.artefact import load_arrays, parameters_sha256
from dtrl.acting.runs import checkpoints, newest_checkpoint, sha256, update_of
from dtrl.config import OnlineConfig
from dtrl.training.experience import EXPERIENCE_FILE, Experience
from dtrl.trajectories.columns import Origin
from dtrl.windows import Windows

SEEN, DONE = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
UPDATES, ROUND, EVERY = 8, 3, 2
"""Updates of a run, of a round, and between two checkpoints: these fall between rounds and inside them."""
SMALL = {
    "updates": UPDATES,
    "round_updates": ROUND,
    "round_episodes": 2,
    "buffer_episodes": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_updates": 0,
    "log_every": 1,
    "checkpoint_every": EVERY,
}


class Walk(gymnasium.Env):
    """Noise to look at. Pays the action and noise; ends after 2 to 6 steps, by itself or cut."""

    observation_space, action_space = SEEN, DONE

    def __init__(self, steps_to_live=10**6):
        self.steps_to_live = steps_to_live

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.cut = int(self.np_random.integers(2, 7)), bool(self.np_random.integers(2))
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        self.steps_to_live -= 1
        if self.steps_to_live < 0:
            raise ZeroDivisionError
        self.left -= 1
        reward = float(action[0]) + self.np_random.normal()
        seen = self.np_random.normal(size=2).astype(np.float32)
        return seen, reward, self.left == 0 and not self.cut, self.left == 0 and self.cut, {}


CODE, CHOICES = (2, 0, 1, 3, 3, 1, 0, 2), 4


class Code(gymnasium.Env):
    """Shows the step; pays 1 for the one of four actions that is right at it. Eight steps, no randomness."""

    observation_space, action_space = spaces.Discrete(len(CODE) + 1), spaces.Discrete(CHOICES)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return 0, {}

    def step(self, action):
        reward = float(action == CODE[self.now])
        self.now += 1
        return self.now, reward, self.now == len(CODE), False, {}


@pytest.fixture(scope="module")
def data(random_trajectories):
    return random_trajectories((3, 5, 4, 6, 2, 5), SEEN, DONE, origin=Origin("test/walk-v0", None, None, "0" * 64))


@pytest.fixture(scope="module")
def start(data, untrained_policy):
    return untrained_policy(data, preset="odt", heads=1, dropout=0.1)


@pytest.fixture
def tune(start, data):
    def run(logdir=None, **options):
        return dtrl.finetune(start, data, logdir=logdir, **{"env": Walk, **SMALL, **options})

    return run


def experience_of(start, data, **config):
    return Experience(start, data, OnlineConfig(**{"round_episodes": 2, **config}), 0, Walk)


def rewards_of(trajectories):
    """The episodes as tuples of rewards, which identify them."""
    return [
        tuple(trajectories.rewards[a:b])
        for a, b in zip(trajectories.episode_starts, trajectories.episode_ends, strict=True)
    ]


# the buffer


@pytest.mark.parametrize("size", [1, 3, 4, 6, 9])
def test_the_buffer_is_a_queue_that_begins_with_the_best_episodes_worst_first(start, data, random_trajectories, size):
    experience = experience_of(start, data, buffer_episodes=size)
    queue = deque(sorted(rewards_of(data), key=sum), maxlen=size)
    assert rewards_of(experience.trajectories) == list(queue)
    for seed, lengths in enumerate([(2, 3), (4,), (1, 2, 3, 4, 5), (6, 2)], start=1):
        new = random_trajectories(lengths, SEEN, DONE, seed=seed)
        experience.take(new)
        queue.extend(rewards_of(new))
        assert rewards_of(experience.trajectories) == list(queue)
        for i, episode in enumerate(queue):
            assert len(experience.trajectories.episode(i)["observations"]) == len(episode) + 1
    assert (experience.episodes, experience.steps) == (10, 32)


def test_the_fine_tuned_windows_tell_what_was_achieved_and_not_what_was_asked(start, data):
    """In hindsight, with the discount and the delay of the data. What follows a time limit is in no return-to-go, and is counted."""
    for discount, delayed in ((1.0, False), (0.9, False), (1.0, True)):
        experience = experience_of(
            start,
            replace(data, discount=discount, delayed=delayed),
            explore_return=1e6,
            buffer_episodes=8,
            round_episodes=8,
        )
        experience.play(start, 1)
        played = experience.trajectories
        assert (played.discount, played.delayed) == (discount, delayed)
        windows = Windows(played, 6, 1, names=["return"])
        for first, rewards in zip(played.episode_starts, rewards_of(played), strict=True):
            told = windows.gather(np.array([first])).values["return"][0, : len(rewards)]
            earned = np.array(rewards, dtype=np.float64)
            if delayed:
                earned = np.append(np.zeros(len(rewards) - 1), earned.sum())
            wanted = [sum(discount**k * r for k, r in enumerate(earned[t:])) for t in range(len(earned))]
            np.testing.assert_allclose(told, wanted, rtol=1e-5, atol=1e-6)
        cut = played.truncations[played.episode_ends - 1]
        assert 0 < cut.sum() < 8
        assert experience.truncated == cut.sum()


def test_a_round_depends_on_its_number_and_the_seed_alone_and_its_actions_are_sampled(start, data):
    def actions(update, seed=0):
        experience = Experience(start, data, OnlineConfig(round_updates=5, buffer_episodes=4), seed, Walk)
        experience.play(start, update)
        return experience.trajectories.actions

    for update, seed in ((1, 0), (6, 0), (1, 1)):
        np.testing.assert_array_equal(actions(update, seed), actions(update, seed))
    sampled = [actions(1), actions(6), actions(1, seed=1)]
    assert not any(set(a.flat) & set(b.flat) for a in sampled for b in sampled if a is not b)


def test_it_is_played_with_the_context_of_the_given_policy(start, data, monkeypatch):
    played = []
    monkeypatch.setattr("dtrl.training.experience.rollout", lambda policy, *_, **__: played.append(policy) or data)
    for policy in (start, start.variant(context="block", context_length=3)):
        experience_of(policy, data).play(start, 1)
        assert (played[-1].context, played[-1].context_length) == (policy.context, policy.context_length)
        assert experience_of(policy, data).settings()["context"] == policy.context
    assert [policy.context for policy in played] == ["window", "block"]


def test_more_is_explored_for_than_the_data_hold(start, data):
    best, median = data.episode_returns.max(), np.median(data.episode_returns)
    assert experience_of(start, data).config.explore_return == pytest.approx(2 * best - median)
    assert experience_of(start, data, explore_return=-3).config.explore_return == -3


def test_a_round_is_due_before_the_first_update_and_after_each_round(start, data):
    experience = experience_of(start, data, round_updates=3)
    assert [update for update in range(1, 9) if experience.due(update)] == [1, 4, 7]


# the run


def test_the_given_policy_is_where_it_begins_and_stays_as_it_is(start, data, tune):
    before = parameters_sha256(start.model)
    begun = []
    tuned = tune(callbacks=[lambda event: begun.append(parameters_sha256(event.policy.model))])
    assert begun[0] == before == parameters_sha256(start.model)
    assert parameters_sha256(tuned.model) == begun[-1] != before
    assert tuned.config == start.config
    assert tuned.target_return == start.target_return
    normaliser = {name: x for name, x in start.model.state_dict().items() if name.startswith("tokenizers")}
    assert normaliser
    assert all((tuned.model.state_dict()[name] == x).all() for name, x in normaliser.items())


def test_the_experience_is_told_in_the_log_and_in_the_result(tune, tmp_path):
    tune(tmp_path, explore_return=5)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if "online/steps" in line]
    assert [line["update"] for line in rounds] == [1, 4, 7]
    assert [line["online/episodes"] for line in rounds] == [2, 4, 6]
    assert all(line["online/buffer_episodes"] == 4 for line in rounds)
    told = json.loads((tmp_path / "result.json").read_text())["online"]
    assert (told["rounds"], told["episodes"], told["explore_return"]) == (3, 6, 5)
    assert told["steps"] == rounds[-1]["online/steps"]
    steps = np.diff([0, *(line["online/steps"] for line in rounds)])
    np.testing.assert_allclose(steps / 2, [line["online/length"] for line in rounds])
    assert [line["update"] for line in lines if "train/loss" in line] == list(range(1, UPDATES + 1))


def fingerprint_of(logdir):
    """Parameters, optimiser, played episodes and losses of a finished run."""
    lines = [json.loads(line) for line in (logdir / "progress.jsonl").read_text().splitlines()]
    numbers = {(line["update"], tag): x for line in lines for tag, x in line.items() if not tag.startswith("time/")}
    assert len(numbers) == sum(not tag.startswith("time/") for line in lines for tag in line) - sum(
        "online/steps" in line for line in lines
    ), "a number was logged twice"
    numbers = {key: x for key, x in numbers.items() if key[1] != "train/model_flops_utilization"}
    newest = newest_checkpoint(logdir)
    arrays, counts = load_arrays(newest / EXPERIENCE_FILE)
    played = {name: (x.dtype, x.tolist()) for name, x in arrays.items()}
    optimizer = sha256(newest / "optimizer.safetensors")
    return json.loads((logdir / "result.json").read_text())["parameters_sha256"], optimizer, played, counts, numbers


@pytest.fixture(scope="module")
def straight(start, data, tmp_path_factory):
    """What a run that nothing has disturbed comes to."""
    logdir = tmp_path_factory.mktemp("straight")
    dtrl.finetune(start, data, env=Walk, logdir=logdir, **SMALL)
    return fingerprint_of(logdir)


def fail_at(update):
    """A callback that raises at an update."""

    def fail(event):
        if event.kind == "update" and event.update == update:
            raise ZeroDivisionError

    return fail


@pytest.mark.slow
@pytest.mark.parametrize("update", range(1, UPDATES + 1))
def test_a_run_that_stops_after_any_update_goes_on_exactly(straight, tune, tmp_path, update):
    """For what is on the disk, an exception is the same as a kill: it comes before the update's checkpoint."""
    with pytest.raises(ZeroDivisionError):
        tune(tmp_path, callbacks=[fail_at(update)])
    tune(tmp_path, resume=True)
    assert fingerprint_of(tmp_path) == straight


@pytest.mark.slow
@pytest.mark.parametrize("life", [0, 3, 7])
def test_a_run_that_stops_while_it_plays_goes_on_exactly(straight, tune, tmp_path, life):
    """Each environment is made anew for a round; the one that dies is of the last round."""
    made = []

    def env():
        made.append(Walk(life % 4 if len(made) > 2 * (life // 3) else 10**6))
        return made[-1]

    with pytest.raises(dtrl.InputError, match="raised ZeroDivisionError"):
        tune(tmp_path, env=env)
    tune(tmp_path, resume=True)
    assert fingerprint_of(tmp_path) == straight


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_a_checkpoint_that_is_asked_for_while_it_plays_is_written_after_the_next_update(straight, tune, tmp_path):
    """In the last round, before update 7; and a run that goes on from there is exact."""
    made = []

    def env():
        made.append(Walk())
        if len(made) > 6:
            os.kill(os.getpid(), signal.SIGUSR1)
        return made[-1]

    with pytest.raises(ZeroDivisionError):
        tune(tmp_path, env=env, callbacks=[fail_at(8)], keep_checkpoints=9)
    assert [update_of(folder) for folder in checkpoints(tmp_path)] == [2, 4, 6, 7]
    tune(tmp_path, resume=True)
    assert fingerprint_of(tmp_path) == straight


def test_a_run_is_resumed_as_what_it_was_begun_and_from_the_policy_that_it_was_begun_from(start, data, tune, tmp_path):
    tuned = tune(tmp_path / "tuned", updates=2)
    for options, message in (
        ({"round_updates": 4}, "round_updates 3 → 4"),
        ({"buffer_episodes": 5}, "buffer_episodes 4 → 5"),
        ({"learning_rate": 1.0}, "learning_rate 0.001 → 1.0"),
        ({"seed": 1}, "seed 0 → 1"),
    ):
        with pytest.raises(dtrl.InputError, match=message):
            tune(tmp_path / "tuned", resume=True, **options)
    with pytest.raises(dtrl.InputError, match=r"begun_from \w+ → \w+"):
        dtrl.finetune(tuned, data, logdir=tmp_path / "tuned", resume=True, env=Walk, **SMALL)
    model = {name: getattr(start.config, name) for name in ("preset", "context_length", "width", "layers", "heads")}
    with pytest.raises(dtrl.InputError, match="begun by dtrl finetune, not train; resume it by the former"):
        dtrl.train(data, updates=3, logdir=tmp_path / "tuned", resume=True, **model)
    trained = dtrl.train(data, updates=2, logdir=tmp_path / "trained", **model)
    with pytest.raises(dtrl.InputError, match="begun by dtrl train, not finetune"):
        dtrl.finetune(trained, data, logdir=tmp_path / "trained", resume=True, env=Walk, **SMALL)


# bad input


@pytest.mark.parametrize(
    ("preset", "head", "says"),
    [
        ("dt", "deterministic", "has a deterministic head, which explores nothing; train one by --preset odt"),
        ("bc", "gaussian", "preset bc is told no return"),
        ("mgdt", "gaussian", "preset mgdt is told no return"),
        ("tt", "auto", "preset tt is told no return"),
    ],
)
def test_a_policy_that_cannot_explore_is_refused(data, untrained_policy, tmp_path, preset, head, says):
    policy = untrained_policy(data, preset=preset, head=head, **({"bins": 5} if preset == "tt" else {}))
    with pytest.raises(dtrl.InputError, match=says):
        dtrl.finetune(policy, data, env=Walk, logdir=tmp_path / "run", updates=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", ["dt_discrete", "rvs", "vq_dt", "dt"])
def test_every_stochastic_policy_that_is_told_a_return_may_be_fine_tuned(data, untrained_policy, preset):
    options = {"bins": 4} if preset in ("dt_discrete", "vq_dt") else {"head": "gaussian"}
    policy = untrained_policy(data, preset=preset, **options)
    tuned = dtrl.finetune(policy, data, env=Walk, **{**SMALL, "updates": 1})
    assert parameters_sha256(tuned.model) != parameters_sha256(policy.model)


class Stranger(Walk):
    action_space = spaces.Discrete(3)


class Blind(Walk):
    observation_space = spaces.Box(-1, 1, (7,), np.float32)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"env": None}, "the policy's data name no environment; give one with env"),
        ({"env": "NoSuchEnvironment-v0"}, "NoSuchEnvironment"),
        ({"env": Stranger}, r"the action space of the environment is Discrete\(3\)"),
        ({"env": Blind}, "the observation space of the environment is"),
        ({"env": gymnasium.vector.SyncVectorEnv([Walk])}, "is a vector environment"),
        ({"explore_return": float("nan")}, "explore_return nan is not finite; ask for a return"),
        ({"explore_return": float("inf")}, "explore_return inf is not finite"),
        ({"round_episodes": 0}, "round_episodes 0 must be a positive number"),
        ({"round_updates": -1}, "round_updates -1 must be a positive number"),
        ({"buffer_episodes": 0}, "buffer_episodes 0 must be a positive number"),
        ({"round_episodes": 1.5}, "round_episodes 1.5 is a float; a int is expected"),
        ({"updates": 0}, "updates 0 must be a positive number"),
        ({"holdout": 0.1}, "holdout needs data that stay as they are"),
        ({"width": 32}, "there is no option 'width'"),
        ({"round_update": 3}, "did you mean 'round_updates'"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence_before_anything_is_written(tune, tmp_path, options, says):
    with pytest.raises(dtrl.InputError, match=says) as error:
        tune(tmp_path / "run", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_data_of_other_spaces_or_other_returns_are_refused(start, data, random_trajectories):
    for other, says in (
        (random_trajectories((3, 4), SEEN, spaces.Discrete(2)), "the action space of unnamed is"),
        (random_trajectories((3, 4), spaces.Box(-1, 1, (5,)), DONE), "the observation space of unnamed is"),
        (replace(data, discount=0.5), "loaded with discount 0.5 and delayed False"),
        (replace(data, delayed=True), "loaded with discount 1.0 and delayed True"),
    ):
        with pytest.raises(dtrl.InputError, match=says):
            dtrl.finetune(start, other, env=Walk, updates=1)


# does it help?


def random_play(episodes, seed=0):
    """Episodes of `Code` with actions drawn evenly."""
    random = np.random.default_rng(seed)
    shape = (episodes, len(CODE))
    actions = random.integers(CHOICES, size=shape)
    columns = (
        np.tile(np.arange(len(CODE)), episodes),
        actions.ravel(),
        (actions == CODE).astype(float).ravel(),
        np.tile(np.arange(len(CODE)) == len(CODE) - 1, episodes),
        np.zeros(actions.size, bool),
    )
    finals = np.full(episodes, len(CODE))
    return dtrl.Trajectories.from_arrays(*columns, Code.observation_space, Code.action_space, final_observations=finals)


def achieved(policy):
    """Mean return of 100 sampled episodes that are asked for the best there is."""
    return dtrl.evaluate(policy, [len(CODE)], 100, seed=1, env=Code, deterministic=False).targets[0].mean


@pytest.mark.slow
def test_a_poor_policy_gets_better_by_what_it_plays_and_not_by_more_updates():
    """All seeds are fixed, so it does the same every time on one machine; how often other seeds would fail was not measured."""
    data = random_play(60)
    small = {"context_length": 4, "width": 32, "layers": 1, "dropout": 0.0, "learning_rate": 3e-3}
    poor = dtrl.train(data, updates=100, **small)
    tuned = dtrl.finetune(
        poor,
        data,
        env=Code,
        updates=300,
        round_updates=10,
        round_episodes=8,
        buffer_episodes=60,
        learning_rate=3e-3,
    )
    longer = dtrl.train(data, updates=400, **small)
    assert achieved(tuned) > achieved(poor) + 1
    assert achieved(tuned) > achieved(longer) + 1
