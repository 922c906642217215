"""How data come in: by name or file, in any layout, from memory or from disk; and what is said about data that cannot."""

from __future__ import annotations

import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datasets import CausalDataset, LazyImages, SchemaError, Split, Variable, open_dataset
from datasets.errors import UserError
from datasets.files.folder import common_size
from datasets.files.images import ImageFiles, shown_size, upright
from datasets.options import DataOptions
from datasets.registry import names
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.loop import fit

GREY, COLOUR = (1, 4, 6), (3, 4, 6)
HEAD = """
    import torch
    from datasets import CausalDataset, Variable
"""
ONE = """
    class Mine(CausalDataset):
        variables = (Variable("x", "real"), Variable("image", "image", ("x",), shape=(1, 4, 4)))
        def load(self, split):
            return {"x": torch.arange(3.0), "image": torch.zeros(3, 4, 4)}
"""


def data(shape: tuple[int, int, int] = GREY, **raw: object) -> CausalDataset:
    """A data set that returns ``raw`` for every split."""

    class Given(CausalDataset):
        variables = (Variable("x", "real"), Variable("k", "categorical", classes=3), Variable("image", "image", ("x",), shape=shape))

        def load(self, split):
            return {"x": np.arange(5.0), "k": [0, 1, 2, 1, 0], "image": np.zeros((5, *shape), np.uint8), **raw}

    return Given()


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


# ---------------------------------------------------------------------------------------------------- names and options
def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(SchemaError, match="unknown data set 'mnits'; valid are .*morphomnist, .*your own file ending in .py"):
        open_dataset("mnits")
    with pytest.raises(SchemaError, match=r"did you mean morphomnist\?"):
        open_dataset("morphomnits")
    with pytest.raises(SchemaError, match=r"has no option 'rendering'; .*did you mean renderings\?"):
        open_dataset("morphomnist", {"rendering": 3})
    assert "morphomnist" in names() and names() == sorted(set(names()))


def test_unknown_option_lists_the_valid_ones():
    with pytest.raises(SchemaError, match="no option 'train_digit'; valid are .*train_digits"):
        open_dataset("morphomnist", {"train-digit": "5"})
    assert open_dataset("morphomnist", {"train-digits": "7"}).train_digits == 7


def test_option_of_another_type_is_refused():
    with pytest.raises(SchemaError, match="train_digits=many: 'many' is no whole number"):
        open_dataset("morphomnist", {"train_digits": "many"})


def test_options_become_the_declared_types(tmp_path):
    path = write(tmp_path, """
        from dataclasses import dataclass
        from pathlib import Path
        from typing import Optional
        from datasets import CausalDataset, Variable

        @dataclass
        class Mine(CausalDataset):
            variables = (Variable("image", "image", shape=(1, 4, 4)),)
            size: int = 1
            share: float | None = None
            either: int | float = 0
            folder: Path | None = None
            flag: bool = False
            old: Optional[int] = None
            word: str = ""
    """)
    text = dict(size="3", share="0.5", either="0.5", folder="a/b", flag="TRUE", old="4", word="5")
    mine = open_dataset(path, text)
    found = (mine.size, mine.share, mine.either, mine.folder, mine.flag, mine.old, mine.word)
    assert found == (3, 0.5, 0.5, Path("a/b"), True, 4, "5")
    with pytest.raises(SchemaError, match="flag=perhaps: 'perhaps' is no true or false"):
        open_dataset(path, {"flag": "perhaps"})


def test_command_line_options():
    assert DataOptions(option=("a=b=c", "d="), download=True).as_dict() == {"a": "b=c", "d": "", "download": True}
    with pytest.raises(UserError, match="--option 'size' is not KEY=VALUE"):
        DataOptions(option=("size",)).as_dict()
    with pytest.raises(UserError, match="--option train_digits is given twice, as 5 and 7"):
        DataOptions(option=("train-digits=5", "train_digits=7")).as_dict()
    with pytest.raises(UserError, match="--data-dir and --option data_dir=a say the same"):
        DataOptions(data_dir=Path("b"), option=("data_dir=a",)).as_dict()


@pytest.mark.parametrize(("option", "value"), [("train_digits", "-5"), ("renderings", "0"), ("renderings", "100000000000"),
                                               ("seed", str(10**23)), ("workers", "-1"), ("train_digits", True), ("renderings", 1.5)])
def test_options_out_of_their_range_are_refused(option, value):
    with pytest.raises(SchemaError, match=f"morphomnist: {option}={value} must"):
        open_dataset("morphomnist", {option: value})
    with pytest.raises(SchemaError, match=f"morphomnist: {option}={value} must"):
        type(open_dataset("morphomnist"))(**{option: int(value) if isinstance(value, str) else value})


def test_a_users_own_options_are_numbers_too(tmp_path):
    path = write(tmp_path, """
        from dataclasses import dataclass
        from datasets import CausalDataset, Variable
        from datasets.ranges import Share

        @dataclass
        class Mine(CausalDataset):
            variables = (Variable("image", "image", shape=(1, 4, 4)),)
            level: float = 1.0
            part: Share[float] = 0.5
    """)
    for option, value in (("level", "nan"), ("level", "inf"), ("part", "2")):
        with pytest.raises(SchemaError, match=f"{option}={float(value)} must"):
            open_dataset(path, {option: value})


def test_renderings_that_do_not_fit_are_refused_with_their_size(monkeypatch):
    monkeypatch.setattr("datasets.memory.memory", lambda: 2**20)
    with pytest.raises(SchemaError, match=r"renderings=1000 of 7 digits, 7,000 images, needs .* MiB of memory; this machine has 1 MiB"):
        open_dataset("morphomnist", {"train_digits": 7, "renderings": 1000}).split("train")


@pytest.mark.parametrize("text, message", [
    (HEAD, "exactly one subclass of CausalDataset; found none"),
    (HEAD + ONE + ONE.replace("Mine", "Other"), "exactly one subclass of CausalDataset; found Mine, Other"),
    (HEAD + "    from datasets.mnist.morpho import MorphoMNIST", "found none"),
    (HEAD + ONE.replace('("x",)', '("y",)'), "unknown parent 'y'"),
    (HEAD + ONE.replace('"image", "image"', '"photo", "image"'), "name the image variable 'image', not 'photo'"),
    (HEAD + ONE + "        true_images_under = ('y',)", "true_images_under names unknown variables: y"),
])
def test_files_that_define_no_data_set(tmp_path, text, message):
    with pytest.raises(SchemaError, match=message):
        open_dataset(write(tmp_path, textwrap.dedent(text)))


def test_file_that_does_not_exist(tmp_path):
    with pytest.raises(SchemaError, match="absent.py does not exist"):
        open_dataset(str(tmp_path / "absent.py"))


def test_modules_beside_a_users_file(tmp_path):
    """Each file has its own, also of the same name, when it is read and when its images are."""
    for folder, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, f"VALUE = {value}", "helper_of_mine.py")
        write(tmp_path / folder, f"LATER = {value}", "later_of_mine.py")
        write(tmp_path / folder, "raise RuntimeError('hides ours')", "wildcam.py")
        text = textwrap.dedent(HEAD) + "from helper_of_mine import VALUE\n" + textwrap.dedent(ONE)
        text = text.replace("return {", "from later_of_mine import LATER\n        return {")
        mine = open_dataset(write(tmp_path / folder, text.replace("torch.arange(3.0)", "torch.arange(3.0) + VALUE + LATER")))
        assert mine.split("train").attributes["x"].tolist() == [2 * value, 2 * value + 1, 2 * value + 2]
    before = list(sys.path)
    open_dataset(str(tmp_path / "two" / "mine.py"))
    assert sys.path == before and sys.path.index(str(tmp_path / "two")) < sys.path.index(str(tmp_path / "one"))
    assert sys.path[0] not in (str(tmp_path / "one"), str(tmp_path / "two"))
    with pytest.raises(SchemaError, match="absent_of_mine"):
        open_dataset(write(tmp_path, "import absent_of_mine"))


def test_users_file_is_a_data_set(tmp_path):
    mine = open_dataset(write(tmp_path, textwrap.dedent(HEAD) + textwrap.dedent(ONE)))
    assert mine.title == "Mine" and mine.graph["x"].statistics.maximum == 2 and len(mine.split("valid")) == 3
    assert mine.measure(torch.zeros(1, 1, 4, 4)) == {} and not mine.has_truth(["x"])
    with pytest.raises(SchemaError, match="Mine does not know its own process"):
        mine.true_counterfactual("test", torch.arange(2), {"x": torch.ones(2)})
    with pytest.raises(SchemaError, match="unknown split 'validation'; valid are train, valid, test"):
        mine.split("validation")


# ---------------------------------------------------------------------------------------------------- images
@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NHW"])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int64", "float32", "float64", "torch", "reversed", "read-only"])
def test_every_layout_gives_the_same_images(shape, layout, kind):
    if layout == "NHW" and shape is COLOUR:
        pytest.skip("grey images only")
    wanted = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    given = {"NCHW": wanted, "NHWC": wanted.transpose(0, 2, 3, 1), "NHW": wanted[:, 0]}[layout]
    given = given / np.array(255, kind) if kind.startswith("float") else given.astype(kind) if "int" in kind else given
    if kind == "reversed":
        given = given[::-1].copy()[::-1]
    if kind == "torch":
        given = torch.from_numpy(given.copy())
    if kind == "read-only":
        given = given.copy()
        given.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = data(shape, image=given).split("train").images
    assert images.dtype == torch.uint8 and np.array_equal(images.numpy(), wanted)


def test_masks_are_black_and_white():
    images = data(image=np.eye(4, 6, dtype=bool)[None].repeat(5, 0)).split("train").images
    assert images[4, 0, 3, 3] == 255 and images[4, 0, 3, 2] == 0


@pytest.mark.parametrize("images, message", [
    (np.zeros((5, 6, 4)), r"shape \(5, 1, 6, 4\); the schema says \(N, 1, 4, 6\)"),
    (np.zeros((5, 3, 4, 6)), r"shape \(5, 3, 4, 6\)"),
    (np.zeros(5), r"shape \(5,\)"),
    (np.full((5, 4, 6), 255.0), r"float images.*\[0, 1\]; got 255..255"),
    (np.full((5, 4, 6), np.nan), r"must lie in \[0, 1\]"),
    (np.full((5, 4, 6), -1), "0..255; got -1..-1"),
    (np.full((5, 4, 6), 4095), "0..255; got 4095..4095"),
    (np.zeros((4, 4, 6)), "4 images but 5 values of 'x'"),
    (np.zeros((5, 4, 6), object), "an array of object; expected uint8"),
    ([np.zeros((1, 4, 6))] * 5, "float64.*uint8"),  # lazy images are bytes: floats in [0, 1] would all turn black
    ([np.zeros((6, 4, 1), np.uint8)] * 5, r"\(6, 4, 1\).*\(1, 4, 6\)"),
])
def test_images_that_do_not_fit(images, message):
    with pytest.raises(SchemaError, match=message):
        data(image=images).split("train")


@pytest.mark.parametrize("raw, message", [
    ({"x": np.arange(4.0)}, "attributes of different length in the test split of Given.*'x': 4, 'k': 5"),
    ({"k": [0, 1, 3, 1, 0]}, r"k=3 \(row 2\) in the test split of Given"),
    ({"weight": np.zeros(5)}, "unknown weight; load.split. returns x, k, image"),
])
def test_attributes_that_do_not_fit(raw, message):
    with pytest.raises(SchemaError, match=message):
        data(**raw).split("test")


def test_incomplete_and_empty_splits():
    class Empty(CausalDataset):
        variables = (Variable("x", "real"), Variable("image", "image", shape=GREY))

        def load(self, split):
            images = np.zeros((1, *GREY))
            return {"test": {"x": [], "image": images[:0]}, "valid": {"x": [1.0]}, "train": {"image": images}}[split]

    for split, message in (("test", "is empty"), ("valid", "has no 'image'"), ("train", "missing x")):
        with pytest.raises(SchemaError, match=message):
            Empty().split(split)


def test_batch_takes_rows_in_any_form():
    split = Split("train", torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1) * 51, {"x": torch.arange(5.0)})
    lazy = Split("train", [image.numpy() for image in split.images], split.attributes)
    for rows in (slice(1, 4, 2), [1, 3], torch.tensor([1, 3]), np.array([1, 3])):
        for source in (split, lazy):
            batch = source.batch(rows)
            assert batch["x"].tolist() == [1, 3] and torch.equal(batch["image"].flatten(), torch.tensor([51, 153]) / 255)
    assert split.in_memory and not lazy.in_memory and len(lazy) == 5
    bare = lazy.without_images().batch([4, 0])
    assert bare["x"].tolist() == [4, 0] and bare["image"].shape == (2, 0)


# ---------------------------------------------------------------------------------------------------- files
def files(folder: Path, count: int = 5, mode: str = "L", size: tuple[int, int] = (6, 4)) -> list[Path]:
    """PNG images of noise."""
    paths, rng = [], np.random.default_rng(0)
    for k in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode)), dtype=np.uint8)
        paths.append(folder / f"{k}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("shape, mode", [(GREY, "L"), (COLOUR, "RGB"), (COLOUR, "L"), (GREY, "RGB"), (COLOUR, "RGBA")])
def test_files_give_bytes_of_the_shape(tmp_path, shape, mode):
    paths = files(tmp_path, mode=mode)
    lazy: LazyImages = ImageFiles(paths, shape)
    assert len(lazy) == 5 and lazy[3].shape == shape and lazy[3].dtype == np.uint8
    if len(mode) == shape[0]:
        assert np.array_equal(lazy[3].transpose(1, 2, 0).squeeze(), np.asarray(Image.open(paths[3])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = data(shape, image=lazy).split("train").batch([4, 0])
    assert batch["image"].shape == (2, *shape) and torch.equal(batch["image"][0], torch.tensor(lazy[4]) / 255)


def test_files_are_resized(tmp_path):
    Image.fromarray(np.full((40, 30), 77, np.uint8)).save(tmp_path / "large.png")
    image = ImageFiles([tmp_path / "large.png"], GREY)[0]
    assert image.shape == GREY and (image == 77).all()


def test_missing_files_are_counted_and_one_is_named(tmp_path):
    paths = files(tmp_path)
    paths[2].unlink()
    paths[4].unlink()
    with pytest.raises(UserError, match="2 of 5 image files are missing, first .*2.png"):
        ImageFiles(paths, GREY)
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        ImageFiles(paths[:1], (2, 4, 6))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"GIF89a" + b[6:],
                                    lambda b: b[:16] + b"\xff" * 8 + b[24:], lambda b: b[:-30] + bytes(30), lambda b: b"text"])
def test_broken_file_is_named(tmp_path, damage):
    paths = files(tmp_path)
    paths[1].write_bytes(damage(paths[1].read_bytes()))
    split = data(image=ImageFiles(paths, GREY)).split("train")
    assert split.batch([0, 2])["image"].shape == (2, *GREY)
    with pytest.raises(UserError, match="1.png is broken: .*mend it or leave its row out"):
        split.batch([0, 1])


def test_sixteen_bits_are_not_cut_to_white(tmp_path):
    """Pillow's own conversion turns all grey levels above 255 of 65535 into white, without a word."""
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="deep.png.*16.*8 bits"):
        ImageFiles([tmp_path / "deep.png"], GREY)[0]


ORIENTED = {1: (0, 0), 2: (0, 5), 3: (3, 5), 4: (3, 0), 5: (0, 0), 6: (0, 3), 7: (5, 3), 8: (5, 0)}  # where the corner is shown


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_images_are_turned_as_viewers_do(tmp_path, orientation, ending):
    pixels = np.zeros((32, 48), np.uint8)
    pixels[:8, :8] = 255
    exif, path = Image.Exif(), tmp_path / f"a{ending}"
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert("RGB").save(path, exif=exif, quality=95)
    size = shown_size(path)
    assert size == common_size([path]) == ((48, 32) if orientation > 4 else (32, 48))
    shown = ImageFiles([path], (1, *size))[0][0]
    bright = shown.reshape(size[0] // 8, 8, size[1] // 8, 8).mean((1, 3)).argmax()
    assert np.unravel_index(bright, (size[0] // 8, size[1] // 8)) == ORIENTED[orientation]


@pytest.mark.parametrize("value", [0, 9, 77])
def test_orientations_that_there_are_not(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.new("L", (6, 4), 9).save(tmp_path / "a.png", exif=exif)
    assert shown_size(tmp_path / "a.png") == (4, 6) and (ImageFiles([tmp_path / "a.png"], GREY)[0] == 9).all()


def test_orientation_behind_the_pixels_of_a_png_file(tmp_path):
    """Which Pillow looks for only once it has decoded them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 4), 9).save(tmp_path / "a.png", exif=exif)
    raw = (tmp_path / "a.png").read_bytes()
    start = raw.index(b"eXIf") - 4
    chunk = raw[start:start + 12 + int.from_bytes(raw[start:start + 4], "big")]
    (tmp_path / "a.png").write_bytes(raw.replace(chunk, b"").replace(raw[-12:], chunk + raw[-12:]))
    assert shown_size(tmp_path / "a.png") == (6, 4) and upright(tmp_path / "a.png").size == (4, 6)


STROKE = np.zeros((8, 8), np.uint8)
STROKE[2:6, 3:5] = 255


def on_transparent(colour: int, mode: str) -> Image.Image:
    grey = np.full((8, 8), colour, np.uint8)
    if mode in ("LA", "RGBA"):
        return Image.fromarray(np.dstack([grey, STROKE] if mode == "LA" else [grey, grey, grey, STROKE]))
    image = Image.fromarray((STROKE > 0).astype(np.uint8))
    image.putpalette([200, 10, 10, colour, colour, colour])
    image.info["transparency"] = 0
    return image.convert("PA") if mode == "PA" else image


@pytest.mark.parametrize(("mode", "ending"), [
    ("LA", ".png"), ("RGBA", ".png"), ("P", ".png"), ("LA", ".tif"), ("RGBA", ".tif"), ("PA", ".tif"), ("RGBA", ".gif"), ("P", ".gif"),
    ("LA", ".webp"), ("RGBA", ".webp"), ("P", ".webp")])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_images_are_on_white(tmp_path, mode, channels, ending):
    """Black on transparent is black on white, as viewers show it; of white nothing would be left, and a word is said."""
    for colour in (0, 60, 255):
        on_transparent(colour, mode).save(tmp_path / f"{colour}{ending}", lossless=True)
        files = ImageFiles([tmp_path / f"{colour}{ending}"], (channels, 8, 8))
        if colour == 255:
            with pytest.raises(UserError, match=f"{tmp_path}/255{ending} shows nothing: .*transparent.*white"):
                files[0]
        else:
            assert (files[0] == np.where(STROKE, colour, 255)).all()


def test_transparency_that_changes_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    opaque, half = noise.copy(), np.dstack([np.full((8, 8), 10, np.uint8), np.full((8, 8), 128, np.uint8)])
    opaque[..., 3] = 255
    for name, pixels in (("opaque", opaque), ("half", half), ("gone", np.zeros((8, 8, 4), np.uint8))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert np.array_equal(ImageFiles([tmp_path / "opaque.png"], (3, 8, 8))[0], opaque[..., :3].transpose(2, 0, 1))
    assert (np.abs(ImageFiles([tmp_path / "half.png"], (1, 8, 8))[0] - 132.0) <= 1).all()  # of one colour, and meant so
    with pytest.raises(UserError, match="gone.png shows nothing"):
        ImageFiles([tmp_path / "gone.png"], (1, 8, 8))[0]
    grey = Image.fromarray(np.where(STROKE, 7, 200).astype(np.uint8))
    grey.save(tmp_path / "named.png", transparency=200)  # one grey level is transparent
    assert (ImageFiles([tmp_path / "named.png"], (1, 8, 8))[0] == np.where(STROKE, 7, 255)).all()


# ---------------------------------------------------------------------------------------------------- rows that are read one by one
class Sequence:
    """Images of a user's own, of which row 3 is ``wrong``."""

    def __init__(self, wrong: object) -> None:
        self.wrong = wrong

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> np.ndarray:
        if index == 3 and isinstance(self.wrong, Exception):
            raise self.wrong
        return self.wrong if index == 3 else np.zeros(GREY, np.uint8)


@pytest.mark.parametrize(("wrong", "told"), [
    (np.zeros((1, 5, 6), np.uint8), r"\(1, 5, 6\)"), (np.zeros(GREY, np.float32), "float32"), (np.zeros((4, 6), np.uint8), r"\(4, 6\)"),
    (None, "NoneType|None"), (OSError("disk on fire"), "disk on fire"), (KeyError("3.png"), "3.png"), ("3.png", "str"),
    (Image.new("L", (6, 4)), "Image"),
])
def test_the_row_that_is_wrong_is_named(wrong, told):
    split = data(image=Sequence(wrong)).split("train")
    assert split.batch([0, 4])["image"].shape == (2, *GREY)
    with pytest.raises(SchemaError, match=f"row 3 of the train split of Given .*({told})") as caught:
        split.batch([1, 3])
    assert "\n" not in str(caught.value)
    if isinstance(wrong, np.ndarray):  # a list is read one by one too
        with pytest.raises(SchemaError, match="row 3 of the train split"):
            data(image=[wrong if k == 3 else np.zeros(GREY, np.uint8) for k in range(5)]).split("train").batch([3])


@pytest.mark.parametrize("paths", [list, tuple, np.array, lambda p: np.array(p, object), lambda p: [Path(a) for a in p]])
def test_paths_are_no_images(tmp_path, paths):
    given = paths([str(path) for path in files(tmp_path)])
    with pytest.raises(SchemaError, match=rf"train split of Given are paths, first {tmp_path}/0.png; .*ImageFiles\(paths, \(1, 4, 6\)\)"):
        data(image=given).split("train")
    assert len(data(image=ImageFiles(list(given), GREY)).split("train")) == 5


@pytest.mark.parametrize("images", ["images/*.png", Path("images"), None, 5, (k for k in range(3))])
def test_what_is_no_list_of_images(images):
    with pytest.raises(SchemaError, match="images of the train split of Given are .*ImageFiles"):
        data(image=images).split("train")


class Brightness(nn.Module):
    """A small model that sees every pixel and the order of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 1)

    def forward(self, batch, noise, progress=1.0):
        x = self.linear(batch["image"].flatten(1)).squeeze(1) + 0.1 * noise(len(batch["x"]), 1).squeeze(1)
        return {"loss": (x - batch["x"]).square()}


@pytest.mark.parametrize("workers", [0, 1])
def test_streaming_trains_the_same(tmp_path, workers):
    paths = files(tmp_path, 20)
    x, trained = torch.randn(20, generator=torch.Generator().manual_seed(0)), []
    memory = torch.stack([torch.tensor(image) for image in ImageFiles(paths, GREY)])
    for name, images in (("memory", memory), ("files", ImageFiles(paths, GREY))):
        torch.manual_seed(0)
        split = Split("train", images, {"x": x})
        config = TrainingConfig(steps=7, batch_size=6, device="cpu", precision="fp32", workers=workers)
        trained.append(fit(Brightness(), split, split, config, tmp_path / name, {"kind": "toy"}, RunOptions()))
    assert torch.equal(trained[0].linear.weight, trained[1].linear.weight)
    assert (trained[0].linear.weight != 0).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_at_a_broken_file_in_one_line(tmp_path, workers):
    paths = files(tmp_path, 20)
    paths[13].write_bytes(b"text")
    train, valid = (Split("train", ImageFiles(rows, GREY), {"x": torch.zeros(len(rows))}) for rows in (paths, paths[:10]))
    config = TrainingConfig(epochs=1, batch_size=5, device="cpu", precision="fp32", workers=workers)
    with pytest.raises(UserError, match="^image file .*13.png is broken: .*row out$") as caught:
        fit(Brightness(), train, valid, config, tmp_path / "run", {"kind": "toy"})
    assert "\n" not in str(caught.value)
