"""The command ``blockspectra``: diagnose a model, or write a notebook that papermill runs.

``blockspectra diagnose my_module:make_problem`` and ``blockspectra notebook mine.ipynb``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from blockspectra import __version__
from blockspectra.blocks import PARTITIONS, partition
from blockspectra.diagnosis import diagnose
from blockspectra.diagnosis.target import load_problem
from blockspectra.files import write_text

TEMPLATE = Path(__file__).with_name("template.ipynb")


def measure(given: argparse.Namespace) -> None:
    """Print the cost, measure, print what was found, and write HTML and JSON."""
    problem = load_problem(given.target)
    Path(given.folder).mkdir(parents=True, exist_ok=True)  # or fail before the work
    blocks = None if given.by == "tensor" else partition(problem.model, given.by)
    names = ("steps", "probes", "seed", "memory", "checkpoint")
    settings = {name: getattr(given, name) for name in names}
    diagnosis = diagnose(problem, blocks, name=given.name or given.target, **settings)
    print(diagnosis)
    print("Written:", *diagnosis.save(given.folder))


def write_notebook(given: argparse.Namespace) -> None:
    """Write the notebook, unless a file of that name is there, and say how to run it."""
    if given.path.suffix != ".ipynb":
        raise ValueError(f"A notebook's name ends in .ipynb, not as {given.path} does.")
    if given.path.exists():
        raise ValueError(f"{given.path} exists: choose another name, or delete it first.")
    write_text(given.path, TEMPLATE.read_text(encoding="utf-8"))
    print(f"{given.path} is written. Open it, or (after: pip install papermill ipykernel)")
    print(f"    papermill {given.path} out.ipynb -p target my_module:make_problem")


def parser() -> argparse.ArgumentParser:
    """Describe the two commands and what they take."""
    result = argparse.ArgumentParser("blockspectra", description="Blockwise Hessian spectra.")
    result.add_argument("--version", action="version", version=__version__)
    commands = result.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("diagnose", help="measure a model; print, write HTML and JSON")
    one.set_defaults(run=measure)
    one.add_argument(
        "target", help="module:function or file.py:function; it returns a blockspectra.Problem"
    )
    one.add_argument("--folder", default="diagnosis", help="for the two files (%(default)s)")
    one.add_argument("--by", choices=PARTITIONS, default="tensor", help="the blocks (%(default)s)")
    one.add_argument("--steps", type=int, default=30, help="of Lanczos, a probe (%(default)s)")
    one.add_argument("--probes", type=int, default=4, help="a block (%(default)s)")
    one.add_argument("--seed", type=int, default=0, help="of the probes (%(default)s)")
    one.add_argument("--memory", help="for the whole process, such as 8GiB (what is free)")
    one.add_argument("--checkpoint", help="folder of finished probes: go on from it after a kill")
    one.add_argument("--name", help="what to call the model")

    other = commands.add_parser("notebook", help="write a notebook with parameters, for papermill")
    other.set_defaults(run=write_notebook)
    other.add_argument("path", type=Path, help="such as mine.ipynb")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; what is wrong with it is told in one sentence, with status 1."""
    given = parser().parse_args(arguments)
    try:
        given.run(given)
    except (ValueError, OSError) as error:  # those of targets and problems are ValueErrors
        sys.exit(f"blockspectra: {error}")
    except KeyboardInterrupt:
        sys.exit("blockspectra: stopped.")


if __name__ == "__main__":
    main()
