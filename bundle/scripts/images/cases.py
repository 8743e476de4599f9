"""Images and label maps as tensors: loading and checking a case, saving predictions on the image's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..common.atomic_writing import replacing
from ..common.errors import UserError
from .files import first_file, image_files
from .formats import RawImage, channel_conflicts, columns_first, planar, read_raw
from .geometry import affine_problem, grid_conflict
from .label_names import listed, undeclared_hint, values_in
from .writing import copy_tiff_spacing, write_like

__all__ = [
    "LoadCased",
    "image_in_memory",
    "load_image",
    "save_label_map",
    "save_probabilities",
]


LARGEST_LABEL = 2**24  # that float32 holds exactly, as all below it


class LoadCased(MapTransform):
    """Load a case's image and label channel-first and check them, so that nothing later fails obscurely.

    2D images of every format are read as (channels, rows, columns), volumes in the voxel order of their file. A label
    lies on its image's grid: it takes over the image's affine, which may differ by a rounding of the header. What is
    in memory already, as another program hands it in, is checked likewise (see image_in_memory).

    Args:
        keys: "image" (a path, one path per channel, or a tensor) and, where there is one, "label".
        spatial_dims: of the image files, 2 or 3.
        in_channels: channels the image must have.
        labels: name -> value of every foreground label; 0 is the background.
        ignore_label: value of voxels that nobody labelled, or None.
        rows_first: whether the task was planned since 2D NIfTI, NRRD and MetaImage files are read as (rows, columns);
            before, they came as (columns, rows).

    Raises:
        UserError: the task was planned before, and this is such a file; a file is missing, broken, or of another size,
            dimension or number of channels than it should be; channels or label lie on another grid; the image holds
            NaN or nothing but constant channels; the label has undeclared values.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        spatial_dims: int,
        in_channels: int,
        labels: Mapping[str, int],
        ignore_label: int | None = None,
        rows_first: bool = True,
    ) -> None:
        super().__init__(keys)
        self.rows_first = rows_first
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.values = {0, *labels.values()} | ({ignore_label} - {None})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        case = dict(data)
        for key in self.keys:
            if isinstance(case[key], torch.Tensor):
                case[key] = image_in_memory(case[key], self.spatial_dims, f"the {key}")
            else:
                self._check_plan(first_file(data[key]))
                case[key] = load_image(case[key], self.spatial_dims, label=key == "label", grey=self.in_channels == 1)
            check = self._check_label if key == "label" else self._check_image
            check(case[key], case[key].meta["filename_or_obj"])
        if {"image", "label"} <= set(self.keys):
            _check_grids(case["image"], case["label"])
            case["label"].affine = case["image"].affine
        return case

    def _check_plan(self, path: str) -> None:
        if self.spatial_dims == 2 and not self.rows_first and columns_first(path):
            raise UserError(
                "this task was planned (without rows_first) when 2D NIfTI, NRRD and MetaImage files came with rows and "
                "columns exchanged: plan it again (python -m scripts.planning) and train anew; if it learnt from PNG, "
                "JPEG, BMP or TIFF, add --rows_first true"
            )

    def _check_image(self, image: MetaTensor, path: str) -> None:
        if image.shape[0] != self.in_channels:
            raise UserError(f"{path} has {image.shape[0]} channel(s), the network takes {self.in_channels}")
        extremes = [torch.stack(torch.aminmax(channel)) for channel in image.as_tensor()]  # NaN comes through
        if not all(extreme.isfinite().all() for extreme in extremes):
            raise UserError(f"{path} holds NaN or infinite values: repair the image or leave the case out")
        if all(low == high for low, high in extremes):
            raise UserError(f"{path} is constant (every voxel is the same): repair the image or leave the case out")

    def _check_label(self, label: MetaTensor, path: str) -> None:
        if label.shape[0] != 1:
            raise UserError(f"{path} has {label.shape[0]} channels, a label map has one")
        found = values_in(label[0].numpy())
        unknown = found[~np.isin(found, sorted(self.values))]
        undeclared = unknown[:11].tolist()  # an image in place of a label has millions; ten of them are shown
        if undeclared:
            what = f"{path} holds the label value(s) {listed(undeclared)}; declared are {sorted(self.values)}"
            raise UserError(what + undeclared_hint(undeclared, path))


def load_image(
    path: str | Path | Sequence[str | Path], spatial_dims: int, label: bool = False, grey: bool = False
) -> MetaTensor:
    """Load one image channel-first, as it is in memory all along until it is normalised and made smaller.

    A volume of one slice counts as a 2D image where ``spatial_dims`` is 2.

    Args:
        path: the file, or the files of the channels in their order.
        spatial_dims: 2 or 3.
        label: a label map: palette pictures give their indices.
        grey: one channel is wanted: a colour picture with three equal channels gives one.

    Returns:
        (channels, *spatial) as int16, label maps also as uint8, where that holds every value, else as float32; with
        its affine (voxel index -> RAS millimetres, identity for pictures) and meta["filename_or_obj"], the (first)
        file.

    Raises:
        UserError: a file is missing, cannot be read, has other spatial dimensions or no usable affine, or the
            channels' sizes or affines differ.
    """
    paths = image_files(path)
    images = [read_raw(file, label, grey) for file in paths]
    if conflicts := channel_conflicts(paths, images):
        raise UserError("; ".join(f"{file} {message}" for file, message in conflicts))
    if label:
        _check_exact(images[0].array, paths[0])
    for image in images:
        image.array = _compact(image.array, label)
    array = images[0].array if len(images) == 1 else np.concatenate([image.array for image in images])
    return _to_tensor(RawImage(array, images[0].affine), spatial_dims, str(paths[0]))


def image_in_memory(image: torch.Tensor, spatial_dims: int, name: str = "the image") -> MetaTensor:
    """An image that is no file as load_image gives one.

    Args:
        image: (*spatial) of one channel, or (channels, *spatial); a MetaTensor with its affine, voxel index to RAS
            millimetres, or a 2D picture, which needs none.
        spatial_dims: 2 or 3.
        name: what it is called where it came from no file.

    Raises:
        UserError: other spatial dimensions, or no usable affine.
    """
    known = isinstance(image, MetaTensor)
    path = str(image.meta.get("filename_or_obj", name)) if known else name
    if spatial_dims == 3 and not known:
        raise UserError(f"{path} has no affine: give the 4x4 matrix from voxel index to RAS millimetres with it")
    array = _compact(torch.as_tensor(image).detach().cpu().numpy(), label=False)
    if array.ndim not in (spatial_dims, spatial_dims + 1):
        raise UserError(f"{path} has {array.ndim} axes: give {spatial_dims}, or one more, the channels first")
    array = array[None] if array.ndim == spatial_dims else array
    affine = np.asarray(image.affine.cpu(), np.float64) if known else None
    return _to_tensor(RawImage(array, affine), spatial_dims, path)


def save_label_map(path: Path, label_map: np.ndarray, like: str | Path) -> None:
    """Write a label map on the grid of the image it was made from, whose geometry it keeps.

    Args:
        path: where to write; its ending is prediction_suffix(like).
        label_map: integers >= 0, in the shape of the image file (a one-slice volume also without that axis).
        like: the image file.
    """
    label_map = label_map.astype(np.min_scalar_type(int(label_map.max(initial=0))))
    copy_tiff_spacing(path, like)  # before the label map, which tells --skip_existing that a case is done
    with replacing(path) as temporary:
        write_like(temporary, label_map, like)


def save_probabilities(path: Path, probabilities: np.ndarray, like: str | Path) -> None:
    """Write class probabilities (classes, *spatial), float32.

    NIfTI holds them in 4D with the classes last, NRRD and MetaImage as a vector per voxel; for other images
    ``path`` ends in .npz, with one array "probabilities".
    """
    probabilities = probabilities.astype(np.float32, copy=False)  # they are large, and may lie in a file
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, probabilities=probabilities)
        else:
            write_like(temporary, probabilities, like, channels=True)


def _check_exact(label: np.ndarray, path: str | Path) -> None:
    if label.dtype.kind in "iu" and label.dtype.itemsize > 2 and label.max(initial=0) > LARGEST_LABEL:
        raise UserError(
            f"{path} holds the label value {label.max()}: up to {LARGEST_LABEL} can be told apart, renumber it"
        )


def _compact(array: np.ndarray, label: bool) -> np.ndarray:
    """As int16, a label map also as uint8, where that holds every value, else as float32; in C order."""
    if array.dtype.kind in "iu" and array.size:
        low, high = array.min(), array.max()
        for dtype in (np.uint8, np.int16) if label else (np.int16,):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return array.astype(dtype, order="C")
    return array.astype(np.float32, order="C")


def _to_tensor(raw: RawImage, spatial_dims: int, path: str) -> MetaTensor:
    array, affine = raw.array, raw.affine
    if spatial_dims == 2:
        array, affine = planar(array, affine, array.ndim - 1, path)
    if array.ndim - 1 != spatial_dims:
        raise UserError(f"{path} has {array.ndim - 1} spatial dimensions, the network takes {spatial_dims}")
    if affine is not None and (problem := affine_problem(affine)):
        raise UserError(f"{path} {problem}: repair its header")
    known = affine is not None
    affine = torch.from_numpy(affine.copy()) if known else torch.eye(4, dtype=torch.float64)
    meta = {"filename_or_obj": path, "original_affine": affine.clone(), "spacing_known": known}
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=affine, meta=meta)


def _check_grids(image: MetaTensor, label: MetaTensor) -> None:
    image_path, label_path = (tensor.meta["filename_or_obj"] for tensor in (image, label))
    if image.shape[1:] != label.shape[1:]:
        raise UserError(
            f"{image_path} is {tuple(image.shape[1:])} but its label {label_path} is {tuple(label.shape[1:])}: "
            "they must have the same size"
        )
    known = image.meta["spacing_known"] and label.meta["spacing_known"]
    if known and (conflict := grid_conflict(label.affine.numpy(), image.affine.numpy())):
        raise UserError(
            f"{label_path} does not lie on the grid of its image {image_path} ({conflict}): if the voxels do "
            "belong together, copy the image's header to the label"
        )
