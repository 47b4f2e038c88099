"""A scan of an object store: S3, as a server on this machine answers it."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from test_scan import check_sheet, rows, save_pictures, scan, told

from lensborn.bundle import Bundle
from lensborn.detector import Detector
from lensborn.photo import UnreadableError

for extra in ("pyarrow", "s3fs", "boto3", "moto.server"):
    pytest.importorskip(extra, reason="needs pip install 'lensborn[dev]'")

from lensborn.scan.listing import Filters, checked_roots, listed  # noqa: E402
from lensborn.scan.places import LARGE_BYTES, Store, place_of  # noqa: E402

BUCKET = "pictures"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of the server, which s3fs reaches through the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
    server.stop()


@pytest.fixture
def album(s3: Any, examples: Path, tmp_path: Path) -> Path:
    """A folder of portraits and of files that are none; the same lies in the bucket, below `album/`."""
    folder = tmp_path / "album"
    save_pictures(folder, examples, 10)
    whole = (folder / "album-0" / "0.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "it's <é> #1 100%.jpg").write_bytes(whole)
    (folder / "notes.txt").write_text("left out")
    for key in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3.delete_object(Bucket=BUCKET, Key=key["Key"])
    for path in folder.rglob("*.*"):
        key = path.relative_to(tmp_path).as_posix()
        s3.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    return folder


def test_a_store_is_scanned_as_a_folder(s3: Any, album: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    here, there, model = tmp_path / "here", tmp_path / "there", ["--model", tiny_bundle.path]
    assert scan(album, "--out", here, *model).exit_code == 1
    done = scan(f"s3://{BUCKET}/album/", "--out", there, *model, "--sheet")
    assert done.exit_code == 1, done.output
    local, remote = rows(here), rows(there)
    for row in local:
        row["path"] = row["path"].replace(str(album), f"s3://{BUCKET}/album")
    for row in [*local, *remote]:
        del row["stamp"]
    assert remote == local
    assert told(there)["files"] == {"ok": 11, "no_face": 0, "unreadable": 2}
    check_sheet(there, 11, 11)


def test_an_object_with_another_etag_is_judged_anew(
    s3: Any, album: Path, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    read = Store.read

    def watched(self: Store, path: str, size: int | None) -> bytes:
        fetched.append(path.rpartition("/")[2])
        return read(self, path, size)

    monkeypatch.setattr(Store, "read", watched)
    command = [f"s3://{BUCKET}/album", "--out", tmp_path / "results", "--model", tiny_bundle.path]
    assert scan(*command, "--exclude", "e*.jpg", "--exclude", "t*.jpg").exit_code == 0
    assert len(fetched) == 11
    fetched.clear()
    changed = bytearray((album / "album-1" / "9.jpg").read_bytes())
    changed[-2 - 100] ^= 1  # of the same size
    s3.put_object(Bucket=BUCKET, Key="album/album-1/9.jpg", Body=bytes(changed))
    s3.delete_object(Bucket=BUCKET, Key="album/album-0/2.jpg")
    assert scan(*command, "--exclude", "e*.jpg", "--exclude", "t*.jpg").exit_code == 0
    assert fetched == ["9.jpg"]
    found = {row["path"].rpartition("/")[2]: row for row in rows(tmp_path / "results")}
    assert len(found) == 10 and "2.jpg" not in found
    head = s3.head_object(Bucket=BUCKET, Key="album/album-1/9.jpg")
    assert found["9.jpg"]["stamp"] == head["ETag"].strip('"')


def test_keys_that_cannot_be_listed_are_told(
    s3: Any, album: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """A marker of a folder, a prefix named like a picture, and an empty part, which s3fs cannot list."""
    for key in ("album/marker/", "album/a.jpg/b.jpg", "album//c.jpg"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=(album / "album-0" / "0.jpg").read_bytes())
    out = tmp_path / "results"
    assert scan(f"s3://{BUCKET}/album", "--out", out, "--model", tiny_bundle.path).exit_code == 1
    found = {row["path"].removeprefix(f"s3://{BUCKET}/album/"): row for row in rows(out)}
    assert found["a.jpg/b.jpg"]["status"] == "ok"
    assert "rename them" in found[""]["error"]
    assert len(found) == 13 + 2


@pytest.mark.parametrize(("size", "together"), [(LARGE_BYTES, True), (LARGE_BYTES + 1, False), (None, False)])
def test_large_objects_are_held_one_at_a_time(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, size: int | None, together: bool
) -> None:
    """Two threads: while one has an object in hand, can the other fetch its own?"""
    place, both = Store("memory://album"), Barrier(2)
    met: list[bool] = []

    def fetched(self: Store, path: str, size: int | None) -> bytes:
        try:
            both.wait(5 if together else 0.3)
            met.append(True)
        except BrokenBarrierError:
            met.append(False)
        return b"no picture"

    monkeypatch.setattr(Store, "read", fetched)
    with ThreadPoolExecutor(2) as pool:
        judged = [pool.submit(place.judge, detector, f"memory://album/{n}.jpg", size) for n in range(2)]
    assert [one.result().status for one in judged] == ["unreadable"] * 2
    assert met == [together] * 2


def test_no_more_than_allowed_is_fetched(s3: Any) -> None:
    place = place_of(f"s3://{BUCKET}/large.jpg")
    with pytest.raises(UnreadableError, match="more than"):
        place.read(f"s3://{BUCKET}/large.jpg", 2**40)
    with pytest.raises(UnreadableError, match="no such file"):
        place.read(f"s3://{BUCKET}/large.jpg", 10)


@pytest.mark.parametrize(
    "address",
    [
        "github://pictures/album",
        "ftp://127.0.0.1:1/album",
        "hdfs://127.0.0.1:1/album",
        "zip://album",
        "zip://album::/nowhere.zip",
        "dir://album",
        "nowhere://album",
    ],
)
def test_a_store_that_cannot_be_set_up_is_wrong_usage(
    tiny_bundle: Bundle, tmp_path: Path, address: str
) -> None:
    """fsspec's file systems raise what they like: TypeError, OSError, AttributeError."""
    refused = scan(address, "--out", tmp_path / "results", "--model", tiny_bundle.path)
    assert (refused.exit_code, type(refused.exception)) == (2, SystemExit)
    assert address.partition("//")[0] in refused.stderr
    assert "check the address" in refused.stderr or "package" in refused.stderr


def test_a_password_in_an_address_is_refused_and_not_repeated(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    refused = scan("ftp://me:hush@host.example/album", "--out", out, "--model", tiny_bundle.path)
    assert refused.exit_code == 2
    assert "holds a password" in refused.stderr
    assert "hush" not in refused.output
    assert not (out / "faces.parquet").exists()


@pytest.mark.parametrize(
    "address",
    [
        "https://host.example/album/0.jpg?X-Amz-Expires=9&X-Amz-Signature=hush",
        "https://host.example?sig=hush",
        "memory://album/0.jpg?token=hush",
    ],
)
def test_a_signed_address_is_refused_and_not_repeated(
    tiny_bundle: Bundle, tmp_path: Path, address: str
) -> None:
    out = tmp_path / "results"
    refused = scan(address, "--out", out, "--model", tiny_bundle.path)
    assert refused.exit_code == 2
    assert "holds a query" in refused.stderr and "leave it out" in refused.stderr
    assert "hush" not in refused.output
    assert not out.exists()


def test_keys_with_question_marks_are_no_queries() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/asked/why?/0.jpg?a=b.jpg", b"no picture")
    (root,) = checked_roots(["memory://asked/why?"])
    (entry,) = listed([root], Filters())
    assert place_of(entry.path).read(entry.path, entry.size) == b"no picture"


def test_an_address_says_which_host() -> None:
    """WebHDFS, which has no other way to know; it connects later."""
    for host in ("one:9870", "another:9871"):
        place = place_of(f"webhdfs://{host}/album/0.jpg")
        assert isinstance(place, Store)
        assert place is place_of(f"webhdfs://{host}/other/1.jpg")
        assert host in place._store.url


def test_what_cannot_be_reached_is_wrong_usage(
    s3: Any, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--out", tmp_path / "results", "--model", tiny_bundle.path]
    assert "there is no s3://nowhere" in scan("s3://nowhere/x", *options).stderr
    missing = scan(f"s3://{BUCKET}/nothing", *options)
    assert (missing.exit_code, "check the address" in missing.stderr) == (2, True)
    import fsspec

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        silent = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = Store("s3://album")
        settings = {"connect_timeout": 1, "retries": {"max_attempts": 0}}
        store._store = fsspec.filesystem("s3", endpoint_url=silent, config_kwargs=settings)
        with pytest.raises(ValueError, match="cannot be reached"):
            store.check(f"s3://{BUCKET}/album")
        for call in (store.is_folder, store.file, store.names):
            with pytest.raises(OSError, match="the store failed with"):
                call(f"s3://{BUCKET}/album")
        with pytest.raises(UnreadableError, match="the store did not give"):
            store.read(f"s3://{BUCKET}/album/0.jpg", 10)
    with pytest.raises(FileNotFoundError, match="no such file"):
        place_of(f"s3://{BUCKET}").file(f"s3://{BUCKET}/nothing.jpg")
