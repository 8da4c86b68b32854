"""Ids from a stream, by any strategy: all at once, or token by token as they come.

B rows, n tokens. A strategy is a function that advances a `Generation` and yields whenever there may be something new; a new one is a row of
`STRATEGIES` and its tests."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dtrl.config import DecodingConfig
from dtrl.decoding import beam, contrastive, speculative
from dtrl.decoding.choice import select
from dtrl.decoding.drafts import Draft
from dtrl.decoding.progress import Generation, Progress, Speculation, Stop
from dtrl.decoding.stream import TokenStream
from dtrl.errors import InputError


@dataclass(frozen=True)
class Generated:
    """What was generated."""

    ids: Tensor
    """(B, n), −1 after the end of a row."""
    lengths: Tensor
    """(B,) tokens of each row, its end token among them."""
    speculation: Speculation | None = None
    """How well the draft guessed, with the strategy `speculative`."""


def one_by_one(generation: Generation) -> Iterator[None]:
    """The strategies `greedy` and `sample`: choose a token, feed it, choose the next."""
    stream, progress = generation.stream, generation.progress
    logits = stream.logits()
    while True:
        ids = select(logits, generation.config, generation.generators, progress.history, progress.going)
        progress.add(ids[:, None])
        yield
        if not progress.going.any():
            return
        logits = stream.feed(ids[:, None])[:, -1]
        stream.rollback((~progress.going).long())


STRATEGIES: dict[str, Callable[[Generation], Iterator[None]]] = {
    "greedy": one_by_one,
    "sample": one_by_one,
    "beam": beam.beam,
    "contrastive": contrastive.search,
    "speculative": speculative.speculate,
}
"""Name → strategy. `plan` and `best_of` are none of them: they judge actions, by their return (`dtrl.acting.planning`) or a critic (`dtrl.acting.critic`)."""


def tokens(
    stream: TokenStream,
    config: DecodingConfig,
    generators: Sequence[np.random.Generator],
    steps: int,
    stop: Stop | None = None,
    *,
    prompt: Tensor | None = None,
    context: Tensor | None = None,
    draft: Draft | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """`generate`, yielding (ids (B,), valid (B,)) for one token after the other, as soon as it stands in every row that goes on; ids are −1 where a row has
    ended. Beam search knows its first token when it knows its last."""
    generation = begin(stream, config, generators, steps, stop, prompt, context, draft)
    yield from columns(generation)


def generate(
    stream: TokenStream,
    config: DecodingConfig,
    generators: Sequence[np.random.Generator],
    steps: int,
    stop: Stop | None = None,
    *,
    prompt: Tensor | None = None,
    context: Tensor | None = None,
    draft: Draft | None = None,
) -> Generated:
    """At most `steps` ids of each row, chosen as `config` says.

    `generators` has one for each row: what a row samples does not depend on its neighbours, and a row that is finished draws nothing. `prompt` (B, T), the
    ids before, right-padded with −1, is what the history options look back on; `context` (B, S, D), hidden vectors before that of the last token, what
    contrastive search does; `draft` guesses for the strategy `speculative`. Afterwards the stream holds what was generated but for the last token of each
    row, which it was never fed; beam search uses it up.

    Raises InputError for a strategy that cannot run on a stream, for a draft that is missing, and where a row has nothing to choose from."""
    generation = begin(stream, config, generators, steps, stop, prompt, context, draft)
    for _ in STRATEGIES[config.strategy](generation):
        pass
    progress = generation.progress
    return Generated(progress.ids, progress.lengths, generation.speculation)


def begin(
    stream: TokenStream,
    config: DecodingConfig,
    generators: Sequence[np.random.Generator],
    steps: int,
    stop: Stop | None,
    prompt: Tensor | None,
    context: Tensor | None,
    draft: Draft | None,
) -> Generation:
    if config.strategy not in STRATEGIES:
        raise InputError(
            f"strategy {config.strategy} judges actions, and a stream of tokens has none; choose one of {', '.join(STRATEGIES)}."
        )
    if (draft is None) == (config.strategy == "speculative"):
        need = "needs a draft" if draft is None else "has no use for a draft; take strategy speculative"
        raise InputError(f"strategy {config.strategy} {need}, such as dtrl.decoding.FactorisedDraft.")
    if not config.greedy and config.strategy in ("sample", "speculative") and len(generators) != stream.rows:
        raise ValueError(f"{len(generators)} generators for {stream.rows} rows")
    progress = Progress(stream.rows, steps, stop or Stop(), prompt, stream.hidden().device)
    speculation = Speculation.of(stream.rows) if draft is not None else None
    return Generation(stream, config, generators, progress, prompt, context, draft, speculation)


def columns(generation: Generation) -> Iterator[tuple[Tensor, Tensor]]:
    """Each token's ids and which rows have it, once no row that goes on lacks it."""
    progress, sent = generation.progress, 0
    for _ in STRATEGIES[generation.config.strategy](generation):
        going = progress.lengths[progress.going]
        ready = int(going.min() if len(going) else progress.lengths.max())
        for i in range(sent, ready):
            ids = progress.ids[:, i]
            yield ids, ids >= 0
        sent = ready
