"""Prediction of an image in memory: an array in, a label array out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, list_data_collate
from monai.engines import Evaluator

from .clean_start import start_clean

__all__ = ["Predictor"]


class Predictor:
    """Predicts what inference would predict for a file of this content; reads and writes nothing.

    Args:
        preprocessing: of inference; takes {"image": MetaTensor}.
        evaluator: as inference has it, with a postprocessing that saves nothing.

    Example:
        >>> predictor = workflow.parser.get_parsed_content("predictor")
        >>> labels = predictor(nifti.get_fdata(), nifti.affine)
    """

    def __init__(self, preprocessing: Callable[[Mapping[str, Any]], dict[str, Any]], evaluator: Evaluator) -> None:
        self.preprocessing = preprocessing
        self.evaluator = evaluator

    def __call__(self, image: np.ndarray | torch.Tensor, affine: np.ndarray | torch.Tensor | None = None) -> np.ndarray:
        """The label map of an image.

        Args:
            image: (*spatial) of one channel, or (channels, *spatial); a 2D picture as (rows, columns).
            affine: 4x4, voxel index to RAS millimetres, as nibabel has it; a volume needs one.

        Returns:
            (*spatial), the values that the task's labels have, 0 for the background.

        Raises:
            UserError: the image cannot be used, see LoadCased.
        """
        tensor = torch.as_tensor(np.asarray(image))
        case = self.preprocessing({"image": tensor if affine is None else MetaTensor(tensor, affine=affine)})
        start_clean(self.evaluator)
        self.evaluator.data_loader, self.evaluator.state.epoch_length = [list_data_collate([case])], 1
        self.evaluator.run()
        return self.evaluator.state.output[0]["pred"][0].cpu().numpy()
