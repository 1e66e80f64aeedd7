"""Errors of connecting to a cluster; none is started."""

import contextlib
import json
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import ray
from ray._private import utils as ray_utils
from ray.core.generated.gcs_service_pb2 import InternalKVGetReply
from ray.exceptions import AuthenticationError

from alexnet.errors import UserError
from pipelines import cluster


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"RAY_ADDRESS={address}: .*ray start --head"):
        cluster.connect()


@pytest.mark.parametrize("address", ["host:99999", "host:0", "host:abc", "host", ":6379", " "])
def test_an_address_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"^RAY_ADDRESS={address}: not the host and port"):
        cluster.connect()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "the address of a dashboard, which only `ray job submit` uses"),
        ("https://host", "the address of a dashboard"),
        ("ray://10.0.0.5:10001", "the address of a Ray Client server"),
    ],
)
def test_the_wanted_form_of_an_address_is_named(
    monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=re.escape(f"RAY_ADDRESS={address}: {words}")) as caught:
        cluster.connect()
    assert "such as 10.0.0.5:6379" in str(caught.value)


def test_the_word_auto_needs_a_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "find_bootstrap_address", lambda _: None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS=auto: no Ray cluster answers there"):
        cluster.connect()


class Answer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A cluster that answers the question for its versions."""

    def __init__(self, token: str | None, versions: dict[str, str]) -> None:
        self.token, self.versions = token, versions

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        token = dict(details.invocation_metadata).get("authorization")

        def answer(_: object, context: grpc.ServicerContext) -> InternalKVGetReply:
            if self.token and token != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: missing")
            return InternalKVGetReply(value=json.dumps(self.versions).encode())

        return grpc.unary_unary_rpc_method_handler(
            answer, response_serializer=InternalKVGetReply.SerializeToString
        )


@contextlib.contextmanager
def answering(token: str | None = None, **versions: str) -> Iterator[str]:
    """The address of a cluster with a token and versions, by default those of this process."""
    here = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Answer(token, here | versions)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ray_version": "2.55.1"}, "Ray: 2.55.1"),
        ({"python_version": "3.9.1"}, "Python: 3.9.1"),
        ({"token": "t" * 64}, "export RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_that_can_not_be_joined_is_one_line_at_once(
    monkeypatch: pytest.MonkeyPatch, named: bool, options: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    started = time.monotonic()
    with answering(**options) as address:
        monkeypatch.setattr(cluster, "find_bootstrap_address", lambda _: address)
        monkeypatch.setenv("RAY_ADDRESS", address if named else "")
        with pytest.raises(UserError, match=rf"^the Ray cluster at {address} can't") as caught:
            cluster.connect()
    assert time.monotonic() - started < 3
    message = str(caught.value)
    assert "\n" not in message
    assert words in message
    assert ("unset RAY_ADDRESS" if named else "`export RAY_ADDRESS=local`") in message


def test_a_cluster_of_the_same_versions_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_utils, "get_entrypoint_name", lambda: "train.py --source caf\udce9")
    monkeypatch.setattr(ray, "init", lambda **options: joined.append(options["address"]))
    with answering() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        cluster.connect()
    assert joined == [address]
    assert ray_utils.get_entrypoint_name() == r"train.py --source caf\udce9", (
        "Ray stores it as UTF-8"
    )


def test_too_long_a_path_for_sockets_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(UserError, match=r"cannot exceed 107\); `export RAY_TMPDIR=/tmp`"):
        cluster.connect()


@pytest.mark.parametrize("kind", [ConnectionError, AuthenticationError])
def test_a_refused_connection_is_one_line(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def init(**_: Any) -> None:
        raise kind("Failed to\nconnect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=rf"{address} can't .*RAY_AUTH_MODE=token") as caught:
            cluster.connect()
    assert "\n" not in str(caught.value)


def test_a_cluster_of_another_version_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.56.0\n")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError, match=r"Ray: 2\.56\.0.*same versions") as caught:
            cluster.connect()
    assert "\n" not in str(caught.value)


def test_preprocessing_imports_nothing_slow_before_ray_begins_to_start() -> None:
    slow = "{'mlflow', 'ray.data', 'torch'}"
    code = f"import sys, pipelines.preprocess; print({slow} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
