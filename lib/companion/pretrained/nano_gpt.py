"""A nano GPT of characters: pre-trained here on an encyclopedia, to be tuned on Shakespeare."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from blockspectra.blocks import Block, partition
from blockspectra.problem import cross_entropy
from companion import datasets
from companion.datasets import transfer
from companion.setups import Setup, setup
from companion.store import Store
from companion.training import OPTIMIZERS, train

MOST_WINDOWS = 40_000  # of the context 64 that the articles hold, which is 43,180


@dataclass(frozen=True)
class Nano:
    """The GPT of `setup`, on characters of Shakespeare's plays, and what it was trained on before.

    Attributes
    ----------
    size : {"tiny", "small"}
    steps, batch : int
        Of the pre-training, by AdamW on articles in the alphabet of the plays.
    rate : float
        Its largest learning rate (ours).
    times : int
        Pre-trainings, each with an initialisation and data of its own; what is tuned with seed s
        comes from pre-training s mod ``times``.
    """

    size: str = "small"
    steps: int = 600
    batch: int = 16
    rate: float = 3e-3
    times: int = 2

    def __post_init__(self):
        if self.size not in ("tiny", "small"):
            raise ValueError(
                f"The nano GPT comes in the sizes tiny and small, not {self.size!r}: give a "
                f"checkpoint to measure a larger model."
            )
        if min(self.steps, self.batch, self.times) < 1:
            raise ValueError("Steps, batch and times of a pre-training must be at least 1.")

    @property
    def name(self) -> str:
        """What its results are called."""
        return "nano"

    @property
    def middle(self) -> dict[str, int]:
        """Rates to begin the search around, as exponents of `rate_of`: chapter 06's."""
        return {"momentum": -3, "adamw": -5}

    def setup(
        self, store: Store, pretrained: bool, samples: int, seed: int, device: str = "cpu"
    ) -> Setup:
        """Return the model on ``samples`` windows of the plays.

        At initialisation it is what `setup` makes, and what chapters 04 and 06 measure and train.
        """
        made = setup("gpt", self.size, samples=samples, seed=seed, device=device)
        if pretrained:
            weights = self.pretraining(store, seed)[self.steps :]
            values = torch.from_numpy(weights.astype(np.float32)).to(device)
            nn.utils.vector_to_parameters(values, made.problem.model.parameters())
        return replace(made, title=f"nano {made.title}")

    def blocks(self, model: nn.Module) -> list[Block]:
        """Return all weight matrices."""
        return partition(model)

    def pretraining(self, store: Store, seed: int) -> np.ndarray:
        """Losses of all steps, then all weights, in one row of numbers; kept among the runs.

        Parameters
        ----------
        store : Store
        seed : int
            Of the model to tune.

        Returns
        -------
        ndarray, (steps + parameters,) float64
        """
        about = asdict(self) | {"seed": seed % self.times}
        del about["times"]

        def compute() -> pd.DataFrame:
            model = setup("gpt", self.size, samples=1, seed=about["seed"]).problem.model
            data = transfer.articles(
                context=model.config.context,
                windows=min(self.steps * self.batch, MOST_WINDOWS),
                seed=about["seed"],
            )
            (losses,) = train(
                [model],
                cross_entropy,
                [datasets.stream(data, self.batch, about["seed"])],
                OPTIMIZERS["adamw"],
                [self.rate],
                steps=self.steps,
            )
            weights = nn.utils.parameters_to_vector(model.parameters()).detach()
            return pd.DataFrame({"value": np.concatenate([losses, weights.double().numpy()])})

        kept = store.part("runs").get("weights-nano", about, compute)
        return kept["value"].to_numpy()
