from .lightm_unet import LightMUNet, conv_stages_of
from .reference_weights import read_reference_checkpoint
from .vss import Mamba, VSSLayer

__all__ = ["LightMUNet", "Mamba", "VSSLayer", "conv_stages_of", "read_reference_checkpoint"]
