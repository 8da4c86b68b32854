"""Minari datasets made here: from behaviour policies, as `dtrl datasets make` does, from trajectories such as
rollouts, and by recording an environment that somebody else acts in (`Recorder`).

A *recipe* is a TOML file of the folder datasets/ that says how a dataset is made: which environment, which algorithm is trained
to get policies of different quality, and how many episodes each behaviour policy plays. The same recipe gives the same arrays
again, on the same machine and with the same versions.

    id = "cartpole/tiny-v0"
    env = "CartPole-v1"
    seed = 0
    description = "PPO after 4,000 steps with a tenth of the actions random, and random actions alone."

    [algorithm]
    name = "PPO"
    timesteps = 4_000
    checkpoints = [4_000]

    [[behaviour]]
    policy = "checkpoint"
    checkpoint = 4_000
    episodes = 40
    epsilon = 0.1

    [[behaviour]]
    policy = "random"
    episodes = 10
"""

from dtrl.collect.making import make_dataset
from dtrl.collect.reading import list_recipes, load_recipe
from dtrl.collect.recipes import Algorithm, Behaviour, Recipe, Reference
from dtrl.collect.recorder import Recorder
from dtrl.collect.recording import write_minari
from dtrl.collect.variants import PolicyFile, resized, with_policies

__all__ = [
    "Algorithm",
    "Behaviour",
    "PolicyFile",
    "Recipe",
    "Recorder",
    "Reference",
    "list_recipes",
    "load_recipe",
    "make_dataset",
    "resized",
    "with_policies",
    "write_minari",
]
