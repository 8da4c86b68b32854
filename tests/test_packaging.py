"""The package as a stranger gets it: a wheel, an editable install, a bare checkout, each used from another folder.

The installs go into new environments that see the packages of this one but not its dtrl, so nothing is downloaded."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("dtrl", "envs", "datasets", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PROBE = """
import dtrl, gymnasium, importlib.util, json
from dtrl.collect import list_recipes
env = gymnasium.make("dtrl/KeyToDoor-v0")
env.reset(seed=0)
env.close()
print(json.dumps({
    "package": dtrl.__file__,
    "environment": importlib.util.find_spec("dtrl.envs").origin,
    "recipes": len(list(list_recipes())),
    "strangers": [name for name in ("envs", "tests") if importlib.util.find_spec(name)],
}))
"""


def run(*command, cwd: Path) -> str:
    """What the command printed; a failure shows all of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def recipes_in(folder: Path) -> int:
    return len(list(folder.glob("*.toml")))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what is shipped: building writes into the tree."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(checkout, tmp_path_factory) -> Path:
    """The wheel, built from the source archive: what the archive lacks, the wheel lacks."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture
def interpreter(tmp_path) -> Path:
    """Python of an environment that has everything but dtrl."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # A folder that is named in a .pth file is searched, but its own .pth files, an editable dtrl's among them, are not read.
    (Path(purelib) / "packages.pth").write_text(
        "\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    )
    return python


def install(python: Path, *what: object) -> None:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, *what, cwd=python.parent)


def test_package_list_names_every_folder():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "dtrl").rglob("__init__.py")}
    assert listed == folders | {"dtrl.envs", "dtrl.datasets"}


@pytest.mark.slow
def test_wheel_holds_the_tree_and_nothing_else(built):
    names = {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    expected = {f"dtrl/{path.relative_to(ROOT / 'dtrl').as_posix()}" for path in (ROOT / "dtrl").rglob("*.py")}
    expected |= {f"dtrl/envs/{path.name}" for path in (ROOT / "envs").glob("*.py")}
    expected |= {f"dtrl/datasets/{path.name}" for path in (ROOT / "datasets").glob("*.toml")}
    expected |= {f"dtrl/suites/{path.name}" for path in (ROOT / "dtrl" / "suites").glob("*.toml")}
    assert names == expected | {"dtrl/py.typed"}


@pytest.mark.slow
def test_wheel_works_from_another_folder(built, interpreter, tmp_path):
    install(interpreter, built)
    found = json.loads(run(interpreter, "-c", PROBE, cwd=tmp_path))
    assert Path(found["package"]).is_relative_to(interpreter.parent.parent)
    assert Path(found["environment"]).parent == Path(found["package"]).parent / "envs"
    assert (found["recipes"], found["strangers"]) == (recipes_in(ROOT / "datasets"), [])
    assert "train" in run(interpreter.parent / "dtrl", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_wheel_works_from_the_checkout(built, checkout, interpreter):
    install(interpreter, built)
    found = json.loads(run(interpreter, "-c", PROBE, cwd=checkout))
    assert Path(found["package"]).parent == checkout / "dtrl", "the working directory comes first"
    assert found["recipes"] == recipes_in(ROOT / "datasets")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install_works_from_another_folder(mode, checkout, interpreter, tmp_path):
    install(interpreter, "--config-settings", f"editable_mode={mode}", "--editable", checkout)
    found = json.loads(run(interpreter, "-c", PROBE, cwd=tmp_path))
    origin = Path(found["package"]).resolve()
    assert mode == "strict" or origin == checkout / "dtrl" / "__init__.py"
    assert (found["recipes"], found["strangers"]) == (recipes_in(ROOT / "datasets"), [])
    assert "train" in run(interpreter.parent / "dtrl", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_bare_checkout_works_without_an_install(checkout, interpreter):
    found = json.loads(run(interpreter, "-c", PROBE, cwd=checkout))
    assert Path(found["package"]) == checkout / "dtrl" / "__init__.py"
    assert Path(found["environment"]) == checkout / "envs" / "__init__.py"
    assert found["recipes"] == recipes_in(ROOT / "datasets")
