"""Other people's classifiers: built from a file, with weights of several kinds, or exported; and what is told when they do not fit."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from datasets.registry import open_dataset
from datasets.task import task_of
from experiments.networks.outputs import as_logits
from experiments.networks.own import load_weights, open_own
from mechanisms.runs.files import RunError
from tests.errors import naming

NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, shape=(1, 32, 32), classes=10, hidden=3):
            super().__init__()
            self.body, self.norm = nn.Linear(shape[0] * shape[1] * shape[2], hidden), nn.BatchNorm1d(hidden)
            self.head = nn.Linear(hidden, classes)

        def forward(self, images):
            return self.head(self.norm(self.body(images.flatten(1))))

    def build(shape, classes):
        return Net(shape, classes)

    def plain():
        return Net()

    def wrong():
        return Net(classes=7)

    def optional(shape=(1, 32, 32), classes=10):
        return Net(shape, classes)

    def no_module():
        return 3

    def fails():
        raise KeyError("imagenet")

    class Infinite(Net):
        def forward(self, images):
            return super().forward(images) / 0

    class Words(Net):
        def forward(self, images):
            return ["cat"] * len(images)

    class Strict(Net):
        def forward(self, images):
            return super().forward(images.view(-1, 3, 224, 224))
"""


@pytest.fixture(scope="module")
def task(session_cache):
    options = {"train_digits": 96, "valid_digits": 32, "test_digits": 32, "renderings": 1}
    return task_of(open_dataset("morphomnist", options), "digit", ("thickness", "intensity"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(NET))
    return path


@pytest.fixture
def built(file):
    """The network that the file builds, with weights of its own, statistics of batch norm included."""
    space: dict = {}
    exec(file.read_text(), space)
    torch.manual_seed(3)
    network = space["Net"]()
    network(torch.rand(20, 1, 32, 32))
    return network.eval()


@pytest.mark.parametrize("function", ["build", "plain", "optional"])
def test_built_with_or_without_the_shape(task, file, function):
    own = open_own(f"{file}:{function}", task)
    assert own.name == "mine" and own.predict(torch.rand(5, 1, 32, 32)).shape == (5, 10)


def test_is_in_evaluation_mode(task, file):
    own, images = open_own(f"{file}:build", task), torch.rand(8, 1, 32, 32)
    torch.testing.assert_close(own.predict(images)[:1], own.predict(images[:1]))


def test_weights_of_every_kind(task, file, built, tmp_path):
    state, images = built.state_dict(), torch.rand(4, 1, 32, 32)
    save_file(state, tmp_path / "w.safetensors")
    for name, held in {"plain.pt": state, "trainer.pt": {"epoch": 3, "state_dict": state}, "nested.ckpt": {"model": {"state_dict": state}},
                       "parallel.pt": {f"module.{k}": v for k, v in state.items()},
                       "lightning.ckpt": {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}}}.items():
        torch.save(held, tmp_path / name)
    for path in sorted(tmp_path.glob("*.[psc][tak]*")):
        own = open_own(f"{file}:plain", task, path, "net")
        assert torch.equal(own.predict(images), built(images).detach()) and own.name == "net"
    assert len(list(tmp_path.glob("*.[psc][tak]*"))) == 6


def test_exported_program(task, built, tmp_path):
    example = (torch.rand(2, 1, 32, 32),)
    free = torch.export.export(built, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(free, tmp_path / "net.pt2")
    images = torch.rand(7, 1, 32, 32)
    torch.testing.assert_close(open_own(str(tmp_path / "net.pt2"), task).predict(images), built(images).detach())
    torch.export.save(torch.export.export(built, example), tmp_path / "fixed.pt2")
    with pytest.raises(RunError, match=naming(tmp_path / "fixed.pt2", "dynamic_shapes")):
        open_own(str(tmp_path / "fixed.pt2"), task)
    (tmp_path / "broken.pt2").write_bytes(b"PK")
    with pytest.raises(RunError, match=naming(tmp_path / "broken.pt2", "torch.export.save")):
        open_own(str(tmp_path / "broken.pt2"), task)
    with pytest.raises(RunError, match=naming(tmp_path / "net.pt2", ":function --weights")):
        open_own(f"{tmp_path / 'net.pt2'}:build", task)


def patched(path, change):
    """A copy of an archive whose files are what ``change(name, bytes)`` makes of them: None leaves one out, a dict adds some."""
    out = path.with_name("patched.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            made = change(name, old.read(name))
            for key, held in (made if isinstance(made, dict) else {name: made}).items():
                new.writestr(key, held)
    return str(out)


class Evil:
    """Unpickled, it leaves a mark."""

    def __reduce__(self):
        return exec, ("import sys; sys.modules['pwned_by_a_classifier'] = sys",)


def test_pickles_in_a_program_are_not_read(task, built, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(built, (torch.rand(2, 1, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)

    def pickled_weight(name, held):
        if name.endswith("weights/model_weights_config.json"):
            config = json.loads(held)
            config["config"]["head.bias"]["use_pickle"] = True
            return json.dumps(config)
        return pickle.dumps(Evil()) if "/weights/weight_" in name else held

    def custom_constant(name, held):
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
        if name.endswith("constants/model_constants_config.json"):
            return {name: json.dumps({"config": {"evil": payload}}), name.replace("model_constants_config.json", "opaque_obj_0"):
                    pickle.dumps(Evil())}
        return held

    def sample_inputs(name, held):
        return pickle.dumps(Evil()) if "/sample_inputs/" in name else held

    def older_weights(name, held):
        older = name.replace("model_weights_config.json", "model.pt")
        return {name: held, older: pickle.dumps(Evil())} if older != name else held

    def first_format(name, held):
        return {"version": "8.8", "serialized_state_dict.pt": pickle.dumps(Evil())} if name.endswith("archive_version") else held

    for change, told in ((pickled_weight, "head.bias"), (custom_constant, "evil"), (sample_inputs, "sample_inputs/model.pt"),
                         (older_weights, "weights/model.pt"), (first_format, "serialized_state_dict.pt")):
        with pytest.raises(RunError, match=naming(told)):
            open_own(patched(path, change), task)
        assert "pwned_by_a_classifier" not in sys.modules
    assert open_own(patched(path, lambda name, held: held), task).predict(torch.rand(3, 1, 32, 32)).shape == (3, 10)


def test_what_lies_beside_the_file_can_be_imported(task, tmp_path):
    """And dataclasses with postponed annotations work, which look their module up."""
    (tmp_path / "layers_of_mine.py").write_text("from torch import nn\nbody = lambda n, k: nn.Sequential(nn.Flatten(), nn.Linear(n, k))\n")
    (tmp_path / "net.py").write_text(textwrap.dedent("""
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import ClassVar
        from layers_of_mine import body

        @dataclass
        class Config:
            size: ClassVar[int] = 1024
            classes: int = 10

        def build():
            return body(Config.size, Config().classes)
    """))
    known = set(sys.modules)
    assert open_own(f"{tmp_path / 'net.py'}:build", task).predict(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert sys.path[0] != str(tmp_path) and str(tmp_path) in sys.path  # behind everything else, for what is imported later
    assert len([name for name in set(sys.modules) - known if name.startswith("_otherwise_net")]) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "layers_of_mine.py").write_text((tmp_path / "layers_of_mine.py").read_text())
    shutil.copy(tmp_path / "net.py", tmp_path / "other" / "net.py")  # another file has its own module of that name
    open_own(f"{tmp_path / 'other' / 'net.py'}:build", task)
    assert Path(sys.modules["layers_of_mine"].__file__).parent == tmp_path / "other"
    (tmp_path / "broken.py").write_text("import layers_of_mine\nraise ValueError('no')")
    with pytest.raises(RunError, match=naming("broken.py ValueError")):
        open_own(f"{tmp_path / 'broken.py'}:build", task)
    assert not [name for name in sys.modules if name.startswith("_otherwise_broken")]


def test_two_classes_from_one_number():
    """A number l per image means P(1) = sigmoid(l)."""
    number = torch.tensor([-2.0, 0.0, 3.0])
    for answer in (number, number[:, None]):
        logits = as_logits(answer, 3, 2, "it")
        torch.testing.assert_close(logits.softmax(1)[:, 1], number.sigmoid())
    with pytest.raises(RunError, match=naming("(3,) 3 (3, 10)")):
        as_logits(number, 3, 10, "it")


# ---------------------------------------------------------------------------------------------------- logits or probabilities
ENDS = """
    import torch
    from torch import nn

    class End(nn.Module):
        def __init__(self, end, classes):
            super().__init__()
            self.end, self.head = end, nn.Linear(4, classes)
            torch.manual_seed(0)
            nn.init.normal_(self.head.weight)
            nn.init.zeros_(self.head.bias)

        def forward(self, images):
            parts = [part.mean((1, 2, 3)) for part in (images, images[..., ::2], images[..., 14:18, :], images[..., 14:18])]
            parts = torch.stack(parts, 1)
            return self.end(20 * self.head(parts - parts.mean(0)))

    def end(name, classes):
        ends = {"logit": lambda l: l, "single": lambda l: l[:, 0], "column": lambda l: l[:, :1], "sigmoid": torch.sigmoid,
                "sigmoid_of_one": lambda l: l[:, 0].sigmoid(), "sigmoid_column": lambda l: l[:, :1].sigmoid(),
                "log_sigmoid_of_one": lambda l: nn.functional.logsigmoid(l[:, 0]), "softmax": lambda l: l.softmax(1),
                "double": lambda l: l.softmax(1).double(), "half": lambda l: l.softmax(1).half(), "percent": lambda l: 100 * l.softmax(1),
                "log_softmax": lambda l: l.log_softmax(1), "zero": lambda l: 0 * l, "hard": lambda l: (l > 0).float()[:, 0],
                "argmax": lambda l: l.argmax(1), "truth": lambda l: l[:, 0] > 0, "two": lambda l: (l, l), "named": lambda l: {"logits": l},
                "nan": lambda l: l.softmax(1) / 0 * 0}
        return lambda shape, k: End(ends[name], classes)
"""
SHAPES = ("single", "column", "sigmoid_of_one", "sigmoid_column", "log_sigmoid_of_one", "hard", "argmax", "truth")


@pytest.fixture(scope="module")
def two_classes(session_cache):
    return task_of(open_dataset("spuriousmnist", {"train_digits": 96, "valid_digits": 32, "test_digits": 32}))


@pytest.fixture
def ends(tmp_path):
    path = tmp_path / "ends.py"
    names = ("logit", "sigmoid", "softmax", "double", "half", "percent", "log_softmax", "zero", "two", "named", "nan", *SHAPES)
    path.write_text(textwrap.dedent(ENDS) + "".join(f"{name}_2 = end({name!r}, 2)\n{name}_10 = end({name!r}, 10)\n" for name in names))
    return path


@pytest.mark.parametrize("name", ["sigmoid_2", "sigmoid_of_one_2", "sigmoid_column_2", "softmax_2", "double_2", "half_2", "percent_2",
                                  "zero_2", "hard_2", "softmax_10", "sigmoid_10", "percent_10"])
def test_probabilities_are_asked_about(task, two_classes, ends, name):
    with pytest.raises(RunError, match=naming(f"ends.py:{name} --outputs probabilities logits")):
        open_own(f"{ends}:{name}", two_classes if name.endswith("_2") else task)


@pytest.mark.parametrize("name", ["logit_2", "single_2", "column_2", "log_softmax_2", "logit_10", "log_softmax_10"])
def test_logits_are_not(task, two_classes, ends, name):
    of = two_classes if name.endswith("_2") else task
    images = of.split("train").batch(range(6))["image"]
    own, told = open_own(f"{ends}:{name}", of), open_own(f"{ends}:{name}", of, outputs="logits")
    assert torch.equal(own.predict(images), told.predict(images))


@pytest.mark.parametrize("name, outputs, logits", [
    ("sigmoid_of_one_2", "probabilities", "single_2"), ("sigmoid_column_2", "probabilities", "column_2"),
    ("log_sigmoid_of_one_2", "log-probabilities", "single_2"), ("softmax_2", "probabilities", "logit_2"),
    ("double_2", "probabilities", "logit_2"), ("softmax_10", "probabilities", "logit_10"),
    ("log_softmax_10", "log-probabilities", "logit_10"), ("zero_10", "logits", "zero_10")])
def test_what_outputs_says_is_what_they_are(task, two_classes, ends, name, outputs, logits):
    """The same class probabilities as by the logits, also by the network that is looked into, before and after it was."""
    of = two_classes if name.endswith("_2") else task
    images = of.split("train").batch(range(24))["image"]
    own, same = open_own(f"{ends}:{name}", of, outputs=outputs), open_own(f"{ends}:{logits}", of, outputs="logits")
    expected = same.predict(images).softmax(1)
    torch.testing.assert_close(own.predict(images).softmax(1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own.module()(images).detach().float().softmax(1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(own.predict(images).softmax(1), expected, atol=1e-5, rtol=1e-4)
    if "zero" not in name:
        assert len(expected.argmax(1).unique()) > 1


@pytest.mark.parametrize("name, outputs, told", [
    ("logit_2", "probabilities", "probabilities --outputs"), ("percent_2", "probabilities", "probabilities --outputs"),
    ("logit_10", "log-probabilities", "log-probabilities --outputs"), ("sigmoid_10", "probabilities", "1"),
    ("softmax_10", "log-probabilities", "log-probabilities --outputs"), ("argmax_2", "auto", "int64"),
    ("truth_2", "logits", "bool"), ("two_10", "auto", "(2, 10)"),
    ("named_10", "auto", "dict logits"), ("nan_2", "probabilities", "2"),
    ("nan_10", "auto", "2"),
    ("single_10", "probabilities", "(2,) 2 (2, 10)"),
    ("logit_10", "probabilities", "probabilities --outputs")])
def test_answers_that_are_not_what_they_should_be(task, two_classes, ends, name, outputs, told):
    with pytest.raises(RunError, match=naming(f"ends.py:{name}", told)):
        open_own(f"{ends}:{name}", two_classes if name.endswith("_2") else task, outputs=outputs)


def test_probabilities_of_0_and_1_have_finite_logits():
    for answer, outputs in ((torch.tensor([0.0, 1.0]), "probabilities"), (torch.tensor([-torch.inf, 0.0]), "log-probabilities"),
                            (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "probabilities")):
        logits = as_logits(answer, 2, 2, "it", outputs)
        assert logits.isfinite().all() and logits.argmax(1).tolist() == [0, 1]
        torch.testing.assert_close(logits.softmax(1), torch.eye(2))


@pytest.mark.parametrize(("function", "told"), [
    ("wrong", "(2, 7) (2, 10)"),
    ("Infinite", "2 --weights"),
    ("Words", "list (2, 10)"),
    ("Strict", "(2, 1, 32, 32) [0, 1] RuntimeError"),
    ("fails", "mine.py KeyError 'imagenet'"),
    ("no_module", "returns a int; expected a torch.nn.Module"),
    ("bild", "no function 'bild'; it has Net, build, plain"),
    ("", "name the function that builds the classifier"),
])
def test_bad_files(task, file, function, told):
    with pytest.raises(RunError, match=naming(told)):
        open_own(f"{file}:{function}", task)


def test_missing_and_broken_files(task, file, tmp_path):
    with pytest.raises(RunError, match=naming("nowhere.py file.py:function")):
        open_own("nowhere.py:build", task)
    (tmp_path / "bad.py").write_text("import no_such_package_of_yours")
    with pytest.raises(RunError, match=naming("bad.py ModuleNotFoundError 'no_such_package_of_yours'")):
        open_own(f"{tmp_path / 'bad.py'}:build", task)
    (tmp_path / "notes.txt").write_text("build")
    with pytest.raises(RunError, match=naming(tmp_path / "notes.txt", "file.py:function")):
        open_own(f"{tmp_path / 'notes.txt'}:build", task)


def test_weights_that_do_not_fit(built, tmp_path):
    most = {k: v for k, v in built.state_dict().items() if k != "head.bias"}
    torch.save({**most, "classifier.weight": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(RunError, match=naming("head.bias classifier.weight")):
        load_weights(built, tmp_path / "w.pt")
    torch.save({**built.state_dict(), "head.weight": torch.zeros(5, 3)}, tmp_path / "w.pt")
    before = built.head.weight.clone()
    with pytest.raises(RunError, match=naming("head.weight 5×3 10×3")):
        load_weights(built, tmp_path / "w.pt")
    assert torch.equal(built.head.weight, before)
    with pytest.raises(RunError, match=naming("nothing.pt")):
        load_weights(built, tmp_path / "nothing.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(RunError, match=naming(tmp_path / "module.pt", "network.state_dict()")):
        load_weights(built, tmp_path / "module.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(RunError, match=naming(tmp_path / "empty.pt", "network.state_dict()")):
        load_weights(built, tmp_path / "empty.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk of some kind")
    with pytest.raises(RunError, match=naming("junk.pt network.state_dict()")):
        load_weights(built, tmp_path / "junk.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(RunError, match=naming("cut.safetensors")):
        load_weights(built, tmp_path / "cut.safetensors")
