"""Policies that act: contexts, the policy itself, and rollouts in vector environments."""

from dtrl.acting.context import CONTEXTS
from dtrl.acting.environments import make_environment
from dtrl.acting.policy import Policy
from dtrl.acting.rollouts import Episode, rollout
from dtrl.acting.runs import load_policy
from dtrl.acting.state import PolicyState

__all__ = ["CONTEXTS", "Episode", "Policy", "PolicyState", "load_policy", "make_environment", "rollout"]
