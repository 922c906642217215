"""Deep feature reweighting: a last layer refitted on balanced subsets, against scikit-learn."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from datasets.base import Split
from datasets.task import Sizes
from experiments.algorithms import dfr
from experiments.algorithms.dfr import DFRSettings
from experiments.algorithms.registry import algorithm
from experiments.networks.registry import build_network
from mechanisms.runs.files import load
from mechanisms.training.noise import Noise
from mechanisms.training.state import MetricsLog
from tests.errors import says
from tests.experiments.toy import command, trainer


def of_features(classes: int, rows: int = 600, seed: int = 0) -> Split:
    """Features that tell the class, and one more that tells a spurious one, which goes with it in nine of ten rows."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (rows,), generator=generator)
    spurious = torch.where(torch.rand(rows, generator=generator) < 0.9, label, torch.randint(classes, (rows,), generator=generator))
    x = torch.randn(rows, 6, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 1.0])
    x[:, 0] += 1.5 * label
    x[:, 1] += 6.0 * spurious
    x[:, 5] = 2.0  # a unit that never changes
    return Split("valid", torch.zeros(rows, 1, 0, 0, dtype=torch.uint8), {
        "features": x, "label": label, "group": classes * label + spurious, "shift": torch.zeros(rows, dtype=torch.long)})


@pytest.mark.parametrize("classes", [2, 3])
def test_dfr_is_the_mean_of_l1_logistic_regressions_on_balanced_subsets(classes):
    """Scikit-learn's own pipelines, on the subsets that were drawn; with the strength given."""
    fitted, judged = of_features(classes), of_features(classes, seed=1)
    model = algorithm("dfr")(build_network("mlp", (1, 4, 4), classes, 6), Sizes(classes, 1, classes**2), DFRSettings(3, 0.7))
    model.refit(fitted, judged, 5)
    x, y, groups = (fitted.attributes[name].numpy() for name in ("features", "label", "group"))
    generator, heads = np.random.default_rng([5, 11]), []
    for _ in range(3):
        rows = dfr.balanced_rows(groups, generator)
        counts = np.bincount(groups[rows], minlength=classes**2)
        assert (counts == np.bincount(groups).min()).all() and len(set(rows)) == len(rows)
        scaler = StandardScaler().fit(x)
        how = {"solver": "liblinear"} if classes == 2 else {"solver": "saga", "tol": 1e-2}
        one = LogisticRegression(l1_ratio=1.0, C=0.7, random_state=5, **how).fit(scaler.transform(x)[rows], y[rows])
        heads.append(one.decision_function(scaler.transform(judged.attributes["features"].numpy())))
    logits = model.network.logits(judged.attributes["features"]).detach().numpy()
    ours = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    assert model.strength == pytest.approx(0.7) and np.ptp(ours) > 0.1
    np.testing.assert_allclose(ours, np.mean(heads, 0), rtol=1e-3, atol=1e-3)
    terms = model.train()({**fitted.attributes}, Noise(0), 1.0)
    terms["loss"].mean().backward()
    assert not model.network.head.weight.grad.any()  # what was fitted stays


def test_dfr_chooses_the_strength_by_the_worst_group_of_the_other_half():
    fitted, judged = of_features(2), of_features(2, seed=1)
    chosen, found = algorithm("dfr")(build_network("mlp", (1, 4, 4), 2, 6), Sizes(2, 1, 4), DFRSettings(1)), {}
    for strength in dfr.STRENGTHS:
        model = algorithm("dfr")(build_network("mlp", (1, 4, 4), 2, 6), Sizes(2, 1, 4), DFRSettings(1, strength)).refit(fitted, judged, 0)
        right = model.network.logits(judged.attributes["features"]).argmax(1) == judged.attributes["label"]
        counts = torch.bincount(judged.attributes["group"])
        found[strength] = min(right[judged.attributes["group"] == g].float().mean().item() for g in range(4) if counts[g] >= 10)
    assert len(set(found.values())) > 1
    assert chosen.refit(fitted, judged, 0).strength == pytest.approx(max(found, key=found.get))


@pytest.mark.parametrize("rows", [1, 2])
def test_dfr_with_next_to_no_validation_rows_is_refused_in_a_line(toy, tmp_path, capsys, rows):
    with pytest.raises(SystemExit) as caught:
        command(toy, tmp_path / "run", "--algorithm", "erm,dfr", "--seeds", "1", "--validation-rows", str(rows))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and says(error, f"{rows // 2} {rows} seed 0 class")
    assert not (tmp_path / "run").exists()  # nothing was trained


def test_dfr_tells_its_strength_and_ends_with_what_was_fitted(toy, tmp_path):
    one = trainer(toy, tmp_path, "dfr")
    model = one.learn()
    assert MetricsLog.read(one.folder / "metrics.jsonl")[-1]["train"]["strength"] == pytest.approx(float(model.strength))
    assert any(model.strength == pytest.approx(c) for c in dfr.STRENGTHS) and one.row["steps"] == 1
    kept = load(one.folder / "mechanism.pt", "classifier")["weights"]
    fresh = trainer(toy, tmp_path, "dfr")
    fitted, judged = (dfr.with_features(model, split) for split in dfr.DFR._halves(fresh, fresh.valid))
    assert torch.equal(copy.deepcopy(model).refit(fitted, judged, 0).network.head.weight, kept["head.weight"])
