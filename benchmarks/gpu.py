"""What a GPU is for, as one prepared run: the paper's Hopper run with its evaluation, a large model in bf16, an update beside a peer's, and environment steps a
second.

    python benchmarks/gpu.py hopper/medium-v0 --output runs/gpu

Goals on one H200: 100,000 updates and their evaluation in two minutes; 40 % utilisation of 12 layers × 768, K = 64. `--device cpu` with small numbers
tries the script where there is no GPU; what it measures there means nothing."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from dtrl.training.logging import newest_scalars


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the runs and the result")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--updates", type=int, default=100_000, help="of the paper's run (default: 100,000)")
    parser.add_argument("--episodes", type=int, default=100, help="of its evaluation (default: 100)")
    parser.add_argument("--large-updates", type=int, default=300, help="of the large model (default: 300)")
    parser.add_argument("--large", type=int, nargs=3, default=(12, 768, 64), metavar=("LAYERS", "WIDTH", "K"))
    parser.add_argument("--large-batch-size", type=int, default=128, help="windows (default: 128)")
    parser.add_argument("--engines", nargs="+", choices=("eager", "graph"), default=["eager", "graph"])
    parser.add_argument("--max-envs", type=int, default=4_096)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="these parts, of which each is written when it is done (default: all)",
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    document = {}
    for name in arguments.only:
        document[name] = PARTS[name](arguments)
        (arguments.output / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps({name: part for name, part in document.items() if name != "rollouts"}, indent=2))


def paper(arguments: argparse.Namespace) -> dict[str, float]:
    """100,000 updates of 64 windows of 20 steps [Chen et al. 2021, table 8]."""
    run = arguments.output / "paper"
    warm_up = min(10_000, arguments.updates // 10)
    training = f"--updates {arguments.updates} --learning-rate 1e-4 --warmup-updates {warm_up} --log-every {max(1, arguments.updates // 20)}"
    seconds = dtrl(f"train {arguments.dataset} --logdir {run} {training} {on(arguments)} --eval-episodes 0")
    return {"updates": arguments.updates, "training_seconds": seconds, **of_last_stretch(run)}


def evaluation(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The same episodes of the paper's run by each engine, for the data's 95 % quantile."""
    results = {}
    for engine in engines(arguments):
        report = arguments.output / f"paper-{engine}.json"
        place = f"--engine {engine}" if engine != "eager" else f"--device {arguments.device}"
        episodes = f"--episodes {arguments.episodes} --num-envs {arguments.episodes} --env-workers auto"
        seconds = dtrl(f"evaluate {arguments.output / 'paper'} {episodes} --context block {place} --json {report}")
        results[engine] = {"seconds": seconds, "mean_return": json.loads(report.read_text())["targets"][0]["mean"]}
    return results


def large(arguments: argparse.Namespace) -> dict[str, float]:
    """Of a GPT-2-sized model: achieved FLOP/s beside this device's own rate of matrix products in bf16."""
    layers, width, context = arguments.large
    run = arguments.output / "large"
    model = f"--layers {layers} --width {width} --heads {max(1, width // 64)} --context-length {context} --activation gelu --dropout 0"
    training = f"--updates {arguments.large_updates} --batch-size {arguments.large_batch_size} --log-every {max(1, arguments.large_updates // 3)}"
    seconds = dtrl(f"train {arguments.dataset} --logdir {run} {model} {training} {on(arguments)} --eval-episodes 0")
    return {"training_seconds": seconds, **of_last_stretch(run)}


def update(arguments: argparse.Namespace) -> object:
    """An update of the paper's model beside transformers', as `dtrl bench training` measures them."""
    file = arguments.output / "training.json"
    dtrl(f"bench training {'' if arguments.device == 'cpu' else '--cuda 1 --bf16 1'} --json {file}")
    return json.loads(file.read_text())["results"]


def rollouts(arguments: argparse.Namespace) -> dict[str, object]:
    """Environment steps a second in environments that cost nothing, as `dtrl bench rollouts` measures them, by each engine."""
    documents: dict[str, object] = {}
    for name in engines(arguments):
        flags = "" if arguments.device == "cpu" else f"--cuda 1 --graph {int(name == 'graph')}"
        file = arguments.output / f"rollouts-{name}.json"
        dtrl(
            f"bench rollouts --max-envs {arguments.max_envs} --envs 0 --repetitions 3 --steps 20 {flags} --json {file}"
        )
        documents[name] = json.loads(file.read_text())["results"]
    return documents


def on(arguments: argparse.Namespace) -> str:
    if arguments.device == "cpu":
        return "--device cpu"
    return f"--device {arguments.device} --precision bf16 --compile --cuda-graph"


def engines(arguments: argparse.Namespace) -> list[str]:
    return ["eager"] if arguments.device == "cpu" else arguments.engines


def of_last_stretch(run: Path) -> dict[str, float]:
    """What was logged last, when everything is warm."""
    scalars = newest_scalars(run)
    return {name.split("/")[1]: scalars[name] for name in ("train/model_flops_utilization", "time/updates_per_second")}


def dtrl(command: str) -> float:
    """Seconds that a command takes, its start included."""
    print(f"dtrl {command}", file=sys.stderr, flush=True)
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "dtrl", *command.split()], check=True)
    return time.monotonic() - begun


PARTS = {"paper": paper, "evaluation": evaluation, "large": large, "update": update, "rollouts": rollouts}


if __name__ == "__main__":
    main()
