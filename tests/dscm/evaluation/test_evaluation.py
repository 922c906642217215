"""Every metric through one door: an oracle stands on the truth's floors, a copier on those of copying, and nothing is hidden."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dscm.metrics
from datasets.base import CausalDataset
from datasets.errors import UserError
from datasets.schema import SchemaError, Variable
from dscm.capabilities import Capabilities
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import Evaluation, evaluate
from dscm.evaluation.figures import figures_of, position
from dscm.evaluation.questions import draw_questions
from dscm.evaluation.run import save
from dscm.evaluation.table import format_table
from dscm.metrics.registry import families
from dscm.metrics.score import Score
from dscm.model import DSCM, Counterfactual
from experiments.comparison.bounds import Identity
from mechanisms.runs.files import RunError
from mechanisms.runs.folder import dataset_of
from mechanisms.runs.tables import markdown
from pgm.interventions import resolve_do
from tests.errors import naming

COUNT = 60
SMALL = EvaluationConfig(draws=20, draw_images=8, cycle_images=8)


class Shades(CausalDataset):
    """shade → tint; the left half of the image shows the one, the right half the other."""

    variables = (Variable("shade", "interval", low=0, high=255, unit="lux"), Variable("tint", "categorical", ("shade",), classes=3),
                 Variable("image", "image", ("shade", "tint"), shape=(1, 12, 12)))
    true_images_under = ("shade", "tint")

    @staticmethod
    def make(shade: Tensor, tint: Tensor) -> Tensor:
        return torch.stack([shade.float(), 60.0 * tint + 60], 1).repeat_interleave(6, 1)[:, None, None].expand(-1, 1, 12, 12) / 255

    def load(self, split: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(len(split))
        shade = (20 + 200 * torch.rand(2 * COUNT, generator=generator)).round()
        tint = (torch.arange(2 * COUNT) + (shade > 100)) % 3
        return {"shade": shade, "tint": tint, "image": self.make(shade, tint)}

    def true_counterfactual(self, split: str, index: Tensor, do: dict[str, Tensor]) -> dict[str, Tensor]:
        shade = do.get("shade", self.split(split).attributes["shade"][index])
        tint = do["tint"] if "tint" in do else (index + (shade > 100)) % 3
        return {"shade": shade, "tint": tint, "image": self.make(shade, tint)}

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        return {"shade": images[..., :6].mean((1, 2, 3)) * 255, "tint": (images[..., 6:].mean((1, 2, 3)) * 255 / 60 - 1).round().long()}


class Eyes(nn.Module):
    """Predictors that see what is there, a little blurred."""

    def __init__(self, dataset: CausalDataset) -> None:
        super().__init__()
        self.graph, self.variables, self.weight = dataset.graph, dataset.graph.image_parents, nn.Parameter(torch.ones(1))

    def features(self, images: Tensor) -> Tensor:
        left, right = images[..., :6].mean((1, 2, 3)), images[..., 6:].mean((1, 2, 3))
        return torch.stack([left, right, left * right], 1)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        return {"shade": self.features(images)[:, 0] * 250, "tint": self.probabilities(images)["tint"].argmax(1)}

    def read(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        return self.predict(images), self.probabilities(images), self.features(images)

    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        place = self.features(images)[:, 1] * 255 / 60 - 1
        return {"tint": F.softmax(-(place[:, None] - torch.arange(3)).square(), 1)}


class Stub:
    """Answers like a DSCM in every respect; subclasses say what the image is."""

    capabilities = Capabilities(draws=True, temperature=True, regenerate=True, log_prob=True)
    device = torch.device("cpu")

    def __init__(self, dataset: CausalDataset) -> None:
        self.dataset, self.graph, self.first = dataset, dataset.graph, dataset.split("test").batch(slice(0, COUNT))

    def world(self, observed: dict, do: dict) -> dict:
        raise NotImplementedError

    def counterfactual(self, observed, do, draws=None, temperature=1.0, generator=None, batch_size=256) -> Counterfactual:
        world = dict(self.world(observed, resolve_do(self.graph, do, observed, len(observed["image"]))[0]))
        image = world.pop("image")
        return Counterfactual(world, image, {}, image.expand(draws, *image.shape) if draws else None)

    def regenerate(self, observed, temperature=1.0, generator=None, batch_size=256):
        return self.world(observed, {})["image"]

    def log_prob(self, observed, generator=None) -> dict[str, Tensor]:
        return {"image": -2.0 * torch.ones(len(observed["image"])) * observed["image"][0].numel()}


class Oracle(Stub):
    def world(self, observed, do):
        chained = {n: v for n, v in observed.items() if n == "shade" and n not in do}  # a chain goes on from its last shade
        index = torch.arange(len(observed["image"]))
        told = self.dataset.true_counterfactual("test", index, {**chained, **do})
        return told if do else observed


class Copier(Stub):
    def world(self, observed, do):
        return {**observed, **do}


class Black(Stub):
    def world(self, observed, do):
        return {**observed, **do, "image": torch.zeros_like(observed["image"])}


class Bare:
    """As little as a model can offer."""

    capabilities = Capabilities()
    device = torch.device("cpu")

    def __init__(self, dataset: CausalDataset) -> None:
        self.graph = dataset.graph

    def counterfactual(self, observed, do, generator=None, batch_size=256) -> Counterfactual:
        return Counterfactual({v.name: do.get(v.name, observed[v.name]) for v in self.graph.attributes}, observed["image"], {})


def of(model: type, dataset: CausalDataset | None = None, predictors: bool = True, config: EvaluationConfig = SMALL) -> Evaluation:
    dataset = dataset or Shades()
    return evaluate(model(dataset), dataset, draw_questions(dataset, count=COUNT), Eyes(dataset) if predictors else None, config)


@pytest.fixture(scope="module")
def oracle() -> Evaluation:
    return of(Oracle)


@pytest.fixture(scope="module")
def copier() -> Evaluation:
    return of(Copier)


@pytest.fixture(scope="module")
def black() -> Evaluation:
    return of(Black)


FAMILIES = {"truth_l1", "truth_l1_true_parents", "truth_psnr", "truth_psnr_image", "truth_ssim", "truth_attribute", "composition_l1",
            "reversibility_l1", "commutativity_l1", "commutativity_joint_l1", "effectiveness_measured", "effectiveness_predicted",
            "effectiveness_accuracy", "effectiveness_f1", "effectiveness_auroc", "minimality_cld", "minimality_excess",
            "minimality_misplaced", "realism_frechet", "free_energy", "coverage_pixel", "coverage_changed_pixel", "coverage_attribute",
            "width_pixel", "width_attribute", "crps_pixel", "crps_attribute"}


# -------------------------------------------------------------------------------------------------------- known points
def test_every_metric_is_there_and_none_is_missing(oracle):
    assert {s.metric for s in oracle.scores} == FAMILIES and oracle.missing == {}
    assert len({s.title for s in oracle.scores}) == len(oracle.scores)  # no two figures answer to one name
    for name in ("do(shade)", "do(tint)"):
        single = FAMILIES - {"composition_l1", "commutativity_l1", "commutativity_joint_l1", "free_energy"}
        assert {s.metric for s in oracle.scores if s.intervention == name} == single - ({"truth_attribute"} if "tint" in name else set())


def test_the_oracle_stands_on_the_floors_of_the_truth(oracle):
    for score in oracle.scores:
        if "truth" in score.floors:
            assert score.value == pytest.approx(score.floors["truth"], abs=1e-5), score.title
    for score in oracle.find("coverage_changed_pixel") + oracle.find("coverage_attribute"):
        assert score.value == 1
    assert {s.value for s in oracle.find("width_attribute")} == {0}
    assert all(s.floors["identity"] > 1 for s in oracle.find("truth_l1"))


def test_the_copier_stands_on_the_floors_of_copying(copier):
    for score in copier.scores:
        if "identity" in score.floors:
            assert score.value == pytest.approx(score.floors["identity"], abs=1e-5), score.title
    assert copier.find("minimality_misplaced")[0].value == 1


def test_a_black_image_errs_by_all_of_the_truth(black):
    dataset, questions = Shades(), draw_questions(Shades(), count=COUNT)
    observed = dataset.split("test").batch(questions.index)
    for question in questions.questions:
        truth = dataset.true_counterfactual("test", question.index, question.do)
        assert black.find("truth_l1", question.name)[0].value == pytest.approx(float(truth["image"].mean() * 255), rel=1e-5)
        shade = black.find("effectiveness_measured", question.name, "shade")[0]
        assert shade.value == pytest.approx(float(truth["shade"].mean()), rel=1e-5) and shade.unit == "lux"
        tint = black.find("effectiveness_measured", question.name, "tint")[0]
        assert tint.value == 1 and tint.floors == {"identity": tint.floors["identity"], "truth": 0, "real": 0}
        assert {s.value for s in black.find("coverage_changed_pixel", question.name)} == {0}
        assert black.find("crps_attribute", question.name, "shade")[0].value == pytest.approx(float(truth["shade"][:8].mean()), rel=1e-5)
    drift = float(observed["image"][:8].mean() * 255)
    for metric in ("composition_l1", "reversibility_l1"):
        assert all(s.value == pytest.approx(drift, rel=1e-5) for s in black.find(metric))
    assert {s.value for s in black.find("commutativity_l1")} == {0}
    realism, copying = black.find("realism_frechet")[0], black.find("realism_frechet")[0].floors
    assert realism.value > 10 * max(copying.values())


def test_free_energy_in_bits_and_nats(oracle):
    bits, nats = oracle.find("free_energy")
    assert (bits.unit, nats.unit) == ("bits/dim", "nats/dim")
    assert nats.value == pytest.approx(2) and bits.value == pytest.approx(2 / math.log(2)) and bits.error == pytest.approx(0)


def test_every_figure_says_how_many_images_it_is_made_of(oracle):
    few = ("composition", "reversibility", "commutativity", "coverage", "width", "crps")
    for score in oracle.scores:
        assert score.count == (8 if score.metric.startswith(few) else COUNT), score.title


def test_coverage_is_near_to_what_so_many_right_draws_reach(oracle):
    for score in oracle.find("coverage_attribute", "do(shade)", "shade"):
        assert float(score.better) == score.settings["level"] and score.floors["ideal"] == pytest.approx(score.settings["level"], abs=1e-6)
    few = of(Oracle, config=replace(SMALL, draws=8, parts=("calibration",)))
    assert few.find("coverage_pixel", level=0.9)[0].floors["ideal"] == pytest.approx(7 / 9)


def test_temperatures_cycles_and_steps_are_all_asked(oracle):
    found = {(s.settings["temperature"], s.settings["cycles"]) for s in oracle.find("composition_l1")}
    assert found == {(t, n) for t in (1.0, 0.1, 0.0) for n in (1, 2, 10)}
    found = {(s.settings["temperature"], s.settings["steps"]) for s in oracle.find("reversibility_l1", "do(shade)")}
    assert found == {(t, n) for t in (1.0, 0.1, 0.0) for n in (2, 10)}


def test_only_the_parts_that_are_asked_for():
    evaluation = of(Oracle, predictors=False, config=replace(SMALL, parts=("truth", "free_energy")))
    assert {s.metric.partition("_")[0] for s in evaluation.scores} == {"truth", "free"} and evaluation.missing == {}
    assert set(evaluation.about["seconds"]) == {"answers", "truth", "free_energy"}
    assert evaluation.find("truth_l1") == of(Oracle).find("truth_l1")
    assert set(of(Oracle).about["seconds"]) == {"answers", "readings", *(family.part for family in families())}


# -------------------------------------------------------------------------------------------------------- what is missing
class Unknown(Shades):
    """Neither a truth nor a measurement."""

    true_images_under = ()
    measure = CausalDataset.measure
    true_counterfactual = CausalDataset.true_counterfactual


def test_what_data_and_model_cannot_give_is_named_with_its_remedy():
    evaluation = of(Bare, Unknown(), predictors=False)
    assert {s.metric for s in evaluation.scores} == {"reversibility_l1", "commutativity_l1", "commutativity_joint_l1"}
    assert all("temperature" not in s.settings for s in evaluation.scores)
    said = "\n".join(f"{name}: {reason}" for name, reason in evaluation.missing.items())
    for expected in ("truth_*, minimality_excess, minimality_misplaced, coverage_*, width_*, crps_* under do(shade): Unknown knows no true",
                     "true_images_under", "effectiveness_measured: Unknown measures nothing on images; define measure",
                     "effectiveness_predicted, effectiveness_accuracy, effectiveness_f1, effectiveness_auroc: no predictors; train them: "
                     "python -m mechanisms.predictors --run RUN", "minimality_cld: no predictors", "realism_frechet: no predictors",
                     "composition_l1: the model has no regenerate", "free_energy: the model has no log_prob", "takes no draws"):
        assert expected in said
    assert json.loads(json.dumps(evaluation.to_dict())) == evaluation.to_dict()
    assert all(f"- {name}: " in format_table(evaluation) for name in evaluation.missing)


def test_without_truth_the_target_is_the_models_own():
    class Measured(Unknown):
        measure = Shades.measure

    evaluation = of(Copier, Measured())
    shade = evaluation.find("effectiveness_measured", "do(shade)", "shade")[0]
    assert shade.settings["target"] == "own" and set(shade.floors) == {"identity", "real"} and shade.value > 10
    assert of(Copier).find("effectiveness_measured", "do(shade)", "shade")[0].settings["target"] == "true"
    assert not evaluation.find("truth_l1") and evaluation.find("realism_frechet") and evaluation.find("effectiveness_f1")


def test_too_few_images_and_classes_that_do_not_occur_are_missing():
    class Rare(Shades):
        def load(self, split):
            rows = super().load(split)
            if split == "test":
                rows["tint"] = torch.arange(2 * COUNT).eq(1).long()  # one of a class that no other image has
            return {**rows, "image": self.make(rows["shade"], rows["tint"])}

    dataset = Rare()
    evaluation = evaluate(Copier(dataset), dataset, draw_questions(dataset, count=3), Eyes(dataset), SMALL)
    assert "at least 6 images, got 3" in evaluation.missing["realism_frechet"]
    assert "reference images" in evaluation.missing["minimality_cld under do(tint)"]


def test_a_question_that_the_model_refuses_is_missing():
    class Picky(Oracle):
        def world(self, observed, do):
            if "tint" in do:
                raise SchemaError("no tint, please")
            return super().world(observed, do)

    class Mute(Stub):
        def world(self, observed, do):
            raise SchemaError("I say nothing")

    evaluation = of(Picky, config=replace(SMALL, parts=("truth", "commutativity")))
    assert evaluation.missing["every metric under do(tint)"] == "no tint, please" and evaluation.find("truth_l1", "do(shade)") != []
    assert "only one can be asked" in evaluation.missing["commutativity_*"]
    with pytest.raises(RunError, match=naming("I say nothing")):
        of(Mute)


# -------------------------------------------------------------------------------------------------------- one more family
FAMILY = '''
from dscm.metrics.score import Metric, named

RANK = 55
METRICS = named(Metric("brightness", "mean grey level of the answer", "grey levels", "higher", "white is bright",
                       label="brightness of {intervention}", short="brightness"))


def scores(inputs):
    for case in inputs.cases:
        yield METRICS["brightness"].score(case.answer["image"].mean((1, 2, 3)) * 255, intervention=case.name, floors={"identity": 0.0})
    yield METRICS["brightness"].score(inputs.observed["image"].mean((1, 2, 3)) * 255)
'''


def test_a_new_family_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "brightness.py").write_text(FAMILY)
    monkeypatch.setattr(dscm.metrics, "__path__", [*dscm.metrics.__path__, str(tmp_path)])
    evaluation = of(Copier, config=replace(SMALL, parts=("brightness", "truth")))
    save(evaluation, tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert [s["intervention"] for s in written if s["metric"] == "brightness"] == ["do(shade)", "do(tint)", ""]
    text = format_table(evaluation)
    assert "| brightness of do(shade), of 255 " in text and "## The model as a whole" in text
    order = [family.part for family in families()]
    assert order.index("effectiveness") < order.index("brightness") < order.index("minimality")
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "other.py").write_text(FAMILY)
    monkeypatch.setattr(dscm.metrics, "__path__", [*dscm.metrics.__path__, str(tmp_path / "twice")])
    with pytest.raises(RunError, match="brightness is the name of another family or metric"):
        families()


def test_a_keyword_that_a_model_does_not_take_is_an_error():
    dataset = Shades()
    observed = dataset.split("test").batch(slice(0, 2))
    with pytest.raises(TypeError, match="temprature"):
        Identity(dataset.graph).counterfactual(observed, {"shade": 50.0}, temprature=0.5)
    with pytest.raises(RunError, match="takes no effect, so --effect direct"):
        of(Copier, config=replace(SMALL, effect="direct"))


# -------------------------------------------------------------------------------------------------------- bad input
def test_answers_that_are_not_finite_are_refused_with_their_place():
    class Broken(Copier):
        def world(self, observed, do):
            image = observed["image"].clone()
            image[3:5] = math.nan
            return {**super().world(observed, do), "image": image}

    with pytest.raises(RunError, match=naming("do(shade) 2 60 3")):
        of(Broken)


def test_what_does_not_belong_together_is_refused():
    class Renamed(Shades):
        pass

    class Wider(Shades):
        variables = (Variable("shade", "interval", low=-1, high=256, unit="lux"), *Shades.variables[1:])

    dataset = Shades()
    questions = draw_questions(dataset, count=8)
    with pytest.raises(RunError, match=naming("Shades Renamed")):
        evaluate(Copier(Renamed()), Renamed(), questions)
    with pytest.raises(RunError, match=naming("Shades shade.low -1.0 0.0")):
        evaluate(Copier(Wider()), dataset, questions)
    with pytest.raises(RunError, match=naming("predictors Shades shade.low")):
        evaluate(Copier(dataset), dataset, questions, Eyes(Wider()))
    with pytest.raises(RunError, match=naming("Bare.counterfactual --temperature 0.5")):
        evaluate(Bare(dataset), dataset, questions, config=EvaluationConfig(temperature=0.5))


@pytest.mark.parametrize("wrong, said", [({"draws": 1}, "--draws 1 [2, 10000]"), ({"cycle_images": 1}, "--cycle-images 1"),
                                         ({"steps": (2, 3)}, "--steps 3"), ({"cycles": (0,)}, "--cycles 0"),
                                         ({"temperatures": (-1.0,)}, "--temperatures -1.0"), ({"parts": ("thruth",)}, "--parts thruth")])
def test_settings_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(UserError, match=naming(said)):
        of(Copier, config=replace(SMALL, **wrong))


# -------------------------------------------------------------------------------------------------------- a real model
@pytest.fixture(scope="module")
def evaluated(tiny_run: Path) -> Evaluation:
    dataset = dataset_of(tiny_run)
    return evaluate(DSCM.load(tiny_run), dataset, draw_questions(dataset, count=32), None, SMALL, tiny_run)


def test_scores_of_a_model_repeat_and_survive_a_file(tiny_run, evaluated, tmp_path):
    dataset = dataset_of(tiny_run)
    again = evaluate(DSCM.load(tiny_run), dataset, draw_questions(dataset, count=32), None, SMALL, tiny_run)
    assert again.scores == evaluated.scores and again.missing == evaluated.missing
    evaluated.save(tmp_path / "metrics.json")
    loaded = Evaluation.load(tmp_path / "metrics.json")
    assert loaded == evaluated and format_table(loaded) == format_table(evaluated)


def test_what_a_model_says_is_what_is_scored(tiny_run, evaluated):
    model, dataset = DSCM.load(tiny_run), dataset_of(tiny_run)
    thickness, digit, intensity = draw_questions(dataset, count=32).questions
    observed = dataset.split("test").batch(thickness.index)
    answer = model.counterfactual(observed, thickness.do).image
    truth = dataset.true_counterfactual("test", thickness.index, thickness.do)["image"]
    l1 = evaluated.find("truth_l1", "do(thickness)")[0]
    assert l1.settings == {"border": 2} and l1.value == pytest.approx(float((answer - truth).abs()[..., 2:-2, 2:-2].mean() * 255), rel=1e-5)
    # do(intensity) leaves the SCM nothing to err about; do(thickness) does not
    exact = {name: evaluated.find("truth_l1_true_parents", name)[0].value for name in ("do(thickness)", "do(intensity)")}
    assert exact["do(intensity)"] == evaluated.find("truth_l1", "do(intensity)")[0].value and exact["do(thickness)"] != l1.value
    assert not evaluated.find("truth_l1", digit.name) and evaluated.find("reversibility_l1", digit.name)
    assert "knows no true image under do(digit)" in "".join(evaluated.missing.values())
    back = model.counterfactual({**model.counterfactual(observed, intensity.do, temperature=0.0)},
                                {"intensity": observed["intensity"]}, temperature=0.0).image[:8]
    found = evaluated.find("reversibility_l1", "do(intensity)", steps=2, temperature=0.0, border=0)[0]
    assert found.value == pytest.approx(float((back - observed["image"][:8]).abs().mean() * 255), rel=1e-3)


def test_composition_costs_nothing_at_temperature_1_and_is_told_with_and_without_the_border(evaluated):
    for border in (2, 0):
        assert all(s.value < 1e-3 for s in evaluated.find("composition_l1", temperature=1.0, border=border))
        assert all(s.value > 0.1 for s in evaluated.find("composition_l1", temperature=0.0, border=border))


def test_the_observed_images_are_encoded_once(tiny_run, monkeypatch):
    model, dataset, encoded = DSCM.load(tiny_run), dataset_of(tiny_run), []
    encode = model.image.abduct
    monkeypatch.setattr(model.image, "abduct", lambda images, *a, **k: encoded.append(len(images)) or encode(images, *a, **k))
    evaluate(model, dataset, draw_questions(dataset, count=32), None, replace(SMALL, parts=("truth", "effectiveness", "calibration")))
    assert encoded == [32, 8]  # all images for every question and both kinds of parents; a few again, for their draws


# -------------------------------------------------------------------------------------------------------- files, tables, figures
def test_files_that_are_no_evaluation_are_refused(tmp_path, oracle):
    path = tmp_path / "metrics.json"
    for state, said in (([], "metrics.json list"), ({**oracle.to_dict(), "format": 2}, "metrics.json"),
                        ({**oracle.to_dict(), "scores": [{"metric": "x"}]}, "metrics.json 0"),
                        ({k: v for k, v in oracle.to_dict().items() if k != "seed"}, "seed")):
        path.write_text(json.dumps(state))
        with pytest.raises(RunError, match=naming(said)):
            Evaluation.load(path)


def test_the_table_shows_each_figure_beside_its_floors(oracle):
    text = format_table(oracle)
    l1 = oracle.find("truth_l1", "do(shade)")[0]
    line = next(line for line in text.splitlines() if line.startswith("| error to the true image"))
    assert f"{l1.floors['identity']:.2f}" in line and "↓" in line and str(COUNT) in line
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({len(line) for line in block.splitlines()}) == 1
    assert "temperature 0.1" in text and "free energy" in text and "Not computed" not in text


def test_markdown_aligns():
    expected = ["| a         | long |", "| --------- | ---- |", "| wide cell | x    |"]
    assert markdown(("a", "long"), [("wide cell", "x")]).splitlines() == expected


def test_figures_are_made_of_what_there_is(oracle, copier):
    assert set(figures_of(oracle.scores)) == {"floors", "cycles", "calibration"}
    assert figures_of([]) == {}
    assert set(figures_of(of(Bare, Unknown(), predictors=False).scores)) == {"cycles"}
    for evaluation, place in ((oracle, 0), (copier, 1)):
        assert position(evaluation.find("truth_l1")[0])[0] == pytest.approx(place, abs=1e-6)
        assert position(evaluation.find("effectiveness_measured", "do(tint)", "tint")[0])[0] == pytest.approx(place)


@pytest.mark.parametrize("floors, better, expected", [
    ({"identity": 4.0, "truth": 2.0}, "lower", 0.5), ({"identity": 1.0, "real": 5.0}, "higher", 0.5), ({"truth": 1.0}, "lower", None),
    ({"identity": 3.0, "truth": 2.9}, "lower", None), ({"identity": 4.0, "truth": float("inf")}, "higher", None)])
def test_a_place_between_floors_needs_two_that_differ(floors, better, expected):
    place = position(Score("truth_l1", 3.0, 0.1, 9, better=better, floors=floors))
    assert (place and place[0]) == expected
