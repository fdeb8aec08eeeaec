"""The paper's architectures, one readable file each; their sizes are constants of the files."""

from .bert import BERT, BERTConfig
from .gpt import GPT, GPTConfig
from .mixer import Mixer, MixerConfig
from .mlp import MLP, MLPConfig
from .resnet import ResNet, ResNetConfig
from .vgg import VGG, VGGConfig
from .vit import ViT, ViTConfig

__all__ = [
    "BERT",
    "GPT",
    "MLP",
    "VGG",
    "BERTConfig",
    "GPTConfig",
    "MLPConfig",
    "Mixer",
    "MixerConfig",
    "ResNet",
    "ResNetConfig",
    "VGGConfig",
    "ViT",
    "ViTConfig",
]
