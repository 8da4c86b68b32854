"""What is fuzzed: name → the files it begins with, and the loaders that are given their mutations."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import samples
from mutations import Sample
from suite_of_cells import cells_in, suite_and_data

import dtrl
from dtrl.acting.artefact import KEY
from dtrl.acting.critic import Critic
from dtrl.acting.environments import make_environment
from dtrl.acting.runs import MANIFEST, load_policy, manifest_text
from dtrl.cli.arguments import read_config
from dtrl.collect import load_recipe
from dtrl.collect.array_policy import load_array_policy, snapshots_of
from dtrl.collect.stable_baselines import load_zip, with_statistics
from dtrl.config import DataConfig, ModelConfig, OnlineConfig, TrainingConfig, split_options
from dtrl.errors import InputError
from dtrl.evaluation.report import Report
from dtrl.interop import from_transformers
from dtrl.suites.cells import is_finished
from dtrl.suites.results import results_of
from dtrl.suites.suite import load_suite
from dtrl.trajectories.describe import describe
from dtrl.trajectories.formats import read_file


@dataclass(frozen=True)
class Target:
    """Loaders that share a reader."""

    write: Callable[[Path], None]
    """Writes valid samples, each a folder below the given one."""
    load: Callable[[Path], object]
    """Reads the files of a folder. It returns, or raises InputError; anything else is a finding."""
    seal: Callable[[Sample], Sample] | None = None
    """Makes the checksums of a mutated sample fit again: what one would do who means to deceive. Half of the mutations are sealed."""
    kept: tuple[str, ...] = field(default=())
    """Beginnings of the names of files that are left as they are."""


def whole(data: "dtrl.Trajectories") -> None:
    """What every user of trajectories does first."""
    data.returns_to_go.sum()
    describe(data).text()


def load_minari(folder: Path) -> None:
    whole(dtrl.load_trajectories(folder))


def load_cached(folder: Path) -> None:
    os.environ["DTRL_CACHE"] = str(folder / "cache")
    whole(dtrl.load_trajectories(folder / "dataset"))


def load_file(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        whole(read_file(path)[0])


def load_artefacts(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        Critic.load(path) if path.stem == "critic" else load_policy(path)


def load_run(folder: Path) -> None:
    """Load the policy, and resume the run, which has nothing left to do."""
    try:
        load_policy(folder)
    except InputError:
        pass  # a resume may fall back to the checkpoint before
    dtrl.train(samples.trajectories(), logdir=folder, resume=True, keep_checkpoints=2, **samples.RUN)


def load_models(folder: Path) -> None:
    """Each file, whatever becomes of the others."""
    refused = None
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".zip":
                policy = load_zip(path, samples.VECTOR, samples.TORQUE, deterministic=False)
                for statistics in sorted(folder.glob("statistics.*")):
                    with_statistics(policy, statistics)
            elif path.name == "policy.npz":
                names = snapshots_of(path)
                load_array_policy(path, names[0] if names else None)
        except InputError as error:
            refused = error
    if refused is not None:
        raise refused


def load_huggingface(folder: Path) -> None:
    from_transformers(folder, target_return=1.0)


def load_documents(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.name == "recipe.toml":
            load_recipe(path)
        elif path.name == "suite.toml":
            load_suite(path)
        elif path.name == "config.toml":
            configs = (DataConfig, ModelConfig, TrainingConfig, OnlineConfig)
            for share, config in zip(split_options(read_config(path), *configs), configs, strict=True):
                config(**share)
        elif path.name == "environment.json":
            make_environment(path.read_text(errors="replace")).close()
        elif path.name == "report.json":
            Report.from_json(path).table()
    if any(folder.rglob("cell.json")):
        suite, prepared = suite_and_data()
        cells = cells_in(folder)
        for cell in cells:
            is_finished(cell)
        results_of(suite, [prepared], cells, {}, {})


# Checksums


def seal_artefacts(sample: Sample) -> Sample:
    return {name: sealed(data) if name.endswith(".safetensors") else data for name, data in sample.items()}


def sealed(data: bytes) -> bytes:
    """An artefact with the hash that belongs to its document and tensors (`dtrl.acting.artefact.digest`), computed here from its bytes alone."""
    length = int.from_bytes(data[:8], "little")
    try:
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        metadata = header["__metadata__"]
        total = hashlib.sha256(metadata[KEY].encode())
        for name in sorted(header.keys() - {"__metadata__"}):
            tensor = header[name]
            begin, end = tensor["data_offsets"]
            dtype = TORCH_DTYPES.get(tensor["dtype"], tensor["dtype"])
            total.update(f"\0{name}\0torch.{dtype}\0{tuple(tensor['shape'])}\0".encode())
            total.update(body[begin:end])
        header["__metadata__"] = metadata | {"sha256": total.hexdigest()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return data  # nothing that could be sealed
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


TORCH_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U16": "uint16", "U64": "uint64", "C64": "complex64",
}  # fmt: skip


def seal_run(sample: Sample) -> Sample:
    """The hash of the policy, and then the manifest of each checkpoint."""
    sample = seal_artefacts(sample)
    for manifest in [name for name in sample if name.endswith("/" + MANIFEST)]:
        folder = manifest.removesuffix(MANIFEST)
        files = {
            name.removeprefix(folder): hashlib.sha256(data).hexdigest()
            for name, data in sample.items()
            if name.startswith(folder) and name != manifest
        }
        sample = sample | {manifest: manifest_text(files).encode()}
    return sample


TARGETS: dict[str, Target] = {
    "minari": Target(samples.write_minari, load_minari),
    "minari-encoded": Target(samples.write_minari_encoded, load_minari),
    "cache": Target(samples.write_cached, load_cached, kept=("dataset/",)),
    "hdf5": Target(lambda folder: samples.write_formats(folder, "d4rl", "d3rlpy", "d3rlpy, flat"), load_file),
    "npz": Target(lambda folder: samples.write_formats(folder, "npz"), load_file),
    "pickle": Target(lambda folder: samples.write_formats(folder, "pickle"), load_file),
    "tables": Target(lambda folder: samples.write_formats(folder, "csv", "parquet"), load_file),
    "models": Target(samples.write_models, load_models),
    "policies": Target(samples.write_policies, load_artefacts, seal_artefacts),
    "onnx": Target(samples.write_onnx, load_artefacts, seal_artefacts),
    "runs": Target(samples.write_run, load_run, seal_run),
    "huggingface": Target(samples.write_huggingface, load_huggingface),
    "documents": Target(samples.write_documents, load_documents),
}
