"""Many files at once: names, refusals before anything is written, workers, clusters, S3."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from percov2_core import image_io
from percov2_core.cli import main
from percov2_core.cli.folders import Found, Job, plan
from percov2_core.errors import ConfigError
from tests.tiny import ROOT, picture, tiny_codec, tiny_folder
from tests.ui_server import eventually

pytestmark = pytest.mark.timeout(600)  # processes start, on a machine that may be busy
MODE = ["--mode", "ultra-low", "--effort", "fast", "--model"]


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures in sub-folders, and what is none."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.JPG", "sub/a.png", "sub/deep/c d.webp")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(64, 80, seed=number).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    (tmp_path / "photos" / "._a.png").write_bytes(b"of a system")
    return tmp_path / "photos"


def run(*words):
    return main([*words, *MODE[:4], "--model", str(tiny_folder())])


def contents(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def expected(folder):
    """What Python writes of the pictures in the folder."""
    names = {"a": "a.png", "b": "b.JPG", "sub/a": "sub/a.png", "sub/deep/c d": "sub/deep/c d.webp"}
    said = {"mode": "ultra-low", "effort": "fast"}
    images = {name: image_io.load(folder / file) for name, file in names.items()}
    return {f"{k}.pcv2": tiny_codec().encode(v, **said).to_bytes() for k, v in images.items()}


def test_a_folder_keeps_its_names_and_a_broken_picture_is_a_line_at_the_end(
    folder, expected, tmp_path, capsys
):
    (folder / "sub" / "broken\x1b[31m.png").write_bytes(b"no picture")
    assert run("compress", "photos", "-o", "out") == 1
    said = capsys.readouterr()
    assert said.out == f"4 files written: {sum(map(len, expected.values()))} bytes\n"
    broken, last = said.err.splitlines()
    assert broken.startswith("percov2: photos/sub/broken?[31m.png: this file is not a picture")
    assert last == "percov2: 1 of 5 files could not be converted"
    assert contents(tmp_path / "out") == expected
    (tmp_path / "out" / "b.pcv2").unlink()
    before = (tmp_path / "out" / "a.pcv2").stat()
    assert run("compress", "photos", "-o", "out", "--skip-existing") == 1
    said = capsys.readouterr().out
    assert said.startswith("1 files written: ") and said.endswith("; 3 were there already\n")
    assert (tmp_path / "out" / "a.pcv2").stat() == before
    assert contents(tmp_path / "out") == expected
    assert main(["decompress", "out", "-o", "back", "--model", str(tiny_folder())]) == 0
    assert [*contents(tmp_path / "back")] == [name.replace("pcv2", "png") for name in expected]
    assert image_io.load(tmp_path / "back" / "sub" / "deep" / "c d.png").size == (64, 80)


def test_one_name_alone_is_written_beside_and_never_over_the_original(folder, expected, capsys):
    assert run("compress", "photos/a.png") == 0
    assert contents(folder)["a.pcv2"] == expected["a.pcv2"]
    assert run("compress", "photos/a.png") == 2
    assert main(["decompress", "photos/a.pcv2"]) == 2
    lines = [f"percov2: output: 'photos/a.{kind}' exists; --force replaces it"
             for kind in ("pcv2", "png")]  # fmt: skip
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compress photos -o out", "'photos/b.JPG' and 'photos/b.png' would both become"),
        ("compress photos/b.JPG photos/sub/a.png photos/a.png -o out", "would both become 'out/a."),
        ("compress photos/sub old.png -o out", "'out/old.pcv2' exists; --force replaces, --skip-"),
        ("compress photos/a.png old.png -o old.pcv2", "2 files need a folder, got 'old.pcv2'"),
        ("compress photos/a.png out/old.pcv2 --force", "'out/old.pcv2' is a file to read"),
        ("compress photos - -o out", "-: stands for one picture"),
        ("compress out", "input: 'out' holds no file that ends in .avif"),
    ],
)
def test_what_cannot_all_be_written_is_refused_before_anything_is(
    words, message, folder, tmp_path, capsys
):
    picture().save(folder / "b.png")
    picture().save(tmp_path / "old.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.pcv2").write_bytes(b"precious")
    before = contents(tmp_path)
    assert run(*words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and contents(tmp_path) == before


def test_a_plan_keeps_names_and_no_bucket_leads_out_of_the_folder():
    found = [Found("s3://b/in/x.y.jpg", "x.y.jpg"), Found("s3://b/in/d/e.png", "d/e.png")]
    jobs = [Job("s3://b/in/x.y.jpg", "out/x.y.pcv2"), Job("s3://b/in/d/e.png", "out/d/e.pcv2")]
    assert plan(found, "out/", ".pcv2") == jobs
    beside = [job.target for job in plan(found, None, ".pcv2")]
    assert beside == ["s3://b/in/x.y.pcv2", "s3://b/in/d/e.pcv2"]
    assert plan(found[:1], "s3://b/one.pcv2", ".pcv2") == [Job(found[0].source, "s3://b/one.pcv2")]
    for below in ("../x.png", "a/../../x.png", "a//x.png", "./x.png"):
        with pytest.raises(ConfigError, match="no name that can be kept"):
            plan([Found(f"s3://b/in/{below}", below)], "out", ".pcv2")


def test_two_processes_write_what_one_writes(folder, expected, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    assert run("compress", "photos", "-o", "out", "--jobs", "2") == 1
    assert "photos/broken.png: this file is not a picture" in capsys.readouterr().err
    assert contents(tmp_path / "out") == expected


CLUSTER = """
import ray, sys
started = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                   logging_level="ERROR", object_store_memory=80 * 2**20,
                   _node_ip_address="127.0.0.1")
print(started.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two workers, in a process of its own that ends it."""
    quiet = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    quiet |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", CLUSTER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=quiet, text=True, **pipes) as process:
        yield quiet | {"RAY_ADDRESS": process.stdout.readline().strip()}
        process.stdin.close()


@needs("ray")
def test_ray_killed_in_the_middle_goes_on_and_writes_what_one_process_writes(
    folder, expected, tmp_path, cluster
):
    line = [sys.executable, "-m", "percov2_core", "compress", "photos", "pipe.png", "-o", "out"]
    line += ["--engine", "ray", *MODE, str(tiny_folder()), "--skip-existing"]
    os.mkfifo("pipe.png")  # which has a worker wait for ever
    with subprocess.Popen(line, env=cluster) as process:
        eventually(lambda: (process.poll() is not None) or contents(tmp_path / "out"), 200)
        process.kill()
    first = {path: path.stat() for path in (tmp_path / "out").rglob("*.pcv2")}
    assert first and "pipe.pcv2" not in contents(tmp_path / "out")
    Path("pipe.png").unlink()
    picture(64, 80).save("pipe.png")
    done = subprocess.run(line, env=cluster, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # A worker ends what it has begun, perhaps after the look at what is there.
    assert len(first) <= int(re.findall(r"; (\d+) were there already", done.stdout)[0]) < 5
    assert {path: path.stat() for path in first} == first
    assert contents(tmp_path / "out") == expected | {"pipe.pcv2": expected["a.pcv2"]}


@pytest.fixture
def bucket(monkeypatch):
    """moto's S3 on loopback; -> a client of it."""
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@needs("s3fs", "moto", "flask")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # s3fs leaves its connections to the end
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bucket_is_read_and_written_as_a_folder_is(folder, expected, bucket, tmp_path, capsys):
    for name, data in contents(folder).items():
        bucket.put_object(Bucket="bucket", Key=f"photos/{name}", Body=data)
    place = ["s3://bucket/photos", "-o", "s3://bucket/out"]
    assert run("compress", *place) == 0

    def stored():
        listed = bucket.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]
        return {one["Key"].removeprefix("out/"): one["LastModified"] for one in listed}

    before = stored()
    assert [*before] == [*expected]
    assert run("compress", *place) == 2 and "--skip-existing leaves" in capsys.readouterr().err
    bucket.delete_object(Bucket="bucket", Key="out/a.pcv2")
    assert run("compress", *place, "--skip-existing") == 0
    after = stored()
    assert [*after] == [*before]
    assert all(after[name] == before[name] for name in before if name != "a.pcv2")
    assert main(["compress", "s3://none", "-o", "out", "--model", str(tiny_folder())]) == 1
    assert "s3://none: " in capsys.readouterr().err
    assert run("compress", "s3://bucket/photos", "-o", "here") == 0
    assert contents(tmp_path / "here") == expected
