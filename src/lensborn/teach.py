"""Teaching the known channel new generators from a user's own pictures: features, checks, head, before and after.

The encoders stay as they are; the head is learnt again from the features that the bundle remembers and the new
ones. Half of a generator's pictures, chosen by hash, measure what that brings; the head that is written learns from
all of them. Photographs calibrate; what there is beyond `ENOUGH` of them is learnt from, up to half.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from lensborn import defaults
from lensborn.bench.audit import Container, read_container
from lensborn.bench.metrics import Interval, measures, rate
from lensborn.bench.render import markdown_head
from lensborn.bundle import KnownPart
from lensborn.datasets.corpus import split_of
from lensborn.delivery import ROUGH, SIDES, delivered_face, resized
from lensborn.detector import Detector, in_order, in_turn
from lensborn.faces import FaceFinder, Pixels, crop_face, crop_square
from lensborn.known import KnownChannel, detail
from lensborn.known_head import KnownHead
from lensborn.memory import CALIBRATE, LEARN, LEAST_POPULATION, Memory
from lensborn.photo import UnreadableError, decode_photo, open_regular

DELIVERIES = 2  # of each face, beside the picture as it is: what a site does to it must not matter
MOST = 2000  # pictures of a set; more bring little, and a bundle should stay small
LEAST = 30  # different faces of a generator, or photographs, from which anything can be said
ENOUGH = 150  # different photographs that calibrate before any are spared to learn from
JUDGE = "judge"
HALVES = (("learn", 0.5), (JUDGE, 0.5))
NEAR = 6  # bits of 64 in which the looks of near-duplicates differ at most ...
ALIKE = 0.97  # ... and the correlation that they have at least, at THUMBNAIL px
THUMBNAIL = 32
OWN = "own photographs"  # what the bundle calls the user's photographs


class LessonError(ValueError):
    """Pictures that nothing sound can be learnt from; the message names the remedy."""


@dataclass(frozen=True, eq=False)
class Studied:
    """The largest face of a picture, as it is and after K rough handlings.

    `features` (1 + K, D + F): of the known channel's network and of the first's; `unusual` (1 + K,): scores of the
    first. `sha256`: of the file. `container`: what its format gives away. `look`: 64 bits that near-duplicates
    share, but for a few. `thumbnail` (T,): see `thumbnail_of`.
    """

    path: Path
    sha256: str
    container: Container
    look: int
    thumbnail: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]
    unusual: npt.NDArray[np.float64]

    @property
    def plain(self) -> npt.NDArray[np.float32]:
        """Features (D + F,) of the face as it is."""
        return np.asarray(self.features[0])


@dataclass(frozen=True)
class Lesson:
    """What is known of one set of pictures: `faces` studied, and how many pictures gave none.

    Half of a generator's faces are kept apart to measure on, near-duplicates together.
    """

    name: str
    generated: bool
    faces: tuple[Studied, ...]
    without: int

    @cached_property
    def groups(self) -> npt.NDArray[np.int32]:
        """The number of each face's group (N,) of near-duplicates, from 0."""
        return np.asarray(
            connected_components(csr_array(alike(self.faces, self.faces)), directed=False)[1], dtype=np.int32
        )

    @cached_property
    def halves(self) -> tuple[list[Studied], list[Studied]]:
        """The faces to learn from, and those to judge by: a hash of each group's least digest decides.

        Photographs that judge calibrate, too: half of them, or ENOUGH where that is more; of near-duplicates one
        counts.
        """
        groups = [
            sorted(
                (self.faces[n] for n in np.flatnonzero(self.groups == group)), key=lambda face: face.sha256
            )
            for group in range(self.groups.max(initial=-1) + 1)
        ]
        if not self.generated:
            different = sorted((group[0] for group in groups), key=lambda face: face.sha256)
            calibrating = max(ENOUGH, len(different) // 2)
            return different[calibrating:], different[:calibrating]
        parts: tuple[list[Studied], list[Studied]] = ([], [])
        for group in groups:
            parts[split_of(f"teach/{group[0].sha256}", HALVES) == JUDGE].extend(group)
        return parts


@dataclass(frozen=True)
class Change:
    """AUC of one generator against photographs, `before` and `after`; `new`: it was taught now.

    New generators are judged on pictures kept apart; older ones on the faces that are remembered, most of which
    their head learnt from, so that only the difference says something.
    """

    generator: str
    new: bool
    faces: int
    photographs: int
    before: Interval
    after: Interval


@dataclass(frozen=True)
class Alarms:
    """Shares of `faces` photographs, as they are, that were flagged before they were taught, at 5 %
    (`defaults.ALPHA`): by the `known` channel's own p-value, and by that of both channels, on which the `verdict`
    rests. The intervals take near-duplicates for one.

    `calibrating`: how many of that `name` calibrate now, with those that were taught before; fewer than
    `memory.LEAST_POPULATION` join other photographs. There is no share after: none is left that the new head
    has neither learnt from nor is calibrated on.
    """

    name: str
    faces: int
    known: Interval
    verdict: Interval
    calibrating: int


class Report(NamedTuple):
    """What lessons brought: to each generator, and to photographs."""

    changes: list[Change]
    alarms: list[Alarms]


def known_of(detector: Detector) -> KnownChannel:
    """The known channel of a detector. Raises ValueError, naming the remedy, where it has none."""
    if detector.known is None:
        raise ValueError("the model has no known channel: start from one that has, as the shipped one")
    return detector.known


def study(
    paths: Iterable[Path], detector: Detector, *, deliveries: int = DELIVERIES, seed: int = 0
) -> Iterator[Studied | None]:
    """The largest face of each picture, in order; None where it can't be read, the known channel would say
    nothing, or the crop is smaller than what `delivered_face` begins with.

    Raises ValueError where the detector has none.
    """
    channel, finder = known_of(detector), FaceFinder()
    return in_order(lambda path: _study(path, finder, detector, channel, deliveries, seed), paths)


def _study(
    path: Path, finder: FaceFinder, detector: Detector, channel: KnownChannel, deliveries: int, seed: int
) -> Studied | None:
    try:
        with in_turn(path):
            return _largest(path, finder, detector, channel, deliveries, seed)
    except (UnreadableError, OSError, MemoryError):
        return None


def _largest(
    path: Path, finder: FaceFinder, detector: Detector, channel: KnownChannel, deliveries: int, seed: int
) -> Studied | None:
    with open_regular(path) as file:
        data = file.read(defaults.MAX_FILE_BYTES)
    pixels = decode_photo(data).pixels
    sha256 = hashlib.sha256(data).hexdigest()
    faces = finder.find(pixels)
    if not faces:
        return None
    box, scale, size = faces[0].box, detector.preprocessing.crop_scale, detector.preprocessing.size
    x, y, side = (round(value) for value in crop_square(box, pixels.shape[1], pixels.shape[0], scale))
    if side < max(channel.look.least_side, SIDES[0]):  # or it could not be handed on as larger ones are
        return None
    native = np.ascontiguousarray(pixels[y : y + side, x : x + side])
    rng = np.random.default_rng([seed, int(sha256[:12], 16)])
    crops = [crop_face(pixels, box, size, scale)]
    looks = [channel.patches(pixels, [box], scale, crops[0][None])[0]]
    if detail(looks[0]) < channel.look.least_detail:
        return None
    for _ in range(deliveries):
        face = delivered_face(native, channel.look.side, ROUGH, rng)
        looks.append(channel.look.middle(face))
        crops.append(resized(face, size))
    first = detector.encoder.encode(np.stack(crops))
    return Studied(
        path=path,
        sha256=sha256,
        container=read_container(data, pixels.shape[1], pixels.shape[0]),
        look=difference_hash(native),
        thumbnail=thumbnail_of(native),
        features=np.concatenate([channel.encoder.encode(np.stack(looks)), first], axis=1),
        unusual=detector.score_features(first),
    )


def difference_hash(pixels: Pixels) -> int:
    """64 bits: whether each of 8 x 8 cells is darker than its right neighbour, in the picture at 9 x 8 pixels.

    Source: Krawetz, "Kind of like that" (2013). Enlarging, recompressing and tone change few of them.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits((np.diff(small, axis=1) > 0).ravel())
    return int.from_bytes(bits.tobytes(), "big")


def thumbnail_of(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Grey levels at THUMBNAIL px (THUMBNAIL**2,), of mean 0 and length 1: products are correlations."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    centred = small - small.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), dtype=np.float32)


def check(lessons: Sequence[Lesson], memory: Memory, seen: frozenset[str] = frozenset()) -> None:
    """Raise LessonError for too few faces, names that clash, and pictures that are on both sides or known.

    `seen`: what the channel was made from, by the first 16 digits of each SHA-256.
    """
    for lesson in lessons:
        different = len(set(lesson.groups.tolist()))
        if different < LEAST:
            raise LessonError(
                f"{lesson.name}: {different} different faces in {len(lesson.faces) + lesson.without} pictures "
                f"({lesson.without} have none of sufficient size or cannot be read, "
                f"{len(lesson.faces) - different} nearly equal another one), but {LEAST} are needed: add pictures"
            )
        if lesson.generated and not all(lesson.halves):
            raise LessonError(f"{lesson.name}: no two halves to learn and to judge by: add pictures")
        if again := sum(face.sha256[:16] in seen for face in lesson.faces):
            raise LessonError(
                f"{lesson.name}: {again} pictures are known to the bundle already: leave them out"
            )
        known = dict(zip(memory.names, memory.generated.tolist(), strict=True))
        if known.get(lesson.name, lesson.generated) != lesson.generated:
            raise LessonError(f"{lesson.name} is known to the bundle as the other class: choose another name")
    real = [face for lesson in lessons if not lesson.generated for face in lesson.faces]
    fake = [face for lesson in lessons if lesson.generated for face in lesson.faces]
    if both := {face.sha256 for face in real} & {face.sha256 for face in fake}:
        raise LessonError(
            f"{len(both)} pictures are given as photographs and as generated: remove them from one"
        )
    if near := near_duplicates(fake, real):
        first, second = near[0]
        raise LessonError(
            f"{len(near)} generated pictures nearly equal a photograph, as {first.path.name} does "
            f"{second.path.name}: remove them from one side"
        )


def near_duplicates(some: Sequence[Studied], others: Sequence[Studied]) -> list[tuple[Studied, Studied]]:
    """Each face of `some` that looks nearly the same as one of `others`, with the first such one."""
    same = alike(some, others)
    return [(some[n], others[int(same[n].argmax())]) for n in np.flatnonzero(same.any(axis=1)).tolist()]


def alike(some: Sequence[Studied], others: Sequence[Studied]) -> npt.NDArray[np.bool_]:
    """Which faces nearly are the same picture (N, M): few bits of their looks differ, and thumbnails correlate.

    The bits alone take three in a hundred thousand pairs of different portraits for the same.
    """
    same = distances(some, others) <= NEAR
    for n, m in np.argwhere(same).tolist():
        same[n, m] = float(some[n].thumbnail @ others[m].thumbnail) >= ALIKE
    return same


def distances(some: Sequence[Studied], others: Sequence[Studied]) -> npt.NDArray[np.uint8]:
    """How many of 64 bits differ between the looks of faces: (N, M)."""
    rows, columns = (np.array([face.look for face in faces], dtype=np.uint64) for faces in (some, others))
    return np.asarray(np.bitwise_count(rows[:, None] ^ columns[None, :]))


def teach(channel: KnownChannel, lessons: Sequence[Lesson]) -> tuple[KnownChannel, Report]:
    """The channel with a head that knows the lessons too, and what that changed.

    Where photographs of the lessons become a population to calibrate on, the channel is for those from then on, and
    has no margin for others. Raises LessonError as `check` does.
    """
    memory = channel.head.memory
    check(lessons, memory, channel.part.seen)
    dim = channel.head.dim
    taught = _extended(memory, lessons, whole=True)
    enough = any(
        _calibrating(taught, lesson.name) >= LEAST_POPULATION for lesson in lessons if not lesson.generated
    )
    head = KnownHead.learn(taught, dim, 0.0 if enough else channel.head.margin)
    reported = head  # where nothing is kept apart, it is the one that learns from half of each generator, too
    if any(lesson.generated for lesson in lessons):
        reported = KnownHead.learn(_extended(memory, lessons, whole=False), dim)
    heads = channel.head, reported
    judged = {lesson.name: np.stack([face.plain for face in lesson.halves[1]]) for lesson in lessons}
    own = [judged[lesson.name] for lesson in lessons if not lesson.generated]
    # as they are; no head learns from them
    remembered = memory.values(memory.rows(CALIBRATE) & ~memory.positive & memory.first)
    real = np.concatenate([remembered, *own])
    changes = [
        _change(lesson.name, True, judged[lesson.name], real, heads) for lesson in lessons if lesson.generated
    ]
    changes += [
        _change(name, False, memory.values(memory.first & (memory.sets == number)), remembered, heads)
        for number, name in enumerate(memory.names)
        if memory.generated[number] and name not in judged
    ]
    seen = channel.part.seen | {face.sha256[:16] for lesson in lessons for face in lesson.faces}
    alarms = [_alarms(lesson, channel.head, head) for lesson in lessons if not lesson.generated]
    # what was measured of another head is not said of this one
    manifest = {key: value for key, value in channel.part.manifest.items() if key != "measured"}
    part = KnownPart(head, manifest, seen)
    return KnownChannel(channel.xml, part), Report(changes, alarms)


def card_of(base: str, name: str, section: str) -> str:
    """The card of a taught model: the base's under another title, and what `card_section` says."""
    title, _, text = base.partition("\n")
    began = f"This model began as {title.lstrip('# ')}, of which all is said but what stands under Taught."
    return f"# {name}\n\n{began}\n{text}\n{section}"


def card_section(report: Report, head: KnownHead) -> str:
    """What the model card says of lessons, and of the head that they made, in Markdown."""
    changes = [
        f"| {change.generator} | {'taught' if change.new else 'known before'} | {change.faces} | "
        f"{change.photographs} | {_text(change.before)} | {_text(change.after)} |"
        for change in report.changes
    ]
    alarms = [
        f"| {one.name} | {one.faces} | {_percent(one.known)} | {_percent(one.verdict)} | {one.calibrating} |"
        for one in report.alarms
    ]
    now = (
        f"Calibrated on {head.memory.calibrated_on} faces; the verdict's margin for photographs of others is "
        f"{head.margin:g}."
    )
    parts = ["## Taught", now, _CHANGES, _table(*_CHANGES_COLUMNS, rows=changes)]
    if alarms:
        parts += [_ALARMS, _table(*_ALARMS_COLUMNS, rows=alarms)]
    return "\n\n".join(parts) + "\n"


_CHANGES = """\
AUC of the known channel against photographs, with 95 % intervals. New generators: on pictures kept apart, by a
head that learnt from the other half. Known before: on the faces remembered, which it learnt from; the difference
counts."""
_CHANGES_COLUMNS = ("generator", "", "faces", "photographs", "before", "after")
_ALARMS = f"""\
Photographs flagged before they were taught, at a nominal {100 * defaults.ALPHA:g} %, with 95 % intervals. Where
it is far more, the model did not know such photographs. Those of that name that calibrate now keep the promise for
others like them."""
_ALARMS_COLUMNS = ("photographs", "faces", "by the known channel", "verdict", "calibrate now")


def _table(*columns: str, rows: Sequence[str]) -> str:
    return "\n".join([*markdown_head(*columns), *rows])


def _extended(memory: Memory, lessons: Sequence[Lesson], *, whole: bool) -> Memory:
    """The memory with the lessons: of generators the half to learn from, or all; photographs that judge calibrate,
    and so no head learns from them."""
    for lesson in lessons:
        learn, judge = lesson.halves
        if lesson.generated:
            uses = {LEARN: list(lesson.faces) if whole else learn}
        else:
            uses = {LEARN: learn, CALIBRATE: judge}
        for use, faces in uses.items():
            if faces:
                memory = remembering(
                    memory, lesson.name, lesson.generated, faces, use, taught=lesson.generated
                )
    return memory


def remembering(
    memory: Memory, name: str, generated: bool, faces: Sequence[Studied], use: int, *, taught: bool = False
) -> Memory:
    """A memory with more faces of a set: to LEARN from, as they are and handed on once; to CALIBRATE, all looks.

    `taught`: see `Memory.add`.
    """
    looks = slice(2 if use == LEARN else None)
    features = np.stack([face.features[looks] for face in faces])
    unusual = np.stack([face.unusual[looks] for face in faces])
    return memory.add(name, generated, features, unusual, use, taught=taught)


def _change(
    name: str, new: bool, fake: npt.ArrayLike, real: npt.ArrayLike, heads: tuple[KnownHead, KnownHead]
) -> Change:
    before, after = (measures(head.score(real), head.score(fake), threshold=0.0)["auc"] for head in heads)
    return Change(name, new, len(np.asarray(fake)), len(np.asarray(real)), before, after)


def _alarms(lesson: Lesson, before: KnownHead, after: KnownHead) -> Alarms:
    scores = before.score(np.stack([face.plain for face in lesson.faces]))
    unusual = [face.unusual[0] for face in lesson.faces]
    p_values = before.p_values(scores), before.fused_p(scores, unusual)
    groups = lesson.groups.astype(np.str_)
    known, verdict = (rate(p <= defaults.ALPHA, groups=groups) for p in p_values)
    return Alarms(lesson.name, len(lesson.faces), known, verdict, _calibrating(after.memory, lesson.name))


def _calibrating(memory: Memory, name: str) -> int:
    """How many faces of a set calibrate."""
    mine = memory.sets == memory.names.index(name)
    return int((memory.first & memory.rows(CALIBRATE) & mine).sum())


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
