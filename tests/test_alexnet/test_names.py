"""File names as text and back."""

import os

import hypothesis.strategies as st
import pytest
from hypothesis import given

from alexnet.storage.names import path_bytes, path_text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain name.jpg", "plain name.jpg"),
        ("größe\n猫.jpg".encode(), "größe\n猫.jpg"),
        (b"\xff\xfe.jpg", r"\xff\xfe.jpg"),
        (rb"C:\new\xff.jpg", r"C:\new\x5cxff.jpg"),
    ],
)
def test_only_bytes_that_are_not_utf8_are_escaped(name: bytes, text: str) -> None:
    assert path_text(name) == path_text(os.fsdecode(name)) == text


@given(st.lists(st.sampled_from([b"\\", b"x", b"5c", b"ff", b"\xff", b"\xc3", b"\xa9", b"/a"])))
def test_the_text_of_any_name_leads_back_to_it(parts: list[bytes]) -> None:
    name = b"".join(parts)
    assert path_bytes(path_text(name)) == name
