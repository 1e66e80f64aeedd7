"""Tar archives as byte ranges: right ones from valid archives, a clear error for all others."""

import contextlib
import io
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.ignored import ignoring_rule
from alexnet.sources.tar import NO_TARGET, Members, list_members, list_nested

CONTENTS = {"a.JPEG": b"first", "b.JPEG": b"", "c.JPEG": bytes(range(256)) * 5}


def make_tar(contents: Mapping[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with any size and type."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def read_all(path: str, members: Members) -> dict[str, bytes]:
    return {
        name: storage.read_range(path, offset, size)
        for name, offset, size in zip(*members, strict=True)
    }


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_with_long_names_are_listed_in_both_tar_formats(
    tmp_path: Path, tar_format: int
) -> None:
    path = tmp_path / "x.tar"
    contents = CONTENTS | {"ü" * 120: b"long", "sub/d.JPEG": b"deep"}
    path.write_bytes(make_tar(contents, tar_format))
    members = read_all(str(path), list_members(str(path)).members)
    assert members == {name.rpartition("/")[2]: content for name, content in contents.items()}


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=8),
        st.dictionaries(st.text("xyz", min_size=1, max_size=150), st.binary(max_size=1500)),
        max_size=5,
    )
)
def test_nested_members_are_read_from_the_outer_archive(
    tmp_path_factory: pytest.TempPathFactory, classes: dict[str, dict[str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("nested") / "outer.tar"
    inner = {name: make_tar(contents, tarfile.GNU_FORMAT) for name, contents in classes.items()}
    path.write_bytes(make_tar(inner))
    nested = list_nested(str(path)).members
    assert {name: read_all(str(path), members) for name, members in nested.items()} == classes


def raw_member(name: bytes, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member with any name; ``tarfile`` would change some names."""
    block = bytearray(header("x", len(content), kind))
    block[:100] = name.ljust(100, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


def attributes(**values: str | bytes) -> bytes:
    """A PAX header; ``__`` in a name means a dot."""
    records = b""
    for name, value in values.items():
        text = value if isinstance(value, bytes) else value.encode()
        body = b" %s=%s\n" % (name.replace("__", ".").encode(), text)
        length = next(n for n in range(len(body), 10**6) if len(str(n)) + len(body) == n)
        records += b"%d%s" % (length, body)
    padding = bytes(-len(records) % 512)
    return header("attributes", len(records), tarfile.XHDTYPE) + records + padding


END = bytes(1024)
KINDS = {
    tarfile.REGTYPE: True,
    tarfile.CONTTYPE: True,
    tarfile.DIRTYPE: False,
    tarfile.CHRTYPE: False,
    tarfile.BLKTYPE: False,
    tarfile.FIFOTYPE: False,
}
"""Types of members, and whether they are plain files."""


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=100).filter(lambda name: b"\0" not in name)
            | st.sampled_from([b"/etc/passwd", b"../../up", b"a/../b", b"caf\xe9", b"c\xcc\xa7"]),
            st.sampled_from(list(KINDS)),
            st.binary(max_size=1100),
        ),
        max_size=6,
    )
)
def test_other_members_than_files_and_links_are_ignored(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[bytes, bytes, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "members.tar"
    path.write_bytes(
        b"".join(
            raw_member(name, content if KINDS[kind] else b"", kind)
            for name, kind, content in members
        )
        + END
    )
    texts = [(n.decode("utf-8", "backslashreplace"), kind, content) for n, kind, content in members]
    expected = [
        (name.rpartition("/")[2], content)
        for name, kind, content in texts
        if KINDS[kind] and not ignoring_rule([part for part in name.split("/") if part.strip(".")])
    ]
    if any(name in ("", ".", "..") for name, _ in expected):
        with pytest.raises(UserError, match="is not the name of a file"):
            list_members(str(path))
        return
    listed = list_members(str(path)).members
    assert [
        (name, storage.read_range(str(path), offset, size))
        for name, offset, size in zip(*listed, strict=True)
    ] == expected


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (attributes(path="../../ü.JPEG") + raw_member(b"x", b"abc"), "ü.JPEG"),
        (attributes(path=b"\xff.JPEG") + raw_member(b"x", b"abc"), r"\xff.JPEG"),
        (
            attributes(hdrcharset="BINARY", path=b"\xff.JPEG") + raw_member(b"x", b"abc"),
            r"\xff.JPEG",
        ),
        (attributes(size="3") + raw_member(b"x", b"abc"), "x"),
        (attributes(linkpath="/etc/passwd", mtime="-1") + raw_member(b"x", b"abc"), "x"),
        (
            raw_member(b"././@LongLink", b"n" * 300 + b"/../\xff\0", tarfile.GNUTYPE_LONGNAME)
            + raw_member(b"x", b"abc"),
            r"\xff",
        ),
        (
            raw_member(b"././@LongLink", b"/etc/passwd\0", tarfile.GNUTYPE_LONGLINK)
            + raw_member(b"x", b"abc"),
            "x",
        ),
    ],
    ids=["path", "not UTF-8", "binary", "size", "link", "long name", "long link"],
)
def test_extended_headers_set_the_name_and_links_are_ignored(
    tmp_path: Path, content: bytes, name: str
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content + END)
    assert read_all(str(path), list_members(str(path)).members) == {name: b"abc"}


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.linkname, member.type = target, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def symlink(name: str, target: str) -> bytes:
    return link(name, target, tarfile.SYMTYPE)


FILE = raw_member(b"d/a.JPEG", b"abc")
NOTHING = None
"""A link that leads to no file."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (FILE + link("b", "d/a.JPEG"), {"a.JPEG": b"abc", "b": b"abc"}),
        (FILE + link("./e/b", "./d/a.JPEG"), {"a.JPEG": b"abc", "b": b"abc"}),
        (raw_member(b"/d/a", b"abc") + link("b", "d/a"), {"a": b"abc", "b": b"abc"}),
        (
            FILE + link("b", "d/a.JPEG") + link("c", "b"),
            dict.fromkeys(["a.JPEG", "b", "c"], b"abc"),
        ),
        (FILE + symlink("d/b", "a.JPEG"), {"a.JPEG": b"abc", "b": b"abc"}),
        (symlink("e/b", "../d/a.JPEG") + FILE, {"b": b"abc", "a.JPEG": b"abc"}),
        (
            symlink("x", "y") + link("y", "d/a.JPEG") + FILE,
            dict.fromkeys(["x", "y", "a.JPEG"], b"abc"),
        ),
        (FILE + link("d/a.JPEG", "d/a.JPEG"), {"a.JPEG": b"abc"}),
        (raw_member(b"a", b"") + link("b", "a"), {"a": b"", "b": b""}),
        (FILE + link("b", "missing"), {"a.JPEG": b"abc", "b": NOTHING}),
        (FILE + link("b", ""), {"a.JPEG": b"abc", "b": NOTHING}),
        (FILE + symlink("d/b", "../../d/a.JPEG"), {"a.JPEG": b"abc", "b": NOTHING}),
        (symlink("b", "/etc/passwd"), {"b": NOTHING}),
        (symlink("b", "../../../../etc/passwd"), {"b": NOTHING}),
        (symlink("b", "b"), {"b": NOTHING}),
        (symlink("b", "c") + symlink("c", "b"), {"b": NOTHING, "c": NOTHING}),
        (
            header("d", 0, tarfile.DIRTYPE) + FILE + symlink("b", "d"),
            {"a.JPEG": b"abc", "b": NOTHING},
        ),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_links_are_the_files_of_the_archive_that_they_lead_to(
    tmp_path: Path, content: bytes, expected: Mapping[str, bytes | None], nested: bool
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content + END)
    if nested:
        path.write_bytes(make_tar({"other.tar": make_tar(CONTENTS), "in.tar": content + END}))
    members = (
        list_nested(str(path)).members["in.tar"] if nested else list_members(str(path)).members
    )
    listed = {
        name: None if size == NO_TARGET else storage.read_range(str(path), offset, size)
        for name, offset, size in zip(*members, strict=True)
    }
    assert listed == expected


def test_files_with_two_names_and_files_added_twice_are_read(tmp_path: Path) -> None:
    """The archiver stores the second name, and the file added again, as hard links."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.JPEG").write_bytes(b"abc")
    (folder / "b.JPEG").hardlink_to(folder / "a.JPEG")
    (folder / "c.JPEG").symlink_to("b.JPEG")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folder, "images")
        archive.add(folder / "a.JPEG", "images/a.JPEG")
    members = list_members(str(path)).members
    assert sorted(read_all(str(path), members).items()) == [
        (f"{name}.JPEG", b"abc") for name in "abc"
    ]


def test_an_inner_archive_can_be_a_link_to_another(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    inner = raw_member(b"a.tar", make_tar(CONTENTS))
    path.write_bytes(inner + link("b.tar", "a.tar") + END)
    nested = list_nested(str(path)).members
    assert read_all(str(path), nested["b.tar"]) == CONTENTS
    path.write_bytes(inner + link("b.tar", "c.tar") + END)
    with pytest.raises(UserError, match=r"outer\.tar: b\.tar is a link to a file that the archive"):
        list_nested(str(path))


def test_an_archive_truncated_anywhere_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    whole = make_tar(CONTENTS)
    end = len(whole.rstrip(b"\0")) + 512  # A tar ends in zeros; the first block of them is needed.
    for length in range(0, end, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated"):
            list_members(str(path))
    path.write_bytes(whole[: end - 1024])
    with pytest.raises(UserError, match=r"truncated archive: c\.JPEG ends after the archive"):
        list_members(str(path))
    path.write_bytes(whole[: end + 512])
    assert list_members(str(path)).members.names == list(CONTENTS)


def test_a_damaged_header_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    damaged = bytearray(make_tar(CONTENTS))
    damaged[1024] ^= 1  # The checksum of the second header is wrong.
    path.write_bytes(damaged)
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 1
    with pytest.raises(UserError, match="damaged header at byte 1024"):
        list_members(str(path))


@pytest.mark.parametrize(
    "content",
    [
        header("huge.JPEG", 2**40),
        header("negative.JPEG", -1),
        header("negative.JPEG", -(2**40)),
        header("attributes", 2**40, tarfile.XHDTYPE),
        header("long name", 2**40, tarfile.GNUTYPE_LONGNAME),
        header("attributes", 2**21, tarfile.XHDTYPE) + bytes(2**21),
        header("sparse.JPEG", 5, tarfile.GNUTYPE_SPARSE) + bytes(512),
        header("attributes", 0, tarfile.XHDTYPE) * 2000,
        header("unknown", 2**40, b"Z"),
        header("folder", -1024, tarfile.DIRTYPE),
        attributes(size=str(2**40)) + raw_member(b"huge.JPEG", b"abc"),
        attributes(size="-512") + raw_member(b"negative.JPEG", b"abc"),
        attributes(size="many") + raw_member(b"many.JPEG", b"abc"),
        attributes(GNU__sparse__map="0,3", GNU__sparse__size=str(2**40)) + raw_member(b"s", b"abc"),
        attributes(GNU__sparse__major="1", GNU__sparse__minor="0") + raw_member(b"s", b"abc"),
    ],
    ids=[
        "size",
        "-1",
        "negative",
        "attributes",
        "name",
        "big-attributes",
        "sparse",
        "recursion",
        "unknown",
        "folder",
        "pax-size",
        "pax-negative",
        "pax-text",
        "pax-sparse",
        "pax-sparse-1.0",
    ],
)
def test_wrong_headers_raise_an_error_without_using_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content + make_tar(CONTENTS))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"x\.tar") as caught:
        list_members(str(path))
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4607), st.binary(min_size=1, max_size=12)), max_size=4))
def test_damage_raises_only_user_errors(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    content = bytearray(make_tar(CONTENTS, tarfile.PAX_FORMAT))
    for position, replacement in damage:
        content[position : position + len(replacement)] = replacement
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_all(str(path), list_members(str(path)).members)


def test_a_compressed_archive_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.JPEG"))
    with pytest.raises(UserError, match=r"x\.tar: is compressed \(gzip\)"):
        list_members(str(path))


def test_the_error_names_the_inner_and_the_outer_archive(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    path.write_bytes(
        make_tar({"good.tar": make_tar(CONTENTS), "bad.tar": make_tar(CONTENTS)[:600]})
    )
    with pytest.raises(UserError, match=r"outer\.tar: bad\.tar: .*truncated"):
        list_nested(str(path))


def test_a_repeated_inner_archive_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "outer.tar"
    path.write_bytes(make_tar({"x/a.tar": make_tar({}), "y/a.tar": make_tar({})}))
    with pytest.raises(UserError, match=r"contains a\.tar twice"):
        list_nested(str(path))


def test_a_range_after_the_end_or_of_a_missing_file_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"12345")
    assert storage.read_range(str(path), 1, 3) == b"234"
    with pytest.raises(EOFError, match="2 bytes"):
        storage.read_range(str(path), 3, 4)
    with pytest.raises(FileNotFoundError):
        storage.read_range(str(tmp_path / "missing"), 0, 1)
