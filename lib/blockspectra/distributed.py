"""Several processes of `torch.distributed` that share the Lanczos runs of one call.

Every call has a gloo group of its own, closed when the call ends. So a rank that fails ends the
others' waiting at once, whoever started them, and the script's own group, which may be NCCL, stays
as it is.
"""

import math
import socket
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist

TIMEOUT = timedelta(days=30)  # a rank with smaller blocks waits for the others


class Ranks:
    """The processes that share runs, each of them over all batches; for a ``with`` statement.

    The ``split`` is "blocks", or None for this process alone; ``device`` is where the model is.

    Attributes
    ----------
    rank, size : int
        Number of this process, and of all; 0 and 1 where nothing is split.
    neighbours : int
        Ranks, this one too, that share the memory of this machine or GPU.
    """

    def __init__(self, split: str | None, device: torch.device):
        if split not in (None, "blocks"):
            raise ValueError(
                f"Unknown ranks={split!r}: choose ranks='blocks', by which each process computes "
                f"other runs."
            )
        if split and not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"ranks={split!r} needs a process group: start the script with torchrun and call "
                f"torch.distributed.init_process_group() first."
            )
        self.split, self.device = bool(split), device
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if split else (0, 1)
        self.neighbours = 1

    def __enter__(self) -> Self:
        if self.split:
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
            place = socket.gethostname()
            if self.device.type == "cuda":
                place = f"{place} {torch.cuda.get_device_properties(self.device).uuid}"
            self.neighbours = self.gather(place).count(place)
        return self

    def __exit__(self, *error: object) -> None:
        if self.split:  # with the last reference to the group gone, ranks that wait get an error
            dist.destroy_process_group(self.__dict__.pop("_group"))

    def gather(self, thing: Any) -> list[Any]:
        """Return what all ranks give, in order; ConnectionError if one has ended or failed."""
        every = [thing] * self.size
        if self.split:
            try:
                dist.all_gather_object(every, thing, group=self._group)
            except RuntimeError as error:
                error.__traceback__ = None  # its frames would keep the group, and others waiting
                raise ConnectionError(
                    f"Rank {self.rank} has lost the others: one has ended or failed, and its own "
                    f"message says why. ({str(error).splitlines()[0]})"
                ) from error
        return every

    def agree(self, about: dict[str, Any]) -> None:
        """Raise a ValueError on every rank if one differs from rank 0 by more than rounding."""
        first, *others = self.gather(about)
        for rank, other in enumerate(others, start=1):
            if differ := [key for key in first if not _alike(first[key], other.get(key))]:
                raise ValueError(
                    f"Rank {rank} differs from rank 0 in {', '.join(differ)}: give every rank the "
                    f"same model, weights, batches in the same order, and arguments."
                )


def _alike(first: Any, other: Any) -> bool:
    if isinstance(first, list) and isinstance(other, list):
        return len(first) == len(other) and all(map(_alike, first, other))
    floats = isinstance(first, float) and isinstance(other, float)
    return math.isclose(first, other, rel_tol=1e-6) if floats else first == other
