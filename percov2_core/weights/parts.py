"""The modules of a model: build them fresh, save them into its folder, load them strictly.

A painter brings everything, as in the embedded model, or takes transformer and text encoders from
Stable Diffusion 3 (`base`): then painter/ holds a full transformer, or its low-rank difference from
the base's as peft stores it: the low-rank matrices, and the extended patch embedding in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, SD3Transformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from percov2_core.caption.captioner import get_captioner
from percov2_core.caption.describer import VOCABULARY
from percov2_core.caption.language import CaptionLanguage
from percov2_core.codec import PerCoV2
from percov2_core.config import FINE, LATENT_CHANNELS, LEVELS, PARENT_RATIO, SearchConfig
from percov2_core.entropy.exporter import export
from percov2_core.entropy.masked_config import MaskedModelConfig
from percov2_core.entropy.masked_model import MaskedImageModel
from percov2_core.entropy.prior import TokenPrior
from percov2_core.errors import UnavailableError, WeightsError
from percov2_core.flow.sampler import TimesOf, sigmas
from percov2_core.flow.text import TextEmbedder, TextEncoder, small_text_encoder
from percov2_core.flow.transformer import FlowConfig, FlowModel, extend_patch_embedding
from percov2_core.hyper.networks import HyperDecoder, HyperEncoder, VectorQuantizer
from percov2_core.latent import LatentAutoencoder
from percov2_core.painting import Painter
from percov2_core.repaint import Repainter
from percov2_core.searching import LevelModules
from percov2_core.weights import files, networks
from percov2_core.weights.find import find_base
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import Sizes

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
PATCH_EMBEDDING = "pos_embed.proj"
TARGETS = (  # queries, keys, values and outputs of the picture and of the caption; feed-forward
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2"),
)


def build(
    sizes: Sizes, *, transformer: nn.Module | None = None, text: TextEmbedder | None = None
) -> tuple[dict[str, LevelModules], Painter]:
    """Fresh modules on the CPU; the entropy models give every token the same probability.
    `transformer` and `text` encoders are a base's, the input channels extended; None makes a
    transformer, which paints `start`, and an encoder."""
    text = text or small_text_encoder(VOCABULARY, width=sizes.text_width, layers=sizes.text_layers)
    flow = FlowConfig(**{field.name: getattr(sizes, field.name) for field in fields(FlowConfig)})
    decoder = HyperDecoder(
        LATENT_CHANNELS,
        sizes.features,
        sizes.decoder_widths,
        sizes.decoder_depths,
        sizes.code_dim,
        sizes.guidance_width,
        sizes.coarse_widths,
        sizes.coarse_depths,
    )
    levels = {name: _build_level(name, sizes) for name in LEVELS}
    flow_model = FlowModel(transformer or _own_transformer(sizes), flow)
    return levels, Painter(flow=flow_model, text=text, decoder=decoder)


def _build_level(name: str, sizes: Sizes) -> LevelModules:
    level, ratio = sizes.levels[name], PARENT_RATIO if name == FINE.name else 0
    count, width = sizes.codebook_size, sizes.code_dim
    masked = MaskedModelConfig(codebook_size=count, vocabulary=VOCABULARY, ratio=ratio)
    widths, depths = level.encoder_widths, level.encoder_depths
    return LevelModules(
        encoder=HyperEncoder(LATENT_CHANNELS, widths, depths, width),
        quantizer=VectorQuantizer(count, width),
        prior=TokenPrior(export(MaskedImageModel(masked).eval())),
        search=level.search,
    )


def assemble(
    about: files.About,
    *,
    digest: bytes,
    vae: LatentAutoencoder,
    levels: Mapping[str, LevelModules],
    painter: Painter,
    language: CaptionLanguage,
    times: TimesOf | None = None,
    home: Residency,
) -> PerCoV2:
    """The codec from its loaded parts; None are the times of the embedded model."""
    if home.compile_allowed:
        painter.flow.transformer.compile()
    return PerCoV2(
        name=about.name,
        digest=digest,
        vae=vae,
        levels=levels,
        painter=painter,
        language=language,
        captioners=partial(get_captioner, device=str(home.target)),
        times=times or (lambda steps, height, width: sigmas(steps, about.shift)),
        painters=lru_cache(maxsize=1)(partial(_load_repainter, home=home)),
        presets=about.file_presets,
        captioner=about.captioner,
    )


def _load_repainter(name: str, home: Residency) -> Repainter:
    from percov2_core.weights.base import load_repainter  # brings a pipeline, which takes seconds

    return load_repainter(name, home)


def save_level(modules: LevelModules, folder: Path, *, packed: bool) -> None:
    """Write all but the entropy model, which is trained afterwards and saved by itself. `packed` is
    in half precision, large matrices in 8 bits, and leaves the modules in half precision; else they
    keep the precision that they have."""
    _save(modules.encoder, folder / "hyper_encoder", packed)
    modules.quantizer.save_pretrained(folder / "quantizer")  # its numbers give tokens a meaning
    files.write_json(folder / "search.json", asdict(modules.search))
    if modules.surrogate:
        _save(modules.surrogate, folder / files.SURROGATE_DIR, packed)


def save_painter(painter: Painter, folder: Path, *, packed: bool) -> None:
    """Write the painter, `packed` as in `save_level`; the transformer as its low-rank difference if
    `add_lora` made it."""
    _save(painter.decoder, folder / "hyper_decoder", packed)
    if isinstance(painter.text, TextEncoder):
        _save(painter.text.model, folder / "text_encoder", packed)
        painter.text.tokenizer.save_pretrained(folder / "tokenizer")
    if is_lora(painter.flow.transformer):
        _save_lora(painter.flow.transformer, folder / "lora")
    else:
        _save(painter.flow.transformer, folder / "transformer", packed)
    files.write_json(folder / "flow.json", asdict(painter.flow.config))


def _save(part: Any, folder: Path, packed: bool) -> None:
    (part.half() if packed else part).save_pretrained(folder)
    if packed:
        networks.pack(folder)


def load_levels(folder: Path, home: Residency) -> dict[str, LevelModules]:
    """Load the levels of a model; WeightsError if a file is missing or damaged, or a parameter does
    not fit."""
    device = home.target
    return {
        place.name: LevelModules(
            encoder=networks.load_part(HyperEncoder, place / "hyper_encoder", device),
            quantizer=networks.load_part(VectorQuantizer, place / "quantizer", device),
            prior=files.load_prior(place / files.ENTROPY_FILE),
            search=files.read_settings(SearchConfig, place / "search.json"),
            surrogate=networks.load_part(HyperDecoder, place / files.SURROGATE_DIR, device)
            if (place / files.SURROGATE_DIR).is_dir()
            else None,
        )
        for place in (folder / name for name in LEVELS)
    }


def load_painter(
    folder: Path,
    home: Residency,
    *,
    base: Path | None = None,
    text: TextEmbedder | None = None,
    merge: bool = True,
) -> Painter:
    """Load painter/ of a model; one over Stable Diffusion 3 needs the folder of that `base`, and
    its `text` encoders (None loads those beside the painter). `merge` folds a low-rank difference
    into the weights; False keeps it apart, for training. WeightsError if a file is missing or
    damaged, or a parameter does not fit; UnavailableError if peft is needed and not installed."""
    device = home.target
    if base:
        transformer = _load_over(folder, base, home, merge)
    else:
        transformer = networks.load_part(SD3Transformer2DModel, folder / "transformer", device)
    return Painter(
        decoder=networks.load_part(HyperDecoder, folder / "hyper_decoder", device),
        text=text or _load_text(folder, device),
        flow=FlowModel(transformer, files.read_settings(FlowConfig, folder / "flow.json")).eval(),
    )


def load_vae_and_painter(
    folder: Path, about: files.About, home: Residency
) -> tuple[LatentAutoencoder, Painter, TimesOf | None]:
    """Of a folder that holds its own base, or what differs from Stable Diffusion 3, which has times
    of its own."""
    if not about.base:
        vae = LatentAutoencoder(networks.load_part(AutoencoderDC, folder / "vae", home.target))
        return vae, load_painter(folder / files.PAINTER_DIR, home), None
    from percov2_core.weights.base import load_base  # brings a pipeline, which takes seconds

    place = find_base(about.base, t5=home.t5 and about.t5_tokens > 0)
    base = load_base(place, name=about.base, residency=home, t5_tokens=about.t5_tokens)
    painter = load_painter(folder / files.PAINTER_DIR, home, base=place, text=base.text)
    return base.vae, painter, base.times


def _own_transformer(sizes: Sizes) -> SD3Transformer2DModel:
    transformer = SD3Transformer2DModel(
        sample_size=64,
        patch_size=2,
        in_channels=2 * LATENT_CHANNELS + sizes.features,
        num_layers=sizes.layers,
        attention_head_dim=sizes.head_dim,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_width,
        caption_projection_dim=sizes.heads * sizes.head_dim,
        pooled_projection_dim=sizes.text_width + sizes.guidance_width,
        out_channels=LATENT_CHANNELS,
        pos_embed_max_size=sizes.pos_embed_max,
        qk_norm="rms_norm",
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def load_transformer(folder: Path, home: Residency) -> SD3Transformer2DModel:
    """A transformer folder of a base, or of a model over it that changed every weight."""
    return networks.load_published(
        SD3Transformer2DModel, folder, device=home.target, dtype=home.precision
    )


def _load_over(folder: Path, base: Path, home: Residency, merge: bool) -> Any:
    if not (folder / "lora").is_dir():
        return load_transformer(folder / "transformer", home)
    features = int(files.read_json(folder / "hyper_decoder" / "config.json")["feature_channels"])
    plain = extend_patch_embedding(load_transformer(base / "transformer", home), features)
    wrapped = _load_lora(plain, folder / "lora")
    if not merge:
        return wrapped
    whole = wrapped.merge_and_unload()
    for parameter in whole.parameters():  # peft trains in float32
        parameter.data = parameter.data.to(home.precision)
    return whole.requires_grad_(False)


def _load_text(folder: Path, device: torch.device) -> TextEncoder:
    place = folder / "text_encoder"
    config = CLIPTextConfig(**files.read_json(place / "config.json"))
    model = networks.fill(CLIPTextModelWithProjection(config), place / networks.TEXT_WEIGHTS_FILE)
    files.existing(folder / "tokenizer" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return TextEncoder(model.to(device), tokenizer)


def add_lora(transformer: SD3Transformer2DModel, *, rank: int = 64) -> nn.Module:
    """Wrap an extended transformer so that only the low-rank part and the patch embedding train;
    before training its output is the transformer's. UnavailableError if peft is not installed."""
    peft = _peft()
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(TARGETS), modules_to_save=[PATCH_EMBEDDING]
    )
    wrapped: nn.Module = peft.get_peft_model(transformer, config)
    return wrapped


def is_lora(transformer: nn.Module) -> bool:
    """Whether `add_lora` made it."""
    return hasattr(transformer, "peft_config")


def _save_lora(transformer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    transformer.peft_config["default"].save_pretrained(folder)
    state = _peft().get_peft_model_state_dict(transformer)
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})


def _load_lora(transformer: SD3Transformer2DModel, folder: Path) -> Any:
    """Put a saved difference around an extended transformer, strictly."""
    peft = _peft()
    path = files.existing(folder / ADAPTER_FILE)
    files.existing(folder / ADAPTER_CONFIG_FILE)
    try:
        state = load_file(path)
        config = peft.LoraConfig.from_pretrained(str(folder))
        wrapped = peft.get_peft_model(transformer, config)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        problem = f"adapter {str(folder)!r} cannot be read: {files.one_line(error)}"
        raise WeightsError(problem) from error
    expected = peft.get_peft_model_state_dict(wrapped)
    shapes = [(name, state[name].shape, expected[name].shape) for name in state.keys() & expected]
    misshapen = [shape for shape in shapes if shape[1] != shape[2]]
    files.check_fit(path, expected.keys() - state.keys(), state.keys() - expected.keys(), misshapen)
    peft.set_peft_model_state_dict(wrapped, state)
    return wrapped


def _peft() -> Any:
    # Slow to load, and most models have no adapter.
    try:
        import peft
    except ImportError as error:
        raise UnavailableError("adapters need a library: run `pip install peft`") from error
    return peft
