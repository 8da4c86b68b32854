"""Dark Room: a goal that nobody shows. It must be found by its reward, and remembered.

The task of in-context reinforcement learning from Algorithm Distillation [Laskin et al. 2022, arXiv:2210.14215]: a policy that
knows many rooms, and not this one, has to explore first and to use what it found in the episodes that follow."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

ROOM_SIZE_CELLS = 9
"""The room is a square of so many cells a side."""
EPISODE_STEPS = 20
"""Steps from one beginning in the middle to the next."""
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""(row, column) by which the actions stay, up, down, left and right move the agent."""
STAY, UP, DOWN, LEFT, RIGHT = range(len(MOVES))

CELL_PIXELS = 12
FLOOR, SEEN, WALL = (120, 120, 120), (200, 200, 200), (40, 40, 40)
AGENT, GOAL = (200, 40, 40), (230, 180, 30)

Cell = tuple[int, int]
"""(row, column) in the room; row 0 is at the top."""
MIDDLE: Cell = (ROOM_SIZE_CELLS // 2, ROOM_SIZE_CELLS // 2)
CELLS = [(row, column) for row in range(ROOM_SIZE_CELLS) for column in range(ROOM_SIZE_CELLS)]
GOALS = [cell for cell in CELLS if cell != MIDDLE]
"""The 80 tasks. A policy shall be tested on goals that it was not trained on."""


class DarkRoom(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Find the goal of a dark room by its reward and stay there, for a trial of one or more episodes of 20 steps.

    Action: Discrete(5): 0 stay, 1 up, 2 down, 3 left, 4 right, one cell a step; a move into a wall leaves the agent where it is.

    Observation: Box(0, 1, (4,), float32)

        0-1  agent's row and column, divided by 8 (the last cell)
        2    the reward of the last step, 0 at the beginning of a trial
        3    1 at the beginning of an episode

    The goal is not in it, and `info["goal"]` tells; no policy may use it. The paper gives a model the rewards as tokens of their own
    and observations of two numbers; numbers 2 and 3 say the same to a model that reads observations and actions, as in RL²
    [Duan et al. 2016, arXiv:1611.02779].

    Reward: 1 for every step that ends at the goal, otherwise 0.

    Start: the middle, at the beginning of each episode. The goal is drawn by `reset`, uniformly from the other 80 cells, and stays for
    all episodes of the trial; it is that of `reset(options={"goal": (0, 8)})`, or the argument `goal`, where one is given.

    End: a trial has as many episodes as the argument `episodes` says, by default one, and is then cut off (truncation: the time is
    not observed). Between two episodes the agent is moved to the middle, and nothing ends.

    Tests: in-context learning, with `episodes` above 1; with one episode, acting under uncertainty.

    Reference, for a goal d steps from the middle: `demonstrate`, which knows the goal, has 21 − d in every episode (16.5 on the
    mean over the 80 goals). `demonstrate(explore=True)`, which does not, has 2.6 in the first episode of a trial and 21 − d in every
    one from the 6th on. Uniformly random actions have 0.23 (4,800 episodes).

    Versions: v0, the first."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, episodes: int = 1, goal: Sequence[int] | None = None, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode {render_mode!r} is not known; use None or one of {self.metadata['render_modes']}."
            )
        if episodes < 1:
            raise ValueError(f"episodes {episodes} is not a number of episodes; a trial has 1 or more.")
        self.episodes = episodes
        self.fixed_goal = None if goal is None else _checked(goal)
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self.steps = 0
        self.reward = 0.0
        self.agent = MIDDLE
        self.goal = GOALS[0]
        self.seen: set[Cell] = set()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.reward = 0.0
        self.agent = MIDDLE
        drawn = GOALS[self.np_random.integers(len(GOALS))]
        given = (options or {}).get("goal")
        self.goal = _checked(given) if given is not None else self.fixed_goal or drawn
        self.seen = {MIDDLE}
        return self._observe(), {"goal": self.goal}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        rows, columns = MOVES[action]
        self.agent = (_inside(self.agent[0] + rows), _inside(self.agent[1] + columns))
        self.seen.add(self.agent)
        self.reward = float(self.agent == self.goal)
        self.steps += 1
        ended = self.steps >= self.episodes * EPISODE_STEPS
        if not ended and self.steps % EPISODE_STEPS == 0:
            self.agent = MIDDLE
        return self._observe(), self.reward, False, ended, {"goal": self.goal}

    def demonstrate(self, explore: bool = False) -> int:
        """The next action of the best policy, which knows the goal: the shortest way to it, then stay.

        With `explore`, of one that knows only what it has seen in this trial: to the nearest cell it has not been in, and, once it has
        found the goal, to the goal. Episodes of a trial so played show learning, as the histories of the paper do."""
        if not explore or self.goal in self.seen:
            return _toward(self.agent, self.goal)
        unseen = [cell for cell in CELLS if cell not in self.seen]
        return _toward(self.agent, min(unseen, key=lambda cell: _distance(cell, self.agent)))

    def render(self) -> npt.NDArray[np.uint8] | None:
        """(132, 132, 3) uint8: the room, the cells of this trial's ways lit, the goal and the agent in it."""
        if self.render_mode is None:
            return None
        cells = np.full((ROOM_SIZE_CELLS + 2, ROOM_SIZE_CELLS + 2, 3), WALL, np.uint8)
        for row, column in CELLS:
            cells[1 + row, 1 + column] = SEEN if (row, column) in self.seen else FLOOR
        cells[1 + self.goal[0], 1 + self.goal[1]] = GOAL
        cells[1 + self.agent[0], 1 + self.agent[1]] = AGENT
        return cells.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)

    def _observe(self) -> npt.NDArray[np.float32]:
        last_cell = ROOM_SIZE_CELLS - 1
        begins = self.steps % EPISODE_STEPS == 0 and self.steps < self.episodes * EPISODE_STEPS
        return np.array([self.agent[0] / last_cell, self.agent[1] / last_cell, self.reward, begins], np.float32)


def _toward(agent: Cell, target: Cell) -> int:
    """The action of a shortest way, rows first; stay, where the agent is there already."""
    if target[0] != agent[0]:
        return DOWN if target[0] > agent[0] else UP
    if target[1] != agent[1]:
        return RIGHT if target[1] > agent[1] else LEFT
    return STAY


def _distance(one: Cell, other: Cell) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _inside(coordinate: int) -> int:
    """The nearest row or column of the room."""
    return min(max(coordinate, 0), ROOM_SIZE_CELLS - 1)


def _checked(goal: Sequence[int]) -> Cell:
    cell = tuple(goal)
    if cell not in GOALS:
        raise ValueError(
            f"goal {goal!r} cannot be the goal; give a row and a column from 0 to {ROOM_SIZE_CELLS - 1}, "
            f"other than the middle {MIDDLE}, where episodes begin."
        )
    return GOALS[GOALS.index(cell)]
