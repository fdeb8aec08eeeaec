r"""The Hessian of a problem's loss, by products with its diagonal blocks.

For blocks :math:`w_l` of the parameters, and the mean loss :math:`\mathcal L` over all batches,

.. math:: H_l = \frac{∂^2 \mathcal L}{∂w_l\,∂w_l^\top}, \qquad
    H_l v = \frac{∂\,(g_l^\top v)}{∂w_l}, \qquad g_l = \frac{∂\mathcal L}{∂w_l}.

The gradient is computed once and kept as a graph. For a product, autograd walks only the part of
the graph that lies between :math:`g_l` and :math:`w_l`, so it costs less than a full one: about a
third of a gradient on average over the blocks of a network. One product with all blocks' vectors
concatenated would *not* do: it adds the off-diagonal blocks.

A linear model under the mean squared error has the Hessian :math:`\frac2n X^\top X`:

>>> x, y = torch.tensor([[1.0, 2.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]), torch.ones(4, 1)
>>> model = torch.nn.Linear(2, 1, bias=False)
>>> problem = Problem(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
...                   [(x, y)])
>>> dense_hessian(problem, whole(model))
tensor([[1., 1.],
        [1., 4.]])

Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from blockspectra.blocks import Block, whole
from blockspectra.differences import (
    Differences,
    differences,
    differing,
    displaced,
    root_mean_square,
)
from blockspectra.distributed import Ranks
from blockspectra.fast_derivatives.mode import FastDerivatives
from blockspectra.memory import readable
from blockspectra.problem import OutOfMemory, Problem, ProblemError, explained, is_out_of_memory

SCRATCH = 2.0  # what a product needs beside the graph, as a share of it; measured: 0.4 to 1.9
CHEAP, PLAIN = "cheap second derivatives", "plain derivatives"
DIRECTIONS = 4  # along which a product must be wrong to be refused
_SAVED = re.compile(r"_saved_|saved_tensors$").match


class GradientGraph:
    """The gradient of one batch's loss with respect to some parameters, kept as a graph.

    Parameters
    ----------
    problem : Problem
        Not checked here; see `checked`.
    batch
        One of the problem's.
    parameters : sequence of torch.nn.Parameter
        Those of the blocks that products will be asked for.
    derivatives : str
        `CHEAP` replaces functions of PyTorch by those of `fast_derivatives`; all else does not.

    Attributes
    ----------
    batch
    loss : Tensor
        That of the batch, detached.
    gradient : dict, parameter → Tensor or None
        None where the loss does not depend on it.
    derivatives : str
        `CHEAP`, or `PLAIN` and, after a colon, why the cheap ones were not taken.

    Raises
    ------
    OutOfMemory
        If it does not fit.
    """

    def __init__(
        self,
        problem: Problem,
        batch: Any,
        parameters: Sequence[torch.nn.Parameter],
        derivatives: str = CHEAP,
    ):
        self.batch, self.derivatives = batch, derivatives
        try:
            if derivatives == CHEAP:
                with FastDerivatives(parameters) as mode:
                    value = problem.value(batch)
                self.derivatives = CHEAP if mode.replaced else PLAIN
            else:
                value = problem.value(batch)
            gradient = [None] * len(parameters)
            if value.requires_grad:
                gradient = torch.autograd.grad(
                    value, parameters, create_graph=True, allow_unused=True
                )
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            if is_out_of_memory(error):
                raise explained(error) from error
            raise
        self.loss = value.detach()
        self.gradient = dict(zip(parameters, gradient, strict=True))

    def product(self, block: Block, vector: Tensor) -> Tensor:
        """Hessian block times a vector, or times several at once by vmap.

        Parameters
        ----------
        block : Block
            With parameters that were given at the start.
        vector : Tensor, (size,) or (vector, size)
            Any float dtype; rounded to the parameters' for the product.

        Returns
        -------
        Tensor, shaped like ``vector``
            In the parameters' dtype.
        """
        return block.flatten(
            self.second_derivative(block.parameters, block.expand(vector), vector.ndim > 1)
        )

    def second_derivative(
        self, parameters: Sequence[Tensor], vectors: Sequence[Tensor], batched: bool = False
    ) -> list[Tensor]:
        """``∂(Σ gradient·vector)/∂p`` for some parameters, zero where nothing depends on it.

        Parameters
        ----------
        parameters, vectors : sequence of Tensor
            Shaped alike, but for one more dimension in front of vectors if ``batched``: one
            derivative for each of them then, by vmap.

        Raises
        ------
        ProblemError
            If a function on the way has no second derivative, or memory runs out.
        """
        pairs = [(self.gradient[p], v) for p, v in zip(parameters, vectors, strict=True)]
        pairs = [(g, v) for g, v in pairs if g is not None and g.requires_grad]
        lead = vectors[0].shape[:1] if batched else ()
        result = [None] * len(parameters)
        try:
            if pairs:
                outputs, seeds = zip(*pairs, strict=True)
                result = torch.autograd.grad(
                    outputs,
                    parameters,
                    seeds,
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=batched,
                )
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            raise explained(error) from error
        return [
            p.new_zeros(*lead, *p.shape) if h is None else h
            for h, p in zip(result, parameters, strict=True)
        ]

    def nbytes(self) -> int:
        """Bytes that the graph keeps alive beside the parameters, each storage once."""
        gradient = [g for g in self.gradient.values() if g is not None]
        saved = [getattr(node, k) for node in graph(gradient) for k in dir(node) if _SAVED(k)]
        storages = {}
        for value in [*gradient, *saved]:
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if isinstance(tensor, Tensor):
                    with suppress(RuntimeError):  # wrappers of forward-mode AD have none
                        storage = tensor.untyped_storage()
                        storages[storage.data_ptr()] = storage.nbytes()
        for p in self.gradient:
            storages.pop(p.untyped_storage().data_ptr(), None)
        return sum(storages.values())


class BlockHessians:
    """Products with the blocks of the Hessian of the mean loss over all batches.

    One forward and one backward a batch are done once and kept for all products, where that fits
    the budget; otherwise they are done again for each list of products, once for all blocks and
    vectors in it. The results are the same to the bit on a CPU.

    Parameters
    ----------
    problem : Problem
    blocks : iterable of Block
        Those that products will be asked for.
    known : GradientGraph, optional
        From `checked` for the parameters of ``blocks``, in the order of `parameters_of`: says which
        derivatives to take, and is used where its batch is this rank's first. The caller lets go
        of it. By default `checked` is called here.
    budget : int, optional
        Bytes for graphs and for what products need beside them; no bound if None.
    ranks : Ranks, optional
        The processes that share the batches; by default this one has them all.

    Attributes
    ----------
    kept : bool
        Whether all graphs are kept.
    nbytes : int
        Of one graph.
    derivatives : str
        `CHEAP`, or `PLAIN` and, after a colon, why the cheap ones were not taken.

    Raises
    ------
    ProblemError
        See `checked`; `OutOfMemory` if not even one batch's graph fits the budget.
    ValueError
        If there are more ranks than batches.
    """

    def __init__(
        self,
        problem: Problem,
        blocks: Iterable[Block],
        *,
        known: GradientGraph | None = None,
        budget: int | None = None,
        ranks: Ranks | None = None,
    ):
        self.problem, self.ranks = problem, ranks or Ranks()
        self.parameters = parameters_of(blocks)
        self.batches = self.ranks.share(list(zip(problem.batches, problem.weights, strict=True)))
        known = known or checked(problem, self.parameters)
        self.derivatives = known.derivatives
        first, *others = [batch for batch, _ in self.batches]
        graphs = [known if known.batch is first else self._graph(first)]
        self.nbytes = graphs[0].nbytes()
        if budget is not None and self.nbytes * (1 + SCRATCH) > budget:
            raise OutOfMemory(
                f"The graph of one batch and a product with it take about "
                f"{readable(self.nbytes * (1 + SCRATCH))}, and {readable(max(0, budget))} are left "
                f"for them: use smaller batches, or raise `memory`."
            )
        fits = budget is None or self.nbytes * (len(self.batches) + SCRATCH) <= budget
        self.kept = bool(self.ranks.least(fits))  # what is multiplied together depends on it
        self.graphs = graphs if self.kept else []
        try:
            self.graphs += map(self._graph, others if self.kept else [])
        except OutOfMemory:
            if self.ranks.parts > 1:
                raise  # the others keep theirs
            del graphs, known
            self.drop()

    def products(self, wanted: Sequence[tuple[Block, Tensor]]) -> list[Tensor]:
        """Blocks of the Hessian times vectors, each batch's graph used for all of them in turn.

        Parameters
        ----------
        wanted : sequence of (Block, Tensor)
            See `GradientGraph.product` for the shapes.

        Returns
        -------
        list of Tensor
            In the parameters' dtype; float64 sums where there are several batches.
        """
        totals: list[Any] = [0] * len(wanted)
        several = len(self.problem.batches) > 1
        for i, (batch, weight) in enumerate(self.batches):
            graph = self.graphs[i] if self.kept else self._graph(batch)
            for k, (block, vector) in enumerate(wanted):
                product = graph.product(block, vector)
                totals[k] = totals[k] + weight * product.double() if several else product
            del graph  # before the next one is made
        totals = self.ranks.sum(totals, [vector for _, vector in wanted])
        return [
            t.to(block.parameters[0].dtype) for t, (block, _) in zip(totals, wanted, strict=True)
        ]

    def product(self, block: Block, vector: Tensor) -> Tensor:
        """One block of the Hessian times a vector."""
        return self.products([(block, vector)])[0]

    def drop(self) -> None:
        """Keep the graphs no longer: from now on they are made again for each list of products."""
        self.kept, self.graphs = False, []

    def _graph(self, batch: Any) -> GradientGraph:
        return GradientGraph(self.problem, batch, self.parameters, self.derivatives)


def parameters_of(blocks: Iterable[Block]) -> list[torch.nn.Parameter]:
    """Return the parameters that blocks lie in, each once."""
    return list(dict.fromkeys(p for block in blocks for p in block.parameters))


def hessian_product(problem: Problem, vector: Tensor) -> Tensor:
    """Full Hessian over all trainable parameters times a flat vector, in the model's order."""
    return block_products(problem, [whole(problem.model)], [vector])[0]


def block_products(
    problem: Problem, blocks: Sequence[Block], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """Each block's Hessian times its own vector, from one shared graph.

    Parameters
    ----------
    problem : Problem
        Checked before anything is computed.
    blocks : sequence of Block
        From `partition`.
    vectors : sequence of Tensor
        One of shape (block.size,) a block.

    Returns
    -------
    list of Tensor
        One of shape (block.size,) a block.
    """
    for block, vector in zip(blocks, vectors, strict=True):
        if vector.shape != (block.size,):
            raise ValueError(
                f"Block {block.name!r} needs a vector of shape ({block.size},), "
                f"not {tuple(vector.shape)}."
            )
    with problem.curvature_mode():
        return BlockHessians(problem, blocks).products(list(zip(blocks, vectors, strict=True)))


def dense_hessian(problem: Problem, block: Block, *, limit: int = 10_000) -> Tensor:
    """Exact Hessian of a small block, (size, size), column by column.

    Raises
    ------
    ValueError
        If the block has more than ``limit`` parameters: it would take as many products.
    """
    if block.size > limit:
        raise ValueError(
            f"Block {block.name!r} has {block.size:,} parameters, above the limit of {limit:,} for "
            f"a dense Hessian: use block_spectra, or raise `limit`."
        )
    with problem.curvature_mode():
        hessian, (first, *_) = BlockHessians(problem, [block]), block.parameters
        unit = torch.eye(block.size, dtype=first.dtype, device=first.device)
        matrix = torch.stack([hessian.product(block, row) for row in unit], dim=1)
    if not bool(torch.isfinite(matrix).all()):
        raise ProblemError(_not_finite(f"block {block.name!r}"))
    return matrix


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
            _product(problem, found, loss, PLAIN)  # may know better what is wrong
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
            raise ProblemError(_not_finite(problem.name_of(p)))
    return graph, dict(zip(parameters, product, strict=True))


def _check_unchanged(first: float, second: float) -> None:
    if not math.isclose(first, second, rel_tol=1e-6):
        raise ProblemError(
            f"The loss changed from {first:.8g} to {second:.8g} between two evaluations: call "
            f"model.eval(), and look for functional dropout or sampling."
        )


def _check_nodes(kept: GradientGraph) -> None:
    for node in graph(kept.gradient.values()):
        if 0 <= (row := getattr(node, "_saved_padding_idx", -1)) < 2**63:  # none is 2⁶⁴ - 1
            raise ProblemError(
                f"F.embedding is called with padding_idx={row}, which keeps a row out of the "
                f"gradient that the loss depends on: leave padding_idx out."
            )
        if node.name() == "torch::autograd::Error":  # would be left out in silence
            raise ProblemError(
                "The loss cannot be differentiated twice: some autograd function is marked "
                "once_differentiable; replace it."
            )


def _not_finite(where: str) -> str:
    return (
        f"The Hessian of {where} is not finite: some function has no second derivative at this "
        f"point, as a norm or a square root of 0, or float32 overflows; try float64."
    )


def graph(tensors: Iterable[Tensor | None]) -> Iterator[torch.autograd.graph.Node]:
    """Walk the autograd graph behind some tensors, each node once."""
    seen, queue = set(), [t.grad_fn for t in tensors if t is not None]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [parent for parent, _ in node.next_functions]
            yield node
