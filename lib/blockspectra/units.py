"""What Lanczos advances at a time, and how much memory that takes."""

from dataclasses import dataclass

import torch

from blockspectra.blocks import Block

VECTORS = 6  # float64 vectors a run needs beside its basis: three of its own, three on the way


def run_bytes(size: int, steps: int, basis: torch.dtype | None) -> int:
    """Bytes that one Lanczos run over a block of this size takes."""
    kept = min(steps, size) * basis.itemsize if basis is not None else 0
    return size * (8 * VECTORS + kept)


@dataclass(frozen=True)
class Unit:
    """Some probes of a block, advanced by one product."""

    number: int  #: of the block among all
    block: Block
    probes: tuple[int, ...]

    @property
    def name(self) -> str:
        """What its file is called."""
        probes = "-".join(map(str, self.probes))
        return f"block{self.number:05d}-probe{probes}"

    def split(self) -> list["Unit"]:
        """Cut it in two halves of the probes."""
        half = len(self.probes) // 2
        return [Unit(self.number, self.block, p) for p in (self.probes[:half], self.probes[half:])]
