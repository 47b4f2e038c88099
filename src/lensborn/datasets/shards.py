"""WebDataset shards: tar files of samples, `000.jpg` beside `000.json` or `000.cls`; nothing is unpacked.

A shard may come from a stranger. It is read header by header, members are only pointed at, and nothing but regular,
unsparse, uncompressed members counts; whatever their names say, no path is made of them. What one member may make
the reader take into memory is bounded, whatever its header claims. Format: POSIX ustar and pax by Python's tarfile;
a sample's key ends at the first dot of the file name, as in https://github.com/webdataset/webdataset. A sample
holds one picture: two of a key are refused. Pictures whose names have more dots, as 0.mask.png, lie beside it, and
are refused where there is none to lie beside.
"""

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lensborn.datasets.generators import canonical
from lensborn.datasets.pictures import Label, Picture, PictureSetError
from lensborn.photo import PHOTO_SUFFIXES, UnreadableError, open_regular

MAX_MEMBERS = 1_000_000
MAX_NOTE_BYTES = 2**20  # of a sample's .json, .cls or .txt
_MAX_MEMBER_BYTES = 2 * MAX_NOTE_BYTES  # read for one member: its headers, and a note
_NOTES = (".json", ".cls", ".txt")
_CLASSES: Mapping[str, Label] = {
    "0": "real", "1": "fake", "real": "real", "fake": "fake", "nature": "real", "ai": "fake",
    "0_real": "real", "1_fake": "fake", "photo": "real", "generated": "fake",
}  # fmt: skip


@dataclass
class _Sample:
    name: str = ""
    span: tuple[int, int] | None = None
    beside: str = ""  # a picture whose name has more dots
    notes: dict[str, Any] = field(default_factory=dict)


class _Allowance:
    """A file that is read at most so far until the next `renew`: headers may claim any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.renew()

    def renew(self) -> None:
        self._left = _MAX_MEMBER_BYTES

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError("a header of impossible size")
        return self._file.read(size)


def label_of(value: object) -> Label | None:
    """What a class name or number says: 0, real, nature or photo; 1, fake, ai or generated; None otherwise."""
    return _CLASSES.get(str(value).strip().casefold())


def pictures_of_shard(path: Path, named: str = "") -> list[Picture]:
    """The labelled pictures of a shard.

    A sample's label is `label` or `cls` of its .json, or its .cls, or its .txt where that holds no caption but a
    label; `set` or `generator`, and `source`, are taken from the .json; without them a set is called after `named`,
    or the shard. Raises PictureSetError, with the sample, for a shard that is damaged or without labels, or whose
    names do not tell which picture is the sample's.
    """
    try:
        with open_regular(path, max_bytes=None) as file:
            samples = _samples(path, file)
            end = file.seek(0, 2)
    except (UnreadableError, OSError) as error:
        raise PictureSetError(f"{path.name}: {error}") from error
    pictures = []
    for key, sample in samples.items():
        if sample.span is None and sample.beside:
            raise PictureSetError(
                f"{path.name}: {_plain(sample.beside)} has more than one dot, and a sample's name ends at the "
                "first: rename it, or leave it out"
            )
        if sample.span is None:
            continue
        if sum(sample.span) > end:
            raise PictureSetError(f"{path.name} is cut off within {_plain(sample.name)}: fetch it again")
        pictures.append(_picture(path, named or path.stem, key, sample))
    if not pictures:
        raise PictureSetError(f"{path.name} holds no picture that lensborn reads")
    return pictures


def _samples(path: Path, file: BinaryIO) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    reader = _Allowance(file)
    count = 0
    try:
        with tarfile.open(fileobj=reader, mode="r:") as shard:  # type: ignore[call-overload] # only what it uses
            while (member := shard.next()) is not None:
                count += 1
                if count > MAX_MEMBERS:
                    raise PictureSetError(f"{path.name} has more than {MAX_MEMBERS:,} members: split it")
                if member.size < 0:  # the next header would lie before this one, for ever
                    raise tarfile.ReadError("negative size")
                _note(path, shard, member, samples)
                shard.members.clear()  # tarfile would keep them all, and global headers too
                shard.pax_headers.clear()
                reader.renew()
    except PictureSetError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise PictureSetError(f"{path.name} is not a whole, uncompressed tar file: fetch it again") from error
    return samples


def _note(path: Path, shard: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, _Sample]) -> None:
    """Take note of one member: the place of a picture, or what is said of it."""
    if not member.isreg() or member.issparse():
        return
    folder, _, file = member.name.rpartition("/")
    stem, dot, extension = file.partition(".")
    suffix = f"{dot}{extension}".casefold()
    if suffix not in PHOTO_SUFFIXES and suffix not in _NOTES:
        if stem and suffix.endswith(
            tuple(PHOTO_SUFFIXES)
        ):  # hidden files, as macOS's companions, have no stem
            samples.setdefault(f"{folder}/{stem}", _Sample()).beside = member.name
        return
    sample = samples.setdefault(f"{folder}/{stem}", _Sample())
    if suffix in PHOTO_SUFFIXES:
        if sample.span is not None:
            raise PictureSetError(
                f"{path.name}: {_plain(sample.name)} and {_plain(member.name)} are pictures of one sample: rename "
                "one, with its label, or leave it out"
            )
        sample.name, sample.span = member.name, (member.offset_data, member.size)
        return
    stream = shard.extractfile(member) if member.size <= MAX_NOTE_BYTES else None
    if stream is None:
        return
    text = stream.read().decode("utf-8", "replace")
    if suffix != ".json":
        sample.notes.setdefault(suffix, text)
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PictureSetError(f"{path.name}: {_plain(member.name)} is no JSON: mend or remove it") from error
    sample.notes |= found if isinstance(found, dict) else {}


def _picture(path: Path, named: str, key: str, sample: _Sample) -> Picture:
    notes = sample.notes
    said = (notes[place] for place in ("label", "cls", ".cls", ".txt") if notes.get(place) is not None)
    label = label_of(next(said, None))
    if label is None:
        raise PictureSetError(
            f"{path.name}: {_plain(key.strip('/'))} has no label; give it a .cls, or a .json with label "
            "(real or fake)"
        )
    given = str(notes.get("set") or notes.get("generator") or "")
    name = (canonical(given) if label == "fake" else given) or f"{named}-{label}"
    return Picture(
        path,
        f"{path.name}/{_plain(sample.name)}",
        _plain(name),
        label,
        _plain(str(notes.get("source") or "")),
        sample.span,
    )


def _plain(text: str) -> str:
    """What a stranger wrote, as it may be printed, and written in UTF-8."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
