"""Images as grids of ids."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dtrl.errors import InputError
from dtrl.tokenizers import ImageCodes
from dtrl.tokenizers.autoencoder import FitOptions

FEW = FitOptions(steps=10, batch_size=8)
SHAPES = [(8, 9), (8, 8, 3), (3, 8, 8), (4, 7, 5), (2, 8, 8, 3), (2, 3, 8, 8), (1, 1)]


def images(shape, count=24):
    """Random bytes of 10 … 19, the first pixel always 12."""
    x = np.random.default_rng(0).integers(10, 20, (count, *shape), dtype=np.uint8)
    x.reshape(count, -1)[:, 0] = 12
    return x


def made(shape, **options):
    tokenizer = ImageCodes(shape, (5, 4), width=4, **{"halvings": 1, "options": FEW, **options})
    tokenizer.fit(images(shape))
    return tokenizer


@pytest.mark.parametrize("shape", SHAPES)
def test_every_layout_becomes_a_grid_of_ids_and_comes_back_as_bytes(shape):
    tokenizer = made(shape)
    x = torch.from_numpy(images(shape)).unflatten(0, (3, 8))
    tokens = tokenizer.encode(x)
    _, height, width = tokenizer.image.grid
    assert tokens.shape == (3, 8, -(-height // 2) * -(-width // 2))
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < 20
    back = tokenizer.decode(tokens)
    assert back.shape == x.shape
    assert back.dtype == torch.uint8
    assert back.min() >= 10
    assert back.max() <= 19
    assert (back.flatten(2)[..., 0] == 12).all()


def test_ids_look_at_their_own_place_row_by_row():
    tokenizer = made((8, 9), halvings=1)
    x = torch.from_numpy(images((8, 9))[:1])[None]
    changed = x.clone()
    changed[..., 7, 8] = torch.where(x[..., 7, 8] > 14, 10, 19)
    tokens = tokenizer.encode(x)
    weights = dict(tokenizer.encoder.named_buffers())
    assert any(weight.abs().max() > 0 for weight in weights.values())
    moved = (tokenizer.latent(changed[0, :, None]) - tokenizer.latent(x[0, :, None])).abs().sum(-1).flatten()
    # a cell sees the pixels of 6 × 6 around it
    assert moved.reshape(4, 5)[2:, 3:].min() > 0
    assert moved.reshape(4, 5)[:2].max() == moved.reshape(4, 5)[:, :3].max() == 0
    assert tokens.shape == (1, 1, 20)


@pytest.mark.slow
def test_a_moving_square_is_kept():
    places = np.random.default_rng(0).integers(0, 7, (500, 2))
    x = np.zeros((500, 8, 8, 3), np.uint8)
    for image, (row, column) in zip(x, places, strict=True):
        image[row : row + 2, column : column + 2] = [200, 100, 50]
    tokenizer = ImageCodes((8, 8, 3), halvings=1, width=16, options=FitOptions(600, 32, 3e-3))
    tokenizer.fit(x[:400])
    unseen = torch.from_numpy(x[400:])[None]
    error = (tokenizer.decode(tokenizer.encode(unseen)).float() - unseen).abs().mean() / unseen.float().std()
    assert error < 0.1  # a black image would be off by 0.2


def test_a_pixel_outside_its_range_is_clipped_and_told():
    tokenizer = made((8, 8, 3))
    x = torch.from_numpy(images((8, 8, 3)))[None]
    tokenizer_low = tokenizer.image.decode(tokenizer.low.reshape(1, 1, 1, -1))
    wild = x.clone()
    wild[0, 0, 2, 3, 1] = 0
    inside = torch.maximum(wild, tokenizer_low)
    assert torch.equal(tokenizer.encode(wild), tokenizer.encode(inside))
    assert tokenizer.outside(wild).nonzero().tolist() == [[0, 0, 2, 3, 1]]


def test_the_number_of_halvings_follows_from_the_size():
    for side, cells in ((1, 1), (4, 4), (5, 3), (7, 4), (64, 4), (84, 3)):
        assert ImageCodes((side, side)).cells == [cells, cells]


def test_it_repeats_and_leaves_the_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    tokenizer, other = made((8, 8, 3)), made((8, 8, 3))
    assert torch.rand(1) == expected
    for name, buffer in tokenizer.state_dict().items():
        assert torch.equal(other.state_dict()[name], buffer), name
    assert not list(tokenizer.parameters())


def test_more_images_than_training_needs_are_taken_evenly(monkeypatch):
    monkeypatch.setattr("dtrl.tokenizers.image_codes.MOST_BYTES", 64 * 3)
    x = images((8, 8))
    x[1, 3, 3] = 99  # not among those taken, and in the range all the same
    tokenizer = ImageCodes((8, 8), (5, 4), width=4, options=FEW)
    tokenizer.fit(x)
    assert tokenizer.high[0, 3, 3] == 99


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"values of shape \(8,\) are no images"):
        ImageCodes((8,))
    with pytest.raises(InputError, match="halvings = -1 and width = 32 make no network"):
        ImageCodes((8, 8), halvings=-1)
    tokenizer = ImageCodes((8, 8, 3), options=FEW)
    with pytest.raises(InputError, match="type float64, and images are of bytes"):
        tokenizer.fit(images((8, 8, 3)).astype(np.float64))
    with pytest.raises(InputError, match=r"shape \(0, 8, 8, 3\)|no row"):
        tokenizer.fit(images((8, 8, 3))[:0])
    with pytest.raises(InputError, match=r"shape \(1, 8, 8\)"):
        tokenizer.fit(images((8, 8)))


def test_it_offers_itself_for_images_of_bytes():
    assert ImageCodes.for_space(spaces.Box(0, 255, (7, 7, 3), np.uint8)).num_tokens == 16
    assert ImageCodes.for_space(spaces.Box(0, 255, (7,), np.uint8)) is None
    assert ImageCodes.for_space(spaces.Box(0, 1, (7, 7, 3))) is None
