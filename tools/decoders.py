"""Autoencoders of many builds, trained on photographs alone, and the faces as they rebuild them.

    python tools/decoders.py --corpus FOLDER --init CHECKPOINT --out FOLDER

What a generator leaves in a picture it leaves on its way from a latent space to pixels, and an autoencoder goes
that way, too: rebuilt photographs stand for generated ones, without one. Smooth ones would be told by their blur
alone, so that most builds are also trained against a discriminator of patches, and all for likeness in the maps of
a network, as decoders of latent diffusion models are (Esser et al., "Taming transformers for high-resolution image
synthesis", 2021; Rombach et al., 2022). They differ in how they enlarge, in stride, normalisation and noise.

Writes OUT/NAME.safetensors for every build, once; then OUT/faces/*.png and OUT/rebuilt.csv: faces of training
sources by builds of `BUILDS`, faces of validation sources by those of `HELD_OUT`. A GPU needs six minutes, two
cores of a processor a day. `tools/ladder.py --rebuilt OUT` learns from them.
"""

import argparse
import csv
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom

from lensborn.datasets.corpus import Crop, read_corpus
from lensborn.delivery import resized
from lensborn.disk import whole_file
from lensborn.pretext.backbones import load_pretrained
from lensborn.pretext.corpus import native_face, split_crops
from lensborn.pretext.loop import repeatable_device, save_tensors, write_rows
from lensborn.pretext.model import Encoder, watched

Image = NDArray[np.uint8]

TABLE = "rebuilt.csv"
SIDES = (160, 257)  # px of a face when it is rebuilt
STEP = 16  # px: sides are its multiples
LARGE = 256  # px at which faces are kept while decoders learn
PATCH = 128  # px of what they learn from
PER_FACE = 2  # builds that rebuild a face
BATCH = 32
LR = 4e-4
ADVERSARIAL_FROM = 0.3  # of the steps
WIDTHS = (48, 96, 160, 224, 224)  # channels at stride 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Build:
    """How an autoencoder is made."""

    name: str
    stride: int
    up: str  # nearest, bilinear, transposed-3, transposed-4, shuffle
    norm: str = "group"  # or batch, none
    latent: int = 8  # channels
    noise: bool = False  # added between the layers of the decoder, as StyleGAN does
    adversarial: bool = True


BUILDS = (
    Build("nearest-8", 8, "nearest", latent=8),
    Build("nearest-4", 4, "nearest", latent=4),
    Build("nearest-16", 16, "nearest", latent=32),
    Build("shuffle-8", 8, "shuffle", latent=8),
    Build("transposed-4-4", 4, "transposed-4", norm="none", latent=4),
    Build("transposed-4-8", 8, "transposed-4", norm="batch", latent=8),
    Build("bilinear-8-noise", 8, "bilinear", norm="none", latent=8, noise=True),
    Build("nearest-8-plain", 8, "nearest", norm="none", latent=8, adversarial=False),
    Build("shuffle-4-plain", 4, "shuffle", norm="batch", latent=4, adversarial=False),
)
HELD_OUT = (
    Build("bilinear-16-noise", 16, "bilinear", latent=32, noise=True),
    Build("transposed-3-8", 8, "transposed-3", latent=8),
    Build("nearest-8-none", 8, "nearest", norm="none", latent=4),
)


# --- the networks ---------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two convolutions beside the input, normalised before each."""

    def __init__(self, cin: int, cout: int, norm: str, *, noise: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(norm, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, 1, 1))
        self.second = nn.Sequential(_norm(norm, cout), nn.SiLU(), nn.Conv2d(cout, cout, 3, 1, 1))
        self.beside = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.strength = nn.Parameter(torch.full((cout, 1, 1), 0.05)) if noise else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        y = self.first(x)
        if self.strength is not None:
            y = y + self.strength * torch.randn_like(y[:, :1])
        out: Tensor = self.beside(x) + self.second(y)
        return out


class Autoencoder(nn.Module):
    """Faces (N, 3, S, S) in -1..1, S a multiple of the stride, to the same."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        levels = build.stride.bit_length() - 1
        widths = WIDTHS[: levels + 1]
        down: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1)]
        for here, there in pairwise(widths):
            down += [nn.Conv2d(here, there, 3, 2, 1), Residual(there, there, "group")]
        self.encode = nn.Sequential(*down, nn.Conv2d(widths[-1], build.latent, 1))
        block = partial(Residual, norm=build.norm, noise=build.noise)
        up: list[nn.Module] = [nn.Conv2d(build.latent, widths[-1], 3, 1, 1), block(widths[-1], widths[-1])]
        for here, there in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up += [_larger(build.up, here, there), block(there, there)]
        self.decode = nn.Sequential(*up, nn.SiLU())
        self.last = nn.Conv2d(widths[0], 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.last(self.decode(self.encode(x).tanh()))
        return out


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(8, channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def _larger(kind: str, cin: int, cout: int) -> nn.Module:
    """Twice the side."""
    if kind == "shuffle":
        return nn.Sequential(nn.Conv2d(cin, 4 * cout, 3, 1, 1), nn.PixelShuffle(2))
    if kind == "transposed-4":
        return nn.ConvTranspose2d(cin, cout, 4, 2, 1)
    if kind == "transposed-3":
        return nn.ConvTranspose2d(cin, cout, 3, 2, 1, output_padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode=kind), nn.Conv2d(cin, cout, 3, 1, 1))


def discriminator(width: int = 64) -> nn.Sequential:
    """Pictures (N, 3, S, S) to logits of patches: of photographs they are high (Isola et al., 2017)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for factor in (1, 2):
        cin, cout = width * factor, width * factor * 2
        layers += [nn.Conv2d(cin, cout, 4, 2, 1), nn.GroupNorm(8, cout), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))


class Likeness(nn.Module):
    """How far two batches (N, 3, S, S) in -1..1 are in the maps of the first three stages of a trained network."""

    def __init__(self, init: Path) -> None:
        super().__init__()
        self.encoder = Encoder("efficientnet_lite0_short", 128)
        load_pretrained(self.encoder.backbone, init)
        self.eval().requires_grad_(False)
        self.maps = watched(self.encoder.backbone, (1, 2, 3))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """See the class."""
        self.maps.clear()
        self.encoder.trunk(127.5 * (torch.cat([one, other]) + 1))
        total = torch.zeros((), device=one.device)
        for maps in self.maps:
            unit = maps.float() / (maps.float().square().mean(1, keepdim=True) + 1e-4).sqrt()
            first, second = unit.chunk(2)
            total = total + (first - second).abs().mean()
        return total / len(self.maps)


# --- their training -------------------------------------------------------------------------------------


def pieces(faces: Tensor, generator: torch.Generator) -> Tensor:
    """A batch (BATCH, 3, PATCH, PATCH) in -1..1: faces (N, 3, LARGE, LARGE) uint8 at a side that is drawn, cut."""

    def draw(limit: int, count: int) -> list[int]:
        found: list[int] = torch.randint(limit, (count,), generator=generator).tolist()
        return found

    batch = faces[draw(len(faces), BATCH)].float() / 127.5 - 1
    side = PATCH + 32 * draw((LARGE - PATCH) // 32 + 1, 1)[0]
    if side < LARGE:
        batch = F.interpolate(batch, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    tops, lefts = draw(side - PATCH + 1, BATCH), draw(side - PATCH + 1, BATCH)
    cut = [f[:, y : y + PATCH, x : x + PATCH] for f, y, x in zip(batch, tops, lefts, strict=True)]
    return torch.stack(cut)


def train(build: Build, faces: Tensor, likeness: Likeness, steps: int) -> Autoencoder:
    """An autoencoder of faces (N, 3, LARGE, LARGE) uint8; the discriminator weighs as Esser et al. have it."""
    torch.manual_seed(zlib.crc32(build.name.encode()))
    generator = torch.Generator().manual_seed(0)
    network, judge = Autoencoder(build).to(faces.device), discriminator().to(faces.device)
    learners = [torch.optim.Adam(one.parameters(), lr=LR, betas=(0.5, 0.9)) for one in (network, judge)]
    precision = partial(torch.autocast, faces.device.type, torch.bfloat16)
    for step in track(range(steps), build.name):
        for learner in learners:
            learner.param_groups[0]["lr"] = LR * min(1, (step + 1) / 50) * (1 - 0.9 * step / steps)
        real = pieces(faces, generator)
        adversarial = build.adversarial and step >= ADVERSARIAL_FROM * steps
        with precision():
            rebuilt = network(real).float()
            loss = (rebuilt - real).abs().mean() + likeness(rebuilt, real)
            if adversarial:
                fooled = -judge(rebuilt).float().mean()
                loss = loss + 0.5 * _balance(loss, fooled, network.last.weight) * fooled
        learners[0].zero_grad()
        loss.backward()
        learners[0].step()
        if adversarial:
            with precision():
                photographs, others = judge(real).float(), judge(rebuilt.detach()).float()
                hinge = F.relu(1 - photographs).mean() + F.relu(1 + others).mean()
            learners[1].zero_grad()
            hinge.backward()
            learners[1].step()
    return network.eval()


def _balance(loss: Tensor, fooled: Tensor, last: Tensor) -> Tensor:
    """The weight with which both losses move the last layer as much."""
    (one,) = torch.autograd.grad(loss, last, retain_graph=True)
    (other,) = torch.autograd.grad(fooled, last, retain_graph=True)
    return (one.norm() / (other.norm() + 1e-4)).clamp(0, 1e3).detach()


def large_faces(crops: Sequence[Crop]) -> Tensor:
    """Faces (N, 3, LARGE, LARGE) uint8 of crops that have as many pixels."""

    def one(crop: Crop) -> Image | None:
        face = native_face(crop)[0]
        return resized(face, LARGE) if min(face.shape[:2]) >= LARGE else None

    with ThreadPoolExecutor() as pool:
        found = [face for face in pool.map(one, crops) if face is not None]
    return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).copy())


# --- what they rebuild ----------------------------------------------------------------------------------


def side_of(crop: Crop, native: int) -> int:
    """The side at which a face is rebuilt: the same in every run, a multiple of STEP, not above its own."""
    rng = np.random.default_rng(zlib.crc32(crop.row["file"].encode()))
    side = min(int(rng.integers(*SIDES)), native)
    return side // STEP * STEP


def builders(crop: Crop, builds: Sequence[Build]) -> list[str]:
    """Names of the builds that rebuild a face."""
    rng = np.random.default_rng(zlib.crc32(crop.row["file"].encode()) + 1)
    return [builds[number].name for number in rng.permutation(len(builds))[:PER_FACE]]


@torch.no_grad()
def rebuild(network: Autoencoder, faces: Sequence[Image]) -> Iterator[Image]:
    """Faces (S, S, 3) of any sides, as the network gives them back, in order."""
    torch.manual_seed(0)  # of the noise
    where = next(network.parameters()).device
    by_side: Mapping[int, list[int]] = defaultdict(list)
    for number, face in enumerate(faces):
        by_side[len(face)].append(number)
    found: dict[int, Image] = {}
    for numbers in by_side.values():
        for start in range(0, len(numbers), BATCH):
            some = numbers[start : start + BATCH]
            batch = torch.from_numpy(np.stack([faces[n] for n in some]).transpose(0, 3, 1, 2).copy())
            out = network(batch.to(where).float() / 127.5 - 1)
            pixels = ((out + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy().transpose(0, 2, 3, 1)
            found |= dict(zip(some, pixels, strict=True))
    return (found[number] for number in range(len(faces)))


def write_faces(
    crops: Sequence[Crop], builds: Sequence[Build], networks: Mapping[str, Autoencoder], out: Path
) -> list[dict[str, str]]:
    """PNGs of the crops' faces as the builds rebuild them; rows of the picture, the crop's file and the build."""

    def face_of(crop: Crop) -> Image:
        face = native_face(crop)[0]
        return resized(face, side_of(crop, min(face.shape[:2])))

    def write(path: Path, face: Image) -> None:
        _, coded = cv2.imencode(
            ".png", cv2.cvtColor(face, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
        )
        with whole_file(path) as file:
            file.write(coded.tobytes())

    def name_of(crop: Crop) -> str:
        return Path(crop.row["file"]).with_suffix("").as_posix().replace("/", "-")

    rows = []
    with ThreadPoolExecutor() as pool:
        faces = list(pool.map(face_of, crops))
        for build in builds:
            mine = [n for n, crop in enumerate(crops) if build.name in builders(crop, builds)]
            names = [f"{name_of(crops[n])}-{build.name}.png" for n in mine]
            again = rebuild(networks[build.name], [faces[n] for n in mine])
            list(pool.map(write, [out / name for name in names], again))
            rows += [
                {"file": name, "crop": crops[n].row["file"], "build": build.name}
                for name, n in zip(names, mine, strict=True)
            ]
    return rows


def read_rebuilt(folder: Path) -> dict[str, list[Path]]:
    """Pictures of each crop's face as decoders rebuilt it, by the crop's file in photos.csv."""
    found: dict[str, list[Path]] = defaultdict(list)
    with (folder / TABLE).open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["crop"]].append(folder / "faces" / row["file"])
    return dict(found)


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="train these, and rebuild nothing"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - {build.name for build in (*BUILDS, *HELD_OUT)}:
        parser.error(f"no decoder {min(unknown)}")
    out: Path = arguments.out
    (out / "faces").mkdir(parents=True, exist_ok=True)
    splits = split_crops(read_corpus(arguments.corpus))
    where, networks, faces, likeness = repeatable_device(), {}, None, None
    for build in (*BUILDS, *HELD_OUT):
        if arguments.only and build.name not in arguments.only:
            continue
        path = out / f"{build.name}.safetensors"
        if not path.exists():
            if faces is None:
                faces, likeness = large_faces(splits["train"]).to(where), Likeness(arguments.init).to(where)
            trained = train(build, faces, likeness, arguments.steps)
            save_tensors(path, trained.state_dict())
        networks[build.name] = Autoencoder(build).to(where).eval()
        networks[build.name].load_state_dict(load_file(path))
    if arguments.only:
        return
    rows = write_faces(splits["train"], BUILDS, networks, out / "faces")
    rows += write_faces(splits["validate"], HELD_OUT, networks, out / "faces")
    write_rows(out / TABLE, sorted(rows, key=lambda row: row["file"]))


if __name__ == "__main__":
    main()
