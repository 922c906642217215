"""A stress test in words and tables, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from experiments.metrics.classification import COVERED, MEANINGS
from experiments.stress.column import NOTHING, REFERENCE, Column, percent
from experiments.stress.results import SOURCES, StressResults
from experiments.stress.run import MAJORITY, MODEL, OBSERVED
from experiments.stress.stresses import WORST_GROUP, WORST_INTERVENTION, distinct_rows
from mechanisms.runs.tables import markdown

CONSTANT = "constant map (chance)"  # what the baseline is where it is asked where classifiers look
Table = tuple[str, list[str], list[list[str]]]  # heading, header, lines


def conditions(results: StressResults, bold: bool = True) -> list[str]:
    """How the figures came about, one statement each; the caption of every table. ``bold``: where cells are marked so."""
    test, task = results.stressed, results.stressed.task
    spurious = ", ".join(v.name for v in task.spurious) or "none named"
    lines = [
        f"{task.dataset.title}: label {task.label.name} ({task.classes} classes), spurious attributes {spurious}. "
        f"{test.images:,} images of distinct subjects of the {test.split} split, at random, the same for all (seed {test.seed}).",
        f"Figures are in percent. {_seeds(results)} {test.images:,} images add a sampling error of up to "
        f"{50 / test.images ** 0.5:.1f} points of accuracy that all algorithms share{_group_error(results)}.",
        "Selection of the weights: " + "; ".join(f"{rule} ({', '.join(names)})" for rule, names in _by_rule(results).items()) + ".",
    ]
    lines.append(_majority(results))
    if not test.stresses and not test.missing:
        lines.append("No attribute is named that should not matter, and no shift, so that nothing is intervened on (--spurious NAME).")
    words = ["do(a): a drawn from its training values without regard to the image."] if results.sources else []
    words += [f"{WORST_INTERVENTION}: the least accuracy over all do(a=v)."] if results.sources and task.spurious else []
    words += [f"{WORST_GROUP}: {MEANINGS['worst_group'][1]}, {_grouped_under(results)}."] if _has_groups(results) else []
    lines += [" ".join(words)] if words else []
    lines += [" ".join(test.foreground.notes)] if test.foreground else []
    if bold and len(results.names) > 2 and max(_seed_counts(results), default=0) > 1:
        lines.append("Bold: the best, and those not significantly behind it on the same seeds (t-test, 5 %; of few seeds it is blunt).")
    return [*lines, *notes(results)]


def _majority(results: StressResults) -> str:
    """What the majority baseline answers, in words."""
    label, data = results.stressed.task.label, results.stressed.task.dataset

    def commonest(split: str) -> tuple[str, float]:
        counts = torch.bincount(data.split(split).attributes[label.name], minlength=label.cardinality)
        return label.classes[int(counts.argmax())], 100 * int(counts.max()) / int(counts.sum())

    (answer, share), (here, share_here) = commonest("train"), commonest(results.stressed.split)
    end = f"; that of the {results.stressed.split} split is {here}, {share_here:.1f} %." if here != answer else "."
    return f"{MAJORITY.capitalize()}: always {answer}, the commonest in training ({share:.1f} %){end}"


def _seed_counts(results: StressResults) -> set[int]:
    """How many seeds algorithms have, of those that were trained here."""
    return {len({p.seed for p in results.points if p.algorithm == n and p.seed is not None}) for n in results.names} - {0}


def _seeds(results: StressResults) -> str:
    counts = _seed_counts(results)
    if not counts:
        return "Each classifier was trained once, elsewhere."
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    spread = "with one seed there is no standard error." if counts == {1} else "± is the standard error over seeds."
    return f"Seeds, of weights and training order: {seeds}; {spread}"


def _has_groups(results: StressResults) -> bool:
    return any(results.values(source, stress, "worst_group") for source, stress in results.grouped)


def _grouped_under(results: StressResults) -> str:
    """On which images groups are looked at."""
    return " or ".join(dict.fromkeys(f"under {stress}" if source != OBSERVED else "as observed" for source, stress in results.grouped))


def _group_error(results: StressResults) -> str:
    """What the worst groups' own numbers of images add, in words."""
    sizes = {p.measured.group_images for p in results.points if (p.source, p.stress) in results.grouped} - {0}
    if not sizes:
        return ""
    images = f"{min(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    return f"; a worst group has {images}, which add up to {50 / min(sizes) ** 0.5:.1f} points"


def _by_rule(results: StressResults) -> dict[str, list[str]]:
    """Selection rule → algorithms."""
    names: dict[str, list[str]] = {}
    for name, rule in results.rules.items():
        names.setdefault(rule, []).append(name)
    return names


def notes(results: StressResults) -> list[str]:
    """What could not be computed, and why."""
    task, sentences = results.stressed.task, list(results.remarks)
    absent = {k for p in results.points for k in p.measured.absent}
    if absent:
        named = ", ".join(task.label.classes[k] for k in sorted(absent))
        sentences.append(f"No image of class {named}: balanced accuracy and AUROC are means over the other classes.")
    small = {g for p in results.points if (p.source, p.stress) in results.grouped for g in p.measured.small}
    if small:
        left = "" if _has_groups(results) else f" {WORST_GROUP} is left out: the others hold less than {COVERED:.0%} of the images."
        more = " --count takes more." if results.stressed.images < len(distinct_rows(task, results.stressed.split)) else ""
        sentences.append(f"Groups with too few images to be the worst: {len(small)} of {len(task.group_names)}.{left}{more}")
    if results.stressed.missing:
        reasons: dict[str, list[str]] = {}
        for name, why in results.stressed.missing.items():
            reasons.setdefault(why, []).append(name)
        sentences += [f"Of {', '.join(names)}: {why}." for why, names in reasons.items()]
    return sentences


def tables(results: StressResults) -> Iterator[Table]:
    """The tables that are read, each :data:`Table`."""
    if not results.sources:
        yield "As observed", *_lines(results, results.as_observed())
    for source in results.sources:
        images, under = SOURCES[source], results.unconfounded(source)
        yield f"Accuracy, {images}", *_lines(results, results.columns(source))
        yield f"Behaviour under {under}, {images}", *_lines(results, results.behaviour(source))
        columns = results.columns(source)
        apart = [(n, [c.to_reference(n) for c in columns]) for n in results.names]
        apart = [[n, *(NOTHING if d is None else percent(*d, sign=True) for d in row)] for n, row in apart if any(row)]
        if apart:
            yield f"Difference of accuracy to {REFERENCE} on the same seeds, {images}", ["", *(c.title for c in columns)], apart
    if columns := results.foreground():
        yield "Foreground, images as observed", *_lines(results, columns, CONSTANT)


def details(results: StressResults) -> Iterator[Table]:
    """Accuracy under each single value."""
    for source in results.sources:
        for variable in results.stressed.task.spurious:
            columns = [c for c in results.each_value(source) if c.title.startswith(f"do({variable.name}=")]
            if columns:
                yield f"Accuracy under each value of {variable.name}, {SOURCES[source]}", *_lines(results, columns)


def _lines(results: StressResults, columns: Sequence[Column], baseline: str = MAJORITY) -> tuple[list[str], list[list[str]]]:
    """Header and lines; ``baseline`` is what the last line is called."""
    shown = [n for n in results.names if any(n in c.values for c in columns)]
    return ["", *(c.title for c in columns)], [[f"*{baseline}*" if n == MAJORITY else n, *(c.cell(n) for c in columns)] for n in shown]


def as_markdown(results: StressResults, every_value: bool = False) -> str:
    """Conditions and tables as Markdown; ``every_value``: those of :func:`details` too."""
    parts = ["\n".join(f"- {line}" for line in conditions(results))]
    shown = [*tables(results), *(details(results) if every_value else ())]
    parts += [f"### {heading}\n\n{markdown(header, lines)}" for heading, header, lines in shown]
    question = "Does the model's stress test predict the true one?"
    parts.append(f"### {question}\n\n{verdict(results)}" if MODEL in results.sources else f"{question} {verdict(results)}")
    return "\n\n".join(parts)


def verdict(results: StressResults) -> str:
    """The agreement in words, or why there is none to speak of."""
    if results.agreement is not None:
        return results.agreement.in_words()
    if MODEL in results.sources:
        return "It cannot be told: no true image is known under these interventions, so that there is the model's test only."
    if not results.stressed.stresses:
        return "Not asked: there is nothing to intervene on. The table says nothing about robustness to interventions."
    return "Not asked: no model is given (--model RUN)." if results.sources else (
        "Nobody can make intervened images here: the true process is not known, and no model is given (--model RUN). The table says "
        "nothing about robustness.")
