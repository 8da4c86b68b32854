"""What a run tells while it trains: a TensorBoard event file, and the same scalars as JSON lines in progress.jsonl.

Tags are those of Stable-Baselines3 (`train/loss`, `eval/mean_reward`, `time/fps`, …) and scalars are of TensorBoard's
old style, as its are, so that the curves of both lie over each other in one chart.

The event file is written here and not by torch's SummaryWriter, whose background thread reports a full disk by a
traceback, leaves half a record behind, at which TensorBoard stops reading, and holds events back for two minutes. Here
every record is on its way to the disk when the call returns, or taken back whole."""

import io
import json
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dtrl.documents import parse_json
from dtrl.errors import InputError
from dtrl.files import replace
from dtrl.pictures import encode_gif

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROGRESS = "progress.jsonl"
FIGURE_DOTS_PER_INCH = 100
RGB, RGBA = 3, 4
"""TensorBoard's `colorspace` of an image: its number of channels."""


class RunLogger:
    """Writes the log of one run into the folder `logdir`; use it in a `with`, or `close` it.

    `purge_step=N` is for a run that goes on after its N-th update: whatever an earlier life of the run has logged at
    update N and later is hidden by TensorBoard (by its fast loader as soon as the tag is logged again) and removed from
    progress.jsonl, so that every update stands there once.

    A write that fails, as on a full disk, does not end the training: one warning is given, the entry is lost, and the
    next one is tried again. A folder that cannot be written at the start raises InputError."""

    def __init__(self, logdir: str | os.PathLike[str], purge_step: int | None = None) -> None:
        self.logdir = Path(logdir)
        self._warned = False
        self.tags: set[str] = set()
        """Tags of the scalars logged so far."""
        try:
            self.logdir.mkdir(parents=True, exist_ok=True)
            _keep_lines(self.logdir / PROGRESS, math.inf if purge_step is None else purge_step)
            with ExitStack() as opened:
                self._progress = opened.enter_context(open(self.logdir / PROGRESS, "ab", buffering=0))
                self._events = opened.enter_context(open(self.logdir / _event_file_name(), "xb", buffering=0))
                self._start_events(purge_step)
                opened.pop_all()  # all went well: they stay open until `close`
        except OSError as error:
            raise InputError(
                f"the log folder {self.logdir} cannot be written ({error.strerror}); choose another, or make room."
            ) from error

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log one number per tag at an update. A number that is not finite reaches TensorBoard, and is null in JSON."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {tag: float(value) for tag, value in values.items()}
        self.tags |= set(numbers)
        line = {"update": int(step)} | {tag: value if math.isfinite(value) else None for tag, value in numbers.items()}
        self._try(lambda: _append(self._progress, json.dumps(line).encode() + b"\n"))
        self._summary(
            Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]), step
        )

    def text(self, tag: str, text: str, step: int) -> None:
        """Log Markdown text."""
        from torch.utils.tensorboard.summary import text as summary_of_text

        self._summary(summary_of_text(tag, text), step)

    def figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Log a matplotlib figure as an image. Agg draws it, whatever its own canvas; pyplot is not involved."""
        png = io.BytesIO()
        figure.savefig(png, format="png", backend="agg", dpi=FIGURE_DOTS_PER_INCH)
        width, height = (round(inches * FIGURE_DOTS_PER_INCH) for inches in figure.get_size_inches())
        self._image(tag, png.getvalue(), height, width, RGBA, step)

    def video(self, tag: str, frames: npt.NDArray[np.uint8], step: int, fps: float = 30.0) -> None:
        """Log frames (T, height, width, 3), uint8, as an animated GIF, which TensorBoard's Images tab plays.

        A GIF counts time in hundredths of a second: `fps` is met as nearly as that allows, and is at most 50, as
        browsers slow down anything faster. Raises InputError for frames of another shape or type."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise InputError(
                f"video frames of shape {frames.shape} and type {frames.dtype} are not a video; "
                "give (T, height, width, 3), uint8."
            )
        if not (fps > 0 and math.isfinite(fps)):
            raise InputError(f"fps {fps} must be a positive number of frames per second.")
        self._image(tag, encode_gif(frames, fps), frames.shape[1], frames.shape[2], RGB, step)

    def hparams(self, hparams: Mapping[str, Any], metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log the run's settings, and which scalars TensorBoard's HParams tab shows beside them.

        They go into the run's own event file: torch's add_hparams makes a run of its own in a folder below. A metric's
        number is logged as a scalar at `step`; with None the tag is only announced, for `scalars` to fill. Settings
        other than numbers and strings (None, True, lists) are shown as Python writes them."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard.summary import hparams as summaries_of_hparams

        shown = {name: _number_or_text(value) for name, value in hparams.items()}
        for summary in summaries_of_hparams(shown, dict(metrics)):
            self._summary(summary, step)
        numbers = {tag: float(value) for tag, value in metrics.items() if value is not None}
        if numbers:
            self._summary(
                Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]), step
            )

    def close(self) -> None:
        """Close both files; once is enough, twice does no harm."""
        self._try(self._progress.close)
        self._try(self._events.close)

    def _image(self, tag: str, encoded: bytes, height: int, width: int, colorspace: int, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(height=height, width=width, colorspace=colorspace, encoded_image_string=encoded)
        self._summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def _summary(self, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._try(lambda: _append(self._events, _record(Event(summary=summary, step=int(step), wall_time=time.time()))))

    def _start_events(self, purge_step: int | None) -> None:
        """The head of an event file, and TensorBoard's sign that a run starts anew at a step."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        _append(self._events, _record(Event(file_version="brain.Event:2", wall_time=time.time())))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            _append(self._events, _record(Event(session_log=start, step=purge_step, wall_time=time.time())))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._warned:
                warnings.warn(
                    f"the log in {self.logdir} cannot be written ({error.strerror}); "
                    "training goes on, and log entries are lost until it can.",
                    RuntimeWarning,
                    stacklevel=3,
                )
            self._warned = True


def _append(file: io.FileIO, data: bytes) -> None:
    """Append all of `data`, or, when the disk refuses a part of it, nothing."""
    before = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]  # a nearly full disk takes a part without an error
    except OSError:
        with suppress(OSError):
            file.truncate(before)
        raise


def _record(event: Any) -> bytes:
    """An event with its length and checksums around it, as TensorBoard reads them."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    RecordWriter(stream).write(event.SerializeToString())
    return stream.getvalue()


def _event_file_name() -> str:
    """TensorBoard reads the files of a run in the order of their names: the time comes first, to the nanosecond."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"


def _keep_lines(path: Path, before: float) -> None:
    """Rewrite progress.jsonl with its whole lines of updates earlier than `before`; one torn by a crash goes as well."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _update_of(line) < before]
    if kept == lines:
        return
    replace(path, b"".join(kept))


def _update_of(line: bytes) -> float:
    try:
        return float(parse_json(line)["update"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf


def _number_or_text(value: Any) -> float | str:
    if isinstance(value, bool | np.bool_):
        return str(bool(value))  # a number to torch, and 1.0 would be shown
    return float(value) if isinstance(value, int | float | np.number) else str(value)


def newest_scalars(logdir: Path) -> dict[str, float]:
    """What a run that has no update left had logged last; nothing where its log is gone."""
    return next((e for e in reversed(entries(logdir)) if math.isfinite(e.get("train/loss", math.nan))), {})


def of_training(logdir: Path, update: int) -> list[dict[str, float]]:
    """What a run has logged at an update but evaluations, which a resume at the end of the run makes anew."""
    return [
        {tag: value for tag, value in entry.items() if tag != "update"}
        for entry in entries(logdir)
        if entry.get("update") == update and not any(tag.startswith("eval/") for tag in entry)
    ]


def logged(logdir: Path, tag: str) -> dict[int, float]:
    """Update → what a run has logged by that tag, where it is finite; nothing where its log is gone."""
    return {
        int(entry["update"]): entry[tag]
        for entry in entries(logdir)
        if all(math.isfinite(entry.get(name, math.nan)) for name in ("update", tag))
    }


def entries(logdir: Path) -> list[dict[str, float]]:
    """The lines of a run's progress.jsonl, of a number that is not finite as NaN, without those that were torn or altered; none where it is gone."""
    found = []
    with suppress(OSError):
        for line in (logdir / PROGRESS).read_bytes().splitlines():
            with suppress(ValueError, AttributeError, TypeError, OverflowError):
                read = parse_json(line).items()
                found.append({str(tag): math.nan if value is None else float(value) for tag, value in read})
    return found
