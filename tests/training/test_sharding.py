"""Processes that share out one model make the updates of one that holds it, and write and read the same files.

Run as a program, this file is what the processes of its tests do: `python test_sharding.py FOLDER SCENARIO …`; they leave in FOLDER what each of them saw."""

import atexit
import contextlib
import ctypes
import json
import math
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from two_processes import OTHER_THREADS, SMALL, UPDATES, check_weights, make_data, record_of, start, told

import dtrl
from dtrl.acting.artefact import parameters_sha256
from dtrl.acting.runs import checkpoints
from dtrl.config import ModelConfig, TrainingConfig, split_options
from dtrl.errors import InputError, WorkerLostError
from dtrl.presets import PRESETS
from dtrl.training.group import Group, leave, worker_group
from dtrl.training.trained import local, whole
from dtrl.training.trainer import Trainer

SMALL = {**SMALL, "keep_checkpoints": 9}
SETTINGS = {
    **{preset: {"preset": preset} for preset in PRESETS},
    "modern": {"trunk": "modern", "attention": "banded"},
    "narrow": {"width": 3},
    "pieces": {"gradient_accumulation": 2},
    "conservative": {"conservative": 1.0, "gradient_accumulation": 2},
    "noise": {"observation_noise": 0.1, "data_on_device": "always"},
    "bf16": {"precision": "bf16"},
}
"""What an update is compared for. Of a width of 3 two processes have parts of 2 and 1, and of the two numbers of an action's bias one each."""


def train(logdir, **options):
    return dtrl.train(make_data(), logdir=logdir, **{"updates": UPDATES, **SMALL, **options})


def update_of(options, group=None):
    """The clipped gradient of the second update, put together, what it measured, and (2, 3) how many numbers of parameters, gradients and moments there are
    here, and in all."""
    given = {"updates": 9, "dropout": 0.0, **SMALL, **options, "fsdp": group is not None}
    model, training = split_options(given, ModelConfig, TrainingConfig)
    trainer = Trainer(make_data(), ModelConfig(**model), TrainingConfig(**training), None, False, group=group)
    trainer.trained.model.train()
    if trainer.step.conservative is not None:
        trainer.step.conservative.width = 0.0  # or each process would draw its own
    if trainer.step.perturbation is not None:
        trainer.step.perturbation = lambda batch: batch  # as above
    trainer.update(1)
    measures = trainer.step.gradients(trainer.batch(2))
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    moments = [trainer.optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
    held = [parameters, [p.grad for p in parameters], moments]
    sizes = [[sum(size(x).numel() for x in tensors) for tensors in held] for size in (local, lambda x: x)]
    gradient = torch.cat([whole(p.grad).flatten() for p in trainer.trained.model.parameters()])
    return {"gradient": gradient.numpy(), "measures": measures.numpy(), "sizes": np.array(sizes)}


# what each of two processes does; what is returned is told to the tests


def gradients(folder):
    with worker_group("cpu") as group:
        updates = {name: update_of(options, group) for name, options in SETTINGS.items()}
    np.savez(folder / f"updates-{group.rank}.npz", **{f"{n} {k}": x for n, u in updates.items() for k, x in u.items()})


def straight(folder):
    kept, told = [], {}

    def look(event):
        if not kept:
            kept.append(event.policy)
        if event.update == 3:
            told["unasked"] = all(bool(p.isnan().all()) for p in kept[0].model.parameters())
            told["asked"] = parameters_sha256(event.policy.model)
            told["acting"] = event.policy.replay(make_data())

    policy = train(folder / "straight", fsdp=True, callbacks=[look])
    return {**told, "end": parameters_sha256(policy.model)}


def held_out(folder):
    train(folder / "held-out", fsdp=True, updates=2, holdout=0.2, dropout=0.0)


def ways(folder):
    """Two processes that share out the model, two that each hold it, one, two that share it out."""
    said = []
    for updates, fsdp, alone in ((2, True, False), (4, False, False), (6, True, True), (UPDATES, True, False)):
        with warnings.catch_warnings(record=True) as caught, one_process(alone) as idle:
            warnings.simplefilter("always")
            if not idle:
                train(folder / "ways", updates=updates, resume=True, dropout=0.0, fsdp=fsdp)
        said.append([str(warning.message) for warning in caught if "deprecated" not in str(warning.message)])
        with worker_group("cpu") as group:
            group.largest(0)  # wait for the one
    return said


@contextlib.contextmanager
def one_process(alone):
    """Lets the first process train by itself; gives whether this one has nothing to do."""
    with mock.patch.dict(os.environ, {"WORLD_SIZE": "1"} if alone else {}):
        yield alone and os.environ["RANK"] != "0"


def not_finite(folder):
    broken = make_data()
    broken.columns["actions"][:] = np.nan
    try:
        dtrl.train(broken, updates=2, fsdp=True, **SMALL)
    except InputError as error:
        return str(error)


def killed(folder):
    """SIGKILL to the second process, in the middle of a run."""
    update = Trainer.update

    def strike(trainer, number):
        if number == 5 and not trainer.group.first:
            os.kill(os.getpid(), signal.SIGKILL)
        update(trainer, number)

    with mock.patch.object(Trainer, "update", strike):
        try:
            train(folder / "killed", fsdp=True)
        except WorkerLostError as error:
            return str(error)


def again(folder):
    """Resume; then end at the moment at which a thread of the group wants Python's lock, to let go of a tensor."""
    hold = ctypes.PyDLL(None).usleep  # such a call keeps the lock, as does what the interpreter does after it
    atexit.register(hold, 50_000)
    with worker_group("cpu"):
        atexit.unregister(leave)  # which gives the lock away, now and then
        atexit.register(add_up, dist.group.WORLD)
    train(folder / "killed", fsdp=True, resume=True)
    vars(sys.modules["__main__"])["last"] = Last()


def add_up(group):
    """Return as soon as a sum is there, without having given the lock away."""
    number = np.ones(1, np.float32)
    group.allreduce(torch.from_numpy(number))
    while number[0] != 2:
        pass


class Last:
    """Gives the lock away when it is deleted: while the interpreter ends."""

    def __del__(self, sleep=time.sleep):
        sleep(0.05)


SCENARIOS = {f.__name__: f for f in (gradients, straight, held_out, ways, not_finite, killed, again)}


def main(folder, *names):
    warnings.filterwarnings("error", message=".*view tensor|.*deprecated")
    for name in names:
        told = SCENARIOS[name](folder)
        (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left behind, of which the second was killed at last, and the two that went on. Treat it as read-only."""
    folder = tmp_path_factory.mktemp("sharding")
    codes, errors = start(__file__, folder, *[name for name in SCENARIOS if name != "again"])
    assert codes == [0, -signal.SIGKILL], errors
    codes, errors = start(__file__, folder, "again")
    assert codes == [0, 0], errors
    return folder


def updates_of(folder, name):
    """What the update of both processes was."""
    found = []
    for rank in range(2):
        with np.load(folder / f"updates-{rank}.npz") as arrays:
            found.append({kind: arrays[f"{name} {kind}"] for kind in ("gradient", "measures", "sizes")})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_shares_have_the_gradient_of_the_whole(folder, name):
    one, (first, second) = update_of(SETTINGS[name]), updates_of(folder, name)
    assert np.linalg.norm(one["gradient"]) > 1e-3
    for kind in ("gradient", "measures"):
        np.testing.assert_array_equal(first[kind], second[kind])
    if name == "bf16":  # of three digits; a worker rounds its part of a sum before the parts are added
        assert np.linalg.norm(first["gradient"] - one["gradient"]) < 0.03 * np.linalg.norm(one["gradient"])
        np.testing.assert_allclose(first["measures"][:2], one["measures"][:2], rtol=0.03)
    else:
        np.testing.assert_allclose(first["gradient"], one["gradient"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(first["measures"], one["measures"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_each_process_holds_half_of_parameters_gradients_and_moments(folder, name):
    """Where a first dimension is odd the first has one row more, and both have the multipliers, of which there is one at most."""
    whole = update_of(SETTINGS[name])["sizes"]
    first, second = (update["sizes"] for update in updates_of(folder, name))
    np.testing.assert_array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(first[1], whole[1])
    multipliers = np.array([1, 1, 2]) if name == "odt" else 0
    np.testing.assert_array_equal(first[0] + second[0], whole[1] + multipliers)
    if name not in ("narrow", "rvs"):
        assert (second[0] > 0.4 * whole[1]).all()


@pytest.mark.slow
def test_who_asks_for_the_policy_gets_that_of_now_and_all_have_it_at_the_end(folder):
    first, second = told(folder, straight)
    third = checkpoints(folder / "straight")[0]
    assert third.name == "update-00000003"
    assert first["asked"] == parameters_sha256(dtrl.load_policy(third).model)
    assert first["unasked"]
    assert first["acting"] < 1e-4
    result = json.loads((folder / "straight" / "result.json").read_text())
    assert first["end"] == second["end"] == result["parameters_sha256"] == record_of(folder / "straight")[0]
    assert set(second) == {"end"}
    assert result["training"]["fsdp"]


@pytest.mark.slow
def test_the_held_out_loss_is_that_of_the_whole(folder, tmp_path):
    train(tmp_path, updates=2, holdout=0.2, dropout=0.0)
    for ours, theirs in zip(*(scalars(run) for run in (tmp_path, folder / "held-out")), strict=True):
        assert math.isfinite(ours["val/loss"])
        for name in ("val/loss", "val/action_rmse", "train/loss", "train/gradient_norm"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5)


def scalars(run):
    return [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other_and_the_run_goes_on_exactly(folder):
    """With dropout on, of which each process draws its own."""
    (lost,) = told(folder, killed, ranks=[0])
    assert lost.startswith("process 0 of 2 lost another one")
    assert record_of(folder / "killed") == record_of(folder / "straight")


@pytest.mark.slow
@pytest.mark.filterwarnings(OTHER_THREADS)
def test_any_processes_go_on_from_any_checkpoint_and_say_so(folder, tmp_path):
    said = "the run had {} and has {} now: it goes on, but not bit for bit"
    first, second = told(folder, ways)
    assert first == [
        [],
        [said.format("2 shards", 1)],
        [
            "fsdp shares out a model among processes, and this training has one: it goes on, and holds all of it",
            said.format("2 processes", 1),
        ],
        [said.format("1 processes", 2), said.format("1 shards", 2)],
    ]
    assert second == [first[0], first[1], [], first[3]]
    check_weights(dtrl.load_policy(folder / "ways").model, train(tmp_path, dropout=0.0).model)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_refused_by_both(folder):
    first, second = told(folder, not_finite)
    assert first == second
    assert first.startswith("the loss of update 1 is nan")


# in this process


@pytest.mark.parametrize("options", [{"compile": True}, {"scheduled_sampling": 0.2}])
def test_settings_that_do_not_go_with_shares_are_refused(options):
    config = TrainingConfig(batch_size=8, **options)
    Group(torch.device("cpu"), 0, 2).check(config)
    with pytest.raises(InputError, match=f"{next(iter(options))} does not go with fsdp"):
        Group(torch.device("cpu"), 0, 2).check(TrainingConfig(batch_size=8, fsdp=True, **options))


def test_one_process_holds_all_of_the_model_and_says_so():
    with pytest.warns(UserWarning, match="this training has one: it goes on, and holds all of it"):
        policy = dtrl.train(make_data(), **SMALL, updates=1, fsdp=True)
    assert parameters_sha256(policy.model) == parameters_sha256(dtrl.train(make_data(), **SMALL, updates=1).model)
