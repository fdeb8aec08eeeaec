"""Whether a problem has a Hessian, and which derivatives give products with it: `checked`."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blockspectra.differences import (
    Differences,
    differences,
    differing,
    displaced,
    root_mean_square,
)
from blockspectra.evaluation import (
    CACHE,
    check_cache,
    check_mean,
    check_parameters,
    evaluated,
    fingerprint,
)
from blockspectra.gradient_graph import CHEAP, PLAIN, GradientGraph, graph
from blockspectra.problem import OutOfMemory, Problem, ProblemError

ALIKE = 1e-4  # differences of a loss or a gradient that are rounding
CHANGED = (
    "The loss or its gradient changed while products were taken: look for hooks that do not act "
    "each time, and for a model or a loss that counts its calls."
)
DIRECTIONS = 4  # displaced points at which a product must also be wrong to be refused


def checked(
    problem: Problem, parameters: Sequence[nn.Parameter], derivatives: str = CHEAP
) -> GradientGraph:
    """Refuse, in one sentence, a loss without a Hessian or with products that are not its.

    For each batch, a product through all parameters, by cheap second derivatives, is compared in
    each of them with differences of plain gradients. Where the cheap ones raise or differ, or
    differences cannot tell, it is made by plain ones too, and these are taken unless both agree.
    The loss of the first batch repeated, and of any two that follow each other in one, shows
    whether it is a mean over what batches are weighted by. All takes about fifteen gradients a
    batch, half as many again where differences are uncertain; call it inside
    `Problem.curvature_mode`, and `check_unchanged` when products are no longer needed.

    Beyond reach are a constant that was computed from weights before, or in a closure, which is
    like any other constant, and a change that comes and goes between this and `check_unchanged`
    without making the products of one Lanczos run differ from those of a symmetric matrix.

    Parameters
    ----------
    problem : Problem
    parameters : sequence of torch.nn.Parameter
        Those to differentiate in. Warns of those that the loss does not depend on.
    derivatives : str
        What to begin with: `CHEAP`, or `PLAIN` with a reason.

    Returns
    -------
    GradientGraph
        That of the first batch, for products.

    Raises
    ------
    ProblemError
        Parameters that are not the model's, frozen, or in a precision too low; dropout or BatchNorm
        in training mode, by name; a loss that changes between two evaluations, or changes
        parameters or buffers, or that is no mean; a loss or a product that is not finite; attention
        or another function without second derivative; a gradient or a product that is wrong.
    """
    check_parameters(problem, parameters)
    problem.check_modes()
    losses, fingerprints, unused = [], [], dict.fromkeys(parameters)
    for number, batch in enumerate(problem.batches):
        kept = None  # before another graph is made
        with _told_of(problem, number):
            loss, reached = evaluated(problem, batch)
            losses.append(loss)
            fingerprints.append(fingerprint(problem, batch, parameters))
            try:
                kept, found = _settled(problem, batch, parameters, loss, derivatives)
            except ProblemError:  # of a cache, more can be said
                check_cache(problem, batch, reached, kept)
                raise
            check_cache(problem, batch, reached, kept)
        if number and found.startswith(f"{PLAIN}:") and found != derivatives:
            kept = None
            return checked(problem, parameters, found)
        derivatives = derivatives if number else found
        for p in reached:
            unused.pop(p, None)
    check_mean(problem, losses)
    if unused:
        warnings.warn(
            f"The loss does not depend on {', '.join(map(problem.name_of, list(unused)[:3]))} "
            f"({len(unused)} in all), so their Hessian is 0: leave them out, or look for what cuts "
            f"them off, such as adapters that eval() merges or a weight that is cached.",
            stacklevel=2,
        )
    if kept is None or len(losses) > 1:
        kept = None
        kept = GradientGraph(problem, problem.batches[0], parameters, derivatives)
    kept.fingerprints = fingerprints
    return kept


def check_unchanged(
    problem: Problem, parameters: Sequence[nn.Parameter], fingerprints: Sequence[Sequence[float]]
) -> None:
    """Refuse a loss or a gradient that is not what it was when the problem was `checked`."""
    for number, (batch, before) in enumerate(zip(problem.batches, fingerprints, strict=True)):
        with _told_of(problem, number):
            after = fingerprint(problem, batch, parameters)
            least = ALIKE * max(before[1:])
            for one, other in zip(before, after, strict=True):
                if not math.isclose(one, other, rel_tol=ALIKE, abs_tol=least):
                    raise ProblemError(CHANGED)


def checks_bytes(problem: Problem, parameters: Sequence[nn.Parameter]) -> int:
    """Bytes of copies in float64, a direction and gradients that checks make, as measured."""
    every, asked = (sum(p.numel() for p in ps) for ps in (problem.model.parameters(), parameters))
    return 8 * every + 42 * asked


@contextmanager
def _told_of(problem: Problem, number: int) -> Iterator[None]:
    """Say in which batch something is wrong, where there are several."""
    try:
        yield
    except OutOfMemory:
        raise
    except (ProblemError, RuntimeError) as error:
        told = str(error)
        if "backward through the graph a second time" in told:
            told = CACHE.format("what it kept of its first evaluation")
        elif "_will_engine_execute_node" in told:
            told = (
                "A hook waits for several gradients at once, which only backward() has: remove it."
            )
        elif not isinstance(error, ProblemError) or len(problem.batches) == 1:
            raise
        if len(problem.batches) > 1:
            told = f"{told.rstrip('.')} (in batch {number + 1} of {len(problem.batches)})."
        raise ProblemError(told) from error


def _settled(
    problem: Problem, batch: Any, parameters: Sequence[nn.Parameter], loss: float, derivatives: str
) -> tuple[GradientGraph | None, str]:
    """Graph of a batch if it is at hand, and the derivatives to take."""
    kept, found, wrong = _judged(problem, batch, parameters, 0, loss, derivatives)
    for seed in range(1, 1 + DIRECTIONS):
        if wrong:
            with displaced(parameters, seed):
                loss = problem.value(batch).item()
                _, found, wrong = _judged(problem, batch, parameters, seed, loss, derivatives)
            kept = None
    if wrong:
        blame = (
            "look for hooks that change gradients, for detach() and no_grad() on the way, for "
            "checkpoints with use_reentrant=True, and for functions with a custom backward"
        )
        raise ProblemError(f"{wrong}: {blame}.")
    return kept, found


def _judged(
    problem: Problem,
    batch: Any,
    parameters: Sequence[nn.Parameter],
    seed: int,
    loss: float,
    derivatives: str,
) -> tuple[GradientGraph | None, str, str]:
    """Graph of a batch if it is at hand, the derivatives to take, and what is wrong.

    With seed 0, quickly: what disagrees may be right.
    """
    found = differences(problem, batch, parameters, seed, both=seed > 0, loss=loss)
    if found.slope_error:
        if seed:
            _product(problem, batch, found, loss, PLAIN)  # raises with a clearer reason, if it can
        return None, "", found.slope_error
    product, why = None, derivatives.removeprefix(f"{PLAIN}: the cheap ones ")
    if derivatives == CHEAP:
        try:
            kept, product = _product(problem, batch, found, loss, CHEAP)
            why = ""
        except OutOfMemory:
            raise
        except Exception as error:  # a model may do anything with functions not PyTorch's own
            why = f"raised {type(error.__cause__ or error).__name__}"
        else:
            if (wrong := found.wrong(product)) is not None:
                if not seed:
                    return None, "", "not yet sure"
                why = f"differ in {problem.name_of(wrong)}"
            elif kept.derivatives == PLAIN or not found.unclear:
                return kept, kept.derivatives, ""
            del kept  # before another one is made
    try:
        kept, right = _product(problem, batch, found, loss, PLAIN)
    except ProblemError:
        if why:
            raise
        return None, CHEAP, ""  # of fused attention there are no plain ones
    if (wrong := found.wrong(right)) is not None:
        error, size = map(root_mean_square, (right[wrong] - found.products[wrong], right[wrong]))
        told = (
            f"The second derivative is wrong in {problem.name_of(wrong)}, by {error:.2g} of "
            f"{size:.2g} (root mean squares)"
        )
        return None, "", told
    if not why and (wrong := differing(product, right)) is not None:
        why = f"differ in {problem.name_of(wrong)}"
    if not why:
        return None, CHEAP, ""
    kept.derivatives = PLAIN if why == PLAIN else f"{PLAIN}: the cheap ones {why}"
    return kept, kept.derivatives, ""


def _product(
    problem: Problem, batch: Any, found: Differences, loss: float, derivatives: str
) -> tuple[GradientGraph, dict[nn.Parameter, Tensor]]:
    """Graph of a batch, and the product with all parameters along the direction found."""
    parameters = list(found.vectors)
    kept = GradientGraph(problem, batch, parameters, derivatives)
    if not math.isclose(loss, again := kept.loss.item(), rel_tol=1e-6):
        raise ProblemError(
            f"The loss changed from {loss:.8g} to {again:.8g} between two evaluations: call "
            f"model.eval(), and look for functional dropout, sampling, and what is kept between "
            f"evaluations, such as a cached weight."
        )
    _check_nodes(kept)
    product = kept.second_derivative(parameters, list(found.vectors.values()))
    for p, h in zip(parameters, product, strict=True):
        if not bool(torch.isfinite(h).all()):
            raise ProblemError(not_finite(problem.name_of(p)))
    return kept, dict(zip(parameters, product, strict=True))


def _check_nodes(kept: GradientGraph) -> None:
    for node in graph(kept.gradient.values()):
        if 0 <= (row := getattr(node, "_saved_padding_idx", -1)) < 2**63:  # none: 2⁶⁴ − 1
            raise ProblemError(
                f"F.embedding is called with padding_idx={row}, which keeps a row out of the "
                f"gradient that the loss depends on: leave padding_idx out."
            )
        if node.name() == "torch::autograd::Error":  # would be left out in silence
            raise ProblemError(
                "The loss cannot be differentiated twice: some autograd function is marked "
                "once_differentiable; replace it."
            )


def not_finite(where: str) -> str:
    """Say what to do about second derivatives that are inf or nan."""
    return (
        f"The Hessian of {where} is not finite: some function has no second derivative at this "
        f"point, as a norm or a square root of 0, or float32 overflows; try float64."
    )
