"""What an evaluation of the loss must do, and must not, before second derivatives are of use.

It must depend on the parameters asked for, be a mean over what batches are weighted by, and leave
the model as it is. All of it shows in what happens, whatever the modules are called.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.parameter import UninitializedTensorMixin

from blockspectra.blocks import NO_VALUES
from blockspectra.differences import copied, displaced, root_mean_square
from blockspectra.gradient_graph import GradientGraph, graph
from blockspectra.problem import Problem, ProblemError, joined, leaves

# A batch repeated has the loss of the batch, but for rounding; a sum grows alike each time.
ALIKE = 1e-2
# Errors of a mean that are rounding: a share of it, and times what the batch repeated had.
ROUNDING = 1e-4, 20
CACHE = (
    "The loss depends on {}, which evaluating it again does not compute again: switch off what "
    "keeps it, such as a cached weight or parametrize.cached()."
)


def check_parameters(problem: Problem, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse parameters that are not the model's, or that nothing can be differentiated in."""
    names = {p: name for name, p in problem.model.named_parameters()}
    for p, name in names.items():
        if isinstance(p, UninitializedTensorMixin) or p.is_meta:
            raise ProblemError(NO_VALUES.format(name))
    _check_memory(names)
    for p in parameters:
        if p not in names:
            raise ProblemError(
                f"A block lies in {problem.name_of(p)}: make blocks of the problem's own model, as "
                f"it is now, with partition(problem.model)."
            )
        start = f"Parameter {names[p]!r}"
        if not p.requires_grad:
            raise ProblemError(f"{start} is frozen: set its requires_grad, or partition again.")
        if p.is_inference():
            raise ProblemError(
                f"{start} was made in inference mode, where nothing can be differentiated: build "
                f"the model outside of torch.inference_mode()."
            )
        if p.dtype not in (torch.float32, torch.float64):
            kind = str(p.dtype).removeprefix("torch.")
            raise ProblemError(
                f"{start} is {kind}, and second derivatives need real numbers in float32 or "
                f"float64: call model.float(), and give the batches so too."
            )


def _check_memory(names: Mapping[nn.Parameter, str]) -> None:
    """Refuse parameters that lie in the same memory without being one, so that both move."""
    within = defaultdict(list)  # a storage
    for p in names:
        if p.layout == torch.strided and p.numel() and (start := p.untyped_storage().data_ptr()):
            within[start].append(p)
    for group in filter(lambda group: len(group) > 1, within.values()):
        taken = torch.zeros(group[0].untyped_storage().nbytes(), dtype=torch.bool)
        for p in group:
            own = taken.as_strided(p.shape, p.stride(), p.storage_offset())
            if own.any():
                raise ProblemError(
                    f"Parameter {names[p]!r} shares memory with another without being the same: "
                    f"tie them by assigning the parameter itself, or clone its data."
                )
            own.fill_(True)


def evaluated(problem: Problem, batch: Any) -> tuple[float, set[nn.Parameter]]:
    """Loss of a batch, and what it depends on; refuses one that changes the model."""
    buffers = dict(problem.model.named_buffers())
    before = dict(problem.model.named_parameters()) | buffers
    tensors = [x for x in leaves(batch) if isinstance(x, Tensor) and not x.is_inference()]
    unwritten = [(x, x._version) for x in tensors]
    with _forgotten(problem.model), copied(problem) as kept:
        value = problem.value(batch)
        now = dict(problem.model.named_parameters()) | dict(problem.model.named_buffers())
        changed = [name for name, t in now.items() if t in kept and not _same(t.data, kept[t])]
    if any(x._version > version for x, version in unwritten):
        raise ProblemError("Evaluating the loss writes into its batch: let it write into a clone.")
    for name, old in before.items():  # one that was replaced; caches that grow may be
        if (new := now.get(name)) is not old and new is not None and new.shape == old.shape:
            changed += [] if name in buffers and _same(new, old) else [name]
            owner, _, key = name.rpartition(".")
            setattr(problem.model.get_submodule(owner), key, old)
    for name in changed:
        if name not in buffers:
            raise ProblemError(
                f"Evaluating the loss changes parameter {name!r}, as max_norm of an embedding "
                f"does: do not change weights when the model is called."
            )
        if not problem.batch_statistics:
            raise ProblemError(
                f"Evaluating the loss changes buffer {name!r}: call model.eval(), or pass "
                f"batch_statistics=True to study this on purpose."
            )
    if not value.requires_grad:
        raise ProblemError("The loss does not depend on any trainable parameter of the model.")
    for node in graph([value]):
        for output in getattr(node, "_input_metadata", ()):  # of its derivative, that is
            if (dtype := getattr(output, "dtype", None)) in (torch.bfloat16, torch.float16):
                kind = str(dtype).removeprefix("torch.")
                raise ProblemError(
                    f"The loss is computed in {kind} in part ({node.name()}), too coarse for "
                    f"second derivatives: leave out autocast, and call model.float()."
                )
    return value.item(), _leaves(value)


@contextmanager
def _forgotten(model: nn.Module) -> Iterator[None]:
    """Take back what an evaluation leaves in plain attributes of modules, such as a cached weight.

    The next evaluation, with other weights, makes it anew, and shows if one after that keeps it.
    """
    held = {"_parameters", "_buffers", "_modules"}
    buffers = {name for name, _ in model.named_buffers()}
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    inside = [
        (value, copy.copy(value))
        for _, before in kept
        for key, value in before.items()
        if type(value) in (dict, list, set) and key not in held
    ]
    try:
        yield
    finally:
        for own, before in kept:
            for key in own.keys() - before.keys():
                del own[key]
            own.update(before)
        for value, content in inside:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        for name in {name for name, _ in model.named_buffers()} - buffers:
            owner, _, key = name.rpartition(".")
            delattr(model.get_submodule(owner), key)


def fingerprint(problem: Problem, batch: Any, parameters: Sequence[nn.Parameter]) -> list[float]:
    """Tell a loss by its value, parameters displaced a little, and its gradient's size in each."""
    with displaced(parameters, 0):
        value = problem.value(batch)
        gradient = [None] * len(parameters)
        if value.requires_grad:
            gradient = torch.autograd.grad(value, parameters, allow_unused=True)
    return [value.item(), *(0.0 if g is None else root_mean_square(g) for g in gradient)]


def _same(left: Tensor, right: Tensor) -> bool:
    if left.layout != torch.strided or left.dtype != right.dtype:
        return left.layout != torch.strided
    left, right = (x.detach().resolve_conj().resolve_neg().flatten() for x in (left, right))
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def _leaves(value: Tensor) -> set[Tensor]:
    """Return what a gradient can be asked for; data exchanged since then cut a graph off."""
    ends = [(node, node.variable) for node in graph([value]) if hasattr(node, "variable")]
    return {leaf for node, leaf in ends if get_gradient_edge(leaf).node is node}


def check_cache(problem: Problem, batch: Any, reached: set, kept: GradientGraph | None) -> None:
    """Refuse a loss that depends on less once it was evaluated."""
    found = kept.gradient if kept else {}
    if kept and all(found.get(p, 0) is not None for p in reached):
        return
    own = reached.intersection(problem.model.parameters())
    if lost := own - _leaves(problem.value(batch)):
        raise ProblemError(CACHE.format(problem.name_of(next(iter(lost)))))


def check_mean(problem: Problem, losses: Sequence[float]) -> None:
    """Refuse sums, and means over something else than batches are weighted by."""
    twice = _joint_loss(problem, 0, 0)
    if twice is None or not losses[0]:
        return
    ratio, share, times = twice / losses[0], *ROUNDING
    thrice = _joint_loss(problem, 0, 0, 0) if abs(ratio - 1) > share else None
    if thrice is not None and abs((thrice - twice) / (twice - losses[0]) - 1) < ALIKE:
        raise ProblemError(
            f"The loss of a batch repeated is {ratio:.4g} times its own, and grows as much again "
            f"the third time, so it is a sum, at least in part: take the mean, or pass "
            f"batch_statistics=True to study it on purpose."
        )
    if abs(ratio - 1) > ALIKE:
        if len(losses) > 1:
            warnings.warn(
                f"The loss of a batch repeated is {ratio:.3g} times its own, so it is no mean: the "
                f"Hessian of the mean over batches depends on which samples share one.",
                stacklevel=3,
            )
        return
    apart = ()
    for a, b in pairwise(range(len(losses))):
        left, right = problem.weights[a], problem.weights[b]
        mean = (left * losses[a] + right * losses[b]) / (left + right)
        together = _joint_loss(problem, a, b)
        if together is None and _shapes(problem, a) != _shapes(problem, b):
            apart = a, b
        bound = times * abs(twice - losses[0]) + share * max(abs(losses[a]), abs(losses[b]))
        if together is not None and abs(together - mean) > bound:
            raise ProblemError(
                f"The losses of batches {a + 1} and {b + 1} are {losses[a]:.4g} and "
                f"{losses[b]:.4g}, and of both in one {together:.4g}, not their mean {mean:.4g}: "
                f"give Problem a weight=, the number of what a batch's loss is a mean over, such "
                f"as labels that count, or batch_statistics=True if it is no mean."
            )
    if apart and problem.by_samples and not problem.batch_statistics:
        warnings.warn(
            f"Batches {apart[0] + 1} and {apart[1] + 1} have other shapes and cannot be put into "
            f"one, which would show what their loss is a mean over: where that is not samples, "
            f"give Problem a weight=, such as the number of tokens.",
            stacklevel=3,
        )


def _shapes(problem: Problem, number: int) -> list:
    return [x.shape for x in leaves(problem.batches[number]) if isinstance(x, Tensor)]


def _joint_loss(problem: Problem, *numbers: int) -> float | None:
    """Loss of several batches in one; None where they make none, or it is no mean on purpose."""
    if problem.batch_statistics:
        return None
    try:
        return problem.value(joined(*(problem.batches[n] for n in numbers))).item()
    except Exception:  # a model may know batches of its own alone
        return None
