"""Byte pairs of integers: against merges by hand, Hugging Face's tokenizers, and the laws that any lossless code obeys."""

import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers
import torch
from gymnasium import spaces
from hypothesis import given

from dtrl.errors import InputError
from dtrl.tokenizers import BytePairs
from dtrl.tokenizers.byte_pairs import learn_merges

A, B, C = range(3)
PRIVATE = 0xE000
"""The first of the code points that Unicode gives no meaning: no rule about text applies to them."""


def fitted(rows, alphabet, vocab_size, **options):
    rows = np.asarray(rows)
    tokenizer = BytePairs(alphabet, vocab_size=vocab_size, block_length=rows.shape[1], **options)
    tokenizer.fit(rows if rows.shape[1] > 1 else rows[:, 0])
    return tokenizer


def content(tokenizer, rows):
    """The ids of each row, without padding."""
    tokens = tokenizer.encode(torch.as_tensor(np.asarray(rows)))[:, 0]
    return [[i for i in row if i != tokenizer.padding_id] for row in tokens.tolist()]


tables = st.integers(1, 6).flatmap(
    lambda alphabet: st.tuples(
        st.just(alphabet),
        st.integers(1, 12).flatmap(
            lambda n: st.lists(st.lists(st.integers(0, alphabet - 1), min_size=n, max_size=n), min_size=1, max_size=20)
        ),
        st.integers(0, 30),
    )
)


def test_merges_by_hand():
    # abababc, twice: ab stands 6 times → 3 3 3 c; 33 stands 4 times → 4 3 c; (3, c) and (4, 3) twice, the smaller first → 4 5; then 45.
    rows = [[A, B, A, B, A, B, C]] * 2
    assert learn_merges(np.array(rows), 3, 10) == [(A, B), (3, 3), (3, C), (4, 5)]
    assert content(fitted(rows, 3, 3 + 4 + 1), rows) == [[6], [6]]
    assert content(fitted(rows, 3, 3 + 2 + 1), rows) == [[4, 3, C]] * 2


def test_a_pair_seen_once_is_not_learned():
    assert learn_merges(np.array([[A, B, C]]), 3, 10) == []


def test_a_run_is_merged_from_the_left():
    tokenizer = fitted([[A] * 5] * 3, 1, 3)
    assert content(tokenizer, [[A] * 5]) == [[1, 1, A]]


def test_pairs_do_not_reach_from_one_row_into_the_next():
    assert learn_merges(np.array([[A, B]] * 5), 2, 10) == [(A, B)]


@pytest.mark.parametrize("seed", range(20))
def test_as_hugging_face_does(seed):
    random = np.random.default_rng(seed)
    alphabet, n, count = (int(random.integers(low, high)) for low, high in ((1, 12), (2, 30), (1, 150)))
    vocab_size = alphabet + 1 + int(random.integers(0, 60))
    rows = np.minimum(random.integers(0, alphabet, (count, n)), random.integers(0, alphabet, (count, n)))

    def text(row):
        return "".join(chr(PRIVATE + i) for i in row)

    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=[text([i]) for i in range(alphabet)],
        show_progress=False,
    )
    peer.train_from_iterator(map(text, rows), trainer)
    tokenizer = fitted(rows, alphabet, vocab_size)
    others = random.integers(0, alphabet, (50, n))
    for table in (rows, others):
        assert content(tokenizer, table) == [peer.encode(text(row)).ids for row in table]


@given(tables)
def test_nothing_is_lost(table):
    alphabet, rows, learned = table
    tokenizer = fitted(rows, alphabet, alphabet + learned + 1)
    every = torch.cartesian_prod(*[torch.arange(alphabet)] * min(len(rows[0]), 3)).reshape(-1, min(len(rows[0]), 3))
    unseen = torch.cat([every, torch.zeros(len(every), len(rows[0]) - every.shape[1], dtype=torch.int64)], dim=1)
    for x in (torch.tensor(rows), unseen):
        tokens = tokenizer.encode(x)
        assert torch.equal(tokenizer.decode(tokens), x)
        assert 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size
        padding = (tokens == tokenizer.padding_id).long()
        assert (padding.diff(dim=-1) >= 0).all()  # only behind the content


@pytest.mark.slow
@given(tables)
def test_more_ids_never_make_the_data_longer(table):
    alphabet, rows, learned = table
    lengths = [sum(map(len, content(fitted(rows, alphabet, alphabet + count + 1), rows))) for count in (0, learned, 40)]
    assert lengths[0] == len(rows) * len(rows[0]) >= lengths[1] >= lengths[2]


def test_any_ids_are_decoded():
    rows = [[A, B, A, B, C, C]] * 2
    tokenizer = fitted(rows, 3, 3 + 3 + 1, fill=C)
    assert tokenizer.merges.tolist() == [[A, B], [C, C], [3, 3]]
    pad = tokenizer.padding_id
    for ids, symbols in (
        ([5, 4, pad, pad, pad, pad], [A, B, A, B, C, C]),
        (
            [pad, 3, pad, A, pad, pad],
            [A, B, A, C, C, C],
        ),  # padding stands for nothing wherever it is; what is missing is filled
        ([5, 5, A, A, A, A], [A, B, A, B, A, B]),  # what is too much is left out, in the middle of a piece too
        ([A, 5, 3, pad, pad, pad], [A, A, B, A, B, A]),
        ([pad] * 6, [C] * 6),
    ):
        assert tokenizer.decode(torch.tensor([[ids]])).tolist() == [symbols]


def test_ids_for_which_the_data_had_no_pairs_stand_for_nothing():
    tokenizer = fitted([[A, B]] * 3, 2, 10)
    assert (tokenizer.merges[:, 0] >= 0).sum() == 1
    assert tokenizer.decode(torch.tensor([[[7, 2]]])).tolist() == [[A, B]]


def test_ids_beyond_the_alphabet_become_the_nearest_and_are_told():
    tokenizer = fitted([[A, B]] * 3, 2, 10)
    x = torch.tensor([[-5, 9]])
    assert tokenizer.decode(tokenizer.encode(x)).tolist() == [[0, 1]]
    assert tokenizer.outside(torch.tensor([[-5, 9, 0, 1]])).tolist() == [[True, True, False, False]]


def test_steps_of_several_ids_are_laid_out_end_to_end():
    rows = np.random.default_rng(0).integers(0, 3, (30, 4, 2))
    tokenizer = BytePairs(3, (2,), vocab_size=20, block_length=4)
    tokenizer.fit(rows)
    x = torch.from_numpy(rows).reshape(5, 24, 2)
    tokens = tokenizer.encode(x)
    assert tokens.shape == (5, 6, 8)
    assert torch.equal(tokenizer.decode(tokens), x)
    assert tokenizer.merges.tolist() == fitted(rows.reshape(30, 8), 3, 20).merges.tolist()


def test_what_was_learned_is_saved():
    rows = np.random.default_rng(0).integers(0, 3, (30, 8))
    tokenizer, fresh = fitted(rows, 3, 20), BytePairs(3, vocab_size=20, block_length=8)
    fresh.load_state_dict(tokenizer.state_dict())
    assert set(tokenizer.state_dict()) == {"fitted", "merges"}
    assert content(fresh, rows) == content(tokenizer, rows)
    assert torch.equal(fresh.decode(fresh.encode(torch.from_numpy(rows))), torch.from_numpy(rows))


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"vocab_size = 5 has no room for 5 symbols and .*; choose 6 or more"):
        BytePairs(5, vocab_size=5)
    with pytest.raises(InputError, match=r"fill = 3 is no symbol of an alphabet of 3; choose one of 0 … 2"):
        BytePairs(3, vocab_size=9, fill=3)


def test_large_data_are_learned_from_rows_taken_evenly(monkeypatch):
    monkeypatch.setattr("dtrl.tokenizers.byte_pairs.MOST_SYMBOLS", 10)
    rows = [[A, B], [C, C]] * 10  # 40 ids: every fourth row is learned from
    assert fitted(rows, 3, 9).merges[:2].tolist() == [[A, B], [-1, -1]]


def test_it_offers_itself_for_ids_that_count_from_zero():
    tokenizer = BytePairs.for_space(spaces.Discrete(7), 64)
    assert (tokenizer.alphabet, tokenizer.vocab_size, tokenizer.shape) == (7, 64, ())
    assert BytePairs.for_space(spaces.Discrete(300), 64).vocab_size == 301
    assert BytePairs.for_space(spaces.Discrete(7, start=1)) is None
    assert BytePairs.for_space(spaces.Box(-1, 1, (2,))) is None
