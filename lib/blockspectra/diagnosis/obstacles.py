"""What stands in the way of a Hessian, told in one sentence with the module that it is in.

`checked` says *that* a loss cannot be differentiated twice. Here every call of a module is
made again by itself, on the inputs it had, and the innermost one that fails is named.
"""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from blockspectra.checks import checked
from blockspectra.differences import copied
from blockspectra.evaluation import check_parameters
from blockspectra.problem import OutOfMemory, Problem, ProblemError, explained


def refuse(problem: Problem) -> None:
    """Refuse what has no second derivative, or gives numbers that are not nearly the loss's.

    Evaluates the first batch by itself first, so that errors of the model come out as they are.

    Raises
    ------
    ProblemError
        Autocast; all that `checked` refuses, with the module where one is to blame.
    """
    check_parameters(problem, [p for p in problem.model.parameters() if p.requires_grad])
    for call in reversed(_calls(problem)):  # outer before inner
        if call.autocast:
            raise ProblemError(
                f"Autocast is on in {call.place}, too coarse for second derivatives: leave it out "
                f"of the model and of the loss."
            )
    first = Problem(
        *(problem.model, problem.loss, problem.batches[:1]),
        batch_statistics=problem.batch_statistics,
    )
    try:
        _check(first)
    except OutOfMemory:
        raise
    except (RuntimeError, NotImplementedError, ProblemError) as error:
        told = str(error if isinstance(error, ProblemError) else explained(error))
        call = find(first)
        if call is None:
            place = " (no module fails by itself: it is in the loss)"
        else:
            place = "" if call.name and repr(call.name) in told else f" (it is in {call.place})"
        raise ProblemError(told.rstrip(".") + place + ".") from error


class Call(NamedTuple):
    """One call of a module on the way to the loss."""

    name: str  #: as in ``named_modules``; empty for the model itself
    module: nn.Module
    inputs: tuple[tuple, dict]  #: copies of what it was given
    autocast: bool  #: whether it was called under autocast

    @property
    def place(self) -> str:
        """The module, for a sentence."""
        kind = type(self.module).__name__
        return f"the {kind} {self.name!r}" if self.name else f"the model itself, {kind}"


def find(problem: Problem) -> Call | None:
    """Find the innermost call of a module whose own second derivative fails on the first batch.

    Returns
    -------
    Call or None
        None where every module passes by itself.
    """
    return next((call for call in _calls(problem, copies=True) if _fails(call)), None)


def _calls(problem: Problem, copies: bool = False) -> list[Call]:
    """Every call of a module in the first batch's loss, inner before outer."""
    calls: list[Call] = []

    def note(name):
        def hook(module, args, kwargs, output):
            on = any(map(torch.is_autocast_enabled, {"cpu", _device(module).type}))
            given = tree_map(_copy, (args, kwargs)) if copies else ((), {})
            calls.append(Call(name, module, given, on))

        return hook

    with problem.curvature_mode(), copied(problem), ExitStack() as stack:
        for name, module in problem.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            handle = module.register_forward_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        problem.value(problem.batches[0])
    return calls


class _Again(nn.Module):
    """The call of a module as a function of the module's parameters and of its inputs."""

    def __init__(self, call: Call):
        super().__init__()
        self.module = call.module
        self.leaves, self.tree = tree_flatten(call.inputs)
        self.inputs = nn.ParameterDict(
            {str(i): nn.Parameter(x) for i, x in enumerate(self.leaves) if _is_real(x)}
        )

    def forward(self) -> Tensor:
        """Mean square of all that the module returns."""
        leaves = list(self.leaves)
        for i, x in self.inputs.items():
            leaves[int(i)] = x * 1  # a module may write into its input, which a leaf forbids
        args, kwargs = tree_unflatten(leaves, self.tree)
        output = self.module(*args, **kwargs)
        output = dict(output) if isinstance(output, Mapping) else output
        return sum(x.square().mean() for x in tree_leaves(output) if _is_real(x))


def _fails(call: Call) -> bool:
    again = _Again(call)
    try:
        value = again()
    except Exception:  # what it needs from outside (a cache, a context) is gone: cannot be judged
        return False
    if not isinstance(value, Tensor) or not value.requires_grad or not torch.isfinite(value):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # of parameters that it does not use
            _check(Problem(again, lambda model, _: model(), [torch.zeros(1)]))
    except (RuntimeError, NotImplementedError, ProblemError):
        return True
    return False


def _check(problem: Problem) -> None:
    with problem.curvature_mode():
        checked(problem, [p for p in problem.model.parameters() if p.requires_grad])


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _copy(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x
