"""Decision Transformers: reinforcement learning as sequence modelling.

An episode is a sequence. A causal model learns it with teacher forcing, loss −Σ log p(xₜ | x<ₜ), and acts when it is asked
for the next token, given the return that is wanted. The Decision Transformer [Chen et al. 2021, arXiv:2106.01345] is the
default preset.

    import dtrl

    trajectories = dtrl.load_trajectories("hopper/medium-v0")
    policy = dtrl.train(trajectories, updates=10_000, logdir="runs/hopper")
    report = dtrl.evaluate(policy, target_returns=[1800, 3600], episodes=100)

The letters of array axes, in every docstring of the package:

    B  windows or environments in a batch       L  tokens of a sequence (3 K for a Decision Transformer)
    T  steps of one episode                     D  width of a token
    K  context length: steps the model sees     E  episodes of a dataset
                                                N  steps of all episodes together

Importing dtrl registers its environments with Gymnasium and loads neither torch nor minari; the public names below are
imported when they are first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium

__version__ = "0.1.0"

# In a checkout envs/ lies beside dtrl/, in an install it is dtrl/envs/. With the checkout's root on the package's path
# `dtrl.envs` means the same folder in both, installed or not.
if (Path(__file__).parent.parent / "setup.cfg").is_file():
    __path__.append(str(Path(__file__).parent.parent))

# Minari writes the entry point into every dataset that is recorded, so a line here may be added but never changed.
ENVIRONMENTS = {
    "dtrl/Corridor-v0": "dtrl.envs.corridor:Corridor",
    "dtrl/DarkRoom-v0": "dtrl.envs.dark_room:DarkRoom",
    "dtrl/DelayedReward-v0": "dtrl.envs.delayed_reward:DelayedRewardEnv",
    "dtrl/KeyToDoor-v0": "dtrl.envs.key_to_door:KeyToDoor",
    "dtrl/Stitch-v0": "dtrl.envs.stitch:Stitch",
}

for _id, _entry_point in ENVIRONMENTS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=_entry_point)

if TYPE_CHECKING:
    from dtrl.acting import Policy, load_policy, rollout
    from dtrl.collect import Recorder
    from dtrl.errors import InputError
    from dtrl.evaluation import evaluate
    from dtrl.training import finetune, train
    from dtrl.trajectories import Trajectories, load_trajectories
else:
    _HOME_OF = {
        "InputError": "dtrl.errors",
        "Policy": "dtrl.acting",
        "Recorder": "dtrl.collect",
        "Trajectories": "dtrl.trajectories",
        "evaluate": "dtrl.evaluation",
        "finetune": "dtrl.training",
        "load_policy": "dtrl.acting",
        "load_trajectories": "dtrl.trajectories",
        "rollout": "dtrl.acting",
        "train": "dtrl.training",
    }

    def __getattr__(name):
        if name not in _HOME_OF:
            raise AttributeError(
                f"module 'dtrl' has no attribute {name!r}; its public names are {', '.join(sorted(_HOME_OF))}"
            )
        globals()[name] = value = getattr(import_module(_HOME_OF[name]), name)
        return value


__all__ = [
    "ENVIRONMENTS",
    "InputError",
    "Policy",
    "Recorder",
    "Trajectories",
    "__version__",
    "evaluate",
    "finetune",
    "load_policy",
    "load_trajectories",
    "rollout",
    "train",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
