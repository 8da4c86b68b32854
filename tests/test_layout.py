"""The rules that hold the tree together and that no linter knows."""

import ast
import configparser
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

import dtrl

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for folder in ("dtrl", "envs") for path in sorted((ROOT / folder).rglob("*.py"))]
TOP_LEVEL = {
    ".ci", ".gitignore", "benchmarks", "CHANGELOG.md", "constraints.txt", "CONTRIBUTING.md", "datasets", "docs", "dtrl", "envs",
    "LICENSE", "Makefile", "pyproject.toml", "README.md", "setup.cfg", "tests",
}  # fmt: skip
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
COMES_WITH = {
    "h5py": "minari",
    "huggingface_hub": "minari",
    "pyarrow": "minari",
    "mujoco": "gymnasium",
    "pygame": "gymnasium",
}
"""Packages that are asked for through an extra of another one."""
LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def imports_of(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text(), str(path))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}


def named(paths: list[Path]) -> dict:
    return {"argvalues": paths, "ids": [str(path.relative_to(ROOT)) for path in paths]}


def run_python(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def test_there_are_sources_to_check():
    assert len(SOURCES) > 10


def test_only_known_names_stand_at_the_top_level():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    tracked = {line.partition("/")[0].strip('"') for line in listing if line}
    if not tracked:
        pytest.skip("not a git checkout with commits")
    assert tracked == TOP_LEVEL & tracked, "a new name at the top level: put the file into a folder that is there"


def test_datasets_holds_recipes_and_no_python():
    assert not list((ROOT / "datasets").rglob("*.py")), "an __init__.py here would shadow Hugging Face's `datasets`"
    assert {path.suffix for path in (ROOT / "datasets").iterdir() if path.name != "__pycache__"} <= {".toml", ".md"}


@pytest.mark.parametrize("path", **named([path for path in SOURCES if "envs" in path.relative_to(ROOT).parts]))
def test_environments_need_gymnasium_and_numpy_only(path):
    roots = {name.partition(".")[0] for name in imports_of(path)}
    assert roots - set(sys.stdlib_module_names) <= {"gymnasium", "numpy"}


@pytest.mark.parametrize("path", **named([path for path in SOURCES if "dtrl" in path.relative_to(ROOT).parts]))
def test_no_module_names_an_environment(path):
    assert not [name for name in imports_of(path) if re.match(r"(dtrl\.)?envs\b", name)]


@pytest.mark.parametrize("path", **named(SOURCES))
def test_nothing_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text(), str(path))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    keywords = {(word.arg, ast.unparse(word.value)) for call in calls for word in call.keywords}
    assert not {name.partition(".")[0] for name in imports_of(path)} & UNSAFE_MODULES
    assert not {call.func.id for call in calls if isinstance(call.func, ast.Name)} & {
        "eval",
        "exec",
        "compile",
        "__import__",
    }
    assert not keywords & {("weights_only", "False"), ("allow_pickle", "True")}
    for call in calls:
        if ast.unparse(call.func) == "torch.load":
            assert ("weights_only", "True") in {(word.arg, ast.unparse(word.value)) for word in call.keywords}


@pytest.mark.parametrize("path", **named(SOURCES))
def test_file_names_say_what_is_inside(path):
    assert not re.search(r"util|helper|manager|misc|common", path.stem)


@pytest.mark.parametrize(
    "path", **named([*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))])
)
def test_every_python_file_parses(path):
    ast.parse(path.read_text(), str(path), feature_version=(3, 11))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def asked() -> set[str]:
    """Names of all packages that setup.cfg asks for, extras included."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    return {canonical(re.split(r"[^\w.-]", line)[0]) for line in lines} - {"dtrl"}


def test_every_package_that_is_imported_is_asked_for(asked):
    distributions = importlib.metadata.packages_distributions()
    roots = (
        {name.partition(".")[0] for path in SOURCES for name in imports_of(path)}
        - set(sys.stdlib_module_names)
        - {"dtrl"}
    )
    needed = {
        root: {COMES_WITH.get(root, canonical(name)) for name in distributions.get(root, [root])} for root in roots
    }
    assert not {root: names for root, names in needed.items() if not names & asked}


def test_every_package_that_is_asked_for_is_pinned(asked):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\d.]+", line)], (
        "versions only: no hosts, paths or local labels"
    )
    assert asked <= {canonical(line.partition("==")[0]) for line in lines}


def test_public_names_are_there():
    assert set(dtrl.__all__) <= set(dir(dtrl))
    for name in dtrl.__all__:
        value = getattr(dtrl, name)
        assert callable(value) or name in {"ENVIRONMENTS", "__version__"}, f"dtrl.{name} is {value!r}"


def test_type_checkers_see_the_names_that_are_loaded_late():
    tree = ast.parse(Path(dtrl.__file__).read_text())
    [branch] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.name: str(node.module) for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == dtrl._HOME_OF


def test_unknown_public_name_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match=r"no attribute 'evalute'; its public names are .*evaluate"):
        _ = dtrl.evalute


def test_environments_are_registered_by_name():
    assert dtrl.ENVIRONMENTS
    for name, entry_point in dtrl.ENVIRONMENTS.items():
        assert gymnasium.registry[name].entry_point == entry_point
        assert entry_point.startswith("dtrl.envs."), "datasets remember this path: it never moves"


def test_registering_again_keeps_what_somebody_registered_before():
    code = """
import gymnasium
gymnasium.register("dtrl/KeyToDoor-v0", entry_point="mine:Mine")
import dtrl
print(gymnasium.spec("dtrl/KeyToDoor-v0").entry_point)"""
    assert run_python(code).strip() == "mine:Mine"


HEAVY = {"h5py", "matplotlib", "minari", "scipy", "stable_baselines3", "tensorboard", "torch", "transformers"}


def test_importing_dtrl_loads_no_heavy_package():
    loaded = set(json.loads(run_python(f"import dtrl; {LOADED}")))
    assert not loaded & HEAVY


def test_help_loads_no_heavy_package():
    code = f"""
import contextlib, io, sys
from dtrl.cli import main
sys.argv = ["dtrl", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
{LOADED}"""
    assert not set(json.loads(run_python(code))) & HEAVY


def test_importing_dtrl_takes_at_most_three_tenths_of_a_second():
    # Processor time of the fastest of five, so that a busy machine does not fail the test.
    code = "import time; started = time.process_time(); import dtrl; print(time.process_time() - started)"
    assert min(float(run_python(code)) for _ in range(5)) <= 0.3
