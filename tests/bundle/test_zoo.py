"""What the model zoo and its tools expect of a bundle, and that the documents say what the configs hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, download, verify_metadata, verify_net_in_out

from scripts.common.command_line import check_ids
from scripts.networks import LightMUNet
from scripts.planning.make_plan import KEYS

REPOSITORY = Path(__file__).parents[2]
BUNDLE = REPOSITORY / "bundle"
CONFIGS = BUNDLE / "configs"
METADATA = CONFIGS / "metadata.json"
NAME = "lightm_unet_segmentation"
GUIDES = ("README.md", "bundle/docs/README.md", "bundle/docs/bring_your_own_data.md")
DOCUMENTS = (
    *GUIDES,
    *(f"bundle/docs/{name}" for name in ("integrations.md", "onnx.md", "data_license.txt")),
    "CHANGELOG.md",
)
# What `planning` writes when a reader follows the documents.
PLANNED = re.compile(r"configs/tasks/(?:NAME|mine|my_hippocampus)(?:\.fingerprint)?\.json")
# Names that pip knows and metadata.json has a field of its own for.
OWN_FIELDS = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
FILTERS = 8  # the smallest width: these tests are about the files, not the size
GENERATED = ("__pycache__", "*.pyc", "*.pt", "output", "eval", "prediction", "runs", "mlruns", "demo_output")


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return json.loads(METADATA.read_text(encoding="utf-8"))


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    """A copy of the bundle with random weights of the default size, named as the zoo names it."""
    copy = tmp_path / "bundles" / NAME
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns(*GENERATED))
    (copy / "models").mkdir(exist_ok=True)
    network = LightMUNet(spatial_dims=3, in_channels=1, out_channels=3, stem="full", scan_order="axes")
    torch.save(network.state_dict(), copy / "models" / "model.pt")
    return copy


def read(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def pinned_versions() -> dict[str, str]:
    """Package -> version in env/requirements.txt."""
    lines = read("env/requirements.txt").splitlines()
    return dict(re.findall(r"^([\w-]+)==(\S+)", "\n".join(lines), flags=re.MULTILINE))


def test_metadata_follows_the_schema(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    if "LIGHTM_UNET_SCHEMA" in os.environ:
        shutil.copyfile(os.environ["LIGHTM_UNET_SCHEMA"], schema)  # MONAI downloads nothing that is there
    try:
        verify_metadata(meta_file=str(METADATA), filepath=str(schema))
    except (URLError, TimeoutError, ConnectionError, RuntimeError) as error:
        if schema.exists():
            raise
        pytest.skip(f"LIGHTM_UNET_SCHEMA is not set and the schema cannot be downloaded: {error}")


def test_metadata_pins_what_env_pins(metadata: dict[str, Any]) -> None:
    pinned = pinned_versions()
    own = {package: pinned.pop(package) for package in OWN_FIELDS}
    assert {package: metadata[key] for package, key in OWN_FIELDS.items()} == own
    # The zoo's tools install each of these with ==.
    assert metadata["required_packages_version"] == pinned


def test_changelogs_name_the_version(metadata: dict[str, Any]) -> None:
    assert metadata["version"] in metadata["changelog"]
    headings = re.findall(r"^## \[(.+)\] - \d{4}-\d\d-\d\d$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert headings[0] == metadata["version"]


def test_metadata_says_what_the_model_card_does(metadata: dict[str, Any]) -> None:
    """The card's figures are written from the records."""
    (row,) = re.findall(r"^\| `models/model\.pt` \|.*\| (\S+) / (\S+) \|$", read("bundle/docs/README.md"), re.MULTILINE)
    assert metadata["eval_metrics"] == {"dice_anterior": float(row[0]), "dice_posterior": float(row[1])}


def test_files_that_the_zoo_looks_for() -> None:
    assert not [
        file for file in ("LICENSE", "models/model.pt", "configs/inference.json") if not (BUNDLE / file).is_file()
    ]
    assert not re.search(r"[^a-z0-9_]", NAME) and "segmentation" in NAME
    headings = re.findall(r"^#{1,3} .*$", read("bundle/docs/README.md"), flags=re.MULTILINE)
    wanted = "# Model Overview|## Data|## Training configuration|### Input|### Output|## Performance"
    wanted += "|## MONAI Bundle Commands|# References|# License"
    assert [heading for heading in headings if heading in wanted.split("|")] == wanted.split("|")


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ("inference.json", "bundle_root device network_def inferer output_dir"),
        ("train.json", "bundle_root device dataset_dir output_dir val_interval"),
        ("train.json", "train#trainer train#trainer#max_epochs train#dataset train#dataset#data train#handlers"),
        ("train.json", "train#preprocessing train#inferer validate#preprocessing validate#postprocessing"),
        ("train.json", "validate#evaluator validate#handlers validate#dataset validate#dataset#data"),
        ("train.json", "validate#inferer validate#key_metric"),
    ],
)
def test_ids_have_the_names_that_the_zoo_asks_for(config: str, ids: str) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / config)))
    assert not [name for name in ids.split() if name not in parser]


def test_large_files_are_listed(tmp_path: Path) -> None:
    """The zoo's limit is 25 MB; of the bundle's own files none is so large."""
    script = [sys.executable, str(REPOSITORY / "env/large_files.py")]
    (tmp_path / "models").mkdir()
    (tmp_path / "models/small.pt").write_bytes(b"small")
    with (tmp_path / "models/model.pt").open("wb") as file:
        file.truncate(25 * 10**6 + 1)
    done = subprocess.run([*script, str(tmp_path), ""], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "models/model.pt: over 25 MB" in done.stderr
    subprocess.run([*script, str(tmp_path), "https://example.org/v1/"], check=True)
    content = (tmp_path / "large_files.yml").read_text(encoding="utf-8")
    digest = hashlib.md5(bytes(25 * 10**6 + 1)).hexdigest()
    assert re.findall(r'path: "(.*)"\n    url: "(.*)"\n    hash_val: "(.*)"', content) == [
        ("models/model.pt", "https://example.org/v1/models/model.pt", digest)
    ]
    assert max(file.stat().st_size for file in BUNDLE.rglob("*.pt")) < 25 * 10**6


def test_metadata_names_the_classes_of_the_shipped_task(metadata: dict[str, Any]) -> None:
    task = json.loads((CONFIGS / "tasks" / "hippocampus.json").read_text(encoding="utf-8"))
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["num_channels"] == task["in_channels"]
    channels = formats["outputs"]["pred"]["channel_def"]
    assert formats["outputs"]["pred"]["num_channels"] == len(channels) == len(task["labels"]) + 1
    for name, value in task["labels"].items():
        assert name in channels[str(value)]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_network_does_what_metadata_says(config: str, n: int) -> None:
    verify_net_in_out(
        "network_def",
        meta_file=str(METADATA),
        config_file=str(CONFIGS / config),
        device="cpu",
        n=n,
        bundle_root=str(BUNDLE),
        init_filters=FILTERS,
    )


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes become constants, as documented
def test_traced_export_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = LightMUNet(3, 1, 3, init_filters=FILTERS, stem="full", scan_order="axes").eval()
    weights, exported = tmp_path / "model.pt", tmp_path / "model.ts"
    torch.save(network.state_dict(), weights)
    ckpt_export(
        "network_def",
        filepath=str(exported),
        ckpt_file=str(weights),
        meta_file=str(METADATA),
        config_file=str(CONFIGS / "inference.json"),
        use_trace=True,
        input_shape=[1, 1, 16, 8, 8],
        bundle_root=str(BUNDLE),
        init_filters=FILTERS,
    )
    images = torch.randn(2, 1, 16, 8, 8)  # other values and another batch size than traced
    inside = {"metadata.json": "", "inference.json": ""}
    loaded = torch.jit.load(str(exported), map_location="cpu", _extra_files=inside)
    with torch.no_grad():
        traced, expected = loaded(images), network(images)
    # The trace holds the plain layers, the network streams its own: both round, each 5e-5 to 9e-5 off float64 here.
    assert (traced - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert json.loads(inside["metadata.json"])["version"] == json.loads(METADATA.read_text())["version"]
    assert "network_def" in json.loads(inside["inference.json"])


LOAD = """
import sys, torch
from monai.bundle import load
folder, root = sys.argv[1:]
network = load({name!r}, bundle_dir=folder, device="cpu")
weights = torch.load(root + "/models/model.pt", weights_only=True)
state = network.state_dict()
assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)
print(sys.modules[type(network).__module__].__file__)
"""


def test_load_works_from_another_folder_as_documented(bundle_copy: Path, tmp_path: Path) -> None:
    assert 'load("lightm_unet_segmentation", bundle_dir="BUNDLES")' in read("bundle/docs/README.md")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # In a process of its own: here `scripts` is already imported, from the repository.
    result = subprocess.run(
        [sys.executable, "-c", LOAD.format(name=NAME), str(bundle_copy.parent), str(bundle_copy)],
        cwd=elsewhere,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert Path(result.stdout.splitlines()[-1]).is_relative_to(bundle_copy)
    assert not list(elsewhere.iterdir()), "loading must not write into the user's folder"


def make_release(folder: Path, bundle: Path, with_git: bool) -> Path:
    """The zip of `make release`, made in ``folder`` with our Makefile from ``bundle``."""
    shutil.copy(REPOSITORY / "Makefile", folder)
    shutil.copytree(REPOSITORY / "env", folder / "env")
    shutil.copytree(bundle, folder / "bundle")
    (folder / "bundle" / "scripts" / "__pycache__").mkdir()
    (folder / "bundle" / "scripts" / "__pycache__" / "stale.pyc").touch()
    (folder / "bundle" / "output").mkdir()
    (folder / "bundle" / "output" / "checkpoint.pt").touch()
    if with_git:
        shutil.copy(REPOSITORY / ".gitignore", folder)
        for command in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", *command], cwd=folder, check=True)
    # An existing file as the stamp: this Python already has the packages.
    arguments = [f"VENV_PYTHON={sys.executable}", "STAMP=Makefile"]
    result = subprocess.run(
        ["make", "--no-print-directory", "release", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / result.stdout.splitlines()[-1]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("with_git", [False, True])
def test_release_can_be_downloaded(with_git: bool, bundle_copy: Path, tmp_path: Path, metadata: dict[str, Any]) -> None:
    if with_git and shutil.which("git") is None:
        pytest.skip("needs git")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    archive = make_release(checkout, bundle_copy, with_git)
    assert archive.name == f"{NAME}_v{metadata['version']}.zip"
    files = [file.relative_to(bundle_copy) for file in bundle_copy.rglob("*") if file.is_file()]
    with zipfile.ZipFile(archive) as content:
        assert {entry for entry in content.namelist() if not entry.endswith("/")} == {
            f"{NAME}/{file}" for file in files
        }
    download(name=NAME, url=archive.as_uri(), bundle_dir=str(tmp_path / "downloaded"), progress=False)
    downloaded = tmp_path / "downloaded" / NAME
    for file in ("LICENSE", "configs/metadata.json", "models/model.pt", "scripts/networks/lightm_unet.py"):
        assert (downloaded / file).read_bytes() == (bundle_copy / file).read_bytes()


@pytest.mark.parametrize(
    ("files", "run_ids"),
    [
        (["train.json"], ["initialize", "run", "training"]),
        (["train.json", "evaluate.json"], ["initialize", "run", "evaluating"]),
        (["inference.json"], ["initialize", "run", "inference"]),
    ],
)
def test_run_ids_exist(files: list[str], run_ids: list[str]) -> None:
    config = ConfigParser.load_config_files([str(CONFIGS / file) for file in files])
    assert set(run_ids) <= set(config)
    assert config[run_ids[-1]] == "@run"


def bundle_commands(document: str) -> list[list[str]]:
    """Arguments after ``-m monai.bundle run`` of each command line in a document."""
    text = PLANNED.sub("configs/tasks/hippocampus.json", read(document))
    lines = re.findall(r"-m monai\.bundle (run .+)$", text, flags=re.MULTILINE)
    return [re.findall(r'"[^"]*"|\S+', line) for line in lines]


@pytest.mark.parametrize("document", GUIDES)
def test_documented_commands_use_ids_that_exist(document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BUNDLE)
    commands = bundle_commands(document)
    assert {command[1] for command in commands} >= {"training", "evaluating", "inference"}
    for command in commands:
        arguments = [argument.strip('"') for argument in command]
        check_ids(arguments)  # raises for an id that no given config has
        files = ConfigParser.load_config_files(
            re.findall(r"configs/[\w/]+\.json", arguments[arguments.index("--config_file") + 1])
        )
        assert arguments[1] in files, f"{document}: run id {arguments[1]}"


@pytest.mark.parametrize(("epochs", "interval"), [(2, 2), (50, 10)])
def test_a_shortened_run_is_validated_too(epochs: int, interval: int) -> None:
    """Without a validation there is no best epoch, hence no model.pt for evaluation and inference."""
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / "train.json")]))
    parser.update({"epochs": epochs, "val_interval": 10})
    handlers = parser["train#handlers"]
    index = next(i for i, handler in enumerate(handlers) if handler["_target_"] == "ValidationHandler")
    assert parser.get_parsed_content(f"train#handlers#{index}#interval") == interval


def test_documented_options_exist_with_these_defaults() -> None:
    text = read("bundle/docs/README.md")
    training, inference = text.split("#### Inference")
    given = {
        "train.json": training.split("#### Override settings")[1].split("A run writes")[0],
        "inference.json": inference.split("#### Errors")[0],
    }
    for file, section in given.items():
        config = json.loads((CONFIGS / file).read_text(encoding="utf-8"))
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section, flags=re.MULTILINE)
        assert len(rows) >= 8
        for name, default in rows:
            assert name in config, f"{file} has no {name}"
            value = config[name]
            if re.fullmatch(r"`[\w.]+`", default) and not isinstance(value, str):
                assert json.loads(default.strip("`")) == value, f"{file}: {name} is {value}, not {default}"


def test_overlay_guide_explains_every_key() -> None:
    rows = re.findall(r"^\| (`.+?) \|", read("bundle/docs/bring_your_own_data.md"), flags=re.MULTILINE)
    explained = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert explained == set(KEYS)


def test_documented_files_exist() -> None:
    shipped = re.compile(r"\b(?:configs|scripts|docs|env|benchmarks)/[\w/]+\.(?:json|py|txt|md|conf)\b")
    for document in DOCUMENTS:
        for path in shipped.findall(PLANNED.sub("", read(document))):
            assert (BUNDLE / path).exists() or (REPOSITORY / path).exists(), f"{document} names {path}"


def test_nothing_but_the_bundle_is_tracked_in_it() -> None:
    """What a command or a campaign left there would be published."""
    done = subprocess.run(["git", "ls-files", "bundle"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    parts = {Path(file).parts[1] for file in done.stdout.splitlines()}
    assert parts <= {"LICENSE", "configs", "docs", "models", "scripts"}


def test_nothing_claims_clinical_use(metadata: dict[str, Any]) -> None:
    assert "research only" in metadata["intended_use"].lower()
    texts = {document: read(document) for document in DOCUMENTS} | {"metadata.json": METADATA.read_text()}
    claim = re.compile(r"clinical|diagnos|treatment|patient care", flags=re.IGNORECASE)
    disclaimer = re.compile(r"\b(?:not|no|never)\b", flags=re.IGNORECASE)
    for document, text in texts.items():
        for line in filter(claim.search, text.splitlines()):
            assert disclaimer.search(line), f"{document}: {line}"
