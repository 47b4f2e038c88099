"""Plots of a benchmark as SVG, for light and dark pages: by matplotlib, and t-SNE by openTSNE.

The same numbers give the same bytes. Colours are those of Okabe and Ito (2008), told apart by colour-blind readers.
Both libraries come with `pip install 'lensborn[bench]'`.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensborn.report import printable

Row = dict[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LINES = 8  # more in one panel cannot be told apart
_STYLE: Any = {
    "svg.hashsalt": "lensborn", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False,
    "text.parse_math": False,  # a set's name may hold any sign
}  # fmt: skip
_UNITS = {
    "jpeg": "JPEG quality", "webp": "WebP quality", "resize": "size, %", "blur": "blur, sigma in px",
    "screenshot": "screen's pixel ratio", "crop": "share kept, %",
}  # fmt: skip


class PlotError(RuntimeError):
    """A plot cannot be drawn; the message names the remedy."""


def check(*, t_sne: bool = False) -> None:
    """Raises PlotError where a library is missing: to be known before a long run, not after it."""
    for name in ("matplotlib", "openTSNE")[: 2 if t_sne else 1]:
        if importlib.util.find_spec(name) is None:
            raise PlotError(f"this needs {name}: pip install 'lensborn[bench]'")


def auc_plot(rows: Sequence[Row], path: Path) -> None:
    """AUC of each generated set with its interval, a colour a detector.

    Rows: detector, generated, auc, auc_low, auc_high.
    """
    sets, detectors = _names(rows, "generated"), _names(rows, "detector")
    with _figure(path, (7, 1 + 0.22 * len(sets) * max(1, len(detectors) / 2))) as axes:
        for n, (detector, colour, marker) in enumerate(_styles(detectors)):
            mine = [row for row in rows if row["detector"] == detector]
            offset = (n - (len(detectors) - 1) / 2) * 0.8 / len(detectors)
            places = [sets.index(row["generated"]) + offset for row in mine]
            axes.errorbar(
                [row["auc"] for row in mine],
                places,
                xerr=_errors(mine, "auc"),
                fmt=marker,
                color=colour,
                markersize=4,
                linewidth=1,
                label=detector,
            )
        axes.set_yticks(range(len(sets)), [printable(name) for name in sets])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlabel("AUC against all photographs (0.5: chance), 95 % intervals")
        _legend(axes)


def delivery_plot(rows: Sequence[Row], path: Path) -> None:
    """AUC (above) and share of photographs flagged (below) over the strength of each family of steps.

    Of more than LINES sets the mean is drawn, from the lowest to the highest. Rows with family and strength: of
    generated sets, generated, auc, auc_low, auc_high; of photographic ones, real, false_alarms and its interval.
    """
    families = _names(rows, "family")
    kinds = (("generated", "auc", "AUC"), ("real", "false_alarms", "photographs flagged"))
    with _figure(path, (2 * len(families) + 1.5, 5), (2, len(families))) as grid:
        for (key, value, label), line in zip(kinds, grid, strict=True):
            mine = [row for row in rows if value in row and (value == "auc") == ("generated" in row)]
            if len(_names(mine, key)) > LINES:
                mine = _ranges(mine, key, value)
            for axes, family in zip(line, families, strict=True):
                for name, colour, marker in _styles(_names(mine, key)):
                    points = [row for row in mine if row["family"] == family and row[key] == name]
                    points.sort(key=lambda row: float(row["strength"]))
                    axes.errorbar(
                        [row["strength"] for row in points],
                        [row[value] for row in points],
                        yerr=_errors(points, value),
                        fmt=f"{marker}-",
                        color=colour,
                        markersize=3,
                        linewidth=1,
                        label=name,
                    )
                if value == "auc":
                    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
                else:
                    axes.set_xlabel(_UNITS.get(family, family))
                axes.set_ylim(0, 1)
                axes.tick_params(labelleft=axes is line[0])
            line[0].set_ylabel(label)
            _legend(line[-1])


def components_plot(rows: Sequence[Row], path: Path) -> None:
    """AUC against the number of Gaussians, a line a detector and generated set.

    Rows: detector, generated, n_components, auc, auc_low, auc_high.
    """
    with _figure(path, (7, 4)) as axes:
        lines = list(dict.fromkeys((row["detector"], row["generated"]) for row in rows))
        several = len(_names(rows, "detector")) > 1
        for line, colour, marker in _styles(lines):
            mine = [row for row in rows if (row["detector"], row["generated"]) == line]
            axes.errorbar(
                [row["n_components"] for row in mine],
                [row["auc"] for row in mine],
                yerr=_errors(mine, "auc"),
                fmt=f"{marker}-",
                color=colour,
                markersize=4,
                linewidth=1,
                label=", ".join(line) if several else line[1],
            )
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 1)
        axes.set_xlabel("Gaussians in the mixture")
        axes.set_ylabel("AUC, 95 % intervals")
        _legend(axes)


def reliability_plot(rows: Sequence[Row], path: Path) -> None:
    """How often it was so, over the probability given, a line a kind.

    Rows: kind, given, was.
    """
    with _figure(path, (5.5, 4)) as axes:
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        for kind, colour, marker in _styles(_names(rows, "kind")):
            mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: float(row["given"]))
            given, was = ([row[key] for row in mine] for key in ("given", "was"))
            axes.plot(given, was, f"{marker}-", color=colour, markersize=4, linewidth=1, label=kind)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("probability given")
        axes.set_ylabel("share generated")
        _legend(axes)


def flagged_plot(rows: Sequence[Row], path: Path) -> None:
    """Share of each set that is flagged, over the share of photographs that may be; a panel a detector.

    Photographs are dashed and belong on the diagonal, generated sets above it. Rows: panel, set, generated, alpha,
    flagged.
    """
    panels, sets = _names(rows, "panel"), _names(rows, "set")
    styles = {name: (colour, marker) for name, colour, marker in _styles(sets)}
    with _figure(path, (3.2 * len(panels) + 1.8, 3.6), (1, len(panels))) as grid:
        for panel, axes in zip(panels, grid[0], strict=True):
            axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
            for name in sets:
                mine = [row for row in rows if (row["panel"], row["set"]) == (panel, name)]
                colour, marker = styles[name]
                axes.plot(
                    [row["alpha"] for row in mine],
                    [row["flagged"] for row in mine],
                    "-" if mine and mine[0]["generated"] else "--",
                    color=colour,
                    marker=marker,
                    markersize=3,
                    linewidth=1,
                    label=name,
                )
            axes.set_title(printable(panel), fontsize=9)
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.set_xlabel("nominal false alarms")
            axes.tick_params(labelleft=axes is grid[0][0])
        grid[0][0].set_ylabel("share flagged")
        _legend(grid[0][-1])


def embedding_plot(points: ArrayLike, sets: Sequence[str], path: Path) -> None:
    """Points (N, 2), each of the set of that name."""
    points, names = np.asarray(points), np.array(sets)
    with _figure(path, (6.5, 5)) as axes:
        for name, colour, marker in _styles(list(dict.fromkeys(sets))):
            mine = points[names == name]
            axes.scatter(
                mine[:, 0], mine[:, 1], s=6, color=colour, marker=marker, linewidths=0, alpha=0.7, label=name
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("t-SNE: distances between groups mean little")
        _legend(axes)


def embed(features: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Points (N, 2) of features (N, D) by t-SNE (van der Maaten and Hinton 2008), by openTSNE.

    Raises PlotError where openTSNE is missing, and for fewer than 10 points.
    """
    check(t_sne=True)
    from openTSNE import TSNE  # noqa: PLC0415

    if len(features) < 10:
        raise PlotError(
            f"t-SNE of {len(features)} pictures shows nothing: give at least 10 that the encoder can look at"
        )
    perplexity = min(30, (len(features) - 1) / 3)
    model = TSNE(perplexity=perplexity, random_state=seed, n_jobs=1, neighbors="exact")
    return np.asarray(model.fit(np.asarray(features, dtype=np.float64)), dtype=np.float64)


@contextmanager
def _figure(path: Path, size: tuple[float, float], grid: tuple[int, int] | None = None) -> Iterator[Any]:
    """Axes, or a grid (rows, columns) of them, written to `path` aside and then renamed."""
    check()
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        yield figure.subplots(*grid, squeeze=False) if grid else figure.subplots()
        aside = path.with_name(f".{path.name}.new")
        figure.savefig(aside, format="svg", metadata={"Date": None})
    aside.replace(path)


def _styles(names: Sequence[Any]) -> Iterator[tuple[Any, str, str]]:
    """Each name with a colour and a marker; a second round of colours has other markers."""
    for n, name in enumerate(names):
        yield name, COLOURS[n % len(COLOURS)], MARKERS[(n + n // len(COLOURS)) % len(MARKERS)]


def _ranges(rows: Sequence[Row], key: str, value: str) -> list[Row]:
    """One line in the place of many: the mean over the sets at each step, and their range for an interval."""
    label = f"mean of {len(_names(rows, key))} sets, and range"
    steps: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        steps.setdefault((row["family"], row["strength"]), []).append(row[value])
    return [
        {"family": family, "strength": strength, key: label}
        | {value: sum(values) / len(values), f"{value}_low": min(values), f"{value}_high": max(values)}
        for (family, strength), values in steps.items()
    ]


def _errors(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """Lengths (2, N) of the intervals below and above the values."""
    ends = [(row[name] - row[f"{name}_low"], row[f"{name}_high"] - row[name]) for row in rows]
    return np.maximum(np.array(ends, dtype=np.float64).reshape(-1, 2).T, 0)


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        names = [printable(label) for label in labels]
        axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows if key in row))
