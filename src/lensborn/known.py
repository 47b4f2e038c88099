"""The known channel: what generators look like that were seen in training. A number of its own, beside the first.

A patch from the middle of the face goes through an encoder that learnt photographs against generated faces
(`pretext.known`); `known_head.KnownHead` scores its features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from lensborn import defaults
from lensborn.bundle import KNOWN_BIN, KNOWN_XML, Bundle, BundleError, KnownPart
from lensborn.faces import Pixels, crop_faces
from lensborn.features import Encoder

Features = npt.NDArray[np.float32]

#: Of alpha where this channel is silent, in bundles that let it look at larger faces alone than a verdict needs:
#: few photographs that calibrate are so small, and they may look unusual.
ALONE = 0.2


@dataclass(frozen=True)
class KnownLook:
    """How the channel looks at a face, in pixels; recorded with every model.

    `side`: of the face crop when it is looked at. `patch`: of its middle, which alone is seen. `least_side`: of the
    face crop in the picture; a smaller one gets no score. (Training shrinks half of its faces, down to 60.)
    `least_detail`: of the patch, see `detail`; with less of it, neither channel can say anything (docs/known.md).
    Raises ValueError out of range.
    """

    side: int = 192
    patch: int = 128
    least_side: int = defaults.MIN_CROP_PX
    least_detail: float = 0.6

    def __post_init__(self) -> None:
        if not 32 <= self.patch <= self.side <= 2048 or self.least_side < 1 or not self.least_detail >= 0:
            raise ValueError(f"the known channel's look is out of range: {self}")

    def middle(self, crops: Pixels) -> Pixels:
        """The middle (..., patch, patch, 3) of face crops (..., side, side, 3)."""
        start = (self.side - self.patch) // 2
        return crops[..., start : start + self.patch, start : start + self.patch, :]


def detail(patch: Pixels) -> float:
    """Fine detail of a patch (P, P, 3): the mean distance of its grey levels, 0..255, from their 3 x 3 mean."""
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.abs(grey - cv2.blur(grey, (3, 3))).mean())


@dataclass(frozen=True)
class KnownGenerator:
    """What the channel says of a face.

    `score`: log odds, higher = more like generators seen in training, or more unlike photographs. `p_value`: in
    (0, 1], the share of calibration photographs that score as high, of the population in which it is largest.
    """

    score: float
    p_value: float

    @property
    def probability(self) -> float:
        """Of being generated, in 0..1, if as many faces were as were not, and by generators seen in training."""
        return 0.5 * (1 + math.tanh(self.score / 2))  # the logistic function, which does not overflow so


class Silence(Enum):
    """Why the channel says nothing of a face: its crop is too small, or too blurred or enlarged."""

    TOO_SMALL = "too small"
    DAMAGED = "damaged"


class Seen(NamedTuple):
    """What the channel sees of N faces: why nothing, or None, of each, and the features (n, D) of the others."""

    silences: Sequence[Silence | None]
    features: Features


class KnownChannel:
    """The channel of a bundle at work. Threads may share it."""

    def __init__(self, xml: Path, part: KnownPart) -> None:
        """Compile the graph at `xml`. Raises BundleError where the parts do not fit each other."""
        settings = part.manifest
        try:
            self.look = KnownLook(**{field.name: settings[field.name] for field in fields(KnownLook)})
        except ValueError as error:
            raise BundleError(f"{error}: get an untouched copy of the bundle") from error
        self.xml, self.part, self.head = xml, part, part.head
        self.encoder = Encoder(xml)
        declared = (self.look.patch, self.head.dim)
        if (self.encoder.size, self.encoder.feature_dim) != declared:
            raise BundleError(
                f"the known channel's graph has not the declared patch and feature size {declared}: get an "
                "untouched copy of the bundle"
            )

    @classmethod
    def of(cls, bundle: Bundle) -> "KnownChannel | None":
        """The channel of a bundle that was read; None where it has none."""
        return None if bundle.known is None else cls(bundle.path / KNOWN_XML, bundle.known)

    @property
    def files(self) -> dict[str, Path]:
        """The graph and its weights, by the names that they have in a bundle."""
        return {KNOWN_XML: self.xml, KNOWN_BIN: self.xml.with_suffix(".bin")}

    def patches(
        self, pixels: Pixels, boxes: Sequence[Sequence[float]], scale: float, crops: Pixels
    ) -> Pixels:
        """The patches (N, P, P, 3) uint8 of faces of a picture, whose `crops` (N, S, S, 3) the first channel has.

        They are cut out of these where both channels look at a face at one size.
        """
        if crops.shape[1] != self.look.side:
            crops = crop_faces(pixels, boxes, self.look.side, scale)
        return self.look.middle(crops)

    def look_at(self, patches: Pixels, sides: Sequence[float]) -> Seen:
        """What is seen of faces in patches (N, P, P, 3), whose crops have `sides` in the picture, px."""
        silences = [self._silence(patch, side) for patch, side in zip(patches, sides, strict=True)]
        return Seen(silences, self.encoder.encode(patches[[silence is None for silence in silences]]))

    def judge(self, seen: Seen, first: Features) -> list[KnownGenerator | Silence]:
        """What is said of each face that was looked at. `first`: the features (N, F) that the first channel has."""
        spoken_of = [silence is None for silence in seen.silences]
        scores = self.head.score(np.concatenate([seen.features, first[spoken_of]], axis=1))
        if not np.isfinite(scores).all():
            raise ArithmeticError("the known channel gave a score that is not a finite number")
        said = map(KnownGenerator, scores.tolist(), self.head.p_values(scores).tolist())
        return [silence or next(said) for silence in seen.silences]

    def combined_p(self, score: float, p_value: float, said: KnownGenerator | Silence) -> float:
        """The smallest alpha at which a face is flagged, in (0, 1]: one p-value of both channels together.

        `score`, `p_value`: of the first channel, which is alone where this one says nothing, with ALONE of alpha.
        """
        if not isinstance(said, KnownGenerator):
            return min(1.0, p_value / ALONE)
        return float(self.head.fused_p([said.score], [score])[0])

    def _silence(self, patch: Pixels, side: float) -> Silence | None:
        if side < self.look.least_side:
            return Silence.TOO_SMALL
        return Silence.DAMAGED if detail(patch) < self.look.least_detail else None
