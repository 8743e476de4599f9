from .lightm_unet import LightMUNet
from .reference_weights import read_reference_checkpoint
from .vss import Mamba, VSSLayer

__all__ = ["LightMUNet", "Mamba", "VSSLayer", "read_reference_checkpoint"]
