"""How trained classifiers did on validation: a row for each, a table of all, and a file to be read elsewhere.

``results.tsv`` has a row for each algorithm, seed and selection rule, tab-separated under these names, whose order is kept:

| column | is |
| --- | --- |
| algorithm, seed | whose row it is |
| rule | by which its weights were selected: ``last``, ``iid``, ``worst-group``, ``oracle`` |
| step | at which they were taken |
| accuracy, worst_group | shares of validation images as observed: of all, and of the worst group |
| shifted | the same under the data set's shifts; empty without any |
| loss | mean cross-entropy on validation, nats |
| steps, seconds | of the whole training |
| rows | validation images that were looked at |
| majority | accuracy of always naming their commonest class |
| groups, groups_left_out, rows_left_out | all groups of label and spurious attributes, those too small for worst_group, their rows |
| data_fraction, box_noise | of the training, see :mod:`.study`; box_noise is empty where masks are as they are, or not used |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.metrics.classification import FEWEST
from experiments.training.rules import MEANING, RULES
from experiments.training.store import FOLDER, LOCK, results
from mechanisms.runs.files import waiting
from mechanisms.runs.tables import markdown, mean_over, write_table

TSV = "results.tsv"
COLUMNS = ("algorithm", "seed", "rule", "step", "accuracy", "worst_group", "shifted", "loss", "steps", "seconds", "rows", "majority",
           "data_fraction", "box_noise", "groups", "groups_left_out", "rows_left_out")


def save_tsv(run: Path) -> Path:
    """Write ``results.tsv`` beside ``results.jsonl``, of all classifiers of the run; the module says what its columns are."""
    path = Path(run) / FOLDER / TSV
    with waiting(path.parent / LOCK):
        rows = [{"data_fraction": 1.0, **dict.fromkeys(COLUMNS[-3:]), **row} for row in results(run)]  # older ones do not tell
        write_table(path, COLUMNS, ({**row, "rule": rule, **row["rules"][rule]} for row in rows for rule in row["rules"]))
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Algorithms × selection rules, means over seeds ± standard errors of the mean, and the majority baseline; Markdown."""
    lines = []
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        seeds = [row for row in rows if row["algorithm"] == name]
        seconds, _ = mean_over([row["seconds"] for row in seeds])
        for rule in (rule for rule in RULES if rule in seeds[0]["rules"]):
            scores = [row["rules"][rule] for row in seeds]
            cells = [percent([s[key] for s in scores]) if key in scores[0] else "–" for key in ("accuracy", "worst_group", "shifted")]
            step, _ = mean_over([s["step"] for s in scores])
            lines.append([name, rule, *cells, f"{step:.0f}", f"{seconds:.1f}", str(len(seeds))])
    first = rows[0]
    lines.append(["(majority class)", "–", f"{100 * first['majority']:.1f}", "0.0", "–", "–", "–", "–"])
    header = ["algorithm", "selected by", "valid. accuracy %", "worst group %", "under shifts %", "step", "seconds", "seeds"]
    used = [rule for rule in RULES if any(rule in row["rules"] for row in rows)]
    fewer = "".join(f" ({row['algorithm']}: {row['rows']:,})" for row in {r["algorithm"]: r for r in rows}.values()
                    if row["rows"] != first["rows"])
    return "\n".join([markdown(header, lines), "", f"Of {first['rows']:,} validation images{fewer}; mean ± standard error over seeds. "
                      f"{_small(rows)}Selected by " + "; ".join(f"{rule}: {MEANING[rule]}" for rule in used) + "."])


def _small(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on the groups that worst_group leaves out; empty where there are none."""
    counts = {row["algorithm"]: (row["groups_left_out"], row["groups"], row["rows_left_out"], row["rows"]) for row in rows
              if row.get("groups_left_out")}
    cases = []
    for case in dict.fromkeys(counts.values()):
        groups, of, images, total = case
        names = ", ".join(name for name in counts if counts[name] == case)
        cases.append(f"{names}: {groups} of {of} groups, with {images:,} of {total:,} images")
    return f"The worst group is none of those below {FEWEST} images, which say little; {'; '.join(cases)}. " if cases else ""


def percent(values: Sequence[float]) -> str:
    """Mean ± standard error over seeds of shares, in percent; without an error if there is one seed."""
    mean, error = mean_over([100 * value for value in values])
    return f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"
