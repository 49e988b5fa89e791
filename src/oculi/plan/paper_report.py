"""A recipe's cost as its paper counts it, with the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from oculi.errors import RecipeError
from oculi.plan.build import meta_model
from oculi.plan.paper_peers import count_peer
from oculi.plan.paper_style import RULES, PaperCount, count_forward, count_prefill
from oculi.plan.report import TEXT_TOKENS
from oculi.plan.sample import picture_grid
from oculi.recipe import Recipe, override
from oculi.recipes.papers import PAPER_TABLES, PaperTable, Peer, Published, Variant

Size = tuple[int, int] | None

OURS = "_ours"
COLUMNS = ("model", "image", "text", "GFLOPS", "paper", "params", "paper", "our prefill")
UNITS = ("", "tokens", "tokens", "", "", "2^30", "", "GFLOPS")


@dataclass(frozen=True)
class PaperRow:
    """A model's count.

    Attributes:
        image_tokens, text_tokens: in the LLM.
        count: of a forward pass in the paper's way. published: what the paper says.
        prefill: of our inference over the same picture and text; None of a peer.
    """

    name: str
    image_tokens: int
    text_tokens: int
    count: PaperCount
    published: Published
    prefill: PaperCount | None = None

    def to_json(self) -> dict[str, Any]:
        """``gflops`` and ``params_b`` by the rules, and the paper's under ``published``."""
        return {
            **_json(self.count),
            "image_tokens": self.image_tokens,
            "text_tokens": self.text_tokens,
            "published": vars(self.published),
        }

    def cells(self) -> tuple[str, ...]:
        """Of the table for people, in the order of ``COLUMNS``."""
        return (
            self.name, str(self.image_tokens), str(self.text_tokens),
            f"{self.count.gflops:.1f}", _cell(self.published.gflops, 1),
            f"{self.count.params_b:.2f}", _cell(self.published.params_b, 2),
            _cell(None if self.prefill is None else self.prefill.gflops, 1),
        )  # fmt: skip


@dataclass(frozen=True)
class PaperPlan:
    """The rows of a recipe's table."""

    recipe: Recipe
    table: PaperTable
    rows: Sequence[PaperRow]

    def to_json(self) -> dict[str, Any]:
        """For programs: ``paper_table`` by row; what our inference computes under ``ROW_ours``."""
        rows = {row.name: row.to_json() for row in self.rows}
        rows |= {row.name + OURS: _json(row.prefill) for row in self.rows if row.prefill}
        return {
            "recipe": self.recipe.name,
            "style": "paper",
            "source": self.table.source,
            "paper_table": rows,
            "not_derived": {name: vars(p) for name, p in self.table.not_derived.items()},
            "rules": list(RULES),
            "remarks": list(self.table.remarks),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.recipe.name} as papers count it: {self.table.source}"
        yield ""
        table = [COLUMNS, UNITS, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for name, *others in table:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            yield "  " + "  ".join([name.ljust(widths[0]), *cells])
        yield ""
        yield "counted:"
        yield from (f"- {sentence}" for sentence in (*RULES, *self.table.remarks))
        yield (
            "- our prefill, by the same rules: what generate computes before the first token of an "
            "answer about the picture"
        )
        for name, said in self.table.not_derived.items():
            yield f"- {name}: the paper's {said.gflops} GFLOPS are not derived"


def paper_plan(
    recipe: Recipe, text_tokens: int | None = None, image: tuple[int, int] | None = None
) -> PaperPlan:
    """Count a recipe, its paper's variants of it and the paper's peers by ``RULES``.

    Args:
        recipe: one in ``PAPER_TABLES``, or any other, which is counted alone.
        text_tokens: of every sample; None: the table's, or ``TEXT_TOKENS``.
        image: width and height of the picture in pixels; None: the table's, or the largest it takes.

    Raises:
        RecipeError: no text or a picture without pixels or of a shape that is not taken, or parts do not
            fit.
        CheckpointError: a configuration is neither shipped with oculi nor in a folder.
    """
    if (text_tokens is not None and text_tokens < 1) or (image is not None and min(image) < 1):
        raise RecipeError("a plan needs at least one text token, and a picture of one pixel")
    table = PAPER_TABLES.get(recipe.name) or PaperTable(
        "no table of a paper is known for this recipe",
        variants={recipe.name: Variant(TEXT_TOKENS)},
    )
    picture = image or table.picture
    rows = [
        _variant_row(recipe, name, variant, text_tokens or variant.text_tokens, table, picture)
        for name, variant in table.variants.items()
    ]
    rows += [
        _peer_row(name, peer, text_tokens or peer.text_tokens, picture)
        for name, peer in table.peers.items()
    ]
    return PaperPlan(recipe, table, rows)


def _variant_row(
    recipe: Recipe, name: str, variant: Variant, text: int, table: PaperTable, size: Size
) -> PaperRow:
    changed = override(recipe, list(variant.changes))
    images = changed.images_of(len(changed.stages) - 1)  # as the exported model cuts pictures
    patch = changed.model.vision.patch_size
    grid = picture_grid(patch, images, size)
    counted = picture_grid(patch, images, None) if table.padded else grid
    model = meta_model(changed.model)
    return PaperRow(
        name=name,
        image_tokens=int(model.tokens_per_image(torch.tensor([counted]))),
        text_tokens=text,
        count=count_forward(model, counted, text),
        published=variant.published,
        prefill=count_prefill(model, grid, text),
    )


def _peer_row(name: str, peer: Peer, text: int, size: Size) -> PaperRow:
    if size is None:
        raise ValueError(f"a table with peers needs a picture: {name}")
    found = count_peer(peer.checkpoint, size, text)
    return PaperRow(name, found.image_tokens, text, found.count, peer.published)


def _json(count: PaperCount) -> dict[str, float]:
    return {"gflops": count.gflops, "params_b": count.params_b}


def _cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
