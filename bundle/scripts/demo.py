"""Segment both hippocampi of the MNI152 brain template, which needs no data of one's own.

``python -m scripts.demo [--output_dir demo_output]`` cuts the two hippocampal regions out of the T1 template
that the Python package nilearn ships, runs the bundle's inference workflow on them exactly as a user would,
prints the volumes and draws what was found. All coordinates are MNI millimetres, axes right, anterior,
superior (RAS).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from nibabel.affines import apply_affine
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage

from .common import BUNDLE_ROOT
from .common.atomic_writing import replacing
from .common.errors import UserError, show_user_errors_plainly
from .engines.provenance import predicted_cases
from .images.outputs import check_output_folder, open_folder, refuse_foreign
from .report.planes import PLANES

__all__ = [
    "crop_box",
    "draw_overlay",
    "hippocampus_boxes",
    "load_template",
    "main",
    "place_back",
    "volumes_ml",
]

LABELS = {1: "anterior", 2: "posterior"}
COLOURS = {1: "#ff8c1a", 2: "#1fb4ff"}
AXIS_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
# First and last voxel centre of the left box. Its size is the median of the Medical Segmentation Decathlon's
# hippocampus images (35 x 50 x 36 voxels of 1 mm); its place is where the template correlates best with the
# mean of those images, aligned at their labels' centres. They all look like left hippocampi.
LEFT_BOX = ((-42, -47, -29), (-8, 2, 6))

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


def load_template() -> SpatialImage:
    """The skull-stripped MNI152 T1 template, 1 mm, intensities 0 to 1, RAS.

    Raises:
        UserError: nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise UserError(
            f"the demo's brain image comes with nilearn, which does not import ({error}): pip install nilearn"
        ) from error
    template = nib.as_closest_canonical(load_mni152_template(resolution=1))
    return nib.Nifti1Image(np.asarray(template.dataobj, dtype=np.float32), template.affine)


def hippocampus_boxes() -> dict[str, Box]:
    """For each side, the first and last voxel centre of its region in mm; the right mirrors the left."""
    (x0, *low), (x1, *high) = LEFT_BOX
    return {"right": ((-x1, *low), (-x0, *high)), "left": LEFT_BOX}


def crop_box(image: SpatialImage, box: Box) -> SpatialImage:
    """Cut the box out of an image along its voxel grid; voxels keep their world coordinates.

    Args:
        image: 3D image with axes along R, A, S.
        box: first and last voxel centre in mm, both inside the crop; rounded to the nearest voxel.

    Raises:
        ValueError: the image has other axes, or the box reaches out of it.
    """
    if nib.aff2axcodes(image.affine) != ("R", "A", "S"):
        raise ValueError(f"expected axes RAS, got {''.join(map(str, nib.aff2axcodes(image.affine)))}")
    first, last = np.rint(apply_affine(np.linalg.inv(image.affine), box)).astype(int)
    if (first < 0).any() or (last >= image.shape[:3]).any() or (first > last).any():
        raise ValueError(f"the box {box} mm is not inside the image of shape {image.shape}")
    return image.slicer[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]


def write_inputs(template: SpatialImage, input_dir: Path) -> dict[str, Path]:
    """Write each side's region as NIfTI; returns side -> file.

    Raises:
        UserError: nothing may be written there (see images/outputs.py), or other images of these names are there.
    """
    check_output_folder(input_dir, "--output_dir")
    paths = {side: input_dir / f"hippocampus_{side}.nii.gz" for side in hippocampus_boxes()}
    crops = {side: crop_box(template, box) for side, box in hippocampus_boxes().items()}
    refuse_foreign([path for side, path in paths.items() if not _holds(path, crops[side])], "--output_dir")
    open_folder(input_dir, "--output_dir")
    for side, crop in crops.items():
        with replacing(paths[side]) as temporary:
            nib.save(crop, temporary)
    return paths


def _holds(path: Path, image: SpatialImage) -> bool:
    """Whether a file holds an image, as after an earlier demo."""
    try:
        return np.array_equal(np.asarray(nib.load(path).dataobj), np.asarray(image.dataobj))
    except (OSError, ValueError, EOFError, ImageFileError):
        return False


def run_inference(bundle_root: Path, input_dir: Path, prediction_dir: Path) -> None:
    """Run the bundle's inference workflow in a process of its own, as from a shell.

    Raises:
        UserError: the workflow failed; its own output stands above.
    """
    command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
    command += ["--config_file", "configs/inference.json", "--bundle_root", "."]
    command += ["--input_dir", str(input_dir), "--output_dir", str(prediction_dir), "--overwrite", "true"]
    print("$ python", *command[1:], flush=True)
    status = subprocess.run(command, cwd=bundle_root, check=False).returncode
    if status != 0:
        raise UserError(f"inference ended with status {status}; the reason stands above")


def load_prediction(path: Path, like: SpatialImage) -> SpatialImage:
    """Load a label map and check that it lies on the grid of the image it was made from.

    Raises:
        UserError: missing, on another grid, or without any hippocampus.
    """
    if not path.is_file():
        raise UserError(f"inference wrote no {path}")
    prediction = nib.as_closest_canonical(nib.load(path))
    if prediction.shape != like.shape or not np.allclose(prediction.affine, like.affine, atol=1e-3):
        raise UserError(f"{path} does not lie on the grid of its input: {prediction.shape} for {like.shape}")
    labels = np.rint(np.asarray(prediction.dataobj)).astype(np.uint8)
    if not np.isin(labels, list(LABELS)).any():
        raise UserError(f"{path} holds no hippocampus: are the bundle's weights in models/model.pt?")
    return nib.Nifti1Image(labels, like.affine)


def volumes_ml(segmentation: SpatialImage) -> dict[int, float]:
    """Volume of each label in millilitres: voxels times the voxel's size."""
    voxel_ml = abs(np.linalg.det(segmentation.affine[:3, :3])) / 1000
    labels = np.asarray(segmentation.dataobj)
    return {label: float((labels == label).sum() * voxel_ml) for label in LABELS}


def volume_table(volumes: Mapping[str, Mapping[int, float]]) -> str:
    """Labels down, sides across, with sums; in ml.

    Args:
        volumes: side -> label -> ml.
    """
    rows = {name: [volumes[side][label] for side in volumes] for label, name in LABELS.items()}
    rows["whole"] = [sum(volumes[side].values()) for side in volumes]
    header = f"{'volume, ml':<12}" + "".join(f"{side:>8}" for side in volumes) + f"{'sum':>8}"
    lines = [f"{name:<12}" + "".join(f"{v:8.2f}" for v in row) + f"{sum(row):8.2f}" for name, row in rows.items()]
    return "\n".join([header, "-" * len(header), *lines])


def place_back(segmentations: Mapping[str, SpatialImage], template: SpatialImage) -> SpatialImage:
    """All label maps on the template's grid, 0 elsewhere. Each must have been cut out of that grid."""
    labels = np.zeros(template.shape, dtype=np.uint8)
    for segmentation in segmentations.values():
        offset = apply_affine(np.linalg.inv(template.affine), segmentation.affine[:3, 3])
        first = np.rint(offset).astype(int)
        where = tuple(slice(a, a + n) for a, n in zip(first, segmentation.shape, strict=True))
        part = np.asarray(segmentation.dataobj)
        labels[where] = np.where(part > 0, part, labels[where])
    return nib.Nifti1Image(labels, template.affine)


def centre_mm(segmentation: SpatialImage) -> np.ndarray:
    """Centre of mass of all labels together, in mm. Raises ValueError where nothing is labelled."""
    voxels = np.argwhere(np.asarray(segmentation.dataobj) > 0)
    if len(voxels) == 0:
        raise ValueError("the segmentation is empty")
    return apply_affine(segmentation.affine, voxels.mean(0))


def draw_plane(ax: Axes, image: SpatialImage, segmentation: SpatialImage, axis: int, at_mm: float) -> None:
    """One slice of the image, the labels in colour over it, in mm, with its orientation letters.

    The viewer looks so that right is right: R is at the right-hand edge of coronal and axial planes.

    Args:
        image, segmentation: on one RAS grid without oblique axes.
        axis: the axis that the plane is normal to.
        at_mm: where on that axis; the nearest slice is drawn.
    """
    affine = image.affine
    index = round((at_mm - affine[axis, 3]) / affine[axis, axis])
    across, up = (a for a in range(3) if a != axis)
    extent = [edge for a in (across, up) for edge in _edges_mm(affine, a, image.shape[a])]
    style: dict[str, Any] = {
        "origin": "lower",
        "extent": extent,
        "interpolation": "nearest",
        "aspect": "equal",
    }
    grey = np.asarray(image.dataobj)
    ax.imshow(np.take(grey, index, axis).T, cmap="gray", vmin=0, vmax=np.percentile(grey, 99.5), **style)
    labels = np.take(np.asarray(segmentation.dataobj), index, axis).T
    for label, colour in COLOURS.items():
        mask = np.ma.masked_not_equal(labels, label)
        ax.imshow(mask, cmap=ListedColormap([colour]), alpha=0.45, **style)
    _letters(ax, AXIS_ENDS[across], AXIS_ENDS[up])
    ax.set_title(f"{PLANES[axis]}, {'xyz'[axis]} = {affine[axis, 3] + index * affine[axis, axis]:.0f} mm", fontsize=10)
    ax.tick_params(labelsize=7)


def _edges_mm(affine: np.ndarray, axis: int, size: int) -> tuple[float, float]:
    """Outer edges of the first and last voxel along an axis."""
    start, step = float(affine[axis, 3]), float(affine[axis, axis])
    return start - 0.5 * step, start + (size - 0.5) * step


def _letters(ax: Axes, across: tuple[str, str], up: tuple[str, str]) -> None:
    style: dict[str, Any] = {
        "transform": ax.transAxes,
        "color": "yellow",
        "fontweight": "bold",
        "ha": "center",
    }
    style |= {"va": "center", "fontsize": 11, "path_effects": [withStroke(linewidth=2, foreground="black")]}
    for x, y, letter in [
        (0.05, 0.5, across[0]),
        (0.95, 0.5, across[1]),
        (0.5, 0.05, up[0]),
        (0.5, 0.95, up[1]),
    ]:
        ax.text(x, y, letter, **style)


def draw_overlay(
    images: Mapping[str, SpatialImage],
    segmentations: Mapping[str, SpatialImage],
    template: SpatialImage,
    path: Path,
) -> None:
    """Draw three planes a side through its segmentation's centre of mass, and both sides in the whole brain.

    Args:
        images, segmentations: side -> crop of the template, and its label map on the same grid.
        template: the whole brain.
        path: PNG to write.
    """
    figure = Figure(figsize=(15, 7.2), layout="constrained")
    grid = figure.add_gridspec(len(images), 4, width_ratios=(1.15, 0.85, 0.8, 1.9))
    for row, (side, image) in enumerate(images.items()):
        for axis, centre in enumerate(centre_mm(segmentations[side])):
            ax = figure.add_subplot(grid[row, axis])
            draw_plane(ax, image, segmentations[side], axis, centre)
            if axis == 0:
                ax.set_ylabel(f"{side.upper()} hippocampus\nmm", fontsize=11)
    both = place_back(segmentations, template)
    context = figure.add_subplot(grid[:, 3])
    draw_plane(context, template, both, 1, centre_mm(both)[1])
    handles = [Patch(color=COLOURS[label], alpha=0.6, label=f"{name} hippocampus") for label, name in LABELS.items()]
    context.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    figure.suptitle("MNI152 template, segmented by LightM-UNet (axes in MNI mm; R = the person's right)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def run_demo(output_dir: Path, bundle_root: Path) -> None:
    """Everything from the template to the table and the figure, all under ``output_dir``."""
    input_dir, prediction_dir = output_dir / "input", output_dir / "prediction"
    figure = output_dir / "hippocampus_overlay.png"
    check_output_folder(output_dir, "--output_dir")
    if not predicted_cases(prediction_dir):  # no demo was here
        refuse_foreign(
            [figure, *(prediction_dir / f"hippocampus_{side}.nii.gz" for side in hippocampus_boxes())], "--output_dir"
        )
    template = load_template()
    open_folder(output_dir, "--output_dir")
    inputs = write_inputs(template, input_dir)
    run_inference(bundle_root, input_dir, prediction_dir)

    images = {side: nib.load(path) for side, path in inputs.items()}
    segmentations = {side: load_prediction(prediction_dir / inputs[side].name, images[side]) for side in images}
    print("\n" + volume_table({side: volumes_ml(segmentation) for side, segmentation in segmentations.items()}))
    print("The template is its own mirror image: the two sides should agree.\n")

    draw_overlay(images, segmentations, template, figure)
    print(f"inputs       {input_dir}\npredictions  {prediction_dir}\nfigure       {figure}")


def main(arguments: list[str] | None = None) -> None:
    """Command line. Raises UserError, which the command line shows as one line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"), help="where everything is written")
    parser.add_argument("--bundle_root", type=Path, default=BUNDLE_ROOT, help="the bundle's folder")
    options = parser.parse_args(arguments)
    run_demo(options.output_dir.resolve(), options.bundle_root.resolve())


if __name__ == "__main__":
    show_user_errors_plainly()
    main()
