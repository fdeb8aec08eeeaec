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
from blockspectra.statistics import ValueWithError

DPI = 130
BLOCK_COLUMNS = {
    "size": "parameters",
    "lambda_max": "λ_max",
    "rms": "RMS eigenvalue",
    "trace": "trace",
    "trace_error": "± (probes)",
    "gradient_norm": "gradient",
    "distance": "distance",
}


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What the Hessian says about a model at its present weights: print it, show it, `save` it."""

    name: str  #: of the model
    cost: Cost  #: as it was estimated beforehand
    spectra: Spectra  #: of the blocks
    divergences: pd.DataFrame  #: (block, block) Jensen–Shannon, nats, of `js_matrix`
    heterogeneity: pd.DataFrame  #: JS⁰ under each distance and its error, of `heterogeneity`
    blocks: pd.DataFrame  #: a row a block, of `block_table`
    references: pd.DataFrame  #: where the model lies among this project's own, of `placed`
    advice: Advice  #: ``advice.word`` is "SGD will do", "use Adam" or "cannot tell"
    notes: tuple[str, ...]  #: what to know about this measurement, in sentences
    settings: dict  #: what was asked for
    environment: dict  #: what it was computed with

    @property
    def js0(self) -> ValueWithError:
        """JS⁰ in nats on the signed-log axis, with its standard error over probes."""
        return ValueWithError(*self.heterogeneity.loc[JS0, ["value", "standard_error"]])

    def drawings(self) -> list:
        """Draw spectra, divergences, and the model among the reference models: `Drawing` each."""
        from matplotlib import rc_context  # slow to import, as is seaborn

        from blockspectra.diagnosis.figures import drawings

        with rc_context():  # the caller's own style stays
            return drawings(
                *(self.name, self.spectra, self.divergences, self.heterogeneity, self.advice)
            )

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``diagnosis.html``, one page that needs no other file, and ``diagnosis.json``.

        The folder is made if it is missing; files of these names in it are replaced.
        """
        text = json.dumps(as_dict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        numbers = write_text(Path(folder) / "diagnosis.json", text)
        return write_text(Path(folder) / "diagnosis.html", page(self)), numbers

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {_headline(self)}",
            f"Advice: {self.advice.word}.",
            *(f"  {sentence}" for sentence in self.advice.reasons),
            *(f"Stands out: {name}: {why}." for name, why in _outstanding(self)),
            *(f"Note: {note}" for note in self.notes),
        ]
        text, encoding = "\n".join(lines), getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:  # print would raise in a terminal that lacks letters
            text = text.replace("λ", "lambda").replace("⁰", "0")
            text = text.encode(encoding, "replace").decode(encoding)
        return text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _render("summary.html", self, blocks=self.blocks)


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """All numbers of a diagnosis as JSON can hold them; what is not finite is None."""
    spectra = diagnosis.spectra
    nodes, weights = spectra.quadrature
    tables = ("heterogeneity", "blocks", "references")
    numbers = {"names": spectra.names, "nodes": nodes.tolist(), "weights": weights.tolist()}
    return _plain(
        {
            "model": diagnosis.name,
            "advice": asdict(diagnosis.advice),
            "js0": diagnosis.js0._asdict(),
            **{key: getattr(diagnosis, key).reset_index().to_dict("records") for key in tables},
            "divergences": diagnosis.divergences.to_numpy().tolist(),
            "spectra": numbers | {"meta": spectra.meta},
            "notes": list(diagnosis.notes),
            "cost": asdict(diagnosis.cost),
            "settings": diagnosis.settings,
            "environment": diagnosis.environment,
        }
    )


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
    return f"{len(diagnosis.blocks)} blocks, JS⁰ = {diagnosis.js0} nats"


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


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into Python's, and what is not finite into None."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
