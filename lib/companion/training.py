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
    """AdamW (``adaptive``) with decoupled weight decay, or SGD with weight decay in the gradient.

    ``momentum`` is that of SGD, ``betas`` are those of AdamW.
    """

    title: str
    adaptive: bool
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0

    def at_rate_one(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make PyTorch's optimizer, whose step `train` scales by the rate."""
        shared = {"lr": 1.0, "weight_decay": self.decay, "foreach": True}
        if self.adaptive:
            return torch.optim.AdamW(parameters, betas=self.betas, **shared)
        return torch.optim.SGD(parameters, momentum=self.momentum, **shared)


#: those of the paper's experiments: ResNet and VGG by SGD as in PyTorch's ImageNet recipe, GPT by
#: AdamW as in nanoGPT; and the plain ones of the man-made MLP
OPTIMIZERS = {
    "sgd": Optimizer("SGD", False),
    "momentum": Optimizer("SGD, momentum 0.9", False, momentum=0.9, decay=1e-4),
    "adam": Optimizer("Adam", True),
    "adamw": Optimizer("AdamW", True, betas=(0.9, 0.95), decay=0.1),
}


def schedule(step: int, steps: int) -> float:
    """Share of the rate that a step, from 0, is taken with: linear warm-up, then half a cosine.

    The rate rises in the first tenth and ends at 0.05 (the paper's GPT2: 3e-5 / 6e-4).
    """
    warmup, final = 0.1, 0.05
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, steps - 1 - rising)
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterator[Any],
    optimizer: Optimizer,
    rate: float,
    *,
    steps: int,
    observe: Callable[[int], None] = lambda step: None,
) -> np.ndarray:
    """Train a model in place, in training mode, and leave it in the mode that it was in.

    ``loss`` is as in `Problem`; ``rate`` is the largest, see `schedule`; ``observe`` is called with
    each step before it is taken, and once at the end with ``steps``. Returns the loss of each batch
    before its step, (steps,) float64; ``inf`` from the step on where the run has diverged: its loss
    is not finite or ten times the first one. The model is then left as it is.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    stepper, losses = optimizer.at_rate_one(parameters), np.full(steps, np.inf)
    was_training = model.training
    model.train()
    for step in range(steps):
        observe(step)
        value = loss(model, next(batches))
        losses[step] = float(value.detach())
        if _diverged(losses[step], losses[0]):
            losses[step:] = np.inf
            break
        stepper.zero_grad()
        value.backward()
        share = rate * schedule(step, steps)
        before = [p.detach().clone() for p in parameters]
        stepper.step()
        with torch.no_grad():
            torch._foreach_mul_(parameters, share)
            torch._foreach_add_(parameters, before, alpha=1 - share)
    observe(steps)
    model.train(was_training)
    return losses


def train_together(
    models: Sequence[nn.Module],
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Iterator[Any]],
    optimizer: Optimizer,
    rates: Sequence[float],
    *,
    steps: int,
) -> np.ndarray:
    """`train` several models at once, each at its own rate; their losses, (run, steps).

    For models of one architecture without BatchNorm and random layers: ``torch.func.vmap`` is
    several times faster where they are small.
    """
    stacked, buffers = stack_module_state(list(models))  # {name: (run, …)}
    parameters = [p for p in stacked.values() if p.requires_grad]
    stepper, losses = optimizer.at_rate_one(parameters), np.full((len(models), steps), np.inf)
    each = torch.tensor(rates, dtype=parameters[0].dtype, device=parameters[0].device)
    shaped = [each.view(-1, *[1] * (p.ndim - 1)) for p in parameters]  # (run, 1, …)

    def value_of(state, fixed, batch):
        def one_run(*inputs):  # what a loss sees as the model
            return functional_call(models[0], (state, fixed), inputs)

        return loss(one_run, batch)

    was_training = models[0].training
    models[0].train()
    alive = np.ones(len(models), dtype=bool)
    for step in range(steps):
        drawn = [next(stream) for stream in batches]
        batch = tree_map(lambda *parts: torch.stack(parts), *drawn)
        values = torch.func.vmap(value_of)(stacked, buffers, batch)  # (run,)
        now = values.detach().double().cpu().numpy()
        alive &= ~_diverged(now, now if step == 0 else losses[:, 0])
        losses[alive, step] = now[alive]
        if not alive.any():
            break
        stepper.zero_grad()
        values.sum().backward()  # runs do not meet, so each gets the gradient of its own loss
        share, moving = schedule(step, steps), torch.from_numpy(alive).to(each.device)
        before = [p.detach().clone() for p in parameters]
        stepper.step()
        with torch.no_grad():
            for p, old, rate in zip(parameters, before, shaped, strict=True):
                moved = old + share * rate * (p - old)
                p.copy_(torch.where(moving.view_as(rate), moved, old))
    models[0].train(was_training)
    for i, model in enumerate(models):
        for name, parameter in model.named_parameters():
            parameter.data.copy_(stacked[name][i])
    return losses


def _diverged(value, first):
    return ~np.isfinite(value) | (value > DIVERGED * first)
