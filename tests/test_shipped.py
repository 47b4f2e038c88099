"""The shipped model: its first channel is the one that never saw a generated picture, whatever stands beside it."""

from pathlib import Path

import numpy as np
import pytest

from lensborn.bundle import SHIPPED, read_bundle
from lensborn.detector import Detector

#: SHA-256 of the first channel's files, as they were before the second was put beside them.
FIRST = {
    "calibration.safetensors": "4b54a188a3479b3349f39e24748150f6e9113878a299add67e0b407ea65fdfb1",
    "density.safetensors": "c984b5baf8b1ccc6d47ce3c4e940fd21c16b67b1df43444c2b56dba185f7e4f0",
    "encoder.bin": "8a6a08ec4ea4da193515cd3d938a573ee8aa894841b68302cf937fca2dbe5eba",
    "encoder.xml": "219f29ea5dc7aee3f9bda4eea5c96b09a1b19af45d93fda9be5369c1ce27eec3",
    "seen.txt": "6766df4c83163696da9e8b3e59c0290b970bba26d15dde73a93cbce34c109ef5",
}


def test_the_first_channel_is_the_same_to_the_bit() -> None:
    files = read_bundle(SHIPPED).manifest["files"]
    assert {name: files[name] for name in FIRST} == FIRST
    beside = set(files) - set(FIRST) - {"CARD.md"}
    assert beside == {"known.xml", "known.bin", "known.safetensors", "known-seen.txt"}


def test_its_head_can_be_learnt_again_from_what_it_remembers() -> None:
    """To the last digits: so that `teach` changes nothing but what it adds."""
    known = read_bundle(SHIPPED).known
    assert known is not None
    again = type(known.head).learn(known.head.memory, known.head.dim)
    features = known.head.memory.values(np.arange(len(known.head.memory.sets)))
    np.testing.assert_allclose(again.score(features), known.head.score(features), atol=0.01)


def test_the_card_names_what_the_second_channel_was_shown() -> None:
    known = read_bundle(SHIPPED).known
    assert known is not None
    memory = known.head.memory
    shown = [name for name, generated in zip(memory.names, memory.generated, strict=True) if generated]
    card = (SHIPPED / "CARD.md").read_text("utf-8")
    assert shown
    assert all(name in card for name in shown)
    assert "never saw a generated picture" in card


@pytest.mark.parametrize("name", ["generated-man", "generated-woman", "portrait-fujifilm-x-t10"])
def test_it_speaks_with_both_channels(examples: Path, name: str) -> None:
    (face,) = Detector.load().detect(examples / f"{name}.jpg").faces
    assert face.known_generator is not None
    assert 0 < face.p_value <= 1 and 0 < face.known_generator.p_value <= 1
