"""A hand-made detector in a few lines: how strong is the finest detail of a face, for its coarser detail?

Generators and resizing leave less, or other, fine detail than a sensor does. It is a toy, and shows how any
detector gets its table beside lensborn's:

    PYTHONPATH=examples lensborn bench DATA --detector shipped --detector highpass_detector:score --out results
"""

import numpy as np


def score(views):
    """One number a view, higher = more anomalous. A view has `pixels`, `crop(size)`, and the coded `data`."""
    return [smoothness(view.crop(256).astype(float).mean(axis=2)) for view in views]


def smoothness(grey):
    """Log ratio of the energy of second differences two pixels apart to that of neighbours."""
    fine = grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2]
    coarse = grey[:, 4:] - 2 * grey[:, 2:-2] + grey[:, :-4]
    return np.log((coarse**2).mean() + 1) - np.log((fine**2).mean() + 1)
