"""Several processes at one run, each on its share of every batch: `accelerate launch` starts them, nothing here does.

With one process, which is the rule, nothing here does anything. `shard` is for weights that one card cannot hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce
from torch import nn

from mmlora.errors import MMLoraError
from mmlora.models.precision import device

Item = TypeVar("Item")
PATIENCE = timedelta(hours=2)  # one process may fetch weights, or explain, while the others wait


class ProcessLost(MMLoraError):
    """Another process of this run that no longer answers; the message says what to do."""


class ShardingError(MMLoraError):
    """Weights that cannot be shared out among processes; the message says what to do."""


#: What torch's backends say when the process at the other end is gone.
GONE = ("closed by peer", "reset by peer", "Broken pipe", "timed out", "Timed out", "refused", "remote process")


@contextmanager
def _heard() -> Iterator[None]:
    """Raise `ProcessLost` when another process has ended: at once, because its connections close, not after `PATIENCE`."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in GONE):
            raise
        raise ProcessLost(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}): look at its last "
            "output, fix the cause, and go on with the run (--resume)"
        ) from error


def _state() -> PartialState:
    return PartialState(cpu=on_processor(), timeout=PATIENCE)


def on_processor() -> bool:
    """Whether the processes run on a processor: accelerate takes several there only where it is told so."""
    return device().type == "cpu"


def count() -> int:
    return _state().num_processes


def index() -> int:
    return _state().process_index


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return index() == 0


def one_first() -> AbstractContextManager:
    """The first process does what is inside, and then the others: what it fetched or drew is there for them."""
    return _state().main_process_first()


def wait() -> None:
    """Wait for all processes. This and the functions below raise `ProcessLost` when one of them has ended."""
    with _heard():
        _state().wait_for_everyone()


def leave() -> None:
    """The last call of a run that went well: its processes wait for each other and end their group.

    Gloo's threads may still hold tensors; one that lets go of them while Python closes down aborts its process.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        wait()
        _state().destroy_process_group()


def mine(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share of what all were given; `together` puts shares back in order."""
    return items[index() :: count()]


def together(share: Sequence[Item]) -> list[Item]:
    """What all processes made of their `mine`, in the order of the whole, in every process."""
    shares = gathered(share)
    whole: list = [None] * sum(map(len, shares))
    for start, part in enumerate(shares):
        whole[start :: len(shares)] = part
    return whole


def gathered(item: Item) -> list[Item]:
    """One from each process, by their number, in every process."""
    if count() == 1:
        return [item]
    with _heard():
        return gather_object([item])


def said(item: Item) -> Item:
    """The first process's, in every process."""
    if count() == 1:
        return item
    with _heard():
        return broadcast_object_list([item])[0]


def agreed(*numbers: float) -> list[float]:
    """The first process's numbers, in every process: one clock for all."""
    if count() == 1:
        return list(numbers)
    with _heard():
        return broadcast(torch.tensor(numbers, dtype=torch.float64, device=_state().device)).tolist()


def share_start(parameters: Iterable[nn.Parameter]) -> None:
    """Every process begins with the first one's numbers."""
    if count() > 1:
        with _heard():
            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data.clone()))


def add_up(parameters: Iterable[nn.Parameter], *numbers: float) -> list[float]:
    """Sum gradients over all processes, in place, and these numbers with them; one that no process has stays None."""
    if count() == 1:
        return list(numbers)
    trained = list(parameters)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in trained]
    found = [*numbers, *(p.grad is not None for p in trained)]
    with _heard():
        whole: Any = reduce(torch.cat(parts), "sum")
        sums: Any = reduce(torch.tensor(found, dtype=torch.float64, device=whole.device), "sum")
    known, reached = sums[: len(numbers)].tolist(), sums[len(numbers) :].tolist()
    for parameter, gradient, any_has in zip(trained, whole.split([p.numel() for p in trained]), reached):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if any_has else None
    return known


def sharded() -> bool:
    """Whether frozen weights are shared out among the processes: `accelerate launch --use_fsdp --fsdp_version 2`.

    Every forward pass then takes all processes at once.
    """
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and count() > 1


def shard(layers: Iterable[nn.Module]) -> None:
    """Keep this process's share of each layer's weights, in place; a layer is whole only while it computes.

    Fully sharded data parallel (Zhao et al. 2023, 2304.11277) in torch's second version, as accelerate's plugin is set.
    For frozen weights: an adapter comes later, and is whole in every process. Raises `ShardingError` for other settings.
    """
    from torch.distributed import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2 or isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ShardingError("weights are sharded by FSDP 2 without offloading only; launch with --fsdp_version 2 "
                            "--fsdp_offload_params false")  # fmt: skip
    if first():
        print(
            f"weights are spread over {count()} processes: layers take the plain path, nothing is cached, and every process "
            "answers all problems"
        )
    mesh = init_device_mesh(device().type, (count(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=bool(plugin.reshard_after_forward))


def has_shards(module: nn.Module) -> bool:
    """Whether `shard` took this module's weights apart."""
    return sharded() and hasattr(module, "reshard")  # inside its forward the weights are whole
