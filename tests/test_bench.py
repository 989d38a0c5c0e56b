"""The bench counts what it says, puts a stopwatch around every box, and keeps what it measured."""

import re
from dataclasses import replace
from functools import partial
from itertools import product
from unittest.mock import Mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from percov2_core.baselines.classic import find_baseline
from percov2_core.cli import main
from percov2_core.config import OWN_PAINTER
from percov2_core.errors import ConfigError, UnavailableError
from percov2_core.evaluation import bench, bench_table
from percov2_core.evaluation.bench_table import BenchRow
from percov2_core.weights import fresh
from percov2_core.weights.residency import Residency
from percov2_core.weights.sizes import TINY
from tests.tiny import picture, tiny_codec, tiny_folder


def row(**changes):
    values = {
        "model": "percov2-sd3-medium", "weights": "random", "kind": "cuda", "device": "A GPU",
        "dtype": "bfloat16", "t5": "no", "mode": "extreme", "size": "512x512", "batch": 1,
        "steps": 20, "guidance": 3.0, "effort": "fast", "encode_s": 0.5, "decode_s": 1.5,
        "loop_s": 1.0, "loop_tflops": 30.0, "matmul_tflops": 60.0, "copies": "0", "peak_gib": 11.0,
        "size_bytes": 700, "note": "a, b",
        "boxes": "encode token coding=0.1; decode caption coding=0.3; decode flow=1.0",
    }  # fmt: skip
    return BenchRow(**{**values, **changes})


@pytest.mark.parametrize(("guidance", "side", "batch"), [(1.0, 64, 1), (3.0, 64, 2), (1.0, 576, 1)])
def test_the_cpus_attention_counts_as_its_matrix_products_do(guidance, side, batch):
    codec, point = tiny_codec(), row(steps=2, guidance=guidance, batch=batch)
    run = bench.sampling(codec, point, codec.encode(picture(side, side), effort="fast"))
    with FlopCounterMode(display=False) as plain, sdpa_kernel(SDPBackend.MATH):
        run()
    assert bench.counted_flops(run) == plain.get_total_flops() > 0


def test_every_box_has_a_time_and_the_methods_are_put_back():
    codec, point = tiny_codec(), row(size="96x64", steps=2, effort="normal")
    held = bytearray(2**29)
    before = bench._peak_bytes(codec.device)
    del held
    found = bench.measure(codec, point, picture(), repeats=1)
    boxes = found.seconds_by_box()
    encode = "captioner autoencoder hyper-encoder quantiser search caption_coding token_coding"
    decode = "caption_coding token_coding quantiser hyper-decoder text_encoder flow autoencoder"
    names = [f"encode {box}" for box in encode.split()] + [f"decode {b}" for b in decode.split()]
    assert set(boxes) == {name.replace("_", " ") for name in names}
    assert boxes["decode flow"] > boxes["decode quantiser"]  # every step of it, not its start
    # Boxes do not overlap: what one calls is not counted again.
    assert sum(boxes.values()) <= found.encode_s + found.decode_s + 1e-3
    assert "describe" not in vars(codec) and "encode" not in vars(codec.vae)
    assert found.copies == "no device" and found.loop_tflops > 0
    assert found.peak_gib < before / 2**30  # what an earlier point needed is not this one's


def test_a_stopwatch_changes_no_picture_not_even_one_of_several_tiles():
    codec = tiny_codec()
    stream = codec.encode(picture(576, 64), effort="fast")
    decode, boxes = partial(codec.decode, stream, steps=2), bench._boxes(codec, OWN_PAINTER)
    assert bench._timed(codec, "decode", decode, boxes)[0] == decode()


def test_a_cpu_is_named_with_what_pytorch_uses_of_it(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    isa = torch.backends.cpu.get_cpu_capability()
    end = rf"\w.*, {isa}, bfloat16, ONEDNN_MAX_CPU_ISA=AVX2, \d+ of \d+ cores, 1 thread"
    assert re.fullmatch(end, bench.device_name(torch.device("cpu")))


def test_rows_survive_the_file_and_a_second_measurement_replaces_the_first(tmp_path):
    classic = BenchRow(model="WebP", kind="cpu", device="A", mode="quality 0", size="9x9", note="")
    bench_table.write([row(), row(steps=4), classic], tmp_path)
    bench_table.write([row(decode_s=1.25)], tmp_path)
    found = bench_table.read(tmp_path / "bench.csv")
    assert [found[0], found[2]] == [row(steps=4), row(decode_s=1.25)]
    assert bench_table.as_cells(found[1]) == bench_table.as_cells(classic)
    (tmp_path / "bench.csv").write_text("speed\n1\n")
    with pytest.raises(ConfigError, match=r"has columns \['speed'\], expected model, weights"):
        bench_table.read(tmp_path / "bench.csv")
    text = bench_table.as_text(row())
    assert re.search(r"entropy coding together +20.0%\n", text)
    assert re.search(r"decode_s_per_mp +5.72\n.*share +0.5\n", text, re.DOTALL)


def test_the_command_sweeps_its_lists_and_writes_the_table(tmp_path, capsys, monkeypatch, caplog):
    monkeypatch.setattr(bench, "_SIDES", {"cpu": 64})
    gone = replace(find_baseline("jxl"), encode=Mock(side_effect=UnavailableError("no such codec")))
    monkeypatch.setattr(bench, "USUAL", ((gone, 90), bench.USUAL[-1]))
    options = "--repeats 1 --modes extreme --size 64 96x64 --steps 1 2 --guidance 1 3 --out"
    words = ["bench", "--model", "tiny-random", "--device", "cpu", *options.split()]
    assert main([*words, str(tmp_path)]) == 0
    *found, usual, nearest, wide, _ = bench_table.read(tmp_path / "bench.csv")
    points = product(("64x64", "96x64"), (1, 2), (1.0, 3.0))
    assert [(r.size, r.steps, r.guidance) for r in found] == [*points]
    told = {(r.weights, r.kind, r.t5, r.copies) for r in found}
    assert told == {("random", "cpu", "yes", "no device")}
    assert (usual.model, usual.mode, usual.size) == ("WebP", "quality 80", "64x64")
    assert nearest.size_bytes < usual.size_bytes and wide.size == "96x64"
    assert "jxl at 64x64 left out: no such codec" in caplog.text
    assert re.search(r"model +WebP\n", capsys.readouterr().out)
    assert main(["bench", "--device", "cpu", "--random-weights"]) == 2
    assert "--random-weights: model must be one of sd3-medium" in capsys.readouterr().err


def test_a_second_painter_has_boxes_of_its_own_and_the_published_size_wants_a_gpu(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(bench, "_SIDES", {"cpu": 64})
    words = f"bench --model {tiny_folder()} --device cpu --repeats 1 --modes ultra-low --size 64"
    words = [*words.split(), "--random-weights", "--painter"]
    assert main([*words, "tiny-random", "--steps", "4", "--out", str(tmp_path)]) == 0
    assert main([*words, "sd3-medium", "--out", str(tmp_path)]) == 0
    small, large = bench_table.read(tmp_path / "bench.csv")
    assert (small.model, small.t5, small.steps) == ("tiny + tiny-random", "yes", 4)
    boxes = {box.removeprefix("decode painter's ") for box in small.seconds_by_box()}
    assert {"autoencoder", "text encoder", "flow"} <= boxes and small.loop_tflops > 0
    assert (large.model, large.weights) == ("tiny + sd3-medium", "random")
    assert re.search(r"decode_s +not measured\n", capsys.readouterr().out)
    table = (tmp_path / "bench.md").read_text()
    assert table.count("| not measured") >= 5 and "not measured: needs a GPU" in table
    assert main([*words, "sd4"]) == 2
    assert "painter must be one of" in capsys.readouterr().err


def test_random_weights_are_built_where_they_will_run():
    # "meta" stands for a GPU: a device other than the CPU that every machine has.
    codec = fresh.random_codec(TINY, residency=Residency(device="meta"), t5_tokens=8)
    painter, levels = codec.painter, codec.levels.values()
    parts = [painter.decoder, painter.flow, *painter.text.models]
    for part in (*parts, *(part for m in levels for part in (m.encoder, m.quantizer))):
        assert {v.device.type for v in (*part.parameters(), *part.buffers())} == {"meta"}
    assert codec.device.type == "meta"
