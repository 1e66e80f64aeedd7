"""Which Ray cluster to join, and whether it can be joined.

Ray itself waits for minutes for a cluster that died without ``ray stop``, and prints dozens of
lines before it says that a token is missing. So a cluster is asked once before.
"""

import json
import os
import socket

import grpc
from ray._private.utils import check_version_info
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest
from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub
from ray.exceptions import AuthenticationError

from alexnet.errors import UserError

TIMEOUT_S = 3
"""For the answer of a cluster; Ray's own attempt follows if there is none."""


def running_cluster(started: str | None) -> str | None:
    """Host and port of the cluster to join; None if one is to be started here.

    Args:
        started: the address of the cluster that ``ray start`` has started here, if it has.

    Raises:
        UserError: RAY_ADDRESS is no address of a cluster, or no cluster answers there.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named == "local":
        return None
    if named and named != "auto":
        _check_form(named)
        address: str | None = named
    else:
        address = started
    if address and _answers(address):
        return address
    if named:
        raise UserError(
            f"RAY_ADDRESS={named}: no Ray cluster answers there; start one with "
            "`ray start --head` or unset RAY_ADDRESS"
        )
    return None


def _check_form(named: str) -> None:
    scheme = named.partition("://")[0] if "://" in named else None
    host, _, port = named.rpartition(":")
    if scheme is None and host and port.isdecimal() and 0 < int(port) < 2**16:
        return
    kind = "not the host and port of a Ray cluster"
    if scheme in ("http", "https"):
        kind = "the address of a dashboard, which only `ray job submit` uses"
    elif scheme == "ray":
        kind = "the address of a Ray Client server, through which Ray Train can't be used"
    wanted = "scripts need the cluster's host and port, such as 10.0.0.5:6379"
    raise UserError(f"RAY_ADDRESS={named}: {kind}; {wanted}: correct or unset RAY_ADDRESS")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def ask_cluster(address: str) -> None:
    """Ask a cluster for its versions, which it tells only those who have its token.

    A cluster that does not answer is left to Ray.

    Raises:
        AuthenticationError: the cluster requires another token.
        RuntimeError: it has other versions of Ray or Python.
    """
    headers: dict[str, str] = {}
    token = AuthenticationTokenLoader.instance()
    if with_token() and token.has_token(ignore_auth_mode=True):
        headers = token.get_token_for_http_header()
    request = InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
    # Ray does not use proxies either.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = InternalKVGcsServiceStub(channel).InternalKVGet(
                request, timeout=TIMEOUT_S, metadata=list(headers.items())
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise AuthenticationError(error.details()) from error
            return
    if reply.value:
        check_version_info(json.loads(reply.value), "this command")


def with_token() -> bool:
    """Whether Ray sends a token to clusters that it joins."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
