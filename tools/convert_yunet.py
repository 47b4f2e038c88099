"""Rebuild the YuNet face detector from libfacedetection's compiled weights, as an OpenVINO model.

    pip download --no-deps yuface==2023.5.1 && unzip yuface-*.whl
    python tools/convert_yunet.py yuface/libfacedetection.so.v0.0.3 src/lensborn/models/yunet

The library (Shiqi Yu, BSD-3-Clause) keeps its float32 filters as exported data symbols; nothing of it is run.
Network: Wu, Peng, Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence Research, 2023.
Every unit is a 1x1 convolution followed by a 3x3 depthwise one; three levels of strides 8, 16 and 32 share a
top-down neck (nearest enlargement and sum).

Layouts in the library, against OpenVINO's:
    stem        (16, 32): 27 taps as (ky, kx, BGR), then five zeros   -> (16, 3 RGB, 3, 3)
    pointwise   (out, in)                                             -> (out, in, 1, 1)
    depthwise   (3, 3, channels)                                      -> (channels, 1, 1, 3, 3)

Input "image": (1, H, W, 3) uint8 RGB, H and W multiples of 32. Outputs "stride8", "stride16", "stride32":
(1, H / s, W / s, 16) float32; channels: class and object probability, box (dx, dy, log w, log h) and five
points (dx, dy), all in units of the stride and relative to the cell's corner (column * s, row * s).
"""

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op

Array = npt.NDArray[np.float32]
HEADS = ("cls", "obj", "bbox", "kps")  # their filters are stacked: one unit of 16 channels a level


def read_symbols(library: bytes) -> dict[str, Array]:
    """Float32 arrays of all exported data objects of a 64-bit little-endian ELF file, by symbol name."""
    if library[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file; take the .so of yuface's x86_64 wheel")
    (offset,) = struct.unpack_from("<Q", library, 40)
    entry_size, count = struct.unpack_from("<HH", library, 58)
    # Section header: name, type, flags, address, offset, size, link, info, alignment, entry size.
    sections = [struct.unpack_from("<IIQQQQIIQQ", library, offset + i * entry_size) for i in range(count)]
    symbols: dict[str, Array] = {}
    for section in (s for s in sections if s[1] == 11):  # SHT_DYNSYM
        names = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name, info, _, index, value, size = struct.unpack_from("<IBBHQQ", library, at)
            if info & 15 != 1 or not 0 < index < count or size % 4:  # STT_OBJECT, defined here
                continue
            if sections[index][1] == 8:  # SHT_NOBITS has no bytes in the file
                continue
            start = value - sections[index][3] + sections[index][4]
            label = library[names + name : library.index(b"\0", names + name)].decode()
            symbols[label] = np.frombuffer(library, "<f4", size // 4, start)
    return symbols


def build(weights: Mapping[str, Array]) -> ov.Model:
    """The network, from the library's filters by symbol name."""

    def biased(x: ov.Output, bias: Array) -> ov.Output:
        return op.add(x, op.constant(bias.reshape(1, -1, 1, 1)))

    def pair(x: ov.Output, pointwise: Array, bias_1: Array, depthwise: Array, bias_2: Array) -> ov.Output:
        """A 1x1 convolution (out, in), then a 3x3 depthwise one (3, 3, out)."""
        x = op.convolution(x, op.constant(pointwise[:, :, None, None]), [1, 1], [0, 0], [0, 0], [1, 1])
        taps = np.ascontiguousarray(depthwise.transpose(2, 0, 1))[:, None, None]
        x = op.group_convolution(biased(x, bias_1), op.constant(taps), [1, 1], [1, 1], [1, 1], [1, 1])
        return biased(x, bias_2)

    def filters(name: str) -> tuple[Array, Array, Array, Array]:
        bias = weights[f"{name}_pw_bias"]
        pointwise = weights[f"{name}_pw_weight"].reshape(bias.size, -1)
        return pointwise, bias, weights[f"{name}_dw_weight"].reshape(3, 3, -1), weights[f"{name}_dw_bias"]

    def unit(x: ov.Output, name: str) -> ov.Output:
        return op.relu(pair(x, *filters(name)))

    def stage(x: ov.Output, index: int) -> ov.Output:
        return unit(unit(x, f"backbone__model{index}_dp1"), f"backbone__model{index}_dp2")

    def halved(x: ov.Output) -> ov.Output:
        return op.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)

    def doubled(x: ov.Output) -> ov.Output:
        return op.interpolate(
            x,
            op.constant(np.array([2, 2], np.float32)),
            "nearest",
            "scales",
            axes=op.constant([2, 3]),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def head(x: ov.Output, level: int) -> ov.Output:
        parts = [filters(f"bbox_head__multi_level_{kind}__{level}") for kind in HEADS]
        pointwise, bias_1, depthwise, bias_2 = (
            np.concatenate(p, axis=a) for p, a in zip(zip(*parts, strict=True), (0, 0, 2, 0), strict=True)
        )
        x = op.transpose(pair(x, pointwise, bias_1, depthwise, bias_2), op.constant([0, 2, 3, 1]))
        split = op.variadic_split(x, op.constant(3), op.constant([2, 14]))
        x = op.concat([op.sigmoid(split.output(0)), split.output(1)], 3)
        x.set_friendly_name(f"stride{8 << level}")
        x.output(0).set_names({f"stride{8 << level}"})
        return x

    image = op.parameter([1, -1, -1, 3], np.uint8, name="image")
    image.output(0).set_names({"image"})
    x = op.transpose(op.convert(image, "f32"), op.constant([0, 3, 1, 2]))
    stem = weights["backbone__model0_pw_weight"].reshape(16, 32)[:, :27].reshape(16, 3, 3, 3)
    stem = np.ascontiguousarray(
        stem[..., ::-1].transpose(0, 3, 1, 2)
    )  # (16, ky, kx, BGR) -> (16, RGB, ky, kx)
    x = op.convolution(x, op.constant(stem), [2, 2], [1, 1], [1, 1], [1, 1])
    x = op.relu(biased(x, weights["backbone__model0_pw_bias"]))
    x = halved(unit(x, "backbone__model0_dp"))
    fine = stage(halved(stage(stage(x, 1), 2)), 3)
    middle = stage(halved(fine), 4)
    coarse = stage(halved(middle), 5)
    coarse = unit(coarse, "neck__lateral_convs__2")
    middle = unit(op.add(doubled(coarse), middle), "neck__lateral_convs__1")
    fine = unit(op.add(doubled(middle), fine), "neck__lateral_convs__0")
    return ov.Model([head(fine, 0), head(middle, 1), head(coarse, 2)], [image], "yunet")


def main(library: str, folder: str) -> None:
    """Write yunet.xml and yunet.bin into the folder."""
    model = build(read_symbols(Path(library).read_bytes()))
    ov.save_model(model, Path(folder) / "yunet.xml", compress_to_fp16=False)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/convert_yunet.py LIBFACEDETECTION.SO FOLDER")
    main(*sys.argv[1:])
