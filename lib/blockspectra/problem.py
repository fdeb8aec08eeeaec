"""`Problem`: one loss on one model and one set of batches."""

import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves, tree_map


class ProblemError(ValueError):
    """Something about the model, the loss or the data forbids a Hessian; says what to do."""


class OutOfMemory(ProblemError):
    """There is not enough memory, in the budget or at all; says what to do."""


class Problem:
    """The mean loss of a model over batches: the one function whose Hessian is taken.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, on the device and in the dtype to compute in.
    loss : callable, (model, batch) → scalar Tensor
        A mean over the batch. Batches are weighted by how much it is a mean over, so the total is
        the mean over all data and repeating the batches changes nothing. (The code released with
        the paper sums over micro-batches, which stretches the eigenvalue axis by their number.) For
        the Gauss–Newton matrix a pair: outputs(model, batch) → Tensor, loss(outputs, batch) →
        scalar.
    batches : iterable
        Tensors, or tuples, dicts or dataclasses of them; the first dimension of the first tensor is
        the batch's size. Kept as a list; those of a loader are copied, for it may write each into
        the same memory.
    batch_statistics : bool
        Allow a loss that is no mean over samples, such as BatchNorm's in training mode or a sum, to
        study it on purpose. Buffers such as running statistics are put back afterwards.
    weight : callable, batch → number, optional
        How many things the loss of a batch is a mean over, where these are not its samples: for a
        language model with labels of -100, ``lambda b: (b["labels"][:, 1:] != -100).sum()``.

    Attributes
    ----------
    weights : list of float
        Share of each batch in the mean.

    Raises
    ------
    ProblemError
        If there is no batch, one without samples or weight, or a batch instead of a list of them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor] | tuple[Callable, Callable],
        batches: Iterable[Any],
        *,
        batch_statistics: bool = False,
        weight: Callable[[Any], float] | None = None,
    ):
        if isinstance(batches, Tensor | Mapping) or _is_one_batch(batches):
            raise ProblemError("This is one batch rather than a list of them: give [batch].")
        if not isinstance(batches, list | tuple):
            batches = (mapped(_copied, batch) for batch in batches)
        self.parts = loss if isinstance(loss, tuple) else None  #: outputs, and the loss of them
        if self.parts:
            outputs, of_outputs = self.parts
            loss = lambda model, batch: of_outputs(outputs(model, batch), batch)  # noqa: E731
        self.model, self.loss, self.batches = model, loss, list(batches)
        self.batch_statistics = batch_statistics
        if not self.batches:
            raise ProblemError("The data set is empty: give at least one batch.")
        sizes = [batch_size(batch) for batch in self.batches]
        if weight is None and loss is cross_entropy:
            weight = _number_of_targets
        self.by_samples = weight is None
        if weight is not None:
            sizes = [float(weight(batch)) for batch in self.batches]
        for number, size in enumerate(sizes, 1):
            if not 0 < size < math.inf:
                raise ProblemError(f"Batch {number} has the weight {size:g}: leave it out.")
        self.weights = [size / sum(sizes) for size in sizes]

    def value(self, batch: Any) -> Tensor:
        """Loss of one batch, checked: a finite scalar that depends on the parameters."""
        try:
            loss = self.loss(self.model, batch)
        except (TypeError, ValueError, AttributeError) as error:
            if "more than 1 value per channel" in str(error):
                raise ProblemError(
                    "BatchNorm in training mode has no statistics of one value: use larger "
                    "batches, or call model.eval()."
                ) from error
            with suppress(Exception):
                if isinstance(self.loss(batch, self.model), Tensor):
                    error = ProblemError(
                        "The loss takes its arguments the other way round: define "
                        "it as loss(model, batch)."
                    )
            raise error
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ProblemError(f"The loss must be a scalar tensor, not {shape}: take its mean.")
        if not bool(torch.isfinite(loss)):
            raise ProblemError(
                f"The loss is {loss.item()}, not finite: check the data and the weights for inf "
                f"and nan, or lower the scale of the initialisation."
            )
        return loss

    def name_of(self, parameter: nn.Parameter) -> str:
        """Return the name of a parameter and its module, for a sentence."""
        for name, module in self.model.named_modules():
            for key, other in module.named_parameters(prefix=name, recurse=False):
                if other is parameter:
                    return f"{key!r} (of the {type(module).__name__})"
        return f"a parameter of shape {tuple(parameter.shape)} outside the model"

    def check_modes(self) -> None:
        """Refuse dropout, and BatchNorm that was not asked for, in training mode."""
        for name, module in self.model.named_modules():
            if module.training and isinstance(module, _DropoutNd) and module.p > 0:
                raise ProblemError(
                    f"Dropout is on in {name or 'the model'!r}: call model.eval() so that the loss "
                    f"is a function of the weights alone."
                )
            if module.training and isinstance(module, _BatchNorm) and not self.batch_statistics:
                raise ProblemError(
                    f"BatchNorm {name or 'the model'!r} is in training mode, where the loss is no "
                    f"mean over samples: call model.eval(), or pass batch_statistics=True to study "
                    f"this on purpose."
                )

    @contextmanager
    def curvature_mode(self) -> Iterator[None]:
        """Make second derivatives exact inside, and put everything back on leaving.

        TF32 and the caller's autocast off; attention forced to the math kernel, and recurrent
        layers to PyTorch's own rather than cuDNN's, and nothing compiled (the others have no second
        derivative); settings off by which embeddings change their gradient (a row that
        ``padding_idx`` zeroes is one that the loss does depend on, so double backward would not be
        the Hessian of any function), or make it sparse; gradients on.
        """
        try:
            precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        except RuntimeError as error:
            raise ProblemError(
                "TF32 is set both through fp32_precision and through PyTorch's older switches: use "
                "torch.set_float32_matmul_precision alone."
            ) from error
        embeddings = [
            m for m in self.model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        ]
        plain = {"padding_idx": None, "scale_grad_by_freq": False, "sparse": False}
        settings = [{key: getattr(m, key) for key in plain} for m in embeddings]
        recurrent = any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        enabled = torch.backends.cudnn.enabled
        norms = [m for m in self.model.modules() if m.training and self.batch_statistics]
        kept = [{k: b.clone() for k, b in m.named_buffers(recurse=False)} for m in norms]
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:  # without it, nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for kind in {"cpu"} | {p.device.type for p in self.model.parameters()} - {"meta"}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            try:
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
                torch.backends.cudnn.enabled = enabled and not recurrent
                for module in embeddings:
                    vars(module).update(plain)
                yield
            finally:
                torch.set_float32_matmul_precision(precision)
                torch.backends.cudnn.allow_tf32 = cudnn
                torch.backends.cudnn.enabled = enabled
                for module, own in zip(embeddings, settings, strict=True):
                    vars(module).update(own)
                for module, buffers in zip(norms, kept, strict=True):
                    for key, buffer in buffers.items():
                        getattr(module, key).copy_(buffer)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, in nats, of (inputs, targets): per image, or per token of a sequence.

    Targets of -100 do not count. A `Problem` weighs batches by the number of targets that do.
    """
    inputs, targets = batch
    logits = model(inputs)
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def _number_of_targets(batch: tuple[Tensor, Tensor]) -> int:
    return int((batch[1] != -100).sum())


def batch_size(batch: Any) -> int:
    """First dimension of the first tensor in a batch."""
    tensor = next((x for x in leaves(batch) if isinstance(x, Tensor) and x.ndim > 0), None)
    if tensor is None:
        raise ProblemError("A batch holds no tensor: give tensors, or tuples or dicts of them.")
    if tensor.shape[0] == 0:
        raise ProblemError("A batch is empty (its first dimension is 0): leave it out.")
    return tensor.shape[0]


def joined(*batches: Any) -> Any:
    """One batch of the samples of several; ValueError where it cannot be told how."""
    sizes = [batch_size(batch) for batch in batches]

    def join(*parts: Any) -> Any:
        if all(isinstance(x, Tensor) and x.ndim for x in parts):
            if [x.shape[0] for x in parts] == sizes:
                return torch.cat(parts)
        elif all(not isinstance(x, Tensor) and x == parts[0] for x in parts):
            return parts[0]
        raise ValueError("not one row a sample")

    return mapped(join, *batches)


def mapped(function: Callable, *batches: Any) -> Any:
    """One batch of what a function makes of each leaf of others, which are built alike."""
    plain, first = tree_map(function, *map(_plain, batches)), batches[0]
    if is_dataclass(first):
        return replace(first, **plain)
    return type(first)(plain) if isinstance(first, Mapping) else plain


def leaves(batch: Any) -> list:
    """Tensors of a batch, and whatever else is in it."""
    return tree_leaves(_plain(batch))


def _plain(batch: Any) -> Any:
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return dict(batch) if isinstance(batch, Mapping) else batch


def _copied(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x)


def _is_one_batch(batches: Any) -> bool:
    """Say whether these are (inputs, targets), told by their types, rather than batches."""
    listed = isinstance(batches, list | tuple) and all(isinstance(x, Tensor) for x in batches)
    return listed and len({(x.dtype, x.ndim) for x in batches}) > 1


def explained(error: Exception) -> ProblemError:
    """Turn what PyTorch says of a second derivative into a sentence that says what to do."""
    text = str(error).splitlines()[0]
    if is_out_of_memory(error):
        return OutOfMemory(f"Out of memory in a Hessian product: use smaller batches. {text}")
    if "attention" in text:
        return ProblemError(
            "The model uses fused (flash or efficient) attention, which has no second derivative: "
            "remove the sdpa_kernel(...) it sets itself, or build it with eager attention "
            f"(attn_implementation='eager'). PyTorch said: {text}"
        )
    return ProblemError(
        f"The loss cannot be differentiated twice: replace the function named here. {text}"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an allocation failed, on a GPU or in the host's memory."""
    kinds = MemoryError | torch.OutOfMemoryError | OutOfMemory
    # the CPU's allocator says it in words of its own on each system
    said = ("DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, kinds) or any(words in str(error) for words in said)
