"""Loading cases to predict one after the other, past those that cannot be loaded."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from monai.data import DataLoader, Dataset, list_data_collate
from torch.utils.data import Subset

from ..common.errors import UserError, find_user_error, in_one_line
from ..images.files import first_file

__all__ = ["BrokenCase", "CaseDataset", "collate", "is_unicode", "load_past_deaths", "printable"]


class BrokenCase(dict):
    """Stands in a batch for a case that could not be loaded: {"file", "error"}."""

    def __str__(self) -> str:
        """The file and what is wrong with it; most errors name the file themselves."""
        return printable(f"{self['file']}: {self['error'].removeprefix(self['file'] + ' ')}")

    def __missing__(self, key: str) -> Any:
        """An evaluator that is run on its own asks for the image."""
        raise UserError(str(self))


class CaseDataset(Dataset):
    """A dataset that hands out a BrokenCase, and does not raise, where a case cannot be loaded."""

    def __getitem__(self, index: int) -> Any:
        file = first_file(self.data[index]["image"])
        try:
            if not is_unicode(file):
                raise UserError(f"{file} has a name that is not UTF-8: rename it")
            return super().__getitem__(index)
        except Exception as error:  # whatever it is, the other cases still want their prediction
            return BrokenCase(file=file, error=str(find_user_error(error) or in_one_line(error)))


def collate(batch: Sequence[Any]) -> Any:
    """A batch of one case, which may be broken."""
    return batch[0] if isinstance(batch[0], BrokenCase) else list_data_collate(batch)


def is_unicode(name: str) -> bool:
    """Whether a file name can be written into a text; Linux allows any bytes, which Python keeps as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """The text with such names in a form that every log takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def load_past_deaths(dataloader: DataLoader) -> Iterator[Any]:
    """The batches of a CaseDataset, in order: a BrokenCase where a worker process is killed in loading one.

    A killed worker (mostly for lack of memory) ends PyTorch's loading without saying which case it worked on. So the
    case that is due is loaded again, alone in a new process, and after it the rest as before.

    Args:
        dataloader: one case a batch, in order.
    """
    dataset, done = dataloader.dataset, 0
    while done < len(dataset):
        with contextlib.suppress(Exception):  # a worker's end, or what it cannot hand over; a case gives a BrokenCase
            for batch in _iterate(dataloader if done == 0 else _part(dataloader, range(done, len(dataset)))):
                yield batch
                done += 1
        if done < len(dataset):
            yield _load_alone(dataloader, done)
            done += 1


def _load_alone(dataloader: DataLoader, index: int) -> Any:
    try:
        return next(_iterate(_part(dataloader, [index])))
    except Exception as error:
        killed = "the process that loaded it was killed, probably for lack of memory: try with --num_workers 0"
        reason = killed if "DataLoader worker" in str(error) else in_one_line(error)
        return BrokenCase(file=first_file(dataloader.dataset.data[index]["image"]), error=reason)


def _part(dataloader: DataLoader, indices: Sequence[int]) -> DataLoader:
    workers = min(dataloader.num_workers, len(indices))
    return DataLoader(Subset(dataloader.dataset, indices), workers, batch_size=1, collate_fn=dataloader.collate_fn)


def _iterate(dataloader: DataLoader) -> Iterator[Any]:
    """Without PyTorch's signal handler, which raises a worker's end wherever this process is just then, as if the case
    that it predicts had failed. The iterator notices by itself when it waits."""
    settable = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if settable else None
    batches = iter(dataloader)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
    return batches
