"""WebDataset shards: tar files of samples, `000.jpg` beside `000.json` or `000.cls`; nothing is unpacked.

A shard may come from a stranger. It is read header by header, members are only pointed at, and nothing but regular,
unsparse, uncompressed members counts; whatever their names say, no path is made of them. Format: POSIX ustar and
pax by Python's tarfile; sample keys as in https://github.com/webdataset/webdataset.
"""

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensborn import defaults
from lensborn.datasets.generators import canonical
from lensborn.datasets.pictures import Label, Picture, PictureSetError
from lensborn.photo import PHOTO_SUFFIXES

MAX_MEMBERS = 1_000_000
MAX_NOTE_BYTES = 2**20  # of a sample's .json, .cls or .txt
_NOTES = (".json", ".cls", ".txt")
_CLASSES: Mapping[str, Label] = {
    "0": "real", "1": "fake", "real": "real", "fake": "fake", "nature": "real", "ai": "fake",
    "0_real": "real", "1_fake": "fake", "photo": "real", "generated": "fake",
}  # fmt: skip


@dataclass
class _Sample:
    name: str = ""
    span: tuple[int, int] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def label_of(value: object) -> Label | None:
    """What a class name or number says: 0, real, nature or photo; 1, fake, ai or generated; None otherwise."""
    return _CLASSES.get(str(value).strip().casefold())


def pictures_of_shard(path: Path) -> list[Picture]:
    """The labelled pictures of a shard.

    A sample's label is `label` or `cls` of its .json, or its .cls; `set` or `generator`, and `source`, are taken
    from the .json; without them a set is called after the shard. Raises PictureSetError, with the sample, for a
    shard that is damaged or without labels.
    """
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for count, member in enumerate(shard):
                if count >= MAX_MEMBERS:
                    raise PictureSetError(f"{path.name} has more than {MAX_MEMBERS:,} members: split it")
                _note(shard, member, samples)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, PictureSetError):
            raise
        raise PictureSetError(f"{path.name} is not a whole, uncompressed tar file: fetch it again") from error
    end = path.stat().st_size
    pictures = []
    for key, sample in samples.items():
        if sample.span is None:
            continue
        if sum(sample.span) > end:
            raise PictureSetError(f"{path.name} is cut off within {sample.name}: fetch it again")
        pictures.append(_picture(path, key, sample))
    if not pictures:
        raise PictureSetError(f"{path.name} holds no picture that lensborn reads")
    return pictures


def _note(shard: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, _Sample]) -> None:
    """Take note of one member: the place of a picture, or what is said of it."""
    if not member.isreg() or member.issparse():
        return
    folder, _, file = member.name.rpartition("/")
    stem, dot, extension = file.partition(".")
    suffix = f"{dot}{extension}".casefold()
    sample = samples.setdefault(f"{folder}/{stem}", _Sample())
    if suffix in PHOTO_SUFFIXES:
        if member.size > defaults.MAX_FILE_BYTES:
            return
        sample.name, sample.span = member.name, (member.offset_data, member.size)
    elif suffix in _NOTES and member.size <= MAX_NOTE_BYTES:
        stream = shard.extractfile(member)
        text = stream.read().decode("utf-8", "replace") if stream else ""
        if suffix == ".cls":
            sample.notes.setdefault("cls", text)
        elif suffix == ".json":
            found = json.loads(text)
            sample.notes |= found if isinstance(found, dict) else {}


def _picture(path: Path, key: str, sample: _Sample) -> Picture:
    notes = sample.notes
    label = label_of(notes.get("label", notes.get("cls")))
    if label is None:
        raise PictureSetError(
            f"{path.name}: {key.strip('/')} has no label; give it a .cls or a .json with label (real or fake)"
        )
    named = notes.get("set") or notes.get("generator")
    name = str(named) if named else f"{path.stem}-{label}"
    return Picture(
        path,
        f"{path.name}/{sample.name}",
        canonical(name) if label == "fake" and named else name,
        label,
        str(notes.get("source") or ""),
        sample.span,
    )
