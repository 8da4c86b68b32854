"""Key-to-Door: an action of the first room decides the reward of the last, and nothing in between says so.

The credit-assignment task of the Decision Transformer paper [Chen et al. 2021, §5.4, arXiv:2106.01345], which simplifies that
of Mesnard et al. [2020, arXiv:2011.09464]: their apples are left out, so that the middle room holds nothing at all."""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

ROOM_SIZE_CELLS = 6
"""Every room is a square of so many cells a side."""
ROOM_STEPS = 12
"""Steps spent in a room; then the agent is moved to the next. The farthest key or door is 2 * (6 - 1) = 10 steps away."""
KEY_ROOM, EMPTY_ROOM, DOOR_ROOM = ROOMS = (0, 1, 2)

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""(row, column) by which the actions up, down, left and right move the agent."""
UP, DOWN, LEFT, RIGHT = range(len(MOVES))

CELL_PIXELS = 12
FLOOR, DARK_FLOOR, WALL = (230, 230, 230), (120, 120, 120), (40, 40, 40)
AGENT, KEY, DOOR = (200, 40, 40), (230, 180, 30), (90, 60, 160)

Cell = tuple[int, int]
"""(row, column) in a room; row 0 is at the top."""


class KeyToDoor(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Fetch the key in the first room, cross an empty one, open the door in the third; 36 steps at most.

    Action: Discrete(4): 0 up, 1 down, 2 left, 3 right, one cell a step; a move into a wall leaves the agent where it is.

    Observation: Box(0, 1, (9,), float32)

        0-2  room, one-hot: key room, empty room, door room
        3-4  agent's row and column, divided by 5 (the last cell of a room)
        5    1 while the room's object is there: the key until it is taken, the door always, nothing in the empty room
        6-7  the object's row and column, divided by 5; 0 when there is none
        8    steps left in this room, divided by 12

    Whether the agent holds the key is not in it, as in the paper: after the first room two episodes that differ only in the key
    look the same, and the return can be told only by remembering the first room. `info["has_key"]` tells; no policy may use it.

    Reward: 1 on reaching the door with the key, otherwise 0; so a return is 0 or 1.

    Start: the key, the door and the agent's first cell in each of the three rooms are drawn uniformly in `reset`, the first cell
    never on the key or the door. They depend on the seed alone: nothing done in the empty room changes what comes after it.

    End: the door is reached, with or without the key, or the 12 steps of the door room are over. Both are terminations: the
    time left is part of the observation and no reward can follow, so nothing is cut off. It never truncates.

    Tests: credit assignment over a long time, and, in estimating the return, memory of the first room.

    Reference: uniformly random actions succeed in 3.1 % of 20,000 episodes (623 of them; the paper's table says 3.1 %);
    `demonstrate` succeeds always, in 25 to 34 steps.

    Versions: v0, the first."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode {render_mode!r} is not known; use None or one of {self.metadata['render_modes']}."
            )
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = spaces.Box(0.0, 1.0, (9,), np.float32)
        self.steps = 0
        self.has_key = False
        self.agent: Cell = (0, 0)
        self.key: Cell = (0, 0)
        self.door: Cell = (0, 0)
        self.first_cells: list[Cell] = [self.agent] * len(ROOMS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.has_key = False
        cells = [self._draw_two_cells() for _ in ROOMS]
        self.first_cells = [first for first, _ in cells]
        self.key, self.door = cells[KEY_ROOM][1], cells[DOOR_ROOM][1]
        self.agent = self.first_cells[KEY_ROOM]
        return self._observe(), {"has_key": self.has_key}

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        room = self.room
        rows, columns = MOVES[action]
        self.agent = (_inside(self.agent[0] + rows), _inside(self.agent[1] + columns))
        self.has_key |= room == KEY_ROOM and self.agent == self.key
        opened = room == DOOR_ROOM and self.agent == self.door
        self.steps += 1
        terminated = opened or self.steps == len(ROOMS) * ROOM_STEPS
        if not terminated and self.room != room:
            self.agent = self.first_cells[self.room]
        return self._observe(), float(opened and self.has_key), terminated, False, {"has_key": self.has_key}

    @property
    def room(self) -> int:
        """0 key room, 1 empty room, 2 door room; the door room still after its last step."""
        return min(self.steps // ROOM_STEPS, DOOR_ROOM)

    def demonstrate(self) -> int:
        """An action of an optimal policy: the shortest way to the key, then to the door; up where nothing matters."""
        target = self._visible_object()
        if target is None:
            return UP
        if target[0] != self.agent[0]:
            return DOWN if target[0] > self.agent[0] else UP
        return RIGHT if target[1] > self.agent[1] else LEFT

    def render(self) -> npt.NDArray[np.uint8] | None:
        """(96, 264, 3) uint8: the three rooms side by side, the agent's lit; a key in the wall above it while it holds one."""
        if self.render_mode is None:
            return None
        stride = ROOM_SIZE_CELLS + 1
        cells = np.full((ROOM_SIZE_CELLS + 2, len(ROOMS) * stride + 1, 3), WALL, np.uint8)
        for room in ROOMS:
            floor = FLOOR if room == self.room else DARK_FLOOR
            cells[1 : 1 + ROOM_SIZE_CELLS, 1 + room * stride : (room + 1) * stride] = floor
        if not self.has_key:
            cells[self._corner(KEY_ROOM, self.key)] = KEY
        cells[self._corner(DOOR_ROOM, self.door)] = DOOR
        row, column = self._corner(self.room, self.agent)
        cells[row, column] = AGENT
        if self.has_key:
            cells[0, column] = KEY
        return cells.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)

    def _corner(self, room: int, cell: Cell) -> tuple[int, int]:
        """Where a cell of a room stands in the picture, (row, column) in cells, walls included."""
        return 1 + cell[0], 1 + room * (ROOM_SIZE_CELLS + 1) + cell[1]

    def _draw_two_cells(self) -> tuple[Cell, Cell]:
        """Two different cells of a room, uniformly drawn."""
        one, other = self.np_random.choice(ROOM_SIZE_CELLS**2, size=2, replace=False).tolist()
        return divmod(one, ROOM_SIZE_CELLS), divmod(other, ROOM_SIZE_CELLS)

    def _visible_object(self) -> Cell | None:
        """The cell of the key in the key room until it is taken, and of the door in the door room; otherwise None."""
        if self.room == KEY_ROOM and not self.has_key:
            return self.key
        return self.door if self.room == DOOR_ROOM else None

    def _observe(self) -> npt.NDArray[np.float32]:
        last_cell = ROOM_SIZE_CELLS - 1
        target = self._visible_object()
        observation = np.zeros(9, np.float32)
        observation[self.room] = 1
        observation[3] = self.agent[0] / last_cell
        observation[4] = self.agent[1] / last_cell
        if target is not None:
            observation[5] = 1
            observation[6] = target[0] / last_cell
            observation[7] = target[1] / last_cell
        observation[8] = 1 - (self.steps - self.room * ROOM_STEPS) / ROOM_STEPS
        return observation


def _inside(coordinate: int) -> int:
    """The nearest row or column of a room."""
    return min(max(coordinate, 0), ROOM_SIZE_CELLS - 1)
