"""How often the intervals of `lensborn bench` cover the truth, on simulated data sets.

    python benchmarks/interval_coverage.py [--simulations 4000] [--into docs/evaluation.md]

Binormal scores of several sizes and AUCs; 40 sources of equal size in the clustered rows, whose source makes 80 %
of a photograph's variance. Nominal: 0.95. Prints a table in Markdown, and writes it between the markers of a page.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
from scipy.stats import norm

from lensborn.bench import metrics
from lensborn.bench.render import write_block

SIZES = ((100, 100, False), (300, 100, False), (700, 300, False), (240, 240, True))
AUCS = (0.5, 0.75, 0.95)
REPLICATES = 400
SOURCES = 40


def truth(auc: float, n_real: int, n_fake: int) -> tuple[float, float, dict[str, float]]:
    """Shift of the generated scores, the threshold that flags 5 %, and every number of many pictures."""
    shift, threshold = norm.ppf(auc) * np.sqrt(2), norm.ppf(0.95)
    cut = np.linspace(-9, 9 + shift, 200_001)
    hits, alarms, share = norm.sf(cut - shift), norm.sf(cut), n_fake / (n_real + n_fake)
    precision = share * hits / np.maximum(share * hits + (1 - share) * alarms, 1e-300)
    found = norm.sf(threshold - shift)
    return shift, threshold, {
        "auc": auc,
        "ap": float(-np.trapezoid(precision, hits)),
        "tpr_at_1": norm.sf(norm.ppf(0.99) - shift),
        "tpr_at_5": found,
        "accuracy": (1 - share) * 0.95 + share * found,
        "balanced_accuracy": (0.95 + found) / 2,
        "found": found,
        "false_alarms": 0.05,
    }  # fmt: skip


def simulate(n_real: int, n_fake: int, clustered: bool, auc: float, simulations: int) -> dict[str, float]:
    """Share of the simulations in which the interval of each number covers the truth."""
    shift, threshold, known = truth(auc, n_real, n_fake)
    rng = np.random.default_rng(0)
    covered = dict.fromkeys(known, 0.0)
    for seed in range(simulations):
        real, groups = rng.normal(size=n_real), None
        if clustered:
            source = np.arange(n_real) % SOURCES
            real, groups = (
                np.sqrt(0.8) * rng.normal(size=SOURCES)[source] + np.sqrt(0.2) * real,
                source.astype(str),
            )
        fake = rng.normal(shift, 1, n_fake)
        found = metrics.measures(real, fake, threshold, real_groups=groups, replicates=REPLICATES, seed=seed)
        for name, interval in found.items():
            covered[name] += (
                math.nan if math.isnan(interval.low) else interval.low <= known[name] <= interval.high
            )
    return {name: count / simulations for name, count in covered.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    lines = [f"| real / generated | AUC | {' | '.join(metrics.MEASURES)} |"]
    lines.append("|" + " --- |" * (len(metrics.MEASURES) + 2))
    for (n_real, n_fake, clustered), auc in itertools.product(SIZES, AUCS):
        share = simulate(n_real, n_fake, clustered, auc, arguments.simulations)
        cells = " | ".join("-" if math.isnan(share[name]) else f"{share[name]:.3f}" for name in share)
        lines.append(f"| {n_real}{' of 40 sources' * clustered} / {n_fake} | {auc} | {cells} |")
        print(lines[-1], flush=True)
    if arguments.into:
        write_block(arguments.into, "coverage", "\n".join(lines))


if __name__ == "__main__":
    main()
