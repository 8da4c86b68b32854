"""Delayed reward: any environment, paying its whole return in the last step of an episode and nothing before.

The delayed-return benchmark of the Decision Transformer paper [Chen et al. 2021, §5.6, arXiv:2106.01345]. A return-to-go says as much
as before, at the first step; what was earned on the way is told by no reward, so credit has to reach back over a whole episode."""

from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.utils import RecordConstructorArgs


class DelayedReward(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """The environment it is given, with the sum of an episode's rewards paid at its end, terminated or truncated, and 0 before.

    Return, observations, actions and endings are those of the environment inside. Whatever cuts episodes (a TimeLimit) belongs inside:
    a wrapper around this one ends an episode before it is paid."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self.earned = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.earned = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.earned += float(reward)
        return observation, self.earned if terminated or truncated else 0.0, terminated, truncated, info


class DelayedRewardEnv(gymnasium.Env[Any, Any]):
    """`DelayedReward` of an environment named by its id: an environment in its own right, with a spec that names both.

        gymnasium.make("dtrl/DelayedReward-v0", env_id="CartPole-v1")
        gymnasium.make("dtrl/DelayedReward-v0", env_id="Hopper-v5", env_kwargs={"max_episode_steps": 500})

    A dataset remembers an id and its arguments, and dtrl builds no wrappers because data ask for them; hence this second form.

    Action, observation, start and end: those of the environment inside. A step limit is given in `env_kwargs`, as above: one that is
    given to `gymnasium.make` itself cuts the episode off unpaid.

    Reward: the sum of the episode's rewards in its last step, 0 before. The running sum is not observed, so the process is a POMDP.

    Tests: credit assignment over a whole episode. A method that learns from returns-to-go sees, in the first step, what it saw before;
    one that learns from single rewards does not.

    Reference: returns, and so `demonstrate`, are those of the environment inside, if that has such a method.

    Errors: ValueError for an `env_id` that is not registered. The form "module:id" is not taken: the id may come from a file, and no
    file shall choose what is imported.

    Versions: v0, the first."""

    metadata = {"render_modes": ["human", "rgb_array", "ansi"]}

    def __init__(
        self,
        env_id: str = "dtrl/Corridor-v0",
        env_kwargs: dict[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if env_id not in gymnasium.registry:
            raise ValueError(
                f"env_id {env_id!r} is not registered with Gymnasium; import the package that registers it first."
            )
        self.env = DelayedReward(gymnasium.make(env_id, render_mode=render_mode, **(env_kwargs or {})))
        self.metadata = self.env.metadata
        self.render_mode = self.env.render_mode
        self.action_space = self.env.action_space
        self.observation_space = self.env.observation_space
        if hasattr(self.env.unwrapped, "demonstrate"):  # recipes ask an environment whether it has one
            self.demonstrate: Callable[[], Any] = self.env.unwrapped.demonstrate

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        return self.env.step(action)

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()
