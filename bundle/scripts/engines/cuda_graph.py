"""Record the network's training pass as CUDA graphs, so that a slow host does not hold a fast GPU back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events

from ..common.command_line import from_words
from ..common.distributed import world_size
from ..common.errors import UserError, in_one_line

__all__ = ["RecordCudaGraph"]

logger = logging.getLogger("lightm_unet")


class RecordCudaGraph:
    """At the start of training, record forward and backward of the network for the one input shape there is.

    A step of LightM-UNet is over a thousand short kernels: started one by one they take the host longer than the
    GPU. In evaluation mode the network runs as before, with any shape. Does nothing on a CPU, and nothing on
    several GPUs, where each layer's gradients must be sent while the backward pass goes on.

    The parameters' gradients are then the graph's own memory, which each replay overwrites: the optimiser must drop
    them after each step, not zero them, or autograd would add them to themselves.

    Args:
        enabled: false leaves it out.
        in_channels, patch_size, batch_size: of the training batches.

    Raises:
        UserError: (at the start) the network does something that a graph cannot hold, or the trainer sums the
            gradients of several batches; (later) a training batch has another shape.
    """

    @from_words
    def __init__(self, enabled: bool, in_channels: int, patch_size: Sequence[int], batch_size: int) -> None:
        self.enabled = enabled
        self.shape = (int(batch_size), int(in_channels), *(int(n) for n in patch_size))

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        device = torch.device(engine.state.device)
        if not self.enabled or device.type != "cuda" or world_size() > 1:
            return
        if getattr(engine, "accumulation_steps", 1) > 1:
            raise UserError("cuda_graph: accumulation_steps must be 1: train with --cuda_graph false")
        engine.optim_set_to_none = True
        network = engine.network.train()
        sample = torch.zeros(self.shape, device=device)
        precision = {"enabled": bool(engine.amp), **engine.amp_kwargs, "cache_enabled": False}
        try:
            with torch.cuda.device(device), torch.autocast("cuda", **precision), warnings.catch_warnings():
                # Of gradients that go from stream to stream, which recording does on purpose.
                warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
                torch.cuda.make_graphed_callables(network, (sample,), allow_unused_input=True)
        except RuntimeError as error:
            _let_random_numbers_go_on(device)
            raise UserError(
                f"cuda_graph: the network cannot be recorded ({in_one_line(error)}): train with --cuda_graph false"
            ) from error
        network.register_forward_pre_hook(self._check_shape)
        logger.info("Recorded the training pass for batches of %s as a CUDA graph", "x".join(map(str, self.shape)))

    def _check_shape(self, network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """A replay would spread a smaller batch over the recorded one's place."""
        if network.training and tuple(inputs[0].shape) != self.shape:
            raise UserError(
                f"cuda_graph: recorded for batches of shape {self.shape}, but got {tuple(inputs[0].shape)}: "
                "train with --cuda_graph false"
            )


def _let_random_numbers_go_on(device: torch.device) -> None:
    """After a recording that failed, PyTorch's generator still waits for its end and refuses to draw: a new state."""
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    seed = generator.initial_seed()
    generator.graphsafe_set_state(torch.Generator(device))
    generator.manual_seed(seed)
