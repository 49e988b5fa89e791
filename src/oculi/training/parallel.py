"""The train module over several ranks: FSDP2, block by block.

    ranks          0 1 2 3 4 5 6 7                 shard = 4
    a copy of the  └──┬──┘ └──┬──┘                 gradients: reduced within a copy, then
    model lies on   copy 0  copy 1                 summed over the copies

``shard`` is how many ranks hold one copy: all of them (FSDP), those of one machine (hybrid), or each its
own (1, which is data parallel). It is one code path: with 1 nothing is split, and only gradients travel.
Model and objectives are one module, or the gradients of heads would stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from oculi.errors import RecipeError
from oculi.training.module import TrainModule
from oculi.training.optim import Optimizers
from oculi.training.ranks import Ranks

AXES = ("copy", "part")


def part_of(shard: int | None, ranks: int) -> int:
    """Ranks that hold one copy of the model together; raises RecipeError unless they divide all."""
    part = ranks if shard is None else shard
    if ranks % part:
        raise RecipeError(
            f"shard: {ranks} ranks cannot be parted into copies of {part}; use a divisor of {ranks}, or "
            "null for one copy over all"
        )
    return part


def split(module: TrainModule, ranks: Ranks, shard: int | None, precision: torch.dtype) -> None:
    """Split parameters over the ranks, in place; they become ``DTensor`` with the same names.

    Every rank must hold the same whole module. A parameter that a rank's data do not reach (an image
    part, where there is only text) has a gradient of zeros, so that no rank waits for it.

    Args:
        module: with ``requires_grad`` as it will be trained.
        ranks: see there.
        shard: how many ranks hold one copy; None: all.
        precision: in which blocks are gathered, where it is less than what they are kept in; gradients
            are summed in float32.

    Raises:
        RecipeError: the ranks cannot be parted so.
    """
    if ranks.alone:
        return
    part = part_of(shard, ranks.count)
    mesh = _new_mesh(ranks.device.type, (ranks.count // part, part))
    _host_mesh(mesh)  # made now, by all: making it is a collective
    lower = precision if precision != torch.float32 else None
    blocks = MixedPrecisionPolicy(lower, torch.float32, cast_forward_inputs=False)
    # The residual stream has the dtype of the embeddings, and must not change with the ranks.
    rest = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
    # Where the LLM is frozen below block 0, text alone would need no gradient of its input, and block 0
    # would reduce its own later than on a rank with images: each would wait for the other.
    module.model.get_input_embeddings().register_forward_hook(_with_gradient)
    for block in module.model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=blocks)
    root = fully_shard(module, mesh=mesh, mp_policy=rest)
    root.set_reduce_scatter_unused_params(True)
    for part_of_it in module.modules():
        if isinstance(part_of_it, FSDPModule):
            # Objectives return sums and are divided by the units of all ranks: gradients add up.
            part_of_it.set_gradient_divide_factor(1.0)
            part_of_it.set_force_sum_reduction_for_comms(True)


def _with_gradient(embedding: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_(torch.is_grad_enabled())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split, on every rank; all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in host memory, one after the other; all ranks must call it."""
    return {name: whole(tensor.detach()).cpu() for name, tensor in tensors.items()}


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in host memory, split as the tensor is; all ranks must call it."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True)
    return _as_part(tensor.to_local().detach().to("cpu", copy=True), tensor, on_host=True)


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in host memory, split as ``like`` is; as it is if ``like`` is whole or differs."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    mesh = _host_mesh(like.device_mesh)
    return distribute_tensor(value, mesh, like.placements, src_data_rank=None)


def fit_state(state: dict[str, Any], optimizer: Optimizers) -> dict[str, Any]:
    """An optimizer's state in host memory, whole or split, split and placed as its parameters are."""
    for part, members in zip(state["parts"], optimizer.members(), strict=True):
        for number, values in part["state"].items():
            like = members[number]
            for name, value in values.items():
                if isinstance(like, DTensor) and value.shape == like.shape:
                    local: Any = value if isinstance(value, DTensor) else split_like(value, like)
                    values[name] = _as_part(local.to_local().to(like.device), like)
    return state


def _as_part(local: Tensor, like: DTensor, on_host: bool = False) -> DTensor:
    mesh = _host_mesh(like.device_mesh) if on_host else like.device_mesh
    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _host_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The same ranks in the same places, for tensors in host memory."""
    return mesh if mesh.device_type == "cpu" else _new_mesh("cpu", tuple(mesh.mesh.shape))


def _new_mesh(device: str, shape: tuple[int, ...]) -> DeviceMesh:
    return _mesh_of(dist.group.WORLD, device, shape)


@lru_cache
def _mesh_of(world: Any, device: str, shape: tuple[int, ...]) -> DeviceMesh:
    # ``world`` is in the key: a program that trains again has other process groups.
    return init_device_mesh(device, shape, mesh_dim_names=AXES)
