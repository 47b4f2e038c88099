"""Face crops to features: the exported encoder, run by OpenVINO, without the framework that trained it.

An export is a folder with `encoder.xml` and `encoder.bin` (OpenVINO IR: float32 (N, 3, S, S) in 0..255 in,
(N, D) out, normalisation inside the graph) and `preprocessing.json`. The last of the D numbers may be textures.
A bundle holds the same files, with the settings in its manifest.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lensborn import defaults
from lensborn.bundle import MANIFEST, Bundle, BundleError, preprocessing_fits, read_bundle
from lensborn.faces import RESAMPLE
from lensborn.graph import Graph, core

CHUNK = 64  # crops held as float32 at once


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the encoder's input; recorded with every model.

    `crop_scale`: side of the crop over the longer side of the face box. `size`: side of the input in pixels.
    `resample`: name of the resizing (see `faces.RESAMPLE`). `mean`, `std`: a channel, of RGB in 0..1; applied
    inside the exported graph, recorded for the reader.
    """

    crop_scale: float = defaults.CROP_SCALE
    size: int = defaults.INPUT_SIZE
    resample: str = RESAMPLE
    mean: tuple[float, float, float] = defaults.IMAGENET_MEAN
    std: tuple[float, float, float] = defaults.IMAGENET_STD

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Any) -> "Preprocessing":
        """Check and take the settings of a model; raises BundleError where they are no such settings."""
        try:
            scale, size = float(values["crop_scale"]), int(values["size"])
            mean, std = _channels(values["mean"]), _channels(values["std"])
            resample = values["resample"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(
                f"preprocessing settings are malformed ({error!r}): export the model again"
            ) from error
        if not preprocessing_fits(scale, size):
            raise BundleError(
                f"preprocessing out of range (crop scale {scale}, size {size}): export the model again"
            )
        if resample != RESAMPLE:
            raise BundleError(
                f"the model needs crops resized by {resample!r}, this lensborn resizes by {RESAMPLE!r}: "
                "install the version that made the model"
            )
        return cls(scale, size, resample, mean, std)


@dataclass(frozen=True)
class EncoderExport:
    """An encoder on disk. `backbone`: its name; `feature_dim`: D; `training`: free summary for the card.

    `texture_dim`: how many of the D numbers, the last, are textures beside the feature (see `contrast`).
    """

    xml: Path
    preprocessing: Preprocessing
    backbone: str
    feature_dim: int
    training: Mapping[str, Any]
    texture_dim: int = 0

    @property
    def described(self) -> dict[str, Any]:
        """What a model tells of it; of textures only where there are some."""
        textures = {"texture_dim": self.texture_dim} if self.texture_dim else {}
        return {"backbone": self.backbone, "feature_dim": self.feature_dim, **textures}

    @property
    def files(self) -> dict[str, Path]:
        """The graph and its weights, by the names that they have in a bundle."""
        return {"encoder.xml": self.xml, "encoder.bin": self.xml.with_suffix(".bin")}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of graph, weights and preprocessing: features of equal fingerprints can be mixed."""
        digest = hashlib.sha256(json.dumps(self.preprocessing.to_json(), sort_keys=True).encode())
        for path in self.files.values():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def read_encoder(path: str | Path) -> EncoderExport:
    """Find the encoder of a bundle or of a finished training run.

    Raises BundleError, naming the remedy, where there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return bundle_encoder(read_bundle(path))
    if (path / "encoder.xml").is_file() and (path / "preprocessing.json").is_file():
        return _read_export(path)
    raise BundleError(
        f"{path} holds no encoder: name a bundle, or a run of `lensborn pretrain` that has ended"
    )


def bundle_encoder(bundle: Bundle) -> EncoderExport:
    """The encoder of a bundle that was read; raises BundleError where its settings are malformed."""
    encoder = bundle.manifest["encoder"]
    return EncoderExport(
        bundle.encoder_xml,
        Preprocessing.from_json(bundle.manifest["preprocessing"]),
        encoder["backbone"],
        encoder["feature_dim"],
        bundle.manifest["training"],
        encoder.get("texture_dim", 0),
    )


def _read_export(folder: Path) -> EncoderExport:
    try:
        values = json.loads((folder / "preprocessing.json").read_text("utf-8"))
        backbone, feature_dim = str(values["backbone"]), int(values["feature_dim"])
        texture_dim = int(values.get("texture_dim", 0))
        if not 0 <= texture_dim < feature_dim:
            raise ValueError(f"{texture_dim} of {feature_dim} numbers cannot be textures")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise BundleError(
            f"{folder / 'preprocessing.json'} is malformed ({error!r}): export the model again"
        ) from error
    preprocessing = Preprocessing.from_json(values)
    training = values.get("training", {})
    return EncoderExport(folder / "encoder.xml", preprocessing, backbone, feature_dim, training, texture_dim)


class Encoder:
    """The exported encoder, compiled for this processor. Threads may share it."""

    def __init__(self, xml: str | Path) -> None:
        """Compile the graph at `xml`.

        Raises BundleError where the graph cannot be read or has another input or output than expected.
        """
        name = Path(xml).name
        try:
            model = core().read_model(Path(xml))
            if len(model.inputs) != 1 or len(model.outputs) != 1:
                raise BundleError(f"{name} must have one input and one output: export the model again")
            shape, out = model.input(0).partial_shape, model.output(0).partial_shape
            if not (
                len(shape) == 4
                and shape[1] == 3
                and shape[2].is_static
                and shape[2] == shape[3]
                and len(out) == 2
            ):
                raise BundleError(f"{name} must map (N, 3, S, S) to (N, D), not {shape} to {out}")
            self.size: int = shape[2].get_length()
            self.feature_dim: int = out[1].get_length()
            model.reshape([1, 3, self.size, self.size])
            self._graph = Graph(model)
        except RuntimeError as error:
            raise BundleError(f"{name} is not a graph that OpenVINO runs: export the model again") from error

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Features of `crops` (N, S, S, 3), uint8 RGB: (N, D) float32, in the same order.

        A feature does not depend on the crops beside it, to the last bit. Raises ValueError for another shape or
        type.
        """
        expected = (self.size, self.size, 3)
        if crops.ndim != 4 or crops.shape[1:] != expected or crops.dtype != np.uint8:
            raise ValueError(
                f"crops must be (N, {self.size}, {self.size}, 3) uint8, not {crops.shape} {crops.dtype}: "
                "cut them with faces.crop_face at the model's size"
            )
        features = np.empty((len(crops), self.feature_dim), dtype=np.float32)
        for start in range(0, len(crops), CHUNK):
            batch = crops[start : start + CHUNK]
            planes = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32)  # (n, 3, S, S)
            self._graph.rows(planes, features[start : start + CHUNK])
        return features


def _channels(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    if not all(math.isfinite(value) for value in (red, green, blue)):
        raise ValueError("a channel's mean or deviation is not finite")
    return red, green, blue
