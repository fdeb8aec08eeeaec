"""A `Diagnosis` for its readers: text, one HTML page that needs no other file, and JSON."""

from __future__ import annotations

import base64
import io
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blockspectra.cost import Cost
from blockspectra.diagnosis.advice import Advice
from blockspectra.diagnosis.block_table import FEWEST, OUTLYING
from blockspectra.diagnosis.references import JS0
from blockspectra.files import write_text
from blockspectra.spectra import Spectra
from blockspectra.statistics import Estimate

DPI = 130
BLOCK_COLUMNS = {
    "size": "parameters",
    "lambda_max": "λ_max",
    "trace": "trace",
    "trace_error": "± (probes)",
    "gradient_norm": "gradient",
    "zero_share": "zeros",
    "distance": "distance",
}


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What the Hessian says about a model at its present weights.

    Attributes
    ----------
    name : str
        Of the model.
    cost : Cost
        As it was estimated beforehand.
    spectra : Spectra
        Of the blocks.
    divergences : DataFrame, (block, block)
        Jensen–Shannon divergence in nats, of `js_matrix`.
    heterogeneity : DataFrame
        JS⁰ under each distance with its standard error, of `heterogeneity`.
    blocks : DataFrame
        A row a block, of `block_table`.
    references : DataFrame
        Where the model lies among this project's own, of `placed`.
    advice : Advice
        ``advice.word`` is "SGD will do", "use Adam" or "cannot tell".
    notes : tuple of str
        What to know about this measurement, in sentences.
    settings, environment : dict
        What was asked for, and what it was computed with.
    """

    name: str
    cost: Cost
    spectra: Spectra
    divergences: pd.DataFrame
    heterogeneity: pd.DataFrame
    blocks: pd.DataFrame
    references: pd.DataFrame
    advice: Advice
    notes: tuple[str, ...]
    settings: dict
    environment: dict

    @property
    def js0(self) -> Estimate:
        """JS⁰ in nats on the signed-log axis, with its standard error over probes."""
        return Estimate(*self.heterogeneity.loc[JS0, ["value", "standard_error"]])

    def drawings(self) -> list:
        """Draw spectra, divergences, and the model among the reference models.

        Returns
        -------
        list of Drawing
            Each a figure with its name, its numbers and its caption.
        """
        from matplotlib import rc_context  # slow to import, as is seaborn

        from blockspectra.diagnosis.figures import drawings

        with rc_context():  # the caller's own style stays
            return drawings(self.name, self.spectra, self.divergences, self.js0)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``diagnosis.html``, one page that needs no other file, and ``diagnosis.json``.

        Parameters
        ----------
        folder : path
            Made if it is missing; files of that name in it are replaced.

        Returns
        -------
        Path, Path
            The page and the numbers.
        """
        return save(self, Path(folder))

    def __str__(self) -> str:
        text, encoding = as_text(self), getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:  # print would raise in a terminal that lacks letters
            text = text.replace("λ", "lambda").replace("⁰", "0")
            text = text.encode(encoding, "replace").decode(encoding)
        return text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return summary(self)


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
    lines = [
        f"{diagnosis.name}: {_headline(diagnosis)}",
        f"Advice: {diagnosis.advice.word}.",
        *(f"  {sentence}" for sentence in diagnosis.advice.reasons),
        *(f"Stands out: {name}: {why}." for name, why in _outstanding(diagnosis)),
        *(f"Note: {note}" for note in diagnosis.notes),
    ]
    return "\n".join(lines)


def summary(diagnosis: Diagnosis) -> str:
    """Lay the findings out for a notebook, as HTML."""
    return _render("summary.html", diagnosis, blocks=diagnosis.blocks)


def page(diagnosis: Diagnosis) -> str:
    """Write the whole diagnosis as one HTML page; figures are inside it."""
    environment = dict(diagnosis.environment)
    packages = {f"package {name}": v for name, v in environment.pop("packages").items()}
    about = diagnosis.settings | {"cost": str(diagnosis.cost)} | environment | packages
    return _render(
        "page.html",
        diagnosis,
        figures=[(_png(one.figure), one.caption) for one in diagnosis.drawings()],
        blocks=diagnosis.blocks[list(BLOCK_COLUMNS)].rename(columns=BLOCK_COLUMNS),
        heterogeneity=diagnosis.heterogeneity,
        references=diagnosis.references,
        about=pd.DataFrame({"": about}),
    )


def _render(template: str, diagnosis: Diagnosis, **tables) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    html = Environment(autoescape=True, undefined=StrictUndefined, loader=folder, trim_blocks=True)
    html.filters["readable"] = _readable
    return html.get_template(template).render(
        tables,
        name=diagnosis.name,
        headline=_headline(diagnosis),
        advice=diagnosis.advice,
        settings=diagnosis.settings,
        notes=diagnosis.notes,
        outstanding=_outstanding(diagnosis),
        outlying=OUTLYING,
        fewest=FEWEST,
    )


def _headline(diagnosis: Diagnosis) -> str:
    value, error = diagnosis.js0
    return f"{len(diagnosis.blocks)} blocks, JS⁰ = {value:.3g} ± {error:.1g} nats"


def _outstanding(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    why = diagnosis.blocks["stands_out"]
    return list(why[why != ""].items())


def _png(figure) -> str:
    """Draw a figure as PNG in base64, and close it."""
    import matplotlib.pyplot as plt  # slow to import

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(png.getvalue()).decode()


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


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
