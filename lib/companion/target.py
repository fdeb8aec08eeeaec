"""``module:function`` or ``file.py:function``, given to a chapter, as the `Problem` it returns."""

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from blockspectra.problem import Problem, ProblemError
from companion.chapter import ParameterError


def load_problem(target: str) -> Problem:
    """Import a function without arguments and call it.

    Parameters
    ----------
    target : str
        ``module:function`` of a module that can be imported, from the working folder first; or
        ``path/to/file.py:function``.

    Raises
    ------
    ParameterError
        In one sentence: the form is another, there is no such module, file or function, it cannot
        be imported, it fails, or returns something else than a `Problem`.
    """
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise ParameterError(
            f"target must be module:function or file.py:function, such as my_module:make_problem, "
            f"not {target!r}."
        )
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    except ParameterError:
        raise
    except (Exception, SystemExit) as error:
        raise ParameterError(f"{place} cannot be imported: {_told(error)}.") from None
    function = getattr(module, name, None)
    if not callable(function):
        near = difflib.get_close_matches(name, [n for n in vars(module) if n[0] != "_"], 1)
        hint = f": did you mean {near[0]}?" if near else "."
        raise ParameterError(f"{place} has no function {name}{hint}")
    try:
        problem = function()
    except ProblemError as error:
        raise ParameterError(str(error)) from None
    except (Exception, SystemExit) as error:
        raise ParameterError(f"{target} failed: {_told(error)}; call it by itself first.") from None
    if not isinstance(problem, Problem):
        raise ParameterError(
            f"{target} must return a blockspectra.Problem, not {type(problem).__name__}."
        )
    return problem


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ParameterError(f"There is no file {path}: paths count from the working folder.")
    folder = str(path.resolve().parent)  # for what it imports from beside it
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # for what it pickles
    spec.loader.exec_module(module)
    return module


def _from_module(name: str) -> ModuleType:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ParameterError(
                f"There is no module {name} in the working folder or among the installed ones: "
                f"name one that is there, or give the path of a .py file."
            ) from None
        raise


def _told(error: BaseException) -> str:
    """Return the first line of an error, with its kind, without a full stop."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first.rstrip('.')}"
