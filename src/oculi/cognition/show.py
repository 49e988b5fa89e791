"""What a stage asks, to look at: tokens of each kind, and conversations as they are learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oculi.cognition.turns import cognition_of
from oculi.data.order import sample_numbers, stage_seed
from oculi.data.sample import Sample
from oculi.data.source import open_sources
from oculi.recipe import Recipe

if TYPE_CHECKING:
    from oculi.model import OculiProcessor


def lines(recipe: Recipe, number: int, processor: OculiProcessor, count: int) -> list[str]:
    """Costs of each kind of question of a stage, and the first conversations that have one.

    Args:
        number: of the stage. count: conversations.

    Raises:
        DataError, CheckpointError: data or codebook cannot be read.
    """
    stage, seed = recipe.stages[number], stage_seed(recipe.seed, number)
    asking = cognition_of(stage, seed, processor)
    if asking is None:
        return []
    found = [f"stage {number}, {stage.name}"]
    for reader in asking.readers:
        most, answer = asking.cost(reader)
        found.append(
            f"  {reader.label}: at most {most} tokens a question, {answer} of them its answer; in "
            f"{reader.share:.0%} of draws with a picture"
        )
    source = open_sources(stage.data)
    for position in range(stage.steps * stage.batch if count else 0):
        (index,) = sample_numbers(seed, position, 1, len(source))
        sample = source[int(index)]
        if asking.measured(position, sample, [i.size() for i in sample.images]) is sample:
            continue
        found += _told(asking(position, sample, [image.load() for image in sample.images]))
        count -= 1
        if not count:
            break
    return found


def _told(sample: Sample) -> list[str]:
    said = [f"  {sample.id}"]
    for message in sample.messages:
        parts = (part if isinstance(part, str) else "[image]" for part in message.content)
        said.append(f"    {message.role}: {''.join(parts)!r}")
    return said
