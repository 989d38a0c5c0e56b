"""Run by `test_entropy_exact.py` in processes of their own: tokens and captions -> digests.

    python -m tests.exact_worker TOKENS.npz AT_ONCE ...

prints one line for each number of pictures at a time: for every picture, as extreme and as a hybrid
file of all tokens, a SHA-256 over the bytes of its cuts, the tokens read from them, and the
guesses. The first picture is cut at every stage, the others at every fifth.
"""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from percov2_core.caption.language import load_language
from percov2_core.config import LEVELS
from percov2_core.contents import FileCodec, FileModules, Tokens
from percov2_core.entropy.exact import ExactModel
from percov2_core.entropy.prior import TokenPrior

# Not from `weights`, which takes longer to import than all that is done here.
MODEL = Path(__file__).parents[1] / "percov2_core" / "models" / "embedded"


def digest(codec, tokens, mode, step):
    total = tokens.coarse.size + tokens.fine.size
    whole = codec.write(tokens, mode, count=total if mode == "hybrid" else None)
    parts = []
    for stage in range(0, len(codec.stage_ends(whole)), step):
        cut = codec.truncate(whole, stage=stage)
        found = codec.read(cut)
        read = [found.fine.tokens, found.guesses, found.coarse and found.coarse.tokens]
        parts += [cut.to_bytes(), *(grid.tobytes() for grid in read if grid is not None)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def main(path, *ways):
    priors = {n: TokenPrior(ExactModel.load(MODEL / n / "entropy.safetensors")) for n in LEVELS}
    codec = FileCodec(
        name="embedded",
        digest=bytes(32),
        language=load_language(MODEL / "caption_language.npz"),
        levels={name: FileModules(prior=prior) for name, prior in priors.items()},
    )
    with np.load(path) as arrays:
        size, captions = tuple(arrays["size"].tolist()), map(str, arrays["captions"])
        found = zip(captions, arrays["coarse"], arrays["fine"], strict=True)
        pictures = [(Tokens(size, *tokens), 5 if i else 1) for i, tokens in enumerate(found)]
    jobs = [(codec, p, mode, step) for p, step in pictures for mode in ("extreme", "hybrid")]
    for at_once in map(int, ways):
        with ThreadPoolExecutor(at_once) as pool:
            print(*pool.map(lambda job: digest(*job), jobs))


if __name__ == "__main__":
    main(*sys.argv[1:])
