"""Questions in conversations: where they stand, that they are pure, and what they cost."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import Drawn, mixture, sample
from oculi.cognition.readers import PixelReader
from oculi.cognition.turns import Asked, Cognition, insert
from oculi.data.feeding import make_loader
from oculi.data.loader import Steps
from oculi.data.sample import ImageSlot, Message, Sample
from oculi.data.source import pieces
from oculi.errors import CheckpointError, DataError, RecipeError
from oculi.recipe import override
from oculi.specs.cognition import CodesSpec, CognitionSpec, PixelsSpec

PICTURE = Drawn(8, 8, 1)
TALK = sample("talk", ("#", "\nWhat?"), "red", "And?", "round", images=(PICTURE,))
ALWAYS = PixelsSpec(share=1.0)


@pytest.fixture
def processor(make_processor: Callable[..., Any]) -> Any:
    return make_processor()


@pytest.fixture
def spec(vq_folder: Path) -> CognitionSpec:
    return CognitionSpec(
        pixels=PixelsSpec(share=0.6, grid=(1, 2)), codes=CodesSpec(share=0.5, vq=str(vq_folder))
    )


def asked(before: int, image: int = 0) -> Asked:
    return Asked(PixelReader(ALWAYS), image, (10, 20), before, 3)


def texts(made: Sample) -> list[str]:
    return [
        "".join("#" if isinstance(p, ImageSlot) else p for p in m.content) for m in made.messages
    ]


def test_a_question_stands_before_between_or_behind() -> None:
    question = "RGB from 0 to 255, 2 x 2 cells, quarter of the image at left 20 %, top 10 %?"
    assert texts(insert(TALK, asked(0), "A")) == [
        f"#\n{question}", "A", "What?", "red", "And?", "round",
    ]  # fmt: skip
    assert texts(insert(TALK, asked(1), "A")) == [
        "#\nWhat?", "red", question, "A", "And?", "round",
    ]  # fmt: skip
    assert texts(insert(TALK, asked(2), "A"))[4:] == [question, "A"]
    for before in range(3):
        insert(TALK, asked(before), "A").validate(for_training=True)


def test_a_system_turn_stays_first_and_several_pictures_are_told_apart() -> None:
    system = Message("system", ("Be brief.",))
    made = insert(Sample("s", (system, *TALK.messages), TALK.images), asked(0), "A")
    assert made.messages[0] == system and texts(made)[1].startswith("#\n")
    two = sample("two", ("#", "#", "\nWhat?"), "red", images=(PICTURE, Drawn(4, 4, 2)))
    assert texts(insert(two, asked(0, image=1), "A"))[0].startswith("##\nImage 2 of 2. RGB")


def test_pictures_leave_a_turn_only_from_its_ends(processor: Any) -> None:
    """And a turn that is a picture alone keeps it: it would be empty."""
    cognition = Cognition(CognitionSpec(pixels=ALWAYS), 0, processor, 10**6)
    between = sample("b", ("See ", "#", " there"), "red", images=(PICTURE,))
    alone = Sample(
        "a", (Message("user", (ImageSlot(0),)), Message("assistant", ("red",))), (PICTURE,)
    )
    behind = sample("c", ("What is it?\n", "#"), "red", images=(PICTURE,))
    first = {}
    for made in (between, alone, behind):
        found = [cognition.measured(n, made, [(8, 8)]) for n in range(40)]
        assert all(len(one.messages) == 4 for one in found)
        for one in found:
            one.validate(for_training=True)
        first[made.id] = sum(one.messages[:2] == made.messages for one in found)
    assert first["b"] == first["a"] == 40
    assert 5 < first["c"] < 35


def test_what_is_asked_is_a_function_of_seed_and_position(
    processor: Any, spec: CognitionSpec
) -> None:
    made = [Cognition(spec, seed, processor, 10**6) for seed in (0, 0, 1)]
    first, again, other = (
        [texts(one(n, TALK, [PICTURE.load()])) for n in range(60)] for one in made
    )
    backwards = [texts(made[0](n, TALK, [PICTURE.load()])) for n in reversed(range(60))]
    assert first == again == backwards[::-1] and first != other
    counts = [len(found) for found in first]
    assert {4, 6, 8} == set(counts)  # none, one or both of the two kinds
    assert 0.35 < sum(counts) / 2 / 60 - 2 < 1.8


def test_shares_and_samples_without_pictures(processor: Any) -> None:
    text = sample("text", "Hi", "Hello")
    cognition = Cognition(CognitionSpec(pixels=PixelsSpec(share=0.25)), 3, processor, 10**6)
    assert all(cognition(n, text, []) is text for n in range(30))
    hit = [len(cognition.measured(n, TALK, [(8, 8)]).messages) > 4 for n in range(2000)]
    assert abs(np.mean(hit) - 0.25) < 0.04
    never = Cognition(CognitionSpec(pixels=PixelsSpec(share=0.0)), 3, processor, 10**6)
    assert all(never.measured(n, TALK, [(8, 8)]) is TALK for n in range(50))


def test_all_places_and_wordings_come(processor: Any) -> None:
    cognition = Cognition(CognitionSpec(pixels=ALWAYS), 0, processor, 10**6)
    found = [next(cognition._asked(n, TALK, [(8, 8)])) for n in range(1200)]
    down, across = zip(*(one.place for one in found), strict=True)
    assert (min(down), max(down), min(across), max(across)) == (0, 50, 0, 50)
    assert {one.wording for one in found} == set(range(4))
    assert {one.before for one in found} == {0, 1, 2}


def test_a_sample_is_measured_without_its_picture(processor: Any, spec: CognitionSpec) -> None:
    cognition = Cognition(spec, 5, processor, 10**6)
    for made in mixture():
        pictures = [image.load() for image in made.images]
        sizes = [picture.size for picture in pictures]
        for position in range(12):
            told = cognition.measured(position, made, sizes)
            learnt = cognition(position, made, pictures)
            encoded = processor.encode(pieces(learnt.messages, pictures))
            assert processor.length(pieces(told.messages, sizes)) == len(encoded.input_ids)


def test_what_would_be_too_long_is_left_out(processor: Any, spec: CognitionSpec) -> None:
    bare = processor.length(pieces(TALK.messages, [(8, 8)]))
    cost = max(Cognition(spec, 5, processor, 10**6).cost(r)[0]
               for r in Cognition(spec, 5, processor, 10**6).readers)  # fmt: skip
    roomy, tight = (Cognition(spec, 5, processor, bare + room) for room in (cost, 20))
    lengths = {
        room: [
            processor.length(pieces(one.measured(n, TALK, [(8, 8)]).messages, [(8, 8)]))
            for n in range(60)
        ]
        for room, one in (("roomy", roomy), ("tight", tight))
    }
    assert bare < max(lengths["roomy"]) <= bare + cost
    assert set(lengths["tight"]) == {bare}


def test_answers_are_of_the_picture_that_the_model_sees(processor: Any) -> None:
    """A crop changes the colours; the answer changes with them."""
    asking = Cognition(
        CognitionSpec(pixels=PixelsSpec(share=1.0, grid=(2, 2))), 1, processor, 10**6
    )
    seen: list[tuple[Image.Image, Sample]] = []

    class Watching:
        measured = asking.measured

        def __call__(self, position: int, made: Sample, pictures: Any) -> Sample:
            told = asking(position, made, pictures)
            seen.append((pictures[0], told))
            return told

    settings: dict[str, Any] = {"steps": 1, "batch": 1, "pack_length": 90, "micro_rows": 1}
    Steps([TALK], processor, seed=0, crop=0.6, asking=Watching(), **settings)[0]
    ((picture, told),) = seen
    assert picture.tobytes() != PICTURE.load().tobytes()
    (one,) = asking._asked(0, TALK, [picture.size])
    wanted = one.reader.form.write(one.reader.values(picture, one.place))
    assert wanted in texts(told)
    assert wanted != one.reader.form.write(one.reader.values(PICTURE.load(), one.place))


def test_steps_are_pure_with_any_workers_and_ranks(processor: Any, spec: CognitionSpec) -> None:
    """Packs are formed of the lengths with what was added, whoever measures them."""
    settings: dict[str, Any] = {
        "seed": 2,
        "steps": 3,
        "batch": 6,
        "pack_length": 200,
        "micro_rows": 1,
    }

    def make(**more: Any) -> Steps:
        asking = Cognition(spec, 2, processor, 10**6)
        return Steps(mixture(), processor, asking=asking, **settings, **more)

    def flat(batches: Any) -> list[tuple[Any, ...]]:
        return [(b.sample_ids, b.tokens_BT.tolist(), b.targets_R.tolist()) for b in batches]

    alone = make()
    wanted = [flat(alone[n]) for n in range(3)]
    plain = Steps(mixture(), processor, **settings)
    assert sum(b.tokens for n in range(3) for b in alone[n]) > sum(
        b.tokens for n in range(3) for b in plain[n]
    )
    found = list(make_loader(pickle.loads(pickle.dumps(make())), 1, workers=1))
    assert [flat(loaded.batches) for loaded in found] == wanted[1:]
    for n in range(3):
        ranks = [flat(make(rank=rank, ranks=2)[n]) for rank in (0, 1)]
        assert sorted(ranks[0] + ranks[1]) == sorted(wanted[n])


def test_mistakes_are_found_before_the_first_step(
    processor: Any, vq_folder: Path, tmp_path: Path
) -> None:
    long = Cognition(CognitionSpec(pixels=PixelsSpec(grid=(9, 9))), 0, processor, 200)
    with pytest.raises(
        RecipeError, match=r"stages.1.cognition.pixels: .* more than stages.1.length"
    ):
        long.check("stages.1")
    codes = CodesSpec(vq=str(vq_folder), cache=str(tmp_path))
    with pytest.raises(DataError, match="holds no codebook indices"):
        Cognition(CognitionSpec(codes=codes), 0, processor, 500).check("stages.0")
    with pytest.raises(CheckpointError, match="no folder"):
        Cognition(CognitionSpec(codes=CodesSpec(vq="./nowhere")), 0, processor, 500)
    Cognition(CognitionSpec(codes=CodesSpec(vq=str(vq_folder))), 0, processor, 500).check(
        "stages.0"
    )


def test_settings_of_a_stage() -> None:
    from oculi.recipes import find_recipe

    recipe = find_recipe("vora_tiny")
    with pytest.raises(RecipeError, match="asks nothing"):
        override(recipe, ["stages.1.cognition={}"])
    with pytest.raises(RecipeError, match="lm learns"):
        override(
            recipe,
            [
                "stages.0.cognition={pixels: {}}",
                "stages.0.objectives=[{kind: distill, teacher: here}]",
            ],
        )
    with pytest.raises(RecipeError, match=r'unknown key "stages.1.cognition.pixels.levls".*levels'):
        override(recipe, ["stages.1.cognition={pixels: {levls: 3}}"])
    made = override(recipe, ["stages.1.cognition={pixels: {levels: 10}}"]).stages[1].cognition
    assert made == CognitionSpec(pixels=PixelsSpec(levels=10))
