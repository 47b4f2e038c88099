"""Fitting the mixture: time and held-out likelihood, beside scikit-learn's defaults; prints Markdown.

    python benchmarks/mixture.py [--corpus CORPUS [--model BUNDLE] [--keep FILE]] [--faces 25000]
        [--held-out 4000] [--components 8]

With a corpus (docs/training.md), features are those of a bundle's encoder on its crops, each delivered in several
ways as in training: fitted to the sources that the encoder learnt from, held out are the others. Without one they
are drawn: heavy-tailed clusters, whose variances fall off as those of features do.

scikit-learn's `GaussianMixture(n_components)` is left as it is otherwise: full covariances, k-means, float64, 100
steps, a tolerance of 1e-3, and 1e-6 on every variance. Everything is a density of the same features in all their
dimensions, so that mean log-likelihoods of the faces held out, in nats, can be compared. The ways run one after the
other, with as many threads of linear algebra as OPENBLAS_NUM_THREADS says; on a busy machine one is best, and the
processor's time says more than that of the clock.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from common import print_table, title
from sklearn.mixture import GaussianMixture

from lensborn import defaults
from lensborn.datasets.corpus import Crop, read_corpus, split_of
from lensborn.delivery import Delivery, delivered_face
from lensborn.density import fit_mixture
from lensborn.detector import Detector
from lensborn.graph import cores
from lensborn.photo import read_photo

TIMES = 5
TARGET = f"{TIMES} times as fast, and as likely?"
SHRINKAGES = (0.0, 0.1)  # none, and what docs/experiments.md chose
LEARNT_FROM = ("train", "validate")
CLUSTERS, FALL, TAIL = 12, 1.2, 5  # of drawn features: number, exponent of the variances, degrees of freedom

Features = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--model", type=Path, help="the bundle; the shipped one, if left out")
    parser.add_argument(
        "--keep", type=Path, help="an .npz with the features of the corpus, written where missing"
    )
    parser.add_argument("--faces", type=int, default=25_000)
    parser.add_argument("--held-out", type=int, default=4_000)
    parser.add_argument("--components", type=int, default=defaults.N_COMPONENTS)
    parser.add_argument("--seed", type=int, default=defaults.SEED)
    arguments = parser.parse_args()
    detector = Detector.load(arguments.model)
    print(title(detector, "numpy", "scikit-learn"))
    numbers = (arguments.faces, arguments.held_out)
    if arguments.corpus:
        what = "features of photographs"
        of_corpus = partial(features_of_photographs, detector, arguments.corpus, numbers, arguments.seed)
        fitted, held_out = kept(arguments.keep, of_corpus) if arguments.keep else of_corpus()
    else:
        what = "drawn features"
        fitted, held_out = drawn_features(numbers, arguments.seed)
    print(
        f"{len(fitted):,} x {fitted.shape[1]} {what}, {len(held_out):,} held out, "
        f"{arguments.components} components, seed {arguments.seed}\n"
    )
    head = ("fitted by", "seconds", "of a processor", "steps", "nats, fitted", "nats, held out", TARGET)
    print_table(head, compared(fitted, held_out, arguments.components, arguments.seed))


def compared(fitted: Features, held_out: Features, k: int, seed: int) -> Iterator[Sequence[str]]:
    """A row a way to fit; the first is the rival of the others."""
    rival: Measured | None = None
    for name, fit in ways(k, seed).items():
        began, worked = time.perf_counter(), time.process_time()
        steps, log_likelihood = fit(fitted)
        seconds, work = time.perf_counter() - began, time.process_time() - worked
        found = Measured(seconds, work, log_likelihood(fitted).mean(), log_likelihood(held_out).mean())
        cells = (f"{seconds:.1f}", f"{work:.1f}", steps, f"{found.fitted:.1f}", f"{found.held_out:.1f}")
        yield name, *cells, against(found, rival) if rival else ""
        rival = rival or found


class Measured(NamedTuple):
    """Seconds of the clock and of the processor; mean log-likelihoods in nats a face."""

    seconds: float
    work: float
    fitted: float
    held_out: float


def against(found: Measured, rival: Measured) -> str:
    """Whether the target was reached, and by how much."""
    times, more = rival.seconds / found.seconds, found.held_out - rival.held_out
    reached = "yes" if times >= TIMES and more >= 0 else "no"
    return f"{reached}: {times:.1f} times ({rival.work / found.work:.1f} of a processor), {more:+.1f} nats"


Fit = Callable[[Features], tuple[str, Callable[[Features], npt.NDArray[np.float64]]]]


def ways(k: int, seed: int) -> dict[str, Fit]:
    """Each takes features (N, D), and gives the steps of EM and the log-likelihood as a function of others."""
    return {"scikit-learn, defaults": partial(by_scikit_learn, k, seed)} | {
        f"`fit_mixture`, shrinkage {shrinkage:g}": partial(by_lensborn, k, seed, shrinkage)
        for shrinkage in SHRINKAGES
    }


def by_scikit_learn(
    k: int, seed: int, features: Features
) -> tuple[str, Callable[[Features], npt.NDArray[np.float64]]]:
    mixture = GaussianMixture(k, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it has not converged, the steps say so
        mixture.fit(features.astype(np.float64))
    return steps_of(mixture.n_iter_, mixture.converged_), lambda x: mixture.score_samples(
        x.astype(np.float64)
    )


def by_lensborn(
    k: int, seed: int, shrinkage: float, features: Features
) -> tuple[str, Callable[[Features], npt.NDArray[np.float64]]]:
    mixture = fit_mixture(features, n_components=k, shrinkage=shrinkage, seed=seed)
    return steps_of(mixture.record["em_steps"], mixture.record["converged"]), mixture.log_likelihood


def steps_of(number: int, converged: bool) -> str:
    return f"{number}" if converged else f"{number}, not converged"


# --- features -----------------------------------------------------------------------------------------


def features_of_photographs(
    detector: Detector, corpus: Path, numbers: tuple[int, int], seed: int
) -> tuple[Features, Features]:
    """To fit, and held out: no source is in both."""
    crops = read_corpus(corpus)
    learnt = [crop for crop in crops if split_of(crop.source) in LEARNT_FROM]
    others = [crop for crop in crops if split_of(crop.source) not in LEARNT_FROM]
    fitted, held_out = (
        delivered_features(detector, part, number, seed)
        for part, number in zip((learnt, others), numbers, strict=True)
    )
    return fitted, held_out


def kept(path: Path, compute: Callable[[], tuple[Features, Features]]) -> tuple[Features, Features]:
    """What was computed before, or now."""
    if not path.exists():
        np.savez(path, **dict(zip(("fit", "held"), compute(), strict=True)))
    with np.load(path) as arrays:
        return arrays["fit"], arrays["held"]


def delivered_features(detector: Detector, crops: Sequence[Crop], number: int, seed: int) -> Features:
    """So many features, of each crop as many as of any other, or one more."""

    def faces(index: int) -> npt.NDArray[np.uint8]:
        pixels, rng = read_photo(crops[index].file).pixels, np.random.default_rng([seed, index])
        copies = number // len(crops) + (index < number % len(crops))
        size = detector.encoder.size
        several = [delivered_face(pixels, size, Delivery(), rng) for _ in range(copies)]
        return np.array(several, np.uint8).reshape(-1, size, size, 3)

    with ThreadPoolExecutor(cores()) as pool:
        return np.concatenate([detector.encoder.encode(some) for some in pool.map(faces, range(len(crops)))])


def drawn_features(numbers: tuple[int, int], seed: int) -> tuple[Features, Features]:
    """From multivariate t distributions about `CLUSTERS` centres, each on axes of its own."""
    rng = np.random.default_rng(seed)
    d = defaults.FEATURE_DIM
    spread = np.arange(1, d + 1) ** (-FALL / 2)
    centres = rng.normal(size=(CLUSTERS, d)) * spread
    axes = [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(CLUSTERS)]
    total = sum(numbers)
    cluster = rng.integers(CLUSTERS, size=total)
    features = np.empty((total, d), np.float32)
    for number, (centre, turn) in enumerate(zip(centres, axes, strict=True)):
        own = cluster == number
        normal = rng.normal(size=(int(own.sum()), d)) * spread
        tails = np.sqrt(TAIL / rng.chisquare(TAIL, (len(normal), 1)))
        features[own] = centre + tails * normal @ turn
    return features[: numbers[0]], features[numbers[0] :]


if __name__ == "__main__":
    main()
