"""Artificial face manipulations for the second pretext task (Zou et al. 2025, section 3.2).

A manipulated face is a photograph whose parts no lens has ordered so: both eyes mirrored in place, the mouth
mirrored or upside down, or the whole face sheared and stretched. Every pixel of every output, pristine or
manipulated, is sampled exactly once from the input by the same cubic interpolation under a small random
similarity, so that resampling says nothing about the label.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

PRISTINE = "pristine"
EYE_FLIP = "eye_flip"
MOUTH_FLIP = "mouth_flip"
MOUTH_UPSIDE_DOWN = "mouth_upside_down"
AFFINE = "affine"
PIECEWISE = "piecewise"

#: The four of the paper, drawn with equal probability by `draw_manipulation`; PIECEWISE is an option.
MANIPULATIONS = (EYE_FLIP, MOUTH_FLIP, MOUTH_UPSIDE_DOWN, AFFINE)

#: Landmarks that a flip in place needs; the others need none.
_NEEDS = {EYE_FLIP: [0, 1], MOUTH_FLIP: [0, 1, 3, 4], MOUTH_UPSIDE_DOWN: [0, 1, 3, 4]}
#: Half axes (along the eye line, across it) of the elliptic parts: eyes in eye distances, mouth in mouth widths.
EYE_RADII = (0.34, 0.22)
MOUTH_RADII = (0.72, 0.42)
#: An eye distance below this share of the crop means a profile: its parts can't be flipped in place.
MIN_EYE_DISTANCE = 0.12

Image = NDArray[np.uint8]  # (H, W, 3) RGB
Floats = NDArray[np.float64]


def draw_manipulation(
    landmarks: Floats | None, side: int, rng: np.random.Generator, names: Sequence[str] = MANIPULATIONS
) -> str:
    """Name of a manipulation that this face allows, drawn uniformly; without usable landmarks a global one.

    `landmarks` is (5, 2), in pixels of a crop with this `side`, NaN where one is not known, or None.
    """
    return str(rng.choice([name for name in names if allows(landmarks, side, name)] or [AFFINE]))


def allows(landmarks: Floats | None, side: int, name: str) -> bool:
    """Whether what a manipulation flips in place is known, of a face whose eyes are far enough apart."""
    if name not in _NEEDS:
        return True
    if landmarks is None or not np.isfinite(landmarks[_NEEDS[name]]).all():
        return False
    return bool(np.linalg.norm(landmarks[1] - landmarks[0]) >= MIN_EYE_DISTANCE * side)


def manipulate(crop: Image, landmarks: Floats | None, name: str, rng: np.random.Generator) -> Image:
    """Returns the face, (H, W, 3) uint8, after one manipulation, or `PRISTINE` for none.

    `landmarks` is (5, 2): left eye, right eye, nose, left and right mouth corner, as seen in the picture, in
    pixels of `crop`. Raises ValueError for an unknown name and for parts asked of a face without landmarks.
    """
    height, width = crop.shape[:2]
    pose = random_similarity(width, height, rng)
    if name == AFFINE:
        pose = pose @ random_distortion(width, height, rng)
    grid = affine_grid(pose, width, height)
    if name == PIECEWISE:
        grid = grid + random_displacement(width, height, rng)
    out = sample(crop, grid)
    for centre, axis, radii, mirrored in _parts(landmarks, name, min(width, height)):
        flipped = sample(crop, affine_grid(_reflection(centre, mirrored) @ pose, width, height))
        mask = soft_ellipse(grid, centre, axis, radii)[..., None]
        out = np.rint(mask * flipped + (1 - mask) * out).astype(np.uint8)
    return out


def affine_grid(matrix: Floats, width: int, height: int) -> Floats:
    """Where each output pixel is sampled: (H, W, 2) input coordinates x, y for a (3, 3) output-to-input map."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    return np.stack(
        [
            matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
            matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
        ],
        axis=-1,
    )


def sample(crop: Image, grid: Floats) -> Image:
    """Cubic interpolation of (H, W, 3) uint8 at `grid`, (H', W', 2); borders are mirrored."""
    points = grid.astype(np.float32)
    return np.asarray(
        cv2.remap(crop, points[..., 0], points[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101),
        dtype=np.uint8,
    )


def random_similarity(width: int, height: int, rng: np.random.Generator) -> Floats:
    """A (3, 3) map with up to 3 degrees, 4 % of zoom and 2 % of shift: the jitter of every face."""
    angle = np.deg2rad(rng.uniform(-3, 3))
    scale = rng.uniform(0.96, 1.0)
    shift = rng.uniform(-0.02, 0.02, 2) * (width, height)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return _about_centre(linear, width, height, shift)


def random_distortion(width: int, height: int, rng: np.random.Generator) -> Floats:
    """A (3, 3) map that no pose of a camera gives a face: an uneven stretch by 12 to 30 % and a shear."""
    stretch = 1 + rng.uniform(0.12, 0.30)
    axes = [stretch**0.5, stretch**-0.5]
    rng.shuffle(axes)
    shear = rng.choice([-1, 1]) * rng.uniform(0.08, 0.25)
    return _about_centre(np.diag(axes) @ np.array([[1.0, shear], [0.0, 1.0]]), width, height)


def random_displacement(width: int, height: int, rng: np.random.Generator, cells: int = 5) -> Floats:
    """A smooth random field, (H, W, 2) in pixels: `cells`² control points moved by up to 4 % of the side."""
    control = rng.uniform(-0.04, 0.04, (cells, cells, 2)) * (width, height)
    return np.asarray(cv2.resize(control, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float64)


def soft_ellipse(grid: Floats, centre: Floats, axis: Floats, radii: tuple[float, float]) -> Floats:
    """A mask in 0..1, (H, W): 1 inside the ellipse, falling smoothly to 0 over its outer 40 %.

    The ellipse lies in input coordinates (`centre`, unit vector `axis`, half axes `radii` in pixels); `grid`
    tells which input point each output pixel shows, so the mask follows the pose.
    """
    offset = grid - centre
    along = offset @ axis / radii[0]
    across = offset @ np.array([-axis[1], axis[0]]) / radii[1]
    rim = np.clip((1 - np.hypot(along, across)) / 0.4, 0, 1)
    return np.asarray(rim * rim * (3 - 2 * rim))


def _parts(
    landmarks: Floats | None, name: str, side: int
) -> list[tuple[Floats, Floats, tuple[float, float], Floats]]:
    """Parts to flip: centre, direction of the eye line, half axes, and the direction that is mirrored."""
    if name in (PRISTINE, AFFINE, PIECEWISE):
        return []
    if name not in (EYE_FLIP, MOUTH_FLIP, MOUTH_UPSIDE_DOWN):
        raise ValueError(f"unknown manipulation {name!r}: use one of {(*MANIPULATIONS, PIECEWISE, PRISTINE)}")
    if landmarks is None or not allows(landmarks, side, name):
        raise ValueError(
            f"{name} needs landmarks that this face lacks: draw a global manipulation for this face"
        )
    left_eye, right_eye, _, left_mouth, right_mouth = np.asarray(landmarks, dtype=np.float64)
    eye_distance = float(np.linalg.norm(right_eye - left_eye))
    axis = (right_eye - left_eye) / eye_distance
    if name == EYE_FLIP:
        radii = (EYE_RADII[0] * eye_distance, EYE_RADII[1] * eye_distance)
        return [(left_eye, axis, radii, axis), (right_eye, axis, radii, axis)]
    mouth_width = max(float(np.linalg.norm(right_mouth - left_mouth)), 0.5 * eye_distance)
    radii = (MOUTH_RADII[0] * mouth_width, MOUTH_RADII[1] * mouth_width)
    mirrored = axis if name == MOUTH_FLIP else np.array([-axis[1], axis[0]])
    return [((left_mouth + right_mouth) / 2, axis, radii, mirrored)]


def _reflection(centre: Floats, direction: Floats) -> Floats:
    """The (3, 3) mirror through `centre` that reverses the unit vector `direction`."""
    linear = np.eye(2) - 2 * np.outer(direction, direction)
    return _affine(linear, centre - linear @ centre)


def _about_centre(linear: Floats, width: int, height: int, shift: Floats | float = 0.0) -> Floats:
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    return _affine(linear, centre - linear @ centre + shift)


def _affine(linear: Floats, offset: Floats) -> Floats:
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = offset
    return matrix
