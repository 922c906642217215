"""Tiny trees of files in exactly the published formats of the data sets that are folders of photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.photographs.imagenet9 import FOLDERS, VARIANTS

WIDE, HIGH = 40, 30  # of every photograph
BIRD = (slice(5, 20), slice(10, 30))  # rows and columns of every foreground


def photograph(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (WIDE, HIGH)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).convert(mode).save(path, quality=90)  # which PNG does not mind


def picture(seed: int, size: tuple[int, int] = (WIDE, HIGH)) -> np.ndarray:
    """Noise, with a brighter foreground."""
    pixels = np.random.default_rng(seed).integers(1, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[BIRD] += 100
    return pixels


def foreground() -> np.ndarray:
    mask = np.zeros((HIGH, WIDE), dtype=bool)
    mask[BIRD] = True
    return mask


def waterbirds(root: Path) -> Path:
    """12 images a split; y and place in all combinations."""
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for k in range(36):
        name = f"{k % 3 + 1:03d}.Some_Bird/Some_Bird_{k:04d}.jpg"
        photograph(root / name, k)
        mask = (root / "segmentations" / name).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(foreground().astype(np.uint8) * 204).save(mask)  # four of five who drew it
        lines.append(f"{k + 1},{name},{k % 2},{k // 12},{k // 2 % 2},/b/bamboo_forest/{k:08d}.jpg")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def imagenet9(root: Path) -> Path:
    """One image of each class, variant and place; masks as arrays for the test, as images without foreground for training.

    The latter, as published, from images before compression, and compressed as they are: black is not quite black.
    """
    for part, leaf, seed in (("train", "train", 0), ("train", "val", 100), ("test", "val", 200)):
        for variant in ("original", "mixed_same", "mixed_rand"):
            for k, folder in enumerate(FOLDERS):
                photograph(root / "bg_challenge" / part / variant / leaf / folder / f"n0{seed + k}_1.JPEG", seed + k)
    for k, folder in enumerate(FOLDERS):
        path = root / "bg_challenge" / "test" / "fg_mask" / "val" / folder / f"n0{200 + k}_1.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, foreground())
        for leaf, seed in (("train", 0), ("val", 100)):
            path = root / "bg_challenge" / "train" / "no_fg" / leaf / folder / f"n0{seed + k}_1.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = picture(seed + k)
            pixels[foreground()] = 0
            Image.fromarray(pixels).save(path, quality=90)
    return root


def unpacked9(root: Path, variants: tuple[str, ...] = VARIANTS) -> Path:
    """As the published archives of ImageNet-9 unpack: that of the test to ``bg_challenge``, those for training to their variants.

    Names of mixed images begin with that of their foreground's image.
    """
    for variant in variants:
        for part, seed in (("train", 0), ("val", 100), ("bg_challenge", 200)):
            for k, folder in enumerate(FOLDERS):
                stem = f"n0{seed + k}_1"
                stem = f"fg_{stem}_bg_n0{seed + 9 - k}_7" if variant.startswith("mixed") else stem
                place = root / "bg_challenge" / variant / "val" if part == "bg_challenge" else root / variant / part
                photograph(place / folder / f"{stem}.JPEG", seed + k)
    for k, folder in enumerate(FOLDERS):
        path = root / "bg_challenge" / "fg_mask" / "val" / folder / f"n0{200 + k}_1.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, foreground())
    return root


CATEGORIES = [{"id": 1, "name": "opossum"}, {"id": 3, "name": "raccoon"}, {"id": 30, "name": "empty"}]


def cameratraps(root: Path) -> Path:
    """Four images a split and an empty one; the first shows two animals of a kind, images are half their annotated size."""
    seen, unseen = (38, 100), (7, 7)
    for place, (name, cameras) in enumerate({"train": seen, "cis_val": seen, "cis_test": seen, "trans_test": unseen}.items()):
        images, annotations = [], []
        for k in range(5):
            number = f"{name}-{k}"
            photograph(root / "eccv_18_all_images_sm" / f"{number}.jpg", 10 * place + k, "L" if k == 1 else "RGB")
            images.append({"id": number, "file_name": f"{number}.jpg", "width": 2 * WIDE, "height": 2 * HIGH, "location": cameras[k % 2]})
            if k == 4:
                annotations.append({"id": f"a{k}", "image_id": number, "category_id": 30})
                continue
            boxes = [[20, 10, 40, 30], [0, 50, 10, 10]] if k == 0 else [[20, 10, 40, 30]]
            annotations += [{"id": f"a{k}{b}", "image_id": number, "category_id": (1, 3)[k // 2], "bbox": box}
                            for b, box in enumerate(boxes)]
        path = root / "eccv_18_annotation_files" / f"{name}_annotations.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}), encoding="utf-8")
    return root


def wildcam(root: Path) -> Path:
    """Eight images of each category at cameras 43 and 46, four at 130, and a listing that leaves one of these out."""
    listing = []
    for folder, location, count in (("train_43", 43, 8), ("train_46", 46, 8), ("test", 130, 4)):
        for c, category in enumerate(("coyote", "raccoon")):
            for k in range(count):
                name = f"{location}-{c}-{k}.jpg"
                photograph(root / folder / category / name, 1000 * location + 100 * c + k)
                listing.append({"category": category, "location": location, "filename": name})
    (root / "train_test_filenames.json").write_text(json.dumps(listing[:-1]), encoding="utf-8")
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "waterbirds": waterbirds, "imagenet9": imagenet9, "cameratraps": cameratraps, "wildcam": wildcam}


def change_json(path: Path, change: Callable[[object], object]) -> None:
    """Change what a json file holds in place."""
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table), encoding="utf-8")
