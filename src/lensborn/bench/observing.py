"""The one pass over the pictures: every contestant and both audits look at every view.

What was seen of a chunk of pictures is kept in a folder, under a hash of the pictures' bytes, the conditions and
the contestants: a run that was cut off goes on where it was, and nothing stale is used.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import lensborn
from lensborn.bench.audit import Container, highpass_statistics, read_container
from lensborn.bench.contestants import (
    Contestant,
    ContestantError,
    EncoderContestant,
    Floating,
    FunctionContestant,
    check_names,
)
from lensborn.bench.protocols import Reason, Seen, is_delivery, native_crop, show
from lensborn.bench.render import to_csv, write
from lensborn.bench.views import View
from lensborn.datasets.pictures import Picture
from lensborn.disk import whole_file
from lensborn.photo import UnreadableError

CHUNK = 128  # pictures whose results are kept together
BATCH = 32  # pictures shown to the contestants at once, fewer where they are large:
BATCH_PIXELS = 48_000_000

Progress = Callable[[int], None]  # called with the number of pictures just done


@dataclass(frozen=True)
class Condition:
    """What was seen of all pictures in one condition; rows are NaN where `reasons` says why.

    `texture`: (N, T), see `audit.highpass_statistics`. `observed`: (N, D) of each contestant by name; in steps of
    `delivery`, and for contestants that are not refitted, D = 1: the score itself.
    """

    reasons: list[Reason | None]
    containers: list[Container | None]
    texture: NDArray[np.float64]
    observed: dict[str, Floating]


@dataclass(frozen=True)
class Observed:
    """Everything that the tables are made of. `sides`: of the face crops, px, 0 without a face."""

    pictures: list[Picture]
    sha256: list[str]
    sides: NDArray[np.float64]
    conditions: dict[str, Condition]


def observe(
    pictures: Sequence[Picture],
    conditions: Sequence[str],
    contestants: Sequence[Contestant],
    *,
    keep: Path | None = None,
    progress: Progress = lambda _: None,
) -> Observed:
    """Show every picture in every condition to every contestant; `keep`: a folder for what a run has seen.

    A picture that a contestant was made from is measured for none of them: its reason is "seen". Raises
    ContestantError as `check_names` does, and where a function or table scores nothing.
    """
    check_names(contestants)
    resumable = keep is not None and all(contestant.sha256 for contestant in contestants)
    parts: list[Observed] = []
    for start in range(0, len(pictures), CHUNK):
        chunk = list(pictures[start : start + CHUNK])
        kept = keep / f"{_key(chunk, conditions, contestants)}.safetensors" if keep and resumable else None
        part = _read(kept, chunk) if kept else None
        if part is None:
            part = _observe_chunk(chunk, conditions, contestants, progress)
            if kept:
                _write(kept, part)
        else:
            progress(len(chunk))
        parts.append(part)
    observed = _joined(parts, conditions)
    for contestant in contestants:
        if isinstance(contestant, FunctionContestant):
            _check_says_something(contestant, observed)
    return observed


def _check_says_something(contestant: FunctionContestant, observed: Observed) -> None:
    """Raise ContestantError where pictures were shown and none has a score: names that do not match, say."""
    seen = observed.conditions.values()
    shown = any(reason is None for one in seen for reason in one.reasons)
    if shown and not any(has_row(one.observed[contestant.name]).any() for one in seen):
        raise ContestantError(
            f"{contestant.name} gave no picture a score: a table must name file, set and condition as --views does"
        )


def own_scores(contestant: Contestant, name: str, condition: Condition) -> NDArray[np.float64]:
    """The contestant's own scores (N,) in the condition of that name, NaN where there is none."""
    observed = condition.observed[contestant.name]
    there = has_row(observed)
    scores = np.full(len(observed), math.nan)
    if there.any():
        rows = observed[there]
        scores[there] = contestant.scores(rows) if keeps_features(contestant, name) else rows[:, 0]
    return scores


def has_row(observed: Floating) -> NDArray[np.bool_]:
    """Which pictures have an observation; where there is none at all, rows are empty."""
    return np.asarray(np.isfinite(observed).all(axis=1) & (observed.shape[1] > 0))


def keeps_features(contestant: Contestant, condition: str) -> bool:
    """Whether a contestant's observations in a condition are features, not scores."""
    return contestant.refits and not is_delivery(condition)


def _observe_chunk(
    pictures: list[Picture], conditions: Sequence[str], contestants: Sequence[Contestant], progress: Progress
) -> Observed:
    rows: dict[str, list[Condition]] = {condition: [] for condition in conditions}
    sha256: list[str] = []  # not the pictures themselves: a batch's pixels are let go with it
    sides: list[float] = []
    known = frozenset().union(*(contestant.seen for contestant in contestants))
    for batch in _batches(show(pictures, conditions, known)):
        sha256 += [seen.sha256 for seen in batch]
        sides += [seen.side for seen in batch]
        for condition in conditions:
            rows[condition].append(_observe_views(batch, condition, contestants))
        progress(len(batch))
    return Observed(
        pictures,
        sha256,
        np.array(sides),
        {condition: _stacked(parts) for condition, parts in rows.items()},
    )


def _batches(shown: Iterable[Seen]) -> Iterator[list[Seen]]:
    batch: list[Seen] = []
    for seen in shown:
        batch.append(seen)
        if len(batch) == BATCH or sum(one.pixels for one in batch) > BATCH_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def _observe_views(batch: Sequence[Seen], condition: str, contestants: Sequence[Contestant]) -> Condition:
    found = [seen.views[condition] for seen in batch]
    there = [n for n, view in enumerate(found) if isinstance(view, View)]
    views = [view for view in found if isinstance(view, View)]
    containers: list[Container | None] = [None] * len(batch)
    for n, view in zip(there, views, strict=True):
        containers[n] = read_container(view.data, view.pixels.shape[1], view.pixels.shape[0])
    observed = {}
    for contestant in contestants:
        features = keeps_features(contestant, condition)
        if not (features or contestant.judges):
            continue
        values = contestant.observe(views) if views else np.empty((0, 0))
        if views and not features:
            values = contestant.scores(values)[:, None]
        observed[contestant.name] = _spread(values, there, len(batch))
    audited = [] if is_delivery(condition) else views  # what is delivered is audited before it sets out
    texture = np.array([highpass_statistics(native_crop(view)) for view in audited])
    texture = _spread(
        texture.reshape(len(views), -1) if audited else np.empty((len(views), 0)), there, len(batch)
    )
    reasons: list[Reason | None] = [None if isinstance(view, View) else view for view in found]
    return Condition(reasons, containers, np.asarray(texture, dtype=np.float64), observed)


def _spread(values: Floating, rows: Sequence[int], n: int) -> Floating:
    """(len(rows), D) to (n, D), NaN elsewhere."""
    out = np.full((n, values.shape[1]), math.nan, dtype=values.dtype)
    out[rows] = values
    return out


def _stacked(parts: Sequence[Condition]) -> Condition:
    names = list(dict.fromkeys(name for part in parts for name in part.observed))
    return Condition(
        [reason for part in parts for reason in part.reasons],
        [container for part in parts for container in part.containers],
        np.asarray(_rows([part.texture for part in parts]), dtype=np.float64),
        {name: _rows([part.observed[name] for part in parts if name in part.observed]) for name in names},
    )


def _rows(blocks: Sequence[Floating]) -> Floating:
    """Blocks (n, D) stacked; a block in which nothing was seen has D = 0 and becomes NaN."""
    width = max(block.shape[1] for block in blocks)
    dtype = next((block.dtype for block in blocks if block.shape[1]), np.dtype(np.float64))
    full: list[Any] = [
        block if block.shape[1] else np.full((len(block), width), math.nan, dtype=dtype) for block in blocks
    ]
    return np.concatenate(full)


def _joined(parts: Sequence[Observed], conditions: Iterable[str]) -> Observed:
    return Observed(
        [picture for part in parts for picture in part.pictures],
        [sha256 for part in parts for sha256 in part.sha256],
        np.concatenate([part.sides for part in parts]),
        {name: _stacked([part.conditions[name] for part in parts]) for name in conditions},
    )


def export_views(
    pictures: Sequence[Picture], conditions: Sequence[str], folder: Path, *, progress: Progress
) -> dict[Reason, int]:
    """Write every view as a file below `folder`, and views.csv: condition, set, file, view, box.

    Returns how many views there are not, by reason.

    A detector that cannot be called from Python scores these files; its table of condition, file and score is then
    measured as any detector is.
    """
    rows: list[dict[str, Any]] = []
    missing: Counter[Reason] = Counter()
    for seen in show(pictures, conditions):
        for condition, view in seen.views.items():
            if not isinstance(view, View):
                missing[view] += 1
            else:
                codec = read_container(view.data, 1, 1).codec.lower()
                # named by a hash: a picture's name may come from a stranger's table
                name = hashlib.sha256(f"{seen.picture.set}\t{view.name}".encode("utf-8", "surrogatepass"))
                path = folder / condition.replace("/", "-") / f"{name.hexdigest()[:16]}.{codec}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(view.data)
                x, y, width, height = view.box
                place = {
                    "view": path.relative_to(folder).as_posix(),
                    "x": x,
                    "y": y,
                    "width": width,
                    "height": height,
                }
                rows.append({"condition": condition, "set": view.set, "file": view.name, **place})
        progress(1)
    write(folder, {"views.csv": to_csv(rows)})
    return dict(missing)


# --- what a run has seen, on disk ---------------------------------------------------------------------


def _key(pictures: Sequence[Picture], conditions: Sequence[str], contestants: Sequence[Contestant]) -> str:
    kinds = [one.kind if isinstance(one, EncoderContestant) else "" for one in contestants]
    what: dict[str, Any] = {
        "pictures": [[picture.set, picture.name, _digest(picture)] for picture in pictures],
        "conditions": list(conditions),
        "contestants": [[one.name, one.sha256, one.refits] for one in contestants],
        "kinds": kinds,  # one checkpoint says other things when it is read as another kind
        "lensborn": lensborn.__version__,
    }
    return hashlib.sha256(json.dumps(what).encode("utf-8", "backslashreplace")).hexdigest()


def _digest(picture: Picture) -> str:
    try:
        return hashlib.sha256(picture.read()).hexdigest()
    except UnreadableError:
        return ""


def _write(path: Path, part: Observed) -> None:
    tensors: dict[str, Any] = {"sides": part.sides}
    notes: dict[str, Any] = {"sha256": part.sha256, "conditions": {}}
    for name, condition in part.conditions.items():
        tensors[f"{name}\ttexture"] = condition.texture
        tensors |= {f"{name}\tobserved\t{who}": values for who, values in condition.observed.items()}
        containers = [container and asdict(container) for container in condition.containers]
        notes["conditions"][name] = {"reasons": condition.reasons, "containers": containers}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    with whole_file(path) as file:
        file.write(save(tensors, {"notes": json.dumps(notes)}))


def _read(path: Path, pictures: list[Picture]) -> Observed | None:
    """What an earlier run has seen of these pictures; None where there is nothing, or nothing whole."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            tensors: Mapping[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes = json.loads(file.metadata()["notes"])
    except (SafetensorError, KeyError, ValueError, OSError):
        return None
    conditions = {}
    for name, note in notes["conditions"].items():
        containers = [values and Container(**values) for values in note["containers"]]
        prefix = f"{name}\tobserved\t"
        observed = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
        conditions[name] = Condition(note["reasons"], containers, tensors[f"{name}\ttexture"], observed)
    return Observed(pictures, notes["sha256"], tensors["sides"], conditions)
