"""Packages that register environments: which are imported for an id, and those that a user names."""

import subprocess
import sys

import gymnasium
import pytest

from dtrl.errors import InputError
from dtrl.registration import PACKAGES, import_modules, import_packages, package_of, registered


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stands in for minigrid: a package that registers an environment when it is imported."""
    monkeypatch.setitem(PACKAGES, "Own-", "own_rooms_package")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_rooms_package.py").write_text(
        "import gymnasium\ngymnasium.register('Own-v0', entry_point='own_rooms_package:Own')\n"
    )
    yield
    gymnasium.registry.pop("Own-v0", None)
    sys.modules.pop("own_rooms_package", None)


def test_the_package_of_an_id_is_imported_when_it_is_needed(package):
    assert package_of("Own-v0") == "own_rooms_package"
    assert registered("Own-v0").entry_point == "own_rooms_package:Own"
    assert package_of("CartPole-v1") is None


def test_the_package_of_the_environment_inside_is_imported_too(package):
    import_packages("dtrl/DelayedReward-v0", {"env_id": "Own-v0"})
    assert "Own-v0" in gymnasium.registry
    import_packages("dtrl/DelayedReward-v0", {"env_id": 3})


def test_an_unknown_id_is_answered_with_what_to_do(monkeypatch):
    monkeypatch.setitem(PACKAGES, "Gone-", "no_such_package")
    for env_id, hint in (
        ("CartPol-v1", r"--import PACKAGE\), or did you mean 'CartPole-v[01]'\?"),
        ("NobodysBarometer-v0", r"import the package that registers it \(on the command line, --import PACKAGE\)\."),
        ("Gone-v0", "`pip install no_such_package`, which has it."),
        ("nowhere:CartPole-v1", "--import PACKAGE"),
    ):
        with pytest.raises(
            InputError, match=f"^here: environment '{env_id}' is not registered with Gymnasium: .*{hint}"
        ):
            registered(env_id, where="here: ")


def test_modules_of_the_working_directory_are_found_after_the_installed_ones(tmp_path):
    (tmp_path / "rooms.py").write_text("import gymnasium\ngymnasium.register('Room-v0', entry_point='rooms:Room')\n")
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)\n")
    code = """
import gymnasium
from dtrl.registration import import_modules
import_modules(["rooms", "numpy"])
import_modules(["rooms"])
print(gymnasium.spec("Room-v0").entry_point)"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "rooms:Room"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_rooms",
            r"no module 'no_rooms' to import; install its package, or go to the folder in which no_rooms.py is",
        ),
        ("no_rooms.inner", r"no module 'no_rooms.inner' to import; .* in which no_rooms.py is"),
        ("./rooms.py", r"'./rooms.py' is no name of a module; write it as Python's import does"),
        ("", r"'' is no name of a module"),
        ("needy", r"the module 'needy' cannot be imported \(ModuleNotFoundError: No module named 'needed'\)"),
        ("broken", r"the module 'broken' cannot be imported \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needy.py").write_text("import needed\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=message):
        import_modules([name])


def test_importing_it_loads_no_heavy_package():
    code = "import sys, dtrl.registration; print(*{'torch', 'minari', 'minigrid'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""
