"""One episode as moving pictures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from dtrl.acting import Actor, make_environment
from dtrl.acting.environments import descend, seen_part
from dtrl.acting.faults import where
from dtrl.acting.guard import Guard
from dtrl.acting.masks import MaskReader
from dtrl.errors import InputError
from dtrl.files import write_atomically
from dtrl.pictures import encode_gif

MAX_FRAMES = 200
MAX_PIXELS = 256
"""Longest video and side of a frame: TensorBoard keeps every video in its event file."""


def record(
    policy: Actor,
    target_return: float,
    seed: int = 0,
    env: "str | Callable[[], gymnasium.Env[Any, Any]] | None" = None,
    part: str | None = None,
) -> tuple[npt.NDArray[np.uint8], float]:
    """Frames (T, H, W, 3) and frames a second of one greedy episode; of a long one every n-th frame. `part` names what the policy sees of the observation.

    Raises InputError where the environment draws none, or fails."""
    environment = Guard(partial(make_with_pictures, policy, env))
    try:
        frames, state = [], policy.initial_state(1, target_return)
        seen = seen_part(environment.observation_space, policy.observation_space, part, policy.data.dataset)
        masks = MaskReader(environment.observation_space, seen, policy.mask_size)
        observation, info = environment.reset(seed=seed)
        done = False
        while not done:
            check(environment, None if not state.started else int(state.timesteps[0]), seed)
            frames.append(frame(environment))
            mask = masks.read_one(observation, info)
            action, state = policy.predict(descend(observation, seen), state, action_masks=mask)
            observation, reward, terminated, truncated, info = environment.step(action)
            state.reward += float(reward)
            done = terminated or truncated
        check(environment, int(state.timesteps[0]), seed)
        frames.append(frame(environment))
        fps = float(environment.metadata.get("render_fps") or 30)
    finally:
        environment.close()
    every = -(-len(frames) // MAX_FRAMES)
    return np.stack(frames[::every]), min(50.0, fps)


def check(environment: Guard, step: int | None, seed: int) -> None:
    """Raise InputError for what the environment did wrong in its last step, or reset where that is None."""
    if (fault := environment.fault) is not None:
        raise InputError(f"{where(0, step, seed)} {fault.said}; the environment is at fault.") from fault.cause


def make_with_pictures(
    policy: Actor, env: "str | Callable[[], gymnasium.Env[Any, Any]] | None"
) -> "gymnasium.Env[Any, Any]":
    if env is not None and not isinstance(env, str):
        environment = env()
    else:
        name = env or policy.data.env_spec
        if name is None:
            raise InputError("the policy's data name no environment; give one with env.")
        environment = make_environment(name, render_mode="rgb_array")
    if environment.render_mode != "rgb_array":
        environment.close()
        raise InputError("this environment was not made with render_mode='rgb_array', so it draws no frames.")
    return environment


def frame(environment: "gymnasium.Env[Any, Any]") -> npt.NDArray[np.uint8]:
    """What the environment looks like now, at most MAX_PIXELS wide and high."""
    from PIL import Image

    try:
        drawn = environment.render()
    except Exception as error:
        raise InputError(
            f"the environment cannot be drawn here ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        ) from error
    image = Image.fromarray(np.asarray(drawn, dtype=np.uint8)[..., :3])
    image.thumbnail((MAX_PIXELS, MAX_PIXELS))
    return np.asarray(image, dtype=np.uint8)


def save_video(
    path: Path,
    policy: Actor,
    target_return: float,
    seed: int = 0,
    env: "str | Callable[[], gymnasium.Env[Any, Any]] | None" = None,
    part: str | None = None,
) -> None:
    """Write one episode to `path` as an animated GIF; `part` of the observation as in `rollout`."""
    frames, fps = record(policy, target_return, seed, env, part)
    write_atomically(path, encode_gif(frames, fps))
