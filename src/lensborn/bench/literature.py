"""Published numbers that stand beside ours: as their authors report them, on their data, not measured here.

Means over generators only: the tables by generator are in the papers. Files as published, whole pictures; sizes and
codecs of real and generated pictures differ, and none of the papers audits that.
"""

from dataclasses import dataclass

from lensborn.bench.render import Table


@dataclass(frozen=True)
class Published:
    """One method's means. `accuracy`, `ap`, `auc`: in 0..1, None where not given."""

    method: str
    source: str
    data: str
    accuracy: float | None = None
    ap: float | None = None
    auc: float | None = None


_NINE = "nine generators against CelebA-HQ"
_PAPER = "Zou et al. 2025, arXiv 2501.02207"
PUBLISHED = (
    Published("ranking and manipulation (the method)", _PAPER, _NINE, 0.8663, 0.9301, 0.9343),
    Published("EXIF ranking only", _PAPER, _NINE, 0.6935, 0.8644),
    Published("manipulation only", _PAPER, _NINE, 0.7767, 0.8423),
    Published(
        "BLADES, one-class", "Zou et al. 2025, arXiv 2507.22824", "its own generators", 0.8801, None, 0.9505
    ),
    Published(
        "Forensic Self-Descriptions",
        "Nguyen et al., CVPR 2025, arXiv 2503.21003",
        "24 generators of any content",
        None,
        None,
        0.960,
    ),
)


def table() -> Table:
    """The published numbers, marked as such."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}".rstrip("0")

    rows = tuple(
        (one.method, one.source, one.data, cell(one.accuracy), cell(one.ap), cell(one.auc))
        for one in PUBLISHED
    )
    return Table(
        "As published: not measured here, on other data, files as published",
        ("method", "source", "data", "mean accuracy", "mean AP", "mean AUC"),
        rows,
        "They cannot be compared with the numbers above row by row: the pictures differ, their formats were not "
        "audited, and the threshold was taken from the features that the mixture was fitted to.",
    )
