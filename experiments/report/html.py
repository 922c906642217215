"""One self-contained HTML page: images embedded, no script, nothing fetched from anywhere.

A report is a list of :class:`Section`; a new part of an experiment is one function that returns one. Whatever is text
here is escaped here; only :class:`Section` bodies and the results of the functions below are HTML.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from mechanisms.runs.files import replacing

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2127; --soft: #5c6670; --page: #fbfbf9; --card: #fff; --line: #dcdfe2; --accent: #0b6e75; --tint: #e4f1f1;
  --text: system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --fixed: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa5af; --page: #15181b; --card: #1d2125; --line: #343a40; --accent: #6cc5cb; --tint: #1c3335; }
  figure img { filter: brightness(.9); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1.0625rem/1.6 var(--text); }
main { max-width: 66rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: clamp(1.8rem, 4vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .8rem; text-wrap: balance; }
h2 { font-size: 1.4rem; line-height: 1.25; letter-spacing: -.01em; margin: 3.2rem 0 .8rem; padding-top: 1.2rem; }
h2, th, td { border: 0 solid var(--line); }
h2 { border-top-width: 1px; }
p, ul, dl, figcaption { max-width: 46rem; }
li { margin-bottom: .3rem; }
.lead { font-size: 1.2rem; line-height: 1.5; color: var(--soft); }
a { color: var(--accent); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; padding: 0; max-width: none; font-size: .95rem; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.8rem 0; max-width: none; }
.facts div { flex: 1 1 10rem; display: flex; flex-direction: column; padding: .7rem 1rem; }
.facts div, figure img, pre { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.facts dt, .facts small { font-size: .85rem; font-weight: 400; color: var(--soft); }
.facts small { display: block; }
.facts dd { margin: 0; line-height: 1.35; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .4rem; }
th, td { padding: .4rem 1.3rem .4rem 0; text-align: left; border-bottom-width: 1px; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; vertical-align: bottom; }
.number { text-align: right; }
figure { margin: 1.4rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .6rem; }
figcaption { font-size: .92rem; color: var(--soft); margin-top: .6rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.4rem; }
.row > * { flex: 1 1 15rem; margin: 0; }
code, pre { font: .88em/1.55 var(--fixed); }
pre { padding: .9rem 1.1rem; font-size: .88rem; white-space: pre-wrap; overflow-wrap: anywhere; }
pre code { font-size: inherit; }
dt { font-weight: 600; }
dl:not(.facts) dd { margin: 0 0 .7rem; color: var(--soft); }
.note { background: var(--tint); border-left: 3px solid var(--accent); padding: .7rem 1.1rem; border-radius: 0 .6rem .6rem 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); }
details td { white-space: normal; overflow-wrap: anywhere; }
svg { display: block; margin: 1.4rem 0; height: auto; width: 100%; }
svg rect { fill: var(--card); stroke: var(--soft); stroke-width: 1.2; }
svg .image rect { fill: var(--tint); stroke: var(--accent); stroke-width: 2; }
svg text { fill: var(--ink); text-anchor: middle; font: 600 15px var(--text); }
svg .kind { fill: var(--soft); font: 12px var(--text); }
svg path { fill: none; stroke: var(--soft); stroke-width: 1.5; }
svg marker path { fill: var(--soft); stroke: none; }
@media print { body { font-size: 10pt; } nav { display: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """One part of a report: a title (text) and its body (HTML, made by the functions of this file)."""

    title: str
    body: str


def write_report(path: Path, title: str, lead: str, sections: Sequence[Section], facts: Iterable[tuple[str, str, str]] = ()) -> None:
    """Write the page whole or not at all.

    Args:
        lead: one or two sentences on what this is; may use `backticks`.
        facts: ``(name, value, remark)`` each, shown large at the top.

    Raises:
        RunError: if it cannot be written.
    """
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{escape(remark)}</small></dd></div>"
                    for name, value, remark in facts)
    contents = "".join(f'<li><a href="#part-{k}">{escape(s.title)}</a></li>' for k, s in enumerate(sections))
    parts = "".join(f'<section id="part-{k}"><h2>{escape(s.title)}</h2>{s.body}</section>\n' for k, s in enumerate(sections))
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main><header><h1>{escape(title)}</h1>"
        f'<p class="lead">{inline(lead)}</p>{f"<dl class=facts>{tiles}</dl>" if tiles else ""}'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n{parts}</main></body></html>\n'
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- pieces of a body
def inline(text: str) -> str:
    """Escaped text in which `backticks` mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def prose(*paragraphs: str) -> str:
    return "".join(f"<p>{inline(p)}</p>" for p in paragraphs)


def note(text: str) -> str:
    """A paragraph that stands out."""
    return f'<p class="note">{inline(text)}</p>'


def bullets(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{inline(i)}</li>" for i in items) + "</ul>"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{inline(term)}</dt><dd>{inline(meaning)}</dd>" for term, meaning in items) + "</dl>"


def code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def details(summary: str, body: str) -> str:
    """HTML that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of text; columns that hold nothing but numbers are aligned to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    numeric = [all(re.fullmatch(r"[\d.,±()+−– -]+", row[k]) for row in rows) for k in range(len(header))]
    kinds = [' class="number"' if n and rows else "" for n in numeric]
    head = "".join(f"<th{kind}>{inline(cell)}</th>" for kind, cell in zip(kinds, header, strict=True))
    body = "".join("<tr>" + "".join(f"<td{k}>{inline(c)}</td>" for k, c in zip(kinds, row, strict=True)) + "</tr>" for row in rows)
    title = f"<caption>{inline(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(path: Path, alt: str, caption: str = "") -> str:
    """A PNG file as part of the page; ``alt`` says what it shows to those who cannot see it."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    below = f"<figcaption>{inline(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}">{below}</figure>'


def side_by_side(*bodies: str) -> str:
    return '<div class="row">' + "".join(bodies) + "</div>"
