"""What is drawn is read from matplotlib's artists; what is written is read with Pillow."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dtrl.errors import InputError
from dtrl.evaluation.plots import calibration_figure, save_figure, sweep_figure
from dtrl.evaluation.references import Reference
from dtrl.evaluation.report import Report, TargetResult


def make_report(targets=((100.0, [80.0, 120.0, 130.0]), (400.0, [380.0, 300.0, 400.0])), reference=None):
    return Report("d/v0", "Env-v0", 0, 3, [TargetResult(t, list(r), [1] * len(r)) for t, r in targets], reference)


def labelled(axes):
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def test_marks_stand_at_asked_and_achieved_and_bars_are_the_interval():
    report = make_report()
    (axes,) = calibration_figure(report).axes
    marks, _, (bars,) = labelled(axes)["mean, 95 % interval"].lines
    np.testing.assert_allclose(marks.get_xydata(), [[t.target_return, t.mean] for t in report.targets])
    ends = np.array([bar[:, 1] for bar in bars.get_segments()])
    np.testing.assert_allclose(ends, [t.ci95 for t in report.targets])


def test_every_episode_is_a_dot_near_its_target_and_the_dashed_line_is_the_diagonal():
    report = make_report()
    (axes,) = calibration_figure(report).axes
    dots = np.concatenate([c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 3])
    np.testing.assert_allclose(dots[:, 1], [r for t in report.targets for r in t.returns])
    np.testing.assert_allclose(dots[:, 0], np.repeat([100, 400], 3), atol=0.02 * 400)
    line = labelled(axes)["achieved = asked"].get_xydata()
    np.testing.assert_array_equal(line[:, 0], line[:, 1])
    assert axes.get_xlim() == axes.get_ylim() == tuple(line[:, 0])


def test_the_histogram_counts_every_episode_of_the_data_on_the_same_axis():
    data = np.random.default_rng(0).gamma(2, 100, size=200)
    top, below = calibration_figure(make_report(), data).axes
    assert sum(bar.get_height() for bar in below.patches) == 200
    assert below.get_xlim() == top.get_xlim()
    assert top.get_xlim()[0] <= data.min()
    assert data.max() <= top.get_xlim()[1]


def test_with_a_reference_the_right_axis_is_the_normalised_score():
    figure = calibration_figure(make_report(reference=Reference(0.0, 200.0, "test")))
    figure.canvas.draw()
    (right,) = figure.axes[0].child_axes
    np.testing.assert_allclose(right.get_ylim(), np.array(figure.axes[0].get_ylim()) / 2)


@pytest.mark.parametrize(
    ("targets", "data"),
    [
        ([(1.0, [1.0])], None),  # one point on the diagonal: no range at all
        pytest.param([(0.0, [0.0])], [0.0], marks=pytest.mark.slow),
        ([(5.0, [np.nan, 3.0]), (6.0, [4.0, 5.0])], [np.inf, 1.0]),
        pytest.param([(5.0, [np.nan])], [], marks=pytest.mark.slow),
        pytest.param([(-1200.0, [-1100.0, -1300.0])], [-1500.0, -100.0], marks=pytest.mark.slow),
    ],
)
def test_odd_reports_are_drawn_without_a_warning(targets, data, tmp_path):
    make_report(targets).plot(tmp_path / "figure.png", data)
    save_figure(sweep_figure([(1, make_report(targets))]), tmp_path / "sweep.png")
    assert all((tmp_path / name).stat().st_size > 0 for name in ("figure.png", "sweep.png"))


def test_the_sweep_has_a_line_per_target_in_order_of_the_updates():
    history = [(20, make_report()), (10, make_report([(100.0, [50.0, 60.0])]))]
    (axes,) = sweep_figure(history).axes
    lines = labelled(axes)
    np.testing.assert_allclose(lines["100"].get_xydata(), [[10, 55], [20, 110]])
    np.testing.assert_allclose(lines["400"].get_xydata(), [[20, 360]])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(InputError, match="without targets"):
        calibration_figure(make_report([]))
    with pytest.raises(InputError, match="empty history"):
        sweep_figure([])


def test_the_png_is_whole_or_absent(tmp_path):
    figure = calibration_figure(make_report())
    save_figure(figure, tmp_path / "new" / "figure.png")
    with Image.open(tmp_path / "new" / "figure.png") as image:
        image.load()
        assert (image.format, image.size) == ("PNG", (960, 720))
    with pytest.raises(InputError, match="new cannot be written"):
        save_figure(figure, tmp_path / "new")  # a folder
    assert os.listdir(tmp_path) == ["new"]


def test_figures_leave_pyplot_and_slow_imports_alone():
    program = (
        "import sys, dtrl.evaluation.plots as p, dtrl.evaluation.report as r\n"
        "assert not {'matplotlib', 'scipy'} & set(sys.modules)\n"
        "p.calibration_figure(r.Report('d', 'e', 0, 1, [r.TargetResult(1.0, [1.0], [1])]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
