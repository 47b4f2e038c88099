"""Labelled pictures in the layouts that people have on disk; docs/datasets.md shows each tree.

Sources of the trees: MZMMSEC/AIGFD_EXIF (the paper's nine test folders), MZMMSEC/AIGFD_BLO (BLADES' thirteen),
PeterWang512/CNNDetection (`<generator>/[<class>/]{0_real,1_fake}`), GenImage (`<generator>/{nature,ai}`). DiFF and
DiffusionFace document no tree: their folders are told by the generators' names, at any depth.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensborn.datasets.corpus import TABLE, CorpusError, read_corpus
from lensborn.datasets.generators import canonical, is_known
from lensborn.datasets.pictures import Label, Picture, PictureSetError, pictures_of_table
from lensborn.datasets.shards import label_of, pictures_of_shard
from lensborn.photo import find_photos

FACES = "faces.csv"
MAX_LIST_BYTES = 256 * 2**20
REAL_SETS = {
    "celebaface": "celeba-hq", "celebahq": "celeba-hq", "celebamaskhq": "celeba-hq", "celebahqimg": "celeba-hq",
    "ffhq": "ffhq", "celeba": "celeba", "lfw": "lfw", "fdf": "fdf", "fdf256": "fdf256", "diffreal": "diff-real",
}  # fmt: skip
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
    if layout == "auto":
        found = (one for one in LAYOUTS.values() if one.recognises(path))
        chosen = next(found, None)
        if chosen is None:
            raise PictureSetError(
                f"{path} has no known layout ({', '.join(LAYOUTS)}): give its folders with --real NAME=DIR and "
                "--fake NAME=DIR"
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
    """Photographs with EXIF, as one set of photographs, each with its source."""
    folder = path if path.is_dir() else path.parent
    try:
        crops = read_corpus(folder)
    except CorpusError as error:
        raise PictureSetError(str(error)) from error
    return [
        Picture(crop.file, crop.file.relative_to(folder).as_posix(), "photographs", "real", crop.source)
        for crop in crops
    ]


def _read_shards(path: Path) -> list[Picture]:
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    return [picture for shard in shards for picture in pictures_of_shard(shard)]


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
    if Path(file).is_absolute():
        raise PictureSetError(f"{path.name}, entry {number}: {file} must be relative to the list's folder")
    named = next((str(entry[key]) for key in _SET_KEYS if entry.get(key)), label)
    name = canonical(named) if label == "fake" else named
    return Picture(path.parent / file, file, name, label, str(entry.get("source") or ""))


# --- folders named after classes, generators or sets of photographs ------------------------------------


def _has_class_folder(path: Path) -> bool:
    return path.is_dir() and any(label_of(folder.name) for folder in _folders(path))


def _read_classes(path: Path) -> list[Picture]:
    """`[<generator>/[<class of object>/]]{real,fake}/[<set>/]`; also 0_real, 1_fake, nature, ai."""
    pictures = []
    for file in find_photos([path]):
        parts = file.relative_to(path).parts[:-1]
        place = next((n for n, part in enumerate(parts) if label_of(part)), None)
        if place is None:
            raise PictureSetError(f"{file.relative_to(path)} lies in no folder called real or fake: move it")
        label = label_of(parts[place]) or "real"
        above, below = parts[:place], [part for part in parts[place + 1 :] if not part.isdigit()]
        if above:
            name = canonical(above[0]) + ("-real" if label == "real" else "")
        else:
            name = (canonical(below[0]) if label == "fake" else below[0]) if below else label
        pictures.append(_picture(path, file, name, label))
    return pictures


def _has_known_folder(path: Path) -> bool:
    return path.is_dir() and any(_known(folder.name) for folder in [path, *_folders(path)])


def _read_sets(path: Path) -> list[Picture]:
    """Folders named after generators and sets of photographs, at any depth; the first known name decides.

    Where a test.txt lies beside photographs, or at the top, only the photographs that it names are taken: the
    others are for fitting. Folders without a known name are refused rather than guessed at.
    """
    pictures, unknown = [], set()
    for file in find_photos([path]):
        folders = file.relative_to(path).parts[:-1]
        known = next((found for part in (path.name, *folders) if (found := _known(part))), None)
        if known is None:
            unknown.add(folders[0] if folders else ".")
            continue
        name, label = known
        pictures.append(_picture(path, file, name, label))
    if unknown:
        raise PictureSetError(
            f"{path}: {', '.join(sorted(unknown))} - no generator or set of photographs that is known: give such "
            "folders with --real NAME=DIR or --fake NAME=DIR"
        )
    listed = {picture.set: _listed(path, picture.path) for picture in pictures if picture.label == "real"}
    return [p for p in pictures if p.label == "fake" or not listed[p.set] or p.path.name in listed[p.set]]


def _listed(root: Path, photograph: Path) -> frozenset[str]:
    """File names in the test.txt nearest to a photograph, none without one."""
    for folder in photograph.parents:
        if (folder / "test.txt").is_file():
            lines = (folder / "test.txt").read_text("utf-8", "replace").splitlines()
            return frozenset(
                line.strip().replace("\\", "/").rpartition("/")[2] for line in lines if line.strip()
            )
        if folder == root:
            break
    return frozenset()


def _known(name: str) -> tuple[str, Label] | None:
    bare = "".join(c for c in name.casefold() if c.isalnum())
    if bare in REAL_SETS:
        return REAL_SETS[bare], "real"
    return (canonical(name), "fake") if is_known(name) else None


def _folders(path: Path, depth: int = 3) -> Iterator[Path]:
    """Folders below a path, the nearest first; links are not followed."""
    level: Iterable[Path] = [path]
    for _ in range(depth):
        level = [
            entry
            for folder in level
            for entry in _entries_of(folder)
            if not entry.is_symlink() and entry.is_dir()
        ]
        yield from level


def _entries_of(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _picture(root: Path, file: Path, name: str, label: Label) -> Picture:
    return Picture(file, f"{root.name}/{file.relative_to(root).as_posix()}", name, label)


LAYOUTS: Mapping[str, Layout] = {
    "corpus": Layout(
        "photos.csv of `lensborn prepare`: photographs with EXIF",
        lambda path: path.name == TABLE or ((path / TABLE).is_file() and not (path / FACES).is_file()),
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
        lambda path: path.suffix.lower() == ".tar" or (path.is_dir() and any(path.glob("*.tar"))),
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
