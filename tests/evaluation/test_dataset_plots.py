"""The figures of a dataset: what is drawn is read from matplotlib's artists, what is written with Pillow."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from dtrl.cli import main
from dtrl.collect import write_minari
from dtrl.errors import InputError
from dtrl.evaluation.dataset_plots import (
    FIGURES,
    actions_figure,
    coverage_figure,
    quality_figure,
    returns_and_lengths_figure,
    save_dataset_plots,
)
from dtrl.trajectories.distributions import coverage


def box(width):
    return spaces.Box(-np.inf, np.inf, (width,))


def test_returns_and_lengths_count_every_episode(random_trajectories):
    data = random_trajectories([3, 5, 5, 9] * 10)
    returns, lengths = returns_and_lengths_figure(data).axes
    for axes, values in ((returns, data.episode_returns), (lengths, data.episode_lengths)):
        (stairs,) = axes.patches
        assert stairs.get_data().values.sum() == 40
        assert stairs.get_data().edges[[0, -1]] == pytest.approx([values.min(), values.max()])


def test_discrete_actions_are_bars_at_their_values(random_trajectories):
    data = random_trajectories([50], action_space=spaces.Discrete(4, start=2))
    (axes,) = actions_figure(data).axes
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == pytest.approx([2, 3, 4, 5])
    assert [bar.get_height() for bar in axes.patches] == np.bincount(data.actions - 2, minlength=4).tolist()
    assert axes.get_xticks().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(("width", "panels"), [(1, 1), (3, 3), (6, 6), (40, 16)])
def test_every_dimension_of_the_actions_has_a_panel_up_to_sixteen(random_trajectories, width, panels):
    figure = actions_figure(random_trajectories([50], action_space=box(width)))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == [f"actions[{i}]" for i in range(panels)]
    assert ("the first 16 of 40 dimensions" in figure.get_suptitle()) == (width == 40)


def test_coverage_draws_the_components_coloured_by_return(random_trajectories):
    data = random_trajectories([30, 40], box(4))
    (dots,) = coverage_figure(data).axes[0].collections
    found = coverage(data)
    np.testing.assert_allclose(dots.get_offsets(), found.points)
    np.testing.assert_allclose(dots.get_array(), found.returns)


def test_quality_draws_the_returns_in_the_order_of_the_episodes(random_trajectories):
    data = random_trajectories([3] * 60)
    (axes,) = quality_figure(data).axes
    np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([np.arange(60), data.episode_returns], 1))
    (line,) = axes.lines
    assert line.get_ydata()[30] == pytest.approx(data.episode_returns[29:32].mean())
    assert line.get_label() == "mean of 3"


ODD = {
    "one step": lambda make: make([1]),
    "one episode": lambda make: make([12]),
    "ids": lambda make: make([5, 9], spaces.Discrete(6), spaces.Discrete(3)),
    "many ids": lambda make: make([300, 200], spaces.Discrete(5_000), spaces.Discrete(5_000)),
    "thousands of dimensions": lambda make: make([10, 20], box(4_000), box(3_000)),
    "constants": lambda make: dataclasses.replace(
        (data := make([4, 4])),
        columns={name: np.zeros_like(column) for name, column in data.columns.items()},
    ),
    "large numbers": lambda make: dataclasses.replace(
        (data := make([4, 7])), columns={**data.columns, "rewards": np.float32([1e30] * 11)}
    ),
}
"""Name → data that once broke plots, or might."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "large numbers" else pytest.mark.slow) for name in ODD],
)
def test_odd_data_are_drawn_without_a_warning(random_trajectories, name, tmp_path):
    paths = save_dataset_plots(ODD[name](random_trajectories), tmp_path / "plots")
    assert [path.name for path in paths] == [f"{name}.png" for name in FIGURES]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image.convert("L")))) > 5


def test_a_folder_that_cannot_be_made_is_refused(random_trajectories, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/returns.png cannot be written"):
        save_dataset_plots(random_trajectories([3, 4]), tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_data_without_episodes_are_refused(random_trajectories, tmp_path):
    with pytest.raises(InputError, match="has no episode to plot"):
        save_dataset_plots(random_trajectories([3]).select([]), tmp_path / "plots")
    assert not list(tmp_path.iterdir())


def test_the_command_says_where_the_files_are(random_trajectories, tmp_path, capsys):
    name = write_minari(random_trajectories([6, 8, 5]), "tests/plots-v0")
    assert main(["datasets", "show", name, "--plots", "seen", "--json", "seen.json"]) == 0
    printed = capsys.readouterr().out
    with open("seen.json") as stream:
        paths = json.load(stream)["plots"]
    assert len(paths) == len(FIGURES)
    for path in paths:
        assert os.path.isfile(path)
        assert f"plot: {path}\n" in printed


def test_without_plots_matplotlib_is_not_loaded(random_trajectories):
    name = write_minari(random_trajectories([6, 8]), "tests/plots-v0")
    program = (
        f"import sys\nfrom dtrl.cli import main\nassert main(['datasets', 'show', {name!r}]) == 0\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
