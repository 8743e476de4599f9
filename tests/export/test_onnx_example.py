"""docs/examples/onnx_inference.py predicts what the bundle's inference predicts, and stays an example."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from exports import INFERENCE, Export, settings, words
from generators import oblique

from scripts.common import BUNDLE_ROOT
from scripts.export.model import read_model

EXAMPLE = BUNDLE_ROOT / "docs/examples/onnx_inference.py"
LABELS_THAT_AGREE = 0.9999


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_inference", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_short_and_needs_no_pytorch() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    nodes = list(ast.walk(ast.parse(text, feature_version=(3, 10))))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert set(modules) == {"argparse", "itertools", "json", "pathlib", "nibabel", "numpy", "onnxruntime"}


def image(path: Path, shape: tuple[int, ...], affine: np.ndarray, dtype: str = "int16") -> Path:
    """Blobs, with an empty border, as after skull stripping."""
    rng = np.random.default_rng(sum(shape))
    grid = np.meshgrid(*(np.linspace(0, 3 + axis, size) for axis, size in enumerate(shape)), indexing="ij")
    values = 400 + 300 * np.prod([np.sin(1 + 2 * line) for line in grid], axis=0) + rng.normal(0, 30, shape)
    border = tuple(slice(2, -1) if size > 4 else slice(None) for size in shape)
    result = np.zeros(shape)
    result[border] = values[border]
    nib.save(nib.Nifti1Image(result.astype(dtype), affine), path)
    return path


def predict_both(example: ModuleType, export: Export, file: Path, folder: Path, **ids: Any) -> tuple[Any, Any]:
    """The prediction of the example and that of the bundle, as images."""
    typed = settings(export.dims, **ids)
    shutil.copy(export.onnx, folder / "net.onnx")
    facts = read_model([INFERENCE], str(export.weights), words(typed)).facts
    (folder / "net.json").write_text(json.dumps(facts))
    ours = folder / "onnx.nii.gz"
    example.main(["--model", str(folder / "net.onnx"), "--image", str(file), "--output", str(ours)])
    typed |= {name: "null" for name, value in typed.items() if value is None}
    monai.bundle.run(
        "inference",
        config_file=INFERENCE,
        bundle_root=str(BUNDLE_ROOT),
        checkpoint=str(export.weights),
        input_dir=str(file),
        output_dir=str(folder / "out"),
        tta=False,
        device="cpu",
        **typed,
    )
    return nib.load(ours), nib.load(folder / "out" / file.name)


def check_equal(ours: Any, expected: Any) -> None:
    found, wanted = np.asarray(ours.dataobj), np.asarray(expected.dataobj)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert len(np.unique(wanted)) == 3, "an image of one label shows nothing"
    assert (found == wanted).mean() >= LABELS_THAT_AGREE
    assert np.array_equal(ours.affine, expected.affine)
    assert ours.header.get_zooms() == expected.header.get_zooms() and type(ours) is type(expected)


@pytest.mark.parametrize(
    ("shape", "affine", "ids"),
    [
        ((30, 20, 25), oblique((1, 1, 1)), {}),  # windows that overlap, LPS
        ((12, 7, 13), np.diag([1.0, -1, 1, 1]), {}),  # smaller than a window
        ((26, 19, 9), oblique((0.8, 1.1, 3)), {"spacing": [1.0, 1.0, 2.0], "crop_nonzero": "true"}),
        ((24, 22, 6), oblique((0.5, 0.5, 4)), {"spacing": [1.0, None, 1.0], "normalization": ["zscore_nonzero"]}),
        (
            (20, 24, 22),
            np.diag([1.5, 1, 1, 1])[[2, 0, 1, 3]],
            {
                "spacing": [2.0, 1.0, 0.4],  # thick slices of the plan
                "normalization": [{"ct": {"lower": 100, "upper": 600, "mean": 350, "std": 120}}],
            },
        ),
    ],
)
def test_volumes(
    example: ModuleType, export_3d: Export, tmp_path: Path, shape: Any, affine: np.ndarray, ids: dict[str, Any]
) -> None:
    check_equal(*predict_both(example, export_3d, image(tmp_path / "case.nii.gz", shape, affine), tmp_path, **ids))


@pytest.mark.parametrize("shape", [(40, 30), (30, 1, 40), (35, 22, 1)])
@pytest.mark.parametrize("spacing", [None, [0.7, 1.9]])
def test_flat_images(
    example: ModuleType, export_2d: Export, tmp_path: Path, shape: tuple[int, ...], spacing: list[float] | None
) -> None:
    file = image(tmp_path / "case.nii", shape, np.diag([-1.2, 0.9, 1.1, 1]))
    ids = {"spacing": spacing, "rows_first": "true", "normalization": ["none"] if spacing else ["rgb"]}
    if not spacing:
        values = nib.load(file)
        scaled = (np.asarray(values.dataobj) // 4).astype(np.uint8)
        nib.save(nib.Nifti1Image(scaled, values.affine), file)
    check_equal(*predict_both(example, export_2d, file, tmp_path, **ids))


@pytest.mark.parametrize("slice_axis", [0, 2])
def test_volumes_slice_by_slice(example: ModuleType, export_2d: Export, tmp_path: Path, slice_axis: int) -> None:
    spacing: list[float | None] = [1.0, 1.0, 1.0]
    spacing[slice_axis] = None
    file = image(tmp_path / "case.nii.gz", (18, 17, 16), oblique((1, 1.3, 1.3)))
    check_equal(*predict_both(example, export_2d, file, tmp_path, slice_axis=slice_axis, spacing=spacing))
