"""Frozen encoders by kind, behind the one interface of `contestants.FeatureExtractor`."""

from pathlib import Path
from typing import Protocol

from lensborn.bench.contestants import FeatureExtractor
from lensborn.features import Encoder, read_encoder

KINDS = ("lensborn", "imagenet", "clip", "openclip", "farl", "exif-as-language")


class Extractor(FeatureExtractor, Protocol):
    """An encoder that also says what it was loaded from, and how many of its numbers, the last, are textures."""

    sha256: str
    texture_dim: int


class _OwnEncoder(Encoder):
    """The encoder of a bundle or run, on OpenVINO; detection and its benchmark need no torch."""

    def __init__(self, path: Path) -> None:
        export = read_encoder(path)
        super().__init__(export.xml)
        self.sha256, self.texture_dim = export.fingerprint, export.texture_dim


def load_extractor(kind: str, path: Path) -> Extractor:
    """The encoder in a checkpoint file (of kind "lensborn": in a bundle or run).

    Kinds: docs/extractors.md. Raises ValueError, naming the remedy, for an unknown kind or another checkpoint.
    """
    if kind == "lensborn":
        return _OwnEncoder(path)
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r} of encoder: use {', '.join(KINDS)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the checkpoint's file")
    try:
        from lensborn.pretext import extractors  # noqa: PLC0415 - torch
    except ImportError as error:
        raise ValueError("encoders of others need torch: pip install 'lensborn[train]'") from error
    try:
        if kind == "imagenet":
            return extractors.imagenet(path)
        if kind == "exif-as-language":
            return extractors.exif_as_language(path)
        return extractors.clip(path, quick=kind != "openclip")
    except ValueError:
        raise
    except Exception as error:  # tensors of shapes that nobody thought of
        raise ValueError(
            f"{path.name} is no checkpoint of kind {kind} ({type(error).__name__}: {error})"
        ) from error
