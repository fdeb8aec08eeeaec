"""Whether a problem has a Hessian, and which derivatives give products with it: `checked`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockspectra.differences import (
    Differences,
    differences,
    differing,
    displaced,
    root_mean_square,
)
from blockspectra.gradient_graph import CHEAP, PLAIN, GradientGraph, graph
from blockspectra.problem import OutOfMemory, Problem, ProblemError

DIRECTIONS = 4  # displaced points at which a product must also be wrong to be refused


def checked(problem: Problem, parameters: Sequence[torch.nn.Parameter]) -> GradientGraph:
    """Refuse, in one sentence, a loss without a Hessian or with products that are not its.

    A product through all parameters, by cheap second derivatives, is compared in each of them with
    differences of plain gradients. Where the cheap ones raise or differ, or differences cannot
    tell, it is made by plain ones too, and these are taken unless both agree. All takes about
    seven gradients of the first batch, twelve where differences are uncertain; call it inside
    `Problem.curvature_mode`.

    Parameters
    ----------
    problem : Problem
    parameters : sequence of torch.nn.Parameter
        Those to differentiate in.

    Returns
    -------
    GradientGraph
        That of the first batch, for products.

    Raises
    ------
    ProblemError
        Dropout or BatchNorm in training mode, by name; a loss that changes between two
        evaluations; a loss or a product that is not finite; attention or another function without
        second derivative; a gradient or a product that is wrong.
    """
    problem.check_modes()
    graph, derivatives, wrong = _judged(problem, parameters, 0)
    for seed in range(1, 1 + DIRECTIONS):
        if wrong:
            with displaced(parameters, seed):
                graph, derivatives, wrong = _judged(problem, parameters, seed)
            graph = None
    if wrong:
        blame = "look for hooks that change gradients, and for functions with a custom backward"
        raise ProblemError(f"{wrong}: {blame}.")
    return graph or GradientGraph(problem, problem.batches[0], parameters, derivatives)


def _judged(
    problem: Problem, parameters: Sequence[torch.nn.Parameter], seed: int
) -> tuple[GradientGraph | None, str, str]:
    """Graph of the first batch if it is at hand, the derivatives to take, and what is wrong.

    With seed 0, quickly: what disagrees may be right.
    """
    batch = problem.batches[0]
    value = problem.value(batch)
    if not value.requires_grad:
        raise ProblemError("The loss does not depend on any trainable parameter of the model.")
    loss = value.item()
    del value  # before another graph is made
    found = differences(problem, batch, parameters, seed, both=seed > 0)
    if found.slope_error:
        if seed:
            _product(problem, found, loss, PLAIN)  # raises with a clearer reason, if it can
        return None, "", found.slope_error
    product, why = None, ""
    try:
        graph, product = _product(problem, found, loss, CHEAP)
    except OutOfMemory:
        raise
    except Exception as error:  # a model may do anything with functions that are not PyTorch's own
        why = f"raised {type(error.__cause__ or error).__name__}"
    else:
        if (wrong := found.wrong(product)) is not None:
            if not seed:
                return None, "", "not yet sure"
            why = f"differ in {problem.name_of(wrong)}"
        elif graph.derivatives == PLAIN or not found.unclear:
            return graph, graph.derivatives, ""
        del graph  # before another one is made
    try:
        graph, right = _product(problem, found, loss, PLAIN)
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
    graph.derivatives = f"{PLAIN}: the cheap ones {why}"
    return graph, graph.derivatives, ""


def _product(
    problem: Problem, found: Differences, loss: float, derivatives: str
) -> tuple[GradientGraph, dict[torch.nn.Parameter, Tensor]]:
    """Graph of the first batch, and the product with all parameters along the direction found."""
    parameters = list(found.vectors)
    graph = GradientGraph(problem, problem.batches[0], parameters, derivatives)
    _check_unchanged(loss, graph.loss.item())
    _check_nodes(graph)
    product = graph.second_derivative(parameters, list(found.vectors.values()))
    for p, h in zip(parameters, product, strict=True):
        if not bool(torch.isfinite(h).all()):
            raise ProblemError(not_finite(problem.name_of(p)))
    return graph, dict(zip(parameters, product, strict=True))


def _check_unchanged(first: float, second: float) -> None:
    if not math.isclose(first, second, rel_tol=1e-6):
        raise ProblemError(
            f"The loss changed from {first:.8g} to {second:.8g} between two evaluations: call "
            f"model.eval(), and look for functional dropout or sampling."
        )


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
