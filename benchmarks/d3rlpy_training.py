"""The half of d3rlpy_peer.py that runs where d3rlpy is installed: trains its Decision Transformer on the arrays of a job, plays the episodes that the job
names, and writes their returns. Needs d3rlpy, gymnasium and numpy, and nothing of dtrl.

    python d3rlpy_training.py FOLDER      reads FOLDER/job.json and data.npz, writes FOLDER/result.json"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

CLIP, WEIGHT_DECAY = 0.25, 1e-4
"""As d3rlpy's own reproduction of the paper has them (reproductions/offline/decision_transformer.py)."""
DISCRETE = {"betas": (0.9, 0.95), "weight_decay": 0.1, "clip_grad_norm": 1.0}
"""As its reproduction for Atari has them (discrete_decision_transformer.py)."""
WARMUP_TOKENS = 512 * 20


def check_environment(job: dict[str, Any]) -> None:
    """Whether the environment here moves as that of the others does. Raises SystemExit where it does not."""
    env = make(job)
    expected = np.array(job["check"]["observations"])
    observations = [env.reset(seed=job["check"]["seed"])[0]]
    observations += [env.step(typed(env.action_space, action))[0] for action in job["check"]["actions"]]
    env.close()
    if not np.allclose(np.array(observations), expected, rtol=1e-5, atol=1e-6):
        raise SystemExit(
            f"{job['env']['id']} moves otherwise here than where dtrl runs; install the same version of its simulator."
        )


def make(job: dict[str, Any]) -> "gymnasium.Env[Any, Any]":
    return gymnasium.make(job["env"]["id"], **job["env"]["kwargs"])


def typed(space: Any, action: Any) -> Any:
    return int(action) if isinstance(space, gymnasium.spaces.Discrete) else np.asarray(action, space.dtype)


def play(actor: Any, env: "gymnasium.Env[Any, Any]", seeds: list[int], start: int) -> tuple[list[float], list[int]]:
    """Returns and lengths of an episode from each seed; `start` is the first of the discrete actions."""
    returns, lengths = [], []
    for seed in seeds:
        actor.reset()
        observation, reward, ended = env.reset(seed=seed)[0], 0.0, False
        total, steps = 0.0, 0
        while not ended:
            action = actor.predict(observation, reward)
            if isinstance(env.action_space, gymnasium.spaces.Box):
                action = np.clip(action, env.action_space.low, env.action_space.high)
            else:
                action = action + start
            observation, reward, terminated, truncated, _ = env.step(typed(env.action_space, action))
            reward = float(reward)
            total, steps, ended = total + reward, steps + 1, terminated or truncated
        returns.append(total)
        lengths.append(steps)
    return returns, lengths


def algorithm(job: dict[str, Any]) -> Any:
    """d3rlpy's Decision Transformer with its published settings, in the size that the job asks for."""
    import d3rlpy

    shared = {
        "batch_size": job["batch_size"],
        "context_size": job["context_length"],
        "max_timestep": job["max_timestep"],
        "num_layers": job["layers"],
        "num_heads": job["heads"],
        "attn_dropout": job["dropout"],
        "resid_dropout": job["dropout"],
        "embed_dropout": job["dropout"],
        "encoder_factory": d3rlpy.models.VectorEncoderFactory([job["width"]], exclude_last_activation=True),
        "observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(),
        "reward_scaler": d3rlpy.preprocessing.MultiplyRewardScaler(1 / job["return_scale"]),
        "learning_rate": job["learning_rate"],
    }
    if job["discrete"]:
        return d3rlpy.algos.DiscreteDecisionTransformerConfig(
            **shared,
            optim_factory=d3rlpy.optimizers.GPTAdamWFactory(**DISCRETE),
            warmup_tokens=min(WARMUP_TOKENS, job["updates"] * job["batch_size"] * job["context_length"] // 10),
            final_tokens=job["updates"] * job["batch_size"] * job["context_length"],
        ).create(device="cpu:0")
    return d3rlpy.algos.DecisionTransformerConfig(
        **shared,
        action_scaler=d3rlpy.preprocessing.MinMaxActionScaler(
            minimum=np.array(job["low"], np.float32), maximum=np.array(job["high"], np.float32)
        ),
        optim_factory=d3rlpy.optimizers.AdamWFactory(
            weight_decay=WEIGHT_DECAY,
            clip_grad_norm=CLIP,
            lr_scheduler_factory=d3rlpy.optimizers.WarmupSchedulerFactory(warmup_steps=job["warmup"]),
        ),
    ).create(device="cpu:0")


def run(job: dict[str, Any], data: Any) -> dict[str, Any]:
    """Train, choose the best checkpoint by the job's episodes for that, and evaluate it and the last."""
    import d3rlpy

    d3rlpy.seed(job["seed"])
    dataset = d3rlpy.dataset.MDPDataset(
        data["observations"],
        data["actions"],
        data["rewards"],
        data["terminals"],
        data["timeouts"],
        action_space=d3rlpy.ActionSpace.DISCRETE if job["discrete"] else d3rlpy.ActionSpace.CONTINUOUS,
        action_size=job["action_size"],
        trajectory_slicer=d3rlpy.dataset.BasicTrajectorySlicer(),
    )
    learner, env = algorithm(job), make(job)

    def evaluated(seeds: list[int]) -> tuple[list[float], list[int]]:
        sampler = d3rlpy.algos.GreedyTransformerActionSampler() if job["discrete"] else None
        actor = learner.as_stateful_wrapper(target_return=job["target_return"], action_sampler=sampler)
        return play(actor, env, seeds, job["start"])

    best: dict[str, Any] = {"score": -np.inf, "update": 0, "of": 0}
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "best.pt")

        def choose(_: Any, __: int, update: int) -> None:
            if update % job["eval_every"] and update != job["updates"]:
                return
            score = float(np.mean(evaluated(job["choosing_seeds"])[0]))
            best["of"] += 1
            if score > best["score"]:
                best.update(score=score, update=update)
                learner.save_model(weights)

        learner.fit(
            dataset,
            n_steps=job["updates"],
            n_steps_per_epoch=job["updates"],
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
            show_progress=False,
            save_interval=job["updates"] + 1,
            callback=choose,
        )
        last = evaluated(job["final_seeds"])
        learner.load_model(weights)
    return {
        "last": last,
        "best": evaluated(job["final_seeds"]),
        "best_update": best["update"],
        "of": best["of"],
        "parameters": sum(p.numel() for p in learner.impl.modules.transformer.parameters()),
        "versions": {name: version(name) for name in ("d3rlpy", "torch", "gymnasium", "numpy")},
    }


def main() -> None:
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    check_environment(job)
    with np.load(folder / "data.npz", allow_pickle=False) as data:
        result = run(job, dict(data))
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
