"""Stage `surrogate`: a small network that stands in for the decoder in the encoder's search.

The search asks how the picture changes with a token, so the loss weighs what differs between two
choices of tokens for a crop. B batch, D code width, h x w token grid, H x W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from percov2_core.codec import PerCoV2
from percov2_core.config import FINE
from percov2_core.hyper.networks import HyperDecoder, draw_surrogate
from percov2_core.training.loop import StepLoss, run
from percov2_core.training.samples import CropPlan, PhotoCrops, to_float
from percov2_core.weights import load_codec
from percov2_core.weights.files import SURROGATE_DIR
from percov2_core.weights.networks import pack

if TYPE_CHECKING:
    from percov2_core.training.recipes import RunOptions

SIZES: dict[str, Any] = {"widths": (160, 64), "depths": (4, 1)}
NEARNESS = 20.0  # of the codes that take each other's place, per unit of cosine
CHANGE = 4.0  # weight of the squared error of the change beside that of the picture
EACH, KEPT = 4, 512  # steps for each new batch; how many are kept, which the others see again


class SurrogateSystem(nn.Module):
    """The network and its loss against the codec that it stands in for."""

    def __init__(self, codec: PerCoV2) -> None:
        super().__init__()
        width = codec.levels[FINE.name].quantizer.codebook.shape[1]
        self.surrogate = HyperDecoder(3 * 4**2, feature_channels=0, code_dim=width, **SIZES)
        self._codec = [codec]  # in a list: frozen, not part of the checkpoint
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._step = 0

    def forward(self, batch: NDArray[Any], progress: float) -> StepLoss:
        if self._step % EACH == 0:
            x = to_float(batch).to(self._codec[0].device)
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                self._kept = [*self._kept[1 - KEPT :], self._pairs(x)]
        pick = -1 if self._step % EACH == 0 else int(torch.randint(len(self._kept), ()))
        self._step += 1
        codes, target = self._kept[pick]
        wrong = draw_surrogate(self.surrogate, codes).float() - target.float()
        error, change = wrong.square().mean(), torch.sub(*wrong.chunk(2)).square().mean()
        changed = torch.sub(*target.float().chunk(2)).square().mean()
        logs = {"error": error.item(), "change": change.item(), "changed": changed.item()}
        return StepLoss(100 * (error + CHANGE * change), logs)

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (2 B, D, h, w) codes, (2 B, 3, H, W) pictures: nearest codes, others."""
        codec = self._codec[0]
        level = codec.levels[FINE.name]
        vectors = level.encoder(codec.vae.encode(x))
        nearest = level.quantizer.tokens(vectors)
        unit = F.normalize(vectors, dim=1).movedim(1, -1) @ level.quantizer.codebook.float().T
        chances = (NEARNESS * unit).softmax(-1).flatten(0, 2)
        others = torch.multinomial(chances, 1).reshape(nearest.shape)
        share = torch.rand(len(x), 1, 1, device=x.device)
        others = torch.where(torch.rand(others.shape, device=x.device) < share, others, nearest)
        codes = level.quantizer.lookup(torch.cat([nearest, others]))
        return codes, codec.search.decode_codes(codes).half()


def train_surrogate(options: RunOptions) -> None:
    """Train for `--model`, then write the averaged weights to OUT/surrogate."""
    codec = load_codec(options.model or "embedded")
    loop = options.loop(lr=1.5e-3)
    plan = options.settings(CropPlan, "plan", sides=(256,), weights=(1.0,), batch_px=2 * 256**2)
    system = SurrogateSystem(codec)
    crops = PhotoCrops(options.photos(), plan, loop.seed)
    run(system, crops.pixels, options.out, config=loop, resume=options.resume)
    system.surrogate.half().save_pretrained(options.out / SURROGATE_DIR)
    pack(options.out / SURROGATE_DIR)
