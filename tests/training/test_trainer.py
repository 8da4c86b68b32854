"""The training loop: what an update is, what it logs, how it stops, and what it refuses."""

import dataclasses
import hashlib
import json
import math
import tomllib

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dtrl
from dtrl.acting.runs import checkpoints
from dtrl.config import ModelConfig, TrainingConfig
from dtrl.errors import InputError
from dtrl.training.optimization import learning_rate
from dtrl.training.trainer import Trainer
from dtrl.trajectories.columns import Origin
from dtrl.windows import Windows

SMALL = {"batch_size": 8, "context_length": 4, "width": 16, "layers": 1}
LENGTHS = (9, 2, 5, 7, 3, 6)
CHOICES = spaces.Discrete(3)


@pytest.fixture
def data(random_trajectories):
    return random_trajectories(LENGTHS, origin=Origin("test/random-v0", fingerprint="f" * 64))


@pytest.fixture
def learnable(random_trajectories):
    """The action is the largest entry of the observation."""
    made = random_trajectories([20] * 10, action_space=CHOICES)
    return dataclasses.replace(made, columns={**made.columns, "actions": made.observations.argmax(axis=1)})


def weights(policy):
    return {name: parameter.detach().numpy().copy() for name, parameter in policy.model.named_parameters()}


def sha256_of(policy):
    """By the words of the design: over the parameters' bytes in the order of their names."""
    return hashlib.sha256(b"".join(value.tobytes() for _, value in sorted(weights(policy).items()))).hexdigest()


def progress_of(logdir):
    return [json.loads(line) for line in (logdir / "progress.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("preset", ["dt", pytest.param("bc", marks=pytest.mark.slow)])
def test_the_loss_falls_and_the_policy_has_learnt(learnable, tmp_path, preset):
    policy = dtrl.train(
        learnable, preset=preset, updates=120, learning_rate=1e-2, log_every=20, logdir=tmp_path, **SMALL
    )
    losses = [line["train/loss"] for line in progress_of(tmp_path)]
    assert losses[0] > 0.5  # the first 20 updates; log 3 = 1.1 before them
    assert losses[-1] < 0.4 * losses[0]
    actions, _ = policy.predict(learnable.observations)
    assert (actions == learnable.actions).mean() > 0.8
    assert not policy.model.training


def test_the_loss_of_a_deterministic_policy_is_its_mean_squared_error(data, tmp_path):
    dtrl.train(data, updates=4, log_every=1, logdir=tmp_path, **SMALL)
    for line in progress_of(tmp_path):
        assert (
            line["train/loss"] == pytest.approx(line["train/action_error"]) == pytest.approx(line["train/action_loss"])
        )


def test_the_learning_rate_warms_up_and_stays():
    config = TrainingConfig(updates=1_000, learning_rate=2.0, schedule="constant")
    rates = [learning_rate(update, config) for update in range(1, 1_001)]
    np.testing.assert_allclose(rates[:100], 2 * np.arange(1, 101) / 101)  # and never a rate of 0
    assert rates[100:] == [2.0] * 900


def test_a_longer_run_begins_as_a_shorter_one():
    short, long = TrainingConfig(updates=200), TrainingConfig(updates=1_000_000)
    assert [learning_rate(u, short) for u in range(1, 201)] == [learning_rate(u, long) for u in range(1, 201)]


def test_the_learning_rate_falls_along_half_a_cosine_to_a_tenth():
    config = TrainingConfig(updates=1_000, learning_rate=2.0, schedule="cosine", warmup_updates=200)
    rates = [learning_rate(update, config) for update in range(1, 1_001)]
    np.testing.assert_allclose(rates[:200], 2 * np.arange(1, 201) / 201)
    np.testing.assert_allclose([rates[199 + 400], rates[-1]], [2 * 0.55, 2 * 0.1])
    assert (np.diff(rates[200:]) < 0).all()


def test_no_warm_up_starts_at_the_peak():
    config = TrainingConfig(updates=10, warmup_updates=0, schedule="constant")
    assert learning_rate(1, config) == config.learning_rate


def test_the_optimiser_follows_the_schedule_and_the_log_tells_it(data, tmp_path):
    config = TrainingConfig(updates=20, batch_size=8, schedule="cosine")
    trainer = Trainer(data, ModelConfig(context_length=4, width=16, layers=1), config, None, resume=False)
    for update in (1, 2, 11, 20):
        trainer.update(update)
        assert [group["lr"] for group in trainer.optimizer.param_groups] == [learning_rate(update, config)]
    dtrl.train(data, updates=20, schedule="cosine", log_every=1, logdir=tmp_path, **SMALL)
    assert [line["train/learning_rate"] for line in progress_of(tmp_path)] == [
        learning_rate(u, config) for u in range(1, 21)
    ]


@pytest.mark.parametrize("attention", ["window", "banded", "full"])
def test_gradient_accumulation_makes_the_same_update(data, tmp_path, attention):
    """Though the pieces hold different numbers of real steps, since many windows reach past the end of their episode."""
    trained, logged = [], []
    for pieces in (1, 4):
        logdir = tmp_path / str(pieces)
        options = {"gradient_accumulation": pieces, "dropout": 0.0, "attention": attention, "log_every": 1}
        trained.append(weights(dtrl.train(data, updates=3, logdir=logdir, **options, **SMALL)))
        logged.append([[line["train/loss"], line["train/gradient_norm"]] for line in progress_of(logdir)])
    for name, value in trained[0].items():
        np.testing.assert_allclose(trained[1][name], value, atol=1e-6)
    np.testing.assert_allclose(logged[1], logged[0], rtol=1e-4)


def test_the_gradient_is_clipped(data, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(optimizer, *arguments):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt()))
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    dtrl.train(data, updates=3, gradient_clip=0.01, log_every=1, logdir=tmp_path, **SMALL)
    assert all(line["train/gradient_norm"] > 0.01 for line in progress_of(tmp_path))
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_filtered_bc_is_bc_on_the_best_episodes(data):
    filtered = dtrl.train(data, preset="filtered_bc", top_fraction=0.34, updates=3, **SMALL)
    cloned = dtrl.train(data.best(0.34), preset="bc", updates=3, **SMALL)
    assert data.best(0.34).num_episodes == 2
    assert sha256_of(filtered) == sha256_of(cloned)
    assert sha256_of(filtered) != sha256_of(dtrl.train(data, preset="bc", updates=3, **SMALL))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data):
    torch.manual_seed(3)
    one = dtrl.train(data, updates=3, seed=1, **SMALL)
    torch.rand(7)
    assert sha256_of(dtrl.train(data, updates=3, seed=1, **SMALL)) == sha256_of(one)
    assert sha256_of(dtrl.train(data, updates=3, seed=2, **SMALL)) != sha256_of(one)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention", ["window", "banded", "full"])
def test_acting_while_training_changes_nothing(data, attention, dropout):
    """Nothing that acting keeps (masks made under inference mode, a model left in eval mode) may reach the next update."""

    def act(event):
        state = None
        for step in range(5):
            _, state = event.policy.predict(data.observations[step : step + 2], state)
        event.policy.replay(data)

    options = {"updates": 3, "attention": attention, "dropout": dropout, **SMALL, "layers": 2}
    assert sha256_of(dtrl.train(data, callbacks=[act], **options)) == sha256_of(dtrl.train(data, **options))


def test_dropout_is_on_in_updates_and_off_in_callbacks(data):
    modes = []
    callbacks = [lambda event: modes.append(event.policy.model.training)]
    dropped, whole = (dtrl.train(data, updates=2, dropout=rate, callbacks=callbacks, **SMALL) for rate in (0.1, 0.0))
    assert sha256_of(dropped) != sha256_of(whole)
    assert modes == [False] * 8


def test_callbacks_are_told_the_start_every_update_and_the_end(data, tmp_path):
    told = []
    policy = dtrl.train(
        data,
        updates=3,
        logdir=tmp_path,
        callbacks=[lambda e: told.append((e.kind, e.update, e.policy, e.logger is not None))],
        **SMALL,
    )
    assert [(kind, update) for kind, update, _, _ in told] == [
        ("start", 0),
        ("update", 1),
        ("update", 2),
        ("update", 3),
        ("end", 3),
    ]
    assert all(p is policy and logged for _, _, p, logged in told)
    told.clear()
    dtrl.train(data, updates=1, callbacks=[lambda e: told.append(e.logger)], **SMALL)
    assert told == [None] * 3


def test_a_callback_ends_training_by_returning_false_and_nothing_else_does(data, tmp_path):
    told = []
    callbacks = [
        lambda e: e.update != 2,
        lambda e: told.append((e.kind, e.update)),
        lambda e: 0 if e.kind == "update" else None,
    ]
    policy = dtrl.train(data, updates=9, logdir=tmp_path, callbacks=callbacks, **SMALL)
    assert policy.updates == 2
    assert told[-2:] == [("update", 2), ("end", 2)], "the others are told too, and so is the end"
    assert [path.name for path in checkpoints(tmp_path)] == ["update-00000002"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["updates"] == 2
    assert result["final_loss"] == progress_of(tmp_path)[-1]["train/loss"]
    assert progress_of(tmp_path)[-1]["update"] == 2


@pytest.mark.parametrize("kind", ["start", "update", "end"])
def test_an_exception_of_a_callback_comes_through(data, tmp_path, kind):
    def fail(event):
        if event.kind == kind:
            raise LookupError("from the callback")

    with pytest.raises(LookupError, match="from the callback"):
        dtrl.train(data, updates=2, logdir=tmp_path, callbacks=[fail], **SMALL)
    assert not (tmp_path / "result.json").exists()


def test_a_loss_that_is_not_finite_stops_names_the_batch_and_keeps_the_last_checkpoint(data, tmp_path):
    actions = data.actions.copy()
    actions[20] = np.nan  # in the episode of 7 steps, the fourth
    broken = dataclasses.replace(data, columns={**data.columns, "actions": actions})
    windows = Windows(broken, 2, batch_size=2, sampling="step")
    first = next(update for update in range(1, 99) if torch.isnan(windows.batch(update).values["action"]).any())
    assert first > 1
    pattern = rf"the loss of update {first} is nan \(episodes [\d, ]*3[\d, ]*\): the batch holds NaN or infinity in action; .*update-{first - 1:08d}\.$"
    options = {**SMALL, "batch_size": 2, "context_length": 2, "sampling": "step", "checkpoint_every": 1}
    with pytest.raises(InputError, match=pattern):
        dtrl.train(broken, updates=99, logdir=tmp_path, **options)
    kept = dtrl.load_policy(tmp_path)
    assert kept.updates == first - 1
    assert all(np.isfinite(value).all() for value in weights(kept).values())
    assert not (tmp_path / "result.json").exists()


def test_weights_that_diverge_are_said_to(learnable, tmp_path):
    pattern = r"the (loss|gradient) of update \d+ is (nan|inf) \(episodes [^\n]*\): the data of the batch are finite, so the weights diverged"
    with pytest.raises(InputError, match=pattern):
        dtrl.train(
            learnable,
            updates=50,
            learning_rate=1e15,
            gradient_clip=1e9,
            warmup_updates=0,
            logdir=tmp_path,
            checkpoint_every=1,
            **SMALL,
        )
    assert all(np.isfinite(value).all() for value in weights(dtrl.load_policy(tmp_path)).values())


def test_a_gradient_that_is_not_finite_is_not_followed(data, monkeypatch):
    trainer = Trainer(
        data,
        ModelConfig(context_length=4, width=16, layers=1),
        TrainingConfig(updates=5, batch_size=8),
        None,
        resume=False,
    )
    before = weights(trainer.policy)
    head = trainer.model.heads["action"].point.weight
    head.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(InputError, match=r"the gradient of update 1 is (nan|inf)"):
        trainer.update(1)
    assert all(np.array_equal(before[name], value) for name, value in weights(trainer.policy).items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rte": 1}, "no option 'learning_rte'; did you mean 'learning_rate'?"),
        ({"contextlength": 1}, "no option 'contextlength'; did you mean 'context_length'?"),
        ({"preset": "dtx"}, "preset 'dtx' is unknown; did you mean 'dt'?"),
        ({"attention": "banded_"}, "attention 'banded_' is unknown: did you mean 'banded'?"),
        ({"updates": 0}, "updates 0 must be"),
        ({"updates": 2.5}, "updates 2.5 is a float"),
        ({"learning_rate": math.nan}, "learning_rate nan must be"),
        ({"gradient_accumulation": 3}, "batch_size 8 is not a multiple of gradient_accumulation 3"),
        ({"head": "categorical"}, "head 'categorical' does not fit"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence_before_anything_is_written(data, tmp_path, options, says):
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        dtrl.train(data, **{"updates": 1, "logdir": tmp_path / "run", **SMALL, **options})
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_config_toml_holds_every_setting(data, tmp_path):
    data = dataclasses.replace(data, discount=0.9)
    dtrl.train(data, updates=1, kv_heads=1, learning_rate=3e-3, logdir=tmp_path, **SMALL)
    config = tomllib.loads((tmp_path / "config.toml").read_text())
    assert config["dataset"] == "test/random-v0"
    assert config["data"] == {"discount": 0.9, "delayed": False}
    assert (config["model"]["kv_heads"], config["model"]["max_timestep"], config["training"]["learning_rate"]) == (
        1,
        max(LENGTHS),
        3e-3,
    )
    ModelConfig(**config["model"])
    assert TrainingConfig(**config["training"]) == TrainingConfig(updates=1, batch_size=8, learning_rate=3e-3)


def test_result_json_tells_what_was_trained(data, tmp_path):
    policy = dtrl.train(data, updates=7, log_every=3, seed=5, logdir=tmp_path, **SMALL)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["parameters_sha256"] == sha256_of(policy) == sha256_of(dtrl.load_policy(tmp_path))
    assert result["parameters"] == sum(value.size for value in weights(policy).values())
    assert (result["updates"], result["dataset"], result["preset"], result["seed"]) == (7, "test/random-v0", "dt", 5)
    assert result["final_loss"] == progress_of(tmp_path)[-1]["train/loss"]
    assert [line["update"] for line in progress_of(tmp_path)] == [3, 6, 7]
    assert result["dataset_sha256"] == "f" * 64


def test_tensorboard_gets_stable_baselines3_s_tags_each_step_once(data, tmp_path):
    dtrl.train(data, updates=6, log_every=2, logdir=tmp_path, **SMALL)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {
        "train/loss",
        "train/learning_rate",
        "train/gradient_norm",
        "train/action_loss",
        "train/action_error",
        "time/fps",
        "time/time_elapsed",
    } <= set(events.Tags()["scalars"])
    for tag in events.Tags()["scalars"]:
        assert [event.step for event in events.Scalars(tag)] == [2, 4, 6]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_the_log_tells_how_much_of_the_hardware_is_used(data, tmp_path):
    dtrl.train(data, updates=4, log_every=2, logdir=tmp_path, **SMALL)
    for line in progress_of(tmp_path):
        assert 0 < line["time/batch_share"] < 1
        assert 0 < line["train/model_flops_utilization"] < 1


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(data, tmp_path):
    dtrl.train(data, updates=1, logdir=tmp_path, **SMALL)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError, match=rf"{tmp_path} already holds a run; go on with it by --resume, or give another --logdir\.$"
    ):
        dtrl.train(data, updates=2, logdir=tmp_path, **SMALL)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["below a file", "a file", "in /proc"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_log_directory_that_cannot_be_written_is_refused(data, tmp_path, place, resume):
    (tmp_path / "file").write_text("mine")
    logdir = {"below a file": tmp_path / "file" / "run", "a file": tmp_path / "file", "in /proc": "/proc/run"}[place]
    with pytest.raises(InputError, match=rf"^{logdir}[^\n]* cannot be written \([^\n]+\.$"):
        dtrl.train(data, updates=1, logdir=logdir, resume=resume, **SMALL)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.filterwarnings("ignore:this processor multiplies bf16")
@pytest.mark.parametrize(
    ("trunk", "precision"),
    [
        ("gpt2", "fp32"),
        ("modern", "bf16"),
        pytest.param("gpt2", "bf16", marks=pytest.mark.slow),
        pytest.param("modern", "fp32", marks=pytest.mark.slow),
    ],
)
def test_both_precisions_train_on_the_cpu_and_keep_weights_in_float32(learnable, tmp_path, precision, trunk):
    policy = dtrl.train(
        learnable,
        updates=40,
        precision=precision,
        trunk=trunk,
        learning_rate=1e-2,
        log_every=10,
        logdir=tmp_path,
        **SMALL,
    )
    losses = [line["train/loss"] for line in progress_of(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]
    assert {value.dtype for value in weights(policy).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("sampling", ["step", "episode", "return"])
def test_every_way_of_sampling_trains(data, sampling):
    assert all(
        np.isfinite(value).all() for value in weights(dtrl.train(data, updates=2, sampling=sampling, **SMALL)).values()
    )


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(data, tmp_path):
    """The same batches, without dropout: the losses agree up to the rounding of fused kernels."""
    losses = []
    for compiled in (False, True):
        logdir = tmp_path / str(compiled)
        dtrl.train(data, updates=3, compile=compiled, dropout=0.0, log_every=1, logdir=logdir, **SMALL)
        losses.append([line["train/loss"] for line in progress_of(logdir)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
