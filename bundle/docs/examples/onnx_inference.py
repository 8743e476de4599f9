"""Predict an image with an exported network, without PyTorch: numpy, onnxruntime and nibabel are all it takes.

    python onnx_inference.py --model model.onnx --image IN.nii.gz --output OUT.nii.gz

model.json beside the model says how images are prepared. The labels are those of `run inference --tta false`.
"""

import argparse
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--image", nargs="+", required=True, help="one NIfTI file, or one for each channel")
    parser.add_argument("--output", required=True)
    options = parser.parse_args(arguments)
    facts = json.loads(options.model.with_suffix(".json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    volume, spacing, turn, file = load(options.image, facts["image_dims"] == 2)
    labels = np.zeros(volume.shape[1:], np.min_scalar_type(max(facts["label_values"])))
    inside = (volume != 0).any(0) if facts["crop_nonzero"] else np.ones_like(volume[0])
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(inside))
    volume = np.stack([normalized(channel[box], scheme) for channel, scheme in zip(volume, facts["normalization"])])
    wanted = [new or old for new, old in zip(facts["spacing"] or spacing, spacing)]
    thick = [mm for mm in (spacing, wanted) if max(mm) > 3 * min(mm) and np.isclose(mm, max(mm), 1e-3).sum() == 1]
    thin = np.argmax(thick[0]) if thick else None  # the axis of thick slices, resampled to the nearest
    grid = [max(1, round(n * old / new)) for n, old, new in zip(volume.shape[1:], spacing, wanted)]
    logits = predicted(session, resized(volume, grid, 3, thin), facts)
    labels[box] = np.take(facts["label_values"], resized(logits, volume.shape[1:], 1, thin).argmax(0))
    save(options.output, labels, turn, file)


def load(paths, flat):
    """(channels, *axes), in RAS or, if flat, rows and columns; mm of a voxel along them; how they turned; the file."""
    files = [nib.load(path) for path in paths]
    shape = (*files[0].shape, 1)[:3]
    voxels = np.concatenate([np.asarray(file.dataobj, np.float32).reshape(*shape, -1) for file in files], axis=3)
    turn = nib.io_orientation(files[0].affine)
    if flat:  # rows, columns and the slice
        slices = max(axis for axis in range(3) if shape[axis] == 1)
        order = [axis for axis in (2, 1, 0) if axis != slices] + [slices]
        turn = np.array([(order.index(axis), 1) for axis in range(3)])
    voxels = np.moveaxis(nib.apply_orientation(voxels, turn), 3, 0)
    spacing = np.linalg.norm(files[0].affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    return (voxels[..., 0], spacing[:2], turn, files[0]) if flat else (voxels, spacing, turn, files[0])


def save(path, labels, turn, like):
    """Write a label map in the voxel order and with the geometry of an image file."""
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
    labels = nib.apply_orientation(labels[..., None] if labels.ndim == 2 else labels, back).reshape(like.shape[:3])
    header = like.header.copy()
    header.set_data_dtype(labels.dtype)
    header.set_slope_inter(1, 0)
    nib.save(type(like)(labels, like.affine, header), path)


def normalized(channel, scheme):
    if scheme in ("rgb", "none"):
        return channel / 255 if scheme == "rgb" else channel
    if scheme in ("zscore", "zscore_nonzero"):
        inside = channel != 0 if scheme == "zscore_nonzero" and channel.any() else np.ones_like(channel, bool)
        return np.where(inside, (channel - channel[inside].mean()) / (channel[inside].std() or 1), 0)
    ct = scheme["ct"]
    return (channel.clip(ct["lower"], ct["upper"]) - ct["mean"]) / max(ct["std"], 1e-8)


def resized(volume, shape, order, thin):
    """(channels, *axes) on another grid over the same extent: by splines of order 3 or 1, along a thin axis by the
    nearest slice. Each axis is a matrix; the axes that shrink come first."""
    for axis in sorted(range(len(shape)), key=lambda axis: shape[axis] / volume.shape[axis + 1]):
        old, new = volume.shape[axis + 1], shape[axis]
        places = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        if axis == thin:
            volume = volume.take(np.floor(places + 0.5).astype(int), axis + 1)
        elif old != new:
            matrix = splines(places, old, order) @ np.linalg.inv(splines(np.arange(old), old, order))
            volume = np.moveaxis(np.tensordot(volume, matrix.astype(np.float32), (axis + 1, 1)), -1, axis + 1)
    return volume


def splines(places, count, order):
    """(places, count): how much each of ``count`` splines, mirrored at both ends, has at each place."""
    distance = np.abs(places[:, None] - np.arange(-1, count + 1))
    cubic = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance).clip(0) ** 3 / 6)
    share = cubic if order == 3 else (1 - distance).clip(0)
    share[:, min(2, count)] += share[:, 0]
    share[:, max(count - 1, 1)] += share[:, -1]
    return share[:, 1:-1]


def predicted(session, volume, facts):
    """Logits (classes, *axes): the mean over overlapping windows, each with the weights of a Gaussian."""
    window, starts = facts["window"], []
    gaps = [max(size - length, 0) for size, length in zip(window, volume.shape[1:])]
    volume = np.pad(volume, [(0, 0), *((gap // 2, gap - gap // 2) for gap in gaps)])
    for size, length in zip(window, volume.shape[1:]):
        step = max(1, int(size * (1 - facts["overlap"])))
        starts.append([min(start, length - size) for start in range(0, length - size + step, step)])
    bells = [np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2) for size in window]
    bell = np.prod(np.meshgrid(*bells, indexing="ij"), axis=0).clip(1e-3).astype(np.float32)
    total, weight = np.zeros((len(facts["label_values"]), *volume.shape[1:]), np.float32), np.zeros_like(volume[:1])
    for corner in itertools.product(*starts):
        box = (slice(None), *(slice(start, start + size) for start, size in zip(corner, window)))
        (logits,) = session.run(None, {"image": volume[box].reshape(1, -1, *facts["patch_size"])})
        total[box] += logits.reshape(-1, *window) * bell
        weight[box] += bell
    inner = (slice(gap // 2, gap // 2 + length - gap) for gap, length in zip(gaps, volume.shape[1:]))
    return (total / weight)[(slice(None), *inner)]


if __name__ == "__main__":
    main()
