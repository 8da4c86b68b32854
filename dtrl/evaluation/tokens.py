"""What tokenizers make of a dataset: how many tokens, how much of the vocabulary, and what is lost. The content of `dtrl tokenizers report`.

Tokenizers are fitted on most episodes and measured on the others, every fifth, so that values beyond the fitted range and codes that learned the
data by heart show."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

from dtrl.errors import InputError, did_you_mean
from dtrl.evaluation.report import aligned, plain
from dtrl.spaces import Space, leaves
from dtrl.tokenizers import TOKENIZERS, Tokenizer, tokenizer_of_chunks
from dtrl.trajectories import Trajectories

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

FIELDS = ("action", "observation", "reward", "return")
EVERY = 5
"""One episode of so many is held out."""
ENTRIES_AT_ONCE = 2_000_000
"""Numbers that are encoded at once, so that a large dataset takes no more memory than its own."""
MAX_LISTED_DIMENSIONS = 16


@dataclass(frozen=True, eq=False)
class TokenizerResult:
    """What one tokenizer makes of the held-out episodes of one field."""

    field: str
    """A field, or a part of one: "observation/image"."""
    tokenizer: str
    """Name in `TOKENIZERS`."""
    block_length: int
    """Steps that are tokenized together, h."""
    tokens_per_step: float
    """Ids without the padding, or real vectors, a step."""
    vocab_size: int | None
    """None where a token is a real vector."""
    counts: npt.NDArray[np.int64] | None
    """(vocab_size,) how often each id occurs, padding left out; None for real vectors."""
    clipped: float
    """Share of the values that lie beyond what the tokenizer can express."""
    rmse: Floats
    """(dimensions,) root of the mean squared difference between what is decoded and what was encoded, in env units."""
    nrmse: Floats
    """(dimensions,) `rmse` over the standard deviation of the data it was fitted on; of a constant one, 0 without an error and else NaN."""
    max_abs: Floats
    """(dimensions,) largest absolute difference, in env units."""
    left_out: int
    """Steps, fitted and held out, at the ends of episodes that fill no block of h."""

    @property
    def used(self) -> int | None:
        """How many ids occur."""
        return None if self.counts is None else int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float | None:
        """exp(H) of the ids' frequencies: as many equally frequent ids would say as much."""
        if self.counts is None or not self.counts.any():
            return None
        p = self.counts[self.counts > 0] / self.counts.sum()
        return float(np.exp(-(p * np.log(p)).sum()))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, without the counts."""
        values = {name: value for name, value in vars(self).items() if name != "counts"}
        result = plain({**values, "used": self.used, "perplexity": self.perplexity})
        assert isinstance(result, dict)
        return result


@dataclass(frozen=True, eq=False)
class TokenReport:
    """Several tokenizers, measured on the same episodes."""

    dataset: str
    field: str
    fitted_episodes: int
    fitted_steps: int
    held_out_episodes: int
    held_out_steps: int
    results: list[TokenizerResult]
    skipped: list[str]
    """Tokenizers that nobody named and that need longer episodes, each with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**vars(self), "results": [result.to_dict() for result in self.results]}

    def table(self) -> str:
        """A line a tokenizer, and below it the error of each dimension, for every part of the field; in fixed width."""
        lines = [
            f"{self.dataset}, {self.field}: fitted on {self.fitted_episodes:,} episodes ({self.fitted_steps:,} steps), "
            f"measured on the other {self.held_out_episodes:,} ({self.held_out_steps:,} steps)"
        ]
        for name in dict.fromkeys(result.field for result in self.results):
            results = [result for result in self.results if result.field == name]
            lines += ["", *([name] if name != self.field else []), *aligned(summary_columns(results))]
            if any(result.rmse.any() for result in results):
                lines += ["", "rmse by dimension, in env units", *aligned(dimension_columns(results))]
                if len(results[0].rmse) > MAX_LISTED_DIMENSIONS:
                    lines.append(f"the first {MAX_LISTED_DIMENSIONS} of {len(results[0].rmse):,}; --json has all")
            lines += [
                f"{result.tokenizer}: {result.left_out:,} steps at the ends of episodes fill no block of {result.block_length} and are left out"
                for result in results
                if result.left_out
            ]
        return "\n".join([*lines, *self.skipped])


def report_tokens(
    trajectories: Trajectories,
    field: str = "action",
    tokenizers: Sequence[str] | None = None,
    bins: int | None = None,
    chunk_length: int | None = None,
) -> TokenReport:
    """Fit and measure the named tokenizers, by default every one of the table that is for the field's space; `bins` ids, where that can be chosen, and
    chunks of `chunk_length` steps in place of their own.

    Raises InputError for a field, a tokenizer or a number of bins or steps that there is not, for a tokenizer of other spaces, and for fewer than 2
    episodes."""
    names = check_names(field, tokenizers)
    if chunk_length is not None and chunk_length < 1:
        raise InputError(f"chunk_length {chunk_length} must be a positive number of steps.")

    def made(name: str, space: Space) -> Tokenizer | None:
        if chunk_length is None:
            return TOKENIZERS[name].for_space(space, bins)
        return tokenizer_of_chunks(name, space, bins, chunk_length)

    held_out = held_out_episodes(trajectories)
    starts, lengths = trajectories.episode_starts, trajectories.episode_lengths
    results, skipped = [], []
    parts = parts_of(trajectories, field)
    for part, space, column in parts:
        for name in names:
            tokenizer = made(name, space)
            if tokenizer is None:
                continue
            h = tokenizer.block_length
            rows = [block_rows(starts[chosen], lengths[chosen], h) for chosen in (~held_out, held_out)]
            if all(len(blocks) for blocks in rows):
                results.append(measure(part, name, tokenizer, column, *rows))
            else:
                skipped.append(
                    f"{name}: no {'held-out ' if len(rows[0]) else 'fitted '}episode of {part} has the {h} steps of a block"
                )
    if tokenizers is not None and skipped:
        raise InputError(f"{skipped[0]}; choose another tokenizer, or give longer episodes.")
    measured = {result.tokenizer for result in results}
    if tokenizers is not None and (unfit := [name for name in names if name not in measured]):
        fits = [name for name in TOKENIZERS if any(made(name, space) for _, space, _ in parts)]
        raise InputError(
            f"the tokenizer {unfit[0]!r} is not for the {field} of {trajectories.origin.name}, {parts[0][1]}; choose of {', '.join(fits)}."
        )
    return TokenReport(
        dataset=trajectories.origin.name,
        field=field,
        fitted_episodes=int((~held_out).sum()),
        fitted_steps=int(lengths[~held_out].sum()),
        held_out_episodes=int(held_out.sum()),
        held_out_steps=int(lengths[held_out].sum()),
        results=results,
        skipped=skipped,
    )


def check_names(field: str, tokenizers: Sequence[str] | None) -> list[str]:
    if field not in FIELDS:
        raise InputError(f"there is no field {field!r}; {did_you_mean(field, FIELDS)}")
    names = list(TOKENIZERS if tokenizers is None else dict.fromkeys(tokenizers))
    for name in names:
        if name not in TOKENIZERS:
            raise InputError(f"there is no tokenizer {name!r}; {did_you_mean(name, list(TOKENIZERS))}")
    return names


def held_out_episodes(trajectories: Trajectories) -> npt.NDArray[np.bool_]:
    """(E,) True for every fifth episode; for the last, where there are fewer."""
    episodes = trajectories.num_episodes
    if episodes < 2:
        raise InputError(
            f"{trajectories.origin.name} has {episodes} episode{'s' * (episodes != 1)}, and one has to be held out of at least 2; give more data."
        )
    every = min(EVERY, episodes)
    return np.asarray(np.arange(episodes) % every == every - 1)


def parts_of(trajectories: Trajectories, field: str) -> list[tuple[str, Space, Array]]:
    """Name, space and column of the parts of a field: one, or of a composite space the leaves."""
    number = spaces.Box(-np.inf, np.inf, ())
    if field == "reward":
        return [("reward", number, trajectories.rewards)]
    if field == "return":
        return [("return", number, trajectories.returns_to_go)]
    space = trajectories.action_space if field == "action" else trajectories.observation_space
    return [(leaf.name(field), leaf.space, trajectories.columns[leaf.name(f"{field}s")]) for leaf in leaves(space)]


def block_rows(starts: Array, lengths: Array, block_length: int) -> npt.NDArray[np.int64]:
    """(M, h) rows of the whole blocks of h steps of each episode, from its first step on."""
    whole = lengths // block_length * block_length
    first = np.repeat(starts - (np.cumsum(whole) - whole), whole)
    return (first + np.arange(len(first))).reshape(-1, block_length)


def measure(
    field: str,
    name: str,
    tokenizer: Tokenizer,
    column: Array,
    fitted: npt.NDArray[np.int64],
    held_out: npt.NDArray[np.int64],
) -> TokenizerResult:
    """Fit a tokenizer to the blocks of rows `fitted` (M, h) of a column (N, …), and measure it on the others, `held_out`."""
    h = tokenizer.block_length
    data = column[fitted if h > 1 else fitted[:, 0]]
    tokenizer.fit(data)
    deviation = data.reshape(fitted.size, -1).std(axis=0, dtype=np.float64)
    squares, largest = np.zeros(len(deviation)), np.zeros(len(deviation))
    counts = None if tokenizer.vocab_size is None else np.zeros(tokenizer.vocab_size, np.int64)
    beyond = tokens = 0
    at_once = max(1, ENTRIES_AT_ONCE // (h * len(deviation)))
    for begin in range(0, len(held_out), at_once):
        x = torch.from_numpy(column[held_out[begin : begin + at_once]])
        ids = tokenizer.encode(x)
        error = (tokenizer.decode(ids).double() - x.double()).reshape(-1, len(deviation)).numpy()
        squares += np.square(error).sum(axis=0)
        largest = np.maximum(largest, np.abs(error).max(axis=0))
        beyond += int(tokenizer.outside(x).sum())
        if counts is None:
            tokens += ids.shape[1] * ids.shape[0] * tokenizer.num_tokens
        else:
            counts += np.bincount(ids.flatten().numpy(), minlength=len(counts))
    if counts is not None:
        if tokenizer.padding_id is not None:
            counts[tokenizer.padding_id] = 0
        tokens = int(counts.sum())
    rmse = np.sqrt(squares / held_out.size)
    return TokenizerResult(
        field=field,
        tokenizer=name,
        block_length=h,
        tokens_per_step=tokens / held_out.size,
        vocab_size=tokenizer.vocab_size,
        counts=counts,
        clipped=beyond / (held_out.size * len(deviation)),
        rmse=rmse,
        nrmse=np.divide(rmse, deviation, out=np.where(rmse > 0, np.nan, 0.0), where=deviation > 0),
        max_abs=largest,
        left_out=len(column) - fitted.size - held_out.size,
    )


def summary_columns(results: Sequence[TokenizerResult]) -> list[tuple[str, list[str]]]:
    """Heads and cells of the table with a line a tokenizer; errors are over all dimensions."""

    def cells(value: Callable[[TokenizerResult], float | None], form: str) -> list[str]:
        return ["–" if (x := value(result)) is None else f"{x:{form}}" for result in results]

    return [
        ("tokenizer", [result.tokenizer for result in results]),
        ("tokens a step", cells(lambda r: r.tokens_per_step, ",.4g")),
        ("vocabulary", cells(lambda r: r.vocab_size, ",")),
        ("used", cells(lambda r: r.used, ",")),
        ("perplexity", cells(lambda r: r.perplexity, ",.1f")),
        ("clipped", cells(lambda r: r.clipped, ".3%")),
        ("rmse", cells(lambda r: root_mean_square(r.rmse), ".3g")),
        ("nrmse", cells(lambda r: root_mean_square(r.nrmse), ".3g")),
        ("largest error", cells(lambda r: float(r.max_abs.max()), ".3g")),
    ]


def dimension_columns(results: Sequence[TokenizerResult]) -> list[tuple[str, list[str]]]:
    """Heads and cells of the table with a line a dimension."""
    listed = range(min(len(results[0].rmse), MAX_LISTED_DIMENSIONS))
    return [
        ("dimension", [str(i) for i in listed]),
        *((result.tokenizer, [f"{result.rmse[i]:.3g}" for i in listed]) for result in results),
    ]


def root_mean_square(x: Floats) -> float:
    return math.sqrt(float(np.square(x).mean()))
