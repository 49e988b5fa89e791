"""A merged model beside the LLM that it was: the same operations, in the same order.

What a merge leaves beyond the LLM is the patch embedding in front of it and the mask, which both sides
are given here. Operations say it exactly: a clock would not see one multiplication too many.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from oculi.bench.counters import Watch
from oculi.bench.goals import Goal
from oculi.bench.shapes import Shapes, add_lora, build_llm, build_vlm, make_batch
from oculi.model.lora import merge_lora


@dataclass(frozen=True)
class Merged:
    """Operations of one prefill below the embeddings.

    Attributes:
        base_ops, merged_ops: their numbers.
        same: whether the two lists are the same, in names, shapes and order.
    """

    base_ops: int
    merged_ops: int
    same: bool

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def goals(self) -> list[Goal]:
        """The list is the same."""
        return [Goal("merged inference: other operations than the LLM's", float(not self.same), 0)]


class _Listed(Watch):
    """Keeps operations in order, with the shapes that they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else "" for a in args]
        self.order.append(f"{func} {shapes}")
        return super().__torch_dispatch__(func, types, args, kwargs)


@torch.no_grad()
def merged_beside_base(shapes: Shapes) -> Merged:
    """List the operations of the LLM alone, and of our merged model inside of its LLM."""
    batch = make_batch(shapes)
    base = build_llm(shapes).eval()
    model = build_vlm(shapes).eval()
    add_lora(model, shapes)
    merge_lora(model.llm)
    given: dict[str, Any] = {}
    listed: list[list[str]] = []

    def run(llm: Any, **inputs: Any) -> Any:
        with _Listed() as watch:
            output = forward(**inputs) if llm is model.llm else llm(**inputs)
        listed.append(watch.order)
        return output

    forward = model.llm.forward

    def inside(**inputs: Any) -> Any:
        given.update(inputs)
        return run(model.llm, **inputs)

    model.llm.forward = inside
    model(**{**batch.model_inputs(), "label_rows": None})
    run(base, **given)
    ours, its = listed
    return Merged(base_ops=len(its), merged_ops=len(ours), same=ours == its)
