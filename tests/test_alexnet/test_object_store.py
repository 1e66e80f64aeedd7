"""Places in object stores: servers on this machine that speak S3's and Google's protocols."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from test_sources import WRITERS, DataSet, contents_of, pictures

from alexnet import storage
from alexnet.errors import UserError
from alexnet.shards.codec import Encoding
from alexnet.shards.plan import write_plan
from alexnet.shards.write import make_shard, read_report
from alexnet.sources import parquet_extract
from alexnet.sources.read import read_source
from alexnet.storage import object_store
from pipelines.tracking.server import connection_error

ODD_NAMES = ("a b.txt", "50%.txt", "c#d?e=f.txt", "ü/[1]+&.txt", "plus%20.txt", ".hidden", "x.gz")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    """The URL of a server of Google's kind with one bucket, known to this module's tests only.

    It has a process of its own: pyarrow holds Python's lock while it closes a file there.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--quiet"]
    command += ["--host=127.0.0.1", f"--port={port}", "--default-bucket=bucket"]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", url)
        until = time.monotonic() + 30
        while connection_error(url):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        yield url
        process.terminate()


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> str:
    """An empty bucket of either kind."""
    if request.param == "s3":
        found: str = request.getfixturevalue("bucket")
        return found
    send("GET", f"{request.getfixturevalue('google')}/wipe?keep-buckets=true", None)
    return "gs://anonymous@bucket"


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, reached as a user would reach it: by environment variables."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    send("POST", f"{server}/moto-api/reset")
    send("PUT", f"{server}/bucket")
    return "s3://bucket"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One attempt of one second, so that the tests of faults don't wait."""
    monkeypatch.setattr(object_store, "_ATTEMPTS", 1)
    monkeypatch.setattr(object_store, "_TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(object_store, "_GIVE_UP_SECONDS", 1)
    object_store._connect.cache_clear()
    yield
    object_store._connect.cache_clear()


def send(method: str, url: str, body: bytes | None = b"") -> bytes:
    kind = {"Content-Type": "application/octet-stream"}
    with urlopen(Request(url, body, kind, method=method)) as answer:
        content: bytes = answer.read()
    return content


def upload(folder: Path, place: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(
                storage.join(place, str(path.relative_to(folder))), path.read_bytes()
            )


def names(place: str) -> list[str]:
    return [file.path[len(place) + 1 :] for file in storage.list_files(place)]


def test_what_lies_where(store: str) -> None:
    place = storage.join(store, "x")
    file = storage.join(place, "b", "two")
    storage.write_bytes(file, b"22")
    storage.write_json(storage.join(place, "a"), [1])
    storage.write_bytes(storage.join(store, "xy"), b"beside")
    assert storage.read_bytes(file) == b"22"
    assert storage.read_json(storage.join(place, "a")) == [1]
    for folder in (store, place, storage.join(place, "b")):
        assert storage.exists(folder)
        assert storage.is_folder(folder)
        assert not storage.is_file(folder)
        assert storage.size(folder) == -1
    assert storage.exists(file)
    assert storage.is_file(file)
    assert not storage.is_folder(file)
    assert storage.size(file) == 2
    stat = storage.stat(file)
    assert stat in storage.list_files(place)
    assert abs(stat.modified_ns / 1e9 - time.time()) < 60
    assert names(place) == ["a", "b/two"]
    assert [one.path for one in storage.list_files(place, recursive=False)] == [f"{place}/a"]
    assert storage.list_folders(place) == ["b"]
    storage.delete_folder(place)
    storage.delete_folder(place)
    assert names(store) == ["xy"]


def test_what_is_missing(store: str) -> None:
    place = storage.join(store, "none")
    assert not storage.exists(place)
    assert storage.size(place) == -1
    assert storage.list_files(place) == []
    assert storage.list_folders(place) == []
    storage.delete_folder(place)
    for missing in (storage.stat, storage.read_bytes):
        with pytest.raises(FileNotFoundError):
            missing(place)


def test_a_name_is_any_text(store: str) -> None:
    place = storage.join(store, "odd names")
    for name in ODD_NAMES:
        storage.write_bytes(storage.join(place, name), name.encode())
    found = storage.list_files(place)
    assert names(place) == sorted(ODD_NAMES)
    assert [storage.read_bytes(file.path).decode() for file in found] == sorted(ODD_NAMES)
    assert [storage.stat(file.path) for file in found] == found


def test_a_folder_made_in_the_web_console_is_no_file(bucket: str, server: str) -> None:
    send("PUT", f"{server}/bucket/x/")
    send("PUT", f"{server}/bucket/x/y/")
    assert storage.is_folder(storage.join(bucket, "x"))
    assert storage.list_folders(storage.join(bucket, "x")) == ["y"]
    assert storage.list_files(storage.join(bucket, "x")) == []


def test_an_object_appears_whole_or_not_at_all(store: str) -> None:
    path = storage.join(store, "folder", "object")
    storage.write_bytes(path, b"old")

    def write_half() -> None:
        with storage.atomic_output(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert storage.read_bytes(path) == b"old"
    content = os.urandom(12_000_000)  # More than one part of an upload.
    with storage.atomic_output(path) as file:
        file.write(content[:7_000_000])
        assert storage.read_bytes(path) == b"old"
        file.write(content[7_000_000:])
    assert storage.read_bytes(path) == content
    assert names(store) == ["folder/object"]


def test_no_part_of_an_upload_is_left(bucket: str, server: str) -> None:
    storage.write_bytes(storage.join(bucket, "object"), bytes(12_000_000))
    assert b"<UploadId>" not in send("GET", f"{server}/bucket?uploads")


def test_making_a_folder_proves_that_it_can_be_written(store: str, hurried: None) -> None:
    place = storage.join(store, "work", "dir")
    storage.make_folder(place)
    assert names(store) == []
    elsewhere = store.replace("bucket", "no-such-bucket") + "/work"
    reason = "bucket" if store.startswith("s3") else "NOT_FOUND"
    with pytest.raises(UserError, match=rf"^{elsewhere}: can't be written .*{reason}"):
        storage.make_folder(elsewhere)


def test_one_connection_serves_many_threads(store: str) -> None:
    object_store._connect.cache_clear()

    def work(number: int) -> bytes:
        place = storage.join(store, f"{number}")
        storage.write_bytes(place, b"%d" % number)
        return storage.read_bytes(place)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(40))) == [b"%d" % number for number in range(40)]
    first = storage.locate(storage.join(store, "a"))[0]
    assert storage.locate(storage.join(store, "b", "c"))[0] is first


def test_each_server_and_each_process_has_its_own_connection(
    bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = storage.locate(bucket)[0]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert storage.locate(bucket)[0] is not here
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    assert storage.locate(bucket)[0] == here, "the variable for S3 goes before the general one"


def test_a_process_that_uses_a_store_ends_in_peace(store: str) -> None:
    storage.write_bytes(storage.join(store, "x"), b"content")
    script = (
        "from alexnet import storage\n"
        f"assert storage.read_bytes('{store}/x') == b'content'\n"
        f"assert storage.read_range('{store}/x', 1, 2) == b'on'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_is_read_from_a_store(store: str, tmp_path: Path, form: str) -> None:
    WRITERS[form](tmp_path)
    place = storage.join(store, "raw images")
    upload(tmp_path, place)
    source = read_source(place)
    assert source.form == form
    assert contents_of(source) == contents_of(read_source(str(tmp_path)))
    assert all(path.startswith(place) for path in source.index["path"].to_pylist())


@pytest.fixture(scope="module")
def images() -> DataSet:
    """Real pictures, one of them broken."""
    return pictures()


@pytest.mark.parametrize("form", ["archives", "folders", "parquet"])
def test_shards_from_store_to_store_have_the_bytes_of_local_ones(
    store: str, tmp_path: Path, images: DataSet, form: str
) -> None:
    WRITERS[form](tmp_path / "raw", images)
    upload(tmp_path / "raw", storage.join(store, "raw"))
    made = {}
    for place in (str(tmp_path), store):
        source = read_source(storage.join(place, "raw"))
        folder = storage.join(place, "shards")
        if form == "parquet":
            spooled = storage.join(folder, "parts", "spool")
            for path in parquet_extract.files(source.index):
                assert parquet_extract.copy(path, spooled) > 0
                assert parquet_extract.copy(path, spooled) == 0
            source = replace(source, index=parquet_extract.to_byte_ranges(source.index, spooled))
        units = write_plan(folder, source, Encoding(kind="jpeg", jpeg_quality=95), 5, 0)
        reports = [make_shard(unit) for unit in units]
        assert sum(len(report.rejects) for report in reports) == 1
        assert sum(report.shard.rows for report in reports) == len(source.index) - 1
        assert [read_report(unit) for unit in units] == reports
        made[place] = {unit.file: storage.read_bytes(f"{folder}/{unit.file}") for unit in units}
    assert made[store] == made[str(tmp_path)]
    with storage.open_input(storage.join(store, "shards", "val/part-00000.parquet")) as file:
        assert pq.read_table(file).num_rows > 0


def test_a_range_past_the_end_or_of_nothing_raises(store: str) -> None:
    place = storage.join(store, "image")
    storage.write_bytes(place, b"12345")
    assert storage.read_range(place, 0, 5) == b"12345"
    assert storage.read_range(place, 2, 2) == b"34"
    with pytest.raises(EOFError, match="2 bytes"):
        storage.read_range(place, 3, 4)
    with pytest.raises(FileNotFoundError):
        storage.read_range(storage.join(store, "none"), 0, 5)


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("s3://bucket/x?endpoint_override=127.0.0.1:9000&scheme=http", "AWS_ENDPOINT_URL"),
        ("s3://bucket/x?region=eu-west-1", "AWS_REGION"),
        ("s3://AKIAKEY:hunter2@bucket/x", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_place_holds_no_settings_and_no_secrets(place: str, advice: str) -> None:
    with pytest.raises(UserError, match=advice) as caught:
        read_source(place)
    assert "hunter2" not in str(caught.value)
    assert "bucket/x" in str(caught.value)


@pytest.mark.parametrize("place", ["s3://", "s3:///x", "gs://", "hdfs://bucket/x"])
def test_a_place_that_names_no_bucket_is_refused(place: str) -> None:
    with pytest.raises(UserError, match=f"^{place}: .*use a local path, s3:// or gs://"):
        storage.exists(place)


def test_a_bucket_that_does_not_exist_holds_nothing(bucket: str) -> None:
    with pytest.raises(UserError, match="s3://other/raw: no such folder"):
        read_source("s3://other/raw")


def test_wrong_credentials_are_one_clear_line(bucket: str, server: str, hurried: None) -> None:
    storage.write_bytes(storage.join(bucket, "x"), b"content")
    send("POST", f"{server}/moto-api/reset-auth", b"0")
    try:
        for ask in (storage.exists, storage.size, storage.stat, read_source):
            with pytest.raises(
                UserError, match=r"s3://bucket/x: can't be reached .*ACCESS_DENIED.*credentials"
            ) as caught:
                ask(storage.join(bucket, "x"))
            assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="s3://bucket/work: can't be written"):
            storage.make_folder(storage.join(bucket, "work"))
    finally:
        send("POST", f"{server}/moto-api/reset-auth", b"inf")


def refused() -> str:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("fault", ["gone", "silent", "unknown"])
def test_a_server_that_does_not_answer_is_one_clear_line(
    bucket: str, hurried: None, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = {
            "gone": refused(),
            "silent": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "unknown": "http://no-such-host.invalid",
        }[fault]
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        begun = time.monotonic()
        with pytest.raises(UserError, match="s3://bucket/raw: can't be reached") as caught:
            read_source("s3://bucket/raw")
        assert "\n" not in str(caught.value)
        with pytest.raises(OSError, match="NETWORK_CONNECTION"):
            storage.read_bytes("s3://bucket/raw/x")
    assert time.monotonic() - begun < 20


def test_googles_server_that_does_not_answer_is_one_clear_line(
    hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", refused())
    with pytest.raises(UserError, match="gs://anonymous@bucket/raw: can't be reached") as caught:
        read_source("gs://anonymous@bucket/raw")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gs://anonymous@bucket/work: can't be written"):
        storage.make_folder("gs://anonymous@bucket/work")


def test_a_bucket_of_googles_is_a_place_too() -> None:
    filesystem, inner = storage.locate("gs://anonymous@bucket/a b/c?d")
    assert filesystem.type_name == "gcs"
    assert inner == "bucket/a b/c?d"
