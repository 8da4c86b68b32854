"""A Ray cluster of this machine does what one process does. It is started for the tests alone, and nothing is left of it.

It takes no code from others: Ray listens on all addresses of a machine, so it gets a token. In its environment is a folder of modules, as there would be
installed packages."""

import dataclasses
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import gymnasium
import minari
import numpy as np
import pytest

import dtrl
from dtrl import cluster
from dtrl.bench.processes import free_port
from dtrl.cli import main
from dtrl.cluster import PREFACE, RETRIES, check_address, connected, do_piece, number_of_tasks, result_of, task_of
from dtrl.collect import load_recipe, make_dataset
from dtrl.errors import InputError
from dtrl.pieces import hands

ROOT = Path(__file__).resolve().parent.parent
LOST = "a process is gone."
SECONDS_TO_START = 60
MODULE = '''
"""Works and environments that end their own process."""

import os
import signal
from pathlib import Path

import gymnasium


def end_process():
    os.kill(os.getpid(), signal.SIGKILL)


def end_once(folder):
    """Ends the process, unless it has done so."""
    note = Path(folder) / "ended"
    if not note.exists():
        note.touch()
        end_process()


def always():
    return lambda piece: end_process()


def wrong():
    return lambda piece: 1 / piece


class EndsOnce(gymnasium.Wrapper):
    """Another environment, which ends its process in the seventh step of the first episode to reach it."""

    def __init__(self, env_id, folder):
        super().__init__(gymnasium.make(env_id))
        self.folder = folder

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.steps == 7:
            end_once(self.folder)
        return super().step(action)
'''
RECIPE = """
id = "tests/cartpole-v0"
description = "x"
env = "{env}"
env_options = {options}
seed = 7

[[behaviour]]
policy = "random"
episodes = 30
"""


# Without Ray: what is said and done around it.


@contextmanager
def answering(answer, seen):
    """The address of a server that answers the first who comes, and adds to `seen` what it is sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(len(PREFACE)))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("address", ["", "host", "ray://host:1", ":6379", "host:", "host:port", "local"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match=f"the address '{address}' of a Ray cluster is not HOST:PORT"):
        check_address(address)


def test_an_address_at_which_no_cluster_answers_is_told_of_soon(monkeypatch):
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:\d+ .*refused"):
        check_address(f"127.0.0.1:{free_port()}")
    with (
        answering(b"HTTP/1.1 400 Bad Request\r\n", []) as address,
        pytest.raises(InputError, match=f"what answers at {address} is no Ray cluster"),
    ):
        check_address(address)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(InputError, match=r"no Ray cluster answers at .*timed out"):
            check_address(f"127.0.0.1:{silent.getsockname()[1]}")
    seen = []
    with answering(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]), seen) as address:
        check_address(address)
    assert seen == [PREFACE]


def test_without_ray_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs the package ray, which is not installed; `pip install 'dtrl\[ray\]'`"):
        with connected("auto"):
            pass


def test_a_machine_without_dtrl_or_with_another_is_named():
    """The function is sent to a process in which dtrl cannot be imported."""
    code = (
        "import sys; sys.modules['dtrl'] = None; import cloudpickle; "
        "task = cloudpickle.loads(sys.stdin.buffer.read()); print(task('key', [], 1)[:2])"
    )
    sent = cloudpickle.dumps(task_of(dtrl.__version__))
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "('missing', None)"
    assert task_of("0.0.7")("key", [], 1)[:2] == ("version", dtrl.__version__)
    ray = SimpleNamespace(get=lambda value: value, exceptions=SimpleNamespace(RayError=LookupError))
    with pytest.raises(InputError, match=r"dtrl is not installed on box.*pip install 'dtrl"):
        result_of(ray, ("missing", None, "box"), LOST)
    with pytest.raises(InputError, match=rf"dtrl is 0\.0\.7 on box, .* and {dtrl.__version__} here"):
        result_of(ray, ("version", "0.0.7", "box"), LOST)


def test_a_process_makes_what_does_the_pieces_once_for_each_work(monkeypatch):
    made = []

    def make(name):
        made.append(name)
        return lambda piece: (name, piece)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda sent: partial(make, sent)))
    results = [do_piece(key, [key], piece) for key, piece in (("a", 1), ("a", 2), ("b", 1), ("b", 3))]
    assert results == [("done", ("a", 1)), ("done", ("a", 2)), ("done", ("b", 1)), ("done", ("b", 3))]
    assert made == ["a", "b"]
    assert list(cluster._works) == ["b"]
    cluster._works.clear()


def test_there_are_no_more_tasks_than_processors():
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 6.0})
    assert [number_of_tasks(ray, "auto", jobs) for jobs in (None, 2, 9)] == [6, 2, 6]
    with pytest.raises(InputError, match="the Ray cluster 'auto' has no processors for tasks"):
        number_of_tasks(SimpleNamespace(cluster_resources=dict), "auto", None)


# With a cluster.


@pytest.fixture(scope="module")
def head():
    """Address of a cluster's head, and the folder that its processes and this one have modules from."""
    if importlib.util.find_spec("ray") is None:  # not imported: it reads its variables of the environment then
        pytest.skip("Ray is not installed: pip install 'dtrl[ray]'")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # a short path, as sockets have names of 107 bytes at most
    (folder / "modules").mkdir()
    (folder / "modules" / "ending.py").write_text(MODULE, encoding="utf-8")
    ports = set()
    while len(ports) < 3:
        ports.add(free_port())
    port, client_port, dashboard_port = ports
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(folder / "modules")]))
        patch.syspath_prepend(str(folder / "modules"))
        command = (
            f"start --head --block --port={port} --ray-client-server-port={client_port} --dashboard-port={dashboard_port} --include-dashboard=false "
            f"--disable-usage-stats --num-cpus=2 --object-store-memory=100000000 --temp-dir={folder}"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command.split()],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(f"127.0.0.1:{port}", process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            left = processes_of(process.pid)
            for number in left:
                os.kill(number, signal.SIGKILL)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
    assert left == []


def wait_for(address, process):
    until = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            return check_address(address)
        except InputError:
            assert process.poll() is None, "ray start has ended"
            assert time.monotonic() < until
            time.sleep(0.1)


def processes_of(session):
    """The ids of a session's processes that live."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if not line.split()[1].startswith("Z")]


@pytest.fixture(scope="module")
def joined(head):
    """The address, and a connection to it that all these tests have."""
    with connected(head):
        yield head


@pytest.fixture
def ends_once(tmp_path, monkeypatch):
    """Registers an environment that ends its process once, and returns the folder in which it notes that."""
    folder = tmp_path / "calls"
    folder.mkdir()

    def register(name, env_id, steps=None):
        spec = gymnasium.envs.registration.EnvSpec(
            name, "ending:EndsOnce", max_episode_steps=steps, kwargs={"env_id": env_id, "folder": str(folder)}
        )
        monkeypatch.setitem(gymnasium.registry, name, spec)
        return folder

    return register


def policy_for(env_id, random_trajectories, untrained_policy):
    env = gymnasium.make(env_id)
    return untrained_policy(random_trajectories([6, 9], env.observation_space, env.action_space))


@pytest.mark.slow
def test_evaluations_are_the_same_bit_for_bit_though_a_process_is_killed(
    joined, random_trajectories, untrained_policy, ends_once
):
    """Pieces of one episode by this process, by 1, 2 and 3 tasks at most, and in an environment that ends its process."""
    policy = policy_for("Pendulum-v1", random_trajectories, untrained_policy)
    evaluate = partial(dtrl.evaluate, policy, [-300.0], 5, num_envs=1)
    pendulum = dataclasses.replace(gymnasium.spec("Pendulum-v1"), max_episode_steps=40).to_json()
    expected = evaluate(env=pendulum)
    for jobs in (2, 1, 3):  # two are started at once
        assert evaluate(env=pendulum, jobs=jobs, ray=joined).to_dict() == expected.to_dict()
    folder = ends_once("Ending-v0", "Pendulum-v1", steps=40)
    again = evaluate(env="Ending-v0", ray=joined)
    assert again.targets == expected.targets
    assert (folder / "ended").exists()


@pytest.mark.slow
def test_the_command_line_reports_the_same(joined, random_trajectories, untrained_policy, tmp_path, capsys):
    policy_for("CartPole-v1", random_trajectories, untrained_policy).save(tmp_path / "policy.safetensors")
    asked = ["evaluate", str(tmp_path / "policy.safetensors"), "--env", "CartPole-v1", "--target-returns", "20", "90"]
    asked += ["--episodes", "10", "--num-envs", "4"]
    for name, where in (("ray", ["--ray", joined]), ("alone", [])):
        assert main([*asked, *where, "--json", str(tmp_path / f"{name}.json")]) == 0
    reports = [dtrl_report(tmp_path / f"{name}.json") for name in ("ray", "alone")]
    assert reports[0] == reports[1]
    assert "by 2 jobs" in capsys.readouterr().out


def dtrl_report(path):
    """What a report's file says, without the times."""
    report = json.loads(path.read_text())
    del report["timing"]
    return report


@pytest.mark.slow
def test_datasets_are_the_same_though_a_process_is_killed(joined, tmp_path, ends_once):
    def made(name, options="{}", env="CartPole-v1", **where):
        path = tmp_path / f"{name}.toml"
        path.write_text(RECIPE.format(env=env, options=options), encoding="utf-8")
        make_dataset(load_recipe(str(path)), dataset_id=f"tests/{name}-v0", progress=False, **where)
        dataset = minari.load_dataset(f"tests/{name}-v0")
        columns = ("observations", "actions", "rewards", "terminations", "truncations")
        return [getattr(episode, column) for episode in dataset for column in columns]

    expected = made("alone")
    assert len(expected) == 5 * 30
    for jobs in (1, 2, 3):
        np.testing.assert_equal(made(f"ray{jobs}", ray=joined, jobs=jobs), expected)
    folder = ends_once("Ending-v0", "CartPole-v1")
    options = f'{{ env_id = "CartPole-v1", folder = "{folder}" }}'
    np.testing.assert_equal(made("ended", options, "Ending-v0", ray=joined, modules=["ending"]), expected)
    assert (folder / "ended").exists()


@pytest.mark.slow
def test_what_a_task_raises_and_a_task_that_always_dies_are_told_of(joined, monkeypatch):
    import ending

    with hands(ending.wrong, None, joined, LOST) as some:
        assert some.jobs == 2
        assert dict(some.do([2, 4, 8])) == {0: 0.5, 1: 0.25, 2: 0.125}
        with pytest.raises(InputError, match=r"a task of Ray on .* raised ZeroDivisionError: .*zero") as raised:
            list(some.do([1, 0]))
    assert "ending.py" in str(raised.value.__cause__)
    assert RETRIES == 3
    with (
        hands(ending.always, None, joined, LOST) as some,
        pytest.raises(InputError, match=f"{LOST} Ray says: WorkerCrashedError"),
    ):
        list(some.do([1]))
    monkeypatch.setattr(dtrl, "__version__", "0.0.7")
    with (
        hands(dict, None, joined, LOST) as some,
        pytest.raises(InputError, match=r"dtrl is \S+ on .*, and 0\.0\.7 here"),
    ):
        list(some.do([1]))
