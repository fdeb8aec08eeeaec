"""`Problem`: one loss on one model and one set of batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves


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
        A mean over the batch. Batches are weighted by their size, so the total is the mean over
        all data and repeating the batches changes nothing. (The code released with the paper sums
        over micro-batches, which stretches the eigenvalue axis by their number.) For the
        Gauss–Newton matrix a pair: outputs(model, batch) → Tensor, loss(outputs, batch) → scalar.
    batches : iterable
        Tensors, tuples or dicts of tensors; the first dimension of the first tensor is the batch's
        size. Kept as a list.
    batch_statistics : bool
        Allow BatchNorm in training mode, to study it on purpose: the loss is then no mean over
        samples. Running statistics are put back afterwards.

    Raises
    ------
    ProblemError
        If there is no batch, or one without samples.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor] | tuple[Callable, Callable],
        batches: Iterable[Any],
        *,
        batch_statistics: bool = False,
    ):
        self.parts = loss if isinstance(loss, tuple) else None  #: outputs, and the loss of them
        if self.parts:
            outputs, of_outputs = self.parts
            loss = lambda model, batch: of_outputs(outputs(model, batch), batch)  # noqa: E731
        self.model, self.loss, self.batches = model, loss, list(batches)
        self.batch_statistics = batch_statistics
        if not self.batches:
            raise ProblemError("The data set is empty: give at least one batch.")
        sizes = [_batch_size(batch) for batch in self.batches]
        self.weights = [size / sum(sizes) for size in sizes]  #: share of each batch in the mean

    def value(self, batch: Any) -> Tensor:
        """Loss of one batch, checked: a finite scalar that depends on the parameters."""
        loss = self.loss(self.model, batch)
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

        TF32 off; attention forced to the math kernel (the fused ones have no second derivative);
        ``padding_idx`` of embeddings off (it zeroes a row of the gradient that the loss does
        depend on, so double backward would not be the Hessian of any function); gradients on.
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
        padding = [m.padding_idx for m in embeddings]
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.training]
        kept = [{k: b.clone() for k, b in m.named_buffers(recurse=False)} for m in norms]
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            try:
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
                for module in embeddings:
                    module.padding_idx = None
                yield
            finally:
                torch.set_float32_matmul_precision(precision)
                torch.backends.cudnn.allow_tf32 = cudnn
                for module, index in zip(embeddings, padding, strict=True):
                    module.padding_idx = index
                for module, buffers in zip(norms, kept, strict=True):
                    for key, buffer in buffers.items():
                        getattr(module, key).copy_(buffer)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, in nats, of (inputs, targets): per image, or per token of a sequence.

    Targets of -100 do not count; a mean over batches is exact where each sequence has the same
    number of targets.
    """
    inputs, targets = batch
    logits = model(inputs)
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def _batch_size(batch: Any) -> int:
    leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    tensor = next((x for x in leaves if isinstance(x, Tensor) and x.ndim > 0), None)
    if tensor is None:
        raise ProblemError("A batch holds no tensor: give tensors, or tuples or dicts of them.")
    if tensor.shape[0] == 0:
        raise ProblemError("A batch is empty (its first dimension is 0): leave it out.")
    return tensor.shape[0]


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
    known = MemoryError | torch.OutOfMemoryError | OutOfMemory
    # the CPU's allocator says it in words of its own on each system
    said = ("DefaultCPUAllocator: can't allocate", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, known) or any(words in str(error) for words in said)
