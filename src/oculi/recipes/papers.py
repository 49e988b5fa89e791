"""What papers print about the cost of their models, beside the recipes that should cost as much.

Data alone: ``oculi plan RECIPE --style paper`` counts every variant and peer of a table and puts the
paper's number beside it. A recipe without a table is counted the same way, by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Published:
    """A paper's "GFLOPS", and its parameters in units of its own; None where it gives none."""

    gflops: float | None = None
    params_b: float | None = None


@dataclass(frozen=True)
class Variant:
    """The recipe with changes, as ``key=value``; ``text_tokens`` of the sample beside the picture."""

    text_tokens: int
    published: Published = Published()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """Another model, by the hub id of its configuration."""

    checkpoint: str
    text_tokens: int
    published: Published


@dataclass(frozen=True)
class PaperTable:
    """A paper's numbers and the sample that they are for.

    Attributes:
        source: paper and tables.
        picture: width and height in pixels.
        padded: whether the paper's vision part also runs over padding, up to the most patches.
        variants, peers: by the name of their row.
        not_derived: rows of the paper that are not reproduced.
        remarks: what is the paper's and what is inferred, a sentence each.
    """

    source: str
    picture: tuple[int, int] | None = None
    padded: bool = False
    variants: Mapping[str, Variant] = field(default_factory=dict)
    peers: Mapping[str, Peer] = field(default_factory=dict)
    not_derived: Mapping[str, Published] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def _aurora() -> PaperTable:
    text = 28
    return PaperTable(
        source="AuroraEdge-V-2B, tables 4 and 7",
        picture=(640, 480),
        padded=True,
        variants={
            "compress": Variant(text, Published(248.6, 1.83), ("model.fusion=null",)),
            "cross": Variant(text, Published(250.5, 1.86), ("model.fusion.kind=cross",)),
            "decoder": Variant(text, Published(261.9, 1.88), ("model.fusion.kind=decoder",)),
            "combined": Variant(text, Published(263.8, 1.90), ("model.fusion.kind=combined",)),
        },
        peers={
            "qwen2-vl-2b": Peer("Qwen/Qwen2-VL-2B-Instruct", 27, Published(1645.4, 2.06)),
            "qwen2.5-vl-3b": Peer("Qwen/Qwen2.5-VL-3B-Instruct", 26, Published(2288.7, 3.50)),
        },
        not_derived={"internvl2.5-2b": Published(4091.9, 1.88)},
        remarks=(
            "the question is the paper's, \"please describe the image.\"; the picture's size is missing "
            "from its text, and 640x480 fits",
            "text tokens are all those of the chat template: 26 are those of Qwen2-VL's with its "
            "system prompt; 27 and 28 are fits",
            "the paper's tower also runs over the padding of its 256 patches, so the variants are "
            "counted with a picture that fills them",
        ),
    )


PAPER_TABLES: Final[Mapping[str, PaperTable]] = {"aurora": _aurora()}
