"""Blocks of a model: a parameter and an index into it, or several of them.

`partition` cuts the trainable parameters of any `torch.nn.Module` into blocks. The paper's own
partition is PyTorch's default one, a named weight tensor a block; the others are the coarser and
finer ones found in the literature (Adam-mini, arXiv 2406.16793, cuts Q and K by head and the rest
by output neuron).
"""

import difflib
import fnmatch
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

PARTITIONS = ("tensor", "layer", "head", "neuron")
# the names under which published models keep their attention matrices
ROLES = {
    "q": {"q", "query", "q_proj", "wq", "to_q", "q_lin", "q_proj_weight"},
    "k": {"k", "key", "k_proj", "wk", "to_k", "k_lin", "k_proj_weight"},
    "v": {"v", "value", "v_proj", "wv", "to_v", "v_lin", "v_proj_weight"},
}
FUSED = {"c_attn", "qkv", "in_proj", "in_proj_weight", "qkv_proj", "to_qkv", "Wqkv"}
HEADS = ("heads", "num_heads", "n_head", "n_heads", "num_attention_heads")


@dataclass(frozen=True, eq=False)
class Piece:
    """The entries ``parameter[index]``; an empty index is the whole parameter."""

    parameter: nn.Parameter
    index: tuple[slice, ...] = ()

    @cached_property
    def shape(self) -> torch.Size:
        """Shape of ``parameter[index]``."""
        return self.parameter[self.index].shape


@dataclass(frozen=True, eq=False)
class Block:
    """A named set of trainable entries whose diagonal block of the Hessian is measured.

    Attributes
    ----------
    name : str
        Parameter name without a trailing ``.weight``; tied weights carry all their names, joined
        by ``=``; parts of a parameter add ``.q``, ``.k``, ``.v``, ``.head3`` or ``[7]``.
    pieces : tuple of Piece
        One, but for ``by="layer"``.
    """

    name: str
    pieces: tuple[Piece, ...]

    @cached_property
    def size(self) -> int:
        """Number of entries."""
        return sum(prod(piece.shape) for piece in self.pieces)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters it lies in, one a piece."""
        return [piece.parameter for piece in self.pieces]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Gather the block's entries of tensors shaped like `parameters`, (…, size)."""
        flat = []
        for piece, tensor in zip(self.pieces, tensors, strict=True):
            lead = tensor.ndim - piece.parameter.ndim
            part = tensor[(slice(None),) * lead + piece.index]
            flat.append(part.reshape(*tensor.shape[:lead], -1))
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def expand(self, vector: Tensor) -> list[Tensor]:
        """Undo `flatten`: tensors shaped like `parameters`, (…, *shape), zero outside the block."""
        tensors, lead = [], vector.shape[:-1]
        for piece, part in zip(
            self.pieces, vector.split([prod(p.shape) for p in self.pieces], -1), strict=True
        ):
            part = part.to(piece.parameter.dtype).view(*lead, *piece.shape)
            if piece.index:
                full = part.new_zeros(*lead, *piece.parameter.shape)
                full[(slice(None),) * len(lead) + piece.index] = part
                part = full
            tensors.append(part)
        return tensors

    def __repr__(self) -> str:
        return f"Block({self.name!r}, {self.size:,} parameters)"


class Partition(list[Block]):
    """A list of blocks that also names what it leaves out because it is frozen."""

    frozen: tuple[str, ...] = ()


def partition(
    model: nn.Module,
    by: str = "tensor",
    *,
    vectors: bool = False,
    only: str | Iterable[str] | None = None,
) -> Partition:
    """Cut the trainable weights of a model into blocks.

    Parameters
    ----------
    model : torch.nn.Module
        Any model. Weights tied between modules are one block; frozen ones are left out, with a
        warning, and listed in ``.frozen`` of the result.
    by : {"tensor", "layer", "head", "neuron"}
        ``tensor``: a weight matrix, convolution kernel or embedding a block, with the Q, K and V of
        a fused attention matrix apart (the paper's default partition; its code measures GPT2 that
        way but leaves the ViT's fused, which makes the two incomparable). ``layer``: all weights
        that share their name up to its first number (``h.0``, ``features.3``). ``head``: as
        ``tensor``, but one block an attention head for Q and K. ``neuron``: one block a row, that
        is an output neuron, a convolution filter, a token of an embedding.
    vectors : bool
        Also biases, norm scales and other vectors (whole, one block each; within ``layer``, part
        of their layer).
    only : str or iterable of str
        Keep the blocks with these names; shell patterns such as ``"h.*.q"`` are allowed.

    Returns
    -------
    Partition
        A ``list`` of `Block`, in the order of the model's modules.

    Raises
    ------
    ValueError
        Unknown ``by``, a name in ``only`` that fits no block, no trainable weight, or
        ``by="head"`` on attention whose number of heads cannot be found.
    """
    if by not in PARTITIONS:
        raise ValueError(f"Unknown partition {by!r}: choose one of {', '.join(PARTITIONS)}.")
    names, owners = _parameters(model)
    frozen = tuple(_label(names[p]) for p in names if not p.requires_grad)
    if frozen:
        shown = ", ".join(frozen[:5]) + (" …" if len(frozen) > 5 else "")
        warnings.warn(f"Left out because frozen: {shown} ({len(frozen)} in all).", stacklevel=2)
    blocks = []
    layers: dict[str, list[Piece]] = {}
    for parameter, name in names.items():
        label, (module, parent) = _label(name), owners[parameter]
        if not parameter.requires_grad or not (vectors or _is_weight(parameter, name[0])):
            continue
        if by == "layer":
            layers.setdefault(_layer(name), []).append(Piece(parameter))
        elif not _is_weight(parameter, name[0]):
            blocks.append(Block(label, (Piece(parameter),)))
        else:
            blocks += _cut(label, parameter, module, parent, by)
    blocks += [Block(name, tuple(pieces)) for name, pieces in layers.items()]
    if not blocks:
        raise ValueError("The model has no trainable weight: set requires_grad on what to measure.")
    result = Partition(blocks if only is None else _select(blocks, only))
    result.frozen = frozen
    return result


def whole(model: nn.Module) -> Block:
    """Return one block of all trainable parameters: its Hessian is the full one."""
    pieces = tuple(Piece(p) for p in model.parameters() if p.requires_grad)
    if not pieces:
        raise ValueError("The model has no trainable parameter: set requires_grad on some.")
    return Block("all parameters", pieces)


def _parameters(model: nn.Module) -> tuple[dict, dict]:
    """Every parameter once, with all its names and the module and parent that own it first."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    owners = {}
    for path, module in modules.items():
        for key, parameter in module.named_parameters(recurse=False):
            names.setdefault(parameter, []).append(f"{path}.{key}" if path else key)
            owners.setdefault(parameter, (module, modules[path.rpartition(".")[0]]))
    return names, owners


def _label(names: list[str]) -> str:
    return "=".join(name.removesuffix(".weight") for name in names)


def _layer(names: list[str]) -> str:
    """Cut each name behind its first number, or at its owning module where there is none."""
    layers = []
    for name in names:
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        layers.append(".".join(parts[: numbers[0] + 1] if numbers else parts[:-1]) or name)
    return "=".join(dict.fromkeys(layers))


def _is_weight(parameter: Tensor, name: str) -> bool:
    """Say whether it is a matrix or kernel: no bias, norm scale or class token (1, 1, d)."""
    wide = sum(n > 1 for n in parameter.shape)
    return parameter.ndim >= 2 and (wide >= 2 or name.endswith("weight"))


def _cut(label, parameter, module, parent, by: str) -> list[Block]:
    """Cut one weight: fused attention into Q, K, V; then by head or by neuron where asked."""
    axis = 1 if type(module).__name__ == "Conv1D" or "ConvTranspose" in type(module).__name__ else 0
    before = (slice(None),) * axis
    last = label.split("=")[0].rpartition(".")[2]
    rows = parameter.shape[axis]
    parts = [(label, 0, rows, next((r for r, known in ROLES.items() if last in known), ""))]
    if last in FUSED and rows == 3 * parameter.shape[1 - axis]:
        third = rows // 3
        parts = [(f"{label}.{r}", i * third, (i + 1) * third, r) for i, r in enumerate("qkv")]
    blocks = []
    for name, start, stop, role in parts:
        step, suffix = stop - start, ""
        if by == "neuron":
            step, suffix = 1, "[{}]"
        elif by == "head" and role in ("q", "k"):
            step, suffix = _head_size(name, parameter, module, parent, axis), ".head{}"
        for i, low in enumerate(range(start, stop, step)):
            index = () if step == rows else (*before, slice(low, low + step))
            blocks.append(Block(name + suffix.format(i), (Piece(parameter, index),)))
    return blocks


def _head_size(name: str, parameter: Tensor, module, parent, axis: int) -> int:
    """Rows of one head, from the module that owns the weight, its parent, or their config."""
    places = (module, parent, getattr(parent, "config", None))
    found = [getattr(place, key, None) for place in places for key in HEADS]
    heads = next((n for n in found if isinstance(n, int) and n > 0), None)
    size = getattr(parent, "head_dim", None)
    if not isinstance(size, int):
        width = parameter.shape[1 - axis]  # grouped keys have fewer heads of the same size
        size = width // heads if heads and width % heads == 0 else None
    if not size or parameter.shape[axis] % size:
        raise ValueError(
            f"Cannot tell the heads of {name!r} apart: give its module an integer attribute "
            f"`heads` that divides its width, or use by='tensor'."
        )
    return size


def _select(blocks: list[Block], only: str | Iterable[str]) -> list[Block]:
    """Keep the blocks that fit a name or pattern; a pattern that fits none is an error."""
    chosen = set()
    for pattern in [only] if isinstance(only, str) else only:
        fits = [
            i
            for i, b in enumerate(blocks)
            if any(
                n == pattern or fnmatch.fnmatchcase(n, pattern)
                for n in (b.name, *b.name.split("="))
            )
        ]
        if not fits:
            names = [b.name for b in blocks]
            near = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:3]
            raise ValueError(f"No block is named {pattern!r}: did you mean {', '.join(near)}?")
        chosen.update(fits)
    return [blocks[i] for i in sorted(chosen)]
