"""The paper's architectures, one readable file each; their sizes are constants of the files."""
# ruff: noqa: F401

from .bert import BERT, BERTConfig
from .gpt import GPT, GPTConfig
from .mixer import Mixer, MixerConfig
from .mlp import MLP, MLPConfig
from .resnet import ResNet, ResNetConfig
from .vgg import VGG, VGGConfig
from .vit import ViT, ViTConfig
