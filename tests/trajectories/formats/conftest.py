"""Writers of every format, by the tools that users have (h5py, pickle, numpy, csv, pyarrow), from the same trajectories."""

import csv
import pickle

import h5py
import numpy as np
import pytest


def steps_of(data):
    """The flat columns of trajectories, with next observations, as D4RL names them."""
    following = np.concatenate([data.episode(i)["observations"][1:] for i in range(data.num_episodes)])
    return {
        "observations": np.array(data.observations),
        "next_observations": following,
        "actions": np.array(data.actions),
        "rewards": np.array(data.rewards),
        "terminals": np.array(data.terminations),
        "timeouts": np.array(data.truncations),
    }


def write_d4rl(path, data):
    with h5py.File(path, "w") as file:
        for name, values in steps_of(data).items():
            file[name] = values
        file["infos/qpos"] = np.zeros((data.num_steps, 2))
        file["metadata/algorithm"] = "SAC"


def write_d3rlpy(path, data):
    """Version 2.1: one dataset an episode and column; rewards and discrete actions are (T, 1)."""
    with h5py.File(path, "w") as file:
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"], file["version"] = data.num_episodes, "2.1"
        for i in range(data.num_episodes):
            episode = data.episode(i)
            file[f"observations_{i}"] = episode["observations"][:-1]
            file[f"actions_{i}"] = episode["actions"].reshape(len(episode["actions"]), -1)
            file[f"rewards_{i}"] = episode["rewards"].reshape(-1, 1)
            file[f"terminated_{i}"] = bool(episode["terminations"][-1])


def write_d3rlpy_flat(path, data):
    """Version 1: `terminals` is set at the last two rows of an episode that terminated."""
    steps, ends = steps_of(data), np.zeros(data.num_steps, np.float32)
    ends[data.episode_ends - 1] = 1
    terminals = steps["terminals"].astype(np.float32)
    terminals[:-1] = np.maximum(terminals[:-1], terminals[1:])
    discrete = steps["actions"].ndim == 1
    with h5py.File(path, "w") as file:
        file["observations"], file["rewards"] = steps["observations"], steps["rewards"]
        file["actions"] = steps["actions"].astype(np.float32)
        file["terminals"], file["episode_terminals"], file["discrete_action"] = terminals, ends, discrete


def dicts_of(data):
    steps = steps_of(data)
    del steps["timeouts"]
    bounds = list(zip(data.episode_starts, data.episode_ends, strict=True))
    return [{name: values[start:end].copy() for name, values in steps.items()} for start, end in bounds]


def write_pickle(path, data):
    path.write_bytes(pickle.dumps(dicts_of(data)))


def write_npz(path, data):
    steps = steps_of(data)
    del steps["next_observations"]
    np.savez_compressed(path, **steps, episode_starts=data.episode_starts, final_observations=data.final_observations)


def table_of(data):
    steps = steps_of(data)
    table = {"episode": np.repeat(np.arange(data.num_episodes), data.episode_lengths)}
    for name in ("observations", "next_observations", "actions"):
        for j, column in enumerate(steps[name].reshape(data.num_steps, -1).T):
            table[f"{name[:-1]}_{j}"] = column
    return table | {"reward": steps["rewards"], "terminal": steps["terminals"], "timeout": steps["timeouts"]}


def write_csv(path, data):
    table = table_of(data)
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def write_parquet(path, data):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table(table_of(data)), path, row_group_size=7)


WRITERS = {
    "d4rl": write_d4rl,
    "d3rlpy": write_d3rlpy,
    "d3rlpy, flat": write_d3rlpy_flat,
    "pickle": write_pickle,
    "npz": write_npz,
    "csv": write_csv,
    "parquet": write_parquet,
}
"""Format (and layout) → what writes it."""
WITHOUT_FINAL = {"d3rlpy", "d3rlpy, flat"}
"""These files do not have the observation after an episode's last step."""


@pytest.fixture(scope="session")
def writers():
    return WRITERS


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


@pytest.fixture
def without_final(kind):
    return kind in WITHOUT_FINAL


@pytest.fixture
def write(tmp_path):
    """Writes trajectories in a format, under a name that does not tell which, and returns the path."""

    def write(data, kind):
        path = tmp_path / "mine.data"
        WRITERS[kind](path if kind != "npz" else path.with_suffix(".npz"), data)
        return path if kind != "npz" else path.with_suffix(".npz").rename(path)

    return write


@pytest.fixture(scope="session")
def episode_dicts():
    return dicts_of
