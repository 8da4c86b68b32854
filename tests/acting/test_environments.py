"""The environment that a dataset names: a dataset chooses among what is registered, and never runs code of its own."""

import json
import sys

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

from dtrl.acting.environments import environment_id, make_environment
from dtrl.errors import InputError


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """The name of a module that can be imported, and the file that it writes when it is."""
    marker = tmp_path / "executed"
    (tmp_path / "evil_module.py").write_text(
        f"open({str(marker)!r}, 'w')\ndef make(*args, **kwargs): raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "evil_module", marker
    assert not marker.exists()
    assert "evil_module" not in sys.modules


def spec_of(**changes):
    return json.dumps({**json.loads(gymnasium.spec("CartPole-v1").to_json()), **changes})


def test_the_marker_works(tmp_path, monkeypatch):
    """Without this, `evil` could prove nothing: Gymnasium itself does run what a spec names."""
    marker = tmp_path / "executed"
    (tmp_path / "evil_too.py").write_text(f"open({str(marker)!r}, 'w').close()\nraise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError):
        gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec_of(entry_point="evil_too:make")))
    assert marker.exists()


def test_an_id_and_a_spec_make_the_environment():
    for text in ("CartPole-v1", spec_of()):
        env = make_environment(text)
        assert env.spec.id == environment_id(text) == "CartPole-v1"
        assert env.spec.max_episode_steps == 500


def test_the_step_limit_of_the_data_is_kept():
    env = make_environment(spec_of(max_episode_steps=3))
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


def test_keyword_arguments_of_the_data_are_kept_and_its_render_mode_is_not():
    spec = json.loads(gymnasium.spec("Pendulum-v1").to_json()) | {"kwargs": {"g": 2.0, "render_mode": "human"}}
    env = make_environment(json.dumps(spec))
    assert env.unwrapped.g == 2.0
    assert env.render_mode is None
    assert make_environment(json.dumps(spec), render_mode="rgb_array").render_mode == "rgb_array"


def test_another_entry_point_is_refused_and_not_run(evil):
    module, _ = evil
    with pytest.raises(
        InputError, match=rf"'{module}:make' as the code of CartPole-v1, .* registered here is 'gymnasium\.[^\n]+\.$"
    ):
        make_environment(spec_of(entry_point=f"{module}:make"))


def test_an_environment_that_has_no_word_for_rendering_is_made(monkeypatch):
    class Plain(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Discrete(2)

    monkeypatch.setitem(gymnasium.registry, "TestPlain-v0", EnvSpec("TestPlain-v0", Plain))
    assert isinstance(make_environment("TestPlain-v0").unwrapped, Plain)
    with pytest.raises(InputError, match="TestPlain-v0 cannot be made"):
        make_environment("TestPlain-v0", render_mode="rgb_array")


def test_an_id_that_names_a_module_is_refused_and_not_imported(evil):
    module, _ = evil
    for text in (f"{module}:CartPole-v1", spec_of(id=f"{module}:CartPole-v1")):
        with pytest.raises(InputError, match=rf"environment '{module}:CartPole-v1' is not registered"):
            make_environment(text)


def test_wrappers_are_refused_and_not_run(evil):
    module, _ = evil
    wrapper = {"name": "Sly", "entry_point": f"{module}:make", "kwargs": None}
    with pytest.raises(InputError, match=r"recorded through wrappers \(Sly\)[^\n]+give it with env\.$"):
        make_environment(spec_of(additional_wrappers=[wrapper]))


def test_other_entries_that_name_code_are_not_run(evil):
    module, _ = evil
    env = make_environment(spec_of(vector_entry_point=f"{module}:make", reward_threshold=f"{module}:make"))
    assert env.spec.id == "CartPole-v1"


def test_an_unknown_id_brings_a_suggestion():
    with pytest.raises(InputError, match=r"'CartPol-v1' is not registered .* did you mean 'CartPole-v[01]'\?$"):
        make_environment("CartPol-v1")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"id": 3}',
        spec_of(kwargs=[1]),
        spec_of(kwargs={"no_such_argument": 1}),
        spec_of(max_episode_steps="many"),
        spec_of(kwargs={"id": "x"}),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_in_one_sentence(text):
    with pytest.raises(InputError, match=r"^[^\n]+\.$"):
        make_environment(text)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(
        gymnasium.registry,
        "Missing-v0",
        gymnasium.envs.registration.EnvSpec("Missing-v0", entry_point="no_such_package:Env"),
    )
    with pytest.raises(InputError, match=r"Missing-v0 cannot be made \(ModuleNotFoundError: .*no_such_package"):
        make_environment("Missing-v0")
