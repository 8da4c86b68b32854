"""Several processes make the updates of one, stop together, and go on exactly.

Run as a program, this file is what the processes of its tests do: `python test_group.py FOLDER` goes through SCENARIOS, and leaves what each process saw."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from two_processes import OTHER_THREADS, SMALL, UPDATES, check_weights, make_data, record_of, start, told

import dtrl
from dtrl.acting.artefact import parameters_sha256
from dtrl.acting.runs import checkpoints
from dtrl.cli import main as dtrl_main
from dtrl.cli import show_warning
from dtrl.collect import write_minari
from dtrl.config import ModelConfig, TrainingConfig, split_options
from dtrl.errors import InputError
from dtrl.files import held
from dtrl.presets import PRESETS
from dtrl.training.group import Group, leave, new_name, own_device, worker_group
from dtrl.training.interrupts import Interrupted, Interrupts
from dtrl.training.trainer import Trainer, seed_of

SETTINGS = {
    **{preset: {"preset": preset} for preset in PRESETS},
    "modern": {"trunk": "modern", "attention": "banded"},
    "pieces": {"gradient_accumulation": 2},
    "conservative": {"conservative": 1.0, "gradient_accumulation": 2},
    "resident": {"data_on_device": "always"},
}
"""What an update is compared for; every preset's parameters all take part, or torch would refuse the second update."""


def train(logdir=None, **options):
    return dtrl.train(make_data(), logdir=logdir, **{"updates": UPDATES, **SMALL, **options})


def update_of(options, group=None):
    """The clipped gradient of the second update, end to end, what it measured, and the seed of the first one's dropout."""
    model, training = split_options({"updates": 9, "dropout": 0.0, **SMALL, **options}, ModelConfig, TrainingConfig)
    trainer = Trainer(make_data(), ModelConfig(**model), TrainingConfig(**training), None, False, group=group)
    trainer.model.train()
    if trainer.step.conservative is not None:
        trainer.step.conservative.width = 0.0  # or each process would draw its own
    trainer.update(1)
    measures = trainer.step.gradients(trainer.batch(2))
    gradient = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])
    return {"gradient": gradient.numpy(), "measures": measures.numpy(), "seed": torch.initial_seed()}


# what each of two processes does; what is returned is told to the tests


def gradients(folder):
    with worker_group("cpu") as group:
        updates = {name: update_of(options, group) for name, options in SETTINGS.items()}
    np.savez(folder / f"updates-{group.rank}.npz", **{f"{n} {k}": x for n, u in updates.items() for k, x in u.items()})


def straight(folder):
    told = []
    policy = train(folder / "straight", callbacks=[lambda event: told.append([event.kind, event.update])])
    return {"parameters": parameters_sha256(policy.model), "updates": policy.updates, "told": told}


def resumed(folder):
    train(folder / "resumed", updates=5)
    train(folder / "resumed", resume=True)


def another_number(folder):
    """Two processes, then one, then two."""
    said = []
    for updates, alone in ((3, False), (6, True), (UPDATES, False)):
        with warnings.catch_warnings(record=True) as caught, one_process(alone) as idle:
            warnings.simplefilter("always")
            if not idle:
                train(folder / "another-number", updates=updates, resume=True, dropout=0.0)
        said += [str(warning.message) for warning in caught if "the run had" in str(warning.message)]
        with worker_group("cpu") as group:
            group.largest(0)  # wait for the one
    return said


@contextlib.contextmanager
def one_process(alone):
    """Lets the first process train by itself; gives whether this one has nothing to do."""
    with mock.patch.dict(os.environ, {"WORLD_SIZE": "1"} if alone else {}):
        yield alone and os.environ["RANK"] != "0"


def signalled(folder):
    """SIGTERM to the second process alone, in the middle of an update, and once more."""
    update = Trainer.update

    def strike(trainer, number):
        if number == 5 and not trainer.group.first:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        update(trainer, number)

    with mock.patch.object(Trainer, "update", strike):
        try:
            train(folder / "signalled")
        except Interrupted as error:
            told = [error.number, str(error)]
    finished = (folder / "signalled" / "result.json").exists()
    train(folder / "signalled", resume=True)
    return [*told, finished]


def asked(folder):
    """SIGUSR1 to the second process alone, in the middle of an update."""
    update = Trainer.update

    def strike(trainer, number):
        if number == 5 and not trainer.group.first:
            os.kill(os.getpid(), signal.SIGUSR1)
        update(trainer, number)

    with mock.patch.object(Trainer, "update", strike):
        train(folder / "asked", keep_checkpoints=9)
    return [path.name for path in checkpoints(folder / "asked")]


def stopped(folder):
    return train(folder / "stopped", callbacks=[lambda event: event.update != 2], holdout=0.2).updates


def not_finite(folder):
    broken = make_data()
    broken.columns["actions"][:] = np.nan
    return refusal(lambda: dtrl.train(broken, updates=2, **SMALL))


def other_settings(folder):
    return refusal(lambda: train(seed=int(os.environ["RANK"])))


def held_folder(folder):
    return refusal(lambda: train(folder / "straight"))


def taken_folder(folder):
    """Another process holds it already when the first of these comes."""
    with held(folder / "taken", "") if os.environ["RANK"] == "0" else contextlib.nullcontext():
        return refusal(lambda: train(folder / "taken"))


def refusal(call):
    try:
        call()
    except InputError as error:
        return str(error)


def unseen_folder(folder):
    """The second process looks elsewhere, as on a machine that does not share the first one's disk."""
    with contextlib.chdir(folder / ("" if os.environ["RANK"] == "0" else "resumed")):
        return refusal(lambda: train("straight", resume=True))


SCENARIOS = [
    gradients, straight, resumed, another_number, signalled, asked, stopped, not_finite, other_settings, held_folder, taken_folder, unseen_folder
]  # fmt: skip


def main(folder):
    warnings.filterwarnings("error", message=".*[Uu]nused|.*deprecated")
    for scenario in SCENARIOS:
        told = scenario(folder)
        (folder / f"{scenario.__name__}-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left behind. Treat it as read-only."""
    folder = tmp_path_factory.mktemp("group")
    codes, errors = start(__file__, folder)
    assert codes == [0, 0], errors
    return folder


def updates_of(folder, rank):
    with np.load(folder / f"updates-{rank}.npz") as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_have_the_gradient_of_one(folder, name):
    """Though they hold different numbers of real steps, since many windows reach past the end of their episode."""
    one, two = update_of(SETTINGS[name]), [updates_of(folder, rank) for rank in range(2)]
    assert np.linalg.norm(one["gradient"]) > 1e-3
    for kind in ("gradient", "measures"):
        np.testing.assert_array_equal(two[0][f"{name} {kind}"], two[1][f"{name} {kind}"])
    assert two[0][f"{name} seed"] == one["seed"] != two[1][f"{name} seed"]
    np.testing.assert_allclose(two[0][f"{name} gradient"], one["gradient"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(two[0][f"{name} measures"], one["measures"], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_make_the_update_of_two_pieces_bit_for_bit(folder):
    pieces = update_of({"gradient_accumulation": 2})
    np.testing.assert_array_equal(updates_of(folder, 0)["dt gradient"], pieces["gradient"])


@pytest.mark.slow
def test_the_first_process_alone_writes_and_is_called_back(folder):
    first, second = told(folder, straight)
    result = json.loads((folder / "straight" / "result.json").read_text())
    assert first["parameters"] == second["parameters"] == result["parameters_sha256"]
    assert (first["updates"], second["updates"], result["processes"]) == (UPDATES, UPDATES, 2)
    assert first["told"] == [["start", 0], *(["update", u] for u in range(1, UPDATES + 1)), ["end", UPDATES]]
    assert second["told"] == []
    assert len(list((folder / "straight").glob("events.out.tfevents.*"))) == 1
    assert record_of(folder / "straight")[0] == result["parameters_sha256"]


@pytest.mark.slow
def test_as_many_processes_go_on_exactly(folder):
    """With dropout on, of which each process draws its own."""
    assert record_of(folder / "resumed") == record_of(folder / "straight")


@pytest.mark.slow
@pytest.mark.filterwarnings(OTHER_THREADS)
def test_another_number_of_processes_goes_on_and_says_so(folder, tmp_path):
    says = "the run had {} processes and has {} now: it goes on, but not bit for bit"
    first, second = told(folder, another_number)
    assert first == [says.format(2, 1), says.format(1, 2)]
    assert second == [says.format(1, 2)]
    check_weights(dtrl.load_policy(folder / "another-number").model, train(tmp_path, dropout=0.0).model)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_update(folder):
    """A second one, which torchrun may send, changes nothing; and what was written goes on exactly."""
    where = f"the checkpoint is in {folder / 'signalled'}, and --resume goes on from it."
    assert told(folder, signalled) == 2 * [[signal.SIGTERM, f"interrupted after update 5; {where}", False]]
    assert record_of(folder / "signalled") == record_of(folder / "straight")


@pytest.mark.slow
def test_a_checkpoint_that_one_process_is_asked_for_is_written_and_changes_nothing(folder):
    assert told(folder, asked) == 2 * [[f"update-{update:08d}" for update in (3, 5, 6, 8)]]
    assert record_of(folder / "asked") == record_of(folder / "straight")


@pytest.mark.slow
def test_a_callback_stops_both_processes_after_the_same_update(folder):
    assert told(folder, stopped) == [2, 2]
    assert [path.name for path in checkpoints(folder / "stopped")] == ["update-00000002"]
    assert "val/loss" in (folder / "stopped" / "progress.jsonl").read_text()


@pytest.mark.slow
def test_what_one_process_refuses_is_refused_by_both(folder):
    first, second = told(folder, not_finite)
    assert first == second
    assert first.startswith("the loss of update 1 is nan")
    first, second = told(folder, taken_folder)
    assert first == second
    assert f"another process is training in {folder / 'taken'}" in first
    first, second = told(folder, held_folder)
    assert first == second
    assert "already holds a run" in first
    first, second = told(folder, unseen_folder)
    assert first == second
    assert first.endswith(
        f"update-{UPDATES:08d} is not seen by every process; give a --logdir on a file system that all machines share."
    )
    first, second = told(folder, other_settings)
    assert first.startswith("another process was started with other data or settings than process 0")
    assert second.startswith("process 1 (seed 0 → 1) was started with other data or settings")


KILLER = """
import os, pathlib, signal
from dtrl.training.trainer import Trainer

update, mark = Trainer.update, pathlib.Path("killed")

def deadly(trainer, number):
    if number == 5 and not trainer.group.first and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    update(trainer, number)

Trainer.update = deadly
"""


@pytest.mark.slow
def test_torchrun_starts_all_again_when_one_is_killed_and_the_end_is_the_same(folder, tmp_path):
    name = write_minari(make_data(), "test/random-v0")
    (tmp_path / "killer.py").write_text(KILLER)
    options = {"updates": UPDATES, **SMALL}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    verb = ["train", name, "--eval-episodes", "0", "--import", "killer", "--logdir", "run", "--resume", *flags]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(dtrl.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "--max-restarts", "1", "-m", "dtrl", *verb],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert done.stdout.count(f"trained {UPDATES} updates") == 1
    assert "process 0 of 2 lost another one" in done.stderr
    assert record_of(tmp_path / "run") == record_of(folder / "straight")


# in this process


def test_the_shares_of_all_are_the_batch():
    rows = np.arange(12)
    for size in (1, 2, 3):
        shares = [Group(torch.device("cpu"), rank, size).share(rows) for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate(shares), rows)
        assert {len(share) for share in shares} == {12 // size}


def test_every_process_draws_its_own_dropout_and_the_first_that_of_one_process():
    assert len({seed_of(0, update, rank) for update in range(1, 9) for rank in range(4)}) == 32
    assert seed_of(3, 7, 0) == seed_of(3, 7)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 9}, "batch_size 9 is not a multiple of 2 (2 processes × gradient_accumulation 1)"),
        ({"gradient_accumulation": 8}, "batch_size 8 is not a multiple of 16 (2 processes × gradient_accumulation 8)"),
        ({"cuda_graph": True}, "cuda_graph is of one process, and this training has 2"),
    ],
)
def test_settings_that_do_not_go_with_several_processes_are_refused(options, says):
    config = TrainingConfig(**{"batch_size": 8, **options})
    Group(torch.device("cpu")).check(config)
    with pytest.raises(InputError) as caught:
        Group(torch.device("cpu"), 0, 2).check(config)
    assert says in str(caught.value)


def test_a_device_that_several_processes_cannot_use_is_refused():
    with pytest.raises(InputError, match="processes on device mps cannot add up their gradients"):
        own_device(torch.device("mps"), 0, 2)
    with pytest.raises(InputError, match="device cuda:0 is one GPU, and 2 processes of this machine need one each"):
        own_device(torch.device("cuda:0"), 1, 2)
    assert own_device(torch.device("cpu"), 1, 2) == torch.device("cpu")


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


def test_what_is_of_one_process_is_refused_in_several(second_of_two, capsys):
    assert dtrl_main(["evaluate", "runs/any"]) == 2
    assert "dtrl evaluate runs in one process, and torchrun has started 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="fine-tuning runs in one process, and torchrun has started 2"):
        dtrl.finetune(None, make_data(), updates=1)


def test_a_warning_is_given_by_the_first_process_alone(second_of_two, capsys, monkeypatch):
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        show_warning("the run had 2 processes", UserWarning, "", 0)
    assert capsys.readouterr().err == "warning: the run had 2 processes\n"


def test_a_port_that_another_program_has_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with (
            pytest.raises(InputError, match=f"port {port}, at which the processes are to meet, is in use"),
            worker_group("cpu"),
        ):
            pass


def test_one_process_is_no_group(monkeypatch):
    """As torchrun with one process, or as a scheduler that sets a variable of the same name."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
        with worker_group("cpu") as group:
            assert (group.rank, group.size, group.largest(3, 4)) == (0, 1, [3, 4])
    assert not torch.distributed.is_initialized()


def test_the_group_is_left_before_the_interpreter_ends(monkeypatch):
    """In a process of its own, which has it to the end: torch is asked for the end of the group exactly where there is one."""
    ended = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
    leave()
    assert not ended
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    leave()
    assert ended


def test_workers_that_are_started_again_meet_under_a_new_name():
    """In a store that holds what earlier ones left, complete or not, of fewer or of more, and in whatever order they come."""
    store, names = torch.distributed.HashStore(), []
    with pytest.raises(ProcessLookupError):  # the first of an earlier life, that died before anybody answered
        new_name(mock.Mock(set=store.set, get=mock.Mock(side_effect=ProcessLookupError)), 0, 2)
    for size, late in ((2, 0), (3, 1), (2, 1), (2, 0)):
        found = {}

        def meet(rank, size=size, found=found):
            found[rank] = new_name(store, rank, size)

        threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(size)]
        for thread in [*threads[late:], *threads[:late]]:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join(timeout=20)
        assert set(found) == set(range(size))
        names += sorted(set(found.values()))
    assert len(names) == len(set(names)) == 4


def test_a_patient_process_takes_a_second_signal_for_the_first():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts(patient=True) as interrupts:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
