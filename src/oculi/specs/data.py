"""Where samples come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oculi.specs.base import Count, Int, Strict, Weight


class FileSource(Strict):
    """Data files; see docs/data.md for the formats."""

    kind: Literal["file"] = "file"
    path: str = Field(description="a file, a pattern such as data/*.parquet, or a folder")
    image_root: str | None = Field(
        None, description="where image paths start; None: the file's folder"
    )
    format: str | None = Field(None, description="of the rows; None: recognised by their keys")
    weight: Weight = Field(1.0, description="how often a row is drawn, against one of weight 1")
    limit: Count | None = Field(None, description="only the first so many good rows")
    tag: str | None = Field(
        None, description="only rows whose stage or stages holds it, and rows without any"
    )
    phrasings: str | None = Field(
        None, description="questions for captions: brief, detailed, or a file with one a line"
    )
    phrasings_seed: Int = Field(0, ge=0, lt=2**63, description="decides who gets which of them")


class PlayroomSource(Strict):
    """Samples drawn by the program; see docs/testbed.md. Without a size it is the level's own."""

    kind: Literal["playroom"] = "playroom"
    level: Int = Field(ge=1, le=5, description="of difficulty; docs/testbed.md")
    samples: Count = Field(description="how many there are")
    split: Literal["train", "test", "pairs"] = Field(
        "train", description="pairs: colours and shapes that are never together in train"
    )
    size: tuple[Count, Count] | None = Field(None, description="pixels; None: the level's own")
    kinds: tuple[str, ...] = Field((), description="of question, as existence; empty: all")
    questions: Count = Field(
        1,
        description="most about one picture, one conversation: of other kinds first; for training alone",
    )
    weight: Weight = Field(1.0, description="as of a file")
    limit: Count | None = Field(None, description="as of a file")
    tag: str | None = Field(None, description="as of a file; drawn samples have none")


class LanguageSource(Strict):
    """Dialogues without pictures, written by the program: what the testbed's LLM was pre-trained on.

    They stand for the text that is mixed into pre-training (VoRA, section 4.2).
    """

    kind: Literal["language"] = "language"
    samples: Count = Field(description="how many there are")
    split: Literal["train", "test"] = Field("train", description="which of them")
    weight: Weight = Field(1.0, description="as of a file")
    limit: Count | None = Field(None, description="as of a file")
    tag: str | None = Field(None, description="as of a file; dialogues have none")


SourceSpec = Annotated[FileSource | PlayroomSource | LanguageSource, Field(discriminator="kind")]
