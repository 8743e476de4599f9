"""A case of inference.py through MONAI's own transforms and SlidingWindowInferer; prints one line of JSON.

    python benchmarks/inference_monai.py CASE.json

As MONAI's bundles of CT organs do it: logits of the whole image on the network's grid, Invertd to the image's,
AsDiscreted, SaveImaged. MONAI mirrors nothing, so the mirrored images go through its inferer one after the other.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from itertools import chain, combinations

import torch
from inference_case import Case, Stopwatch, build, warm
from monai import __version__
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    SaveImaged,
    Spacingd,
)


def main(case_file: str) -> None:
    case = Case.read(case_file)
    device = torch.device(case.device)
    network = build(case).to(device)
    amp = torch.bfloat16 if device.type == "cuda" else None  # as the bundle
    warm(network, case, case.batch, amp)
    network.load_state_dict(torch.load(case.weights, map_location=device, weights_only=True))
    stopwatch = Stopwatch(network, device)
    stopwatch.start()
    predict(case, network, amp)
    print(json.dumps({**stopwatch.outcome(), "version": __version__}))


def predict(case: Case, network: torch.nn.Module, amp: torch.dtype | None) -> None:
    """From the image's file to the label map's."""
    preprocessing = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=case.spacing, mode="bilinear"),
            NormalizeIntensityd("image"),
        ]
    )
    postprocessing = Compose(
        [
            Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, device="cpu"),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=case.output, output_postfix="", separate_folder=False, output_dtype="uint8"),
        ]
    )
    data = preprocessing({"image": case.image})
    inferer = SlidingWindowInferer(case.patch, case.batch, overlap=0.5, mode="gaussian")
    autocast = torch.autocast("cuda", amp) if amp else nullcontext()
    with torch.no_grad(), autocast:
        data["pred"] = mirrored(inferer, data["image"][None].to(case.device), network, case.mirror)[0].float()
    postprocessing(data)


def mirrored(
    inferer: SlidingWindowInferer, image: torch.Tensor, network: torch.nn.Module, mirror: bool
) -> torch.Tensor:
    """Logits (1, classes, *spatial), averaged over the mirror images."""
    if not mirror:
        return inferer(image, network)
    axes = (2, 3, 4)
    total, flips = None, list(chain.from_iterable(combinations(axes, count) for count in range(4)))
    for flip in flips:
        logits = torch.flip(inferer(torch.flip(image, flip), network), flip)
        total = logits if total is None else total.add_(logits)
    return total.div_(len(flips))


if __name__ == "__main__":
    main(sys.argv[1])
