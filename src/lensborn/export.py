"""The networks of a bundle as ONNX, for programs without OpenVINO; compared with the bundle's own before.

A folder with `encoder.onnx`, `known.onnx` where the bundle has a known channel, and `export.json`: what they are,
and how a face becomes their input. Density, p-values and verdicts stay with the bundle (docs/bundle.md).
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import lensborn
from lensborn import onnx_graph
from lensborn.bundle import Bundle
from lensborn.detector import read_faces
from lensborn.features import Encoder, Preprocessing, bundle_encoder
from lensborn.graph import core, cores
from lensborn.known import KnownChannel
from lensborn.photo import find_photos

DESCRIPTION = "export.json"
ENCODER, KNOWN = "encoder", "known"  # names of the networks, and of their files
RANDOM_CROPS = 8
#: Largest allowed difference of a feature from that of the bundle's graph, in standard deviations of the features.
TOLERANCE = 0.001

Crops = npt.NDArray[np.uint8]


class ExportError(ValueError):
    """A bundle that cannot be exported; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network of a bundle. `encoder`: its own graph. `crop`: how its input is cut, for `DESCRIPTION`."""

    name: str
    xml: Path
    encoder: Encoder
    crop: dict[str, Any]


class Comparison:
    """Features of the same crops by a graph of OpenVINO and by an ONNX file, batch by batch."""

    def __init__(self, encoder: Encoder, model: bytes) -> None:
        """Compare `encoder` with the content of the ONNX file `model`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        options.log_severity_level = 3  # errors alone
        self._encoder = encoder
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._wanted: list[npt.NDArray[np.float32]] = []
        self._got: list[npt.NDArray[np.float32]] = []

    def add(self, crops: Crops) -> None:
        """Run crops (N, S, S, 3) through both."""
        planes = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), dtype=np.float32)
        self._wanted.append(self._encoder.encode(crops))
        self._got.append(self._session.run([onnx_graph.OUTPUT], {onnx_graph.INPUT: planes})[0])

    @property
    def error(self) -> float:
        """The largest difference, in standard deviations of the features; NaN where a feature is not finite."""
        wanted, got = np.concatenate(self._wanted), np.concatenate(self._got)
        return float(np.abs(got - wanted).max() / wanted.std())


def export_bundle(bundle: Bundle, out: Path, pictures: Iterable[Path] = ()) -> dict[str, Any]:
    """Write the networks of a bundle to the folder `out`, whole or not at all; returns what `DESCRIPTION` says.

    Both forms are compared on seeded random crops and on the faces of `pictures`, files or folders. Raises
    ExportError where out exists, a picture cannot be read, none has a face, or features differ by `TOLERANCE` or
    more; onnx_graph.TranslationError for a graph with an operation that is not known; OSError where the disk
    refuses.
    """
    if out.exists():
        raise ExportError(f"{out} exists: choose another folder")
    preprocessing, known = bundle_encoder(bundle).preprocessing, KnownChannel.of(bundle)
    networks = list(_networks(bundle, preprocessing, known))
    models = {
        network.name: onnx_graph.to_onnx(core().read_model(network.xml), network.name) for network in networks
    }
    parities = {
        network.name: {"random": _random_parity(network, models[network.name])} for network in networks
    }
    if pictures := list(pictures):
        for name, parity in _face_parities(networks, models, pictures, preprocessing, known).items():
            parities[name]["faces"] = parity
    description = {
        "bundle": {"name": bundle.name, "sha256": bundle.sha256, "licence": bundle.manifest["licence"]},
        "made_by": f"lensborn {lensborn.__version__}",
        "opset": onnx_graph.OPSET,
        "networks": {
            network.name: _described(network, models[network.name], parities[network.name])
            for network in networks
        },
    }
    files = {f"{name}.onnx": model for name, model in models.items()}
    files[DESCRIPTION] = (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode()
    _write_folder(out, files)
    return description


def _networks(bundle: Bundle, preprocessing: Preprocessing, known: KnownChannel | None) -> Iterator[Network]:
    crop = {
        "scale": preprocessing.crop_scale,
        "size": preprocessing.size,
        "resample": preprocessing.resample,
    }
    yield Network(ENCODER, bundle.encoder_xml, Encoder(bundle.encoder_xml), crop)
    if known is not None:
        middle = {**crop, "size": known.look.side, "middle": known.look.patch}
        yield Network(KNOWN, known.xml, known.encoder, middle)


def _random_parity(network: Network, model: bytes) -> dict[str, Any]:
    size = network.encoder.size
    crops = np.random.default_rng(0).integers(0, 256, (RANDOM_CROPS, size, size, 3), dtype=np.uint8)
    comparison = Comparison(network.encoder, model)
    comparison.add(crops)
    comparison.add(crops[:1])  # as N is free
    return _checked(network, comparison, RANDOM_CROPS)


def _face_parities(
    networks: list[Network],
    models: dict[str, bytes],
    pictures: list[Path],
    preprocessing: Preprocessing,
    known: KnownChannel | None,
) -> dict[str, dict[str, Any]]:
    comparisons = {network.name: Comparison(network.encoder, models[network.name]) for network in networks}
    faces = 0
    for photo in read_faces(find_photos(pictures), preprocessing, known):
        if photo.error is not None:
            raise ExportError(f"{photo.path} cannot be read ({photo.error}): leave it out of the check")
        faces += len(photo.faces)
        if photo.faces:
            comparisons[ENCODER].add(photo.crops)
            if photo.patches is not None:
                comparisons[KNOWN].add(photo.patches)
    if not faces:
        raise ExportError("no face was found in the pictures of the check: give pictures with faces")
    return {network.name: _checked(network, comparisons[network.name], faces) for network in networks}


def _checked(network: Network, comparison: Comparison, crops: int) -> dict[str, Any]:
    """What `DESCRIPTION` says of a comparison that was passed."""
    error = comparison.error
    if not error < TOLERANCE:  # NaN is no parity either
        raise ExportError(
            f"as ONNX, the network {network.name!r} differs by {error:.3g} standard deviations of its features, "
            f"where {TOLERANCE:g} is allowed: nothing was written; try another version of onnxruntime"
        )
    return {"crops": crops, "largest_difference": error}


def _described(network: Network, data: bytes, parity: dict[str, Any]) -> dict[str, Any]:
    size = network.encoder.size
    return {
        "file": f"{network.name}.onnx",
        "sha256": hashlib.sha256(data).hexdigest(),
        "crop": network.crop,
        "input": {
            "name": onnx_graph.INPUT,
            "shape": ["N", 3, size, size],
            "type": "float32",
            "channels": "RGB",
            "range": [0, 255],
        },
        "output": {"name": onnx_graph.OUTPUT, "shape": ["N", network.encoder.feature_dim], "type": "float32"},
        "parity": {"unit": "standard deviations of the features", "tolerance": TOLERANCE, **parity},
    }


def _write_folder(out: Path, files: dict[str, bytes]) -> None:
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}.new")
    fresh.mkdir()
    try:
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
