"""`dtrl benchmark`: its flags, what it prints and its exit codes."""

import json
import re
import signal
import tomllib

import pytest
import tomli_w

from dtrl.cli import main
from dtrl.cli.benchmark import SUITES, reasons
from dtrl.suites import benchmark, list_suites, running
from dtrl.suites.suite import read_suite


@pytest.fixture
def file(table, tmp_path, repository):
    table["dataset"][0]["recipe"] = str(repository / "tests" / "collect" / "random.toml")
    table["entry"] = table["entry"][1:]
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def test_the_help_names_every_suite():
    assert SUITES.keys() == list_suites().keys()


def test_the_command_prints_its_tables_and_writes_them(file, here, tmp_path, capsys):
    command = ["benchmark", str(file), "--seeds", "1", "--updates", "2", "--eval-every", "1", "--episodes", "2"]
    assert main([*command, "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr()
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["seeds"] == [0]
    assert document["datasets"][0]["protocol"]["updates"] == 2
    assert document == json.loads((tmp_path.cwd() / "runs" / "tiny" / "results.json").read_text())
    assert "| BC | 1 |" in printed.out
    assert "[1/1] tests/cartpole-v0 · BC · seed 0: done" in printed.err


def test_a_failed_run_is_exit_code_1_and_named_at_the_end(file, here, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(running, "train", fail)
    assert main(["benchmark", str(file), "--seeds", "1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dtrl: 1 of the cells failed (tests/cartpole-v0 · BC · seed 0: the disk is full)")


def test_a_reason_is_told_once_with_the_first_cells_that_failed_for_it():
    failed = {"A 0": "full", "B 0": "hot", "A 1": "full", "A 2": "full", "A 3": "full"}
    assert reasons(failed) == "A 0, A 1, A 2 and 1 more: full; B 0: hot"


def test_a_sigterm_is_told_as_ctrl_c_is(file, here, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(benchmark, "run_cells", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main(["benchmark", str(file)]) == 128 + signal.SIGTERM
    assert "interrupted; what is finished is kept in" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_wrong_input_is_exit_code_2_and_an_interruption_130(file, here, capsys, monkeypatch):
    assert main(["benchmark", "quik"]) == 2
    assert "no suite 'quik'; did you mean 'quick'?" in capsys.readouterr().err
    assert main(["benchmark", str(file), "--updates", "0"]) == 2
    assert main(["benchmark", str(file), "--seeds", "0"]) == 2

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run_cells", interrupt)
    assert main(["benchmark", str(file)]) == 130
    assert "what is finished is kept in runs/tiny" in capsys.readouterr().err


def test_the_suite_of_the_documentation_is_right(repository):
    text = (repository / "docs" / "benchmark.md").read_text()
    [block] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    suite = read_suite(tomllib.loads(block), "docs/benchmark.md")
    assert [entry.kind for entry in suite.entries] == ["train", "train", "policy", "behaviour"]
    for name in list_suites():
        assert f"| `{name}` |" in text
