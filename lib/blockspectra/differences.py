r"""Differences of plain gradients and of the loss, with which products with the Hessian must agree.

Along a direction :math:`v` they are :math:`D_\pm = \pm(g(w \pm hv) - g(w))/h`. The product
:math:`Hv` is their mean, but for about half of :math:`|D_+ - D_-|`, whatever makes that uncertain:
the third derivative, rounding, or a ReLU that switches in between. So each parameter is judged on
its own scale and by its own uncertainty, and what is too uncertain to tell is not refused. The
gradients share nothing with the product: no function is replaced, and a hook acts once. A gradient
that is not the loss's own fails against differences of the loss along the same direction.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from blockspectra.problem import Problem, mapped

# Step, as a share of each parameter's root mean square. In float64, rounding is 1e-8 of the
# gradient, and among 1e6 activations hardly any ReLU switches: errors of 1e-8 in the models here.
# In float32 rounding asks for far more, and ReLUs do switch.
STEP = {torch.float64: 1e-8, torch.float32: 1e-3}
# The longest one for differences of the loss alone, which need not be near.
FAR = {torch.float64: 1e-4, torch.float32: 1e-2}
# Least error of a product that is refused: a share of its own size in this parameter, and of the
# largest one in any, for terms may cancel (in the bias of keys, to zero). Sound products have 1e-3
# of that in either precision.
TOLERANCE = {torch.float64: (1e-4, 1e-6), torch.float32: (1e-2, 1e-5)}
SURE = 3  # times the uncertainty: of few numbers, D₊ and D₋ may be alike by chance
NEARBY = 1e-3  # a displacement, as a share like the steps
ROUNDING = 20  # error of a sum, in units of the machine's for its largest terms


@dataclass(frozen=True, eq=False)
class Differences:
    """Differences along one direction through some parameters."""

    vectors: dict[nn.Parameter, Tensor]  #: the direction
    products: dict[nn.Parameter, Tensor]  #: by differences, the Hessian times the direction
    uncertain: dict[nn.Parameter, float]  #: largest root mean square of their error
    slope_error: str  #: what is wrong with the gradient; empty where nothing is

    @property
    def unclear(self) -> list[nn.Parameter]:
        """Parameters in which an error above the tolerance may not show."""
        return [p for p, bound in _tolerated(self.products).items() if self.uncertain[p] > bound]

    def wrong(self, product: Mapping[nn.Parameter, Tensor]) -> nn.Parameter | None:
        """Return the parameter in which the Hessian times the direction is most wrong, if any."""
        return differing(product, self.products, self.uncertain)


def differing(
    product: Mapping[nn.Parameter, Tensor],
    right: Mapping[nn.Parameter, Tensor],
    uncertain: Mapping[nn.Parameter, float] | None = None,
) -> nn.Parameter | None:
    """Return the parameter in which two products with the Hessian differ most, if in any.

    Each is judged on its own scale, by the tolerance and by how uncertain the right one is.
    """
    most, worst = 1.0, None
    for p, bound in _tolerated(right).items():
        error = root_mean_square(product[p] - right[p])
        bound += uncertain[p] if uncertain else 0.0
        if error > most * bound:
            most, worst = (error / bound if bound else math.inf), p
    return worst


def differences(
    problem: Problem,
    batch: Any,
    parameters: Sequence[nn.Parameter],
    seed: int = 0,
    *,
    both: bool = True,
    loss: float | None = None,
) -> Differences:
    """Take differences, in float64 where model and device lend themselves to it.

    What remains of their error is then far below that of products in float32. Parameters are moved
    along a direction that the seed draws, and put back. Both sides take three gradients. One side,
    in float64 alone, takes two: what agrees with it is right; whether what does not is wrong, its
    uncertainty does not tell. Where float64 gives another ``loss``, as other random numbers of one
    seed do, it is not taken, nor where a graph of the model is alive: parameters of another dtype
    would cut it off.
    """
    vectors = _direction(parameters, seed)
    try:
        if any(map(_in_a_graph, problem.model.parameters())):
            raise ValueError("a graph of the model, or a wrapper such as DDP, holds its parameters")
        with _moved(problem, mapped(_to_float64, batch), vectors, torch.float64) as gradient_at:
            return _taken(gradient_at, vectors, torch.float64, both, loss)
    except Exception:  # float32 inside of the model, a GPU without float64
        with _moved(problem, batch, vectors) as gradient_at:
            return _taken(gradient_at, vectors, torch.float32, both=True)


def _taken(
    gradient_at: Callable,
    vectors: dict[nn.Parameter, Tensor],
    precision: torch.dtype,
    both: bool,
    wanted: float | None = None,
) -> Differences:
    scales, step, (own, _) = _scales(vectors), STEP[precision], TOLERANCE[precision]
    rounding = ROUNDING * torch.finfo(precision).eps / step
    with _InFloat64() if precision == torch.float64 else nullcontext():
        loss, gradient = gradient_at(0)
    if wanted is not None and abs(loss - wanted) > own * abs(wanted):
        raise ValueError("another function than in the model's own precision")
    largest = max(scales[p] * root_mean_square(g) for p, g in gradient.items())
    slopes = {p: float((gradient[p] * v).sum()) for p, v in vectors.items()}
    error = _slope_error(gradient_at, slopes, loss, precision)
    above = gradient_at(step)[1]
    below = gradient_at(-step)[1] if both else None
    products, uncertain = {}, {}
    for p in vectors:  # gradients are let go of one by one: memory may be short
        here, ahead = gradient.pop(p), above.pop(p)
        uncertain[p] = rounding * largest / scales[p]
        if both:
            behind = below.pop(p)
            bend = root_mean_square((ahead - here) - (here - behind)) / step
            uncertain[p] += SURE * bend
            products[p] = (ahead - behind).div_(2 * step)
        else:
            products[p] = (ahead - here).div_(step)
    return Differences(vectors, products, uncertain, error)


def _slope_error(
    gradient_at: Callable, slopes: Mapping[nn.Parameter, float], loss: float, precision: torch.dtype
) -> str:
    """Say what is wrong with a gradient that has these slopes along the direction, if anything.

    Each parameter is moved so that the loss should grow by as much as in any other, the one that
    it hardly depends on furthest: else an error in that one would not show.
    """
    (own, _), most = TOLERANCE[precision], FAR[precision]
    rounding = ROUNDING * torch.finfo(precision).eps * abs(loss)
    sizes = [abs(slope) for slope in slopes.values() if slope]
    each = max(most * min(sizes, default=0), rounding / own)
    steps = {
        p: math.copysign(min(most, each / abs(slope) if slope else most), slope)
        for p, slope in slopes.items()
    }
    up, down = (gradient_at(steps, sign)[0] for sign in (1, -1))
    seen, slope = (up - down) / 2, sum(steps[p] * slope for p, slope in slopes.items())
    unsure = SURE * abs(up + down - 2 * loss) + rounding
    if abs(seen - slope) <= own * slope + unsure:
        return ""
    return (
        f"The gradient is not the loss's, which changes by {seen:.4g} along a direction for which "
        f"the gradient says {slope:.4g}"
    )


class _InFloat64(TorchFunctionMode):
    """Raises where a model computes in a lower precision all the same."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor) and result.requires_grad and result.dtype != torch.float64:
            raise TypeError("not in float64")
        return result


@contextmanager
def displaced(parameters: Sequence[nn.Parameter], seed: int) -> Iterator[None]:
    """Move parameters a little at random, and put them back on leaving.

    Where a ReLU is at exactly 0, as with biases of 0 behind other ReLUs, differences say nothing of
    the Hessian; nearby they do.
    """
    kept = {p: p.data for p in parameters}
    try:
        for p, vector in _direction(parameters, seed).items():
            p.data = p.data + NEARBY * vector
        yield
    finally:
        for p, data in kept.items():
            p.data = data


def _direction(parameters: Sequence[nn.Parameter], seed: int) -> dict[nn.Parameter, Tensor]:
    """Make a random direction with entries of the size of each parameter's own.

    So no layer drowns the others because its weights are small and its Hessian therefore large.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        p: torch.randn(p.shape, generator=generator).to(p) * scale
        for p, scale in _scales(parameters).items()
    }


@contextmanager
def copied(
    problem: Problem, others: Iterable[Tensor] = (), dtype: torch.dtype | None = None
) -> Iterator[dict[Tensor, Tensor]]:
    """Make parameters and buffers of the model copies, and put the originals back on leaving.

    And ``others``, outside of the model. The ``dtype`` is that of copies of real numbers, by
    default each one's own. Yields the originals' data, by parameter or buffer.
    """
    kept = {t: t.data for t in {*problem.model.parameters(), *problem.model.buffers(), *others}}
    try:
        for t in kept:
            real = dtype is not None and t.is_floating_point()
            t.data = t.data.to(dtype if real else t.dtype, copy=True)
        yield kept
    finally:
        for t, data in kept.items():
            t.data = data


@contextmanager
def _moved(
    problem: Problem,
    batch: Any,
    vectors: Mapping[nn.Parameter, Tensor],
    dtype: torch.dtype | None = None,
) -> Iterator[Callable]:
    """Yield a function from a step to loss and plain gradient, of copies as `copied` makes them.

    From steps, one a parameter, and a sign, it is to the loss alone.
    """
    with copied(problem, vectors, dtype) as kept:

        def gradient_at(step: float | Mapping, sign: int = 0) -> tuple[float, dict]:
            for p, vector in vectors.items():
                far = sign * step[p] if sign else step
                p.data = kept[p].to(p.dtype) + far * vector.to(p.dtype)
            value = problem.value(batch)
            gradient = [None] * len(vectors)
            if value.requires_grad and not sign:
                gradient = torch.autograd.grad(value, list(vectors), allow_unused=True)
            return value.item(), {
                p: torch.zeros_like(p) if g is None else g
                for p, g in zip(vectors, gradient, strict=True)
            }

        yield gradient_at


def _in_a_graph(parameter: nn.Parameter) -> bool:
    """Whether anybody holds the node at which a parameter's gradients arrive."""
    if not parameter.requires_grad or parameter.dtype == torch.float64:
        return False  # a copy of the same dtype leaves the node in place
    mark = object()
    get_gradient_edge(parameter).node.metadata[mark] = True  # gone with the node, if ours alone
    return get_gradient_edge(parameter).node.metadata.pop(mark, False)


def _tolerated(products: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, float]:
    coarsest = min((p.dtype for p in products), key=lambda dtype: dtype.itemsize)
    scales, (own, share) = _scales(products), TOLERANCE[coarsest]
    sizes = {p: root_mean_square(x) for p, x in products.items()}
    floor = share * max(scales[p] * size for p, size in sizes.items())
    return {p: own * size + floor / scales[p] for p, size in sizes.items()}


def _scales(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, float]:
    """Root mean square of each parameter; that of all where it is 0, `displaced` or not."""
    sizes = {p: root_mean_square(p.detach()) for p in parameters}
    numbers = sum(p.numel() for p in sizes)
    usual = (sum(p.numel() * size**2 for p, size in sizes.items()) / max(1, numbers)) ** 0.5 or 1.0
    return {p: size if size > 2 * NEARBY * usual else usual for p, size in sizes.items()}


def root_mean_square(x: Tensor) -> float:
    """Root mean square of a tensor's entries, 0 where there are none."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) / max(1, x.numel()) ** 0.5


def _to_float64(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x
