"""`Problem`: one loss on one model and one set of batches, and the checks it must pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from blockspectra.double_backward import ProblemError, differentiate_again, graph
from blockspectra.twice import CheapTwice


class Problem:
    """The mean loss of a model over batches: the one function whose Hessian is taken.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, on the device and in the dtype to compute in.
    loss : callable, (model, batch) → scalar Tensor
        A mean over the batch. Batches are weighted by their size, so the total is the mean over
        all data and repeating the batches changes nothing. (The code released with the paper sums
        over micro-batches, which stretches the eigenvalue axis by their number.)
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
        loss: Callable[[nn.Module, Any], Tensor],
        batches: Iterable[Any],
        *,
        batch_statistics: bool = False,
    ):
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

    def check(self) -> None:
        """Refuse, in one sentence, a loss that is random, not finite or not twice differentiable.

        Evaluates the first batch twice and differentiates it twice; call inside `curvature_mode`.

        Raises
        ------
        ProblemError
            Dropout or BatchNorm in training mode, by name; a loss that changes between two
            evaluations; a non-finite loss; attention or another function without second derivative;
            a second derivative that is not symmetric.
        """
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
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        with torch.no_grad():
            first = self.value(self.batches[0])
        with CheapTwice():  # as products are taken
            second = self.value(self.batches[0])
        if not torch.isclose(first, second, rtol=1e-6, atol=0):
            raise ProblemError(
                f"The loss changed from {first.item():.8g} to {second.item():.8g} between two "
                f"evaluations: call model.eval(), and look for functional dropout or sampling."
            )
        if not parameters or not second.requires_grad:
            raise ProblemError("The loss does not depend on any trainable parameter of the model.")
        generator = torch.Generator().manual_seed(0)
        u, v = (
            [torch.randn(p.shape, generator=generator).to(p) for p in parameters] for _ in range(2)
        )
        gradient = torch.autograd.grad(second, parameters, create_graph=True, allow_unused=True)
        for node in graph([second, *gradient]):  # both would give a wrong Hessian in silence
            if 0 <= (row := getattr(node, "_saved_padding_idx", -1)) < 2**63:  # none is 2⁶⁴ - 1
                raise ProblemError(
                    f"F.embedding is called with padding_idx={row}, which keeps a row out of the "
                    f"gradient that the loss depends on: leave padding_idx out."
                )
            if node.name() == "torch::autograd::Error":
                raise ProblemError(
                    "The loss cannot be differentiated twice: some autograd function is marked "
                    "once_differentiable; replace it."
                )
        hu, hv = (differentiate_again(gradient, parameters, vector) for vector in (u, v))
        left, right = _dot(v, hu), _dot(u, hv)
        scale = (max(_dot(u, u) * _dot(hv, hv), _dot(v, v) * _dot(hu, hu))) ** 0.5
        size = sum(p.numel() for p in parameters)
        tolerance = 0.01 / size**0.5 + 10 * torch.finfo(first.dtype).eps  # |uᵀHv| ≈ ‖u‖‖Hv‖/√d
        if abs(left - right) > tolerance * scale:
            raise ProblemError(
                f"The second derivative is not symmetric (uᵀHv = {left:.6g}, vᵀHu = {right:.6g}): "
                f"some function has a gradient of its own making (a custom backward?); remove it."
            )


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, in nats, of (inputs, targets): per image, or per token of a sequence.

    Targets of -100 do not count; a mean over batches is exact where each sequence has the same
    number of targets.
    """
    inputs, targets = batch
    logits = model(inputs)
    return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)))


def _batch_size(batch: Any) -> int:
    leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    tensor = next((x for x in leaves if isinstance(x, Tensor) and x.ndim > 0), None)
    if tensor is None:
        raise ProblemError("A batch holds no tensor: give tensors, or tuples or dicts of them.")
    if tensor.shape[0] == 0:
        raise ProblemError("A batch is empty (its first dimension is 0): leave it out.")
    return tensor.shape[0]
