"""What a GPU is for, as one prepared run: the paper's Hopper run with its evaluation, a large model's utilisation in bf16, and environment steps a second.

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
    parser.add_argument("--max-envs", type=int, default=4_096)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    document = {"paper": paper(arguments), "large": large(arguments), "rollouts": rollouts(arguments)}
    (arguments.output / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps({name: document[name] for name in ("paper", "large")}, indent=2))


def paper(arguments: argparse.Namespace) -> dict[str, float]:
    """100,000 updates of 64 windows of 20 steps [Chen et al. 2021, table 8], then episodes for the data's 95 % quantile."""
    run = arguments.output / "paper"
    warm_up = min(10_000, arguments.updates // 10)
    training = f"--updates {arguments.updates} --learning-rate 1e-4 --warmup-updates {warm_up} --log-every {max(1, arguments.updates // 100)}"
    trained = dtrl(f"train {arguments.dataset} --logdir {run} {training} {on(arguments)} --eval-episodes 0")
    report = arguments.output / "paper.json"
    evaluated = dtrl(
        f"evaluate {run} --episodes {arguments.episodes} --context block --device {arguments.device} --json {report}"
    )
    return {
        "updates": arguments.updates,
        "training_seconds": trained,
        "evaluation_seconds": evaluated,
        "mean_return": json.loads(report.read_text())["targets"][0]["mean"],
        "model_flops_utilization": utilization(run),
    }


def large(arguments: argparse.Namespace) -> dict[str, float]:
    """Of a GPT-2-sized model: achieved FLOP/s beside this device's own rate of matrix products in bf16."""
    layers, width, context = arguments.large
    run = arguments.output / "large"
    model = f"--layers {layers} --width {width} --heads {max(1, width // 64)} --context-length {context} --activation gelu --dropout 0"
    training = (
        f"--updates {arguments.large_updates} --precision bf16 --log-every {max(1, arguments.large_updates // 3)}"
    )
    seconds = dtrl(f"train {arguments.dataset} --logdir {run} {model} {training} {on(arguments)} --eval-episodes 0")
    return {"training_seconds": seconds, "model_flops_utilization": utilization(run)}


def rollouts(arguments: argparse.Namespace) -> dict[str, object]:
    """Environment steps a second in environments that cost nothing, as `dtrl bench rollouts` measures them; on CUDA also with the engine graph."""
    documents: dict[str, object] = {}
    for name, flags in {"eager": "--cuda 1", "graph": "--cuda 1 --graph 1"}.items():
        if arguments.device == "cpu":
            flags = ""
            if name == "graph":
                continue
        file = arguments.output / f"rollouts-{name}.json"
        dtrl(f"bench rollouts --max-envs {arguments.max_envs} --repetitions 3 --steps 20 {flags} --json {file}")
        documents[name] = json.loads(file.read_text())["results"]
    return documents


def on(arguments: argparse.Namespace) -> str:
    return f"--device {arguments.device}" + (" --cuda-graph" if arguments.device != "cpu" else "")


def utilization(run: Path) -> float:
    """Of the last stretch that was logged, when everything is warm."""
    return newest_scalars(run)["train/model_flops_utilization"]


def dtrl(command: str) -> float:
    """Seconds that a command takes, its start included."""
    print(f"dtrl {command}", file=sys.stderr, flush=True)
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "dtrl", *command.split()], check=True)
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
