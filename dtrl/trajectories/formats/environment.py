"""What a file's reader may learn from an environment that the user names: its spaces and its number of steps."""

from dataclasses import dataclass

from dtrl.errors import InputError, did_you_mean
from dtrl.registration import import_packages
from dtrl.spaces import Space


@dataclass(frozen=True)
class Environment:
    id: str
    spec: str
    """Gymnasium's EnvSpec in JSON, for the dataset's metadata."""
    observation_space: Space
    action_space: Space
    max_episode_steps: int | None


def look_up(env_id: str) -> Environment:
    """The environment registered under an id; it is made once, for its spaces. Raises InputError where it cannot be."""
    import gymnasium

    import_packages(env_id)
    try:
        env = gymnasium.make(env_id)
    except Exception as error:
        known = list(gymnasium.registry)
        hint = "install what it needs." if env_id in known else did_you_mean(env_id, known)
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"environment {env_id!r} cannot be made ({type(error).__name__}: {reason}); {hint}") from error
    spec = gymnasium.spec(env_id)
    found = Environment(env_id, spec.to_json(), env.observation_space, env.action_space, spec.max_episode_steps)
    env.close()
    return found
