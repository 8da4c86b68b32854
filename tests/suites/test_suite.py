"""What a suite may say, and that every mistake is refused by name."""

import dataclasses

import pytest

from dtrl.config import DataConfig, DecodingConfig, ModelConfig, TrainingConfig
from dtrl.errors import InputError
from dtrl.evaluation.aggregates import AGGREGATES
from dtrl.suites import list_suites, load_suite
from dtrl.suites.benchmark import with_changes
from dtrl.suites.suite import OPTIONS
from dtrl.suites.table import NAMES

SHIPPED = list_suites()


def test_there_are_suites():
    assert {"quick", "locomotion", "credit", "stitching"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_suite_is_right_and_has_what_a_comparison_needs(name):
    suite = load_suite(name)
    assert suite.name == name
    assert len(suite.seeds) >= 5
    assert suite.description
    assert {"dt", "bc", "filtered_bc", "rvs"} <= {entry.options.get("preset") for entry in suite.entries}
    assert suite.baseline == "DT"
    assert all(dataset.recipe for dataset in suite.datasets), "it has to work from the package alone"


def test_no_two_configurations_share_the_name_of_an_option():
    names = [
        f.name
        for config in (DataConfig, ModelConfig, TrainingConfig, DecodingConfig)
        for f in dataclasses.fields(config)
    ]
    assert OPTIONS == (DataConfig, ModelConfig, TrainingConfig, DecodingConfig)
    assert len(set(names)) == len(names)


def test_every_aggregate_has_a_heading():
    assert NAMES.keys() == AGGREGATES.keys()


def test_what_is_nearer_wins(table, read):
    table["options"]["width"], table["options"]["layers"] = 8, 1
    table["dataset"][0] |= {"width": 16, "dropout": 0.0, "updates": 6}
    table["entry"][1] |= {"width": 32}
    suite = read(table)
    [dataset], (dt, bc) = suite.datasets, suite.entries
    assert dataset.name == "tests/cartpole-v0"
    assert suite.options_of(dataset, dt)["width"] == 16
    assert suite.options_of(dataset, bc)["width"] == 32
    assert suite.options_of(dataset, bc)["dropout"] == 0
    assert suite.options_of(dataset, bc)["layers"] == 1
    assert (suite.protocol.updates, suite.protocol_of(dataset).updates, suite.protocol_of(dataset).episodes) == (
        4,
        6,
        3,
    )


def test_changes_of_the_command_line_win_over_all(table, read):
    table["dataset"][0] |= {"updates": 6, "episodes": 7}
    suite = with_changes(read(table), {"updates": 9, "seeds": 3})
    protocol = suite.protocol_of(suite.datasets[0])
    assert (protocol.updates, protocol.episodes, suite.seeds) == (9, 7, (0, 1, 2))


@pytest.mark.parametrize(("every", "expected"), [(0, 200), (300, 300), (5_000, 1_000)])
def test_there_is_at_least_one_evaluation_to_choose_by(table, read, every, expected):
    assert read(table | {"updates": 1_000, "eval_every": every}).protocol.evaluated_every == expected


BAD = {
    "an unknown key": ({"sedes": 3}, "there is no field 'sedes'; did you mean 'seeds'?"),
    "no entries": ({"entry": None}, "entry is missing"),
    "an empty list": ({"dataset": []}, r"\[\]; one or more tables \[\[dataset\]\] are expected"),
    "an unknown recipe": ({"dataset": [{"recipe": "cartpol"}]}, "no recipe 'cartpol'; did you mean 'cartpole"),
    "no data": ({"dataset": [{"env": "CartPole-v1"}]}, "dataset 1 has neither id nor recipe"),
    "the same data twice": ({"dataset": [{"id": "aa/b-v0"}, {"id": "aa/b-v0"}]}, "the dataset 'aa/b-v0' stands twice"),
    "an unknown preset": ({"entry": [{"label": "A", "preset": "td"}]}, "entry 1: preset 'td' is unknown; did you mean 'tt'"),
    "an unknown option": ({"entry": [{"label": "A", "widht": 3}]}, "no option 'widht'; did you mean 'width'"),
    "a wrong value": ({"entry": [{"label": "A", "dropout": 2.0}]}, "entry 1: dropout 2.0 is outside"),
    "a wrong type": ({"entry": [{"label": "A", "width": "8"}]}, "width '8' is a str; a int is expected"),
    "no label": ({"entry": [{"preset": "dt"}]}, "entry 1 has no label"),
    "a label that is no folder": ({"entry": [{"label": "../A"}]}, r"label '\.\./A' cannot name a folder"),
    "a label twice": ({"entry": [{"label": "A"}, {"label": "A", "preset": "bc"}]}, "the label 'A' stands twice"),
    "a setting of the suite": ({"entry": [{"label": "A", "seed": 3}]}, "seed is set by the suite itself"),
    "an unknown kind": ({"entry": [{"label": "A", "kind": "trian"}]}, "kind 'trian' is unknown; did you mean 'train'"),
    "options that train nothing": ({"entry": [{"label": "A", "kind": "behaviour", "width": 8}]}, "width means nothing to kind behaviour"),
    "a policy without a file": ({"entry": [{"label": "A", "kind": "policy"}]}, "of kind policy, and no other, has files"),
    "a file for no dataset": ({"entry": [{"label": "A", "kind": "policy", "files": {"bb/c-v0": "x.zip"}}]}, "A has a file for 'bb/c-v0'"),
    "an unknown metric": ({"metrics": ["iqr"]}, "metric 'iqr' is unknown; did you mean 'iqm'"),
    "an unknown baseline": ({"baseline": "DC"}, "baseline 'DC' is no entry; did you mean 'DT'"),
    "no seeds": ({"seeds": 0}, "seeds is 0"),
    "a seed twice": ({"seeds": [1, 1]}, r"seeds \[1, 1\] has one twice"),
    "no episodes": ({"episodes": 0}, "episodes 0 must be 1 or more"),
    "no quantile": ({"target_quantile": 1.5}, r"target_quantile 1.5 is outside \[0, 1\]"),
    "a text for a number": ({"updates": "many"}, "updates is 'many'; an integer is expected"),
    "a dataset's protocol": ({"dataset": [{"id": "aa/b-v0", "updates": 0}]}, "updates 0 must be 1 or more"),
    "options that contradict": ({"options": {"width": 9}, "entry": [{"label": "A", "heads": 2}]}, "A on tests/cartpole-v0: width 9"),
    "a table of a run": ({"decoding": {"strategy": "sample"}}, r"there is no table \[decoding\]; write what is in it into \[options\]"),
    "a table in an entry": ({"entry": [{"label": "A", "decoding": {"top_k": 3}}]}, "entry 1: decoding is a table"),
    "a dataset's label": ({"dataset": [{"id": "aa/b-v0", "label": "/x"}]}, "label '/x' cannot name a folder"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_mistake_is_refused_by_name(table, read, change, words):
    changed = {name: value for name, value in (table | change).items() if value is not None}
    with pytest.raises(InputError, match=words) as caught:
        read(changed)
    assert "tiny.toml" in str(caught.value)


def test_an_unknown_suite_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"no suite 'quik'; did you mean 'quick'\?"):
        load_suite("quik")
    with pytest.raises(InputError, match=r"mine\.toml cannot be read"):
        load_suite(tmp_path / "mine.toml")
    (tmp_path / "mine.toml").write_text("name = ")
    with pytest.raises(InputError, match="is not a TOML file"):
        load_suite(tmp_path / "mine.toml")
