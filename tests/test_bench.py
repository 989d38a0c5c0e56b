"""The bench counts what it says, puts a stopwatch around every box, and keeps what it measured."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from percov2_core.cli import main
from percov2_core.entropy.exporter import export
from percov2_core.errors import ConfigError
from percov2_core.evaluation.bench import loop, machine, measure, rows
from percov2_core.evaluation.bench.boxes import time_boxes
from percov2_core.evaluation.bench.flops import transformer_flops
from percov2_core.weights import fresh
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import TINY, TRANSFORMER
from tests.tiny import picture, tiny_codec, tiny_masked_model

CPU = torch.device("cpu")


def counted(run):
    # The counter knows no attention kernel of the CPU: the plain one is made of products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_layers": 3, "dual_attention_layers": (0, 2), "qk_norm": "rms_norm"}],
    ids=["sd3", "sd3.5"],
)
def test_the_formula_counts_what_the_counter_of_torch_counts(changes):
    network = SD3Transformer2DModel(**{**TINY.transformer, "in_channels": 20, **changes})
    x, words, pooled = torch.randn(2, 20, 12, 16), torch.randn(2, 7, 96), torch.randn(2, 64)
    expected = counted(lambda: network(x, words, pooled, torch.ones(2)))
    assert (
        transformer_flops(network.config, height=12, width=16, text_tokens=7, batch=2) == expected
    )


def test_the_full_size_costs_what_its_parameters_make_likely():
    # Two operations for each parameter and token, of which the text's part is small.
    flops = transformer_flops(TRANSFORMER, height=64, width=64, text_tokens=77)
    assert 1.5e12 < flops < 2.0e12


@pytest.fixture(scope="module")
def codec():
    return measure.open_codec("tiny-random", random=True, t5=False, device="cpu")


@pytest.mark.parametrize(("guidance", "size"), [(1.0, 64), (3.0, 64), (3.0, 128)])
def test_the_loop_counts_every_call_whatever_guidance_and_tiles_make_of_it(codec, guidance, size):
    point = loop.Point(mode="extreme", size_px=size, batch=2, steps=2, guidance=guidance)
    run, flow = loop.sampling(codec, point)
    assert loop.counted_flops(flow, run) == counted(run)


def test_a_tiled_loop_counts_its_tiles():
    codec = tiny_codec()
    point = loop.Point(mode="extreme", size_px=576, batch=1, steps=1, guidance=1.0)
    run, flow = loop.sampling(codec, point)
    config = flow.transformer.config
    assert flow.config.tile < 72
    found = loop.counted_flops(flow, run)
    assert found == counted(run)
    assert found > transformer_flops(config, height=72, width=72, text_tokens=48)


def test_a_loop_on_a_cpu_has_no_device_to_copy_to(codec):
    point = loop.Point(mode="ultra-low", size_px=64, batch=1, steps=1, guidance=1.0)
    timing = loop.time_loop(codec, point, repeats=1)
    assert timing.copies is None
    assert timing.tflops == timing.flops / timing.seconds / 1e12


def test_copies_between_the_memories_count_and_others_do_not():
    names = [
        "Memcpy HtoD (Pageable -> Device)",
        "Memcpy DtoH (Device -> Pinned)",
        "Memcpy DtoD (Device -> Device)",
        "Memset (Device)",
        "aten::copy_",
    ]
    assert machine.copies_among(names) == 2


def test_every_box_has_a_time_and_the_methods_are_put_back():
    codec = tiny_codec()
    timing = time_boxes(codec, picture(), "extreme", repeats=1)
    assert set(timing.encode_boxes) == {
        "captioner", "autoencoder", "hyper-encoder", "quantiser", "search", "caption coding",
        "token coding",
    }  # fmt: skip
    assert set(timing.decode_boxes) == {
        "caption coding", "token coding", "quantiser", "hyper-decoder", "text encoder", "flow",
        "autoencoder",
    }  # fmt: skip
    # Boxes do not overlap: what one calls is not counted again.
    assert sum(timing.encode_boxes.values()) <= timing.encode_s
    assert sum(timing.decode_boxes.values()) <= timing.decode_s
    assert "describe" not in vars(codec) and "encode" not in vars(codec.vae)


def row(**changes):
    values = {
        "model": rows.TARGET, "weights": "random", "kind": "cuda", "device": "A GPU",
        "dtype": "bfloat16", "t5": "no", "mode": "extreme", "size_px": 512, "batch": 1,
        "steps": 20, "guidance": 3.0, "encode_s": 0.5, "decode_s": 1.5, "loop_s": 1.0,
        "loop_tflops": 30.0, "matmul_tflops": 60.0, "copies": "0", "peak_gib": 11.0,
        "size_bytes": 700, "note": "a, b",
        "boxes": "encode token coding=0.1; decode caption coding=0.3; decode flow=1.0",
    }  # fmt: skip
    return rows.BenchRow(**{**values, **changes})


def test_rows_survive_the_file_and_a_second_measurement_replaces_the_first(tmp_path):
    rows.write([row(), row(steps=4)], tmp_path)
    rows.write([row(decode_s=1.25)], tmp_path)
    found = rows.read(tmp_path / "bench.csv")
    assert found == [row(decode_s=1.25), row(steps=4)]
    (tmp_path / "bench.csv").write_text("speed\n1\n")
    with pytest.raises(ConfigError, match=r"has columns \['speed'\], expected model, weights"):
        rows.read(tmp_path / "bench.csv")
    assert row().share == 0.5 and row().entropy_share == pytest.approx(0.2)


def test_the_table_says_what_was_not_measured():
    nothing, one = rows.as_markdown([]), rows.as_markdown([row()])
    assert nothing.count("| not measured | not measured |") > 0
    assert len(nothing.splitlines()) == len(one.splitlines())  # one took the place of another
    assert "| any GPU | any | 512 | 1 | 20 | above 1 | no |" in nothing
    assert "| any GPU | any | 512 | 1 | 20 | above 1 | no |" not in one
    # A toy or a CPU is no measurement of the full size on a GPU.
    for other in (row(kind="cpu"), row(model="percov2-tiny-random")):
        assert "| any GPU | any | 512 | 1 | 20 | above 1 | no |" in rows.as_markdown([other])


def test_the_command_sweeps_its_lists_and_writes_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "_SIDES", {"cpu": 64})
    options = "--repeats 1 --modes extreme --size 64 --steps 1 2 --guidance 1 3 --out"
    words = ["bench", "--model", "tiny-random", "--device", "cpu", *options.split()]
    status = main([*words, str(tmp_path)])
    found = rows.read(tmp_path / "bench.csv")
    assert status == 0
    assert [(r.steps, r.guidance) for r in found] == [(1, 1.0), (1, 3.0), (2, 1.0), (2, 3.0)]
    assert {(r.weights, r.kind, r.t5, r.copies) for r in found} == {
        ("random", "cpu", "yes", "no device")
    }
    assert "of the matrix product; host-device copies: no device" in capsys.readouterr().out


def test_a_model_that_has_no_published_size_is_refused_in_one_line(capsys):
    assert main(["bench", "--device", "cpu", "--random-weights"]) == 2
    assert "--random-weights: model must be one of sd3-medium" in capsys.readouterr().err


def test_random_weights_are_built_where_they_will_run(monkeypatch):
    # "meta" stands for a GPU: a device other than the CPU that every machine has.
    told = []
    twin = export(tiny_masked_model())

    def on(config, tables, *, device):
        told.append(device)
        return twin

    monkeypatch.setattr(fresh, "ExactModel", on)
    codec = fresh.random_codec(TINY, residency=Residency(device="meta"), t5_tokens=8)
    assert told == ["meta"] * 2
    for modules in codec.rates.values():
        for part in (modules.encoder, modules.quantizer, modules.decoder, modules.flow):
            assert devices(part) == {"meta"}
        assert devices(modules.text) == {"meta"}
    assert codec.device.type == "meta"


def devices(part):
    return {value.device.type for value in (*part.parameters(), *part.buffers())}


def test_random_weights_exist_only_where_sizes_are_published():
    with pytest.raises(ConfigError, match="got 'embedded'"):
        measure.open_codec("embedded", random=True, t5=True, device="cpu")
