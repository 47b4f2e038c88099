"""Labelled pictures in the layouts that people have on disk; docs/datasets.md shows each tree.

Sources of the trees: MZMMSEC/AIGFD_EXIF (the paper's nine test folders), MZMMSEC/AIGFD_BLO (BLADES' thirteen),
PeterWang512/CNNDetection (`<generator>/[<class>/]{0_real,1_fake}`), GenImage (`<generator>/{nature,ai}`),
NVlabs/ffhq-dataset. xaCheng1996/DiFF and Rapisurazurite/DiffFace (DiffusionFace) document no tree: their folders,
as other projects name them, are told by the generators' names, at any depth.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensborn.datasets.corpus import TABLE, CorpusError, read_corpus
from lensborn.datasets.fdf import METAINFO
from lensborn.datasets.generators import canonical, is_known
from lensborn.datasets.pictures import (
    MAX_LIST_BYTES,
    Label,
    Picture,
    PictureSetError,
    files_below,
    is_within,
    pictures_of_table,
)
from lensborn.datasets.shards import label_of, pictures_of_shard

FACES = "faces.csv"
REAL_SETS = {
    "celebaface": "celeba-hq", "celebahq": "celeba-hq", "celebamaskhq": "celeba-hq", "celebahqimg": "celeba-hq",
    "ffhq": "ffhq", "ffhqdataset": "ffhq", "images1024x1024": "ffhq", "thumbnails128x128": "ffhq-thumbnails",
    "inthewildimages": "ffhq-in-the-wild", "fdf": "fdf", "fdf256": "fdf256", "celeba": "celeba", "lfw": "lfw",
    "diffreal": "diff-real",
}  # fmt: skip
_TABLES = (TABLE, METAINFO, f"train/{METAINFO}")  # of corpora
_NO_PICTURES = frozenset({"celebamaskhqmaskanno"})  # masks
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_FILE_KEYS = ("file", "path", "image", "img_path", "filename")
_SET_KEYS = ("set", "generator", "dataset")
_WRAPPERS = ("images", "data", "annotations")


@dataclass(frozen=True)
class Layout:
    """A layout: what it is in words, whether a path has it, and its reader."""

    about: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], list[Picture]]


def read_pictures(path: Path, layout: str = "auto") -> list[Picture]:
    """The labelled pictures at a path, in a layout of LAYOUTS, or in the first of them that recognises it.

    Raises PictureSetError where there is none, or the layout does not fit.
    """
    if not path.exists():
        raise PictureSetError(f"{path} does not exist: check the path")
    if path.name in ("", ".."):
        path = path.resolve()  # the folder's name counts
    if layout == "auto":
        found = (one for one in LAYOUTS.values() if one.recognises(path))
        chosen = next(found, None)
        if chosen is None:
            raise PictureSetError(
                f"{path} has no known layout ({', '.join(LAYOUTS)}), but {_found(path)}: give its folders with "
                "--real NAME=DIR and --fake NAME=DIR"
            )
    elif layout in LAYOUTS:
        chosen = LAYOUTS[layout]
    else:
        raise PictureSetError(f"no layout {layout}: use auto, {', '.join(LAYOUTS)}")
    pictures = chosen.read(path)
    if not pictures:
        raise PictureSetError(f"{path} holds no picture that lensborn reads")
    return pictures


def _read_table(path: Path) -> list[Picture]:
    return pictures_of_table(path / FACES if path.is_dir() else path)


def _read_corpus(path: Path) -> list[Picture]:
    """Photographs with EXIF, or those of FDF, as one set of photographs, each with its source."""
    folder = path if path.is_dir() else path.parent
    try:
        crops = read_corpus(folder)
    except CorpusError as error:
        raise PictureSetError(str(error)) from error
    name = "photographs" if (folder / TABLE).is_file() else "fdf"
    return [
        Picture(crop.file, crop.file.relative_to(folder).as_posix(), name, "real", crop.source)
        for crop in crops
    ]


def _read_shards(path: Path) -> list[Picture]:
    if not path.is_dir():
        return pictures_of_shard(path)
    return [picture for shard in _shards_in(path) for picture in pictures_of_shard(shard, path.name)]


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".tar")


# --- lists in JSON ------------------------------------------------------------------------------------


def _read_list(path: Path) -> list[Picture]:
    """A list of objects with a file and a label, {file: label}, or {"real": [files], "fake": [files]}."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise PictureSetError(f"{path.name} has more than {MAX_LIST_BYTES:,} bytes: split it")
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PictureSetError(f"{path.name} is not JSON in UTF-8: {error}") from error
    return [_of_entry(path, number, entry) for number, entry in enumerate(_entries(content), start=1)]


def _entries(content: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(content, dict):
        wrapped = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), list)), None)
        if wrapped is not None:
            content = wrapped
    if isinstance(content, list):
        for one in content:
            yield one if isinstance(one, dict) else {}
    elif isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, list):
                yield from ({"file": file, "label": key} for file in value)
            else:
                yield {"file": key, "label": value}


def _of_entry(path: Path, number: int, entry: Mapping[str, Any]) -> Picture:
    file = next((str(entry[key]) for key in _FILE_KEYS if entry.get(key)), "")
    label = label_of(entry.get("label"))
    if not file or label is None:
        raise PictureSetError(
            f"{path.name}, entry {number}: needs {' or '.join(_FILE_KEYS)}, and label (real or fake, 0 or 1)"
        )
    if not is_within(file):
        raise PictureSetError(
            f"{path.name}, entry {number}: {file} must be relative to the list's folder, below it"
        )
    named = next((str(entry[key]) for key in _SET_KEYS if entry.get(key)), label)
    name = canonical(named) if label == "fake" else named
    return Picture(path.parent / file, file, name, label, str(entry.get("source") or ""))


# --- folders named after classes, generators or sets of photographs ------------------------------------


def _class_of(folder: str) -> Label | None:
    """The class that a folder is called after; bare numbers are as often parts of a set."""
    return None if folder.isdigit() else label_of(folder)


def _has_class_folder(path: Path) -> bool:
    return path.is_dir() and any(_class_of(folder.name) for folder in _folders(path))


def _read_classes(path: Path) -> list[Picture]:
    """`[<generator>/[<class of object>/]]{real,fake}/[<set>/]`; also 0_real, 1_fake, nature, ai.

    A generator's folder may lie beside them, and train, val or test above any of them.
    """
    pictures = []
    for file in files_below(path):
        folders = file.relative_to(path).parts[:-1]
        place = next((n for n, folder in enumerate(folders) if _class_of(folder)), None)
        if place is None:
            name, label = _named(path, folders)
            if name is None:
                raise PictureSetError(
                    f"{file.relative_to(path)} lies in no folder called real or fake, nor after a known generator: "
                    "move it"
                )
        else:
            label = _class_of(folders[place]) or "real"
            above = [
                *_generator(path.name),
                *(part for part in folders[:place] if part.casefold() not in _SPLITS),
            ]
            below = [part for part in folders[place + 1 :] if not part.isdigit()]
            if above:  # a known generator decides: what lies above it may be a collection of several
                generator = canonical(next(filter(is_known, above), above[0]))
                name = generator + ("-real" if label == "real" else "")
            elif below:
                name = canonical(below[0]) if label == "fake" else below[0]
            else:
                name = label
        pictures.append(_picture(path, file, name, label))
    return pictures


def _has_known_folder(path: Path) -> bool:
    return path.is_dir() and any(_known(folder.name) for folder in [path, *_folders(path)])


def _read_sets(path: Path) -> list[Picture]:
    """Folders named after generators and sets of photographs, at any depth.

    Where a test.txt lies beside photographs, or above them, only the photographs that it names are taken: the
    others are for fitting. Folders without a known name are refused rather than guessed at, and those with names
    of both.
    """
    pictures, unknown = [], set()
    for file in files_below(path):
        folders = file.relative_to(path).parts[:-1]
        if any(_letters(folder) in _NO_PICTURES for folder in folders):
            continue
        if any(_class_of(folder) for folder in folders):
            raise PictureSetError(f"{path} has folders called after classes: read it with --layout classes")
        name, label = _named(path, folders)
        if name is None:
            unknown.add(folders[0] if folders else ".")
            continue
        pictures.append(_picture(path, file, name, label))
    if unknown:
        raise PictureSetError(
            f"{path}: {', '.join(sorted(unknown))} - no generator or set of photographs that is known: give such "
            "folders with --real NAME=DIR or --fake NAME=DIR"
        )
    return _without_fitted(path, pictures)


def _without_fitted(root: Path, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures without the photographs that the nearest test.txt, where there is one, does not name."""
    lists = {
        folder: _test_list(root, folder) for folder in {p.path.parent for p in pictures if p.label == "real"}
    }
    names = {path: _names_in(path) for path in set(lists.values()) if path}

    def is_kept(picture: Picture) -> bool:
        path = lists.get(picture.path.parent)
        return picture.label == "fake" or path is None or picture.path.name in names[path]

    kept = [picture for picture in pictures if is_kept(picture)]
    for path in names:
        if not any(lists.get(picture.path.parent) == path for picture in kept):
            raise PictureSetError(f"{path} names no photograph that lies below it: mend or remove it")
    return kept


def _test_list(root: Path, folder: Path) -> Path | None:
    for place in (folder, *folder.parents):
        if (place / "test.txt").is_file():
            return place / "test.txt"
        if place == root:
            break
    return None


def _names_in(path: Path) -> frozenset[str]:
    """File names in a list of paths, which lay on another machine."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise PictureSetError(f"{path} has more than {MAX_LIST_BYTES:,} bytes: split it")
    lines = path.read_text("utf-8", "replace").splitlines()
    return frozenset(line.strip().replace("\\", "/").rpartition("/")[2] for line in lines if line.strip())


def _named(root: Path, folders: Sequence[str]) -> tuple[str | None, Label]:
    """The set and label that the folders' names tell, those below `root` and its own; (None, "real") if none.

    A generator's first name counts, of sets of photographs the last, which tells most.
    """
    known = [found for name in (root.name, *folders) if (found := _known(name))]
    if not known:
        return None, "real"
    if len({label for _, label in known}) > 1:
        raise PictureSetError(
            f"{Path(root.name, *folders)} is called after a generator and after photographs: give it with "
            "--real NAME=DIR or --fake NAME=DIR, or put a folder called real or fake between"
        )
    return known[0] if known[0][1] == "fake" else known[-1]


def _known(name: str) -> tuple[str, Label] | None:
    if (bare := _letters(name)) in REAL_SETS:
        return REAL_SETS[bare], "real"
    return (canonical(name), "fake") if is_known(name) else None


def _generator(name: str) -> list[str]:
    return [name] if is_known(name) else []


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _folders(path: Path) -> Iterator[Path]:
    """Folders below a path, the nearest first; links are not followed."""
    level = [path]
    while level := [folder for above in level for folder in _folders_in(above)]:
        yield from level


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _found(path: Path) -> str:
    """What lies at a path, in a few words."""
    if not path.is_dir():
        return f"a file {path.name}"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.glob("*"))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"


def _picture(root: Path, file: Path, name: str, label: Label) -> Picture:
    return Picture(file, f"{root.name}/{file.relative_to(root).as_posix()}", name, label)


LAYOUTS: Mapping[str, Layout] = {
    "corpus": Layout(
        "photos.csv of `lensborn prepare`: photographs with EXIF; FDF and FDF256",
        lambda path: (
            path.name == TABLE
            or (not (path / FACES).is_file() and any((path / name).is_file() for name in _TABLES))
        ),
        _read_corpus,
    ),
    "table": Layout(
        "a CSV table with file, label and set, or a folder with faces.csv",
        lambda path: path.suffix.lower() == ".csv" or (path / FACES).is_file(),
        _read_table,
    ),
    "list": Layout("a list in JSON", lambda path: path.suffix.lower() == ".json", _read_list),
    "shards": Layout(
        "WebDataset shards",
        lambda path: bool(_shards_in(path)) if path.is_dir() else path.suffix.lower() == ".tar",
        _read_shards,
    ),
    "classes": Layout(
        "folders real and fake, 0_real and 1_fake, or nature and ai", _has_class_folder, _read_classes
    ),
    "sets": Layout(
        "folders named after generators and sets of photographs: the paper's, BLADES', DiFF, DiffusionFace, FFHQ, "
        "CelebA-HQ",
        _has_known_folder,
        _read_sets,
    ),
}
