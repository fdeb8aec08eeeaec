"""A target, ``module:function`` or ``file.py:function``, as the `Problem` that it returns."""

import difflib
import importlib
import runpy
import sys
from pathlib import Path

from blockspectra.problem import Problem, ProblemError


class TargetError(ValueError):
    """A target cannot be found, cannot be imported, fails, or returns no `Problem`."""

    def _render_traceback_(self) -> list[str]:
        """Show one sentence in a notebook, without the stack."""
        return [f"TargetError: {self}"]


def load_problem(target: str) -> Problem:
    """Import a function without arguments and call it.

    ``target`` is ``module:function`` of a module that can be imported, from the working folder
    first; or ``path/to/file.py:function``, which may import what lies beside it. What is wrong with
    it is told by a TargetError, in one sentence.
    """
    place, _, name = target.rpartition(":")
    if not (place and name.isidentifier()):
        raise TargetError(
            f"target must be module:function or file.py:function, such as my_module:make_problem, "
            f"not {target!r}."
        )
    names = _names(place)
    if not callable(function := names.get(name)):
        near = difflib.get_close_matches(name, [n for n in names if n[0] != "_"], 1)
        hint = f": did you mean {near[0]}?" if near else "."
        raise TargetError(f"{place} has no function {name}{hint}")
    try:
        problem = function()
    except ProblemError as error:
        raise TargetError(str(error)) from None
    except (Exception, SystemExit) as error:
        reason = _first_line(error)
        raise TargetError(f"{target} failed: {reason}; call it by itself first.") from None
    if not isinstance(problem, Problem):
        raise TargetError(
            f"{target} must return a blockspectra.Problem, not {type(problem).__name__}."
        )
    return problem


def _names(place: str) -> dict:
    """Import a module, or run a file; returns its global names."""
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise TargetError(f"There is no file {place}: paths count from the working folder.")
    folder = str(Path(place).resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if is_file:
            return runpy.run_path(place, run_name=Path(place).stem)
        return vars(importlib.import_module(place))
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{place}.".startswith(f"{missing}."):
            raise TargetError(
                f"There is no module {place} in the working folder or among the installed ones: "
                f"name one that is there, or give the path of a .py file."
            ) from None
        raise TargetError(f"{place} cannot be imported: {_first_line(error)}.") from None


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, with its kind, without a full stop."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first.rstrip('.')}"
