"""Masks as programs write them: in grey, in colours, in the transparency, of 0 and 1; and those that cannot be told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from datasets.files.idx import DataError
from datasets.files.masks import read_array_mask, read_picture_mask
from tests.errors import naming

SHAPE = np.zeros((6, 9), bool)
SHAPE[1:4, 2:7] = True
WHITE = SHAPE.astype(np.uint8) * 255


def palette(values: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def layers(*channels: np.ndarray | int) -> Image.Image:
    full = [np.full(SHAPE.shape, c, np.uint8) if isinstance(c, int) else c for c in channels]
    return Image.fromarray(np.dstack(full).astype(np.uint8))


def transparent(image: Image.Image, index: int) -> Image.Image:
    image.info["transparency"] = index
    return image


NOISE = np.random.default_rng(0).integers(40, 255, SHAPE.shape).astype(np.uint8)
READ = {
    "grey": Image.fromarray(WHITE), "soft": Image.fromarray(np.where(SHAPE, 204, 51).astype(np.uint8)), "one bit": Image.fromarray(SHAPE),
    "0 and 1": Image.fromarray(SHAPE.astype(np.uint8)), "RGB": layers(WHITE, WHITE, WHITE), "red": layers(WHITE, 0, 0),
    "grey + opaque": layers(WHITE, 255), "grey + half transparent": layers(WHITE, 128), "grey + the same": layers(WHITE, WHITE),
    "white in transparency": layers(255, 255, 255, WHITE), "black in transparency": layers(0, 0, 0, WHITE),
    "red on transparent": layers(WHITE, 0, 0, WHITE), "white on transparent noise": layers(np.where(SHAPE, 255, NOISE), WHITE),
    "black and white palette": palette(SHAPE, (0, 0, 0), (255, 255, 255)), "reversed palette": palette(~SHAPE, (255,) * 3, (0, 0, 0)),
    "dark red palette": palette(SHAPE, (0, 0, 0), (128, 0, 0)),
    "palette with transparent index": transparent(palette(SHAPE, (9, 99, 9), (9, 9, 99)), 0),
}
REFUSED = {
    "16": (Image.fromarray(np.where(SHAPE, 65535, 13107).astype(np.uint16)), "16 bits"),
    "label map": (Image.fromarray(SHAPE.astype(np.uint8) * 2), "2 255"),
    "photograph cut out": (layers(NOISE, NOISE, NOISE, WHITE), "transparency"),
    "colours": (layers(WHITE, 0, NOISE), "colours"),
    "foreground and border": (Image.fromarray(np.where(np.eye(6, 9) > 0, 255, SHAPE).astype(np.uint8)), "0 1 255"),
}


@pytest.mark.parametrize("name", READ)
def test_shapes_that_can_be_told(tmp_path, name):
    READ[name].save(tmp_path / "m.png")
    assert np.array_equal(read_picture_mask(tmp_path / "m.png"), SHAPE)


@pytest.mark.parametrize("name", REFUSED)
def test_shapes_that_cannot_be_told(tmp_path, name):
    image, told = REFUSED[name]
    image.save(tmp_path / "m.png")
    with pytest.raises(DataError, match=naming(f"{tmp_path}/m.png {told}")):
        read_picture_mask(tmp_path / "m.png")


@pytest.mark.parametrize("level", [0, 1, 255])
def test_masks_of_nothing_and_of_everything(tmp_path, level):
    Image.new("L", (9, 6), level).save(tmp_path / "m.png")
    assert (read_picture_mask(tmp_path / "m.png") == (level > 0)).all()


def test_masks_are_turned_as_images_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(WHITE).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "m.png", exif=exif)
    assert np.array_equal(read_picture_mask(tmp_path / "m.png"), SHAPE)


@pytest.mark.parametrize(("array", "told"), [
    (WHITE, "0..255"), (SHAPE * 2.0, "0..2"), (SHAPE - 0.5, "-0.5..0.5"), (np.where(SHAPE, np.nan, 0), "nan"), (SHAPE.astype("U1"), "<U1"),
    (SHAPE * 1j, "complex128"), (np.where(SHAPE, np.inf, 0), "inf"),
])
def test_arrays_that_are_no_shares(tmp_path, array, told):
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(DataError, match=naming(f"m.npy {told}")):
        read_array_mask(tmp_path / "m.npy")


def test_arrays(tmp_path):
    for array in (SHAPE, SHAPE.astype(np.uint8), SHAPE.astype(np.float32), np.where(SHAPE, 0.5, 0.4), SHAPE.astype(np.float16)):
        np.save(tmp_path / "m.npy", array)
        assert np.array_equal(read_array_mask(tmp_path / "m.npy"), SHAPE)
    np.savez(tmp_path / "m.npz", SHAPE)
    (tmp_path / "m.npz").rename(tmp_path / "m.npy")
    with pytest.raises(DataError, match=naming("m.npy")):
        read_array_mask(tmp_path / "m.npy")


def test_a_header_that_promises_more_than_there_is(tmp_path):
    np.save(tmp_path / "m.npy", np.zeros((30, 40), bool))
    raw = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "m.npy").write_bytes(raw.replace(b"(30, 40)", b"(9999999, 999999)", 1).replace(b" " * 9, b"", 1))
    with pytest.raises(DataError, match=naming("m.npy")):
        read_array_mask(tmp_path / "m.npy")
