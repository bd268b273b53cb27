"""The raw folder: zips as folders, and nothing hostile gets anywhere."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import raw as raw_module
from pipeline.records.findings import FaultyFile
from pipeline.records.raw import RawFolder, safe_name

FILES = {"stage1_train/a/images/a.png": b"image", "stage1_train/a/masks/1.png": b"mask", "classes.csv": b"filename\n"}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that is in the zip twice
        with zipfile.ZipFile(stream, "w", compression) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    return stream.getvalue()


def zipped_members(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(stream, "w") as archive:
            for info, content in members:
                archive.writestr(info, content)
    return stream.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    with RawFolder(folder) as raw:
        return {name: raw.read(name) for name in raw.files()}


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def train_zip(prefix: str) -> bytes:
    return zipped({prefix + "a/images/a.png": b"image", prefix + "a/masks/1.png": b"mask"})


def as_unpacked() -> dict[str, bytes]:
    return FILES


def as_zip_without_its_folder() -> dict[str, bytes]:
    return {"stage1_train.zip": train_zip(""), "classes.csv": FILES["classes.csv"]}


def as_zip_with_its_folder() -> dict[str, bytes]:
    return {"stage1_train.zip": train_zip("stage1_train/"), "classes.csv": FILES["classes.csv"]}


def as_bundle() -> dict[str, bytes]:
    return {"data-science-bowl-2018.zip": zipped(as_zip_without_its_folder(), zipfile.ZIP_STORED)}


def as_bundle_with_zipped_table() -> dict[str, bytes]:
    inner = {"stage1_train.zip": train_zip(""), "classes.csv.zip": zipped({"classes.csv": FILES["classes.csv"]})}
    return {"data-science-bowl-2018.zip": zipped(inner)}


def as_mac_zip() -> dict[str, bytes]:
    files = {"a/images/a.png": b"image", "a/masks/1.png": b"mask", "__MACOSX/a/images/._a.png": b"x", ".DS_Store": b"x"}
    return {"stage1_train.zip": zipped(files), "classes.csv": FILES["classes.csv"], ".DS_Store": b"x"}


def as_windows_zip() -> dict[str, bytes]:
    files = {"a\\images\\a.png": b"image", "a\\masks\\1.png": b"mask"}
    return {"stage1_train.zip": zipped(files), "classes.csv": FILES["classes.csv"], "Thumbs.db": b"x"}


def as_both() -> dict[str, bytes]:
    return {**FILES, "stage1_train.zip": train_zip("")}


@pytest.mark.parametrize(
    "served",
    [
        as_unpacked, as_zip_without_its_folder, as_zip_with_its_folder, as_bundle, as_bundle_with_zipped_table,
        as_mac_zip, as_windows_zip, as_both,
    ],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_however_it_is_served_it_looks_the_same_and_nothing_is_written(served, tmp_path: Path) -> None:
    put(tmp_path, served())
    before = everything_below(tmp_path)
    assert content(tmp_path) == FILES
    assert everything_below(tmp_path) == before


HOSTILE = [
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "C:/evil",
    "C:evil",
    "..\\evil",
    "\\\\server\\evil",
    "\\evil",
    "a\x01b",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_zip_slip_is_refused_by_name_and_writes_nothing(name: str, tmp_path: Path) -> None:
    info = zipfile.ZipInfo("x")
    info.filename = name
    put(tmp_path, {"in/raw/bad.zip": zipped_members((info, b"evil"), (zipfile.ZipInfo("fine.png"), b"fine"))})
    before = everything_below(tmp_path)
    with pytest.raises(ValueError, match=r"bad\.zip: .*refused, as no honest zip"):
        RawFolder(tmp_path / "in" / "raw")
    assert everything_below(tmp_path) == before
    assert not Path("/etc/evil").exists()


@settings(deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"[./\\:a-zC]{0,12}", fullmatch=True))
def test_a_safe_name_stays_below_the_folder_or_is_refused(name: str) -> None:
    try:
        safe = safe_name(name)
    except ValueError:
        return
    path = PurePosixPath(safe)
    assert not path.is_absolute() and ".." not in path.parts and safe and "\\" not in safe and "\0" not in safe
    assert (Path("/raw") / safe).resolve().is_relative_to("/raw")
    assert safe_name(safe) == safe


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z0-9_ -]{1,8}", fullmatch=True), min_size=1, max_size=4))
def test_an_honest_name_is_kept(parts: list[str]) -> None:
    assert safe_name("/".join(parts)) == "/".join(parts)


def test_links_in_zips_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    put(tmp_path, {"a.zip": zipped_members((info, b"/etc/passwd"))})
    with pytest.raises(ValueError, match=r"'link\.png' is a link, which is never followed"):
        RawFolder(tmp_path)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    packed = bytearray(zipped({"a.png": b"secret"}, zipfile.ZIP_STORED))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        packed[packed.index(signature) + offset] |= 1
    put(tmp_path, {"a.zip": bytes(packed)})
    with pytest.raises(ValueError, match=r"'a\.png' is encrypted; unpack"):
        RawFolder(tmp_path)


def test_unknown_compression_is_refused(tmp_path: Path) -> None:
    packed = bytearray(zipped({"a.png": b"bytes"}, zipfile.ZIP_STORED))
    packed[packed.index(b"PK\x01\x02") + 10] = 9  # deflate64, as Windows writes for large zips
    put(tmp_path, {"a.zip": bytes(packed)})
    with pytest.raises(ValueError, match=r"'a\.png' has the unknown compression 9"):
        RawFolder(tmp_path)


def test_zip_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"a.zip": zipped({"zeros.bmp": bytes(3 << 20)})})
    assert len(content(tmp_path)["a/zeros.bmp"]) == 3 << 20  # small enough to be a blank mask
    monkeypatch.setattr(raw_module, "RATIO_MATTERS_FROM", 1 << 20)
    with pytest.raises(ValueError, match=r"unpacks from [\d,]+ to 3,145,728 bytes, as a zip bomb does"):
        RawFolder(tmp_path)
    monkeypatch.setattr(raw_module, "MAXIMUM_MEMBER_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="unpacks to 3,145,728 bytes; unpack the zip"):
        RawFolder(tmp_path)


def test_a_declared_size_that_lies_never_unpacks_to_more(tmp_path: Path) -> None:
    packed = bytearray(zipped({"a.bmp": bytes(1 << 20)}))
    at = packed.index(b"PK\x01\x02") + 24
    packed[at : at + 4] = (100).to_bytes(4, "little")
    put(tmp_path, {"a.zip": bytes(packed)})
    with RawFolder(tmp_path) as raw, pytest.raises(FaultyFile, match="expected readable bytes"):
        raw.read("a/a.bmp")


def test_zips_within_zips_have_an_end(tmp_path: Path) -> None:
    inner = zipped({"a.png": b"a"})
    for _ in range(4):
        inner = zipped({"deeper.zip": inner})
    put(tmp_path, {"outer.zip": inner})
    with pytest.raises(ValueError, match="expected at most 3 zips within each other"):
        RawFolder(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (train_zip("")[:-40], "a truncated or damaged one"),
        (b"", "an empty file"),
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page: the download asked for a log-in"),
        (b"something else", "bytes that begin"),
    ],
)
def test_what_is_no_whole_zip_is_refused(content: bytes, found: str, tmp_path: Path) -> None:
    put(tmp_path, {"stage1_train.zip": content})
    with pytest.raises(ValueError, match=rf"stage1_train\.zip: expected a whole zip, found {found}"):
        RawFolder(tmp_path)


def test_a_damaged_member_is_named_when_it_is_read(tmp_path: Path) -> None:
    packed = bytearray(zipped({"a.png": b"0123456789" * 10}, zipfile.ZIP_STORED))
    packed[60] ^= 0xFF
    put(tmp_path, {"a.zip": bytes(packed)})
    with RawFolder(tmp_path) as raw, pytest.raises(FaultyFile, match=r"Bad CRC-32.*a\.zip: a\.png.*fetch it again"):
        raw.read("a/a.png")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    put(tmp_path, {"a.zip": zipped_members((zipfile.ZipInfo("a.png"), b"1"), (zipfile.ZipInfo("a.png"), b"2"))})
    with pytest.raises(ValueError, match=r"'a\.png' is in the zip twice"):
        RawFolder(tmp_path)


def test_all_problems_are_told_in_one_message(tmp_path: Path) -> None:
    put(tmp_path, {"a.zip": b"", "b.zip": b"<html>", "c.zip": zipped({"../x": b"", "../y": b""})})
    with pytest.raises(ValueError) as caught:
        RawFolder(tmp_path)
    assert "4 thing(s)" in str(caught.value)
    assert all(part in str(caught.value) for part in ("a.zip", "b.zip", "'../x'", "'../y'"))


def test_other_bytes_unpacked_and_zipped_are_refused(tmp_path: Path) -> None:
    put(tmp_path, {**as_both(), "stage1_train/a/masks/1.png": b"MASK"})
    with pytest.raises(ValueError, match=r"stage1_train\.zip hold different bytes for stage1_train/a/masks/1\.png"):
        RawFolder(tmp_path)


def test_an_interrupted_unpacking_is_refused(tmp_path: Path) -> None:
    put(tmp_path, as_both())
    (tmp_path / "stage1_train/a/masks/1.png").unlink()
    with pytest.raises(ValueError, match=r"only one of them has stage1_train/a/masks/1\.png; delete one of the two"):
        RawFolder(tmp_path)


def test_parts_of_one_folder_in_two_places_are_joined(tmp_path: Path) -> None:
    put(tmp_path, {"images/a.png": b"a", "images.zip": zipped({"b.png": b"b"})})
    assert content(tmp_path) == {"images/a.png": b"a", "images/b.png": b"b"}


def test_links_on_disk(tmp_path: Path) -> None:
    put(tmp_path, {"elsewhere/a.png": b"a", "raw/b.png": b"b"})
    (tmp_path / "linked").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert content(tmp_path / "linked") == {"a.png": b"a", "b.png": b"b"}
    (tmp_path / "raw" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"(?s)found a link to one.*found a broken link"):
        RawFolder(tmp_path / "raw")


def test_a_missing_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder of raw files, found nothing"):
        RawFolder(tmp_path / "none")
    with RawFolder(tmp_path) as raw, pytest.raises(FaultyFile, match=r"a\.png, found nothing"):
        raw.read("a.png")


@pytest.mark.real
def test_the_competitions_zips(dsb2018: Path) -> None:
    with RawFolder(dsb2018) as raw:
        names = raw.files()
        assert sum("/masks/" in name for name in names) == 26_313
        assert sum(name.startswith("stage1_test/") for name in names) == 65
        first = next(name for name in names if "/masks/" in name)
        assert raw.read(first).startswith(b"\x89PNG")
        assert raw.origin(first).startswith("stage1_train.zip: ")
