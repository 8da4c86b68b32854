"""Corridor: which way to go, and how far, is nowhere but in the return that is asked for.

The identity test of return-conditioned learning, as Stable-Baselines3's identity environments are of reinforcement learning: the
least that a Decision Transformer [Chen et al. 2021, arXiv:2106.01345] must be able to do, and that nothing else can."""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

FARTHEST_RETURN = 8
"""Every whole return from −8 to 8 can be achieved from every start."""
LAST_CELL = 2 * FARTHEST_RETURN
"""Cells are numbered from −16 (left end) to 16; an episode starts between −8 and 8, so that no wall is in the way."""
FEWEST_STEPS, MOST_STEPS = 10, 16
"""Steps of an episode; every return can be achieved in the fewest, with two steps left to stay."""

MOVES = (-1, 0, 1)
"""Cells by which the actions left, stay and right move the agent."""
LEFT, STAY, RIGHT = range(len(MOVES))

CELL_PIXELS = 12
FLOOR, WALL, AGENT, START = (230, 230, 230), (40, 40, 40), (200, 40, 40), (150, 170, 200)


class Corridor(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Walk left or right in a corridor, or stay; every cell to the right pays 1, every cell to the left costs 1.

    Action: Discrete(3): 0 left, 1 stay, 2 right. A walk into the wall at either end leaves the agent where it is.

    Observation: Box(-1, 1, (1,), float32): the agent's cell, −16 to 16, divided by 16.

    Reward: the change of the cell: −1, 0 or 1. So a return is where the agent ended less where it started, whatever the way.

    Start: a cell from −8 to 8, drawn uniformly in `reset`. Then the wish of the demonstrator, `asked_return`: a whole number from
    −8 to 8, drawn uniformly and independently of the start, or given: `reset(options={"asked_return": 3})`. It is not observed;
    `info["asked_return"]` tells, and no policy may use it.

    End: the corridor closes after 10 to 16 steps, drawn uniformly in `reset` and not observed (termination). It never truncates.

    Tests: obedience. The right action is the sign of the return-to-go, and nothing else says anything about it: every start allows
    every return from −8 to 8, and each is as good as another. A policy that does not look at the return it is asked for does the
    same for all of them, so that asked and achieved returns are independent and have no rank correlation.

    Reference: `demonstrate` achieves `asked_return` exactly, in its first |asked_return| steps, and stays.

    Versions: v0, the first."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode {render_mode!r} is not known; use None or one of {self.metadata['render_modes']}."
            )
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.steps = 0
        self.last_step = MOST_STEPS
        self.start = 0
        self.cell = 0
        self.asked_return = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.start, drawn = self.np_random.integers(-FARTHEST_RETURN, FARTHEST_RETURN, 2, endpoint=True).tolist()
        self.last_step = int(self.np_random.integers(FEWEST_STEPS, MOST_STEPS, endpoint=True))
        self.cell = self.start
        asked = (options or {}).get("asked_return", drawn)
        if asked not in range(-FARTHEST_RETURN, FARTHEST_RETURN + 1):
            raise ValueError(
                f"asked_return {asked!r} cannot be achieved; "
                f"ask for a whole number from {-FARTHEST_RETURN} to {FARTHEST_RETURN}."
            )
        self.asked_return = int(asked)
        return self._observe(), {"asked_return": self.asked_return}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        before = self.cell
        self.cell = min(max(before + MOVES[action], -LAST_CELL), LAST_CELL)
        self.steps += 1
        closed = self.steps >= self.last_step
        return self._observe(), float(self.cell - before), closed, False, {"asked_return": self.asked_return}

    def demonstrate(self) -> int:
        """The action that leads to `asked_return` in the fewest steps."""
        return STAY + int(np.sign(self.asked_return - (self.cell - self.start)))

    def render(self) -> npt.NDArray[np.uint8] | None:
        """(36, 420, 3) uint8: the corridor from its left end to its right, the start and the agent in it."""
        if self.render_mode is None:
            return None
        cells = np.full((3, 2 * LAST_CELL + 3, 3), WALL, np.uint8)
        cells[1, 1:-1] = FLOOR
        cells[1, 1 + LAST_CELL + self.start] = START
        cells[1, 1 + LAST_CELL + self.cell] = AGENT
        return cells.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)

    def _observe(self) -> npt.NDArray[np.float32]:
        return np.array([self.cell / LAST_CELL], np.float32)
