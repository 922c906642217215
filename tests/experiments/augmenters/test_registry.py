"""Augmenters: laws over all of them, and what each does to images made for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import experiments.augmenters
from datasets.errors import UserError
from datasets.schema import SchemaError
from experiments.augmenters.ready import as_images, ready_images
from experiments.augmenters.regions import GREY, continued, has_foreground, inside, rectangles, shuffled, strips, taken, tiled
from experiments.augmenters.registry import COUNTERFACTUAL, FACTUAL, KINDS, augmenter, find_augmenters
from experiments.benchmarks.augmenters import measure_augmenters
from mechanisms.runs.files import RunError
from mechanisms.training.noise import seeded
from tests.errors import naming

HEIGHT, WIDTH, EMPTY, FULL = 11, 14, 4, 5  # rows of the batch whose masks are empty, and full
ALL = [(kind, name) for kind, found in KINDS.items() for name in found]
MASKED = [(kind, name) for kind, name in ALL if "masks" in KINDS[kind][name].needs]
RANDOM = [("counterfactual", "random"), ("counterfactual", "shuffle"), ("factual", "random"), ("factual", "shuffle"), ("factual", "mrand"),
          ("factual", "fgsm"), ("factual", "pgd")]


class Network(nn.Module):
    """Logits that differ between training and eval mode."""

    def __init__(self, channels):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
            self.head = nn.Linear(4 * (HEIGHT - 2) * (WIDTH - 2), 3)

    def forward(self, images):
        return self.head(self.body(images))


def a_batch(channels=3, seed=0):
    """Six images of classes 0, 1, 2, 0, 1, 2, with crosses and ellipses in the foreground, one mask empty and one full."""
    generator = seeded(seed, channels)
    images, masks = torch.rand(6, channels, HEIGHT, WIDTH, generator=generator), torch.zeros(6, HEIGHT, WIDTH, dtype=torch.bool)
    for k, (top, left) in enumerate(((2, 3), (0, 0), (4, 9), (5, 2))):
        masks[k, top + 2, left:left + 5] = True
        masks[k, top:top + 5, left + 2] = True
    masks[FULL] = True
    return images, masks, torch.tensor([0, 1, 2, 0, 1, 2])


def context(channels=3):
    return {"network": Network(channels), "ready": torch.rand(6, channels, HEIGHT, WIDTH, generator=seeded(9))}


def applied(kind, name, images, masks, labels, seed=1, **options):
    return augmenter(kind, name, **options)(images, masks, labels, seeded(seed), **context(images.shape[1]))


# ---------------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_images_stay_images(kind, name, channels):
    images, masks, labels = a_batch(channels)
    given = images.clone(), masks.clone(), labels.clone()
    new = applied(kind, name, images, masks, labels)
    assert new.shape == images.shape and new.dtype == images.dtype and new.device == images.device
    assert new.isfinite().all() and 0 <= new.min() and new.max() <= 1 and not new.requires_grad
    assert all(torch.equal(was, now) for was, now in zip(given, (images, masks, labels), strict=True)), "arguments were changed"
    assert new.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "name"), MASKED)
def test_what_must_stay_is_bit_identical_and_the_rest_changes(kind, name, channels):
    images, masks, labels = a_batch(channels)
    new = applied(kind, name, images, masks, labels)
    stays = masks if kind == "factual" else ~inside(rectangles(masks), HEIGHT, WIDTH)
    stays = stays[:, None].expand_as(images)
    assert torch.equal(new[stays], images[stays])
    for row in range(EMPTY):
        changes = ~stays[row]
        assert (new[row][changes] != images[row][changes]).float().mean() > 0.8
    assert torch.equal(new[EMPTY], images[EMPTY]), "nothing is known of an image without a foreground"
    assert torch.equal(new[FULL], images[FULL]) == (kind == "factual")


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_generator_reproduces(kind, name):
    images, masks, labels = a_batch()
    first, again, other = (applied(kind, name, images, masks, labels, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == ((kind, name) not in RANDOM)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_torch_s_own_stream_is_not_drawn_from(kind, name):
    before = torch.get_rng_state()
    applied(kind, name, *a_batch())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("kind", "name"), [pair for pair in ALL if pair != ("factual", "mrand")])
def test_no_image_depends_on_another(kind, name):
    (images, masks, labels), (others, _, _) = a_batch(), a_batch(seed=7)
    alone = applied(kind, name, images, masks, labels)
    for row in range(EMPTY):
        mixed, regions, classes = others.clone(), masks.flip(0, 1).clone(), labels.flip(0).clone()
        mixed[row], regions[row], classes[row] = images[row], masks[row], labels[row]
        torch.testing.assert_close(applied(kind, name, mixed, regions, classes)[row], alone[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_labels_follow(kind, name):
    found = augmenter(kind, name)
    assert found.keeps_label == (kind == "factual") and (found.kind, found.name) == (kind, name) and found.title


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_order_in_memory_does_not_matter(kind, name):
    images, masks, labels = a_batch()
    turned = images.contiguous(memory_format=torch.channels_last), masks.mT.contiguous().mT
    torch.testing.assert_close(applied(kind, name, *turned, labels), applied(kind, name, images, masks, labels), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_half_precision_works(kind, name):
    images, masks, labels = a_batch()
    network = Network(3).bfloat16()
    given = {**context(), "network": network}
    new = augmenter(kind, name)(images.bfloat16(), masks, labels, seeded(1), **given)
    assert new.dtype == torch.bfloat16 and new.isfinite().all() and 0 <= new.min() and new.max() <= 1


# ---------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(("kind", "name"), MASKED)
def test_masks_of_another_kind_are_refused(kind, name):
    images, masks, labels = a_batch()
    for wrong, told in ((masks[:, :-1], "10×14 11×14"), (masks.transpose(1, 2), "14×11 11×14"),
                        (masks.float(), "float32"), (masks[:, None], "(6, 1, 11, 14)"), (masks[:3], "3 6"),
                        (None, "(6, 11, 14)")):
        with pytest.raises(SchemaError, match=naming(told)):
            applied(kind, name, images, wrong, labels)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_images_and_labels_of_another_kind_are_refused(kind, name):
    images, masks, labels = a_batch()
    with pytest.raises(SchemaError, match=naming("torch.uint8")):
        applied(kind, name, (images * 255).byte(), masks, labels)
    with pytest.raises(SchemaError, match=naming("(5,) 6")):
        applied(kind, name, images, masks, labels[:5])
    assert has_foreground(masks).tolist() == [True] * 4 + [False, True]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_what_is_needed_must_be_given(kind, name):
    for missing in augmenter(kind, name).needs - {"masks"}:
        with pytest.raises(RunError, match=naming(f"{name}' {missing}=")):
            augmenter(kind, name)(*a_batch(), seeded(0))
    if "ready" in augmenter(kind, name).needs:
        with pytest.raises(SchemaError, match=naming("(6, 3, 5, 5)")):
            augmenter(kind, name)(*a_batch(), seeded(0), ready=torch.zeros(6, 3, 5, 5))


def test_names_and_options_are_checked():
    assert augmenter("counterfactual", "none") is None and augmenter("factual", "none") is None
    with pytest.raises(RunError, match=naming("'mrand' mean random shuffle tile folder dscm none")):
        augmenter("counterfactual", "mrand")
    with pytest.raises(RunError, match=naming("'tile' random shuffle mrand fgsm pgd dscm none")):
        augmenter("factual", "tile")
    with pytest.raises(RunError, match=naming("'other'")):
        augmenter("other", "tile")
    with pytest.raises(RunError, match=naming("'pgd' eps step steps")):
        augmenter("factual", "pgd", size=3)
    for kind, name, option in (("counterfactual", "mean", "grey"), ("factual", "fgsm", "eps"), ("factual", "pgd", "steps")):
        with pytest.raises(UserError, match=naming(f"{option}=-1")):
            augmenter(kind, name, **{option: -1})


# ---------------------------------------------------------------------------------------------------- regions
def test_rectangles_are_the_smallest_around_masks():
    _, masks, _ = a_batch()
    boxes = rectangles(masks)
    assert boxes.tolist() == [[2, 7, 3, 8], [0, 5, 0, 5], [4, 9, 9, 14], [5, 10, 2, 7], [0, 0, 0, 0], [0, HEIGHT, 0, WIDTH]]
    filled = inside(boxes, HEIGHT, WIDTH)
    assert filled.flatten(1).sum(1).tolist() == [25, 25, 25, 25, 0, HEIGHT * WIDTH] and not (masks & ~filled).any()


@pytest.mark.parametrize(("box", "strip"), [
    ((6, 10, 0, 14), (1, 0, 6)), ((1, 4, 3, 6), (1, 4, 11)), ((1, 10, 9, 12), (0, 0, 9)), ((0, 11, 2, 5), (0, 5, 14)),
    ((0, 11, 0, 13), (0, 13, 14)), ((5, 6, 0, 14), (1, 0, 5)),
])
def test_the_largest_strip_is_found(box, strip):
    """Above, below, left, right of it, whichever has the most pixels; the image is wider than high."""
    assert tuple(strips(torch.tensor([box]), HEIGHT, WIDTH)[0].tolist()) == strip


def test_strips_are_repeated():
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=seeded(0))
    new = tiled(images, torch.tensor([[4, 9, 0, 14], [0, 11, 3, 9]]))
    for y in range(HEIGHT):
        assert torch.equal(new[0, :, y], images[0, :, y % 4])  # rows 0..3, again and again
    for x in range(WIDTH):
        assert torch.equal(new[1, :, :, x], images[1, :, :, 9 + (x - 9) % 5])  # columns 9..13


def test_tiling_is_seamless_where_the_background_repeats_itself():
    """Stripes across go on across; an image whose background has the strip's period is given back without its foreground."""
    x, y = torch.arange(WIDTH), torch.arange(HEIGHT)
    background = ((y[:, None] % 3) / 3 + 0 * x).repeat(1, 3, 1, 1)
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[0, 6:9, 4:10] = True  # above it: two periods
    image = torch.where(mask[:, None], 1.0, background)
    torch.testing.assert_close(applied("counterfactual", "tile", image, mask, torch.tensor([0]))[0], background[0])


def test_without_a_strip_an_image_becomes_grey():
    images, masks, labels = a_batch()
    masks[0] = False
    masks[0, 0, 5] = masks[0, -1, 5] = masks[0, 5, 0] = masks[0, 5, -1] = True  # the rectangle reaches all four borders
    new = applied("counterfactual", "tile", images, masks, labels)
    assert (new[0] == GREY).all() and (new[FULL] == GREY).all() and not (new[1] == GREY).all()
    assert continued(rectangles(masks), HEIGHT, WIDTH)[1].tolist() == [True, False, False, False, False, True]


def test_shuffling_permutes_whole_pixels_within_the_region():
    images, masks, _ = a_batch()
    new = shuffled(images, ~masks, seeded(3))
    for row in range(FULL):
        was, now = images[row][:, ~masks[row]].T, new[row][:, ~masks[row]].T
        assert not torch.equal(was, now) and sorted(map(tuple, was.tolist())) == sorted(map(tuple, now.tolist()))


def test_shuffling_is_uniform():
    """Of four pixels, each comes to each place equally often: a chi-squared statistic of 9 degrees of freedom below its 99.99 %."""
    count = 4000
    images, masks = torch.arange(4.0).view(1, 1, 2, 2).repeat(count, 1, 1, 1), torch.ones(count, 2, 2, dtype=torch.bool)
    found = shuffled(images, masks, seeded(0)).flatten(1).long()
    table = torch.stack([torch.bincount(found[:, k], minlength=4) for k in range(4)]).double()
    assert float(((table - count / 4) ** 2 / (count / 4)).sum()) < 34


def test_pixels_are_taken_from_where_they_are_said_to_be():
    images = torch.rand(3, 2, 4, 5, generator=seeded(0))
    places, source = torch.randint(20, (3, 20), generator=seeded(1)), torch.tensor([2, 0, 0])
    new = taken(images, places, source)
    for row in range(3):
        assert torch.equal(new[row].flatten(1), images[source[row]].flatten(1)[:, places[row]])


# ---------------------------------------------------------------------------------------------------- counterfactual
def test_mean_is_grey_and_can_be_another():
    images, masks, labels = a_batch()
    assert (applied("counterfactual", "mean", images, masks, labels)[FULL] == 0.5).all()
    assert (applied("counterfactual", "mean", images, masks, labels, grey=0.25)[FULL] == 0.25).all()


@pytest.mark.parametrize("kind", ["counterfactual", "factual"])
def test_random_is_one_colour_with_noise(kind):
    images, masks, labels = torch.zeros(64, 3, 40, 50), torch.zeros(64, 40, 50, dtype=torch.bool), torch.zeros(64).long()
    masks[:, 0, 0] = True
    if kind == "counterfactual":
        masks[:, -1, -1] = True
    pixels = applied(kind, "random", images, masks, labels).flatten(2)[..., 1:-1]
    colours = pixels.median(-1).values
    assert 0.4 < float(colours.mean()) < 0.6 and float(colours.min()) < 0.05 and float(colours.max()) > 0.95  # U(0, 1) of each channel
    assert abs(float(torch.corrcoef(colours.T)[0, 1])) < 0.5
    middle = pixels[(colours > 0.45) & (colours < 0.55)]  # hardly any of these is clamped
    assert len(middle) > 5 and 0.18 < float(middle.std(-1).mean()) < 0.21


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_ready_images_are_pasted_or_taken_whole(dtype):
    images, masks, labels = a_batch()
    ready = torch.randint(256, images.shape, generator=seeded(2), dtype=torch.uint8)
    ready = ready if dtype == torch.uint8 else ready / 255
    pasted = augmenter("counterfactual", "folder")(images, masks, labels, seeded(0), ready=ready)
    there = inside(rectangles(masks), HEIGHT, WIDTH)[:, None].expand_as(images)
    assert torch.equal(pasted[there], as_images(ready, images)[there]) and torch.equal(pasted[~there], images[~there])
    for kind in KINDS:
        assert torch.equal(augmenter(kind, "dscm")(images, None, labels, seeded(0), ready=ready), as_images(ready, images))


# ---------------------------------------------------------------------------------------------------- factual
def test_mrand_takes_backgrounds_of_other_classes_without_their_foreground():
    """Backgrounds are of the class's own colour, foregrounds white: none of the own colour, and no white, is left around."""
    _, masks, _ = a_batch()
    masks, labels = torch.cat([masks[:4]] * 8), torch.arange(32) % 3
    colours = torch.eye(3)[labels] * 0.8
    images = torch.where(masks[:, None], 1.0, colours[:, :, None, None].expand(-1, -1, HEIGHT, WIDTH))
    new = applied("factual", "mrand", images, masks, labels)
    seen = set()
    for row in range(32):
        around = new[row][:, ~masks[row]].T.unique(dim=0)
        assert len(around) == 1 and float(around.max()) == pytest.approx(0.8)
        seen.add((int(labels[row]), int(around.argmax())))
    assert seen == {(y, other) for y in range(3) for other in range(3) if y != other}


def test_mrand_without_another_class_leaves_images_as_they_are():
    images, masks, labels = a_batch()
    assert torch.equal(applied("factual", "mrand", images, masks, torch.ones(6).long()), images)
    masks[labels != 0] = False  # of the others it is not known where their foreground is
    new = applied("factual", "mrand", images, masks, labels)
    assert torch.equal(new, images)


def test_mrand_of_a_full_mask_s_background_is_grey():
    images, masks, labels = a_batch()
    new = applied("factual", "mrand", images[[0, FULL]], masks[[0, FULL]], labels[[0, FULL]])
    assert (new[0][:, ~masks[0]] == GREY).all()


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_attacks_mislead_and_leave_the_network_as_it_was(name):
    images, masks, _ = a_batch()
    network = Network(3).eval()
    labels = network(images).argmax(1)
    network.train().body[3].eval()
    modes, weights = [m.training for m in network.modules()], {k: v.clone() for k, v in network.state_dict().items()}
    made = augmenter("factual", name)(images, masks, labels, seeded(0), network=network)
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items()), "running statistics have moved"
    assert all(p.grad is None for p in network.parameters())
    network.eval()
    loss = nn.CrossEntropyLoss(reduction="none")
    with torch.no_grad():
        before, after = loss(network(images), labels), loss(network(made), labels)
        misled = network(made).argmax(1) != labels
    assert ((after > before) | misled)[:EMPTY].all() and (misled[:EMPTY].all() or name == "fgsm")
    assert 0.2 < float((made - images).abs().max()) <= 0.3 + 1e-6


@pytest.mark.parametrize("eps", [0.6, 0.05])
@pytest.mark.parametrize(("name", "steps"), [("fgsm", 1), ("pgd", 40)])
def test_attacks_are_the_published_ones_of_normalised_images(name, steps, eps):
    """eps .6, steps of .75 of z = 2x − 1 in [−1, 1]; of PGD's 40 steps an image takes those before it is misled."""
    images, masks, _ = a_batch()
    images, network = images.double(), Network(3).double().eval()
    labels = network(images).argmax(1)
    z, free = 2 * images - 1, ~masks[:, None]
    delta = eps * (2 * torch.rand(images.shape, generator=seeded(4)).double() - 1)
    delta, stepped = torch.where(free, (z + delta).clamp(-1, 1) - z, 0.0), []
    for _ in range(steps):
        moving = (z + delta).requires_grad_()
        logits = network((moving + 1) / 2)
        nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        right = logits.argmax(1) == labels if name == "pgd" else torch.ones(6, dtype=torch.bool)
        new = (delta + 1.25 * eps * moving.grad.sign()).clamp(-eps, eps)
        delta = torch.where(free & right[:, None, None, None], (z + new).clamp(-1, 1) - z, delta)
        stepped.append(right)
    expected, passes = (z + delta + 1) / 2, []
    network.register_forward_hook(lambda *_: passes.append(1))
    options = {} if eps == 0.6 else {"eps": eps / 2, "step": 1.25 * eps / 2}
    made = augmenter("factual", name, **options)(images, masks, labels, seeded(4), network=network)
    torch.testing.assert_close(made[:EMPTY], expected[:EMPTY], rtol=0, atol=1e-9)
    assert len(passes) == steps
    if name == "pgd":
        counts = torch.stack(stepped).sum(0)[:EMPTY].tolist()
        assert 0 < max(counts) and min(counts) < 40  # they move, and stop


def test_attacks_work_inside_no_grad_and_on_any_callable():
    images, masks, labels = a_batch()
    network = Network(3).eval()
    with torch.no_grad():
        made = augmenter("factual", "fgsm")(images, masks, labels, seeded(0), network=lambda pixels: network(pixels))
    assert torch.equal(made, augmenter("factual", "fgsm")(images, masks, labels, seeded(0), network=network))


# ---------------------------------------------------------------------------------------------------- images on disk
def test_folders_of_ready_images(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    pixels = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    for row, name in enumerate(("0.png", "001.png", "2.png")):
        Image.fromarray(pixels[row]).save(folder / name)
    (folder / "notes.txt").write_text("none of ours")
    files = ready_images(tmp_path, "train", 3, (3, 4, 5))
    assert len(files) == 3 and np.array_equal(files[1], pixels[1].transpose(2, 0, 1))
    with pytest.raises(SchemaError, match=naming("2 5 3 4 train/<row>.png 0..4")):
        ready_images(tmp_path, "train", 5, (3, 4, 5))
    Image.fromarray(pixels[0]).save(folder / "00.png")
    with pytest.raises(SchemaError, match=naming("0.png 00.png 0")):
        ready_images(tmp_path, "train", 3, (3, 4, 5))
    with pytest.raises(SchemaError, match=naming(tmp_path / "test")):
        ready_images(tmp_path, "test", 3, (3, 4, 5))


# ---------------------------------------------------------------------------------------------------- speed
def test_speed_is_told_of_every_augmenter():
    plain, attacks = measure_augmenters(8, 16), measure_augmenters(4, 16, attacks=True)
    assert set(plain) | set(attacks) == {f"{kind} {name}" for kind, name in ALL} and not set(plain) & set(attacks)
    assert set(attacks) == {"factual fgsm", "factual pgd"} and min(*plain.values(), *attacks.values()) > 0


def test_both_kinds_are_registered():
    assert list(COUNTERFACTUAL) == ["mean", "random", "shuffle", "tile", "folder", "dscm"]
    assert list(FACTUAL) == ["random", "shuffle", "mrand", "fgsm", "pgd", "dscm"]


def test_a_new_file_is_a_new_augmenter(tmp_path, monkeypatch):
    (tmp_path / "black.py").write_text("""from experiments.augmenters.counterfactual import Fill


class Black(Fill):
    name, title = "black", "black"

    def make(self, images, masks, labels, generator, context):
        return images * 0
""")
    monkeypatch.setattr(experiments.augmenters, "__path__", [*experiments.augmenters.__path__, str(tmp_path)])
    kinds = find_augmenters()
    assert set(kinds["counterfactual"]) == {*COUNTERFACTUAL, "black"} and kinds["factual"] == FACTUAL
    images, masks, labels = a_batch()
    assert (kinds["counterfactual"]["black"]()(images, masks, labels, seeded(0))[0].flatten(1) == 0).any()
