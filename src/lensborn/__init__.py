"""lensborn flags AI-generated faces as anomalies among photographs.

`import lensborn` is cheap: the detector, with OpenCV and OpenVINO behind it, is imported when first named.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensborn.detector import Detector

__all__ = ["Detector", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Detector":
        from lensborn.detector import Detector  # noqa: PLC0415  (the point of this function)

        return Detector
    raise AttributeError(f"module 'lensborn' has no attribute {name!r}")
