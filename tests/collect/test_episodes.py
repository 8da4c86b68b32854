"""Files of recorded episodes, from which an interrupted recording goes on."""

import numpy as np
import pytest
from gymnasium import spaces

from dtrl.collect.episodes import Episode, file_lengths, from_file, to_bytes
from dtrl.errors import InputError

SPACES = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "words": spaces.Text(5)}), spaces.Discrete(3)


def episode(seed, length):
    last = np.arange(length) == length - 1
    seen = {"x": np.full((length + 1, 2), seed, np.float32), "words": ["a" * (seed % 3 + 1)] * (length + 1)}
    return Episode(seed, seen, np.arange(length) % 3, np.ones(length), last, last & False)


def test_episodes_are_those_that_were_written(tmp_path):
    path = tmp_path / "some.npz"
    episodes = [episode(seed, length) for seed, length in ((1, 3), (2, 5), (7, 1))]
    path.write_bytes(to_bytes(episodes))
    assert file_lengths(path) == [3, 5, 1]
    for found, expected in zip(from_file(path, *SPACES), episodes, strict=True):
        assert found.seed == expected.seed
        assert found.observations["words"] == expected.observations["words"]
        np.testing.assert_array_equal(found.observations["x"], expected.observations["x"])
        for name in ("actions", "rewards", "terminations", "truncations"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    path.write_bytes(to_bytes([]))
    assert from_file(path, *SPACES) == []


@pytest.mark.parametrize("damage", ["cut", "no lengths", "negative lengths", "no rewards", "no seeds", "other lengths"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "some.npz"
    path.write_bytes(to_bytes([episode(1, 3), episode(2, 5)]))
    with np.load(path) as archive:
        arrays = dict(archive)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        change = {
            "no lengths": {"lengths": None},
            "negative lengths": {"lengths": -arrays["lengths"]},
            "no rewards": {"rewards": None},
            "no seeds": {"seeds": None},
            "other lengths": {"lengths": arrays["lengths"][:1]},
        }[damage]
        np.savez(path, **{name: value for name, value in (arrays | change).items() if value is not None})
    with pytest.raises(InputError, match=r"some\.npz"):
        from_file(path, *SPACES)
