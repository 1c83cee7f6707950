"""What turns a batch of images into features: networks, their weights and their preprocessing."""

from deepfeat.backbones.files import load_backbone
from deepfeat.backbones.network import Network, Preprocessing
from deepfeat.backbones.registry import Backbone, list_backbones, register_backbone

__all__ = ["Backbone", "Network", "Preprocessing", "list_backbones", "load_backbone", "register_backbone"]
