"""Stitch: the best way is the first half of one recorded way and the second half of another, and is in no episode.

What is missing in supervised learning from returns [Brandfonbrener et al. 2022, arXiv:2206.01079; Kumar et al. 2022,
arXiv:2204.05618], made as small as it can be: two recorded ways share a passage, and the wanted one changes from one to the other in it."""

from collections import deque
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

MAZE = (
    "#######",
    "#A###B#",
    "# ### #",
    "#     #",
    "# ### #",
    "# ### #",
    "# ###D#",
    "# #####",
    "#C#####",
    "#######",
)
"""Ways are as wide as one cell. From A or C to the passage of row 3, along it, and up to B or down to D."""
STEP_REWARD = -1.0
GOAL_REWARDS = {"B": 10.0, "D": 20.0}
RECORDED_GOALS = {"A": "B", "C": "D"}
"""Where the recorded behaviours go from each start."""
BEST_GOAL = "D"
"""Where the best behaviour goes from either."""
STEP_LIMIT = 50
"""Steps after which an episode is cut off; the longest demonstration, C to D, takes 12."""

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""(row, column) by which the actions up, down, left and right move the agent."""

CELL_PIXELS = 12
FLOOR, WALL, AGENT = (230, 230, 230), (40, 40, 40), (200, 40, 40)
COLOURS = {"A": (150, 170, 200), "C": (150, 170, 200), "B": (230, 180, 30), "D": (40, 150, 80)}

Cell = tuple[int, int]
"""(row, column) in the maze; row 0 is at the top."""
PLACES: dict[str, Cell] = {
    name: (row, line.index(name)) for row, line in enumerate(MAZE) for name in COLOURS if name in line
}


def _neighbour(cell: Cell, move: Cell) -> Cell:
    """Where a move leads: the cell itself, when there is a wall."""
    row, column = cell[0] + move[0], cell[1] + move[1]
    return cell if MAZE[row][column] == "#" else (row, column)


def _steps_to(goal: Cell) -> dict[Cell, int]:
    """The fewest steps from every cell to the goal."""
    steps, waiting = {goal: 0}, deque([goal])
    while waiting:
        cell = waiting.popleft()
        for near in (_neighbour(cell, move) for move in MOVES):
            if near not in steps:
                steps[near] = steps[cell] + 1
                waiting.append(near)
    return steps


STEPS_TO = {name: _steps_to(PLACES[name]) for name in GOAL_REWARDS}


class Stitch(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Walk from A or C through a shared passage to B, which pays 10, or to D, which pays 20; every step costs 1.

    Action: Discrete(4): 0 up, 1 down, 2 left, 3 right, one cell a step; a move into a wall leaves the agent where it is.

    Observation: Box(0, 1, (2,), float32): the agent's row divided by 9 and its column divided by 6. It is the whole state: nothing
    says where an episode began.

    Reward: −1 a step; on reaching B 10 more, on reaching D 20 more.

    Start: A or C, drawn with equal probability in `reset`; the one named by `reset(options={"start": "A"})`, or by the argument
    `start` when the environment is made, in every episode.

    End: B or D is reached (termination). After 50 steps the episode is cut off (truncation: the time is not observed).

    Tests: stitching. `demonstrate` goes from A to B and from C to D, and never from A to D, though that is the best there is. To be
    evaluated with `start="A"` and the return 11 asked for. In the passage, a return-to-go that is high enough for D has been seen,
    but on episodes from C only; on the way to it from A, none has.

    Reference, returns of the shortest ways:

        A to B   2 in 8 steps     recorded                       C to D   8 in 12 steps    recorded
        A to D  11 in 9 steps     `demonstrate(best=True)`       C to B  −1 in 11 steps

    Versions: v0, the first."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, start: str | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode {render_mode!r} is not known; use None or one of {self.metadata['render_modes']}."
            )
        self.start = _checked(start)
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.steps = 0
        self.began = "A"
        self.agent = PLACES[self.began]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        drawn = "AC"[self.np_random.integers(2)]
        self.began = _checked((options or {}).get("start")) or self.start or drawn
        self.agent = PLACES[self.began]
        return self._observe(), {"start": self.began}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.agent = _neighbour(self.agent, MOVES[action])
        self.steps += 1
        paid = [value for name, value in GOAL_REWARDS.items() if self.agent == PLACES[name]]
        cut = not paid and self.steps >= STEP_LIMIT
        return self._observe(), STEP_REWARD + sum(paid), bool(paid), cut, {"start": self.began}

    def demonstrate(self, best: bool = False) -> int:
        """The next action of the recorded behaviour, A to B or C to D; with `best`, of the shortest way to D."""
        steps = STEPS_TO[BEST_GOAL if best else RECORDED_GOALS[self.began]]
        return min(range(len(MOVES)), key=lambda action: steps[_neighbour(self.agent, MOVES[action])])

    def render(self) -> npt.NDArray[np.uint8] | None:
        """(120, 84, 3) uint8: the maze, its starts blue, B yellow, D green, the agent red."""
        if self.render_mode is None:
            return None
        cells = np.array([[WALL if mark == "#" else COLOURS.get(mark, FLOOR) for mark in line] for line in MAZE])
        cells[self.agent] = AGENT
        return cells.astype(np.uint8).repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)

    def _observe(self) -> npt.NDArray[np.float32]:
        return np.array([self.agent[0] / (len(MAZE) - 1), self.agent[1] / (len(MAZE[0]) - 1)], np.float32)


def _checked(start: str | None) -> str | None:
    if start is not None and start not in RECORDED_GOALS:
        raise ValueError(f"start {start!r} is not in the maze; use one of {list(RECORDED_GOALS)}, or None to draw one.")
    return start
