"""Several processes of `torch.distributed` at work on the same spectra.

Every call has a gloo group of its own, closed when the call ends. So a rank that fails ends the
others' waiting at once, whoever started them, and only sums of products on GPUs go through the
script's own group, which may be NCCL.
"""

import math
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(days=30)  # a rank with smaller blocks or batches waits for the others


class Ranks:
    """The processes among which batches or blocks are split; to be used in a ``with`` statement.

    With the ``split`` "batches", each rank has every world-size-th batch, and products are summed
    over ranks; with "blocks", each rank computes other runs over all batches; None is this process
    alone. ``device`` is where the model is.

    Attributes
    ----------
    rank, size : int
        Number of this process, and of all; 0 and 1 where nothing is split.
    parts : int
        Into how many the batches are split: ``size`` or 1.
    neighbours : int
        Ranks, this one too, that share the memory of this machine or GPU.
    """

    def __init__(self, split: str | None = None, device: torch.device | None = None):
        if split not in (None, "batches", "blocks"):
            raise ValueError(f"Unknown ranks={split!r}: choose one of batches, blocks.")
        if split is not None and not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"ranks={split!r} needs a process group: start the script with torchrun and call "
                f"torch.distributed.init_process_group() first."
            )
        self.split, self.cuda = split, device is not None and device.type == "cuda"
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if split else (0, 1)
        self.parts, self.neighbours = self.size if split == "batches" else 1, 1
        gpu = torch.cuda.get_device_properties(device).uuid if self.cuda and split else None
        self._place = f"{socket.gethostname()} {gpu}"

    def __enter__(self) -> Self:
        if self.split:
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
            self.neighbours = self.gather(self._place).count(self._place)
        return self

    def __exit__(self, *error: object) -> None:
        if self.split:  # with the last reference to the group gone, ranks that wait get an error
            dist.destroy_process_group(self.__dict__.pop("_group"))

    def share(self, batches: Sequence[Any]) -> list[Any]:
        """Return the batches of this rank; ValueError on every rank if there are too few."""
        if len(batches) < self.parts:
            raise ValueError(
                f"ranks='batches' with {self.size} ranks needs as many batches, not "
                f"{len(batches)}: make smaller ones, start fewer ranks, or use ranks='blocks'."
            )
        return list(batches[self.rank % self.parts :: self.parts])

    def mine(self, number: int) -> bool:
        """Say whether the run with this number is this rank's to compute."""
        return self.split != "blocks" or number % self.size == self.rank

    def gather(self, thing: Any) -> list[Any]:
        """Return what all ranks give, in their order."""
        every = [thing] * self.size
        if self.split:
            self._wait(dist.all_gather_object, every, thing)
        return every

    def least(self, number: Any) -> Any:
        """Return the least that ranks with other batches have: they go on in step with it."""
        return min(self.gather(number)) if self.parts > 1 else number

    def agree(self, about: dict[str, Any]) -> None:
        """Raise a ValueError on every rank if one differs from rank 0 by more than rounding."""
        first, *others = self.gather(about)
        for rank, other in enumerate(others, start=1):
            if differ := [key for key in first if not _alike(first[key], other.get(key))]:
                raise ValueError(
                    f"Rank {rank} differs from rank 0 in {', '.join(differ)}: give every rank the "
                    f"same model, weights, batches in the same order, and arguments."
                )

    def sum(self, products: list[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Sum products over the ranks with other batches, in place; all get the same bits.

        By the sizes and first numbers of the ``vectors`` multiplied, ranks know that they are at
        the same products; if not, all raise a ValueError.
        """
        if self.parts == 1:
            return products
        firsts = float(sum(vector.flatten()[0] for vector in vectors))
        here = torch.zeros(self.size, 3, dtype=torch.float64)
        here[self.rank] = here.new_tensor([len(vectors), sum(map(torch.numel, vectors)), firsts])
        self._wait(dist.all_reduce, here)  # by gloo: a rank that has failed is noticed here
        if not torch.allclose(here, here[:1], 1e-6, 1e-9):
            raise ValueError(
                "Ranks are not at the same products: give all of them one checkpoint folder that "
                "all see, and machines of one kind."
            )
        products = [product.contiguous() for product in products]
        nccl = self.cuda and "cuda:nccl" in dist.get_backend_config()
        for product in products:
            dist.all_reduce(product) if nccl else self._wait(dist.all_reduce, product)
        return products

    def _wait(self, collective: Callable, *arguments: Any) -> None:
        try:
            collective(*arguments, group=self._group)
        except RuntimeError as error:
            error.__traceback__ = None  # its frames would keep the group, and others waiting
            raise ConnectionError(
                f"Rank {self.rank} has lost the others: one has ended or failed, and its own "
                f"message says why. ({str(error).splitlines()[0]})"
            ) from error


def _alike(first: Any, other: Any) -> bool:
    floats = isinstance(first, float) and isinstance(other, float)
    return math.isclose(first, other, rel_tol=1e-6) if floats else first == other
