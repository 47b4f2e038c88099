"""Detectors under test: a bundle, a frozen encoder under our densities, anyone's function, or a table of scores.

Every contestant observes the same views. An observation is either the score itself or, for encoders, a feature
from which scores follow: under the bundle's own density, or under one that the benchmark fits to the
reference half of each photographic set (see `bench.judging`).

A stranger's detector is a function `score(views) -> scores`, higher = more anomalous, one number a view; it is
named by an entry point of the group `lensborn.detectors`, or as `module:function`.
"""

import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensborn.bench.protocols import PUBLISHED
from lensborn.bench.views import View
from lensborn.datasets.rows import RowsError, read_rows
from lensborn.detector import Detector
from lensborn.faces import crop_face, crop_square
from lensborn.known import KnownGenerator, Silence

GROUP = "lensborn.detectors"
SHIPPED = "shipped"
LARGEST = 1e300  # stands for infinity, with which no mean or quantile can be reckoned
FIRST, KNOWN, FUSED = "first", "known", "fused"  # channels of a bundle
Floating = NDArray[np.float32] | NDArray[np.float64]
ScoreFunction = Callable[[Sequence[View]], ArrayLike]


class ContestantError(ValueError):
    """A detector that cannot be measured; the message names the remedy."""


class FeatureExtractor(Protocol):
    """A frozen encoder, as `features.Encoder` and `bench.extractors` are: crops in, features out."""

    size: int

    def encode(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (N, D) of crops (N, size, size, 3) uint8 RGB."""
        ...


class Contestant(Protocol):
    """A detector under test.

    `sha256`: of what decides its scores, "" where unknown: then nothing it says is kept for a resumed run.
    `threshold`: scores of at least that are flagged, by its own calibration; None where it has none.
    `judges`: whether it has scores of its own. `refits`: whether its observations are features, to which the
    benchmark fits densities. `texture_dim`: how many of the numbers of these, the last, are textures. `seen`: the
    first 16 digits of the SHA-256 of the pictures that it was made from, as far as it tells.
    """

    name: str
    sha256: str
    threshold: float | None
    judges: bool
    refits: bool
    texture_dim: int
    seen: frozenset[str]

    def observe(self, views: Sequence[View]) -> Floating:
        """Observations (N, D), D = 1 for scores; NaN where there is none."""
        ...

    def scores(self, observed: Floating) -> NDArray[np.float64]:
        """Its own scores (N,) of observations (N, D); only of a contestant that judges."""
        ...


class BundleContestant:
    """A bundle: its own scores and calibration, and features for densities fitted here."""

    def __init__(self, detector: Detector, *, refits: bool) -> None:
        """Put a detector to the test, also under densities fitted here if `refits`."""
        self.detector = detector
        self.name = detector.info.name
        self.sha256 = detector.info.sha256 or ""
        # p <= alpha exactly above the conformal threshold, and a score of at least `threshold` is flagged
        self.threshold: float | None = np.nextafter(detector.conformal.threshold(detector.info.alpha), np.inf)
        self.judges = True
        self.refits = refits
        self.texture_dim = detector.encoder_export.texture_dim
        self.seen = detector.seen

    def observe(self, views: Sequence[View]) -> Floating:
        """Features of the views' face crops."""
        return _encode(self.detector.encoder, views)

    def scores(self, observed: Floating) -> NDArray[np.float64]:
        """See Contestant."""
        return self.detector.density.score(observed)


class ChannelContestant:
    """The known channel of a bundle, alone or, `fused`, with the first: scores, under the bundle's calibration."""

    judges = True
    refits = False
    texture_dim = 0

    def __init__(self, detector: Detector, *, fused: bool) -> None:
        """Put a bundle's channel to the test. Raises ContestantError where it has none."""
        if detector.known is None:
            raise ContestantError(f"{detector.info.name} has no known channel: name the bundle alone")
        self.detector, self.known, self.fused = detector, detector.known, fused
        self.name = f"{detector.info.name} {FUSED if fused else KNOWN}"
        self.sha256 = detector.info.sha256 or ""
        self.seen = detector.seen | self.known.part.seen  # both networks drew on the same corpus
        alpha = detector.info.alpha
        self.threshold: float | None = (
            -math.log(alpha) if fused else np.nextafter(self.known.head.threshold(alpha), np.inf)
        )

    def observe(self, views: Sequence[View]) -> Floating:
        """The channel's score; fused, the negative logarithm of the smallest alpha that flags the face."""
        scale = self.detector.preprocessing.crop_scale
        size = self.detector.encoder.size
        crops = np.stack([crop_face(view.pixels, view.box, size, scale) for view in views])
        patches = [
            self.known.patches(view.pixels, [view.box], scale, crop[None])[0]
            for view, crop in zip(views, crops, strict=True)
        ]
        sides = [
            crop_square(view.box, view.pixels.shape[1], view.pixels.shape[0], scale)[2] for view in views
        ]
        evidence = self.detector.weigh(crops, np.stack(patches), sides)
        if not self.fused:
            said = [one.known for one in evidence]
            return np.array([[one.score if isinstance(one, KnownGenerator) else math.nan] for one in said])
        combined = [math.nan if one.known is Silence.DAMAGED else one.combined for one in evidence]
        return -np.log(combined)[:, None]

    def scores(self, observed: Floating) -> NDArray[np.float64]:
        """See Contestant."""
        return np.asarray(observed[:, 0], dtype=np.float64)


@dataclass
class EncoderContestant:
    """A frozen encoder that has no density but those fitted here. `kind`: how its checkpoint is read."""

    name: str
    sha256: str
    encoder: FeatureExtractor
    kind: str
    threshold: float | None = None
    judges: bool = False
    refits: bool = True
    texture_dim: int = 0
    seen: frozenset[str] = frozenset()

    def observe(self, views: Sequence[View]) -> Floating:
        """Features of the views' face crops."""
        return _encode(self.encoder, views)

    def scores(self, observed: Floating) -> NDArray[np.float64]:
        """Raises ContestantError: a frozen encoder has none."""
        raise ContestantError(f"{self.name} has no density of its own: fit one with `lensborn fit`")


@dataclass
class FunctionContestant:
    """A function from views to scores."""

    name: str
    function: ScoreFunction
    sha256: str = ""
    threshold: float | None = None
    judges: bool = True
    refits: bool = False
    texture_dim: int = 0
    seen: frozenset[str] = frozenset()

    def observe(self, views: Sequence[View]) -> Floating:
        """The function's scores, infinite ones as LARGEST. Raises ContestantError unless they are one a view."""
        said = self.function(views)
        try:
            scores = np.asarray(said, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ContestantError(f"{self.name} gave no scores ({error}): it must give numbers") from error
        if scores.shape != (len(views),):
            raise ContestantError(
                f"{self.name} gave scores of shape {scores.shape} for {len(views)} views: it must give one a view"
            )
        return np.clip(scores, -LARGEST, LARGEST)[:, None]

    def scores(self, observed: Floating) -> NDArray[np.float64]:
        """See Contestant."""
        return np.asarray(observed[:, 0], dtype=np.float64)


def contestant(spec: str, *, refits: bool = False) -> Contestant:
    """The detector that a user names: a bundle's folder, a CSV of scores, an entry point, or module:function.

    SHIPPED is the shipped bundle. A bundle stands for its first channel; with `:known` or `:fused` behind it, for
    its known channel or for both. Raises ContestantError, or BundleError for a damaged bundle.
    """
    place, _, channel = spec.rpartition(":")
    if channel in (KNOWN, FUSED) and (place == SHIPPED or Path(place).is_dir()):
        return channel_of(_bundle(place), channel)
    path = Path(spec)
    if spec == SHIPPED or path.is_dir():
        return BundleContestant(_bundle(spec), refits=refits)
    if path.suffix.lower() == ".csv":
        return scores_of_table(path)
    if found := list(entry_points(group=GROUP, name=spec)):
        return FunctionContestant(spec, found[0].load())
    module, _, attribute = spec.partition(":")
    if not attribute:
        known = sorted(point.name for point in entry_points(group=GROUP))
        raise ContestantError(
            f"no detector {spec!r}: give a bundle's folder, a CSV of scores, module:function, or an entry point "
            f"of the group {GROUP} (installed: {', '.join(known) or 'none'})"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last: "", a relative name
        raise ContestantError(f"{spec} cannot be imported ({error}): put its folder on PYTHONPATH") from error
    if not callable(function):
        raise ContestantError(f"{spec} is no function: name one that maps views to scores")
    return FunctionContestant(attribute if attribute != "score" else module, function)


def told_apart(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Contestants of which no two have one name: bundles of the same name get the start of their hash behind it.

    Raises ContestantError, as `check_names` does, where that does not help.
    """
    names = [one.name for one in contestants]
    for one in contestants:
        if names.count(one.name) > 1:
            one.name = f"{one.name} {one.sha256[:8]}".rstrip()
    check_names(contestants)
    return list(contestants)


def check_names(contestants: Sequence[Contestant]) -> None:
    """Raise ContestantError where two have one name, as nothing would tell apart what was seen of them."""
    names = [one.name for one in contestants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ContestantError(f"{min(twice)} is given twice: give every detector once")


def channel_of(detector: Detector, channel: str) -> Contestant:
    """A bundle's FIRST or KNOWN channel, or both, FUSED. Raises ContestantError where it has no known one."""
    if channel == FIRST:
        return BundleContestant(detector, refits=False)
    return ChannelContestant(detector, fused=channel == FUSED)


def _bundle(place: str) -> Detector:
    return Detector.load(None if place == SHIPPED else place)


def scores_of_table(path: Path) -> Contestant:
    """A detector given by its scores: columns file (the picture's name), score, and optionally condition and set.

    Without the column `condition` the scores are those of the published files; `set` is needed where two sets have
    pictures of one name. Raises ContestantError.
    """
    try:
        _, rows = read_rows(path)
    except RowsError as error:
        raise ContestantError(f"{path.name} cannot be read as a table: {error}") from error
    scores: dict[tuple[str, str, str], float] = {}
    for record, row in enumerate(rows, start=2):
        try:
            score = float(row["score"])
        except (KeyError, TypeError, ValueError):
            score = None
        if score is None or not row.get("file"):
            raise ContestantError(f"{path.name}, record {record}: needs file and a numeric score")
        file = PurePath(row["file"]).as_posix()  # as tables of pictures spell it
        key = row.get("condition") or PUBLISHED, row.get("set") or "", file
        if key in scores:
            raise ContestantError(f"{path.name}, record {record}: a second score of one picture, keep one")
        scores[key] = score
    if not scores:
        raise ContestantError(f"{path.name} has no rows")
    sets: dict[str, str] = {}  # of names for which the table names none

    def look_up(views: Sequence[View]) -> list[float]:
        return [score_of(view) for view in views]

    def score_of(view: View) -> float:
        if (named := scores.get((view.condition, view.set, view.name))) is not None:
            return named
        score = scores.get((view.condition, "", view.name), math.nan)
        if not math.isnan(score) and sets.setdefault(view.name, view.set) != view.set:
            raise ContestantError(
                f"{path.name}: {view.name} is in the sets {sets[view.name]} and {view.set}: give the column set"
            )
        return score

    content = repr(sorted(scores.items())).encode("utf-8", "surrogatepass")
    return FunctionContestant(path.stem, look_up, hashlib.sha256(content).hexdigest())


def without_textures(features: Floating, contestant: Contestant) -> Floating:
    """A contestant's observations (N, D) without its textures, the last `texture_dim` columns."""
    return features[:, : features.shape[1] - contestant.texture_dim]


def _encode(encoder: FeatureExtractor, views: Sequence[View]) -> NDArray[np.float32]:
    return encoder.encode(np.stack([view.crop(encoder.size) for view in views]))
