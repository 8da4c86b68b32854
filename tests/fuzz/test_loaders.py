"""The fuzzer itself: it starts from files that load, tells a finding from a refusal, and its mutations find no loader unprepared."""

import json
import warnings
from pathlib import Path
from random import Random

import hypothesis.strategies as st
import loaders
import pytest
from hypothesis import HealthCheck, given, settings
from mutations import LARGEST, mutate, packed, unpacked
from targets import TARGETS, Target

from dtrl.errors import InputError

HERE = Path(__file__).parent

SLOW = {"minari", "minari-encoded", "cache", "policies", "onnx", "runs", "documents", "huggingface"}
"""Targets whose samples take more than a moment to write or to load."""
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TARGETS]


@pytest.fixture(scope="module")
def trial_of(tmp_path_factory):
    trials = {}

    def make(name):
        if name not in trials:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trials[name] = loaders.Trial(TARGETS[name], tmp_path_factory.mktemp(name))
        return trials[name]

    return make


@pytest.fixture(autouse=True)
def folders_of_the_test(monkeypatch):
    """The fuzzer sets these for itself, and monkeypatch sets them back."""
    for name in ("DTRL_CACHE", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(name, "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_valid_samples_load_and_mutated_ones_load_or_are_refused(trial_of, name):
    trial = trial_of(name)
    assert [trial.run(sample) for sample in trial.samples] == [("loaded", None)] * len(trial.samples)
    random = Random(0)
    outcomes = [trial.run(trial.fresh(random, random.choice(trial.samples))) for _ in range(12)]
    assert [finding for _, finding in outcomes if finding] == []
    assert name == "cache" or any(outcome != "loaded" for outcome, _ in outcomes)  # a damaged cache is built again


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False), name=st.sampled_from(["pickle", "npz", "tables"]))
def test_no_mutation_that_hypothesis_draws_is_a_finding(trial_of, random, name):
    trial = trial_of(name)
    outcome, finding = trial.run(trial.fresh(random, trial.samples[0]))
    assert finding is None, outcome


SEEDS = sorted((HERE / "seeds").glob("*.json"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow if p.name.split(".")[0] in SLOW else ()) for p in SEEDS],
    ids=lambda p: p.stem,
)
def test_what_once_failed_is_refused(trial_of, path):
    """Inputs that the fuzzer found, named TARGET.WHAT.json."""
    outcome, finding = trial_of(path.name.split(".")[0]).run(loaders.from_text(path.read_text()))
    assert finding is None, outcome


def test_mutations_repeat_by_their_seed_and_differ_without(trial_of):
    sample = trial_of("models").samples[0]
    once, again = ([mutate(sample, Random(seed)) for seed in range(50)] for _ in range(2))
    assert once == again
    assert len({packed(s) for s in once}) > 40
    assert all(len(data) <= LARGEST for s in once for data in s.values())


def test_a_sample_goes_through_bytes_and_text():
    sample = {"a/b.json": b"{}", "c": bytes(range(256)), "empty": b""}
    assert unpacked(packed(sample)) == sample == loaders.from_text(loaders.as_text(sample))


def raise_from(error, cause):
    raise error from cause


PLANTED = {
    "an exception": (lambda _: 1 // 0, "ZeroDivisionError"),
    "memory behind a refusal": (lambda _: raise_from(InputError("x"), MemoryError()), "memory"),
    "memory by a library's words": (
        lambda _: raise_from(InputError("x"), RuntimeError("can't allocate memory")),
        "memory",
    ),
    "a full disk": (lambda _: raise_from(InputError("x cannot be written (no space)"), None), "disk"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_loader_that_fails_is_a_finding(tmp_path, planted):
    load, words = PLANTED[planted]
    target = Target(lambda folder: loaders.write_folder(folder / "one", {"x": b"1"}), load)
    outcome, finding = loaders.Trial(target, tmp_path).run({"x": b"2"})
    assert finding is not None
    assert words in outcome + finding


@pytest.mark.slow
def test_the_child_survives_hangs_and_crashes_and_keeps_what_caused_them(tmp_path, monkeypatch):
    """A program with two bad targets, in place of the fuzzer's own."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(HERE)!r})
import loaders, targets
loaders.SECONDS = 1.0
def write(folder): loaders.write_folder(folder / "one", {{"x": b"0"}})
def load(folder):
    data = (folder / "x").read_bytes() if (folder / "x").exists() else b"0"
    if data not in (b"0", b""):
        os.abort() if "crash" in sys.argv else time.sleep(60)
targets.TARGETS.update(crash=targets.Target(write, load), hang=targets.Target(write, load))
loaders.main()
""")
    monkeypatch.setattr(loaders, "__file__", str(program))
    for name, words in (("crash", "ended by -6"), ("hang", "hang")):
        told = loaders.fuzz(name, "mutations", 0.15, 0, tmp_path / name)
        assert told["findings"], json.dumps(told)
        assert all(path.read_text().startswith(words) for path in (tmp_path / name).glob("*.txt"))
        assert loaders.from_text(next((tmp_path / name).glob("*.json")).read_text())["x"] not in (b"0", b"")
