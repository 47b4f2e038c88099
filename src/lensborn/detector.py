"""The detector: faces of a picture -> features -> how unusual among photographs -> verdicts.

The method is Zou et al., "Self-supervised learning for detecting AI-generated faces as anomalies" (2025),
with split-conformal p-values in the place of a threshold. Higher score = more anomalous; generated is the
positive class.
"""

import hashlib
import math
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

import lensborn
from lensborn import defaults
from lensborn.bundle import BESIDE, SHIPPED, Bundle, BundleError, KnownPart, read_bundle, write_bundle
from lensborn.calibration import Conformal, clopper_pearson, minimum_scores
from lensborn.contrast import LEAST, Contrast
from lensborn.datasets.corpus import split_of
from lensborn.density import Density, fit_mixture
from lensborn.faces import Face, FaceFinder, crop_faces, crop_square
from lensborn.features import Encoder, EncoderExport, Preprocessing, bundle_encoder
from lensborn.graph import check_process, cores, threads
from lensborn.known import ALONE, KnownChannel, KnownGenerator, Seen, Silence
from lensborn.photo import Photo, decode_photo, photo_pixels, read_photo, reason_of

READ_AHEAD = 8  # files that may be ready before their turn, of which only the face crops are held
LARGE_PX = (
    24_000_000  # of pictures beyond this, one is decoded at a time: 100 megapixels take 1 GB for a moment
)
CAMERA_KEYS = ("make", "model", "f_number", "exposure_time_s", "focal_length_mm", "iso")
HALVES = (("fit", 0.5), ("calibrate", 0.5))

T = TypeVar("T")
R = TypeVar("R")
_LARGE = Lock()

Status = Literal["ok", "no_face", "unreadable"]
Verdict = Literal["photographic", "ai_generated", "unsure"]
DensityKind = Literal["mixture", "contrast"]
Camera = dict[str, str | float | None]


@dataclass(frozen=True)
class Evidence:
    """What both channels say of a face. `score`, `p_value`: of the first; higher = more anomalous, p in (0, 1].
    `known`: the other's word, None without it. `combined`: the smallest alpha at which both together flag the face,
    unless the verdict is "unsure" at any; see `KnownChannel.combined_p`.
    """

    score: float
    p_value: float
    known: KnownGenerator | Silence | None
    combined: float


@dataclass(frozen=True)
class FaceVerdict:
    """One face. `box`: x, y, w, h in pixels of the upright picture. `score`: higher = more anomalous.

    `p_value`: in (0, 1], the share of calibration photographs that look at least this unusual. `combined_p_value`:
    of both channels together, the smallest alpha at which the face is flagged, unless the verdict is "unsure" at
    any; see `KnownChannel.combined_p`. `reasons`: sentences for people.
    """

    box: tuple[float, float, float, float]
    score: float
    p_value: float
    known_generator: KnownGenerator | None
    combined_p_value: float
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """What judged. `sha256`: of the bundle's manifest, None before saving. `alpha`: promised false alarms."""

    name: str
    sha256: str | None
    alpha: float


@dataclass(frozen=True)
class Detection:
    """One file. `width`, `height`: pixels, None where unreadable. `faces`: largest first.

    `camera`: the six `CAMERA_KEYS`, None where absent. `error`: the reason where `status` is "unreadable".
    """

    path: str
    status: Status
    error: str | None
    width: int | None
    height: int | None
    camera: Camera
    faces: tuple[FaceVerdict, ...]
    model: ModelInfo

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the command line's contract (docs/cli.md), which has no combined p-value."""
        values = asdict(self)
        for face in values["faces"]:
            del face["combined_p_value"]
        return values


@dataclass(frozen=True)
class PhotoFaces:
    """The faces of one file, ready for the encoder; the picture itself is let go.

    `sides`: side of each crop in pixels of the picture. `crops`: (N, S, S, 3) uint8 RGB. `patches`: (N, P, P, 3),
    what the known channel looks at, None without one. `error`: why the file could not be read, else None.
    """

    path: str
    width: int | None
    height: int | None
    camera: Camera
    faces: tuple[Face, ...]
    sides: tuple[float, ...]
    crops: npt.NDArray[np.uint8]
    patches: npt.NDArray[np.uint8] | None = None
    error: str | None = None


def read_faces(
    paths: Iterable[str | Path], preprocessing: Preprocessing, known: KnownChannel | None = None
) -> Iterator[PhotoFaces]:
    """Decode files and cut their faces, in order, on all cores.

    With `known`, what that channel looks at is cut, too. A file that cannot be read is yielded with its `error`; it
    never stops the others.
    """
    finder = FaceFinder()
    return in_order(lambda path: _read_one(path, finder, preprocessing, known), paths)


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results of `work` in the order of `items`, on all cores; items are drawn few ahead of their turn."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads())
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= threads() + READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_turn(source: str | Path | bytes) -> AbstractContextManager[object]:
    """To be held while a file, or its bytes, is decoded and looked at: one at a time of those beyond LARGE_PX."""
    return _LARGE if photo_pixels(source) > LARGE_PX else nullcontext()


def both(first: Callable[[], T], second: Callable[[], R], pool: Executor | None) -> tuple[T, R]:
    """What two works give: side by side in threads of a pool, or one after the other without one."""
    if pool is None:
        return first(), second()
    one, other = pool.submit(first), pool.submit(second)
    return one.result(), other.result()


class Detector:
    """A bundle at work: detect, score, fit, save. Threads may share it."""

    def __init__(
        self,
        encoder: EncoderExport,
        *,
        density: Density,
        conformal: Conformal,
        manifest: Mapping[str, Any],
        card: str,
        info: ModelInfo,
        seen: frozenset[str] = frozenset(),
        known: KnownChannel | None = None,
        compiled: tuple[Encoder, FaceFinder] | None = None,
    ) -> None:
        """Put the parts together; use `load` or `fit`. `seen`: see `bundle.Bundle`. `known`: the second channel.
        `compiled`: the encoder at work, and what finds faces, where they are there already.

        Raises BundleError where they do not fit each other, ValueError for an alpha outside (0, 1).
        """
        if not 0 < info.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, as 0.05 does, not {info.alpha:g}")
        self.encoder_export = encoder
        self.preprocessing = encoder.preprocessing
        if compiled is None:
            self.encoder = Encoder(encoder.xml)
        else:
            self.encoder, self._finder = compiled
        declared = (self.preprocessing.size, encoder.feature_dim)
        if (self.encoder.size, self.encoder.feature_dim) != declared:
            raise BundleError(
                f"the encoder has not the declared input and feature size {declared}: export it again"
            )
        self.density = density
        self.conformal = conformal
        self.manifest = manifest
        self.card = card
        self.info = info
        self.seen = seen
        self.known = known
        if known is not None:
            self._check_beside(known)
        # Its threads start with the first picture that is alone, and end with the detector. What they are given
        # never waits for them in turn, so that they can't wait for each other.
        self._pool = ThreadPoolExecutor(cores(), "lensborn")
        self._process = os.getpid()

    @classmethod
    def load(cls, path: str | Path | None = None, alpha: float | None = None) -> "Detector":
        """Load a bundle (None: the one shipped), to flag a share `alpha` of photographs (None: its own).

        Raises BundleError, naming the remedy, for a bundle that is missing or damaged; ValueError for an
        `alpha` outside (0, 1).
        """
        if path is None and not SHIPPED.exists():
            raise BundleError(
                "this installation has no model: name a bundle with --model, or make one with `lensborn fit`"
            )
        bundle = read_bundle(SHIPPED if path is None else path)
        nominal = bundle.manifest["calibration"]["alpha"] if alpha is None else float(alpha)
        info = ModelInfo(bundle.name, bundle.sha256, nominal)
        encoder = bundle_encoder(bundle)
        with ThreadPoolExecutor(
            2
        ) as pool:  # OpenVINO compiles on one core, half of the time to a first verdict
            first, (known, finder) = both(
                lambda: Encoder(encoder.xml), lambda: (KnownChannel.of(bundle), FaceFinder()), pool
            )
        return cls(
            encoder,
            density=bundle.density,
            conformal=bundle.conformal,
            manifest=bundle.manifest,
            card=bundle.card,
            info=info,
            seen=bundle.seen,
            known=known,
            compiled=(first, finder),
        )

    @classmethod
    def fit(
        cls,
        features: npt.NDArray[np.float32],
        groups: Sequence[str],
        encoder: EncoderExport,
        *,
        name: str,
        population: str,
        licence: str = "unspecified",
        alpha: float = defaults.ALPHA,
        density: DensityKind | None = None,
        n_components: int | Sequence[int] = defaults.N_COMPONENTS,
        covariance: Literal["full", "tied", "diag"] = "full",
        n_dims: int | None = None,
        shrinkage: float = 0.0,
        l2_normalise: bool = False,
        seed: int = defaults.SEED,
        seen: Iterable[str] = (),
    ) -> "Detector":
        """Fit the density on one half of photographs' `features` (N, D), calibrate on the other.

        `groups` (N,): what must stay together (photograph, album, source); its hash decides the half.
        `population`: in words, the photographs for which the false-alarm rate holds. `density`:
        with None, a contrast where the encoder gives textures, else a mixture. The other settings are those of
        `density.fit_mixture`; a contrast has none. `seen`: see `bundle.Bundle`. Raises ValueError,
        naming the remedy, for too few faces, and for a contrast without textures.
        """
        kind = density_kind(density, encoder)
        for_fit = np.array([half_of(group) == "fit" for group in groups], dtype=bool)
        components = [n_components] if isinstance(n_components, int) else list(n_components)
        most = None if kind == "contrast" else max(components)
        _check_numbers(int(for_fit.sum()), int((~for_fit).sum()), most, alpha)
        fitted: Density
        if kind == "contrast":
            fitted = Contrast.fit(features[for_fit], encoder.texture_dim)
        else:
            fitted = fit_mixture(
                features[for_fit],
                n_components=n_components,
                covariance=covariance,
                n_dims=n_dims,
                shrinkage=shrinkage,
                l2_normalise=l2_normalise,
                seed=seed,
                groups=np.asarray(groups)[for_fit],
            )
        scores = fitted.score(features)
        conformal = Conformal.fit(scores[~for_fit])
        manifest: dict[str, Any] = {
            "name": name,
            "created": now(),
            "licence": licence,
            "preprocessing": encoder.preprocessing.to_json(),
            "encoder": encoder.described,
            "calibration": {"n": len(conformal.scores), "alpha": alpha, "population": population},
            "training": {
                **encoder.training,
                "density": {
                    "population": population,
                    "faces": int(for_fit.sum()),
                    **({} if kind == "contrast" else {"seed": seed}),
                },
            },
            "measured": false_alarms(scores, groups, alpha),
            "versions": {
                "lensborn": lensborn.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        return cls(
            encoder,
            density=fitted,
            conformal=conformal,
            manifest=manifest,
            card=_card(manifest, kind),
            info=ModelInfo(name, None, alpha),
            seen=frozenset(seen),
        )

    def with_known(
        self,
        channel: KnownChannel,
        *,
        name: str | None = None,
        card: str | None = None,
        created: str | None = None,
    ) -> "Detector":
        """The same detector with another known channel, unsaved; its first channel is the same, to the bit.

        The memory of the channel must hold what this first channel says of the faces in it (`teach.study`): the two
        are calibrated together. Raises BundleError for a channel out of a bundle with another first channel, or one
        that remembers other features than both networks give.
        """
        self._check_beside(channel)
        other = copy(self)
        other.known = channel
        told = {"name": name, "created": created}
        other.manifest = {**self.manifest, **{key: value for key, value in told.items() if value is not None}}
        if card is not None:
            other.card = card
        other.info = ModelInfo(other.manifest["name"], None, self.info.alpha)
        return other

    def save(self, path: str | Path, *, overwrite: bool = False) -> Bundle:
        """Write the bundle, a folder of plain files, at `path`.

        Raises BundleError where something is there already and `overwrite` is not set.
        """
        return write_bundle(
            path,
            encoder_files=self.encoder_export.files,
            density=self.density,
            conformal=self.conformal,
            manifest=self.manifest,
            card=self.card,
            seen=self.seen,
            known=self._calibrated_beside(self.known.part) if self.known else None,
            known_files=dict(self.known.files) if self.known else None,
            overwrite=overwrite,
        )

    @property
    def first_channel(self) -> str:
        """SHA-256 of what gives the first channel's scores: encoder and density."""
        digest = hashlib.sha256(self.encoder_export.fingerprint.encode())
        for name, array in sorted(self.density.to_arrays().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _calibrated_beside(self, part: KnownPart) -> KnownPart:
        return replace(part, manifest={BESIDE: self.first_channel, **part.manifest})

    def _check_beside(self, channel: KnownChannel) -> None:
        beside = channel.part.manifest.get(BESIDE)
        if beside is not None and beside != self.first_channel:
            raise BundleError(
                "the known channel was calibrated beside another first channel: make it beside this one"
            )
        remembered = channel.head.memory.features.shape[1]
        if remembered != channel.head.dim + self.encoder.feature_dim:
            raise BundleError(
                f"the known channel remembers {remembered} features, not those of both networks: get an "
                "untouched copy of the bundle"
            )

    @property
    def smallest_p(self) -> float:
        """The smallest alpha at which a face can be flagged, as the numbers of calibration photographs allow; of
        one that the known channel speaks of, where there is one."""
        if self.known is not None:
            return self.known.head.smallest_p
        return 1 / (len(self.conformal.scores) + 1)

    def detect(self, path: str | Path, *, alone: bool = True) -> Detection:
        """Judge every face of one file; a file that cannot be read gives the status "unreadable".

        `alone`: the parts of the work go side by side on all cores. Where other pictures are judged meanwhile, one
        core a picture is faster. The result is the same.

        Raises TypeError for bytes, RuntimeError in a process that was forked since the detector was loaded.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"detect takes a path, not {type(path).__name__}; detect_bytes takes what a file holds"
            )
        return self._detect(path, None, alone)

    def detect_bytes(self, data: bytes, name: str, *, alone: bool = True) -> Detection:
        """Judge the bytes of a file, as `detect` judges the file; `name` stands in the place of its path.

        Raises TypeError for anything but bytes, RuntimeError as `detect` does.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"detect_bytes takes what a file holds, as bytes, not {type(data).__name__}")
        return self._detect(name, bytes(data), alone)

    def unreadable(self, name: str, error: str) -> Detection:
        """The result for a file that could not be fetched. `error`: the reason and the remedy."""
        return Detection(name, "unreadable", error, None, None, dict.fromkeys(CAMERA_KEYS), (), self.info)

    def detect_many(self, paths: Iterable[str | Path]) -> Iterator[Detection]:
        """Judge files in order, on all cores; a bad file never stops the others.

        A result is the same to the last bit as that of `detect`, whatever else is judged beside it. Raises
        TypeError for a single path, RuntimeError as `detect` does.
        """
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise TypeError("detect_many takes several paths, in a list say; detect takes one")
        return in_order(lambda path: self.detect(path, alone=False), paths)

    def score(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Anomaly scores (N,) of face crops (N, S, S, 3) uint8 RGB, cut by `faces.crop_face`.

        Raises ValueError for another shape or type.
        """
        return self.score_features(self.encoder.encode(crops))

    def weigh(
        self,
        crops: npt.NDArray[np.uint8],
        patches: npt.NDArray[np.uint8] | None,
        sides: Sequence[float],
        pool: Executor | None = None,
    ) -> list[Evidence]:
        """What both channels say of face crops (N, S, S, 3) uint8 RGB, cut by `faces.crop_face`.

        `patches`: (N, P, P, 3), see `KnownChannel.patches`; None without that channel. `sides`: of the crops in the
        picture, px. With a `pool`, the channels look side by side in its threads. Raises ValueError for another
        shape or type.
        """
        known = self.known

        def seen() -> Seen | None:
            return None if known is None or patches is None else known.look_at(patches, sides)

        features, look = both(lambda: self.encoder.encode(crops), seen, pool)
        said: Sequence[KnownGenerator | Silence | None] = [None] * len(crops)
        if known is not None and look is not None:
            said = known.judge(look, features)
        scores = self.score_features(features)
        p_values = self.conformal.p_values(scores)
        return [
            Evidence(score, p, one, p if known is None or one is None else known.combined_p(score, p, one))
            for score, p, one in zip(scores.tolist(), p_values.tolist(), said, strict=True)
        ]

    def score_features(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Anomaly scores (N,) of what the encoder makes of face crops, (N, D)."""
        scores = self.density.score(features)
        if not np.isfinite(scores).all():
            raise ArithmeticError("the model gave a score that is not a finite number")
        return scores

    @cached_property
    def _finder(self) -> FaceFinder:
        return FaceFinder()

    def _detect(self, path: str | Path, data: bytes | None, alone: bool) -> Detection:
        check_process(self._process)
        pool = self._pool if alone else None
        return self._judge(_read_one(path, self._finder, self.preprocessing, self.known, data, pool), pool)

    def _judge(self, photo: PhotoFaces, pool: Executor | None) -> Detection:
        error = photo.error
        faces: tuple[FaceVerdict, ...] = ()
        if error is None:
            try:
                evidence = self.weigh(photo.crops, photo.patches, photo.sides, pool)
                faces = tuple(map(self._verdict, photo.faces, photo.sides, evidence))
            except Exception as unexpected:
                error = reason_of(photo.path, unexpected)
        status: Status = "unreadable" if error is not None else "ok" if faces else "no_face"
        return Detection(photo.path, status, error, photo.width, photo.height, photo.camera, faces, self.info)

    def _verdict(self, face: Face, side: float, found: Evidence) -> FaceVerdict:
        verdict, reasons = judge(found.p_value, found.combined, side, self.info.alpha, found.known)
        x, y, w, h = (round(float(value), 2) for value in face.box)
        known = found.known if isinstance(found.known, KnownGenerator) else None
        return FaceVerdict((x, y, w, h), found.score, found.p_value, known, found.combined, verdict, reasons)


def judge(
    p_value: float,
    combined: float,
    side: float,
    alpha: float,
    known: KnownGenerator | Silence | None = None,
) -> tuple[Verdict, tuple[str, ...]]:
    """Verdict and reasons for a face whose crop has `side` pixels in the picture.

    `p_value`: of the first channel; `combined`: of both, which decides (see `KnownChannel.combined_p`).
    """
    if side < defaults.MIN_CROP_PX:
        small = f"the crop is {math.floor(side)} px, below the {defaults.MIN_CROP_PX} px that the model needs"
        return "unsure", (small,)
    if known is Silence.DAMAGED:
        return "unsure", (
            "the face has too little fine detail to say: blurred, or enlarged from a small one",
        )
    unusual = f"{_percent(p_value)} of calibration photographs look at least this unusual"
    if not isinstance(known, KnownGenerator):
        if combined <= alpha:
            return "ai_generated", (
                f"no more than {_percent(p_value)} of calibration photographs look this unusual",
            )
        why = ""
        if known is Silence.TOO_SMALL:
            why = f"; too small for the known channel, so that {_percent(ALONE * alpha)} counts"
        return "photographic", (f"no more unusual than photographs: {unusual}{why}",)
    each = f"{unusual}, {_percent(known.p_value)} at least this much like generated faces"
    if combined > alpha:
        return "photographic", (
            f"no more unusual than photographs: {each}, at most {_percent(combined)} in both together",
        )
    speaking = [
        word for word, p in (("unusual", p_value), ("like generated faces", known.p_value)) if p <= alpha
    ]
    which = " and ".join(speaking) or "somewhat unusual and somewhat like generated faces"
    together = f"no more than {_percent(combined)} in both together"
    return "ai_generated", (f"{which}: {each}", together)


def density_kind(asked: DensityKind | None, encoder: EncoderExport) -> DensityKind:
    """What is fitted to an encoder's features. Raises ValueError, naming the remedy, where it cannot be."""
    if asked not in (None, *get_args(DensityKind)):
        raise ValueError(f"density must be one of {get_args(DensityKind)}, not {asked!r}")
    if asked == "contrast" and not encoder.texture_dim:
        raise ValueError(
            "a contrast needs an encoder that gives textures, and this one does not: fit a mixture"
        )
    return asked or ("contrast" if encoder.texture_dim else "mixture")


def now() -> str:
    """When a model is made, as its bundle says it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def half_of(group: str) -> str:
    """ "fit" or "calibrate", by a hash of the group that is independent of the splits of a corpus."""
    return split_of(f"density/{group}", HALVES)


def false_alarms(
    scores: npt.NDArray[np.float64], groups: Sequence[str], alpha: float
) -> list[dict[str, Any]]:
    """Share of photographs flagged at `alpha`, with 95 % intervals (Clopper-Pearson), a row a set.

    The half that was fitted looks better than new photographs will. The calibration half gives `alpha` by
    construction, so it is also cut in two by group, each part judged by the other: the honest row.
    """
    for_fit = np.array([half_of(group) == "fit" for group in groups], dtype=bool)
    part = np.array([split_of(f"check/{group}", HALVES) == "fit" for group in groups], dtype=bool)
    calibration = scores[~for_fit]
    rows = [
        _alarm_row("fitted half (seen by the density)", scores[for_fit], calibration, alpha),
        _alarm_row("calibration half (by construction)", calibration, calibration, alpha),
    ]
    one, other = scores[~for_fit & part], scores[~for_fit & ~part]
    if len(one) and len(other):
        flagged = _flagged(one, other, alpha) + _flagged(other, one, alpha)
        rows.append(_row("calibration half, each part judged by the other", flagged, len(calibration), alpha))
    return rows


def _alarm_row(
    name: str, scores: npt.NDArray[np.float64], calibration: npt.NDArray[np.float64], alpha: float
) -> dict[str, Any]:
    return _row(name, _flagged(scores, calibration, alpha), len(scores), alpha)


def _flagged(scores: npt.NDArray[np.float64], calibration: npt.NDArray[np.float64], alpha: float) -> int:
    return int((Conformal.fit(calibration).p_values(scores) <= alpha).sum())


def _row(name: str, flagged: int, faces: int, alpha: float) -> dict[str, Any]:
    low, high = clopper_pearson(flagged, faces)
    return {
        "set": name,
        "faces": faces,
        "alpha": alpha,
        "flagged": flagged,
        "share": round(flagged / faces, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def _check_numbers(n_fit: int, n_calibrate: int, components: int | None, alpha: float) -> None:
    """Raise ValueError where faces are too few for a mixture of so many components, or, with None, a contrast."""
    least_fit, least_calibrate = LEAST if components is None else 10 * components, minimum_scores(alpha)
    if n_fit < least_fit or n_calibrate < least_calibrate:
        fitted = "a contrast needs" if components is None else f"{components} components need"
        fewer = "" if components is None else "fewer components or "
        raise ValueError(
            f"too few photographs: {n_fit} faces to fit and {n_calibrate} to calibrate, but {fitted} {least_fit} "
            f"and alpha {alpha:g} needs {least_calibrate}: add photographs, or take {fewer}a larger alpha"
        )


def _read_one(
    path: str | Path,
    finder: FaceFinder,
    preprocessing: Preprocessing,
    known: KnownChannel | None = None,
    data: bytes | None = None,
    pool: Executor | None = None,
) -> PhotoFaces:
    """Decode one file, or the bytes of one where there is `data`, and cut its faces, in threads of a `pool`."""
    name, size = os.fspath(path), preprocessing.size
    try:
        with in_turn(path if data is None else data):
            photo = read_photo(path) if data is None else decode_photo(data)
            return _cut_faces(name, photo, finder, preprocessing, known, pool)
    except Exception as error:
        nothing = np.zeros((0, size, size, 3), dtype=np.uint8)
        return PhotoFaces(
            name, None, None, dict.fromkeys(CAMERA_KEYS), (), (), nothing, error=reason_of(name, error)
        )


def _cut_faces(
    name: str,
    photo: Photo,
    finder: FaceFinder,
    preprocessing: Preprocessing,
    known: KnownChannel | None,
    pool: Executor | None,
) -> PhotoFaces:
    size, scale = preprocessing.size, preprocessing.crop_scale
    faces = tuple(finder.find(photo.pixels, pool))
    sides = tuple(crop_square(face.box, photo.width, photo.height, scale)[2] for face in faces)
    camera: Camera = {key: getattr(photo.camera, key) for key in CAMERA_KEYS}
    boxes = [face.box for face in faces]
    crops = crop_faces(photo.pixels, boxes, size, scale)
    patches = known.patches(photo.pixels, boxes, scale, crops) if known else None
    return PhotoFaces(name, photo.width, photo.height, camera, faces, sides, crops, patches)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _card(manifest: Mapping[str, Any], kind: DensityKind) -> str:
    calibration, density = manifest["calibration"], manifest["training"]["density"]
    encoder, textures = manifest["encoder"], manifest["encoder"].get("texture_dim", 0)
    beside = f" and {textures} textures" if textures else ""
    rows = "\n".join(
        f"| {row['set']} | {row['faces']} | "
        f"{100 * row['share']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f}) |"
        for row in manifest["measured"]
    )
    return f"""# {manifest["name"]}

Tells how unusual a face is among photographs of one population: {calibration["population"]}.
Encoder: {encoder["backbone"]}, {encoder["feature_dim"] - textures} features{beside}. {kind.capitalize()} fitted on
{density["faces"]} faces, calibrated on {calibration["n"]} others. Licence: {manifest["licence"]}.

Photographs flagged at alpha = {calibration["alpha"]:g}, with 95 % intervals:

| set | faces | flagged |
| --- | --- | --- |
{rows}

The false-alarm rate holds for photographs like these, and for no others. How many generated faces it finds
was not measured here. A verdict is no proof: do not decide about a person by it alone.
"""
