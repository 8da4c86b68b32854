"""Writes quantization.npz beside this file: what vector-quantize-pytorch 1.32.0 makes of fixed numbers. Not a dependency of the tests:

python -m venv /tmp/oracle && /tmp/oracle/bin/pip install torch==2.13.0 numpy==2.4.6 vector-quantize-pytorch==1.32.0
/tmp/oracle/bin/python tests/golden/quantization.py"""

from pathlib import Path

import numpy as np
import torch
from vector_quantize_pytorch import FSQ, ResidualVQ

LAYERS, SIZE, WIDTH, VECTORS = 4, 32, 6, 1000


def residual() -> dict[str, torch.Tensor]:
    """Ids, sums of codes, the commitment of each layer, and what codes and averages are after one update."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(VECTORS, WIDTH, generator=generator)
    codes = torch.randn(LAYERS, SIZE, WIDTH, generator=generator) * 0.6 ** torch.arange(LAYERS)[:, None, None]
    oracle = ResidualVQ(
        dim=WIDTH,
        num_quantizers=LAYERS,
        codebook_size=SIZE,
        decay=0.99,
        threshold_ema_dead_code=0,
        commitment_weight=1.0,
    )
    for layer, start in zip(oracle.layers, codes, strict=True):
        book = layer._codebook
        book.embed.copy_(start[None])
        book.cluster_size.fill_(30.0)
        book.embed_avg.copy_(start[None] * 30.0)
    with torch.no_grad():
        oracle.eval()
        quantized, ids, _ = oracle(vectors[None])
        oracle.train()
        _, _, commitment = oracle(vectors[None])
    books = [layer._codebook for layer in oracle.layers]
    return {
        "vectors": vectors,
        "codes": codes,
        "ids": ids[0],
        "quantized": quantized[0],
        "commitment": commitment,
        "codes_after": torch.stack([book.embed[0] for book in books]),
        "counts_after": torch.stack([book.cluster_size[0] for book in books]),
        "sums_after": torch.stack([book.embed_avg[0] for book in books]),
    }


def finite_scalar(levels: tuple[int, ...]) -> dict[str, torch.Tensor]:
    z = 2 * torch.randn(VECTORS, len(levels), generator=torch.Generator().manual_seed(len(levels)))
    codes, ids = FSQ(levels)(z[None])
    name = "_".join(map(str, levels))
    return {f"z_{name}": z, f"codes_{name}": codes[0], f"ids_{name}": ids[0]}


if __name__ == "__main__":
    tables = {**residual(), **finite_scalar((8, 5, 5, 5)), **finite_scalar((8, 6, 5)), **finite_scalar((7, 5, 5, 5, 5))}
    narrow = {name: t.to(torch.int32) if t.dtype == torch.int64 else t for name, t in tables.items()}
    np.savez_compressed(
        Path(__file__).with_suffix(".npz"), **{name: table.detach().numpy() for name, table in narrow.items()}
    )
