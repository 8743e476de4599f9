"""From logits to the label map that is kept, and rules learned for cleaning it (python -m scripts.postprocessing)."""

from .label_maps import for_scoring, to_label_map, to_saved_label_map

__all__ = ["for_scoring", "to_label_map", "to_saved_label_map"]
