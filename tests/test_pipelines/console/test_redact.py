"""No secret in what is shown or logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.console.redact import redacted, shortened

SECRETS = st.text("abcXYZ019!$%^*()_-+:;,.@", min_size=4).filter(lambda text: "***" not in text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://host:5000/path", "http://host:5000/path"),
        ("http://user:password@host/x?y=1", "http://***@host/x?y=1"),
        ("postgresql://u:p@ss@db/mlflow, again", "postgresql://***@db/mlflow, again"),
        ("sqlite:////a@b/c", "sqlite:////a@b/c"),
        ("postgresql://db/x?password=abc&sslmode=on", "postgresql://db/x?password=***&sslmode=on"),
        ("a mail to me@host", "a mail to me@host"),
        ("gs://anonymous@bucket/x", "gs://anonymous@bucket/x"),
        ("models:/alexnet@champion", "models:/alexnet@champion"),
        ("batch size 16 (--batch-size)", "batch size 16 (--batch-size)"),
        ("s3://KEY:a/b+c=@bucket/x", "s3://***@bucket/x"),
        ("'sqlite:///x?sslpassword=a'", "'sqlite:///x?sslpassword=***'"),
        ("(https://host/x?sig=a%2Fb)", "(https://host/x?sig=***)"),
        ("?X-Amz-Credential=a&X-Amz-Signature=b", "?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("AccountName=x;AccountKey=abc==;", "AccountName=x;AccountKey=***;"),
        ("odbc_connect=UID%3Da%3BPWD%3Dabc", "odbc_connect=UID%3Da%3BPWD%3D***"),
        ("{'password': 'a b', 'port': '1'}", "{'password': '***', 'port': '1'}"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert redacted(text) == shown


@given(SECRETS)
def test_a_password_is_never_shown(secret: str) -> None:
    assert secret not in redacted(f"s3://KEY:{secret}@bucket/x is refused")


@given(SECRETS)
def test_a_password_may_contain_a_slash(secret: str) -> None:
    assert secret not in redacted(f"s3://KEY:{secret}/{secret}@bucket/x is refused")


def test_a_secret_is_removed_before_a_long_text_is_cut() -> None:
    error = ValueError("can't use\n http://user:hunter2hunter2@host")
    assert shortened(error, 30) == "can't use http://***@host"
    assert shortened(error, 12) == "can't use ht"


@given(st.text())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)
