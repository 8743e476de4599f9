"""A case of inference.py through nnU-Net's predictor; prints one line of JSON. For a Python that has nnunetv2.

    NNUNET_PYTHON benchmarks/inference_nnunet.py CASE.json

Its own classes with plans as its planner writes them: reading, preprocessing, nnUNetPredictor's sliding window (one
window at a time, logits summed in float16), resampling to the image's grid and writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.update(nnUNet_raw="", nnUNet_preprocessed="", nnUNet_results="")  # or it warns that they are not set

import torch
from inference_case import Case, Stopwatch, build, warm
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def main(case_file: str) -> None:
    case = Case.read(case_file)
    with contextlib.redirect_stdout(sys.stderr):  # it prints its progress
        outcome = predict(case)
    print(json.dumps({**outcome, "version": metadata.version("nnunetv2")}))


def predict(case: Case) -> dict[str, Any]:
    device = torch.device(case.device)
    network = build(case).to(device)
    torch.set_autocast_dtype("cuda", torch.bfloat16)  # instead of float16, as the other chains
    warm(network, case, 1, torch.bfloat16)
    predictor = nnUNetPredictor(use_mirroring=case.mirror, device=device, allow_tqdm=False)
    plans_manager = PlansManager(plans(case))
    weights = torch.load(case.weights, map_location="cpu", weights_only=True)
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **case.labels}, "file_ending": ".nii.gz"}
    predictor.manual_initialization(
        network, plans_manager, plans_manager.get_configuration("3d_fullres"), [weights], dataset, "", (0, 1, 2)
    )
    stopwatch = Stopwatch(network, device)
    stopwatch.start()
    image, properties = plans_manager.image_reader_writer_class().read_images([case.image])
    name = str(Path(case.output) / Path(case.image).name.removesuffix(".nii.gz"))
    predictor.predict_single_npy_array(image, properties, None, name, False)
    return stopwatch.outcome()


def plans(case: Case) -> dict[str, Any]:
    """What ExperimentPlanner writes, as far as prediction reads it. Its axes are those of SimpleITK, z first."""
    orders = {"data": 3, "seg": 1, "probabilities": 1}
    resampling: dict[str, Any] = {}
    for what, order in orders.items():
        kwargs = {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = kwargs
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(case.patch[::-1]),
        "spacing": list(case.spacing[::-1]),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {},
        **resampling,
    }
    return {
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


if __name__ == "__main__":
    main(sys.argv[1])
