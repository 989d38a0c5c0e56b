"""What programs and the host of the Space ask of the page: start, folders, stop, prefix, frame."""

import asyncio
import base64
import gc
import io
import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image, ImageChops
from starlette.testclient import TestClient

from percov2_core.bitstream import Stream
from percov2_core.ui import host, page
from percov2_core.ui.border import allowed_bytes
from percov2_core.ui.host import HEADERS, Door, trim
from tests import space
from tests.hub import files_of
from tests.space import FRAME_PX, PREFIX, proxy
from tests.tiny import ROOT, picture, tiny_codec, tiny_folder
from tests.tiny_sd3 import tiny_sd3_folder
from tests.ui_server import eventually, serve

pytestmark = [
    pytest.mark.ui,
    pytest.mark.timeout(600),
    # Clients and the browser leave sockets and event loops to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STAND_IN = Path(__file__).parent / "spaces_stand_in"


@pytest.fixture(autouse=True)
def leave_nothing_behind():
    yield
    gc.collect()


def same(one, other):
    """Whether two processes painted the same: theirs has other threads, which may round otherwise
    in the last bit of a sum. A wrong seed, file or setting differs by far more."""
    assert one.size == other.size
    return all(most <= 1 for _, most in ImageChops.difference(one, other).getextrema())


def there_and_back(address, photo, mode):
    client = Client(address, verbose=False, download_files=str(photo.parent))
    path = client.predict(handle_file(photo), mode, "a cat", api_name="/compress")
    decoded = client.predict(handle_file(path), api_name="/decompress")
    expected = tiny_codec().encode(Image.open(photo), mode, caption="a cat")
    assert Path(path).read_bytes() == expected.to_bytes()
    assert same(Image.open(decoded), tiny_codec().decode(expected))
    return client, path


def test_the_hosted_page_works_writes_nowhere_and_stops(tmp_path, photo):
    # Its only other fault: the second painter is wanted, and cannot be had.
    environment = {"PERCOV2_PAINTER": "sd3-medium"}
    with space.start(tmp_path / "space", model=tiny_folder(), **environment) as page:
        before = files_of(page.app)
        told = "Not here: 'sd3-medium' needs a GPU, and there is none."
        assert told in httpx.get(f"{page.address}config").text
        there_and_back(page.address, photo, "extreme")
        assert files_of(page.app) == before
        if page.home.parent == tmp_path / "space":
            assert files_of(page.home) == {}
        assert any(page.temporary.rglob("*.pcv2"))
        page.process.terminate()  # as the host does
        assert page.process.wait(60) == 0
    # Some versions of libraries have tracebacks of their own.
    _, *tracebacks = page.log.read_text(encoding="utf-8").split("Traceback")
    assert not any("percov2_core" in each for each in tracebacks)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A page on shared GPU hardware, behind a path prefix, whose painting can be held."""
    folder = tmp_path_factory.mktemp("held")
    here, script = folder / "space", ["-m", "tests.held_page", str(folder), "0"]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (STAND_IN, here / "app", space.ROOT))),
        "SPACES_ZERO_GPU": "true",
        "PERCOV2_PAINTER": str(tiny_sd3_folder()),
        "SPACES_STAND_IN_LOG": str(folder / "calls"),
        "GRADIO_ROOT_PATH": PREFIX,
    }
    with space.start(here, model=tiny_folder(), script=script, **environment) as page:
        yield page


def borrowed(held):
    log = (held.app.parents[1] / "calls").read_text()
    return [json.loads(line) for line in log.splitlines()]


def test_on_shared_hardware_what_sees_pixels_borrows_the_gpu(held, photo):
    with proxy(held.port) as outside:
        client, path = there_and_back(f"{outside}{PREFIX}/", photo, "ultra-low")
        look = ["vivid", 3, "", tiny_sd3_folder().name]
        repainted = client.predict(handle_file(path), *look, api_name="/decompress")
        with pytest.raises(AppError, match="painter must be one of own, percov2-tiny-sd3"):
            client.predict(handle_file(path), *look[:3], "sd3-medium", api_name="/decompress")
    stream = Stream.from_bytes(Path(path).read_bytes())
    look = {"preset": "vivid", "seed": 3, "painter": str(tiny_sd3_folder())}
    assert same(Image.open(repainted), tiny_codec().decode(stream, **look))
    calls = borrowed(held)
    assert [call["task"] for call in calls] == ["call", "paint", "paint"]
    assert all(0 < call["seconds"] <= 120 for call in calls)


def test_the_page_works_in_a_dark_frame_and_its_links_open(held):
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    from tests.ui_browser import choose_example, compress, launch, open_tab, pixels

    with proxy(held.port) as outside, sync.sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1000, "height": 1100})
        page.set_default_timeout(90_000)
        page.goto(f"{outside}/frame")
        (frame,) = page.main_frame.child_frames
        frame.wait_for_selector("#pc-compress")
        frame.wait_for_selector("body.dark", state="attached")
        choose_example(frame, 0)
        compress(frame)
        assert frame.evaluate("document.documentElement.scrollWidth") <= FRAME_PX
        painted = pixels(frame.locator("#pc-stage .pc-decoded"))
        open_tab(frame, "File and QR")
        link = frame.locator("#pc-link").input_value()
        assert link.startswith(f"{outside}{PREFIX}/?pcv2=")

        visitor = browser.new_page()
        visitor.set_default_timeout(90_000)
        visitor.goto(link)
        visitor.locator("#pc-decoded-stage .pc-tools button >> nth=0").wait_for()
        assert pixels(visitor.locator("#pc-decoded-stage .pc-decoded")) == painted
        browser.close()


def test_what_runs_is_answered_after_the_host_says_stop(held, photo):
    # The last one of this module to use the page.
    hold = held.app.parents[1] / "hold"
    with proxy(held.port) as outside:
        client, path = there_and_back(f"{outside}{PREFIX}/", photo, "extreme")
        before = len(borrowed(held))
        hold.touch()
        running = client.submit(handle_file(path), api_name="/decompress")
        eventually(lambda: [call["task"] for call in borrowed(held)[before:]][-1:] == ["paint"])
        held.process.terminate()
        eventually(lambda: refused(f"{outside}{PREFIX}"))
        assert held.process.poll() is None and not running.done()
        hold.unlink()
        decoded = Image.open(running.result(60))
    assert same(decoded, tiny_codec().decode(Stream.from_bytes(Path(path).read_bytes())))
    assert held.process.wait(60) == 0


def refused(address):
    return httpx.post(f"{address}/gradio_api/queue/join", content=b"{}").status_code == 503


async def answer(scope, receive, send):
    """Reads what is sent, and says nothing."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(door, method, path, app=answer, body=b""):
    # In pieces, so that its length is not said beforehand.
    return TestClient(door.around(app)).request(method, path, content=iter([body]))


@pytest.fixture
def door(tmp_path):
    return Door(tmp_path, allowed_bytes)


def test_a_closed_door_refuses_work_and_still_hands_out_results(door):
    assert ask(door, "POST", "/gradio_api/queue/join").status_code == 200
    door.closed.set()
    assert ask(door, "POST", "/gradio_api/queue/join").status_code == 503
    assert ask(door, "POST", "/gradio_api/upload").status_code == 503
    assert ask(door, "GET", "/gradio_api/file=/tmp/x.png").status_code == 200
    assert ask(door, "GET", "/gradio_api/queue/data").status_code == 200


def test_every_answer_has_our_headers_and_no_request_is_endless(door):
    async def broken(scope, receive, send):
        raise KeyError("what gradio does not know")

    for path, status, app, body in (
        ("queue/join", 200, answer, b""),
        ("queue/join", 413, answer, bytes(2 * 2**20)),
        ("queue/join", 400, broken, b""),
        ("component_server", 404, answer, b""),
    ):
        asked = ask(door, "POST", f"/gradio_api/{path}", app, body)
        assert asked.status_code == status and set(HEADERS) <= set(asked.headers)
    assert door.quiet() or not door._inside


def test_the_door_knows_what_is_under_way(door, monkeypatch):
    monkeypatch.setattr(host, "QUIET_S", 0.0)
    quiet: list[bool] = []

    async def look(*how):
        quiet.append(door.quiet())
        await answer(*how)

    assert ask(door, "GET", "/gradio_api/queue/data", look).status_code == 200
    assert ask(door, "GET", "/gradio_api/heartbeat/x", look).status_code == 200
    assert quiet == [False, True] and host.wait_until_quiet(door) is True
    monkeypatch.setattr(host, "FINISH_S", 0.1)
    door._inside += 1
    assert host.wait_until_quiet(door) is False


def test_the_oldest_files_make_room_for_an_upload(door, tmp_path, monkeypatch):
    for age, name in enumerate(["newest", "middle", "oldest"]):
        path = tmp_path / name / "file"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    monkeypatch.setattr(host, "trim", lambda folder: trim(folder, limit_bytes=250))
    for _ in range(2):
        ask(door, "POST", "/gradio_api/upload")
        assert set(files_of(tmp_path)) == {"newest/file", "middle/file"}


def test_caches_move_where_the_home_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path), "HF_HOME": "/chosen"})
    host.use_temporary_folders()
    assert set(os.environ) == {"HOME", "HF_HOME", "GRADIO_TEMP_DIR"}
    os.environ["HOME"] = str(tmp_path / "none")
    host.use_temporary_folders()
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "percov2" / "matplotlib")
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "percov2" / "uploads")
    assert os.environ["HF_HOME"] == "/chosen"


@pytest.mark.parametrize(
    ("prefix", "headers", "address"),
    [
        ("", {"host": "a:1"}, "http://a:1/"),
        ("/x/y", {"host": "a:1"}, "http://a:1/x/y/"),
        ("/x", {"host": "in", "x-forwarded-host": "out, in"}, "http://out/x/"),
        ("", {"host": "out", "x-forwarded-proto": "https,http"}, "https://out/"),
        ("/x", {"host": "out", "origin": "null"}, "http://out/x/"),
        ("https://out/x/", {"host": "in"}, "https://out/x/"),
        ("/x", {"host": "in", "referer": "https://out/z/?q=1#f"}, "https://out/z/"),
    ],
)
def test_links_say_where_the_visitor_sees_the_page(monkeypatch, prefix, headers, address):
    monkeypatch.setenv(host.PREFIX_VARIABLE, prefix)
    assert host.page_address(headers) == address


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
    schema = httpx.get(f"{server.address}gradio_api/mcp/schema").json()
    tools = {tool["name"]: tool["description"] for tool in schema}
    assert {name.rpartition("_")[2] for name in tools} == {"compress", "decompress", "inspect"}
    assert any(text.startswith("Compress a picture to a .pcv2 file") for text in tools.values())


def test_an_assistant_lists_the_tools_and_compresses_and_paints_with_them(server, photo):
    sent = f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"
    settings = '{"size": 60, "caption": "a cat", "effort": "fast"}'

    async def talk():
        mcp = streamable_http_client(f"{server.address}gradio_api/mcp/")
        async with mcp as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {t.name.rpartition("_")[2]: t for t in (await session.list_tools()).tools}

            async def call(tool, **given):
                answer = await session.call_tool(tools[tool].name, given)
                return answer.isError, [part.model_dump() for part in answer.content]

            packed = await call("compress", picture=sent, settings=settings)
            wrong = await call("compress", picture=sent, settings='{"sice": 60}')
            file = re.findall(r"http\S+?\.pcv2", str(packed))[0]
            painted = await call("decompress", file=file, settings='{"steps": 2}')
            return tools, httpx.get(file).content, painted, wrong, await call("inspect", file=file)

    tools, data, painted, wrong, facts = asyncio.run(talk())
    for name, tool in tools.items():
        known = tool.inputSchema["properties"]
        assert known and all(part.get("description") for part in known.values()), name
    assert "13 to 200000" in tools["compress"].inputSchema["properties"]["size"]["description"]
    stream = tiny_codec().encode(Image.open(photo), size=60, caption="a cat", effort="fast")
    assert data == stream.to_bytes() and not painted[0]
    image = next(part for part in painted[1] if part["type"] == "image")
    shown = Image.open(io.BytesIO(base64.b64decode(image["data"]))).convert("RGB")
    assert shown.size == (stream.width, stream.height)
    assert not facts[0] and "a cat" in str(facts[1])
    assert wrong[0] and "unknown key 'sice'" in str(wrong[1])


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
    assert snippet in (ROOT / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(photo.parent)
    exec(snippet.replace("http://127.0.0.1:7860", server.address), {})
    assert "bytes:" in capsys.readouterr().out


def test_temporary_files_are_removed(tmp_path, photo):
    with serve(tiny_folder(), tmp_path, keep_files_s=2) as server, client_of(server) as client:
        client.predict(handle_file(photo), api_name="/compress")
        eventually(lambda: not any(path.is_file() for path in server.files.rglob("*")))
