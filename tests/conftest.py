"""What every test gets: folders of its own, one thread, no network, no screen."""

import gc
import itertools
import os
from pathlib import Path

# Read by the libraries when they are imported, and by the processes that tests start. One thread: sums are added in one
# order on every machine, and small tensors are faster so.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a dataset that is not there is refused at once, wherever the tests run

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("dtrl", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("dtrl")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collects no garbage while the tests are collected, and afterwards never again looks at what that left: some million objects of torch
    and of the tests themselves stay to the end, and to go through them takes a third of a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def session_folders(tmp_path_factory):
    """Keeps fixtures that live longer than one test away from the user's own datasets and cache; names a folder for each test."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("session")
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        patch.setenv("DTRL_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        # tmp_path_factory.mktemp reads the whole list of folders to find the next number: thousands of tests would spend
        # milliseconds each on it.
        yield (folder / "tests" / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_folders(session_folders, monkeypatch):
    """Datasets, cache and working directory of one test. MuJoCo writes MUJOCO_LOG.TXT into the last."""
    folder = next(session_folders)
    (folder / "cwd").mkdir(parents=True)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
    monkeypatch.setenv("DTRL_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder / "cwd")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded datasets beside the checkout: `minari/` and `policies/`. Treat it as read-only."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "minari").is_dir():
        pytest.skip(f"the recorded datasets are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def random_trajectories():
    """Makes trajectories of random numbers: one episode for each of the given lengths, every second one truncated."""
    import numpy as np
    from gymnasium import spaces

    from dtrl.trajectories import Trajectories

    def make(lengths, observation_space=None, action_space=None, seed=0, **rest):
        observation_space = observation_space or spaces.Box(-np.inf, np.inf, (3,))
        action_space = action_space or spaces.Box(-1, 1, (2,))
        random = np.random.default_rng(seed)

        def values(space, count):
            if isinstance(space, spaces.Discrete):
                return random.integers(space.start, space.start + space.n, count)
            if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
                top = space.nvec if isinstance(space, spaces.MultiDiscrete) else 2
                return random.integers(0, top, (count, *space.shape))
            return random.uniform(-1, 1, (count, *space.shape))

        episodes = [
            {
                "observations": values(observation_space, length + 1),
                "actions": values(action_space, length),
                "rewards": random.normal(size=length),
                "terminations": (np.arange(length) == length - 1) & (i % 2 == 0),
                "truncations": (np.arange(length) == length - 1) & (i % 2 == 1),
            }
            for i, length in enumerate(lengths)
        ]
        return Trajectories.from_episodes(episodes, observation_space, action_space, **rest)

    return make


@pytest.fixture(scope="session")
def untrained_policy():
    """Makes a small policy for trajectories, with weights so large that a mistake anywhere in the past is seen in the action."""
    import torch

    from dtrl.acting.policy import Policy
    from dtrl.acting.summary import DataSummary
    from dtrl.config import ModelConfig
    from dtrl.presets import build, columns_for, resolve

    def make(trajectories, *, seed=0, acting=None, **options):
        config = resolve(
            ModelConfig(**{"context_length": 4, "width": 16, "layers": 2, "heads": 4, **options}), trajectories
        )
        torch.manual_seed(seed)
        spaces = trajectories.observation_space, trajectories.action_space
        model = build(config, *spaces)
        model.fit(columns_for(model, trajectories))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        return Policy(model, config, *spaces, DataSummary.of(trajectories), **(acting or {}))

    return make


@pytest.fixture
def cuda():
    """The GPU, without the shorter floats that its convolutions are otherwise allowed to take."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and torch's CUDA build")
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield torch.device("cuda")


@pytest.fixture
def nothing_read_back():
    """A context in which torch raises where the host would have to wait for a number of the device, which no CUDA graph can hold."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    reading = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}
    indexed = {"index", "index_put", "index_put_", "_index_put_impl_"}

    class NothingReadBack(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            by_mask = name in indexed and any(i is not None and i.dtype == torch.bool for i in args[1])
            if name in reading or by_mask:
                raise AssertionError(f"{function} waits for the device")
            return function(*args, **(kwargs or {}))

    return NothingReadBack


@pytest.fixture(scope="session")
def scripted_env():
    """A class of environments. The seed fixes an episode's length (2 to 9 steps) and noise; observations and rewards depend on the actions."""
    import gymnasium
    import numpy as np

    class Scripted(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
        action_space = gymnasium.spaces.Discrete(3)

        def __init__(self, diary=None):
            self.diary = [] if diary is None else diary

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.length = int(self.np_random.integers(2, 10))
            self.noise = self.np_random.normal(size=(self.length + 1, 3)).astype(np.float32)
            self.rewards = []
            return self.noise[0], {}

        def step(self, action):
            assert len(self.rewards) < self.length, "stepped after the end"
            self.rewards.append((int(action) + len(self.rewards)) / 4)
            now = len(self.rewards)
            ended = now == self.length
            if ended:
                self.diary.append((self.noise[0].tobytes(), sum(self.rewards)))
            return (
                self.noise[now] + np.float32(action),
                self.rewards[-1],
                ended and now % 2 == 0,
                ended and now % 2 == 1,
                {},
            )

    return Scripted
