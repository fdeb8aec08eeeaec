"""Blocks of a model: a parameter and an index into it, or several of them.

`partition` cuts the trainable parameters of any `torch.nn.Module` into blocks. The paper's own
partition is PyTorch's default one, a named weight tensor a block; the others are the coarser and
finer ones found in the literature (Adam-mini, arXiv 2406.16793, cuts Q and K by head and the rest
by output neuron).
"""

import difflib
import fnmatch
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

PARTITIONS = ("tensor", "layer", "head", "neuron")
# the names under which published models keep the attention matrices that have a block a head
CUT_BY_HEAD = {"q", "query", "q_proj", "wq", "to_q", "q_lin", "q_proj_weight"}
CUT_BY_HEAD |= {"k", "key", "k_proj", "wk", "to_k", "k_lin", "k_proj_weight"}
# fused attention matrices, and those (package, class, name) of them whose code was read: Q over K
# over V. Others interleave these head by head, or fuse something else under such a name.
FUSED = {"c_attn", "qkv", "in_proj", "in_proj_weight", "qkv_proj", "to_qkv", "Wqkv"}
FUSED |= {"query_key_value", "att_proj"}
KNOWN = {
    "torch.MultiheadAttention.in_proj_weight",
    "transformers.GPT2Attention.c_attn",
    "transformers.DecisionTransformerGPT2Attention.c_attn",
    "transformers.ImageGPTAttention.c_attn",
    "transformers.ModernBertAttention.Wqkv",
    "transformers.MptAttention.Wqkv",
    "timm.Attention.qkv",
}
# nanoGPT's is copied into many packages, and changed there: its code must read as it does
CALL = r"self\.c_attn\(\w+\)"
NANO_GPT = re.compile(
    rf"(?:(\w+) *= *{CALL}\s+)?\bq *, *k *, *v *= *(?:{CALL}|\1)\.(?:split|chunk)\("
)
NO_VALUES = "Parameter {!r} has no values yet: load them or run the model once first."
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

    The name is the parameter's without a trailing ``.weight``; tied weights carry all their names,
    joined by ``=``; parts of a parameter add ``.q``, ``.k``, ``.v``, ``.head3`` or ``[7]``.
    """

    name: str
    pieces: tuple[Piece, ...]  #: one, but for ``by="layer"``

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
            part = part.to(piece.parameter.dtype).view((*lead, *piece.shape))
            if piece.index:
                full = part.new_zeros((*lead, *piece.parameter.shape))
                full[(slice(None),) * len(lead) + piece.index] = part
                part = full
            tensors.append(part)
        return tensors

    def __repr__(self) -> str:
        return f"Block({self.name!r}, {self.size:,} parameters)"


def parameters_of(blocks: Iterable[Block]) -> list[nn.Parameter]:
    """Return the parameters that blocks lie in, each once."""
    return list(dict.fromkeys(p for block in blocks for p in block.parameters))


def partition(
    model: nn.Module,
    by: str = "tensor",
    *,
    vectors: bool = False,
    only: str | Iterable[str] | None = None,
    fused: Mapping[str, str] | None = None,
) -> list[Block]:
    """Cut the trainable weights of a model into blocks.

    Parameters
    ----------
    model : torch.nn.Module
        Any model. Weights tied between modules are one block; frozen ones are left out, with a
        warning. Those without entries are none.
    by : {"tensor", "layer", "head", "neuron"}
        ``tensor``: a weight matrix, convolution kernel or embedding a block, with the Q, K and V of
        a fused attention matrix apart. ``layer``: all weights that share their name up to its first
        number (``h.0``, ``features.3``). ``head``: as ``tensor``, but one block an attention head
        for Q and K. ``neuron``: one block a row, that is an output neuron, a convolution filter, a
        token of an embedding.
    vectors : bool
        Also biases, norm scales and other vectors (whole, one block each; within ``layer``, part
        of their layer).
    only : str or iterable of str
        Keep the blocks with these names; shell patterns such as ``"h.*.q"`` are allowed.
    fused : mapping, str → str, optional
        Equal parts, one upon the other, of fused weights whose names fit a pattern, such as
        ``{"*.qkv": "q k v"}``, or ``""`` to leave them whole. By default, those of attention that
        are known (`KNOWN`), or that a module tells of in an attribute ``fused`` of this form; what
        only looks like one stays whole, with a warning.

    Returns
    -------
    list of Block
        In the order of the model's modules.

    Raises
    ------
    ValueError
        Unknown ``by``, a name in ``only`` that fits no block, no trainable weight, weights without
        values, parts in ``fused`` that a weight does not have, or ``by="head"`` on attention whose
        number of heads cannot be found.
    """
    if by not in PARTITIONS:
        raise ValueError(f"Unknown partition {by!r}: choose one of {', '.join(PARTITIONS)}.")
    blocks, frozen, unknown = [], [], []
    layers: dict[str, list[Piece]] = {}
    for parameter, (names, module, parent) in _parameters(model).items():
        label = "=".join(name.removesuffix(".weight") for name in names)
        weight = _is_weight(parameter, names[0])
        if not parameter.requires_grad:
            frozen.append(label)
        elif not (weight or vectors):
            continue
        elif by == "layer":
            layers.setdefault(_layer(names), []).append(Piece(parameter))
        elif not weight:
            blocks.append(Block(label, (Piece(parameter),)))
        else:
            parts = _parts(label, parameter, (parent, module), fused or {})
            unknown += [label] if parts is None and by != "neuron" else []
            blocks += _cut(label, parameter, module, parent, by, parts or "")
    if frozen:
        shown = f"{', '.join(frozen[:5])} ({len(frozen)} in all)"
        warnings.warn(f"Left out because frozen: {shown}.", stacklevel=2)
    if unknown:
        warnings.warn(
            f"Left whole because the order of what they fuse is not known: "
            f"{', '.join(unknown[:3])} ({len(unknown)} in all); say it, as in "
            f"fused={{'*.qkv': 'q k v'}}, or '' to leave them so.",
            stacklevel=2,
        )
    blocks += [Block(name, tuple(pieces)) for name, pieces in layers.items()]
    if not blocks:
        raise ValueError("The model has no trainable weight: set requires_grad on what to measure.")
    return blocks if only is None else _select(blocks, only)


def whole(model: nn.Module) -> Block:
    """Return one block of all trainable parameters: its Hessian is the full one."""
    pieces = tuple(Piece(p) for p in _parameters(model) if p.requires_grad)
    if not pieces:
        raise ValueError("The model has no trainable parameter: set requires_grad on some.")
    return Block("all parameters", pieces)


def _parameters(model: nn.Module) -> dict[nn.Parameter, tuple[list[str], nn.Module, nn.Module]]:
    """Every parameter with entries once: its names, its first module, and the parent of that."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for path, module in modules.items():
        for key, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{key}" if path else key
            if isinstance(parameter, UninitializedTensorMixin) or parameter.is_meta:
                raise ValueError(NO_VALUES.format(name))
            if parameter.numel():
                owners = module, modules[path.rpartition(".")[0]]
                found.setdefault(parameter, ([], *owners))[0].append(name)
    return found


def _last(label: str) -> str:
    """Return a weight's own name, without the modules it is in."""
    return label.split("=")[0].rpartition(".")[2]


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


def _parts(label: str, parameter, modules, given: Mapping[str, str]) -> str | None:
    """Parts that one weight fuses, empty if none; None if it looks fused in an unknown order."""
    last = _last(label)
    thirds = max(parameter.shape[:2]) == 3 * min(parameter.shape[:2])  # others share keys
    for pattern, parts in given.items():
        if _fits(label, pattern):
            return parts
    for module in modules:
        told = getattr(module, "fused", None)
        if isinstance(told, Mapping) and last in told:
            return told[last]
        for kind in type(module).__mro__:
            place = f"{kind.__module__.partition('.')[0]}.{kind.__name__}.{last}"
            if thirds and place in KNOWN:
                return "q k v"
        if thirds and last == "c_attn" and NANO_GPT.search(_code(module)):
            return "q k v"
    return None if last in FUSED and thirds else ""


def _code(module: nn.Module) -> str:
    try:
        return inspect.getsource(module.forward)
    except (OSError, TypeError):
        return ""


def _cut(label, parameter, module, parent, by: str, fused: str) -> list[Block]:
    """Cut one weight into what it fuses; then by head or by neuron where asked."""
    kind = type(module).__name__
    axis = 1 if kind == "Conv1D" or "ConvTranspose" in kind else 0  # of output neurons
    rows, roles = parameter.shape[axis], fused.split()
    size, rest = divmod(rows, max(1, len(roles)))
    if "by" in roles:
        raise ValueError(
            f"{label!r} cannot be cut as {fused!r}: blocks are parts one upon the other. Leave it "
            f"whole with fused={{{label!r}: ''}}."
        )
    if rest or len(set(roles)) < len(roles):
        raise ValueError(
            f"{label!r} has {rows} rows, which {fused!r} does not cut into equal parts: "
            f"correct `fused`."
        )
    parts = [(f"{label}.{role}", role in ("q", "k")) for role in roles]
    parts = parts or [(label, _last(label) in CUT_BY_HEAD)]
    blocks = []
    for start, (name, heads) in zip(range(0, rows, size), parts, strict=True):
        step, suffix = size, ""
        if by == "neuron":
            step, suffix = 1, "[{}]"
        elif by == "head" and heads:
            step, suffix = _head_size(name, parameter, module, parent, axis), ".head{}"
        for i, low in enumerate(range(start, start + size, step)):
            index = () if step == rows else (slice(None),) * axis + (slice(low, low + step),)
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
        fits = [i for i, block in enumerate(blocks) if _fits(block.name, pattern)]
        if not fits:
            names = [b.name for b in blocks]
            near = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:3]
            raise ValueError(f"No block is named {pattern!r}: did you mean {', '.join(near)}?")
        chosen.update(fits)
    return [blocks[i] for i in sorted(chosen)]


def _fits(label: str, pattern: str) -> bool:
    """Say whether a pattern fits the whole name of a block, or one of its tied names."""
    names = (label, *label.split("="))
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)
