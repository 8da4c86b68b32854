"""Settings: every wrong value is refused by a message that names it, and every default is in one place."""

import dataclasses
import math
import re

import pytest

from dtrl.config import (
    DataConfig,
    DecodingConfig,
    ModelConfig,
    OnlineConfig,
    TrainingConfig,
    plain_type,
    split_options,
)
from dtrl.errors import InputError, did_you_mean

PARTS = (DataConfig, ModelConfig, TrainingConfig, OnlineConfig, DecodingConfig)
FIELDS = [(part, f) for part in PARTS for f in dataclasses.fields(part)]


def refusal(part, options):
    """The message that refuses the options, or "accepted"."""
    try:
        part(**options)
    except InputError as error:
        return str(error)
    return "accepted"


def unexpected(cases):
    """Of (part, options, pattern of the message), those whose message is another: the options and what was said."""
    said = [(part, options, refusal(part, options), pattern) for part, options, pattern in cases]
    return {
        f"{part.__name__}(**{options})": text for part, options, text, pattern in said if not re.search(pattern, text)
    }


# Every option


def test_every_option_explains_itself():
    assert FIELDS
    for part, f in FIELDS:
        name = f"{part.__name__}.{f.name}"
        assert len(f.metadata["help"].split()) >= 2, name
        assert plain_type(f) in (int, float, str, bool), name
        assert f.default is None or type(f.default) is plain_type(f), name
        assert not f.metadata["choices"] or f.default in (None, *f.metadata["choices"]), name


def test_a_value_of_another_type_is_named():
    cases = []
    for part, f in FIELDS:
        wrong = {int: 1.5, float: "1", str: 7, bool: 1}[plain_type(f)]
        expected = "is unknown" if f.metadata["choices"] else f"a {plain_type(f).__name__} is expected"
        cases.append((part, {f.name: wrong}, rf"^{f.name} {wrong!r} .*{expected}"))
    assert not unexpected(cases)


def test_none_is_a_value_only_where_it_is_the_default():
    cases = [(part, {f.name: None}, "^accepted$" if f.default is None else f"^{f.name} None") for part, f in FIELDS]
    assert not unexpected(cases)
    optional = [(part, f.name) for part, f in FIELDS if f.default is None]
    assert optional
    assert not [name for part, name in optional if getattr(part(**{name: None}), name) is not None]


def test_a_settings_object_cannot_be_changed():
    for part in PARTS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            part().seed = 3


def test_no_two_parts_have_an_option_of_the_same_name():
    names = [f.name for _, f in FIELDS]
    assert len(names) == len(set(names))


def test_a_whole_number_may_stand_for_a_float_and_truth_for_neither():
    config = TrainingConfig(learning_rate=1)
    assert (config.learning_rate, type(config.learning_rate)) == (1.0, float)
    with pytest.raises(InputError, match="updates True is a bool; a int is expected"):
        TrainingConfig(updates=True)
    with pytest.raises(InputError, match="learning_rate True is a bool"):
        TrainingConfig(learning_rate=True)


# Every message

CHOICES = [(part, f) for part, f in FIELDS if f.metadata["choices"]]
WRONG = [
    (DataConfig, {"discount": 0.0}, r"discount 0.0 is outside \(0, 1\]"),
    (DataConfig, {"discount": 1.01}, "discount 1.01 is outside"),
    (DataConfig, {"discount": math.nan}, "discount nan is outside"),
    (DataConfig, {"min_return": 5.0, "max_return": 4.0}, "min_return 5.0 is above max_return 4.0"),
    (DataConfig, {"min_length": 5, "max_length": 4}, "min_length 5 is above max_length 4"),
    (DataConfig, {"min_return": math.nan}, "min_return nan and max_return None must be numbers"),
    (DataConfig, {"max_length": 0}, "max_length 0 must be a positive number"),
    (DataConfig, {"endings": "fell"}, "endings 'fell' is unknown"),
    *[
        (ModelConfig, {name: value}, f"{name} {value} must be a positive number")
        for name in ("context_length", "width", "layers", "heads", "kv_heads", "max_timestep")
        for value in (0, -3)
    ],
    *[
        (ModelConfig, {"return_scale": value}, f"return_scale {value} must be a positive number")
        for value in (0.0, -1.0, math.nan, math.inf)
    ],
    (ModelConfig, {"width": 10, "heads": 4}, "width 10 is not a multiple of heads 4"),
    (ModelConfig, {"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
    (ModelConfig, {"heads": 2, "kv_heads": 4}, "heads 2 is not a multiple of kv_heads 4"),
    (ModelConfig, {"trunk": "modern", "width": 12, "heads": 4}, "in pairs, and width 12 gives each of the heads 4 an odd"),
    (ModelConfig, {"dropout": 1.0}, r"dropout 1.0 is outside \[0, 1\)"),
    (ModelConfig, {"dropout": -0.1}, "dropout -0.1 is outside"),
    (ModelConfig, {"dropout": math.nan}, "dropout nan is outside"),
    (ModelConfig, {"top_fraction": 0.0}, r"top_fraction 0.0 is outside \(0, 1\]"),
    (ModelConfig, {"top_fraction": 1.5}, "top_fraction 1.5 is outside"),
    *[
        (TrainingConfig, {name: value}, f"{name} {value} must be a positive number")
        for name in ("updates", "batch_size", "gradient_accumulation", "log_every", "checkpoint_every", "keep_checkpoints")
        for value in (0, -3)
    ],
    *[
        (TrainingConfig, {name: value}, f"{name} {value} must be a positive number")
        for name in ("learning_rate", "gradient_clip")
        for value in (0.0, -1.0, math.nan, math.inf)
    ],
    (TrainingConfig, {"batch_size": 10, "gradient_accumulation": 4}, "batch_size 10 is not a multiple of gradient_accumulation 4"),
    *[(TrainingConfig, {"weight_decay": value}, f"weight_decay {value} must be 0 or a positive") for value in (-1.0, math.nan)],
    (TrainingConfig, {"warmup_updates": -1}, "warmup_updates -1 must be 0 or a positive"),
    (TrainingConfig, {"seed": -1}, "seed -1 must be 0 or a positive"),
    *[
        (DecodingConfig, {"strategy": "sample", "temperature": value}, f"temperature {value} must be 0")
        for value in (-1.0, math.nan, math.inf)
    ],
    (DecodingConfig, {"strategy": "sample", "top_k": -1}, r"top_k -1 must be 0 \(off\)"),
    *[
        (DecodingConfig, {"strategy": "sample", "top_p": value}, rf"top_p {value} is outside \(0, 1\]")
        for value in (0.0, 1.5, math.nan)
    ],
    *[
        (DecodingConfig, {"strategy": "sample", "min_p": value}, rf"min_p {value} is outside \[0, 1\]")
        for value in (-0.1, 1.5, math.nan)
    ],
    *[
        (DecodingConfig, {name: value}, f"strategy greedy .* has no use for {name}; add --strategy sample")
        for name, value in (("temperature", 0.5), ("top_k", 3), ("top_p", 0.5), ("min_p", 0.1))
    ],
    (DecodingConfig, {"top_k": 3, "min_p": 0.1}, "has no use for top_k, min_p"),
    *[
        (DecodingConfig, {"strategy": "sample", "typical_p": value}, rf"typical_p {value} is outside \(0, 1\]")
        for value in (0.0, 1.5, math.nan)
    ],
    *[
        (DecodingConfig, {name: value}, rf"{name} {value}(\.0)? must be a positive number")
        for name in ("repetition_penalty", "beam_width", "draft_tokens", "horizon", "expansions")
        for value in (0, -1)
    ],
    *[(DecodingConfig, {"repetition_penalty": value}, "repetition_penalty .* must be a positive") for value in (math.nan, math.inf)],
    (DecodingConfig, {"no_repeat_ngram": -1}, r"no_repeat_ngram -1 must be 0 \(off\) or a positive number of tokens"),
    *[
        (DecodingConfig, {"strategy": "contrastive", "contrastive_alpha": value}, rf"contrastive_alpha {value} is outside \[0, 1\]")
        for value in (-0.1, 1.1, math.nan)
    ],
    *[
        (DecodingConfig, {name: value}, f"{name} {value} must be a number from 0 up")
        for name in ("guidance", "contrast") for value in (-1.0, math.nan, math.inf)
    ],
    (DecodingConfig, {"guidance": 2.0, "plausible_p": 1.5}, r"plausible_p 1.5 is outside \[0, 1\]"),
    *[
        (DecodingConfig, {"strategy": "beam", "length_penalty": value}, f"length_penalty {value} must be a finite")
        for value in (math.nan, math.inf)
    ],
    (DecodingConfig, {"strategy": "beam", "top_p": 0.9}, "beam keeps .* no use for top_p; add --strategy sample or speculative or plan or best_of, or leave "
     "it out; "
     "beam goes with beam_width, length_penalty.$"),
    (DecodingConfig, {"strategy": "beam", "temperature": 0.5}, "has no use for temperature; add --strategy sample"),
    (DecodingConfig, {"strategy": "beam", "temperature": 0.0}, "has no use for temperature; add --strategy sample"),
    (DecodingConfig, {"strategy": "beam", "top_p": 0.9, "draft": "ngram"}, "no use for top_p, draft; add --strategy speculative, or"),
    (DecodingConfig, {"strategy": "beam", "draft": "ngram", "horizon": 3}, "no use for draft, horizon; leave them out; beam goes with"),
    (DecodingConfig, {"strategy": "contrastive", "top_p": 0.9}, "contrastive .* no use for top_p"),
    (DecodingConfig, {"strategy": "sample", "beam_width": 4}, "sample .* no use for beam_width; add --strategy beam or plan"),
    (DecodingConfig, {"strategy": "speculative", "horizon": 4}, "speculative .* no use for horizon; add --strategy plan"),
    (DecodingConfig, {"strategy": "plan", "draft_tokens": 2}, "plan .* no use for draft_tokens; add --strategy speculative"),
    (DecodingConfig, {"guidance": 2.0, "contrast": 1.0}, "guidance 2.0 and contrast 1.0 both compare"),
    (DecodingConfig, {"plausible_p": 0.2}, "plausible_p 0.2 goes with guidance or contrast"),
]  # fmt: skip


def test_a_value_that_makes_no_sense_is_named():
    assert not unexpected(WRONG)


def test_an_unknown_choice_names_the_nearest_and_all():
    assert CHOICES
    for part, f in CHOICES:
        choices = f.metadata["choices"]
        misspelt = choices[-1][:-1] + "x" * (choices[-1][:-1] in choices)
        said = refusal(part, {f.name: misspelt})
        assert said.startswith(f"{f.name} {misspelt!r} is unknown: did you mean '")
        assert said.endswith(f"(one of {', '.join(choices)}).")


EDGES = [
    (DataConfig, {"discount": 1.0}), (ModelConfig, {"dropout": 0.0}), (ModelConfig, {"top_fraction": 1.0}),
    (ModelConfig, {"width": 1, "heads": 1}), (ModelConfig, {"trunk": "modern", "width": 12, "heads": 2}),
    (ModelConfig, {"heads": 4, "kv_heads": 1}), (ModelConfig, {"heads": 4, "kv_heads": 4}),
    (TrainingConfig, {"weight_decay": 0.0}), (TrainingConfig, {"warmup_updates": 0}), (TrainingConfig, {"seed": 2**63}),
    (DecodingConfig, {"strategy": "sample", "min_p": 1.0}), (DecodingConfig, {"strategy": "sample", "top_p": 1e-9}),
    (DecodingConfig, {"temperature": 0.0}), (DecodingConfig, {"strategy": "sample", "temperature": 0.0, "top_k": 1}),
    (DecodingConfig, {"strategy": "contrastive", "contrastive_alpha": 0.0}), (DecodingConfig, {"guidance": 0.0, "plausible_p": 0.0}),
    (DecodingConfig, {"strategy": "beam", "beam_width": 1, "length_penalty": -1.0, "no_repeat_ngram": 1, "contrast": 1.0}),
    (DecodingConfig, {"strategy": "speculative", "temperature": 0.0, "top_p": 0.9, "draft": "ngram", "draft_tokens": 1}),
    (DecodingConfig, {"strategy": "plan", "horizon": 1, "expansions": 1, "beam_width": 1, "top_k": 1, "temperature": 0.5}),
]  # fmt: skip


def test_the_ends_of_a_range_belong_to_it():
    for part, options in EDGES:
        config = part(**options)
        assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "greedy"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"strategy": "sample"}, False),
        ({"strategy": "sample", "temperature": 0.0}, True),
    ],
    ids=str,
)
def test_no_temperature_is_greedy(options, greedy):
    assert DecodingConfig(**options).greedy == greedy


# Sharing out


def test_options_go_to_the_part_that_has_them():
    data, model, training = split_options({"width": 8, "seed": 3, "discount": 0.5, "heads": 2}, *PARTS[:3])
    assert (data, model, training) == ({"discount": 0.5}, {"width": 8, "heads": 2}, {"seed": 3})


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("learning-rate", "learning_rate"),
        ("contextlength", "context_length"),
        ("batchsize", "batch_size"),
        ("kvheads", "kv_heads"),
    ],
)
def test_an_unknown_option_names_the_nearest(name, suggestion):
    with pytest.raises(InputError, match=f"there is no option '{name}'; did you mean '{suggestion}'"):
        split_options({name: 1}, ModelConfig, TrainingConfig)


def test_an_option_like_no_other_names_all():
    with pytest.raises(InputError, match="there is no option 'zzz'; known: delayed, discount, endings, max_length"):
        split_options({"zzz": 1}, DataConfig)


def test_an_option_of_another_part_is_unknown():
    with pytest.raises(InputError, match="there is no option 'seed'"):
        split_options({"seed": 1}, ModelConfig)


def test_a_suggestion_is_the_nearest_name_or_the_list():
    assert did_you_mean("hoper", ["walker", "hopper"]) == "did you mean 'hopper'?"
    assert did_you_mean("zzz", ["walker", "hopper"]) == "known: walker, hopper"
    assert did_you_mean("zzz", []) == "none is known"


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
