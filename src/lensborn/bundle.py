"""The model on disk: a folder of plain files, pinned by hash, that loads without executing anything.

`bundle.json` names every other file with its SHA-256, so the SHA-256 of `bundle.json` pins the whole. A
bundle may come from a stranger: names are confined to the folder, sizes are bounded, and whatever is wrong
raises BundleError. The format: docs/bundle.md.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from lensborn.calibration import Conformal
from lensborn.contrast import Contrast
from lensborn.density import Density, Mixture
from lensborn.disk import sync_folder, whole_file
from lensborn.known_head import KnownHead

FORMAT = 1
MAX_FILE_BYTES = 256 * 2**20
MAX_MANIFEST_BYTES = 2**20
MAX_FILES = 32
MAX_DEPTH = 64  # of lists and objects of bundle.json in each other: they are printed by recursion
SHIPPED = Path(__file__).parent / "models" / "lensborn-11"

MANIFEST = "bundle.json"
DENSITY = "density.safetensors"
CALIBRATION = "calibration.safetensors"
CARD = "CARD.md"
SEEN = "seen.txt"
ENCODER_XML, ENCODER_BIN = "encoder.xml", "encoder.bin"
KNOWN = "known.safetensors"
KNOWN_XML, KNOWN_BIN = "known.xml", "known.bin"
KNOWN_SEEN = "known-seen.txt"
KNOWN_KEY = "known_generator"  # of bundle.json, where there is such a channel
BESIDE = "beside"  # in that object: the first channel that it was calibrated with

_DENSITIES: dict[str, type[Mixture] | type[Contrast]] = {"mixture": Mixture, "contrast": Contrast}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # no separators, so nothing can point elsewhere
_SEEN_LINE = re.compile(r"[0-9a-f]{16}")
_HASH = re.compile(r"[0-9a-f]{64}")
_AGAIN = "get an untouched copy, or make it again with `lensborn fit`"
_TAUGHT = (
    "get an untouched copy of the bundle or, of an earlier lensborn, `lensborn teach` the shipped one again"
)
_SCHEMA: dict[str, Any] = {
    "format": int,
    "name": str,
    "created": str,
    "licence": str,
    "preprocessing": {"crop_scale": float, "size": int, "resample": str, "mean": list, "std": list},
    "encoder": {"backbone": str, "feature_dim": int, "files": list},
    "density": dict,
    "calibration": {"n": int, "alpha": float, "population": str},
    "training": dict,
    "measured": list,
    "versions": dict,
    "files": dict,
}
_KNOWN_SCHEMA: dict[str, Any] = {
    "side": int,
    "patch": int,
    "least_side": int,
    "least_detail": float,
    "sets": list,
    "files": list,
}
_JSON_NAMES = {int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}


class BundleError(ValueError):
    """A bundle cannot be read or written; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class KnownPart:
    """The known channel on disk: its head, and its object in bundle.json.

    manifest: side, patch, least_side, least_detail (see known.KnownLook), beside (see Detector.first_channel),
    training, measured and whatever else is JSON; sets and files follow from the rest. seen: the pictures that it
    was made from, as in Bundle; the first channel never saw them.
    """

    head: KnownHead
    manifest: Mapping[str, Any]
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that was read and verified.

    manifest: the content of bundle.json. card: of CARD.md. sha256: of the bytes of bundle.json, which pins every
    other file. seen: the pictures that it was made from, or whose source it knows, by the first 16 digits of their
    SHA-256. known: the second channel, None where there is none.
    """

    path: Path
    manifest: dict[str, Any]
    card: str
    density: Density
    conformal: Conformal
    sha256: str
    seen: frozenset[str] = frozenset()
    known: KnownPart | None = None

    @property
    def name(self) -> str:
        """The name of the model."""
        return str(self.manifest["name"])

    @property
    def encoder_xml(self) -> Path:
        """The encoder's OpenVINO graph; its weights lie beside it."""
        return self.path / ENCODER_XML


def read_bundle(path: str | Path) -> Bundle:
    """Read and verify the bundle in the folder path; files that bundle.json does not name are ignored.

    Raises BundleError, and nothing else, whatever the folder holds.
    """
    folder = Path(path)
    if not os.path.isdir(folder):  # noqa: PTH112 - a path too long, or behind a locked folder, is none
        raise BundleError(f"{folder} is not a folder: give the folder that holds {MANIFEST}")
    text = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    manifest = _parse(text)
    _check_manifest(manifest)
    contents, card = {}, ""
    lists: dict[str, frozenset[str]] = {}
    for name, expected in manifest["files"].items():
        data = _read(folder, name, MAX_FILE_BYTES)
        if hashlib.sha256(data).hexdigest() != expected:
            raise BundleError(f"{name} is not the file that {MANIFEST} names (its SHA-256 differs): {_AGAIN}")
        if name in (DENSITY, CALIBRATION, KNOWN):
            contents[name] = _arrays(name, data)
        elif name in (SEEN, KNOWN_SEEN):
            lists[name] = _seen(data, name)
        elif name == CARD:
            card = _text(name, data)
    density = _density(contents[DENSITY], manifest)
    conformal = _conformal(contents[CALIBRATION], manifest["calibration"]["n"])
    nothing: frozenset[str] = frozenset()
    known = _known(manifest.get(KNOWN_KEY), contents.get(KNOWN), lists.get(KNOWN_SEEN, nothing))
    sha256 = hashlib.sha256(text).hexdigest()
    return Bundle(folder, manifest, card, density, conformal, sha256, lists.get(SEEN, nothing), known)


def write_bundle(
    path: str | Path,
    *,
    encoder_files: Mapping[str, Path | bytes],
    density: Density,
    conformal: Conformal,
    manifest: Mapping[str, Any],
    card: str,
    seen: Iterable[str] = (),
    known: KnownPart | None = None,
    known_files: Mapping[str, Path | bytes] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle to the folder path, whole or not at all, and read it back.

    encoder_files: `encoder.xml` and its companions, by the name they get. manifest: name, created, licence,
    preprocessing, encoder (backbone, feature_dim, maybe texture_dim), calibration (alpha, population),
    training, measured, versions and whatever else is JSON; the rest follows from the other arguments. seen: see
    Bundle. known: the second channel, whose graph, `known.xml` and its companions, is in known_files. The same
    arguments give the same bytes, and those of the first channel do not depend on the second.

    Raises BundleError as `check_target` does, and where the result could
    not be read back, OSError where the disk refuses.
    """
    target = Path(path).resolve()
    check_target(target, overwrite=overwrite)
    graphs = {**(known_files or {}), **encoder_files}
    if taken := {MANIFEST, DENSITY, CALIBRATION, CARD, SEEN, KNOWN, KNOWN_SEEN} & set(graphs):
        raise BundleError(f"encoder files cannot be called {sorted(taken)}: choose other names")
    contents = {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in graphs.items()}
    contents[DENSITY] = _save(density.to_arrays())
    contents[CALIBRATION] = _save({"scores": conformal.scores})
    contents[CARD] = card.encode()
    for name, prefixes in ((SEEN, seen), (KNOWN_SEEN, known.seen if known else ())):
        if lines := sorted(set(prefixes) - {""}):
            contents[name] = "".join(f"{line}\n" for line in lines).encode()
    document = dict(manifest)
    if known is not None:
        contents[KNOWN] = _save(known.head.to_arrays())
        document[KNOWN_KEY] = _known_manifest(known, sorted(known_files or {}))
    text = _manifest_text(document, sorted(encoder_files), density, conformal, contents)

    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    fresh.mkdir()
    try:
        for name, data in {**contents, MANIFEST: text}.items():
            with whole_file(fresh / name) as file:
                file.write(data)
        sync_folder(fresh)
        read_bundle(fresh)  # what cannot be read is never put in place
        _put_in_place(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return read_bundle(target)


def preprocessing_fits(crop_scale: float, size: int) -> bool:
    """Whether a model may have its faces cut and resized so."""
    return 1 <= crop_scale <= 8 and 16 <= size <= 2048


def is_name(text: str) -> bool:
    """Whether a bundle can be called that."""
    return 0 < len(text) <= 100 and text.isprintable()


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Raise BundleError where a bundle may not be written: where something is, and with `overwrite` where that is
    no bundle, or holds what is no part of one."""
    target = Path(path).resolve()
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise BundleError(
            f"{target} exists: choose another folder, or allow it to be overwritten (--overwrite)"
        )
    if not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is no bundle: choose another folder")
    manifest = _parse(_read(target, MANIFEST, MAX_MANIFEST_BYTES))
    files = manifest.get("files") if isinstance(manifest, dict) else None
    own = {MANIFEST, *files} if isinstance(files, dict) else {MANIFEST}
    if others := sorted(entry.name for entry in target.iterdir() if entry.name not in own):
        raise BundleError(
            f"{target} holds what is no part of a bundle, as {others[0]!r}: move it, or choose another folder"
        )


def _put_in_place(fresh: Path, target: Path) -> None:
    """Rename fresh to target; what stood there is moved aside first, and back if that does not come to its end.

    The old bundle is removed once the renames are on the disk, so that a loss of power leaves one of the two.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    try:
        if target.exists():
            target.rename(aside)
        fresh.rename(target)
        sync_folder(target.parent)
    except BaseException:  # Ctrl-C, too
        if aside.exists():
            if target.exists():  # the new one
                target.rename(fresh)
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _manifest_text(
    manifest: Mapping[str, Any],
    encoder_names: list[str],
    density: Density,
    conformal: Conformal,
    contents: Mapping[str, bytes],
) -> bytes:
    """bundle.json: the caller's manifest and what follows from the rest, checked, in the schema's order."""
    encoder, calibration = manifest.get("encoder"), manifest.get("calibration")
    if not isinstance(encoder, Mapping) or not isinstance(calibration, Mapping):
        raise BundleError("the manifest needs the objects 'encoder' and 'calibration': add them")
    document = {
        **manifest,
        "format": FORMAT,
        "encoder": {**encoder, "files": encoder_names},
        "density": density.settings(),
        "calibration": {**calibration, "n": int(conformal.scores.size)},
        "files": {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)},
    }
    order = [key for key in _SCHEMA if key in document] + sorted(set(document) - set(_SCHEMA))
    try:
        ordered = {key: document[key] for key in order}
        data = (json.dumps(ordered, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"the manifest is not JSON ({error}): use strings, finite numbers, lists, dicts"
        ) from error
    _check_manifest(_parse(data))
    return data


def _save(arrays: Mapping[str, Any]) -> bytes:
    return bytes(save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _read(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of a regular file that lies in the folder, of at most limit bytes."""
    try:
        file = (folder / name).resolve(strict=True)
        if file.parent != folder.resolve():
            raise BundleError(f"{name} is a link that leads out of the bundle: replace it by the file itself")
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for, a device has no end
            raise BundleError(f"{name} is not a plain file: {_AGAIN}")
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} has no file {name}: give the folder of a whole bundle, or {_AGAIN}"
        ) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise BundleError(f"{name} cannot be read ({error}): check its permissions, or {_AGAIN}") from error
    if len(data) > limit:
        raise BundleError(f"{name} is larger than {limit // 2**20} MiB: {_AGAIN}")
    return data


def _parse(text: bytes) -> Any:
    try:
        manifest = json.loads(text, parse_float=_number, parse_int=_number, parse_constant=_number)
        json.dumps(manifest, ensure_ascii=False).encode()  # lone surrogates could never be printed
        if _depth(manifest) > MAX_DEPTH:
            raise ValueError(f"lists and objects lie more than {MAX_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not valid JSON ({error}): {_AGAIN}") from error
    return manifest


def _depth(value: Any) -> int:
    """How deep lists and objects lie in each other: 0 for what is neither."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def _number(text: str) -> float | int:
    """A number of JSON that a double holds; NaN, infinity and the like raise ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is not finite")
    whole = text.lstrip("-").isdigit()
    if whole and abs(value) > 2**53:
        raise ValueError("an integer is larger than 2**53")
    return int(text) if whole else value


def _arrays(name: str, data: bytes) -> dict[str, Any]:
    try:
        return dict(load_arrays(data))
    except Exception as error:  # the parser's own errors have no common base but this
        raise BundleError(f"{name} is not a safetensors file ({error}): {_AGAIN}") from error


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{name} is not UTF-8 ({error}): {_AGAIN}") from error


def _seen(data: bytes, name: str) -> frozenset[str]:
    lines = data.decode("ascii", "replace").splitlines()
    if not all(_SEEN_LINE.fullmatch(line) for line in lines):
        raise BundleError(f"{name} must hold 16 hexadecimal digits a line: {_AGAIN}")
    return frozenset(lines)


def _density(arrays: Mapping[str, Any], manifest: Mapping[str, Any]) -> Density:
    """What the arrays are, by the kind that bundle.json gives: a mixture where it gives none."""
    settings, encoder = manifest["density"], manifest["encoder"]
    kind = settings.get("kind", "mixture")
    if not isinstance(kind, str) or kind not in _DENSITIES:
        raise BundleError(f"{MANIFEST}: density.kind {kind!r} is not known here: install a newer lensborn")
    try:
        density = _DENSITIES[kind].from_arrays(arrays, settings)
    except ValueError as error:
        raise BundleError(f"{DENSITY}: {error}; {_AGAIN}") from error
    if density.n_features != encoder["feature_dim"]:
        raise BundleError(f"{DENSITY} does not take as many features as the encoder gives: {_AGAIN}")
    if isinstance(density, Contrast) and density.n_textures != encoder.get("texture_dim"):
        raise BundleError(f"{DENSITY} does not take as many textures as the encoder gives: {_AGAIN}")
    return density


def _conformal(arrays: Mapping[str, Any], n: int) -> Conformal:
    scores = arrays.get("scores")
    if scores is None or scores.dtype != np.float64 or scores.shape != (n,):
        raise BundleError(f"{CALIBRATION} must hold 'scores', {n} numbers of float64: {_AGAIN}")
    try:
        return Conformal(scores)
    except ValueError as error:
        raise BundleError(f"{CALIBRATION}: {error}; {_AGAIN}") from error


def _known_manifest(known: KnownPart, files: list[str]) -> dict[str, Any]:
    memory = known.head.memory
    sets = [
        {"name": name, "generated": bool(generated), "rows": int((memory.sets == number).sum())}
        for number, (name, generated) in enumerate(zip(memory.names, memory.generated, strict=True))
    ]
    return {**known.manifest, "sets": sets, "files": files}


def _known(manifest: Any, arrays: Mapping[str, Any] | None, seen: frozenset[str]) -> KnownPart | None:
    """The second channel of a manifest that was checked; None where it names none."""
    if manifest is None:
        return None
    if arrays is None:
        raise BundleError(f"{MANIFEST} names a known channel, but no {KNOWN}: {_AGAIN}")
    sets = {entry["name"]: entry["generated"] for entry in manifest["sets"]}
    try:
        if len(sets) != len(manifest["sets"]):
            raise ValueError("two sets have the same name")
        return KnownPart(KnownHead.from_arrays(arrays, sets), manifest, seen)
    except ValueError as error:
        raise BundleError(f"{KNOWN}: {error}; {_TAUGHT}") from error


def _check_known(manifest: Any, files: Mapping[str, Any]) -> None:
    """Raise BundleError unless bundle.json's object of the known channel holds what format 1 says."""
    _check_types(manifest, _KNOWN_SCHEMA, KNOWN_KEY)
    rules = {
        "measured must be a list of objects": isinstance(measured := manifest.get("measured", []), list)
        and all(isinstance(row, dict) for row in measured),
        "sets must be objects with a name and whether it is generated": all(
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("generated"), bool)
            for entry in manifest["sets"]
        ),
        f"{BESIDE} must be a string": isinstance(manifest.get(BESIDE, ""), str),
        f"files must be names in files, {KNOWN_XML} and its .bin among them": {KNOWN_XML, KNOWN_BIN}
        <= {name for name in manifest["files"] if isinstance(name, str)}
        and all(isinstance(name, str) and name in files for name in manifest["files"]),
    }
    for rule, holds in rules.items():
        if not holds:
            raise BundleError(f"{MANIFEST}: {KNOWN_KEY}.{rule}; {_AGAIN}")


def _check_manifest(manifest: Any) -> None:
    """Raise BundleError unless bundle.json holds what format 1 says."""
    if isinstance(manifest, dict) and manifest.get("format", FORMAT) != FORMAT:
        raise BundleError(f"the bundle is not of format {FORMAT}: install a newer lensborn, or {_AGAIN}")
    _check_types(manifest, _SCHEMA, "")
    preprocessing, encoder, files = manifest["preprocessing"], manifest["encoder"], manifest["files"]
    rules = {
        "name must be 1 to 100 printable characters": is_name(manifest["name"]),
        "preprocessing.crop_scale must lie in 1..8 and preprocessing.size in 16..2048": preprocessing_fits(
            preprocessing["crop_scale"], preprocessing["size"]
        ),
        "preprocessing.mean must be three numbers": _is_triple(preprocessing["mean"]),
        "preprocessing.std must be three positive numbers": _is_triple(preprocessing["std"], positive=True),
        "encoder.texture_dim must be an integer from 0 to below encoder.feature_dim": _has_type(
            textures := encoder.get("texture_dim", 0), int
        )
        and 0 <= textures < encoder["feature_dim"],
        "calibration.alpha must lie between 0 and 1": 0 < manifest["calibration"]["alpha"] < 1,
        "measured must be a list of objects": all(isinstance(row, dict) for row in manifest["measured"]),
        f"files must name at most {MAX_FILES} files": len(files) <= MAX_FILES,
        "files must give plain names, without folders": all(_NAME.fullmatch(name) for name in files),
        "files must give the SHA-256 of each": all(
            isinstance(value, str) and _HASH.fullmatch(value) for value in files.values()
        ),
        f"files must name {DENSITY}, {CALIBRATION} and {CARD}": {DENSITY, CALIBRATION, CARD} <= set(files),
        f"files cannot name {MANIFEST} itself": MANIFEST not in files,
        "encoder.files must be names in files": all(
            isinstance(name, str) and name in files for name in encoder["files"]
        ),
        f"encoder.files must name {ENCODER_XML} and {ENCODER_BIN}": ENCODER_XML in encoder["files"]
        and ENCODER_BIN in encoder["files"],
    }
    for rule, holds in rules.items():
        if not holds:
            raise BundleError(f"{MANIFEST}: {rule}; {_AGAIN}")
    if KNOWN_KEY in manifest:
        _check_known(manifest[KNOWN_KEY], files)


def _check_types(value: Any, schema: Any, where: str) -> None:
    if not isinstance(schema, dict):
        if not _has_type(value, schema):
            raise BundleError(f"{MANIFEST}: {where} must be {_JSON_NAMES[schema]}; {_AGAIN}")
        return
    if not isinstance(value, dict):
        raise BundleError(f"{MANIFEST}: {where or 'the whole'} must be an object; {_AGAIN}")
    for key, inner in schema.items():
        inside = f"{where}.{key}".lstrip(".")
        if key not in value:
            raise BundleError(f"{MANIFEST}: {inside} is missing; {_AGAIN}")
        _check_types(value[key], inner, inside)


def _has_type(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # an int to Python, not to JSON
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _is_triple(values: list[Any], *, positive: bool = False) -> bool:
    return len(values) == 3 and all(_has_type(v, float) and (v > 0 or not positive) for v in values)
