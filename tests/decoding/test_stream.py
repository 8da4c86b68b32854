"""Streams: what was fed, less what was rolled back, is what the next token depends on."""

import pytest
import torch

from dtrl.decoding import PairedStream, RecomputedStream

PROMPTS = torch.tensor([[1, 2], [3, 0], [4, 4]])


def test_feeding_piece_by_piece_is_feeding_at_once(gpt2_model):
    more = torch.tensor([[5, 6, 7], [8, 9, 10], [0, 1, 2]])
    whole, pieces = RecomputedStream(gpt2_model, PROMPTS), RecomputedStream(gpt2_model, PROMPTS)
    first = pieces.logits()
    torch.testing.assert_close(whole.feed(more), torch.cat([pieces.feed(more[:, :1]), pieces.feed(more[:, 1:])], dim=1))
    logits, hidden = gpt2_model(torch.cat([PROMPTS, more], dim=1))
    torch.testing.assert_close(first, logits[:, 1])
    torch.testing.assert_close(whole.logits(), logits[:, -1])
    torch.testing.assert_close(whole.hidden(), hidden[:, -1])


def test_what_was_rolled_back_was_never_there(gpt2_model):
    stream = RecomputedStream(gpt2_model, PROMPTS)
    stream.feed(torch.tensor([[5, 6, 7]] * 3))
    stream.rollback(torch.tensor([0, 2, 3]))
    assert stream.contents() == [[1, 2, 5, 6, 7], [3, 0, 5], [4, 4]]
    logits = stream.feed(torch.tensor([[8], [9], [10]]))
    assert stream.contents() == [[1, 2, 5, 6, 7, 8], [3, 0, 5, 9], [4, 4, 10]]
    for row, ids in enumerate(stream.contents()):
        torch.testing.assert_close(logits[row, 0], gpt2_model(torch.tensor([ids]))[0][0, -1])


def test_rows_are_reordered_repeated_and_left_out(gpt2_model):
    stream = RecomputedStream(gpt2_model, PROMPTS)
    stream.reorder(torch.tensor([2, 0, 0, 2]))
    assert (stream.rows, stream.contents()) == (4, [[4, 4], [1, 2], [1, 2], [4, 4]])
    stream.feed(torch.tensor([[1], [2], [3], [4]]))
    assert stream.contents() == [[4, 4, 1], [1, 2, 2], [1, 2, 3], [4, 4, 4]]


def test_a_stream_needs_a_token_to_begin_with_and_keeps_it(markov):
    with pytest.raises(ValueError, match=r"prompts of shape \(3, 0\)"):
        RecomputedStream(markov(), PROMPTS[:, :0])
    with pytest.raises(ValueError, match=r"cannot forget \[0, 2, 0\] of \[2, 2, 2\]"):
        RecomputedStream(markov(), PROMPTS).rollback(torch.tensor([0, 2, 0]))


def test_a_pair_does_to_both_what_is_done_to_it(markov):
    models = markov(seed=1), markov(seed=2)
    alone = [RecomputedStream(model, PROMPTS) for model in models]
    pair = PairedStream([RecomputedStream(model, PROMPTS) for model in models], lambda a, b: a - 2 * b)
    torch.testing.assert_close(pair.logits(), alone[0].logits() - 2 * alone[1].logits())
    for stream in (pair, *alone):
        stream.reorder(torch.tensor([1, 1, 0, 2]))
        stream.feed(torch.tensor([[1, 2], [3, 4], [0, 1], [2, 3]]))
        stream.rollback(torch.tensor([0, 1, 1, 0]))
    more = torch.tensor([[0], [1], [2], [3]])
    torch.testing.assert_close(pair.feed(more), alone[0].feed(more) - 2 * alone[1].feed(more))
    torch.testing.assert_close(pair.hidden(), alone[0].hidden())
    assert pair.rows == 4
    with pytest.raises(ValueError, match="streams of 4 and of 3 rows cannot go in pairs"):
        PairedStream([pair, RecomputedStream(models[0], PROMPTS)], torch.add)
