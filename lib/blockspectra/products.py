r"""Products with the Hessian and its diagonal blocks by double backward.

For a block :math:`w_l` the product is :math:`H_l v = ∂(g_l^\top v)/∂w_l` with the gradient
:math:`g_l = ∂L/∂w_l` kept as a graph. Autograd walks only the part of the graph that lies between
:math:`g_l` and :math:`w_l`, so a block's product costs less than a full one: about a third of a
gradient on average over the blocks of a network. One product with all blocks' vectors side by side
would *not* do: it adds the off-diagonal blocks.
Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from blockspectra.blocks import Block, whole
from blockspectra.distributed import Ranks
from blockspectra.double_backward import OutOfMemory, ProblemError
from blockspectra.gradient_graph import GradientGraph, checked
from blockspectra.memory import readable
from blockspectra.problem import Problem

SCRATCH = 2.0  # what a product needs beside the graph, as a share of it; measured: 0.4 to 1.9


class BlockHessians:
    """Products with the blocks of the Hessian of the mean loss over all batches.

    One forward and one backward a batch are done once and kept for all products, where that fits
    the budget; otherwise they are done again for each list of products, once for all blocks and
    vectors in it. The results are the same to the bit on a CPU.

    Parameters
    ----------
    problem : Problem
        Not checked here; see `checked`.
    blocks : iterable of Block
        Those that products will be asked for.
    known : GradientGraph, optional
        Of one of the batches and of the parameters of ``blocks``, in the order of `parameters_of`:
        not made again. The caller lets go of it.
    budget : int, optional
        Bytes for graphs and for what products need beside them; no bound if None.
    ranks : Ranks, optional
        The processes that share the batches; by default this one has them all.

    Attributes
    ----------
    kept : bool
        Whether all graphs are kept.

    Raises
    ------
    OutOfMemory
        If not even one batch's graph fits the budget.
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
        first, *others = self.batches
        graphs = [known if known and known.batch is first[0] else self._graph(first)]
        self.nbytes = graphs[0].nbytes()  # of one graph
        if budget is not None and self.nbytes * (1 + SCRATCH) > budget:
            raise OutOfMemory(
                f"The graph of one batch and a product with it take about "
                f"{readable(self.nbytes * (1 + SCRATCH))}, and {readable(max(0, budget))} are left "
                f"for them: use smaller batches, or raise `memory`."
            )
        fits = budget is None or self.nbytes * (len(self.batches) + SCRATCH) <= budget
        self.kept = self.ranks.least(fits)  # the same on all ranks: they sum products in step
        self.graphs = graphs if self.kept else []
        self.graphs += map(self._graph, others if self.kept else [])

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
        if self.kept and len(self.graphs) == self.ranks.parts == 1:
            return [self.graphs[0].product(block, vector) for block, vector in wanted]
        totals = [0.0] * len(wanted)
        for i, (batch, weight) in enumerate(self.batches):
            graph = self.graphs[i] if self.kept else self._graph((batch, weight))
            for k, (block, vector) in enumerate(wanted):
                totals[k] = totals[k] + weight * graph.product(block, vector).double()
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

    def _graph(self, batch: tuple[Any, float]) -> GradientGraph:
        return GradientGraph(self.problem, batch[0], self.parameters)


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
        known = checked(problem, parameters_of(blocks))
        return BlockHessians(problem, blocks, known=known).products(
            list(zip(blocks, vectors, strict=True))
        )


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
        hessian = BlockHessians(problem, [block], known=checked(problem, parameters_of([block])))
        unit = torch.eye(
            block.size, dtype=block.parameters[0].dtype, device=block.parameters[0].device
        )
        matrix = torch.stack([hessian.product(block, row) for row in unit], dim=1)
    if not bool(torch.isfinite(matrix).all()):
        raise ProblemError(
            f"The Hessian of block {block.name!r} is not finite: some function has no second "
            f"derivative at this point, or float32 overflows; try float64."
        )
    return matrix
