"""The networks of the experiments, in Flax NNX, built dense: one family a file."""

from benchmarks.models.autoencoder import Autoencoder
from benchmarks.models.convnet import ConvNet, LeNet5, SmallConvNet
from benchmarks.models.densenet import DenseNet
from benchmarks.models.mlp import MLP
from benchmarks.models.resnet import ResNet, resnet18, resnet20
from benchmarks.models.transformer import Transformer

__all__ = [
    "MLP",
    "Autoencoder",
    "ConvNet",
    "DenseNet",
    "LeNet5",
    "ResNet",
    "SmallConvNet",
    "Transformer",
    "resnet18",
    "resnet20",
]
