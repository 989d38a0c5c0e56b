"""The page as programs see it, through its own client."""

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from percov2_core.bitstream import Stream
from percov2_core.ui import page
from tests.tiny import picture, tiny_codec, tiny_folder
from tests.ui_server import eventually, serve

pytestmark = [pytest.mark.ui, pytest.mark.timeout(600)]
README = Path(__file__).parents[1] / "README.md"


def client_of(server):
    return closing(Client(server.address, verbose=False))


@pytest.fixture
def client(server):
    with client_of(server) as client:
        yield client


def test_a_file_goes_out_and_comes_back(client, photo):
    path = client.predict(handle_file(photo), "extreme", "a cat", api_name="/compress")
    data = Path(path).read_bytes()
    expected = tiny_codec().encode(Image.open(photo), "extreme", caption="a cat")
    assert data == expected.to_bytes()
    small = client.predict(handle_file(photo), "extreme", "a cat", 40, api_name="/compress")
    fitted = tiny_codec().encode(Image.open(photo), size=40, caption="a cat")
    assert Path(small).read_bytes() == fitted.to_bytes()
    decoded = client.predict(handle_file(path), api_name="/decompress")
    assert Image.open(decoded).tobytes() == tiny_codec().decode(expected).tobytes()
    facts = client.predict(handle_file(path), api_name="/inspect")
    assert facts["caption"] == "a cat" and sum(facts["bits"].values()) == 8 * len(data)
    assert facts["tokens_sent"] == facts["tokens_total"] == {"coarse": 0, "fine": 60}


def test_only_three_endpoints_are_public_and_the_same_are_mcp_tools(client, server):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/compress", "/decompress", "/inspect"}
    with urllib.request.urlopen(f"{server.address}gradio_api/mcp/schema") as answer:
        tools = {tool["name"]: tool["description"] for tool in json.load(answer)}
    assert {name.rpartition("_")[2] for name in tools} == {"compress", "decompress", "inspect"}
    assert any(text.startswith("Compress a picture to a .pcv2 file") for text in tools.values())


def test_twenty_runs_of_five_clients_all_come_back_right(server, tmp_path):
    def visit(number):
        path = tmp_path / f"{number}.png"
        picture(seed=number).save(path)
        with client_of(server) as client:
            submit = partial(client.submit, handle_file(path), "ultra-low", api_name="/compress")
            jobs = [submit(f"run {i}") for i in range(4)]
            return [Path(job.result()).read_bytes() for job in jobs]

    with ThreadPoolExecutor(5) as pool:
        visits = list(pool.map(visit, range(5)))
    for number, files in enumerate(visits):
        for i, data in enumerate(files):
            expected = tiny_codec().encode(picture(seed=number), "ultra-low", caption=f"run {i}")
            assert Stream.from_bytes(data) == expected


def test_the_documented_snippet_runs(server, photo, monkeypatch, capsys):
    snippet = re.sub(r"^    ", "", (page.__doc__ or "").partition("\n\n")[2], flags=re.M).strip()
    if "gradio_client" in README.read_text(encoding="utf-8"):
        assert snippet in README.read_text(encoding="utf-8")
    monkeypatch.chdir(photo.parent)
    exec(snippet.replace("http://127.0.0.1:7860", server.address), {})
    assert "bytes:" in capsys.readouterr().out


def test_temporary_files_are_removed(tmp_path, photo):
    with serve(tiny_folder(), tmp_path, keep_files_s=2) as server, client_of(server) as client:
        client.predict(handle_file(photo), api_name="/compress")
        eventually(lambda: not any(path.is_file() for path in server.files.rglob("*")))
