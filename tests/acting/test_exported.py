"""Exported policies act as the policies that they come from: over whole episodes, their first K steps and staggered resets included."""

import argparse
import copy
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

import dtrl
from dtrl.acting import ExportedPolicy
from dtrl.acting.artefact import load_arrays, save_arrays
from dtrl.acting.engines import ENGINES, aoti_engine, onnx_engine, operations
from dtrl.cli import make_parser
from dtrl.config import DecodingConfig
from dtrl.errors import InputError
from dtrl.spaces import flatten, stack
from dtrl.trajectories import Trajectories

VECTOR, ARM = (
    spaces.Box(-np.inf, np.inf, (3,)),
    spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 0.5], np.float32)),
)
SAMPLE = DecodingConfig(strategy="sample", temperature=0.8)
STEPS, ROWS = 23, 3
BANDED = {"attention": "banded"}
"""One program, where a context of blocks has three: for the cases in which the context is not what differs."""
CASES = {
    "vector": (VECTOR, ARM, {}),
    "one step": (VECTOR, ARM, {"context_length": 1}),
    "five steps": (VECTOR, ARM, {"context_length": 5}),
    "banded": (VECTOR, ARM, BANDED),
    "banded, modern, shared heads": (VECTOR, ARM, {"trunk": "modern", "kv_heads": 1, **BANDED}),
    "modern": (VECTOR, ARM, {"trunk": "modern"}),
    "full": (VECTOR, ARM, {"attention": "full", "context_length": 30}),
    "gelu": (VECTOR, ARM, {"activation": "gelu", **BANDED}),
    "gaussian": (VECTOR, ARM, {"head": "gaussian", **BANDED}),
    "squashed": (VECTOR, ARM, {"head": "tanh_gaussian", **BANDED}),
    "bc": (VECTOR, ARM, {"preset": "bc"}),
    "discrete": (spaces.Discrete(5, start=2), spaces.Discrete(3, start=-1), {}),
    "from four": (VECTOR, spaces.Discrete(3, start=4), BANDED),
    "choices": (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([[2, 3], [4, 2]]), BANDED),
    "bits": (spaces.MultiBinary(3), spaces.MultiBinary(4), BANDED),
    "images": (spaces.Box(0, 255, (6, 5, 3), np.uint8), spaces.Discrete(4), BANDED),
    "patches": (spaces.Box(0, 255, (40, 36, 3), np.uint8), spaces.Discrete(4), {"image_encoder": "patch", **BANDED}),
    "parts": (spaces.Dict(a=VECTOR, goal=spaces.Discrete(3), word=spaces.Text(4, charset="abc")), spaces.Tuple([ARM, spaces.Discrete(3)]), BANDED),
}  # fmt: skip


def some_slow(cases, quick):
    """Names of cases as parameters; an export takes seconds, so all but a few are left out by `make fast`."""
    return [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in cases]


@pytest.fixture(scope="module")
def policy_for(untrained_policy):
    """Makes a policy with large weights for two spaces, from samples of them."""

    def make(observation_space=VECTOR, action_space=ARM, **options):
        observation_space.seed(0)
        action_space.seed(0)
        episodes = [
            {
                "observations": stack(observation_space, [observation_space.sample() for _ in range(length + 1)]),
                "actions": stack(action_space, [action_space.sample() for _ in range(length)]),
                "rewards": np.linspace(-1, 1, length) + length,
                "terminations": np.arange(length) == length - 1,
                "truncations": np.zeros(length, dtype=bool),
            }
            for length in (12, 25, 9)
        ]
        data = Trajectories.from_episodes(episodes, observation_space, action_space)
        return untrained_policy(data, **{"heads": 2, **options})

    return make


@pytest.fixture(scope="module")
def pair_of(policy_for):
    """Gives a case's policy, with the context of an export, and its export for NumPy. Tracing takes seconds, and is done once: no test changes them."""

    @functools.cache
    def traced(case):
        observation_space, action_space, options = CASES[case]
        policy = policy_for(observation_space, action_space, **options)
        return cached(policy), ExportedPolicy.of(policy, "numpy")

    def make(case="vector"):
        policy, exported = traced(case)
        return policy.variant(), exported.variant()

    return make


def cached(policy):
    """The policy with a context that can be exported."""
    return policy.variant(context="block") if policy.context == "window" and policy.model.backbone.memory else policy


def graph_of(exported):
    """The export for `graph`, which holds the same program as that for NumPy."""
    return ExportedPolicy({**exported.document, "engine": "graph"}, exported.arrays)


def largest_difference(one, other, rows=ROWS, steps=STEPS, deterministic=True, seed=0):
    """Of two policies' actions in env units, fed the same observations and rewards, with episodes that begin at different steps."""
    space, random = one.observation_space, np.random.default_rng(seed)
    space.seed(seed)
    states = [policy.initial_state(rows, [5.0 + i for i in range(rows)]) for policy in (one, other)]
    worst = 0.0
    for _ in range(steps):
        observation = stack(space, [space.sample() for _ in range(rows)])
        first = random.random(rows) < 0.1
        actions = [
            flatten(one.action_space, policy.predict(observation, state, first, deterministic)[0])
            for policy, state in zip((one, other), states, strict=True)
        ]
        for path, ours in actions[0].items():
            theirs = actions[1][path]
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            worst = max(worst, float(np.abs(ours.astype(float) - theirs).max()))
        rewards = random.random(rows)
        for state in states:
            state.reward += rewards
    return worst


@pytest.fixture
def graph_without_a_graph(monkeypatch):
    """The graph engine on the CPU: it runs what it would capture."""
    monkeypatch.setattr(ENGINES["graph"], "device", "cpu")


@pytest.mark.usefixtures("graph_without_a_graph")
@pytest.mark.parametrize("case", some_slow(CASES, quick=("vector",)))
def test_numpy_and_what_graph_captures_act_as_pytorch(pair_of, case):
    policy, exported = pair_of(case)
    graph = graph_of(exported)
    assert (exported.context, exported.context_length) == (policy.context, policy.context_length)
    for rows in (1, ROWS):
        assert largest_difference(policy, exported, rows) <= 1e-5
        assert largest_difference(policy, graph, rows) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_graphs_act_as_pytorch(pair_of, case, cuda):
    policy, exported = pair_of(case)
    graph = graph_of(exported)
    for rows in (1, ROWS):
        assert largest_difference(policy, graph, rows) <= 1e-4
    state, space = graph.initial_state(ROWS), graph.observation_space
    for _ in range(STEPS):
        graph.predict(stack(space, [space.sample() for _ in range(ROWS)]), state)
    assert any(isinstance(made, torch.cuda.CUDAGraph) for made in state.context.graphs.values())


@pytest.mark.parametrize("case", CASES)
def test_the_gpu_acts_as_the_processor(pair_of, case, cuda):
    policy = pair_of(case)[0]
    on_gpu = copy.deepcopy(policy).to(cuda)
    for rows in (1, ROWS):
        assert largest_difference(policy, on_gpu, rows) <= 1e-4


@pytest.mark.parametrize(
    "case",
    some_slow(("vector", "gaussian", "squashed", "discrete", "choices", "bits", "parts"), quick=("vector",)),
)
def test_numpy_draws_what_pytorch_draws(pair_of, case):
    policy, exported = (acts.variant(decoding=SAMPLE) for acts in pair_of(case))
    assert largest_difference(policy, exported, deterministic=False) <= 1e-5
    if case != "vector":  # which is one point
        hotter = policy.variant(decoding=DecodingConfig(strategy="sample", temperature=3.0))
        assert largest_difference(policy, hotter, deterministic=False) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vector", "banded, modern, shared heads", "full", "parts", "bc"])
def test_onnx_acts_as_pytorch(policy_for, case):
    policy = policy_for(*CASES[case][:2], **CASES[case][2])
    exported = ExportedPolicy.of(policy, "onnx")
    for rows in (1, ROWS):
        assert largest_difference(cached(policy), exported, rows) <= 1e-5


@pytest.mark.usefixtures("graph_without_a_graph")
@pytest.mark.parametrize("case", some_slow(("vector", "one step", "banded", "full", "parts"), quick=("vector",)))
def test_what_graph_captures_waits_for_nothing_and_stays_where_it_is(pair_of, case, nothing_read_back):
    exported = graph_of(pair_of(case)[1])
    state = exported.initial_state(ROWS)
    call, kinds = state.context, set()
    whole = call.whole

    def watched(kind):
        kinds.add(kind)
        with nothing_read_back():
            whole(kind)

    call.whole = watched
    space = exported.observation_space

    def act(some):
        exported.predict(stack(space, [space.sample() for _ in range(ROWS)]), state, np.array(some))
        parts = [*call.host, *(part for parts in call.heads.values() for part in parts), call.tokens]
        return [part.data_ptr() for part in (parts if exported.context == "full" else [*parts, call.keys_values])]

    places = act([True] * ROWS)
    for step in range(2, STEPS):
        assert act([step == 8, False, False]) == places
    assert kinds == ({"step", "refill", "mixed"} if exported.context == "block" else {"step"})


@pytest.mark.usefixtures("graph_without_a_graph")
def test_a_saved_graph_is_data(policy_for, tmp_path):
    exported = ExportedPolicy.of(policy_for(preset="bc"), "graph")
    exported.save(tmp_path / "policy.safetensors")
    loaded = dtrl.load_policy(tmp_path / "policy.safetensors")
    assert loaded.engine_name == "graph"
    assert largest_difference(exported, loaded) == 0
    arrays, document = load_arrays(tmp_path / "policy.safetensors")
    document["programs"]["step"]["nodes"][0][0] = "aten.set_.source_Tensor"
    save_arrays(tmp_path / "policy.safetensors", arrays, document)
    with pytest.raises(InputError, match=r"does not know the operation aten\.set_"):
        dtrl.load_policy(tmp_path / "policy.safetensors")


@pytest.mark.slow
def test_aoti_acts_as_pytorch(policy_for, monkeypatch, tmp_path):
    quick = {
        name: on for name, on in aoti_engine.OPTIONS.items() if "autotune" not in name
    }  # timing kernels takes minutes
    monkeypatch.setattr(aoti_engine, "OPTIONS", quick)
    policy = policy_for(attention="banded")
    exported = ExportedPolicy.of(policy, "aoti", rows=2)
    assert largest_difference(policy, exported, 2) <= 1e-5
    exported.save(tmp_path / "policy.safetensors")
    assert largest_difference(policy, dtrl.load_policy(tmp_path / "policy.safetensors", engine="aoti"), 2) <= 1e-5
    with pytest.raises(InputError, match=r"holds machine code, which loading it runs.*--engine aoti"):
        dtrl.load_policy(tmp_path / "policy.safetensors")


@pytest.mark.parametrize("load", [dtrl.load_policy, ExportedPolicy.load])
def test_machine_code_is_not_touched_unless_it_is_asked_for(pair_of, monkeypatch, tmp_path, load):
    """Also where a file says only later, by a hash that fits, that it is some."""
    path = tmp_path / "policy.safetensors"
    pair_of()[1].save(path)
    arrays, document = load_arrays(path)
    save_arrays(path, arrays, {**document, "engine": "aoti"})
    loaded = []
    monkeypatch.setitem(ENGINES, "aoti", lambda parts: loaded.append(parts))
    with pytest.raises(InputError, match=r"holds machine code, which loading it runs.*--engine aoti"):
        load(path)
    assert not loaded
    load(path, engine="aoti")
    assert len(loaded) == 1


@pytest.mark.slow
def test_the_number_of_environments_may_be_fixed(policy_for):
    policy = policy_for().variant(context="block")
    exported = ExportedPolicy.of(policy, "numpy", rows=ROWS)
    assert largest_difference(policy, exported) <= 1e-5  # some rows refill while others do not
    with pytest.raises(InputError, match="exported for 3 environments at a time, and is asked for 7"):
        exported.initial_state(7)


def test_a_cached_step_is_the_model_and_not_only_the_policy(pair_of):
    """A wrong past would show in the actions; here it is made wrong."""
    _, exported = pair_of()
    state = exported.initial_state(ROWS)
    observation = np.ones((ROWS, 3), np.float32)
    exported.predict(observation, state)
    state.context.past.keys_values[:, :, :, 0] += 1
    other = exported.initial_state(ROWS)
    exported.predict(observation, other)
    assert np.abs(exported.predict(observation, state)[0] - exported.predict(observation, other)[0]).max() > 1e-3


def test_the_file_needs_no_torch(pair_of, tmp_path):
    policy, exported = (acts.variant(target_return=7.0) for acts in pair_of())
    exported.save(tmp_path / "policy.safetensors")
    code = """
import sys
sys.modules["torch"] = None  # an import of it fails
import json, numpy as np, dtrl
policy = dtrl.load_policy(sys.argv[1])
policy.reset()
actions = [policy.act(np.full(3, t, np.float32), reward=0.5).tolist() for t in range(12)]
print(json.dumps([policy.target_return, actions]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "policy.safetensors")], capture_output=True, text=True, check=True
    )
    target, actions = json.loads(done.stdout)
    policy.reset()
    expected = [policy.act(np.full(3, t, np.float32), reward=0.5) for t in range(12)]
    assert target == 7.0
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_a_saved_export_is_what_was_exported(pair_of, tmp_path):
    _, exported = pair_of("from four")
    exported.variant(target_return=3.0).save(tmp_path / "policy.safetensors")
    loaded = dtrl.load_policy(tmp_path / "policy.safetensors", decoding=SAMPLE)
    assert largest_difference(exported, loaded) == 0
    assert (loaded.target_return, loaded.decoding) == (3.0, SAMPLE)
    assert dtrl.load_policy(tmp_path / "policy.safetensors", engine="numpy", target_return=4.0).target_return == 4.0


def test_an_export_of_a_version_that_had_the_option_expectile_acts_as_before(pair_of):
    _, exported = pair_of("from four")
    document = {**exported.document, "model": {**exported.document["model"], "expectile": None}}
    old = ExportedPolicy(document, exported.arrays, target_return=exported.target_return)
    assert old.config == exported.config
    assert largest_difference(exported, old) == 0


def test_masks_are_obeyed(pair_of):
    _, exported = pair_of("from four")
    observation = np.zeros((2, 3), np.float32)
    allowed = np.array([[False, True, False], [False, False, True]])
    for deterministic in (True, False):
        assert exported.predict(observation, deterministic=deterministic, action_masks=allowed)[0].tolist() == [5, 6]
    with pytest.raises(InputError, match="action mask of environment 1 allows no value"):
        exported.predict(observation, action_masks=allowed & [[True] * 3, [False] * 3])


def test_an_export_is_evaluated_as_the_policy_is(scripted_env, pair_of):
    class FromFour(scripted_env):
        action_space = spaces.Discrete(3, start=4)

    reports = [dtrl.evaluate(acts, [1.0, 3.0], episodes=5, env=FromFour, num_envs=3) for acts in pair_of("from four")]
    assert reports[0].targets == reports[1].targets


def test_an_overflow_does_not_outlive_its_episode(pair_of):
    _, exported = pair_of()
    state = exported.initial_state(2)
    with np.errstate(all="ignore"):
        exported.predict(np.full((2, 3), 3e38, np.float32), state)
        exported.predict(np.zeros((2, 3), np.float32), state)
        actions, _ = exported.predict(np.zeros((2, 3), np.float32), state, episode_start=[True, True])
    assert np.isfinite(actions).all()


# Bad input


def test_cuts_of_continuous_actions_are_refused(pair_of):
    exported = pair_of()[1].variant(decoding=DecodingConfig(strategy="sample", top_k=3))
    with pytest.raises(InputError, match="top_k cut a list of tokens"):
        exported.predict(np.zeros(3, np.float32), deterministic=False)


def test_what_is_a_part_of_an_export_cannot_be_changed(policy_for, pair_of, tmp_path):
    policy, (_, exported) = policy_for(), pair_of()
    with pytest.raises(InputError, match="context is a part of an export"):
        exported.variant(context="full")
    with pytest.raises(InputError, match="replay the policy that it was made from"):
        exported.replay(None)
    with pytest.raises(InputError, match="1 environment or more at a time, not 0"):
        ExportedPolicy.of(policy, "numpy", rows=0)
    policy.save(tmp_path / "policy.safetensors")
    with pytest.raises(InputError, match="context window recomputes everything"):
        dtrl.load_policy(tmp_path / "policy.safetensors", engine="numpy", context="window")
    with pytest.raises(InputError, match="engine 'nunpy' is unknown; did you mean 'numpy'"):
        dtrl.load_policy(tmp_path / "policy.safetensors", engine="nunpy")
    exported.save(tmp_path / "export.safetensors")
    assert dtrl.load_policy(tmp_path / "export.safetensors", context=None, context_length=4).context == "block"
    with pytest.raises(InputError, match="speed is nothing that an export can change"):
        dtrl.load_policy(tmp_path / "export.safetensors", speed=2)
    with pytest.raises(InputError, match="target return nan is not finite"):
        dtrl.load_policy(tmp_path / "export.safetensors", target_return=np.nan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action_space", "options"),
    [
        (ARM, {"preset": "dt_discrete", "bins": 4}),
        (ARM, {"preset": "vq_dt", "bins": 2}),
        (spaces.Discrete(3), {"preset": "tt"}),
        (spaces.Box(-1, 1, (1,)), {"preset": "dt_discrete"}),
    ],
)
def test_what_engines_cannot_run_is_named(policy_for, action_space, options):
    policy = policy_for(VECTOR, action_space, **options)
    with pytest.raises(InputError, match=f"this one, of preset {options['preset']}, does not; use engine eager"):
        ExportedPolicy.of(policy, "numpy")


def test_a_context_that_keeps_nothing_is_exported_as_block(policy_for, pair_of):
    assert policy_for().context == "window"
    assert pair_of()[1].context == "block"


@pytest.mark.slow
def test_an_episode_that_is_longer_than_the_model_knows_is_refused(pair_of):
    _, exported = pair_of("full")
    longest = exported.context_length
    exported.reset()
    for _ in range(longest):
        exported.act(np.zeros(3, np.float32))
    with pytest.raises(
        InputError, match=f"reached step {longest + 1}, and this model was trained on episodes of at most {longest}"
    ):
        exported.act(np.zeros(3, np.float32))


def test_engines_that_are_unknown_or_not_here_say_what_to_do(policy_for, monkeypatch, tmp_path):
    """The engines say it of any program."""
    policy = policy_for()
    with pytest.raises(InputError, match="engine 'onxx' is unknown; did you mean 'onnx'"):
        ExportedPolicy.of(policy, "onxx")
    program = torch.export.export(torch.nn.Tanh(), (torch.zeros(2),))
    monkeypatch.setattr("dtrl.acting.engines.exporting.export_programs", lambda *_: {"step": program})
    monkeypatch.setattr(aoti_engine.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"no(ne| C\+\+).*install g\+\+"):
        ExportedPolicy.of(policy, "aoti")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device here; use engine eager"):
        ExportedPolicy.of(policy, "graph")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="is not installed; `pip install onnxruntime`"):
        onnx_engine.OnnxEngine({})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'dtrl\[onnx\]'"):
        ExportedPolicy.of(policy, "onnx")


def test_the_command_line_knows_every_engine():
    verbs = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    choices = {a.dest: list(a.choices) for verb in ("evaluate", "export") for a in verbs[verb]._actions if a.choices}
    assert choices["engine"] == ["eager", *ENGINES]
    assert choices["format"] == ["safetensors", *ENGINES]


def test_an_operation_that_numpy_does_not_know_is_named(policy_for, monkeypatch):
    monkeypatch.delitem(operations.OPERATIONS, "aten.tanh.default")
    with pytest.raises(InputError, match=r"numpy engine cannot express aten\.tanh\.default"):
        ExportedPolicy.of(policy_for(preset="bc"), "numpy")


def test_altered_or_foreign_files_are_refused(pair_of, tmp_path):
    path = tmp_path / "policy.safetensors"
    pair_of()[1].save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(InputError, match="does not match the sha256"):
        dtrl.load_policy(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        dtrl.load_policy(path)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="exported for the engine numpy, not onnx"):
        dtrl.load_policy(path, engine="onnx")
    with pytest.raises(InputError, match="exported with the context block of 4 steps"):
        dtrl.load_policy(path, context="window")
    arrays, document = load_arrays(path)
    save_arrays(path, arrays, {**document, "engine": "abacus"})
    with pytest.raises(InputError, match="a policy this dtrl can run"):
        dtrl.load_policy(path)
    document["programs"]["step"]["nodes"][0][0] = "os.system"
    save_arrays(path, arrays, document)
    with pytest.raises(InputError, match=r"does not know the operation os\.system"):
        dtrl.load_policy(path)
