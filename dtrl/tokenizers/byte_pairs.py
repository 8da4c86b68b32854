"""Byte-pair encoding of integers: the pairs of ids that stand side by side most often become ids of their own [Gage 1994; Sennrich et al. 2016,
arXiv:1508.07909]. There is no text and no regular expression: what goes in are ids, of a space or of another tokenizer, and none is ever dropped."""

import heapq
from collections import defaultdict
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from dtrl.errors import InputError
from dtrl.spaces import Space
from dtrl.tokenizers.base import Fitted

LEAST = 2
"""A pair seen less often is not merged: an id for what is seen once shortens one sequence and says nothing of others."""
MOST_SYMBOLS = 4_000_000
"""Merges are learned from at most about so many ids, in rows taken evenly from the data: sets in memory hold the places of all of them."""
STEPS = 20
"""Steps of a block, where the caller does not choose."""

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]


class BytePairs(Fitted):
    """Blocks of n ids below `alphabet` ↔ as many or fewer ids below `vocab_size`, and padding behind them.

    The first `alphabet` ids stand for themselves, those that follow for learned pairs, and the last one, `padding_id`, for nothing. A block that
    holds no learned pair needs all of its n ids, so a block has room for n: `num_tokens` = n = h · (ids a step). What goes in comes back exactly.
    Any ids can be decoded: the first n symbols that they stand for count, and `fill` takes the place of those that are missing."""

    merges: Tensor
    """(M, 2) the pair that id alphabet + i stands for; −1 where the data had no more pairs to learn."""
    keys: Tensor
    ranks: Tensor
    pieces: Tensor
    lengths: Tensor
    vocab_size: int
    padding_id: int

    def __init__(
        self, alphabet: int, shape: tuple[int, ...] = (), *, vocab_size: int, block_length: int = 1, fill: int = 0
    ) -> None:
        super().__init__(shape, block_length)
        if vocab_size <= alphabet:
            raise InputError(
                f"vocab_size = {vocab_size} has no room for {alphabet} symbols and the id of padding; choose {alphabet + 1} or more."
            )
        if not 0 <= fill < alphabet:
            raise InputError(
                f"fill = {fill} is no symbol of an alphabet of {alphabet}; choose one of 0 … {alphabet - 1}."
            )
        self.alphabet, self.vocab_size, self.padding_id, self.fill = alphabet, vocab_size, vocab_size - 1, fill
        self.num_tokens = n = self.entries * block_length
        learned = self.padding_id - alphabet
        self.register_buffer("merges", torch.full((learned, 2), -1))
        # looked up in encoding and decoding, and made anew from the merges when these are loaded
        self.register_buffer("keys", torch.zeros(learned, dtype=torch.int64), persistent=False)
        self.register_buffer("ranks", torch.zeros(learned, dtype=torch.int64), persistent=False)
        self.register_buffer("pieces", torch.zeros(vocab_size, n, dtype=torch.int64), persistent=False)
        self.register_buffer("lengths", torch.zeros(vocab_size, dtype=torch.int64), persistent=False)
        self.register_load_state_dict_post_hook(index_merges)  # type: ignore[no-untyped-call]

    @classmethod
    def for_space(cls, space: Space, size: int | None = None) -> Self | None:
        """For the ids of a Discrete space that count from 0: frequent sequences of actions become single ids."""
        return cls.for_chunks(space, size, STEPS)

    @classmethod
    def for_chunks(cls, space: Space, size: int | None, block_length: int) -> Self | None:
        if not isinstance(space, spaces.Discrete) or space.start:
            return None
        alphabet = int(space.n)
        return cls(alphabet, vocab_size=max(size or 256, alphabet + 1), block_length=block_length)

    def fit(self, x: Array) -> None:
        """Learn the merges from ids (N, h, …), or (N, …) where h = 1."""
        ids = self.column(x).reshape(len(x), self.num_tokens).clip(0, self.alphabet - 1).astype(np.int64)
        every = max(1, ids.size // MOST_SYMBOLS)
        learned = learn_merges(ids[::every], self.alphabet, len(self.merges))
        self.merges.fill_(-1)
        self.merges[: len(learned)] = torch.tensor(learned, dtype=torch.int64).reshape(-1, 2).to(self.merges.device)
        index_merges(self)
        self.mark_fitted()

    def encode(self, x: Tensor) -> Tensor:
        """(B, T, …) ids → (B, T/h, n). An id outside the alphabet becomes the nearest one."""
        ids = self.values(x).long().clamp(0, self.alphabet - 1)
        rows = ids.reshape(-1, self.num_tokens)
        return self.merged(rows).reshape(x.shape[0], x.shape[1] // self.block_length, self.num_tokens)

    def outside(self, x: Tensor) -> Tensor:
        ids = self.values(x)
        return self.shaped((ids < 0) | (ids >= self.alphabet))

    def complete(self, ids: Tensor) -> Tensor:
        """Where a row has padding already, or its ids stand for all n symbols."""
        return (ids == self.padding_id).any(dim=1) | (self.lengths[ids].sum(dim=1) >= self.num_tokens)

    def merged(self, rows: Tensor) -> Tensor:
        """(R, n) symbols → (R, n). In each row the pair learned first is merged, left to right, until no learned pair is left: the same as to
        replay the learning, since a pair that holds a new id was learned after that id."""
        none = len(self.keys)
        if not none:
            return rows
        # on a GPU the host would have to wait to know whether nothing is left, and a program that is exported has no such question
        exporting = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        can_stop = rows.device.type == "cpu" and not exporting
        for _ in range(self.num_tokens - 1):
            key = rows[:, :-1] * self.vocab_size + rows[:, 1:]
            place = torch.searchsorted(self.keys, key).clamp_max(none - 1)
            rank = torch.where(self.keys[place] == key, self.ranks[place], none)
            first = rank.amin(dim=1, keepdim=True)
            if can_stop and not bool((first < none).any()):
                break
            taken = alternate((rank == first) & (first < none))
            rows = torch.where(F.pad(taken, (0, 1)), self.alphabet + first, rows)
            kept = ~F.pad(taken, (1, 0))
            # whatever is not kept goes to one column more, which is then cut off
            target = torch.where(kept, kept.cumsum(dim=1) - 1, self.num_tokens)
            room = rows.new_full((rows.shape[0], self.num_tokens + 1), self.padding_id)
            rows = room.scatter_(1, target, rows)[:, :-1]
        return rows

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, T/h, n) any ids → (B, T, …) symbols."""
        ids = self.ids(tokens)
        rows = ids.reshape(-1, self.num_tokens)
        lengths = self.lengths[rows]
        ends = lengths.cumsum(dim=1)
        position = torch.arange(self.num_tokens, device=rows.device).expand(rows.shape).contiguous()
        token = torch.searchsorted(ends, position, right=True)
        missing = token == self.num_tokens
        token = token.clamp_max(self.num_tokens - 1)
        within = position - (ends - lengths).gather(1, token)
        symbols = self.pieces[rows.gather(1, token), within.clamp(0, self.num_tokens - 1)]
        symbols = torch.where(missing, self.fill, symbols)
        return self.shaped(symbols.reshape(ids.shape[0], ids.shape[1] * self.block_length, self.entries))


def alternate(hits: Tensor) -> Tensor:
    """(R, n) bool: of each run of hits the first, the third, … In "aaa" the pair "aa" stands twice, and only one of the two can be merged."""
    position = torch.arange(hits.shape[1], device=hits.device).expand(hits.shape)
    before = torch.where(hits, -1, position).cummax(dim=1).values
    return hits & ((position - before) % 2 == 1)


def index_merges(module: nn.Module, _: object = None) -> None:
    """Set what is looked up in encoding and decoding from the merges of a BytePairs."""
    assert isinstance(module, BytePairs)
    merges = [(a, b) for a, b in module.merges.tolist() if a >= 0]
    pieces = [[symbol] for symbol in range(module.alphabet)]
    for a, b in merges:
        pieces.append(pieces[a] + pieces[b])
    # a row that is not used has a key beyond all others, so that the keys stay sorted
    unused = [module.vocab_size**2] * (len(module.merges) - len(merges))
    keys, ranks = torch.tensor([a * module.vocab_size + b for a, b in merges] + unused, dtype=torch.int64).sort()
    module.keys.copy_(keys)
    module.ranks.copy_(ranks)
    module.lengths.zero_()
    module.lengths[: len(pieces)] = torch.tensor([len(piece) for piece in pieces]).to(module.lengths.device)
    table = torch.zeros_like(module.pieces, device="cpu")
    for i, piece in enumerate(pieces):
        table[i, : len(piece)] = torch.tensor(piece)
    module.pieces.copy_(table)


def learn_merges(rows: Ids, alphabet: int, count: int) -> list[tuple[int, int]]:
    """Up to `count` pairs: each time the one that stands in the most places of the rows (N, n), the smallest of equals, which then is replaced, left to
    right, by the id alphabet + (pairs so far). In "aaa" the pair "aa" stands in two places.

    Only the neighbours of a merged pair change, so that the whole costs about n log n steps and not one pass over the data a merge."""
    symbols: list[int] = rows.reshape(-1).tolist()
    width, size = rows.shape[1], len(symbols)
    ends = set(range(width - 1, size, width))
    after = [-1 if i in ends else i + 1 for i in range(size)]
    before = [i - 1 if i % width else -1 for i in range(size)]
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for i, j in enumerate(after):
        if j >= 0:
            places[symbols[i], symbols[j]].add(i)
    heap = [(-len(where), pair) for pair, where in places.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < count:
        negative, pair = heapq.heappop(heap)
        seen = len(places[pair])
        if seen < LEAST:
            continue
        if seen != -negative:  # other merges took some of its places since; it comes again in its turn
            heapq.heappush(heap, (-seen, pair))
            continue
        new = alphabet + len(merges)
        merges.append(pair)
        for grown in merge(pair, new, symbols, before, after, places):
            heapq.heappush(heap, (-len(places[grown]), grown))
    return merges


def merge(
    pair: tuple[int, int],
    new: int,
    symbols: list[int],
    before: list[int],
    after: list[int],
    places: dict[tuple[int, int], set[int]],
) -> set[tuple[int, int]]:
    """Replace a pair at all of its places, and return the pairs that came to be. The symbols are a doubly linked list; −1 is its end, and a symbol that
    is no more."""
    left_symbol, right_symbol = pair
    grown = set()
    for i in sorted(places.pop(pair)):
        j = after[i]
        if symbols[i] != left_symbol or j < 0 or symbols[j] != right_symbol:
            continue  # it overlapped with the one before it, which was merged
        left, right = before[i], after[j]
        if left >= 0:
            places[symbols[left], left_symbol].discard(left)
            places[symbols[left], new].add(left)
            grown.add((symbols[left], new))
        if right >= 0:
            places[right_symbol, symbols[right]].discard(j)
            places[new, symbols[right]].add(i)
            grown.add((new, symbols[right]))
            before[right] = i
        symbols[i], symbols[j], after[i] = new, -1, right
    return grown
