"""How fast a training will be, from two steps that change nothing."""

from __future__ import annotations

from contextlib import nullcontext
from time import perf_counter

from torch import nn

from mmlora.adapters.fused import fused
from mmlora.adapters.towers import training_mode
from mmlora.models import processes
from mmlora.models.memory import out_of_memory
from mmlora.models.precision import attention, mixed
from mmlora.training.order import batches
from mmlora.training.settings import TrainingSet, TrainSettings


def samples_per_second(model: nn.Module, data: TrainingSet, settings: TrainSettings) -> float | None:
    """Samples a second of a step's forward and backward pass; the second of two is timed, on the batch of median length.

    Parameters stay as they are and gradients are cleared. None where this does not measure it: with several processes, or
    a batch that does not fit in memory at once.
    """
    if processes.count() > 1:
        return None
    order = batches(data.lengths, settings.batch_size, settings.seed, 0)
    batch = sorted(order, key=lambda indices: sum(data.lengths[i] for i in indices) / len(indices))[len(order) // 2]
    training_mode(model)
    device = next(p.device for p in model.parameters() if p.requires_grad)
    seconds = 0.0
    try:
        with fused(model) if settings.fused else nullcontext():
            for _ in range(2):
                began = perf_counter()
                with mixed(device), attention(device):
                    loss = data.loss(model, batch)[0]
                    loss.backward()
                loss.item()
                seconds = perf_counter() - began
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        model.eval()
    return len(batch) / seconds
