"""Where trajectories come from: Minari datasets, by id or by path, in HDF5 or Arrow; and files of other tools (formats/)."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dtrl.config import DataConfig, SourceConfig, texts
from dtrl.errors import InputError, did_you_mean
from dtrl.spaces import Space, is_image, leaves
from dtrl.trajectories import cache
from dtrl.trajectories.columns import Array, Origin, Trajectories
from dtrl.trajectories.formats import Columns, read_file
from dtrl.trajectories.minari_files import are_columns_of, read_columns, read_metadata, read_spaces
from dtrl.trajectories.mixture import check_weights, mix
from dtrl.trajectories.selection import chosen

DATASET_ID = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+", re.ASCII)
JPEG_SIDE = 32
"""Minari stores images of at least so many pixels a side as JPEG, where it is not told otherwise; smaller ones as they are."""
Dataset = str | os.PathLike[str]
"""An id, or the path of a dataset's folder or of a file."""


def load_trajectories(
    dataset: Dataset | Sequence[Dataset],
    *,
    weights: Sequence[float] | None = None,
    format: str | None = None,
    env: str | None = None,
    columns: Columns | None = None,
    **options: Any,
) -> Trajectories:
    """The trajectories of a Minari dataset (an id such as `hopper/medium-v0`, or the path of its folder), or of a file of another tool.

    A list of them is mixed: all their episodes, which must have the same spaces. With `weights`, one a dataset, a window of training comes from
    each in that proportion, whatever their sizes; options and filters hold for each.

    For a file (formats/), `format`, `env` and `columns` are those of `formats.read_file`, which also says what was assumed; `dtrl datasets import`
    prints that and keeps the result as a Minari dataset.

    An id that is not in the local Minari folder (`MINARI_DATASETS_PATH`, or Minari's default) is downloaded by Minari. The first load reads every
    episode once; later ones map the cached columns. Options are those of `DataConfig`: discount,
    delayed, short_episodes, and the filters min_return, max_return, min_length, max_length and endings.

    Raises InputError for an unknown id, spaces that cannot be tokenized, NaN or infinity (naming episode and field), an empty dataset, episodes of
    0 or 1 steps (see `short_episodes`), and metadata that disagree with the data. Nothing in the dataset's metadata is ever executed."""
    config = DataConfig(**options)
    names = texts("datasets", [dataset] if isinstance(dataset, str | os.PathLike) else list(dataset))
    source = SourceConfig(tuple(names), None if weights is None else tuple(weights), format, env, columns)
    check_weights(source.weights, len(source.datasets))
    if (format or env or columns) and names and not any(map(os.path.isfile, source.datasets)):
        raise InputError(
            f"format, env and columns are for files, and {', '.join(source.datasets)} is none; leave them out."
        )
    whole = mix([load_one(one, config, source) for one in source.datasets], source.weights)
    return replace(whole, origin=replace(whole.origin, loaded=(source, config)))


def load_one(dataset: str, config: DataConfig, source: SourceConfig) -> Trajectories:
    """One dataset or file, filtered."""
    if os.path.isfile(dataset):
        whole, _ = read_file(Path(dataset), source.format, source.env, source.columns)
        whole = replace(whole, discount=config.discount, delayed=config.delayed)
    else:
        whole = load_minari(dataset, config)
    return chosen(whole, config)


def load_minari(dataset: str, config: DataConfig) -> Trajectories:
    """A Minari dataset whole, from the cache where it has been read before."""
    folder = locate(dataset)
    metadata = read_metadata(folder)
    name = str(metadata.get("dataset_id") or dataset)
    observation_space, action_space = read_spaces(metadata, name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    key = cache.fingerprint(files, folder)

    def fits(columns: dict[str, Array]) -> bool:
        return are_columns_of(columns, metadata, observation_space, action_space)

    columns = cache.find(key, fits)
    if columns is None:
        columns = cache.store(
            key, lambda allocate: read_columns(folder, metadata, observation_space, action_space, name, allocate), fits
        )
    starts = columns.pop("episode_starts")
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    origin = Origin(
        name=name,
        env_spec=metadata.get("env_spec"),
        reference=(float(low), float(high))
        if isinstance(low, (int, float)) and isinstance(high, (int, float))
        else None,
        fingerprint=key,
        lossy_images=bool(metadata.get("jpeg_encoding"))
        and any(may_be_jpeg(leaf.space) for leaf in leaves(observation_space)),
    )
    return Trajectories(
        columns, np.asarray(starts), observation_space, action_space, origin, config.discount, config.delayed
    )


def may_be_jpeg(space: Space) -> bool:
    """Whether Minari, where it encodes images, encodes those of a space: single frames of uint8, with a side of JPEG_SIDE or more."""
    shape = space.shape or ()
    return is_image(space) and space.dtype == np.uint8 and len(shape) < 4 and min(shape[:2]) >= JPEG_SIDE


def locate(dataset: str) -> Path:
    """The folder that holds the dataset's data and metadata.json; downloads it by id where it is not local."""
    path = Path(dataset)
    with suppress(OSError):  # a name may be longer than the system allows
        for folder in (path, path / "data"):
            if (folder / "metadata.json").is_file():
                return folder
    if not DATASET_ID.fullmatch(dataset):
        known = local_datasets()
        raise InputError(
            f"{dataset!r} is no file, and neither a folder with a Minari dataset nor a dataset id such as hopper/medium-v0; "
            f"`dtrl datasets list` shows what is here; {did_you_mean(dataset, list(known))}"
        )
    root = minari_root()
    local = root / dataset / "data"
    if not local.is_dir():
        download(dataset)
    if not (local / "metadata.json").is_file():
        raise InputError(
            f"{local} holds no metadata.json, so {dataset} is not a whole Minari dataset; delete that folder and get it again."
        )
    return local


def minari_root() -> Path:
    """Minari's own rule for where datasets are, without creating the folder."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def local_datasets() -> dict[str, Path]:
    """Ids of the datasets in the local Minari folder, with the folder of each."""
    root, found = minari_root(), {}
    for folder, below, _ in os.walk(root):
        if "data" in below:
            below.clear()  # a dataset: its episodes, which may be thousands of folders, are of no interest here
            if (Path(folder) / "data" / "metadata.json").is_file():
                found[Path(folder).relative_to(root).as_posix()] = Path(folder) / "data"
    return dict(sorted(found.items()))


def download(dataset: str) -> None:
    """Have Minari download the dataset; an unknown id, or no network, becomes one sentence with the nearest local names."""
    import logging

    import minari

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # it logs every retry; the one sentence below says what happened
    try:
        check_online()
        minari.download_dataset(dataset)
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(
            f"dataset {dataset!r} is not in {minari_root()}, and Minari could not download it ({reason}); "
            f"`dtrl datasets list` shows the local ones; {did_you_mean(dataset, list(local_datasets()))}"
        ) from error


def check_online() -> None:
    """Raise at once where the hub's name does not resolve: Minari's client would try again for half a minute."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if not getproxies():
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
