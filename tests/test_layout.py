"""The rules that hold the tree together and that no linter knows."""

import ast
import configparser
import functools
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


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(), str(path), feature_version=(3, 11))))


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    nodes = nodes_of(path)
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}


def sources(folder: str) -> list[Path]:
    """The sources below a folder of the tree; a test of none would prove nothing."""
    paths = [path for path in SOURCES if path.is_relative_to(ROOT / folder)]
    assert paths
    return paths


def imported(folder: str) -> set[tuple[str, str]]:
    """(file, name) of all that the sources of a folder import."""
    return {(str(path.relative_to(ROOT)), name) for path in sources(folder) for name in imports_of(path)}


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


def test_environments_need_gymnasium_and_numpy_only():
    known = {*sys.stdlib_module_names, "gymnasium", "numpy"}
    assert not {(file, name) for file, name in imported("envs") if name.partition(".")[0] not in known}


def test_no_module_names_an_environment():
    assert not {(file, name) for file, name in imported("dtrl") if re.match(r"(dtrl\.)?envs\b", name)}


def unsafe_calls(path: Path) -> set[str]:
    """Calls of a file that could run what stands in data."""
    found = set()
    for call in (node for node in nodes_of(path) if isinstance(node, ast.Call)):
        keywords = {(word.arg, ast.unparse(word.value)) for word in call.keywords}
        if (
            (isinstance(call.func, ast.Name) and call.func.id in {"eval", "exec", "compile", "__import__"})
            or keywords & {("weights_only", "False"), ("allow_pickle", "True")}
            or (ast.unparse(call.func) == "torch.load" and ("weights_only", "True") not in keywords)
        ):
            found.add(ast.unparse(call))
    return found


def test_nothing_unpickles_or_evaluates(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("eval(a)\nnp.load(a, allow_pickle=True)\ntorch.load(a)\ntorch.load(a, weights_only=True)\n")
    assert unsafe_calls(wrong) == {"eval(a)", "np.load(a, allow_pickle=True)", "torch.load(a)"}
    assert not {str(path.relative_to(ROOT)): calls for path in SOURCES if (calls := unsafe_calls(path))}
    assert not {(file, name) for file, name in imported(".") if name.partition(".")[0] in UNSAFE_MODULES}


def test_file_names_say_what_is_inside():
    assert not [path for path in SOURCES if re.search(r"util|helper|manager|misc|common", path.stem)]


def test_every_python_file_parses():
    assert all(map(nodes_of, SOURCES))
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
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


SERVERS = {"asyncio", "http.server", "socketserver", "tensorboard.main", "tensorboard.program", "xmlrpc.server"}


def test_nothing_is_served_to_other_machines():
    """TensorBoard listens on localhost where it is not told otherwise, and everything in a run's folder is seen by whoever reaches it."""
    texts = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md"), *sources("dtrl"), *sources("envs")]
    commands = [line for path in texts for line in re.findall(r"tensorboard --.*", path.read_text())]
    assert len(commands) >= 3
    assert not [line for line in commands if re.search(r"--(bind_all|host)", line)]
    assert not [path for path in texts if re.search(r"--bind_all|0\.0\.0\.0", path.read_text())]
    assert not {(path, name) for path, name in imported("dtrl") | imported("envs") if name in SERVERS}


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
    # Processor time, and of five tries one that is quick enough, so that a busy machine does not fail the test.
    code = "import time; started = time.process_time(); import dtrl; print(time.process_time() - started)"
    assert any(float(run_python(code)) <= 0.3 for _ in range(5))
