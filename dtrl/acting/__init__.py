"""Policies that act: contexts, the policy itself, engines that run it elsewhere, and rollouts in vector environments.

Names are imported when they are asked for: a policy that another engine runs needs no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtrl.acting.actor import Actor
    from dtrl.acting.context import CONTEXTS
    from dtrl.acting.environments import make_environment
    from dtrl.acting.exported import ExportedPolicy
    from dtrl.acting.faults import EpisodeFault
    from dtrl.acting.plan import Episode
    from dtrl.acting.policy import Policy
    from dtrl.acting.rollouts import rollout
    from dtrl.acting.runs import load_policy
    from dtrl.acting.state import PolicyState
    from dtrl.acting.timing import Timing

HOMES = {
    "Actor": "actor",
    "CONTEXTS": "context",
    "Episode": "plan",
    "EpisodeFault": "faults",
    "ExportedPolicy": "exported",
    "Policy": "policy",
    "PolicyState": "state",
    "Timing": "timing",
    "load_policy": "runs",
    "make_environment": "environments",
    "rollout": "rollouts",
}
"""Public name → the module of this folder that defines it."""

__all__ = [
    "CONTEXTS",
    "Actor",
    "Episode",
    "EpisodeFault",
    "ExportedPolicy",
    "Policy",
    "PolicyState",
    "Timing",
    "load_policy",
    "make_environment",
    "rollout",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
