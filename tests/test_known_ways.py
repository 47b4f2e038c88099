"""The ways of tools/known_ways.py: joint training moves encoder and heads."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
TOOLS = Path(__file__).parent.parent / "tools"
if not TOOLS.is_dir():
    pytest.skip("the tools are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(TOOLS))

import known_ways  # noqa: E402
from test_known_training import SMALL, faces  # noqa: E402, F401 - a fixture

SETTINGS = replace(SMALL, backbone="efficientnet_lite0_short", epochs=1, steps=2)


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_joint_training_moves_the_encoder_and_both_kinds_of_heads(faces, tmp_path):  # noqa: F811
    trainer = known_ways.Joint(SETTINGS, faces[:60], faces[60:], tmp_path / "run", workers=0)
    photographs = {
        "pristine": torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8),
        "manipulated": torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8),
        "tags": torch.rand(6, 4, dtype=torch.float64),
        "photo": torch.arange(6),
    }
    trainer.learn_from(iter([photographs] * 2))
    before = {name: value.clone() for name, value in trainer.heads.state_dict().items()}
    trainer.fit()
    assert changed(before, trainer.heads.state_dict()) == {"weight", "bias"}
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert trainer.rows[0]["loss_tasks"] > 0
