"""Object stores: servers on this computer with the protocols of S3 and Google."""

import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from numpy.typing import NDArray
from source_layouts import WRITERS, DataSet, contents_of, image_data_set

from alexnet import storage
from alexnet.errors import UserError
from alexnet.inference.inputs import list_items
from alexnet.inference.listing import update_listing
from alexnet.inference.output import read_result as read_part_result
from alexnet.inference.parts import PartOptions, PartWriter
from alexnet.inference.rows import Prediction, RowOptions
from alexnet.shards.codec import Encoding
from alexnet.shards.plan import extracted_folder, write_plan
from alexnet.shards.write import make_shard, read_result
from alexnet.sources import parquet_extract
from alexnet.sources.read import read_source
from alexnet.storage import object_store
from alexnet.training.checkpoint import verify_checkpoint
from pipelines.tracking.server import connection_error
from pipelines.training.checkpoint_folder import (
    RAY_LIST,
    forget_ray_list,
    list_checkpoints,
    open_checkpoint,
    prune_checkpoints,
)

pytestmark = pytest.mark.slow
"""Two servers are started, and some tests wait for connections to time out."""

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
    """The URL of an emulator of Google's server with one bucket.

    It runs in its own process: pyarrow holds Python's global lock while it closes a file.
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
    """An empty bucket in S3 or in Google's store."""
    if request.param == "s3":
        uri: str = request.getfixturevalue("bucket")
        return uri
    send("GET", f"{request.getfixturevalue('google')}/wipe?keep-buckets=true", None)
    return "gs://anonymous@bucket"


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket in S3; environment variables contain the server and the credentials."""
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
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One attempt of one second, so that the tests of errors are fast."""
    monkeypatch.setattr(object_store, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(object_store, "TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(object_store, "RETRY_LIMIT_SECONDS", 1)
    object_store.connect.cache_clear()
    yield
    object_store.connect.cache_clear()


def send(method: str, url: str, body: bytes | None = b"") -> bytes:
    kind = {"Content-Type": "application/octet-stream"}
    with urlopen(Request(url, body, kind, method=method)) as answer:
        content: bytes = answer.read()
    return content


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


def names(uri: str) -> list[str]:
    return [file.path[len(uri) + 1 :] for file in storage.list_files(uri)]


def test_existence_size_and_listings(store: str) -> None:
    uri = storage.join(store, "x")
    file = storage.join(uri, "b", "two")
    storage.write_bytes(file, b"22")
    storage.write_json(storage.join(uri, "a"), [1])
    storage.write_bytes(storage.join(store, "xy"), b"other")
    assert storage.read_bytes(file) == b"22"
    assert storage.read_json(storage.join(uri, "a")) == [1]
    for folder in (store, uri, storage.join(uri, "b")):
        assert storage.exists(folder)
        assert storage.is_folder(folder)
        assert not storage.is_file(folder)
        assert storage.size(folder) == -1
    assert storage.exists(file)
    assert storage.is_file(file)
    assert not storage.is_folder(file)
    assert storage.size(file) == 2
    stat = storage.stat(file)
    assert stat in storage.list_files(uri)
    assert abs(stat.modified_ns / 1e9 - time.time()) < 60
    assert names(uri) == ["a", "b/two"]
    assert [one.path for one in storage.list_files(uri, recursive=False)] == [f"{uri}/a"]
    assert storage.list_folders(uri) == ["b"]
    storage.delete_folder(uri)
    storage.delete_folder(uri)
    assert names(store) == ["xy"]


def test_missing_files_and_folders(store: str) -> None:
    uri = storage.join(store, "none")
    assert not storage.exists(uri)
    assert storage.size(uri) == -1
    assert storage.list_files(uri) == []
    assert storage.list_folders(uri) == []
    storage.delete_folder(uri)
    for missing in (storage.stat, storage.read_bytes):
        with pytest.raises(FileNotFoundError):
            missing(uri)


def test_names_can_be_any_text(store: str) -> None:
    uri = storage.join(store, "odd names")
    for name in ODD_NAMES:
        storage.write_bytes(storage.join(uri, name), name.encode())
    files = storage.list_files(uri)
    assert names(uri) == sorted(ODD_NAMES)
    assert [storage.read_bytes(file.path).decode() for file in files] == sorted(ODD_NAMES)
    assert [storage.stat(file.path) for file in files] == files


def test_a_folder_made_in_the_web_console_is_not_a_file(bucket: str, server: str) -> None:
    send("PUT", f"{server}/bucket/x/")
    send("PUT", f"{server}/bucket/x/y/")
    assert storage.is_folder(storage.join(bucket, "x"))
    assert storage.list_folders(storage.join(bucket, "x")) == ["y"]
    assert storage.list_files(storage.join(bucket, "x")) == []


def test_an_object_is_written_atomically(store: str) -> None:
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


def test_no_incomplete_upload_remains(bucket: str, server: str) -> None:
    storage.write_bytes(storage.join(bucket, "object"), bytes(12_000_000))
    assert b"<UploadId>" not in send("GET", f"{server}/bucket?uploads")


def test_make_folder_checks_that_files_can_be_written(store: str, short_timeouts: None) -> None:
    uri = storage.join(store, "work", "dir")
    storage.make_folder(uri)
    assert names(store) == []
    missing = store.replace("bucket", "no-such-bucket") + "/work"
    reason = "bucket" if store.startswith("s3") else "NOT_FOUND"
    with pytest.raises(UserError, match=rf"^{missing}: can't be written .*{reason}"):
        storage.make_folder(missing)


def test_one_connection_serves_many_threads(store: str) -> None:
    object_store.connect.cache_clear()

    def work(number: int) -> bytes:
        uri = storage.join(store, f"{number}")
        storage.write_bytes(uri, b"%d" % number)
        return storage.read_bytes(uri)

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
    assert storage.locate(bucket)[0] == here, "the variable for S3 overrides the general one"


def test_a_process_that_used_a_store_ends_without_errors(store: str) -> None:
    storage.write_bytes(storage.join(store, "x"), b"content")
    script = (
        "from alexnet import storage\n"
        f"assert storage.read_bytes('{store}/x') == b'content'\n"
        f"assert storage.read_range('{store}/x', 1, 2) == b'on'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_is_read_from_a_store(store: str, tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path)
    uri = storage.join(store, "raw images")
    upload(tmp_path, uri)
    source = read_source(uri)
    assert source.layout == layout
    assert contents_of(source) == contents_of(read_source(str(tmp_path)))
    assert all(path.startswith(uri) for path in source.index["path"].to_pylist())


@pytest.fixture(scope="module")
def images() -> DataSet:
    """Images, one of them truncated."""
    return image_data_set()


@pytest.mark.parametrize("layout", ["archives", "folders", "parquet"])
def test_shards_in_a_store_have_the_bytes_of_local_ones(
    store: str, tmp_path: Path, images: DataSet, layout: str
) -> None:
    WRITERS[layout](tmp_path / "raw", images)
    upload(tmp_path / "raw", storage.join(store, "raw"))
    shards = {}
    for uri in (str(tmp_path), store):
        source = read_source(storage.join(uri, "raw"))
        folder = storage.join(uri, "shards")
        if layout == "parquet":
            extracted = extracted_folder(folder)
            for path in parquet_extract.parquet_files(source.index):
                assert parquet_extract.extract_images(path, extracted) > 0
                assert parquet_extract.extract_images(path, extracted) == 0
            source = replace(source, index=parquet_extract.to_byte_ranges(source.index, extracted))
        tasks = write_plan(folder, source, Encoding(kind="jpeg", jpeg_quality=95), 5, 0)
        results = [make_shard(task) for task in tasks]
        assert sum(len(result.rejects) for result in results) == 1
        assert sum(result.shard.rows for result in results) == len(source.index) - 1
        assert [read_result(task) for task in tasks] == results
        shards[uri] = {task.file: storage.read_bytes(f"{folder}/{task.file}") for task in tasks}
    assert shards[store] == shards[str(tmp_path)]
    with storage.open_input(storage.join(store, "shards", "val/part-00000.parquet")) as file:
        assert pq.read_table(file).num_rows > 0


def test_a_range_after_the_end_or_of_a_missing_file_raises_an_error(store: str) -> None:
    uri = storage.join(store, "image")
    storage.write_bytes(uri, b"12345")
    assert storage.read_range(uri, 0, 5) == b"12345"
    assert storage.read_range(uri, 2, 2) == b"34"
    with pytest.raises(EOFError, match="2 bytes"):
        storage.read_range(uri, 3, 4)
    with pytest.raises(FileNotFoundError):
        storage.read_range(storage.join(store, "none"), 0, 5)


@pytest.mark.parametrize(
    ("uri", "variable"),
    [
        ("s3://bucket/x?endpoint_override=127.0.0.1:9000&scheme=http", "AWS_ENDPOINT_URL"),
        ("s3://bucket/x?region=eu-west-1", "AWS_REGION"),
        ("s3://AKIAKEY:hunter2@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://AKIAKEY:a/hunter2@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://AKIAKEY%3Ahunter2@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("gs://hunter2@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/x?X-Amz-Signature=hunter2", "AWS_REGION"),
    ],
)
def test_a_uri_with_settings_or_secrets_is_an_error(uri: str, variable: str) -> None:
    with pytest.raises(UserError, match=variable) as caught:
        read_source(uri)
    assert "hunter2" not in str(caught.value)
    assert "bucket/x" in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "gs://", "hdfs://bucket/x"])
def test_a_uri_without_a_bucket_is_an_error(uri: str) -> None:
    with pytest.raises(UserError, match=f"^{uri}: .*use a local path, s3:// or gs://"):
        storage.exists(uri)


def test_a_missing_bucket_is_a_missing_folder(bucket: str) -> None:
    with pytest.raises(UserError, match="s3://other/raw: no such folder"):
        read_source("s3://other/raw")


def test_wrong_credentials_are_an_error_of_one_line(
    bucket: str, server: str, short_timeouts: None
) -> None:
    storage.write_bytes(storage.join(bucket, "x"), b"content")
    send("POST", f"{server}/moto-api/reset-auth", b"0")
    try:
        for function in (storage.exists, storage.size, storage.stat, read_source):
            with pytest.raises(
                UserError, match=r"s3://bucket/x: can't be reached .*ACCESS_DENIED.*credentials"
            ) as caught:
                function(storage.join(bucket, "x"))
            assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="s3://bucket/work: can't be written"):
            storage.make_folder(storage.join(bucket, "work"))
    finally:
        send("POST", f"{server}/moto-api/reset-auth", b"inf")


def closed_port() -> str:
    """A URL with a port to which no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("fault", ["refuses", "does not answer", "unknown"])
def test_an_unreachable_server_is_an_error_of_one_line(
    bucket: str, short_timeouts: None, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = {
            "refuses": closed_port(),
            "does not answer": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "unknown": "http://no-such-host.invalid",
        }[fault]
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        started = time.monotonic()
        with pytest.raises(UserError, match="s3://bucket/raw: can't be reached") as caught:
            read_source("s3://bucket/raw")
        assert "\n" not in str(caught.value)
        with pytest.raises(OSError, match="NETWORK_CONNECTION"):
            storage.read_bytes("s3://bucket/raw/x")
    assert time.monotonic() - started < 20


def test_an_unreachable_google_server_is_an_error_of_one_line(
    short_timeouts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", closed_port())
    with pytest.raises(UserError, match="gs://anonymous@bucket/raw: can't be reached") as caught:
        read_source("gs://anonymous@bucket/raw")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gs://anonymous@bucket/work: can't be written"):
        storage.make_folder("gs://anonymous@bucket/work")


def test_a_google_uri_has_a_file_system_and_a_path() -> None:
    filesystem, inner = storage.locate("gs://anonymous@bucket/a b/c?d")
    assert filesystem.type_name == "gcs"
    assert inner == "bucket/a b/c?d"


class Even:
    """A model with equal probabilities."""

    parallel = True

    def __call__(self, images: NDArray[np.uint8]) -> Prediction:
        """(N, 256, 256, 3) → (N, 2)."""
        return Prediction(np.full((len(images), 2), 0.5, np.float32))


def test_bulk_inference_reads_from_a_store_and_writes_to_it(
    store: str, raw_images: Path, tmp_path: Path
) -> None:
    """Folders, globs, lists and archives; a part that is finished is known again."""
    names = [f"n0{number}/n0{number}_0.JPEG" for number in (1, 2, 3)]
    for name in names:
        data = (raw_images / "val" / name).read_bytes()
        storage.write_bytes(storage.join(store, "in", name), data)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(raw_images / "val" / names[0], "x.JPEG")
    storage.write_bytes(storage.join(store, "a.tar"), (tmp_path / "a.tar").read_bytes())
    storage.write_bytes(storage.join(store, "in/.hidden"), b"x")
    (tmp_path / "list.txt").write_text(f"{store}/in/{names[0]}\n{store}/in/missing.JPEG\n")
    folder = [item.path for item in list_items([f"{store}/in"])]
    assert folder == [f"{store}/in/{name}" for name in names]
    assert [item.path for item in list_items([f"{store}/in/**/*_0.JPEG"])] == folder

    inputs, output = [f"{store}/in", f"{store}/a.tar", str(tmp_path / "list.txt")], f"{store}/out"
    (part,), added = update_listing(output, list_items(inputs), 100)
    assert added == 1
    options = PartOptions(
        output=output,
        rows=RowOptions(names=("a", "b"), top_k=1, min_probability=0, view="ten"),
        features=False,
        upright=True,
        text_format=None,
        thumbnails=False,
        metadata={},
    )
    PartWriter(options, Even, 2, 2).write(0)
    with storage.open_input(f"{output}/part-000000.parquet") as file:
        rows = pq.read_table(file).to_pylist()
    assert [row["path"] for row in rows] == [
        *folder,
        f"{store}/a.tar/x.JPEG",
        f"{store}/in/missing.JPEG",
    ]
    assert [row["reason"] for row in rows] == [None] * 4 + ["unreadable: no such file"]
    assert rows[0]["sha256"] == rows[3]["sha256"]
    assert update_listing(output, list_items(inputs), 100) == ([part], 0)
    result = read_part_result(output, 0, part.digest)
    assert result is not None
    assert (result.rows, result.rejected) == (5, 1)


def test_checkpoints_in_a_store_are_listed_and_read(store: str, tmp_path: Path) -> None:
    """An upload that was interrupted is passed over."""
    folder = f"{store}/training/key"
    for step in (3, 6):
        state = b"{" if step == 6 else b'{"epoch_errors": {}, "files": {}, "step": 3}'
        storage.write_bytes(f"{folder}/step_{step:09d}/train_state.json", state)
    storage.write_bytes(f"{folder}/{RAY_LIST}", b'{"half')
    paths = list_checkpoints(folder)
    assert paths == [f"{folder}/step_000000006", f"{folder}/step_000000003"]
    prune_checkpoints(folder)
    forget_ray_list(folder)
    assert not storage.exists(f"{folder}/{RAY_LIST}")
    assert list_checkpoints(folder) == paths
    with open_checkpoint(paths[0]).as_directory() as local, pytest.raises(UserError):
        verify_checkpoint(local)
    with open_checkpoint(paths[1]).as_directory() as local:
        assert verify_checkpoint(local).step == 3
