from .lightm_unet import LightMUNet
from .vss import Mamba, VSSLayer

__all__ = ["LightMUNet", "Mamba", "VSSLayer"]
