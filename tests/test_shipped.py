"""The shipped model: its first channel is the one that never saw a generated picture, whatever stands beside it."""

from pathlib import Path

import numpy as np
import pytest

from lensborn.bundle import SHIPPED, read_bundle
from lensborn.detector import Detector

#: SHA-256 of the first channel's files, as they were before there was a second.
FIRST = {
    "calibration.safetensors": "a565b32524746242b5d9561ce1a99e3a9f6cad358262a698eada142818715180",
    "density.safetensors": "f9d80edf67c8d686bddcf142870a8d65da42b30cff62ccec64ffb642c8b6b688",
    "encoder.bin": "89453a1705c2dbaa7a399c418b59b8f1025545f242811c977645d783b071d157",
    "encoder.xml": "b4e0fa4726680cbc5968d4fba62ce07af08c7e4c17b444cb8a24df06044718b2",
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
    again = type(known.head).learn(known.head.memory)
    scores = known.head.score(known.head.memory.features)
    np.testing.assert_allclose(again.score(known.head.memory.features), scores, atol=0.01)


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
