"""Run by `test_exactness.py` in processes of their own: grids and captions -> digests.

    python -m tests.exact_worker GRIDS.npz THREADSxAT_ONCE ...

prints one line for each of the ways to run: for every picture and rate a SHA-256 over the coded
bytes, the tokens read back, and the tokens that hybrid mode invents.
"""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from percov2_core.caption.language import load_language
from percov2_core.caption.packing import read_caption, write_caption
from percov2_core.config import RATES
from percov2_core.entropy.coder import SymbolReader, SymbolWriter
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.prior import TokenPrior

# Not from `weights`, which takes longer to import than all that is done here.
MODEL = Path(__file__).parents[1] / "percov2_core" / "models" / "embedded"


def digest(prior: TokenPrior, language, tokens: np.ndarray, caption: str) -> str:
    parts = []
    for sent in (tokens.size, tokens.size // 4, 0):
        writer = SymbolWriter()
        write_caption(writer.write, caption, language)
        for _ in prior.compress(tokens, caption, schedule="qlds", writer=writer, sent=sent):
            pass
        data = writer.finish()
        reader = SymbolReader(data)
        said = read_caption(reader.read, language)
        read = prior.decompress(
            reader, tokens.shape, caption=said, schedule="qlds", sent=sent, seed=0
        )
        reader.close()
        parts += [data, read.tokens.tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def main(path: str, *ways: str) -> None:
    language = load_language(MODEL / "caption_language.npz")
    priors = {r: TokenPrior(ExactModel.load(MODEL / r / "entropy.safetensors")) for r in RATES}
    with np.load(path) as arrays:
        jobs = [
            (priors[rate], language, grid, str(caption))
            for rate in RATES
            for grid, caption in zip(arrays[rate], arrays["captions"], strict=True)
        ]
    for threads, at_once in (map(int, way.split("x")) for way in ways):
        torch.set_num_threads(threads)
        with ThreadPoolExecutor(at_once) as pool:
            print(*pool.map(lambda job: digest(*job), jobs))


if __name__ == "__main__":
    main(*sys.argv[1:])
