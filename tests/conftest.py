"""What every test gets: folders of its own, one thread, no network, no screen."""

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

hypothesis.settings.register_profile("dtrl", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("dtrl")


@pytest.fixture(scope="session", autouse=True)
def session_folders(tmp_path_factory):
    """Keeps fixtures that live longer than one test away from the user's own datasets and cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("session")
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        patch.setenv("DTRL_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch, session_folders):
    """Datasets, cache and working directory of one test. MuJoCo writes MUJOCO_LOG.TXT into the last."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "cwd").mkdir()
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
