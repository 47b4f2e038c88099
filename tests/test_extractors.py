"""Encoders of others load from tiny checkpoints of the published structures, in every naming."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from lensborn.bench.extractors import load_extractor  # noqa: E402
from lensborn.pretext.backbones import BACKBONES, ResNet  # noqa: E402
from lensborn.pretext.extractors import Block, VisionTransformer  # noqa: E402

WIDTH, LAYERS, PATCH, SIDE, OUT = 128, 2, 8, 32, 48
CROPS = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def vision():
    torch.manual_seed(0)
    network = VisionTransformer(
        width=WIDTH, layers=LAYERS, patch=PATCH, side=SIDE, out=OUT, activation=nn.GELU()
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return {name: value.clone() for name, value in network.state_dict().items()}


def openai(tensors):
    """As OpenAI, FaRL and open_clip name it, with a text tower beside."""
    text = {
        "positional_embedding": torch.zeros(77, 64),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(64),
    }
    return {f"visual.{name}": value for name, value in tensors.items()} | text


def hugging_face(tensors):
    """The same tensors as transformers' CLIPModel names them."""
    names = {
        "class_embedding": "embeddings.class_embedding",
        "conv1.weight": "embeddings.patch_embedding.weight",
    }
    names |= {"positional_embedding": "embeddings.position_embedding.weight"}
    out = {}
    for name, value in tensors.items():
        if name == "proj":
            out["visual_projection.weight"] = value.T.contiguous()
        elif "attn.in_proj" in name:
            layer, end = name.split(".")[2], name.rpartition("_")[2]
            for which, part in zip("qkv", value.chunk(3), strict=True):
                out[f"vision_model.encoder.layers.{layer}.self_attn.{which}_proj.{end}"] = part.clone()
        else:
            new = names.get(name, name)
            for ours, theirs in {
                "transformer.resblocks": "encoder.layers", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
                "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm",
            }.items():  # fmt: skip
                new = new.replace(ours, theirs)
            out[f"vision_model.{new}"] = value
    return out | {"text_model.embeddings.position_embedding.weight": torch.zeros(77, 64)}


def test_every_naming_gives_the_same_features(tmp_path, vision):
    save_file(openai(vision), tmp_path / "openai.safetensors")
    torch.save({"state_dict": openai(vision)}, tmp_path / "farl.pth")
    save_file(hugging_face(vision), tmp_path / "hf.safetensors")
    found = [
        load_extractor(kind, tmp_path / file)
        for kind, file in (("clip", "openai.safetensors"), ("farl", "farl.pth"), ("clip", "hf.safetensors"))
    ]
    features = [one.encode(CROPS) for one in found]
    assert features[0].shape == (5, OUT)
    assert (found[0].size, found[0].feature_dim) == (SIDE, OUT)
    assert len(found[0].sha256) == 64
    for other in features[1:]:
        np.testing.assert_allclose(features[0], other, atol=1e-6)
    exact = load_extractor("openclip", tmp_path / "openai.safetensors").encode(CROPS)
    assert 1e-6 < np.abs(exact - features[0]).max() < 0.1  # GELU for quick GELU
    np.testing.assert_allclose(found[0].encode(CROPS[2:3]), features[0][2:3], atol=1e-5)  # batch or not
    with pytest.raises(ValueError, match="uint8"):
        found[0].encode(CROPS[:, :16])


def test_a_block_is_a_transformers_layer():
    torch.manual_seed(1)
    block = Block(WIDTH, nn.GELU()).eval()
    layer = nn.TransformerEncoderLayer(
        WIDTH, WIDTH // 64, 4 * WIDTH, dropout=0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    ours = block.state_dict()
    names = {
        "linear1": "mlp.c_fc",
        "linear2": "mlp.c_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "self_attn": "attn",
    }
    state = {}
    for name in layer.state_dict():
        head, _, rest = name.partition(".")
        state[name] = ours[f"{names[head]}.{rest}"]
    layer.load_state_dict(state)
    x = torch.randn(3, 17, WIDTH)
    torch.testing.assert_close(block(x), layer(x), atol=1e-5, rtol=1e-5)


def test_exif_as_language_and_imagenet_share_the_resnet(tmp_path):
    torch.manual_seed(2)
    resnet = ResNet()
    tensors = {f"model.visual.{name}": value for name, value in resnet.state_dict().items()}
    layer = nn.Linear(2048, 768)
    tensors |= {"model.visual.fc.weight": layer.weight.data, "model.visual.fc.bias": layer.bias.data}
    torch.save({"model": tensors, "epoch": 1}, tmp_path / "exif.pth")
    crops = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    exif = load_extractor("exif-as-language", tmp_path / "exif.pth")
    assert exif.encode(crops).shape == (1, 768)
    save_file(resnet.state_dict(), tmp_path / "resnet.safetensors")
    pooled = load_extractor("imagenet", tmp_path / "resnet.safetensors")
    assert pooled.encode(crops).shape == (1, 2048)
    with pytest.raises(ValueError, match="no last layer"):
        load_extractor("exif-as-language", tmp_path / "resnet.safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript, which is what is refused here
def test_other_files_are_refused_with_the_remedy(tmp_path, vision):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(traced, tmp_path / "script.pt")
    torch.save({"state_dict": Hostile()}, tmp_path / "pickle.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    missing = {name: value for name, value in openai(vision).items() if "ln_post" not in name}
    save_file(missing, tmp_path / "missing.safetensors")
    save_file(BACKBONES["efficientnet_lite0"].build().state_dict(), tmp_path / "other.safetensors")
    for file, word in {
        "script.pt": "TorchScript",
        "pickle.pth": "more than tensors",
        "cut.safetensors": "plain tensors",
        "missing.safetensors": "ln_post",
        "other.safetensors": "no vision transformer",
        "nowhere.pt": "not a file",
    }.items():
        with pytest.raises(ValueError, match=word):
            load_extractor("clip", tmp_path / file)
    with pytest.raises(ValueError, match="no kind"):
        load_extractor("magic", tmp_path / "cut.safetensors")


def test_our_own_encoder_needs_no_torch(tiny_bundle):
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from lensborn.bench.extractors import load_extractor\n"
        f"one = load_extractor('lensborn', Path({str(tiny_bundle.path)!r}))\n"
        "assert one.encode(np.zeros((2, one.size, one.size, 3), np.uint8)).shape == (2, one.feature_dim)\n"
        "assert len(one.sha256) == 64 and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
