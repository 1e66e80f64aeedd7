"""Object stores: ``s3://`` and ``gs://`` URIs and the connections to their servers.

Settings of a connection come from the environment, so that a URI contains no secret and can be
recorded. For S3: ``AWS_ACCESS_KEY_ID`` with ``AWS_SECRET_ACCESS_KEY``, or ``AWS_PROFILE``, or the
role of the computer; ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` for a server other than
Amazon's. For Google: ``GOOGLE_APPLICATION_CREDENTIALS``, or the service account of the computer; a
public bucket is ``gs://anonymous@bucket``. ``CLOUD_STORAGE_EMULATOR_ENDPOINT`` names another
server than Google's; the tests set it.
"""

import functools
import os

from pyarrow import fs

from alexnet.errors import UserError

# Within half a minute an unreachable store raises an error, within a minute one that does not
# answer. Without these limits pyarrow would wait for 99 seconds, Google's client for 15 minutes.
MAX_ATTEMPTS = 5
TIMEOUT_SECONDS = 10
RETRY_LIMIT_SECONDS = 60


def check_uri(uri: str) -> str:
    """The URI without slashes at its end.

    Raises:
        UserError: it contains a query, a user, a password or a port: these belong in the
            environment.
    """
    scheme, _, rest = uri.partition("://")
    bucket = rest.partition("/")[0]
    user, at, _ = bucket.rpartition("@")
    if ":" in bucket or (at and (scheme, user) != ("gs", "anonymous")):
        raise UserError(
            f"{scheme}://{rest.rpartition('@')[2]}: a URI can't contain a user, a password or a "
            "port; set credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a server as "
            "AWS_ENDPOINT_URL"
        )
    if "?" in uri:
        raise UserError(
            f"{uri.partition('?')[0]}: a URI can't contain a query; set a server as "
            "AWS_ENDPOINT_URL, a region as AWS_REGION"
        )
    return uri.rstrip("/")


def open_store(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, and the path inside that file system.

    An object's name may be any text: no character of it is an escape or starts a query.

    Raises:
        ValueError: the scheme is unknown or the URI names no bucket.
        OSError: the store can't be reached or has no such bucket.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    filesystem = connect(scheme, bucket, server, os.getpid())
    # Only Google's URIs have a user name before the bucket.
    return filesystem, f"{bucket.rpartition('@')[2]}/{key}".rstrip("/")


@functools.lru_cache(maxsize=64)
def connect(scheme: str, bucket: str, server: str, process: int) -> fs.FileSystem:
    """A connection to a bucket, which all threads of a process share.

    Args:
        scheme: ``s3`` or ``gs``.
        bucket: its name, for ``gs`` with the user name.
        server: URL of an S3 server; empty for Amazon's.
        process: ID of this process: a forked process can't use its parent's connection.

    Raises:
        ValueError: the scheme is unknown or the bucket's name is empty.
        OSError: there is no such bucket, or its region can't be found.
    """
    if not bucket:
        raise ValueError("it names no bucket")
    if scheme == "gs":
        uri = f"gs://{bucket}?retry_limit_seconds={RETRY_LIMIT_SECONDS}"
        return fs.FileSystem.from_uri(uri)[0]
    if scheme != "s3":
        raise ValueError(f"{scheme}:// is not supported")
    location = _endpoint(server) if server else {"region": fs.resolve_s3_region(bucket)}
    return fs.S3FileSystem(
        connect_timeout=TIMEOUT_SECONDS,
        request_timeout=TIMEOUT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
        **location,
    )


def _endpoint(server: str) -> dict[str, str]:
    """pyarrow's options for a server's URL; its region is AWS_REGION or does not matter."""
    scheme, _, host = server.rstrip("/").rpartition("://")
    return {"scheme": scheme or "https", "endpoint_override": host}
