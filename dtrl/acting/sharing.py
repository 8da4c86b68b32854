"""A rollout in pieces, which other processes or the tasks of a Ray cluster play at once. A policy is sent as the bytes of its file.

A piece is so many episodes as play side by side, and has a model and environments to itself. So what comes of it is the same, bit for bit, whoever plays
it and however many others there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dtrl.acting.actor import Actor
from dtrl.acting.exported import ExportedPolicy
from dtrl.acting.faults import EpisodeFault, check_on_env_error
from dtrl.acting.plan import Episode, Plan, warn_of
from dtrl.acting.rollouts import maker, play_plan
from dtrl.acting.runs import load_policy
from dtrl.acting.timing import Timing
from dtrl.acting.worker import register, specs_of
from dtrl.errors import InputError
from dtrl.pieces import hands
from dtrl.pool import check_jobs
from dtrl.trajectories import Trajectories

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

PIECE = 16
"""Episodes of a piece where `num_envs` does not say: many enough for the model to be efficient, few enough to be shared out."""
ELSEWHERE = ("aoti", "graph")
"""Engines that are made for one machine, or for its GPU."""


@dataclass(frozen=True)
class SentPolicy:
    """A policy on its way to another process."""

    content: bytes
    """Of the file that `save` writes."""
    acting: dict[str, Any]
    """How it acts, as `load_policy` takes it."""

    @classmethod
    def of(cls, policy: Actor) -> "SentPolicy":
        """Raises InputError for one that cannot be sent."""
        from dtrl.acting.policy import Policy

        if not isinstance(policy, (Policy, ExportedPolicy)):
            raise InputError(
                f"jobs play with a policy that dtrl has saved, and this is of another kind ({type(policy).__name__}); leave jobs and ray out."
            )
        if isinstance(policy, ExportedPolicy) and policy.engine_name in ELSEWHERE:
            raise InputError(
                f"jobs cannot run the engine {policy.engine_name}, which is made for one machine; use another."
            )
        if isinstance(policy, Policy) and policy.device.type != "cpu":
            raise InputError(
                f"jobs play on processors, and the policy is on {policy.device}; move it to the CPU (--device cpu)."
            )
        decoding = policy.decoding
        if decoding.critic or decoding.draft_path:
            raise InputError(
                f"decoding reads {decoding.critic or decoding.draft_path}, which other machines may not have; leave jobs and ray out."
            )
        acting: dict[str, Any] = {"decoding": decoding, "target_return": policy.target_return}
        if isinstance(policy, Policy):
            acting |= {"context": policy.context, "context_length": policy.context_length}
        with TemporaryDirectory() as folder:
            path = Path(folder) / "policy.safetensors"
            policy.save(path)
            return cls(path.read_bytes(), acting)

    def load(self) -> Actor:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "policy.safetensors"
            path.write_bytes(self.content)
            return load_policy(path, **self.acting)


@dataclass(frozen=True)
class Work:
    """What all pieces have in common."""

    policy: SentPolicy
    env: str
    specs: "Sequence[EnvSpec]"
    """What is registered for it here, and maybe not elsewhere."""
    num_envs: int
    deterministic: bool
    observation: str | None
    on_env_error: str


@dataclass
class Played:
    """What came of a piece; episodes are numbered from its first."""

    episodes: dict[int, dict[str, Any]]
    timing: Timing
    faults: list[EpisodeFault] = field(default_factory=list)


def player(work: Work) -> Callable[[Sequence[Episode]], Played]:
    """In another process, what plays a piece."""
    import torch

    torch.set_num_threads(1)  # the others of the machine have the other processors; and sums have one order
    register(work.specs)
    policy = work.policy.load()

    def play(episodes: Sequence[Episode]) -> Played:
        faults: list[EpisodeFault] = []
        plan, timing = Plan(episodes, lambda _: None, work.on_env_error, faults.append), Timing()
        play_plan(policy, work.env, plan, work.num_envs, work.deterministic, work.observation, 0, None, timing)
        return Played(plan.finished, timing, faults)

    return play


def shared_rollout(
    policy: Actor,
    env: Any,
    episodes: Sequence[Episode],
    *,
    jobs: int | None = None,
    ray: str | None = None,
    num_envs: int | None = None,
    deterministic: bool = True,
    observation: str | None = None,
    on_env_error: str = "raise",
    on_episode: Callable[[int], object] = lambda index: None,
    on_fault: Callable[[EpisodeFault], object] = warn_of,
    timing: Timing | None = None,
) -> Trajectories:
    """`rollout` by `jobs` processes, or by so many tasks of the Ray cluster at the address `ray` (None: one for each of its processors).

    Each plays pieces of `num_envs` episodes (None: 16) side by side. The number of jobs, and whether they are processes or tasks, changes nothing; a
    rollout in this process differs by the rounding of batched matrix products. `env` is an id, or an EnvSpec in JSON. Faults are told at the end,
    in the order of the episodes. Raises InputError as `rollout` does, for a policy that cannot be sent, and where a process of a piece is ended by somebody
    else; a task then begins again, 3 times at most."""
    check_jobs(jobs)
    check_on_env_error(on_env_error)
    rows = policy.rows or num_envs or PIECE
    work = work_of(policy, env, rows, deterministic, observation, on_env_error)
    pieces = [tuple(episodes[first : first + rows]) for first in range(0, len(episodes), rows)]
    timing, plan, faults = timing or Timing(), Plan(episodes, on_episode), dict[int, list[EpisodeFault]]()
    lost = "a process that played episodes was ended, maybe for want of memory, or by an environment; use fewer jobs."
    with timing.adding("wall_seconds"), hands(partial(player, work), jobs, ray, lost) as others:
        timing.jobs = others.jobs
        for number, played in others.do(pieces):
            first = number * rows
            timing.add(played.timing)
            faults[number] = [replace(fault, episode=first + fault.episode) for fault in played.faults]
            for index, episode in played.episodes.items():
                plan.finish(first + index, episode)
            for fault in faults[number]:
                if fault.lost:
                    on_episode(fault.episode)
    for number in sorted(faults):
        for fault in faults[number]:
            plan.first_fault = plan.first_fault or fault
            on_fault(fault)
    return plan.gathered(policy)


def work_of(
    policy: Actor, env: Any, num_envs: int, deterministic: bool, observation: str | None, on_env_error: str
) -> Work:
    env = env or policy.data.env_spec
    maker(env)  # which refuses what is no environment
    if not isinstance(env, str):
        raise InputError(
            f"jobs make their environments from an id, and env is a {type(env).__name__}; register it, and give its id."
        )
    specs = specs_of(env)
    for spec in specs:
        if not isinstance(spec.entry_point, str):
            raise InputError(
                f"env {spec.id!r} is registered with an object of this process, which others cannot make; register it with an entry point in the form "
                '"module:Class", or leave jobs and ray out.'
            )
    return Work(SentPolicy.of(policy), env, specs, num_envs, deterministic, observation, on_env_error)
