"""What an experiment varies, and the scores that follow: of features, how strange they are among photographs'.

A `Score` takes what an encoder saw of faces, (N, D), all its layers side by side, to (N,), higher = stranger.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from lensborn.density import Mixture, fit_mixture

RUNG = "rung"
BESIDE = "&"  # between encoders that look side by side
BEST = "best.safetensors"
HEADS = ("manipulation", "trace", "rank", "energy")
ENERGY_OF = "classes.make"
JOINS: dict[str, Callable[..., Any]] = {"sum": np.sum, "greatest": np.max}  # of several scores

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Setting:
    """One row."""

    encoder: str = "both"  # a run, a bundle, or a rung; rungs joined by & look side by side
    layers: tuple[int, ...] = (0,)  # of a rung: 0 the features, n the moments of stage n
    fit: str = "photographs"  # or a real set, half of which is then fitted and calibrated on, or all
    calibrate: str = ""  # own: each photographic set flags by half of its own, the other half is measured
    standard: bool = False  # each feature in deviations of the fitted photographs
    l2: bool = False  # features divided by their length
    dims: int = 64  # principal axes kept, 0: all
    whiten: bool = False  # principal axes scaled to one
    density: str = "mixture"  # see `term`; several joined by + are standardised and joined
    join: str = "sum"  # of several: or greatest
    weights: tuple[float, ...] = ()  # what each of several is multiplied by; (): 1
    against: str = ""  # a counterpart of photographs (ladder.py): the likelihood ratio of the two densities
    components: int = 4
    covariance: str = "full"
    shrinkage: float = 0.1
    neighbours: int = 5
    side: str = (
        "high"  # high: unlikely is strange; low: likely is strange; two: far from the median is strange
    )
    seeds: tuple[int, ...] = (0, 1, 2)


def parsed(source: str) -> tuple[str, str, Path]:
    """Counterpart, kind and path of a source [[COUNTERPART:]KIND:]PATH; "" for what it does not say."""
    rest, _, path = source.rpartition(":")
    counterpart, _, kind = rest.rpartition(":")
    return counterpart, kind, Path(path)


def fitted(
    setting: Setting, source: str, seed: int, photographs: Floats, counterparts: Floats | None
) -> Score:
    """The setting's score, fitted to what the encoder of `source` saw of photographs, and of their counterparts."""
    terms = [
        term(name, setting, source, seed, photographs, counterparts) for name in setting.density.split("+")
    ]
    if len(terms) == 1:
        return terms[0]
    own = [one(photographs) for one in terms]
    weights = setting.weights or (1.0,) * len(terms)
    parts = list(zip(terms, own, weights, strict=True))
    if setting.join not in JOINS:
        raise ValueError(f"no join {setting.join!r}: use {', '.join(JOINS)}")
    join = JOINS[setting.join]
    return lambda rows: np.asarray(
        join([weight * (one(rows) - mine.mean()) / mine.std() for one, mine, weight in parts], axis=0)
    )


def term(
    name: str, setting: Setting, source: str, seed: int, photographs: Floats, counterparts: Floats | None
) -> Score:
    """One score: by likelihood ("mixture"), by the distance to the nearest Gaussian's centre in its own metric
    ("component"), by that of neighbours ("knn"), by how long the features are ("length"), or by the run's own heads
    (see `head`)."""
    if name in HEADS:
        return head(name, source)
    if name == "length":
        features = columns_of((0,), source)
        return lambda rows: np.asarray(np.linalg.norm(rows[:, features], axis=1))
    prepare = prepared(setting, columns_of(setting.layers, source), photographs)
    known = prepare(photographs)
    if name == "knn":
        return lambda rows: neighbour_distance(prepare(rows), known, setting.neighbours)
    mixture = mixture_of(setting, known, seed)
    if name == "component":
        return lambda rows: component_distance(mixture, prepare(rows))
    if name != "mixture":
        raise ValueError(f"no density {name!r}: use mixture, component, knn, length, {', '.join(HEADS)}")
    if counterparts is None:
        return lambda rows: mixture.score(prepare(rows))
    other = mixture_of(setting, prepare(counterparts), seed)
    return lambda rows: mixture.score(prepare(rows)) - other.score(prepare(rows))


def mixture_of(setting: Setting, rows: Floats, seed: int) -> Mixture:
    """The setting's mixture, fitted to rows (N, d)."""
    return fit_mixture(
        rows.astype(np.float32),
        n_components=setting.components,
        covariance=setting.covariance,  # type: ignore[arg-type]
        shrinkage=setting.shrinkage,
        seed=seed,
    )


def columns_of(layers: Sequence[int], source: str) -> Any:
    """An index of the columns of some layers. Raises ValueError where an encoder has no such layer."""
    sides = [parsed(one) for one in source.split(BESIDE)]
    if all(kind == RUNG for _, kind, _ in sides):
        from ladder import columns, layer_widths  # noqa: PLC0415 - torch

        starts = np.cumsum([0, *(sum(layer_widths(path)) for _, _, path in sides)])
        return np.concatenate(
            [start + columns(path, layers) for start, (_, _, path) in zip(starts, sides, strict=False)]
        )
    if len(sides) > 1:
        raise ValueError(f"rungs alone look side by side, not {source}")
    if any(layers):
        raise ValueError(f"layers are known of rungs alone, not of {source}")
    return slice(None)


def prepared(setting: Setting, part: Any, photographs: Floats) -> Score:
    """Some columns, their deviations, length, principal axes and scale, learnt from the fitted photographs."""
    deviations = np.maximum(photographs[:, part].std(axis=0), 1e-6) if setting.standard else 1.0

    def unit(rows: Floats) -> Floats:
        mine = rows[:, part] / deviations
        return mine / np.linalg.norm(mine, axis=1, keepdims=True) if setting.l2 else mine

    centre = unit(photographs).mean(axis=0)
    _, singular, axes = np.linalg.svd(unit(photographs) - centre, full_matrices=False)
    kept = axes[: setting.dims or len(axes)]
    scale = singular[: len(kept)] / math.sqrt(len(photographs)) if setting.whiten else np.ones(len(kept))
    return lambda rows: np.asarray((unit(rows) - centre) @ kept.T / scale)


def neighbour_distance(rows: Floats, known: Floats, k: int) -> Floats:
    """Distance to the k-th nearest fitted photograph; a photograph is not its own neighbour."""
    squares = (rows**2).sum(1)[:, None] + (known**2).sum(1) - 2 * rows @ known.T
    squares[squares < 1e-6] = math.inf
    return np.asarray(np.sqrt(np.maximum(np.partition(squares, k - 1, axis=1)[:, k - 1], 0)))


def component_distance(mixture: Mixture, rows: Floats) -> Floats:
    """Mahalanobis distance to the centre of the Gaussian, of full covariance, that most likely gave each row.

    Of rows in d dimensions it is about the square root of d where they are typical; nearer is strange, too.
    """
    y = rows - mixture.offset
    distances, joint = [], []
    for weight, mean, factor in zip(mixture.weights, mixture.means, mixture.precisions, strict=True):
        squares = (((y - mean) @ factor) ** 2).sum(axis=1)
        distances.append(np.sqrt(squares))
        joint.append(math.log(weight) + np.log(np.diag(factor)).sum() - squares / 2)
    return np.asarray(np.array(distances)[np.argmax(joint, axis=0), np.arange(len(rows))])


def head(name: str, source: str) -> Score:
    """The run's own evidence: the logit of a task, how far the tag scores lie from their mean ("rank"), or the
    energy of the classes of makes (Liu et al., 2020)."""
    (_, _, run), part = parsed(source), columns_of((0,), source)
    tensor = ENERGY_OF if name == "energy" else name
    with safe_open(run / BEST, framework="numpy") as file:
        weight, bias = file.get_tensor(f"{tensor}.weight"), file.get_tensor(f"{tensor}.bias")

    def logits(rows: Floats) -> Floats:
        return np.asarray(rows[:, part] @ weight.T + bias)

    if name == "rank":
        return lambda rows: np.asarray(np.linalg.norm(logits(rows), axis=1))
    if name == "energy":
        return lambda rows: np.asarray(-np.logaddexp.reduce(logits(rows), axis=1))
    return lambda rows: logits(rows)[:, 0]


def sided(side: str, scores: Floats, reference: Floats) -> Floats:
    """Which side of the photographs' scores is strange; `reference`: scores of photographs kept apart."""
    if side == "two":
        return np.abs(scores - np.median(reference))
    return -scores if side == "low" else scores
