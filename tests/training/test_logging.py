"""Oracle: TensorBoard's own readers, Pillow for the images, and the standard library for progress.jsonl."""

import io
import json
import os
import resource
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dtrl.errors import InputError
from dtrl.training.logging import RunLogger


def events_of(logdir):
    accumulator = EventAccumulator(str(logdir), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def progress_of(logdir):
    return [json.loads(line) for line in (logdir / "progress.jsonl").read_text().splitlines()]


def event_files(logdir):
    return sorted(name for name in os.listdir(logdir) if "tfevents" in name)


def test_scalars_reach_both_files(tmp_path):
    with RunLogger(tmp_path / "new" / "run") as log:
        log.scalars({"train/loss": 0.5, "time/fps": np.float32(3)}, 10)
        log.scalars({"train/loss": 0.25}, 20)
    assert [(e.step, e.value) for e in events_of(tmp_path / "new" / "run").Scalars("train/loss")] == [
        (10, 0.5),
        (20, 0.25),
    ]
    assert progress_of(tmp_path / "new" / "run") == [
        {"update": 10, "train/loss": 0.5, "time/fps": 3.0},
        {"update": 20, "train/loss": 0.25},
    ]


def test_an_entry_is_in_the_files_before_the_next_is_logged(tmp_path):
    with RunLogger(tmp_path) as log:
        log.scalars({"train/loss": 0.5}, 10)
        assert len(events_of(tmp_path).Scalars("train/loss")) == len(progress_of(tmp_path)) == 1


def test_numbers_that_are_not_finite_reach_tensorboard_and_are_null_in_json(tmp_path):
    with RunLogger(tmp_path) as log:
        log.scalars({"train/loss": float("nan"), "train/grad_norm": float("inf")}, 1)
    assert np.isnan(events_of(tmp_path).Scalars("train/loss")[0].value)
    assert progress_of(tmp_path) == [{"update": 1, "train/loss": None, "train/grad_norm": None}]


def test_after_a_resume_each_update_stands_once(tmp_path):
    for first, last, purge_step in ((0, 80, None), (50, 120, 50), (100, 150, 100)):
        with RunLogger(tmp_path, purge_step) as log:
            for step in range(first, last, 10):
                log.scalars({"train/loss": first + step}, step)
    expected = (
        [(s, 0.0 + s) for s in range(0, 50, 10)]
        + [(s, 50.0 + s) for s in range(50, 100, 10)]
        + [(s, 100.0 + s) for s in range(100, 150, 10)]
    )
    assert [(e.step, e.value) for e in events_of(tmp_path).Scalars("train/loss")] == expected
    assert [(line["update"], line["train/loss"]) for line in progress_of(tmp_path)] == expected
    assert len(event_files(tmp_path)) == 3
    assert len(os.listdir(tmp_path)) == 4


def test_a_line_torn_by_a_crash_is_dropped(tmp_path):
    (tmp_path / "progress.jsonl").write_text('{"update": 1, "a": 1}\n{"update": 2, "a"')
    with RunLogger(tmp_path) as log:
        log.scalars({"a": 2}, 2)
    assert progress_of(tmp_path) == [{"update": 1, "a": 1}, {"update": 2, "a": 2.0}]


def test_a_video_is_a_gif_that_plays(tmp_path):
    frames = np.zeros((12, 16, 24, 3), np.uint8)
    for t in range(12):
        frames[t, :, 2 * t : 2 * t + 2] = (255, 20 * t, 0)
    with RunLogger(tmp_path) as log:
        log.video("eval/video", frames, step=5, fps=10)
    (event,) = events_of(tmp_path).Images("eval/video")
    assert (event.step, event.width, event.height) == (5, 24, 16)
    gif = Image.open(io.BytesIO(event.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.info["duration"], gif.info["loop"]) == ("GIF", 12, 100, 0)
    gif.seek(7)
    np.testing.assert_allclose(np.array(gif.convert("RGB"), dtype=int), frames[7], atol=8)  # 256 colours a frame


def test_what_is_no_video_is_refused(tmp_path):
    with RunLogger(tmp_path) as log:
        for frames in (np.zeros((2, 3, 4, 3)), np.zeros((3, 4, 3), np.uint8), np.zeros((0, 3, 4, 3), np.uint8)):
            with pytest.raises(InputError, match="not a video"):
                log.video("v", frames, 0)
        with pytest.raises(InputError, match="fps 0 must be"):
            log.video("v", np.zeros((2, 3, 4, 3), np.uint8), 0, fps=0)


def test_a_figure_is_a_png_of_its_size(tmp_path):
    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot([0, 1])
    with RunLogger(tmp_path) as log:
        log.figure("eval/calibration", figure, 3)
    (event,) = events_of(tmp_path).Images("eval/calibration")
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert (image.format, image.size) == ("PNG", (300, 200)) == ("PNG", (event.width, event.height))


def test_text_can_be_read_back(tmp_path):
    with RunLogger(tmp_path) as log:
        log.text("config", "context length **20**", 1)
    (event,) = events_of(tmp_path).Tensors("config/text_summary")
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (1, "context length **20**")


def test_hparams_are_in_the_run_s_own_event_file(tmp_path):
    settings = {
        "learning_rate": 1e-3,
        "layers": np.int64(3),
        "preset": "dt",
        "kv_heads": None,
        "flag": True,
        "targets": [1, 2],
    }
    with RunLogger(tmp_path) as log:
        log.hparams(settings, {"eval/mean_reward": 12.5, "train/loss": None}, step=9)
    assert len(event_files(tmp_path)) == 1
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    events = events_of(tmp_path)
    contents = [HParamsPluginData.FromString(content) for content in events.PluginTagToContent("hparams").values()]
    (started,) = (c.session_start_info.hparams for c in contents if c.HasField("session_start_info"))
    (experiment,) = (c.experiment for c in contents if c.HasField("experiment"))
    assert (started["learning_rate"].number_value, started["layers"].number_value) == (1e-3, 3.0)
    assert [started[k].string_value for k in ("preset", "kv_heads", "flag", "targets")] == [
        "dt",
        "None",
        "True",
        "[1, 2]",
    ]
    assert [m.name.tag for m in experiment.metric_infos] == ["eval/mean_reward", "train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("eval/mean_reward")] == [(9, 12.5)]
    assert events.Tags()["scalars"] == ["eval/mean_reward"]


def test_a_full_disk_is_warned_of_once_and_leaves_both_files_whole(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLogger(tmp_path) as log:
        log.scalars({"train/loss": 1.0}, 1)
        full = max(path.stat().st_size for path in tmp_path.iterdir()) + 5  # bytes: the next record fits in part
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for step in range(2, 20):
                    log.scalars({"train/loss": 2.0}, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.scalars({"train/loss": 3.0}, 20)  # there is room again
    assert [str(w.message).split(" (")[0] for w in caught] == [f"the log in {tmp_path} cannot be written"]
    logged = [(e.step, e.value) for e in events_of(tmp_path).Scalars("train/loss")]
    assert logged == [(1, 1.0), (20, 3.0)]
    updates = [line["update"] for line in progress_of(tmp_path)]
    assert updates == sorted(set(updates))
    assert (updates[0], updates[-1]) == (1, 20)
    assert len(list(RawEventFileLoader(str(tmp_path / event_files(tmp_path)[0])).Load())) == 3  # with the head


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be written"):
        RunLogger(tmp_path / "file")


def test_closing_twice_does_no_harm(tmp_path):
    log = RunLogger(tmp_path)
    log.close()
    log.close()
    assert (tmp_path / "progress.jsonl").read_bytes() == b""


@pytest.mark.slow
def test_tensorboard_is_not_imported_before_it_is_needed():
    program = "import sys, dtrl.training.logging; assert not {'tensorboard', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
