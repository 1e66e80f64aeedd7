"""No secret in what is shown or logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.console.redact import redacted

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
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert redacted(text) == shown


@given(SECRETS)
def test_a_password_is_never_shown(secret: str) -> None:
    assert secret not in redacted(f"s3://KEY:{secret}@bucket/x is refused")


@given(st.text())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)
