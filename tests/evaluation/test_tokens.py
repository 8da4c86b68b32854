"""The report of tokenizers: numbers against those computed by hand, blocks inside episodes, the command and the figure."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from dtrl.cli import main
from dtrl.collect import write_minari
from dtrl.errors import InputError
from dtrl.evaluation.plots import save_figure
from dtrl.evaluation.token_plots import tokens_figure
from dtrl.evaluation.tokens import block_rows, report_tokens
from dtrl.tokenizers import TOKENIZERS, Fitted, Frequency, Uniform
from dtrl.tokenizers.bins import is_vector


class Pairs(Fitted):
    """Blocks of two steps → the sign of their sum, and a padding id that says nothing: 1 id of 3, or 0 1 and 2 for padding."""

    vocab_size, num_tokens, padding_id = 3, 2, 2

    @classmethod
    def for_space(cls, space, size=None):
        return cls(space.shape, 2) if is_vector(space) else None

    def fit(self, x):
        self.seen = self.column(x)
        self.mark_fitted()

    def encode(self, x):
        x = self.values(x)
        sign = (x.unflatten(1, (-1, 2)).sum(dim=(2, 3)) > 0).long()
        return torch.stack([sign, torch.full_like(sign, 2)], dim=-1)

    def decode(self, tokens):
        return self.shaped(self.ids(tokens)[..., :1].repeat_interleave(2, dim=1).float().expand(-1, -1, self.entries))


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """The report's table without the tokenizers that learn, which take seconds each."""
    names = ["continuous", "categories", "one_hot", "image", "uniform", "quantile", "mu_law", "k_means", "components"]
    kept = {name: TOKENIZERS[name] for name in names}
    monkeypatch.setattr("dtrl.evaluation.tokens.TOKENIZERS", kept)
    return kept


def with_actions(data, actions):
    return dataclasses.replace(data, columns={**data.columns, "actions": np.asarray(actions, np.float32)})


def test_the_numbers_are_those_of_the_held_out_episodes(random_trajectories):
    data = random_trajectories([6, 7, 8, 9, 10] * 2, action_space=spaces.Box(-np.inf, np.inf, (2,)))
    report = report_tokens(data, tokenizers=["uniform"], bins=4)
    assert (report.fitted_episodes, report.held_out_episodes) == (8, 2)
    assert (report.fitted_steps, report.held_out_steps) == (60, 20)
    held_out = data.select([4, 9]).actions
    fitted = data.select([0, 1, 2, 3, 5, 6, 7, 8]).actions
    tokenizer = Uniform((2,), 4)
    tokenizer.fit(fitted)
    x = torch.from_numpy(held_out)[None]
    ids, error = tokenizer.encode(x), (tokenizer.decode(tokenizer.encode(x)) - x)[0].double().numpy()
    (result,) = report.results
    rmse = np.sqrt(np.square(error).mean(0))
    np.testing.assert_allclose(result.rmse, rmse, rtol=1e-6)
    np.testing.assert_allclose(result.nrmse, rmse / fitted.std(0), rtol=1e-5)
    np.testing.assert_allclose(result.max_abs, abs(error).max(0), rtol=1e-6)
    assert result.counts.tolist() == np.bincount(ids.flatten(), minlength=4).tolist()
    assert result.clipped == ((held_out < fitted.min(0)) | (held_out > fitted.max(0))).mean()
    assert (result.tokens_per_step, result.vocab_size, result.left_out) == (2, 4, 0)


def test_a_large_dataset_is_measured_in_parts_with_the_same_result(random_trajectories, monkeypatch):
    data = random_trajectories([30] * 10)
    names = ["uniform", "quantile", "k_means"]
    whole = report_tokens(data, "observation", names).to_dict()
    monkeypatch.setattr("dtrl.evaluation.tokens.ENTRIES_AT_ONCE", 7 * 3)
    parts = report_tokens(data, "observation", names).to_dict()
    for one, other in zip(whole["results"], parts["results"], strict=True):
        for name in ("rmse", "nrmse", "max_abs", "clipped", "perplexity"):
            assert one[name] == pytest.approx(other[name], rel=1e-9)


def test_values_beyond_those_fitted_are_counted(random_trajectories):
    data = random_trajectories([4] * 5, action_space=spaces.Box(-np.inf, np.inf, (1,)))
    actions = np.linspace(0, 1, 20)[:, None]
    actions[-1], actions[-2] = 5, -5
    (result,) = report_tokens(with_actions(data, actions), tokenizers=["uniform"]).results
    assert result.clipped == 4 / 4
    assert result.max_abs[0] == pytest.approx(5, abs=1e-6)


def test_perplexity_is_the_number_of_equally_frequent_ids(random_trajectories):
    data = random_trajectories([8] * 5, action_space=spaces.Discrete(6))
    data = dataclasses.replace(data, columns={**data.columns, "actions": np.arange(40) % 4})
    (result,) = report_tokens(data).results
    assert (result.tokenizer, result.vocab_size, result.used) == ("categories", 6, 4)
    assert result.perplexity == pytest.approx(4)


def test_a_constant_dimension_has_no_error_or_an_infinite_share(random_trajectories):
    data = random_trajectories([2] * 5, action_space=spaces.Box(-np.inf, np.inf, (2,)))
    actions = np.ones((10, 2))
    actions[:, 1] = 3
    actions[8:, 1] = 4  # the held-out episode
    result = report_tokens(with_actions(data, actions), tokenizers=["uniform"]).results[0]
    assert result.to_dict()["nrmse"] == [0, None]
    assert result.rmse.tolist() == [0, 1]


def test_blocks_are_cut_inside_episodes_from_their_first_step():
    rows = block_rows(np.array([0, 5, 7]), np.array([5, 2, 1]), 2)
    assert rows.tolist() == [[0, 1], [2, 3], [5, 6]]
    assert block_rows(np.array([3]), np.array([2]), 1).tolist() == [[3], [4]]
    assert block_rows(np.array([0]), np.array([2]), 3).shape == (0, 3)


def test_a_tokenizer_of_blocks_is_measured_and_the_rest_left_out(random_trajectories, table):
    table["pairs"] = Pairs
    data = random_trajectories([3, 4, 5, 4, 7])
    report = report_tokens(data, tokenizers=["pairs"])
    (result,) = report.results
    assert (result.block_length, result.left_out) == (2, 3)
    assert result.tokens_per_step == 0.5
    assert result.counts.tolist()[2] == 0
    assert result.counts.sum() == 3
    sums = data.actions[16:22].reshape(3, 4).sum(1)
    np.testing.assert_allclose(
        result.rmse, np.sqrt(np.square((sums > 0).repeat(2)[:, None] - data.actions[16:22]).mean(0)), rtol=1e-6
    )
    assert "pairs: 3 steps at the ends of episodes fill no block of 2 and are left out" in report.table()


def test_chunks_of_any_length_are_measured(random_trajectories, table):
    """Bins lose the same, whatever number of steps they come in; a whole chunk's frequencies are another number of ids."""
    table["frequency"] = Frequency
    data = random_trajectories([9, 7, 8, 6])
    names = ["uniform", "frequency"]
    one, three = (report_tokens(data, tokenizers=names, bins=16, chunk_length=h).results for h in (1, 3))
    assert [result.block_length for result in (*one, *three)] == [1, 1, 3, 3]
    assert [result.tokens_per_step for result in (*one, *three)] == [2, 2, 2, 2]
    assert [result.left_out for result in (*one, *three)] == [0, 0, 3, 3]
    assert three[0].max_abs.max() <= 1 / 15 + 1e-6
    with pytest.raises(InputError, match=r"chunk_length 0 must be a positive number of steps\.$"):
        report_tokens(data, chunk_length=0)


def test_episodes_shorter_than_a_block_are_said(random_trajectories, table):
    table["pairs"] = Pairs
    data = random_trajectories([3, 4, 5, 4, 1])
    report = report_tokens(data)
    assert "pairs" not in {result.tokenizer for result in report.results}
    assert report.skipped == ["pairs: no held-out episode of action has the 2 steps of a block"]
    assert report.table().endswith(report.skipped[0])
    with pytest.raises(InputError, match="pairs: no held-out episode of action has the 2 steps of a block; choose"):
        report_tokens(data, tokenizers=["pairs"])


def test_rewards_and_returns_are_fields_too(random_trajectories):
    data = random_trajectories([5] * 5)
    for field, column in (("reward", data.rewards), ("return", data.returns_to_go)):
        report = report_tokens(data, field, ["quantile", "uniform"])
        assert [result.field for result in report.results] == [field, field]
        assert all(result.rmse.shape == (1,) and result.rmse[0] < 2 * column.std() for result in report.results)


COMPOSITE = spaces.Dict(
    place=spaces.Box(-1, 1, (2,)),
    id=spaces.Discrete(3),
    bits=spaces.MultiBinary(3),
    image=spaces.Box(0, 255, (6, 6, 3), np.uint8),
)


@pytest.fixture
def composite(random_trajectories):
    """Trajectories with every part of COMPOSITE as observation."""
    data = random_trajectories([4] * 5)
    COMPOSITE.seed(0)
    samples = [COMPOSITE.sample() for _ in range(25)]
    columns = {name: np.stack([sample[name] for sample in samples]) for name in COMPOSITE}
    columns["place"] = columns["place"].astype(np.float32)
    seen = {f"observations/{name}": column[:20] for name, column in columns.items()}
    last = {f"final_observations/{name}": column[20:] for name, column in columns.items()}
    rest = {name: column for name, column in data.columns.items() if "observations" not in name}
    return dataclasses.replace(data, columns={**rest, **seen, **last}, observation_space=COMPOSITE)


def test_every_part_of_a_composite_space_gets_the_tokenizers_that_fit_it(composite):
    found = {(result.field, result.tokenizer) for result in report_tokens(composite, "observation").results}
    assert {
        ("observation/id", "categories"),
        ("observation/bits", "components"),
        ("observation/bits", "one_hot"),
        ("observation/image", "image"),
        ("observation/place", "uniform"),
    } <= found
    assert ("observation/image", "uniform") not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"field": "rewards"}, "there is no field 'rewards'; did you mean 'reward'"),
        ({"tokenizers": ["unifrm"]}, "there is no tokenizer 'unifrm'; did you mean 'uniform'"),
        (
            {"tokenizers": ["uniform", "categories"]},
            r"'categories' is not for the action of .*Box.*; choose of .*uniform",
        ),
        ({"bins": 0}, "bins 0 is outside 2"),
    ],
)
def test_what_there_is_not_is_refused(random_trajectories, arguments, message):
    with pytest.raises(InputError, match=message):
        report_tokens(random_trajectories([4] * 5), **arguments)


def test_one_episode_cannot_be_both_fitted_and_held_out(random_trajectories):
    with pytest.raises(InputError, match="has 1 episode, and one has to be held out of at least 2"):
        report_tokens(random_trajectories([9]))
    assert report_tokens(random_trajectories([9, 3])).held_out_steps == 3


# The command and the figure


def test_the_command_prints_the_table_and_writes_json_and_a_plot(random_trajectories, tmp_path, capsys):
    name = write_minari(random_trajectories([20] * 6), "tests/tokens-v0")
    path, plot = tmp_path / "tokens.json", tmp_path / "tokens.png"
    command = ["tokenizers", "report", name, "--tokenizer", "uniform", "k_means", "--bins", "8"]
    assert main([*command, "--json", str(path), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(path.read_text())
    assert [result["tokenizer"] for result in written["results"]] == ["uniform", "k_means"]
    assert [result["vocab_size"] for result in written["results"]] == [8, 8]
    assert "fitted on 5 episodes (100 steps), measured on the other 1 (20 steps)" in printed
    for result in written["results"]:
        assert len(result["rmse"]) == len(result["nrmse"]) == len(result["max_abs"]) == 2
        assert all(f"{value:.3g}" in printed for value in result["rmse"])
    with Image.open(plot) as image:
        image.load()
        assert len(np.unique(np.asarray(image.convert("L")))) > 5


def test_a_wrong_name_is_one_sentence_and_code_2(random_trajectories, capsys):
    name = write_minari(random_trajectories([5] * 5), "tests/tokens-v0")
    assert main(["tokenizers", "report", name, "--tokenizer", "bins"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dtrl: there is no tokenizer 'bins'; ")
    assert error.count("\n") == 1


def test_the_figure_draws_errors_and_frequencies(random_trajectories):
    report = report_tokens(random_trajectories([20] * 6), tokenizers=["continuous", "uniform"], bins=8)
    errors, frequencies = tokens_figure(report).axes
    assert [line.get_label() for line in errors.lines] == ["continuous", "uniform"]
    for line, result in zip(errors.lines, report.results, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), result.nrmse)
    (line,) = frequencies.lines  # the real vectors of continuous have none
    assert line.get_ydata().sum() == pytest.approx(1)
    assert (np.diff(line.get_ydata()) <= 0).all()


ODD = {
    "ids": lambda make: make([5] * 5, action_space=spaces.Discrete(3)),
    "one id": lambda make: make([5] * 5, action_space=spaces.Discrete(1)),
    "choices": lambda make: make([5] * 5, action_space=spaces.MultiDiscrete([2, 4])),
    "constants": lambda make: with_actions(make([5] * 5), np.ones((25, 2))),
    "many dimensions": lambda make: make([5] * 5, action_space=spaces.Box(-1, 1, (2_000,))),
    "short": lambda make: make([1, 1]),
}
"""Name → data that might break the table or the figure."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("one id", "short") else pytest.mark.slow) for name in ODD]
)
def test_odd_data_are_printed_and_drawn_without_a_warning(random_trajectories, name, tmp_path):
    report = report_tokens(ODD[name](random_trajectories))
    assert report.results
    assert len(report.table().splitlines()) < 40
    json.dumps(report.to_dict(), allow_nan=False)
    save_figure(tokens_figure(report), tmp_path / "tokens.png")


@pytest.mark.slow
def test_every_part_has_its_panels(composite, tmp_path):
    figure = tokens_figure(report_tokens(composite, "observation"))
    assert len(figure.axes) == 2 * len(COMPOSITE)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names))
    assert {"uniform", "categories", "components", "image"} <= set(names)
    save_figure(figure, tmp_path / "tokens.png")
