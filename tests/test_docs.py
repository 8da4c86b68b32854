"""Every command and every block of code in README.md and docs/ is executed, in order, in one folder per document.

    ```python   runs, in one namespace per document
    ```bash     one command a line (a backslash joins lines); comments are left out
    any other   is shown only

`dtrl …` runs as it stands, except that REDUCED and DEFAULTS make the numbers small and that ONLY_HELP are asked for their
help; the other commands are checked as COMMANDS says. The first of README.md that trains and the first that evaluates are
processes of their own, as the reader's are. The others are calls of `main`, since a process spends most of its time on imports;
what they import and register ends with them all the same. What cannot be run carries its reason in the line before the block,
and the test prints it:

    <!-- not run: needs a GPU -->

Datasets come from the document's own `dtrl datasets make …`, else from the recorded ones beside the checkout; where
these are missing, what needs them is left out, and the test says so. A recipe that ships gives the same arrays whenever it is
run, so the first document that makes its dataset lends it to the others."""

import configparser
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import gymnasium
import pytest

import dtrl
from dtrl.cli import main
from dtrl.collect import list_recipes

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

REDUCED = [
    (r"(--updates[ =])[\d_]+", r"\g<1>10"),
    (r"(--episodes[ =])[\d_]+", r"\g<1>2"),
    (r"\b(updates=)[\d_]+", r"\g<1>10"),
    (r"\b(episodes=)[\d_]+", r"\g<1>2"),
]
TRAINED = (("--updates", "10"), ("--eval-episodes", "2"), ("--batch-size", "8"))
DEFAULTS = {"train": TRAINED, "finetune": TRAINED, "evaluate": (("--episodes", "2"),)}
"""Added to a command that does not give the number itself."""
OWN_PROCESS = {"train", "evaluate"}
"""Verbs whose first command in README.md is a process of its own."""
ONLY_HELP = {"demo", "bench"}
"""Verbs that take minutes and have no smaller version: `--help` has to succeed and to name the flags that are used."""
DATASET = re.compile(r"(?<![\w./-])(?:[\w-]+/)+[\w-]+-v\d+(?![\w/])")
SECONDS_PER_COMMAND = 240


@dataclass
class Block:
    """A fenced block: its language, its text, the line where the text begins, and why it is not run, if so."""

    language: str
    text: str
    line: int
    reason: str | None = None


@dataclass
class Session:
    """What the blocks of one document leave behind for the next ones."""

    document: Path
    folder: Path
    environment: dict[str, str]
    made: Path
    """Holds a folder of datasets for each recipe that an earlier document has run."""
    namespace: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    left_out: list[str] = field(default_factory=list)
    executed: int = 0
    verbs: set[str] = field(default_factory=set)

    def leave_out(self, what: str, reason: str) -> None:
        self.left_out.append(what)
        print(f"{self.document.name}: not run ({reason}): {what.strip()}")


def blocks(text: str) -> Iterator[Block]:
    reason, block, indent = None, None, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if block is not None:
            if line.strip() == "```":
                yield block
                block, reason = None, None
            else:
                block.text += line.removeprefix(indent) + "\n"
        elif fence := re.match(r"(\s*)```(\w*)", line):
            indent = fence[1]
            block = Block(fence[2], "", number + 1, reason)
        elif marker := re.fullmatch(r"\s*<!-- not run: (.+?) -->\s*", line):
            reason = marker[1]
        elif line.strip():
            reason = None
    assert block is None, f"a block that begins at line {block.line} has no end"


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def missing(text: str, session: Session) -> str | None:
    """Why `text` cannot run here: a dataset that is in no folder, or a run that was left out before."""
    roots = Path(session.environment["MINARI_DATASETS_PATH"])
    for name in DATASET.findall(text):
        if name not in dtrl.ENVIRONMENTS and not (roots / name).is_dir():
            return f"the dataset {name} is not on this machine"
    for path in re.findall(r"\bruns/[\w./-]+", text):
        if not (session.folder / path).exists() and any(path in skipped for skipped in session.left_out):
            return f"{path} was not made"
    return None


def reduce(text: str) -> str:
    for pattern, replacement in REDUCED:
        text = re.sub(pattern, replacement, text)
    return text


def execute(words: list[str], session: Session) -> str:
    """What `dtrl` prints with these arguments."""
    fresh = session.document.name == "README.md" and words[0] in OWN_PROCESS - session.verbs
    session.verbs.add(words[0])
    code, output = (in_a_process if fresh else in_this_process)(words, session)
    assert code == 0, f"dtrl {shlex.join(words)}: exit {code}\n{output}"
    session.executed += 1
    return output


def in_a_process(words: list[str], session: Session) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from dtrl.cli import main; sys.exit(main())", *words],
        cwd=session.folder,
        env=session.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS_PER_COMMAND,
        check=False,
    )
    return done.returncode, done.stdout


def in_this_process(words: list[str], session: Session) -> tuple[int, str]:
    output = io.StringIO()
    with (
        nothing_left_of(session.folder),
        mock.patch.dict(os.environ, session.environment, clear=True),
        mock.patch.object(sys, "path", [place for place in sys.path if place != str(session.folder)]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        warnings.catch_warnings(),
    ):
        warnings.resetwarnings()  # here they are errors, and there they are lines of the output
        try:
            code = main(words)
        except SystemExit as ended:  # argparse, after --help or an error
            code = int(ended.code or 0)
    return code, output.getvalue()


@contextlib.contextmanager
def nothing_left_of(folder: Path) -> Iterator[None]:
    """Forget modules that were imported from a folder, and environments that these or blocks of code registered.

    Those of installed packages stay: they register at their first import alone."""
    registered = set(gymnasium.registry)
    try:
        yield
    finally:
        own = {
            name
            for name, module in sys.modules.items()
            if (getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}")
        }
        for name in own:
            del sys.modules[name]
        for env_id in set(gymnasium.registry) - registered:
            entry = gymnasium.registry[env_id].entry_point
            home = entry.partition(":")[0] if isinstance(entry, str) else entry.__module__
            if home == "__main__" or home.partition(".")[0] not in sys.modules:
                del gymnasium.registry[env_id]


def run_dtrl(words: list[str], session: Session) -> None:
    verb = words[1] if len(words) > 1 else ""
    if verb in ONLY_HELP:
        arguments = [word for word in words[1:] if not word.startswith("-")]
        text = execute([verb, "--help"], session)
        for part in [*arguments[1:2], *(word.partition("=")[0] for word in words if word.startswith("--"))]:
            assert part in text, f"`dtrl {verb} --help` does not name {part}"
        return
    if words[1:3] == ["datasets", "make"] and words[3:] in [[name] for name in list_recipes()]:
        make_once(words[3], session)
        return
    words = shlex.split(reduce(shlex.join(words)))
    for flag, value in DEFAULTS.get(verb, ()):
        if "--help" not in words and not any(word.startswith(flag) for word in words):
            words += [flag, value]
    execute(words[1:], session)


def make_once(recipe: str, session: Session) -> None:
    """`dtrl datasets make RECIPE`, or what it made for a document before."""
    minari, made = Path(session.environment["MINARI_DATASETS_PATH"]), session.made / recipe
    if made.exists():
        lend(made, minari)
        session.executed += 1
        return
    before = set(minari.rglob("*"))
    execute(["datasets", "make", recipe], session)
    for file in sorted(set(minari.rglob("*")) - before):
        target = made / file.relative_to(minari)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def run_torchrun(words: list[str], session: Session) -> None:
    """torchrun takes its own flags; what it is to start runs in one process, since starting several takes longer than all else."""
    from torch.distributed.run import get_args_parser

    asked = get_args_parser().parse_args(words[1:])
    assert (asked.module, asked.training_script) == (True, "dtrl"), f"{shlex.join(words)} does not start dtrl"
    run_dtrl(["dtrl", *asked.training_script_args], session)


def check_make(words: list[str], session: Session) -> None:
    settings = {name for name in os.environ if name.startswith(("MAKE", "MFLAGS"))}
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        ["make", "-n", *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    session.executed += 1


def check_tensorboard(words: list[str], session: Session) -> None:
    folder = session.folder / words[words.index("--logdir") + 1]
    assert folder.is_dir(), f"{shlex.join(words)}: no command before this one makes {folder.name}"
    session.executed += 1


def check_pip(words: list[str], session: Session) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = {
        extra
        for word in words
        for extras in re.findall(r"^[\w./-]*\[([\w, -]+)\]$", word)
        for extra in re.split(r"[, ]+", extras)
    }
    assert named <= set(config["options.extras_require"]), f"{shlex.join(words)}: setup.cfg has no such extra"
    for file in [words[i + 1] for i, word in enumerate(words) if word in {"-r", "-c", "--requirement", "--constraint"}]:
        assert (ROOT / file).is_file(), f"{shlex.join(words)}: there is no {file}"
    session.executed += 1


def export(words: list[str], session: Session) -> None:
    session.environment.update(word.split("=", 1) for word in words[1:] if "=" in word)


def is_installed(words: list[str], session: Session) -> None:
    program = Path(words[0]).name
    assert (Path(sys.executable).parent / program).exists() or shutil.which(program), f"{program} is not installed"


def nothing(words: list[str], session: Session) -> None:
    """Moves about on the reader's own machine."""


COMMANDS: dict[str, Callable[[list[str], Session], None]] = {
    "dtrl": run_dtrl,
    "torchrun": run_torchrun,
    "make": check_make,
    "tensorboard": check_tensorboard,
    "pip": check_pip,
    "export": export,
    "pytest": is_installed,
    "ruff": is_installed,
    "mypy": is_installed,
    "lint-imports": is_installed,
    "git": nothing,
    "cd": nothing,
    "source": nothing,
}


def run_bash(block: Block, session: Session) -> None:
    for words in commands(block):
        line = shlex.join(words)
        while re.fullmatch(r"\w+=.*", words[0]):  # a setting before a command holds for the rest of the document
            export(["export", words.pop(0)], session)
        program = Path(words[0]).name
        assert program in COMMANDS, (
            f"line {block.line}: don't know how to check `{line}`; add it to COMMANDS or mark the block"
        )
        if program in ("dtrl", "torchrun") and (reason := missing(line, session)):
            session.leave_out(line, reason)
        else:
            COMMANDS[program](words, session)


def run_python(block: Block, session: Session) -> None:
    reason = missing(block.text, session)
    if reason is None and any("```python" in skipped for skipped in session.left_out):
        reason = "an earlier block was left out"
    if reason:
        session.leave_out(f"```python, line {block.line}", reason)
        session.left_out.append(block.text)
        return
    code = compile("\n" * (block.line - 1) + reduce(block.text), str(session.document), "exec")
    exec(code, session.namespace)
    session.executed += 1


def check_document(document: Path, session: Session) -> None:
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.language in {"python", "bash"} and block.reason:
            session.leave_out(block.text, block.reason)
        elif block.language == "python":
            run_python(block, session)
        elif block.language == "bash":
            run_bash(block, session)


def lend(recorded: Path, minari: Path) -> None:
    """Make the recorded datasets visible in a folder of our own, to which the document may add: folders and metadata are
    copies, the values are links."""
    for source in sorted(recorded.rglob("*")):
        target = minari / source.relative_to(recorded)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif source.suffix == ".json":
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def session(tmp_path, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    minari = tmp_path / "minari"
    minari.mkdir()
    lend(ROOT.parent / "shared" / "data" / "minari", minari)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(minari))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    with nothing_left_of(tmp_path):  # other tests follow in this process
        yield Session(tmp_path / "document.md", tmp_path, environment, made)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_what_a_document_says_can_be_done(document, session):
    session.document = document
    check_document(document, session)
    assert session.executed or not re.search(r"```(python|bash)", document.read_text()) or session.left_out


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links_lead_to_files_that_are_there(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    files = [target.partition("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    assert not [file for file in files if not (document.parent / file).exists()]


def write(session: Session, *lines: str) -> None:
    session.document.write_text("\n".join(lines) + "\n")


def test_python_blocks_share_a_namespace_and_the_folder_of_the_commands(session):
    write(
        session,
        "```python",
        "from pathlib import Path",
        "n = dict(updates=5_000)['updates']",
        "```",
        "text",
        "  ```python",
        "  Path('n').write_text(str(n))",
        "  ```",
    )
    check_document(session.document, session)
    assert (session.folder / "n").read_text() == "10"
    assert session.executed == 2


def test_a_block_that_fails_fails_at_its_own_line(session):
    write(session, "# Title", "", "```python", "x = 1", "1 / 0", "```")
    with pytest.raises(ZeroDivisionError) as caught:
        check_document(session.document, session)
    assert caught.traceback[-1].lineno + 1 == 5


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("make nothing-of-the-kind", "nothing-of-the-kind"),
        ("tensorboard --logdir nowhere", "no command before this one makes nowhere"),
        ("pip install -e '.[nonsense]'", "no such extra"),
        ("pip install -e . -c nowhere.txt", "there is no nowhere.txt"),
        ("conda install dtrl", "don't know how to check `conda install dtrl`"),
    ],
)
def test_a_command_that_is_wrong_fails(session, command, message):
    write(session, "```bash", command, "```")
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_document(session.document, session)


def test_commands_that_are_right_pass(session):
    (session.folder / "runs").mkdir()
    write(session, "```bash", "git clone https://example.org/dtrl  # once", "make demo PYTHON=python3", "make test", "tensorboard --logdir runs",
          "export A=1", "B='2 3' pip install -e '.[box2d, mujoco]' \\", "    -c constraints.txt", "```", "```console", "conda", "```")  # fmt: skip
    check_document(session.document, session)
    assert session.executed == 4
    assert (session.environment["A"], session.environment["B"]) == ("1", "2 3")


def test_a_marked_block_is_left_out_and_says_why(session, capsys):
    write(
        session,
        "<!-- not run: takes a day -->",
        "",
        "```bash",
        "dtrl train big/set-v0 --logdir runs/big",
        "```",
        "```bash",
        "dtrl evaluate runs/big",
        "```",
    )
    check_document(session.document, session)
    printed = capsys.readouterr().out
    assert "not run (takes a day): dtrl train big/set-v0" in printed
    assert "not run (runs/big was not made): dtrl evaluate runs/big" in printed
    assert session.executed == 0


def test_what_needs_a_dataset_that_is_not_here_is_left_out(session, capsys):
    write(session, "```python", "x = 'nobody/has-this-v3'", "```", "```python", "print(x)", "```")
    check_document(session.document, session)
    assert "the dataset nobody/has-this-v3 is not on this machine" in capsys.readouterr().out
    assert session.executed == 0


def test_every_promise_names_tests_that_there_are():
    named, file = [], ""
    for found, test in re.findall(r"`([\w/]+\.py|…)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()):
        file = file if found == "…" else found
        named.append((file, test))
    assert len(named) > 50
    texts = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    assert not [(file, test) for file, test in named if f"def {test}(" not in texts[file]]


def test_numbers_are_made_small():
    assert reduce("dtrl train a/b-v0 --updates 10_000 --episodes=100") == "dtrl train a/b-v0 --updates 10 --episodes=2"
    assert (
        reduce("dtrl.evaluate(policy, episodes=100, num_episodes=3)")
        == "dtrl.evaluate(policy, episodes=2, num_episodes=3)"
    )
    assert DATASET.findall("gym.make('CartPole-v1'), dtrl train mujoco/hopper/medium-v0 --logdir runs/x-v0/y") == [
        "mujoco/hopper/medium-v0"
    ]


def test_an_unfinished_block_is_an_error():
    with pytest.raises(AssertionError, match="begins at line 2 has no end"):
        list(blocks("```python\nx = 1\n"))


def test_a_dataset_that_a_document_made_is_lent_to_the_next(session, monkeypatch):
    calls, minari = [], Path(session.environment["MINARI_DATASETS_PATH"])

    def make(words, session):
        calls.append(words)
        (minari / "corridor" / "some-v0").mkdir(parents=True)
        (minari / "corridor" / "some-v0" / "values").write_text("1")

    monkeypatch.setattr(sys.modules[__name__], "execute", make)
    session.made /= "of this test"
    write(session, "```bash", "dtrl datasets make stitch", "```")
    for _ in range(2):
        check_document(session.document, session)
        assert (minari / "corridor" / "some-v0" / "values").read_text() == "1"
        shutil.rmtree(minari / "corridor")
    assert calls == [["datasets", "make", "stitch"]]


def test_recorded_datasets_are_lent_without_being_touched(shared_data, session):
    minari = Path(session.environment["MINARI_DATASETS_PATH"])
    assert (minari / "cartpole" / "mixed-v0" / "data" / "main_data.hdf5").is_file()
    assert not (minari / "cartpole" / "mixed-v0").is_symlink(), (
        "a dataset that a document makes must not land in the recorded ones"
    )
