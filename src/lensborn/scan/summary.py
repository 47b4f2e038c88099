"""Counts of a table, and how many of its faces can be flagged at a chosen false-discovery rate.

Source: Benjamini and Hochberg, "Controlling the false discovery rate" (JRSS B, 1995); that it holds for conformal
p-values: Bates et al., "Testing for outliers with conformal p-values" (Annals of Statistics, 2023). That is for
p-values of one calibration set; to the combined ones (`KnownChannel.combined_p`), the largest of several, it is
applied without a proof. Conformal p-values take few values, so a table of any size is counted in little memory.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BINS = 20  # of the histogram, over 0..1, each with its upper end
COLUMNS = ("face", "status", "combined_p_value", "verdict")


@dataclass
class Tally:
    """What was counted so far: files by status, faces by verdict, judged faces by combined p-value."""

    files: Counter[str] = field(default_factory=Counter)
    faces: Counter[str] = field(default_factory=Counter)
    p_values: Counter[float] = field(default_factory=Counter)

    def add(self, columns: Mapping[str, list[Any]]) -> None:
        """Count the rows of a table, given as its `COLUMNS`."""
        for face, status, p, verdict in zip(*(columns[name] for name in COLUMNS), strict=True):
            if not face:  # one row a file: the first face, or none
                self.files[status] += 1
            if verdict is not None:
                self.faces[verdict] += 1
                if verdict != "unsure":
                    self.p_values[p] += 1


def tally(pieces: Iterable[Mapping[str, list[Any]]]) -> Tally:
    """Count a table, given piece by piece; see `Tally.add`."""
    counted = Tally()
    for columns in pieces:
        counted.add(columns)
    return counted


def benjamini_hochberg(p_values: Mapping[float, int], rate: float) -> tuple[int, float | None]:
    """How many of the p-values, each with its count, are flagged, and the largest of them (None: none is).

    With m p-values, it is the largest that is at most `rate` k / m, where k are at most as large. Among the
    flagged, the expected share of photographs like those calibrated on is then at most `rate`, for p-values of one
    calibration set.
    """
    m = sum(p_values.values())
    k, flagged, threshold = 0, 0, None
    for p in sorted(p_values):
        k += p_values[p]
        if p <= rate * k / m:
            flagged, threshold = k, p
    return flagged, threshold


def histogram(p_values: Mapping[float, int]) -> list[int]:
    """Counts in `BINS` equal bins of (0, 1], each with its upper end."""
    counts = [0] * BINS
    for p, count in p_values.items():
        counts[min(max(math.ceil(round(p * BINS, 9)), 1), BINS) - 1] += count
    return counts


def summary(counted: Tally, rate: float) -> dict[str, Any]:
    """The numbers of summary.json that come from the table. `rate`: of false discoveries, in (0, 1)."""
    flagged, threshold = benjamini_hochberg(counted.p_values, rate)
    return {
        "files": {name: counted.files[name] for name in ("ok", "no_face", "unreadable")},
        "faces": {name: counted.faces[name] for name in ("photographic", "ai_generated", "unsure")},
        "p_values": {"edges": [n / BINS for n in range(BINS + 1)], "counts": histogram(counted.p_values)},
        "false_discovery_rate": {
            "rate": rate,
            "faces": sum(counted.p_values.values()),
            "flagged": flagged,
            "threshold": threshold,
        },
    }
