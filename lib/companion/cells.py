"""The code of a notebook, run in this process."""

from collections.abc import Mapping
from pathlib import Path

SKIPPED = "skip-redraw"  # a cell that measures what is not stored, and that no figure needs


def run_cells(notebook: Path, parameters: Mapping, *, skip: str | None = None) -> None:
    """Run the code cells of a notebook one after the other, as papermill would.

    Parameters
    ----------
    notebook : Path
    parameters : mapping
        Name → value, injected behind the ``parameters`` cell.
    skip : str, optional
        Cells with this tag are left out.
    """
    from papermill.iorw import load_notebook_node  # not in every worker: it is slow
    from papermill.parameterize import parameterize_notebook

    given = parameterize_notebook(load_notebook_node(str(notebook)), dict(parameters))
    namespace = {
        "__name__": "__main__",
        "In": [],  # of these sources `Chapter` checks parameters
        "display": lambda *things, **how: None,  # a notebook has it without an import
    }
    for cell in given.cells:
        if cell.cell_type != "code" or skip in cell.metadata.get("tags", []):
            continue
        namespace["In"].append(cell.source)
        exec(compile(cell.source, f"<cell of {notebook}>", "exec"), namespace)
