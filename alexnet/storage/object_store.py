"""Object stores: ``s3://`` and ``gs://`` places and the connections that serve them.

Everything about a connection comes from the environment, so that places stay plain names and no
secret gets into a record. For S3: ``AWS_ACCESS_KEY_ID`` with ``AWS_SECRET_ACCESS_KEY``, or
``AWS_PROFILE``, or the machine's role; ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` for a
server other than Amazon's. For Google: ``GOOGLE_APPLICATION_CREDENTIALS``, or the machine's
account; a public bucket is ``gs://anonymous@bucket``.

The tests run both against servers on one machine, for Google's found by
``CLOUD_STORAGE_EMULATOR_ENDPOINT``.
"""

import functools
import os

from pyarrow import fs

from alexnet.errors import UserError

# A store that is gone is given up within half a minute, a silent one within a minute. Without
# these, pyarrow's own way of connecting waits for 99 seconds, and Google's for 15 minutes.
_ATTEMPTS = 5
_TIMEOUT_SECONDS = 10
_GIVE_UP_SECONDS = 60


def check(place: str) -> str:
    """A URI as a user gave it, without slashes at its end.

    Raises:
        UserError: it holds a query or a password, which belong into the environment.
    """
    scheme, _, rest = place.partition("://")
    bucket = rest.partition("/")[0]
    if ":" in bucket:
        shown = f"{scheme}://{rest[rest.rfind('@') + 1 :]}"
        raise UserError(
            f"{shown}: a place holds no password and no port; give credentials as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a server as AWS_ENDPOINT_URL"
        )
    if "?" in place:
        raise UserError(
            f"{place}: a place holds no query; give a server as AWS_ENDPOINT_URL, a region as "
            "AWS_REGION"
        )
    return place.rstrip("/")


def open_store(place: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds a place, and the place's path in it.

    A name in a store is any text: nothing in it is an escape or a query.

    Raises:
        ValueError: the scheme is unknown or no bucket is named.
        OSError: the store can't be reached or has no such bucket.
    """
    scheme, _, rest = place.partition("://")
    bucket, _, key = rest.partition("/")
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    filesystem = _connect(scheme, bucket, server, os.getpid())
    # Only Google's buckets have a user's name before them.
    return filesystem, f"{bucket.rpartition('@')[2]}/{key}".rstrip("/")


# A connection is safe to share among threads, but not with a process that was forked from this
# one, so the process is part of the key.
@functools.lru_cache(maxsize=64)
def _connect(scheme: str, bucket: str, server: str, process: int) -> fs.FileSystem:
    if not bucket:
        raise ValueError("it names no bucket")
    if scheme == "gs":
        uri = f"gs://{bucket}?retry_limit_seconds={_GIVE_UP_SECONDS}"
        return fs.FileSystem.from_uri(uri)[0]
    if scheme != "s3":
        raise ValueError(f"{scheme}:// is not supported")
    where = _at(server) if server else {"region": fs.resolve_s3_region(bucket)}
    return fs.S3FileSystem(
        connect_timeout=_TIMEOUT_SECONDS,
        request_timeout=_TIMEOUT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **where,
    )


def _at(server: str) -> dict[str, str]:
    """A server's URL as pyarrow wants it; its region comes from AWS_REGION or does not matter."""
    scheme, _, host = server.rstrip("/").rpartition("://")
    return {"scheme": scheme or "https", "endpoint_override": host}
