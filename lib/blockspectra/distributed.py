"""Several processes of `torch.distributed` at work on the same spectra.

Every call has a gloo group of its own, closed when the call ends. So a rank that fails ends the
others' waiting at once, whoever started them, and only sums of products on GPUs go through the
script's own group, which may be NCCL.
"""

import math
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

SPLITS = ("batches", "blocks")
PATIENCE = timedelta(days=30)  # a rank with smaller blocks or batches waits for the others


class Ranks:
    """The processes among which batches or blocks are split; to be used in a ``with`` statement.

    Parameters
    ----------
    split : {"batches", "blocks"} or None
        ``batches``: each rank has every world-size-th batch, products are summed over ranks.
        ``blocks``: each rank computes other runs over all batches. None: this process alone.
    device : torch.device
        Where the model is.

    Attributes
    ----------
    rank, size : int
        Number of this process, and of all; 0 and 1 where nothing is split.
    parts, ways : int
        Into how many the batches and the runs are split: ``parts * ways == size``.
    neighbours : int
        Ranks, this one too, that share the memory of this machine or GPU.
    nccl : bool
        Whether products are summed by NCCL.
    writes : bool
        Whether this rank keeps on disk what it computes: one is enough where all compute the same.

    Raises
    ------
    ValueError
        On another split, or where no process group was made.
    """

    def __init__(self, split: str | None = None, device: torch.device | None = None):
        if split is not None and split not in SPLITS:
            raise ValueError(f"Unknown ranks={split!r}: choose one of {', '.join(SPLITS)}.")
        if split is not None and not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"ranks={split!r} needs a process group: start the script with torchrun and call "
                f"torch.distributed.init_process_group() first."
            )
        self.split, self.device, self.neighbours, self.nccl = split, device, 1, False
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if split else (0, 1)
        self.parts = self.size if split == "batches" else 1
        self.ways = self.size // self.parts
        self.writes = self.parts == 1 or self.rank == 0

    def __enter__(self) -> Self:
        if self.split:
            self._group = dist.new_group(backend="gloo")
            try:
                self._look_around()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.split:  # whoever waits for this rank is told, once no name is left of the group
            dist.destroy_process_group(self.__dict__.pop("_group"))

    def share(self, batches: Sequence[Any]) -> list[Any]:
        """Return the batches that this rank has to multiply with.

        Raises
        ------
        ValueError
            On every rank alike, if there are fewer batches than ranks.
        """
        if len(batches) < self.parts:
            raise ValueError(
                f"ranks='batches' with {self.size} ranks needs as many batches, not "
                f"{len(batches)}: make smaller ones, start fewer ranks, or use ranks='blocks'."
            )
        return list(batches[self.rank % self.parts :: self.parts])

    def mine(self, number: int) -> bool:
        """Say whether the run with this number is this rank's to compute."""
        return number % self.ways == self.rank % self.ways

    def agree(self, about: dict[str, Any]) -> None:
        """Refuse to go on where ranks differ.

        Parameters
        ----------
        about : dict
            What must be the same on all ranks, by what it is called; numbers to rounding error.

        Raises
        ------
        ValueError
            On every rank alike, if any differs from rank 0.
        """
        if not self.split:
            return
        first, *others = self._exchange(about)
        for rank, other in enumerate(others, start=1):
            if differ := [key for key in first if not _alike(first[key], other.get(key))]:
                raise ValueError(
                    f"Rank {rank} differs from rank 0 in {', '.join(differ)}: give every rank the "
                    f"same model, weights, batches in the same order, and arguments."
                )

    def least(self, number: int) -> int:
        """Return the least of the numbers that ranks with other batches name at this point."""
        if self.parts == 1:
            return number
        return int(self._meet(-1, number, 0)[:, 1].min())

    def sum(self, products: list[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Sum products over the ranks with other batches, in place; all get the same bits.

        Parameters
        ----------
        products : list of Tensor
            Each this rank's part of a sum.
        vectors : sequence of Tensor
            What was multiplied: from their first numbers ranks know that they do the same.

        Raises
        ------
        ValueError
            On every rank alike, if they are not at the same products.
        """
        if self.parts > 1:
            firsts = torch.stack([vector.flatten()[0] for vector in vectors])
            self._meet(len(vectors), sum(map(torch.numel, vectors)), float(firsts.sum()))
            products = [product.contiguous() for product in products]
            for product in products:
                if self.nccl:
                    dist.all_reduce(product)
                else:
                    self._add(product)
        return products

    def merge(self, numbers: Tensor) -> Tensor:
        """Put together float64 numbers where one rank has each and the others have zero.

        Parameters
        ----------
        numbers : Tensor, float64 on the CPU
            Changed in place.
        """
        if self.ways > 1:
            # as integers: no bit is lost, of nan or of -0.0 neither
            self._add(numbers.view(torch.int64))
        return numbers

    def _look_around(self) -> None:
        cuda = self.device is not None and self.device.type == "cuda"
        gpu = str(torch.cuda.get_device_properties(self.device).uuid) if cuda else ""
        places = self._exchange((socket.gethostname(), gpu))
        self.neighbours = places.count(places[self.rank])
        self.nccl = cuda and self.parts > 1 and "cuda:nccl" in dist.get_backend_config()
        if self.nccl and len(set(places)) < self.size:
            raise ValueError(
                "NCCL cannot sum over ranks on one GPU: put the model of each rank on "
                "f\"cuda:{os.environ['LOCAL_RANK']}\", and start as many ranks as there are GPUs."
            )

    def _exchange(self, thing: Any) -> list[Any]:
        every = [None] * self.size
        try:
            dist.all_gather_object(every, thing, group=self._group)
        except RuntimeError as error:
            raise self._lost(error) from error
        return every

    def _meet(self, kind: int, *numbers: float) -> Tensor:
        """Show all ranks where each is, (rank, number); refuse where that is not one place."""
        rows = torch.zeros(self.size, 1 + len(numbers), dtype=torch.float64)
        rows[self.rank] = torch.tensor([kind, *numbers])
        self._add(rows)
        same = rows[:, :1] if kind < 0 else rows
        if (rows[:, 0] < 0).any() != (kind < 0) or not torch.allclose(same, same[:1], 1e-6, 1e-9):
            raise ValueError(
                "Ranks are not at the same products: give all of them one checkpoint folder that "
                "all see, and enough memory."
            )
        return rows

    def _add(self, tensor: Tensor) -> None:
        options = dist.AllreduceOptions()
        options.timeout = PATIENCE
        try:
            self._group.allreduce([tensor], options).wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> ConnectionError:
        error.__traceback__ = None  # its frames would keep the group, and with it others waiting
        return ConnectionError(
            f"Rank {self.rank} has lost the others: one has ended or failed, and its own message "
            f"says why. ({str(error).splitlines()[0]})"
        )


def _alike(first: Any, other: Any) -> bool:
    if isinstance(first, float) and isinstance(other, float):
        return math.isclose(first, other, rel_tol=1e-6)
    return first == other
