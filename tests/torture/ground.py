"""What every part starts from: data sets, a plan, a trained run, its predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import samples, server


class Ground:
    """Makes everything in a folder with the bundle's own commands.

    Attributes:
        folder: everything is below it; each part works in a folder of its own there.
        volumes, pictures: data sets of six cases.
        overlay, picture_overlay: their plans, made small.
        run, cache: a finished training on the volumes; picture_run: one on the pictures.
        predictions: of the held-out cases; rules: postprocessing rules.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log.txt"
        self.volumes = samples.write_volumes(folder / "volumes")
        self.pictures = samples.write_pictures(folder / "pictures")
        self.overlay, self.picture_overlay = folder / "task.json", folder / "picture_task.json"
        self.run, self.cache, self.picture_run = folder / "run", folder / "cache", folder / "picture_run"
        self.predictions = folder / "evaluation/predictions"
        self.rules = samples.write_rules(folder / "rules.json")
        for dataset, overlay in ((self.volumes, self.overlay), (self.pictures, self.picture_overlay)):
            self.must(samples.planning(dataset, overlay))
            samples.shorten(overlay)
        self.must(samples.training(self.overlay, self.run, self.cache))
        self.must(samples.training(self.picture_overlay, self.picture_run, folder / "picture_cache"))
        self.must(samples.evaluating(self.overlay, self.run, self.cache, self.predictions.parent))

    @property
    def out(self) -> Path:
        """Where a command may write what is thrown away."""
        return self.folder / "out"

    @property
    def weights(self) -> Path:
        return self.run / "model.pt"

    @property
    def images(self) -> Path:
        return self.volumes / "imagesTr"

    def must(self, command: samples.Words) -> server.Ended:
        """Run a command that has to succeed.

        Raises:
            RuntimeError: it did not, which makes the whole campaign worthless.
        """
        ended = server.run(command, self.log)
        if ended.status:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.status}:\n{ended.output[-3000:]}")
        return ended

    def clear_out(self) -> None:
        """Remove ``out``, whether a command made a folder or a file of it."""
        if self.out.is_dir() and not self.out.is_symlink():
            shutil.rmtree(self.out)
        else:
            self.out.unlink(missing_ok=True)

    def empty(self, name: str) -> Path:
        """An empty folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder
