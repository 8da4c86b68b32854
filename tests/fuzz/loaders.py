"""Fuzz the loaders: python tests/fuzz/loaders.py TARGET … --minutes 10 (or `make fuzz`).

A loader is given mutated files and has to return or raise InputError: no other exception, no hang, no crash, and no more than MEMORY bytes of
memory beyond what the process has at its start. A child process does the work, under these limits, and is begun again where it dies. With atheris
(`pip install 'dtrl[fuzz]'`) the mutations are led by the lines of Python that they reach, without it by the messages that come out. What fails is kept
in runs/fuzz/TARGET/, smallest first, and is tried again by --replay."""

import argparse
import base64
import contextlib
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
INSTRUMENTED = ["dtrl", "minari", "gymnasium.spaces", "json", "tomllib", "zipfile", "pickletools"]
"""Modules whose lines lead atheris."""
MEMORY = 512 * 2**20
"""Bytes that a loader may take. A file of a sample has at most 256 KiB, which deflate can make 288 MiB."""
SECONDS = 10.0
"""A load that takes longer is a hang; the samples take milliseconds."""
NO_MEMORY = re.compile(
    r"memory allocation(?! failed for on disk image)|allocate memory|bad_alloc|out of memory|failed to allocate",
    re.IGNORECASE,
)
"""What libraries say where they have no exception of their own for it. HDF5 asks for the room of a header that a damaged number makes huge, but touches
none of it before it has seen that the file ends: that takes addresses, and no memory."""
DISK = 64 * 2**20
"""Bytes of one file that a loader may write: the cache of a dataset."""


class Trial:
    """Gives samples to a target's loader, and judges what comes of it."""

    def __init__(self, target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.sources = folder / "sources"
        target.write(self.sources)
        self.samples = [read_folder(path) for path in sorted(self.sources.iterdir()) if path.name[0] != "."]
        self.loaded = folder / "loaded"

    def fresh(self, random: Random, parent: dict[str, bytes]) -> dict[str, bytes]:
        """A mutation of a sample."""
        from mutations import mutate

        kept = (
            {name: data for name, data in parent.items() if name.startswith(self.target.kept)}
            if self.target.kept
            else {}
        )
        rest = {name: data for name, data in parent.items() if name not in kept}
        sample = kept | mutate(rest, random, random.choice(self.samples))
        return self.target.seal(sample) if self.target.seal and random.random() < 0.5 else sample

    def run(self, sample: dict[str, bytes]) -> tuple[str, str | None]:
        """What came of loading a sample, in words without numbers; and, where it is a finding, its traceback."""
        from dtrl.errors import InputError

        shutil.rmtree(self.loaded, ignore_errors=True)
        write_folder(self.loaded / "sample", sample)
        os.environ["DTRL_CACHE"] = str(self.loaded / "cache")
        outcome, finding = "loaded", None
        try:
            self.target.load(self.loaded / "sample")
        except InputError as error:
            outcome = without_values(str(error))
            finding = broken_bound(error)
        except Exception as error:
            outcome, finding = f"{type(error).__name__} at {place_of(error)}", text_of(error)
        if finding is not None and "at " not in outcome:
            outcome = f"{finding.splitlines()[0]}: {outcome}"
        return outcome, finding


def broken_bound(error: BaseException) -> str | None:
    """A finding that hides behind an InputError: memory or disk ran out at the limits, or the message is no sentence."""
    link, seen = error, set()
    while link is not None and id(link) not in seen:
        if isinstance(link, MemoryError) or NO_MEMORY.search(str(link)):
            return "memory\n" + text_of(error)
        seen.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    if "cannot be written" in str(error):
        return "disk\n" + text_of(error)
    if "\n" in str(error) or len(str(error)) > 5000:
        return "no sentence\n" + text_of(error)
    return None


def text_of(error: BaseException) -> str:
    """The end of a traceback, which a recursion makes long."""
    return "".join(traceback.format_exception(error))[-6000:]


def place_of(error: BaseException) -> str:
    """The last line of dtrl's that an exception went through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/dtrl/" in f.filename]
    return f"{frames[-1].filename.rpartition('/dtrl/')[2]}:{frames[-1].lineno}" if frames else "?"


def without_values(message: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|[^A-Za-z ]", " ", message)[:100]


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_folder(folder: Path, sample: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in sample.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def as_text(sample: dict[str, bytes]) -> str:
    """A sample as a small text file, in which it can be kept."""
    return json.dumps(
        {name: base64.b85encode(zlib.compress(data, 9)).decode() for name, data in sample.items()}, indent=1
    )


def from_text(text: str) -> dict[str, bytes]:
    return {name: zlib.decompress(base64.b85decode(value)) for name, value in json.loads(text).items()}


# The child, which is limited and may die


class Diary:
    """What the parent reads of a child: the sample that is being tried, how many were, and the findings."""

    def __init__(self, folder: Path, found: Path) -> None:
        self.folder, self.found = folder, found
        self.tried, self.written = 0, 0.0
        self.outcomes: set[str] = set()

    def mutating(self) -> None:
        """The libraries that mutate a damaged file may hang as well, which is no finding: there is no current sample then."""
        faulthandler.dump_traceback_later(SECONDS, exit=True)

    def begin(self, sample: dict[str, bytes]) -> None:
        from mutations import packed

        (self.folder / "current").write_bytes(packed(sample))
        faulthandler.dump_traceback_later(SECONDS, exit=True)

    def end(self, sample: dict[str, bytes], outcome: str, finding: str | None) -> bool:
        """Whether the outcome is a new one."""
        faulthandler.cancel_dump_traceback_later()
        (self.folder / "current").unlink()
        self.tried += 1
        new = outcome not in self.outcomes
        self.outcomes.add(outcome)
        if finding is not None:
            keep(self.found, outcome, sample, finding)
        if new or time.monotonic() > self.written + 1:
            self.written = time.monotonic()
            (self.folder / "progress.json").write_text(json.dumps([self.tried, len(self.outcomes)]))
        return new


def keep(found: Path, outcome: str, sample: dict[str, bytes], finding: str) -> None:
    """Write a finding, unless the same is there with a smaller sample."""
    name = f"{re.sub(r'[^A-Za-z0-9]+', '-', outcome)[:60]}-{zlib.crc32(outcome.encode()):08x}"
    path, text = found / f"{name}.json", as_text(sample)
    if not path.exists() or len(text) < path.stat().st_size:
        found.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (found / f"{name}.txt").write_text(f"{outcome}\n\n{finding}\n")


def limit() -> None:
    """Bound memory (private and writable, from here on) and the size of files."""
    used = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK,) * 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def child(arguments: argparse.Namespace) -> None:
    """Try samples until the time is over."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with instrumented(arguments.engine):
        from targets import TARGETS
    work = Path(arguments.work)
    trial, diary = (
        Trial(TARGETS[arguments.targets[0]], Path(tempfile.mkdtemp(dir=work))),
        Diary(work, Path(arguments.found)),
    )
    for sample in trial.samples:
        outcome, finding = trial.run(sample)  # imports what is imported late, before memory is limited
        assert outcome == "loaded", (outcome, finding)
    limit()
    lead = led_by_lines if arguments.engine == "atheris" else led_by_messages
    lead(arguments, trial, diary)


def led_by_messages(arguments: argparse.Namespace, trial: Trial, diary: Diary) -> None:
    """Mutate the valid samples, and those that had an outcome of their own."""
    from mutations import packed

    random, corpus = Random(arguments.seed), [*trial.samples]
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        diary.mutating()
        sample = trial.fresh(random, random.choice(corpus if random.random() < 0.5 else trial.samples))
        diary.begin(sample)
        outcome, finding = trial.run(sample)
        if diary.end(sample, outcome, finding) and finding is None and len(packed(sample)) < 2**19:
            corpus.append(sample)
            corpus = corpus[:500]


def instrumented(engine: str):
    if engine != "atheris":
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False)


def led_by_lines(arguments: argparse.Namespace, trial: Trial, diary: Diary) -> None:
    """libFuzzer's loop with dtrl's mutations. It ends the process itself."""
    import atheris
    from mutations import packed, unpacked

    corpus = Path(arguments.work) / "corpus"
    corpus.mkdir(exist_ok=True)
    for i, sample in enumerate(trial.samples):
        (corpus / f"valid-{i}").write_bytes(packed(sample))

    def try_one(data: bytes) -> None:
        try:
            sample = unpacked(data)
        except (ValueError, TypeError):
            return  # libFuzzer's own first input, which is empty
        diary.begin(sample)
        diary.end(sample, *trial.run(sample))

    def mutate_one(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        diary.mutating()
        try:
            parent = unpacked(data)
        except (ValueError, TypeError):
            parent = random.choice(trial.samples)
        return packed(trial.fresh(random, parent))[:max_size]

    options = [
        f"-max_total_time={int(arguments.seconds)}",
        f"-seed={arguments.seed + 1}",
        "-max_len=2000000",
        "-timeout=100000",
        "-rss_limit_mb=0",
    ]
    options += [f"-artifact_prefix={arguments.work}/", "-verbosity=0", "-print_final_stats=0", str(corpus)]
    atheris.Setup([sys.argv[0], *options], try_one, custom_mutator=mutate_one)
    atheris.Fuzz()


# The parent


def fuzz(name: str, engine: str, minutes: float, seed: int, found: Path) -> dict:
    """Fuzz one target for so long; what was done, as a line of numbers."""
    from mutations import unpacked

    began, tried, outcomes = time.monotonic(), 0, 0
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=shm if os.access(shm, os.W_OK) else None) as work:
        while (left := 60 * minutes - (time.monotonic() - began)) > 1:
            options = [
                "--engine",
                engine,
                "--seed",
                str(seed),
                "--seconds",
                str(left),
                "--work",
                work,
                "--found",
                str(found),
            ]
            with open(Path(work) / "stderr", "w+") as stderr:
                ran = subprocess.run(
                    [sys.executable, __file__, name, *options], stdout=stderr, stderr=stderr, check=False
                )
                stderr.seek(0)
                said = stderr.read()[-6000:]
            begun, current = (Path(work) / "progress.json").exists(), Path(work) / "current"
            with contextlib.suppress(OSError, ValueError):
                more, kinds = json.loads((Path(work) / "progress.json").read_text())
                tried, outcomes = tried + more, max(outcomes, kinds)
                (Path(work) / "progress.json").unlink()
            for left_over in Path(work).glob("tmp*"):
                shutil.rmtree(left_over, ignore_errors=True)
            if ran.returncode and not begun and not current.exists():
                sys.exit(f"the child of {name} could not begin:\n{said}")
            if ran.returncode and current.exists():
                how = "hang" if "Timeout (" in said else f"ended by {ran.returncode}"
                where = re.findall(r'File "[^"]*/dtrl/([^"]*)", line (\d+)', said)
                outcome = f"{how} at {':'.join(where[0]) if where else '?'}"
                keep(found, outcome, unpacked(current.read_bytes()), said)
                current.unlink()
            seed += 1
    findings = sorted(path.stem for path in found.glob("*.txt"))
    minutes = round((time.monotonic() - began) / 60, 1)
    counts = {"minutes": minutes, "tried": tried, "outcomes": outcomes}
    return {"target": name, "engine": engine, **counts, "findings": findings}


def replay(path: Path, name: str) -> None:
    """Load what a finding has kept, without limits, and say what came of it."""
    from targets import TARGETS

    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(TARGETS[name], Path(folder))
        print(*trial.run(from_text(path.read_text())), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help="names of targets (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target (default: 10)")
    parser.add_argument("--engine", choices=("atheris", "mutations"), help="default: atheris where it is installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="load a finding of the target instead")
    for hidden in ("--work", "--found"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return child(arguments)
    if arguments.replay:
        return replay(arguments.replay, *arguments.targets)
    engine = arguments.engine
    if engine is None:
        try:
            import atheris  # noqa: F401

            engine = "atheris"
        except ImportError:
            print(
                "atheris is not installed (pip install 'dtrl[fuzz]'), so nothing but messages leads the mutations",
                flush=True,
            )
            engine = "mutations"
    names = arguments.targets or known_targets()
    failed = False
    for name in names:
        told = fuzz(name, engine, arguments.minutes, arguments.seed, ROOT / "runs" / "fuzz" / name)
        print(json.dumps(told), flush=True)
        failed |= bool(told["findings"])
    sys.exit(failed)


def known_targets() -> list[str]:
    from targets import TARGETS

    return list(TARGETS)


if __name__ == "__main__":
    main()
