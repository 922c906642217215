"""A comparison as text: the tables that are read, under the conditions they came about; everything; what is missing."""

from __future__ import annotations

from collections.abc import Sequence

from dscm.metrics.score import FLOORS
from experiments.comparison.aggregate import Aggregate, Quantity
from experiments.comparison.results import Comparison, QuantityColumn, Spent, method_of
from mechanisms.runs.tables import markdown, measured

NOTHING = "–"
FLOOR_NAMES = {"identity": "*floor: copying x*", "truth": "*floor: the truth*", "real": "*floor: real images*", "ideal": "*ideal*"}


def summary(comparison: Comparison) -> str:
    """The tables that are read, under the conditions they came about."""
    parts = [conditions(comparison)]
    for heading, columns in comparison.tables():
        lines = [[label(comparison, name), *(cell(column, name) for column in columns)] for name in comparison.results
                 if name not in FLOOR_NAMES and any(name in column.rows for column in columns)]
        lines += [[title, *(floor(column, name) for column in columns)] for name, title in FLOOR_NAMES.items()
                  if any(floor(column, name) != NOTHING for column in columns)]
        parts.append(f"### {heading}\n\n" + markdown(("", *(column.title for column in columns)), lines))
    return "\n\n".join(parts)


def conditions(comparison: Comparison) -> str:
    """How the figures came about, and what is compared."""
    about, seeds = comparison.about, {len(comparison.results[name]) for name in comparison.spent} or {1}
    count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    spread = ("± is the standard error over images, there being one seed" if seeds == {1} else
              "± is the standard error over seeds (over images where a model has one seed)")
    questions = about["questions"]
    lines = [
        f"**{about['dataset']}**, {about['training_images']:,} images to train on" + "".join(f", {o}" for o in about["options"]) + ".",
        f"Budget of every model: {about['budget']} of training with {about['threads']} processor "
        f"thread{'s' * (about['threads'] > 1)}, {about['jobs']} at a time.",
        f"Questions: {questions['count']} images of the {questions['split']} split, interventions on {', '.join(questions['variables'])} "
        f"(seed {questions['seed']}, rows {questions['fingerprint']}), the same for all.",
        f"Seeds: {count}, of weights and training order; {spread}. Bounds without weights are asked once.",
        "Selection: " + ("the last averaged weights" if about["keep"] == "last" else "the averaged weights best on the valid split")
        + "; nothing was chosen by the test split.",
        "Draws: calibrated on the valid split, without any truth (dscm.calibrate)." if about["draws"] else "",
        f"Image errors leave out the {about['border']} outermost pixels on each side." if about["border"] else "",
        "**Bold**: the best mechanism, and those that are not significantly behind it (t-test of the difference by seed, 5 %; of few "
        "seeds it is blunt, and it knows nothing of which images were asked about).",
    ]
    legend = [[label(comparison, name), method_of(name).about, *effort(comparison.spent.get(name, ()))] for name in comparison.results]
    table = markdown(("", "what it is", "seeds", "updates", "minutes", "parameters"), legend)
    left_out = [f"- {name}: {why}" for name, why in comparison.without.items()]
    head = "\n".join(f"- {line}" for line in lines if line)
    return f"{head}\n\n{table}" + ("\n\nNot in the tables:\n\n" + "\n".join(left_out) if left_out else "")


def everything(comparison: Comparison) -> str:
    """Every figure, the methods side by side."""
    quantities: dict[Quantity, dict[str, Aggregate]] = {}
    for row in comparison.rows:
        quantities.setdefault(row.quantity, {})[row.method] = row
    lines = []
    for quantity, rows in quantities.items():
        unit, settings = next(iter(rows.values())).unit, ", ".join(f"{k} {_plain(v)}" for k, v in quantity.settings)
        floors = {name: value for row in rows.values() for name, value in row.floors.items()}
        lines.append([quantity.metric, quantity.intervention, quantity.variable, settings, unit,
                      *(measured(rows[n].mean, rows[n].error) if n in rows else NOTHING for n in comparison.results),
                      *(measured(floors[n]) if n in floors else NOTHING for n in FLOORS)])
    header = ("metric", "intervention", "attribute", "settings", "unit", *comparison.results, *(f"floor: {name}" for name in FLOORS))
    return "## Every figure\n\n" + markdown(header, lines)


def missing(comparison: Comparison) -> str:
    """What could not be computed of which method, and why."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, seeds in comparison.results.items():
        for reason in {key: None for evaluation in seeds.values() for key in evaluation.missing.items()}:
            names.setdefault(reason, []).append(name)
    lines = [f"- {what} (of {', '.join(of)}): {why}" for (what, why), of in names.items()]
    return "## What is missing\n\n" + ("\n".join(lines) or "Nothing.")


# ------------------------------------------------------------------------------------------------ cells
def label(comparison: Comparison, name: str) -> str:
    return f"*bound: {name}*" if name in comparison.bounds else name


def cell(column: QuantityColumn, name: str) -> str:
    """Mean ± error of a method, in bold if it is among the best."""
    if name not in column.rows:
        return NOTHING
    text = measured(column.rows[name].mean, column.rows[name].error)
    return f"**{text}**" if column.near_best(name) else text


def floor(column: QuantityColumn, name: str) -> str:
    value = column.floor(name)
    return NOTHING if value is None else measured(value)


def effort(trainings: Sequence[Spent]) -> tuple[str, str, str, str]:
    """Seeds, and means of updates, minutes and parameters; empty of what is not trained."""
    if not trainings:
        return ("", "", "", "")
    mean = {key: sum(getattr(t, key) for t in trainings) / len(trainings) for key in ("steps", "seconds", "parameters")}
    return str(len(trainings)), f"{mean['steps']:,.0f}", f"{mean['seconds'] / 60:.1f}", f"{mean['parameters'] / 1e6:.2f} M"


def _plain(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else value
