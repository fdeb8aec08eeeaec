"""Training: one run, or many runs of one architecture at once, by SGD or Adam.

What the optimizers do is PyTorch's own; here are the schedule, the end of a run that diverges, and
the stacking of many small models into one computation. A run's learning rate enters last: PyTorch's
update at rate 1 is linear in the rate for SGD and AdamW alike, so every run of a stack can have a
rate of its own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.utils._pytree import tree_map

#: a loss beyond this many times the first one, or one that is not finite, ends a run
DIVERGED = 10.0


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum and weight decay in the gradient, or AdamW with weight decay apart.

    Attributes
    ----------
    title : str
    adaptive : bool
        AdamW rather than SGD.
    momentum : float
        Of SGD.
    betas : (float, float)
        Of AdamW.
    decay : float
        Weight decay.
    """

    title: str
    adaptive: bool
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0

    def at_rate_one(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make PyTorch's optimizer, whose step `train` scales by the rate."""
        if self.adaptive:
            return torch.optim.AdamW(
                parameters, lr=1.0, betas=self.betas, weight_decay=self.decay, foreach=True
            )
        return torch.optim.SGD(
            parameters, lr=1.0, momentum=self.momentum, weight_decay=self.decay, foreach=True
        )


#: those of the paper's experiments: ResNet and VGG by SGD as in PyTorch's ImageNet recipe, GPT by
#: AdamW as in nanoGPT; and the plain ones of the man-made MLP
OPTIMIZERS = {
    "sgd": Optimizer("SGD", False),
    "momentum": Optimizer("SGD, momentum 0.9", False, momentum=0.9, decay=1e-4),
    "adam": Optimizer("Adam", True),
    "adamw": Optimizer("AdamW", True, betas=(0.9, 0.95), decay=0.1),
}


def schedule(step: int, steps: int, warmup: float = 0.1, final: float = 0.05) -> float:
    """Share of the rate that a step is taken with: linear warm-up, then half a cosine.

    Parameters
    ----------
    step, steps : int
        Number of the step, from 0, and of all steps.
    warmup : float
        Share of the steps in which the rate rises.
    final : float
        Share of the rate at the end (the paper's GPT2 ends at 3e-5 / 6e-4).
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, steps - 1 - rising)
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def train(
    models: Sequence[nn.Module],
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Iterator[Any]],
    optimizer: Optimizer,
    rates: Sequence[float],
    *,
    steps: int,
    clip: float | None = None,
    together: bool = False,
    observe: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Train models in place, each at its own rate and on its own batches.

    Parameters
    ----------
    models : sequence of torch.nn.Module
        One a run. In training mode while they train, afterwards as before.
    loss : callable, (model, batch) → scalar Tensor
        As in `Problem`.
    batches : sequence of iterators
        One a run; ``steps`` batches are taken from each.
    optimizer : Optimizer
    rates : sequence of float
        Largest learning rate of each run, > 0; `schedule` says how it rises and falls.
    steps : int
    clip : float, optional
        Largest norm of a gradient; longer ones are shortened to it.
    together : bool
        Compute all runs at once (``torch.func.vmap``): for models of one architecture without
        BatchNorm and random layers, several times faster where they are small.
    observe : callable, (step) → None, optional
        Called before each step and once at the end, with ``steps``: to look at the model on its
        way. Not with ``together``, where models are put back at the end only.

    Returns
    -------
    ndarray, (run, step) float64
        Loss of each batch before its step; ``inf`` from the step on where a run has diverged, which
        is where its loss is not finite or ten times its first one. The model is then left as it is.

    Raises
    ------
    ValueError
        If rates are not positive, or the numbers of models, batches and rates differ.
    """
    if not len(models) == len(batches) == len(rates) > 0:
        raise ValueError(
            f"{len(models)} models, {len(batches)} streams of batches and {len(rates)} rates were "
            f"given: give one of each a run."
        )
    if not all(math.isfinite(rate) and rate > 0 for rate in rates) or steps < 1:
        raise ValueError(f"Rates must be positive and steps at least 1, not {rates} and {steps}.")
    if not together:
        runs = zip(models, batches, rates, strict=True)
        return np.stack([_one(*run, loss, optimizer, steps, clip, observe) for run in runs])
    if observe is not None:
        raise ValueError("Runs that are computed together cannot be observed: train one by one.")
    return _together(models, batches, rates, loss, optimizer, steps, clip)


def _one(model, batches, rate, loss, optimizer, steps, clip, observe) -> np.ndarray:
    parameters = [p for p in model.parameters() if p.requires_grad]
    stepper, losses = optimizer.at_rate_one(parameters), np.full(steps, np.inf)
    was_training = model.training
    model.train()
    for step in range(steps):
        if observe:
            observe(step)
        value = loss(model, next(batches))
        losses[step] = float(value.detach())
        if _diverged(losses[step], losses[0]):
            losses[step:] = np.inf
            break
        stepper.zero_grad()
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        _step(stepper, parameters, rate * schedule(step, steps))
    if observe:
        observe(steps)
    model.train(was_training)
    return losses


def _together(models, batches, rates, loss, optimizer, steps, clip) -> np.ndarray:
    stacked, buffers = stack_module_state(list(models))  # {name: (run, …)}
    parameters = [p for p in stacked.values() if p.requires_grad]
    stepper, losses = optimizer.at_rate_one(parameters), np.full((len(models), steps), np.inf)
    each = torch.tensor(rates, dtype=parameters[0].dtype, device=parameters[0].device)
    shaped = [each.view(-1, *[1] * (p.ndim - 1)) for p in parameters]  # (run, 1, …)

    class Call:
        """What a loss sees as the model: one run of the stack."""

        def __init__(self, state):
            self.state = state

        def __call__(self, *inputs):
            return functional_call(models[0], self.state, inputs)

    def value_of(state, fixed, batch):
        return loss(Call((state, fixed)), batch)

    was_training = models[0].training
    models[0].train()
    alive = np.ones(len(models), dtype=bool)
    for step in range(steps):
        drawn = [next(stream) for stream in batches]
        batch = tree_map(lambda *parts: torch.stack(parts), *drawn)
        values = torch.func.vmap(value_of)(stacked, buffers, batch)  # (run,)
        now = values.detach().double().cpu().numpy()
        first = now if step == 0 else losses[:, 0]
        alive &= ~_diverged(now, first)
        losses[alive, step] = now[alive]
        if not alive.any():
            break
        stepper.zero_grad()
        values.sum().backward()  # runs do not meet, so each gets the gradient of its own loss
        if clip is not None:
            squares = sum(p.grad.flatten(1).square().sum(1) for p in parameters)
            factor = (clip / (squares.sqrt() + 1e-6)).clamp(max=1.0)
            for p in parameters:
                p.grad *= factor.view(-1, *[1] * (p.ndim - 1))
        share = schedule(step, steps)
        moving = torch.from_numpy(alive).to(each.device)
        _step(stepper, parameters, [share * rate for rate in shaped], moving)
    models[0].train(was_training)
    for i, model in enumerate(models):
        for name, parameter in model.named_parameters():
            parameter.data.copy_(stacked[name][i])
    return losses


@torch.no_grad()
def _step(stepper, parameters, rates, moving: Tensor | None = None) -> None:
    """Take the optimizer's step at rate 1, then the rate's share of it."""
    before = [p.clone() for p in parameters]
    stepper.step()
    if moving is None:
        torch._foreach_mul_(parameters, rates)
        torch._foreach_add_(parameters, before, alpha=1 - rates)
        return
    for p, old, rate in zip(parameters, before, rates, strict=True):
        p.copy_(torch.where(moving.view_as(rate), old + rate * (p - old), old))


def _diverged(value, first):
    return ~np.isfinite(value) | (value > DIVERGED * first)
