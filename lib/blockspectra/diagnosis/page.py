"""A `Diagnosis` for its readers: text, one HTML page that needs no other file, and JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from blockspectra.diagnosis.block_table import FEWEST, OUTLYING
from blockspectra.files import write_text

if TYPE_CHECKING:
    from blockspectra.diagnosis.diagnose import Diagnosis

DPI = 130
STYLE = """
body { max-width: 56rem; margin: auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: #222; background: #fff; overflow-wrap: anywhere }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem } figure { margin: 1.5rem 0 }
img { max-width: 100%; height: auto } figcaption, small { color: #555; font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd;
  overflow-wrap: normal; white-space: nowrap }
th:first-child, td:first-child, td.text { text-align: left }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9rem }
.word { font-size: 1.5rem; font-weight: bold }
"""
BLOCK_COLUMNS = {
    "size": "parameters",
    "lambda_max": "λ_max",
    "trace": "trace",
    "trace_error": "± (probes)",
    "gradient_norm": "gradient",
    "zero_share": "zeros",
    "distance": "distance",
}


def save(diagnosis: Diagnosis, folder: Path) -> tuple[Path, Path]:
    """Write the page and the numbers; see `Diagnosis.save`."""
    text = json.dumps(as_dict(diagnosis), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    numbers = write_text(folder / "diagnosis.json", text)
    return write_text(folder / "diagnosis.html", page(diagnosis)), numbers


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """All numbers of a diagnosis as JSON can hold them; what is not finite is None."""
    spectra = diagnosis.spectra
    nodes, weights = spectra.quadrature
    return _plain(
        {
            "model": diagnosis.name,
            "advice": asdict(diagnosis.advice),
            "js0": diagnosis.js0._asdict(),
            "heterogeneity": _rows(diagnosis.heterogeneity),
            "blocks": _rows(diagnosis.blocks),
            "references": _rows(diagnosis.references),
            "divergences": diagnosis.divergences.to_numpy().tolist(),
            "spectra": {
                "names": spectra.names,
                "nodes": nodes.tolist(),
                "weights": weights.tolist(),
                "meta": spectra.meta,
            },
            "notes": list(diagnosis.notes),
            "cost": asdict(diagnosis.cost),
            "settings": diagnosis.settings,
            "environment": diagnosis.environment,
        }
    )


def as_text(diagnosis: Diagnosis) -> str:
    """Lay the findings out for a terminal."""
    value, error = diagnosis.js0
    lines = [
        f"{diagnosis.name}: {len(diagnosis.blocks)} blocks, JS⁰ = {value:.3g} ± {error:.1g} nats",
        f"Advice: {diagnosis.advice.word}.",
        *(f"  {sentence}" for sentence in diagnosis.advice.reasons),
        *(f"Stands out: {name}: {why}." for name, why in _outstanding(diagnosis)),
        *(f"Note: {note}" for note in diagnosis.notes),
    ]
    return "\n".join(lines)


def summary(diagnosis: Diagnosis) -> str:
    """Lay the findings out for a notebook, as HTML."""
    value, error = diagnosis.js0
    stands_out = "".join(
        f"<li><code>{escape(name)}</code>: {escape(why)}" for name, why in _outstanding(diagnosis)
    )
    none = "none" if len(diagnosis.blocks) >= FEWEST else f"not judged: fewer than {FEWEST} blocks"
    notes = "".join(f"<p>{escape(note)}</p>" for note in diagnosis.notes)
    return (
        f"<p>{escape(diagnosis.name)}, {diagnosis.settings['parameters']:,} parameters: "
        f"{len(diagnosis.blocks)} blocks, JS⁰ = {value:.3g} ± {error:.1g} nats.</p>"
        f'<p class="word">Advice: {escape(diagnosis.advice.word)}</p>'
        f"{''.join(f'<p>{escape(reason)}</p>' for reason in diagnosis.advice.reasons)}"
        f"<p>Blocks that stand out (robust z-score of {OUTLYING} or more):</p>"
        f"<ul>{stands_out or f'<li>{none}'}</ul>{notes}"
    )


def page(diagnosis: Diagnosis) -> str:
    """Write the whole diagnosis as one HTML page; figures are inside it."""
    advice, settings = diagnosis.advice, diagnosis.settings
    blocks = diagnosis.blocks[list(BLOCK_COLUMNS)].rename(columns=BLOCK_COLUMNS)
    figures = "".join(_figure(one.figure, one.caption) for one in diagnosis.drawings())
    about = settings | {"cost": str(diagnosis.cost)} | _flat(diagnosis.environment)
    title = f"Hessian of {escape(diagnosis.name)}, block by block"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
<h1>{title}</h1>
{summary(diagnosis)}
<h2>Evidence</h2>
{"".join(f"<p>{escape(sentence)}</p>" for sentence in advice.evidence)}
{figures}
<h2>Blocks</h2>
<p>λ_max is the largest Ritz value, a bound from below; the trace has its standard error over
probes; then the norm of the gradient, the share of eigenvalues that are zero (below 10⁻⁶ of the
model's largest), and the mean divergence from the other blocks, in nats. A block stands out where
the robust z-score of its distance or of log₁₀ λ_max, 0.6745 (x − median) / median |x − median|, is
{OUTLYING} or more; fewer than {FEWEST} blocks are not judged.</p>
{_table(blocks)}
<h2>Heterogeneity under each distance</h2>
<p>Mean over all pairs of blocks, with its standard error over probes (jackknife).</p>
{_table(diagnosis.heterogeneity)}
<h2>Among the reference models</h2>
<p>This project's own models at initialisation, reduced in size; <i>below</i> and <i>above</i> count
those that lie there by two standard errors.</p>
{_table(diagnosis.references)}
<h2>Settings and environment</h2>
{_table(pd.DataFrame({"": about}))}
</html>
"""


def _outstanding(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    why = diagnosis.blocks["stands_out"]
    return list(why[why != ""].items())


def _figure(figure, caption: str) -> str:
    import matplotlib.pyplot as plt  # not in every worker that imports this package: it is slow

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(png.getvalue()).decode()
    text = escape(caption, quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def _table(table: pd.DataFrame) -> str:
    """Write a table that scrolls by itself where the screen is narrow."""
    head = "".join(f"<th>{escape(str(name))}" for name in (table.index.name or "", *table.columns))
    rows = "".join(
        f"<tr><td>{escape(str(name))}{''.join(map(_cell, row))}\n"
        for name, row in zip(table.index, table.to_numpy(object), strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</thead>\n{rows}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"<td>{value:.3g}" if math.isfinite(value) else "<td>–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td>{value:,}"
    return f'<td class="text">{escape(str(value))}'


def _flat(nested: dict) -> dict:
    """Put the packages of an environment beside its other entries."""
    packages = {f"package {name}": v for name, v in nested["packages"].items()}
    return {key: value for key, value in nested.items() if key != "packages"} | packages


def _rows(table: pd.DataFrame) -> list[dict]:
    return table.reset_index().to_dict("records")


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into Python's, and what is not finite into None."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
