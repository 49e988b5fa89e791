"""A method is its recipe: typed, strict, printable, runnable from what it prints.

A recipe is built by a Python function, changed by ``key=value`` overrides, and written resolved into
every run as ``recipe.yaml``. Unknown keys are refused everywhere, with the nearest valid name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from oculi.errors import RecipeError
from oculi.recipe_overrides import assign


class Strict(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversions, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _no_switch(value: Any) -> Any:
    """pydantic would read ``steps: true`` as one step."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no value for it")
    return value


Int = Annotated[int, BeforeValidator(_no_switch)]
Float = Annotated[float, BeforeValidator(_no_switch)]
Count = Annotated[Int, Field(ge=1)]
Rate = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Decay = Annotated[Float, Field(ge=0, lt=1)]
Weight = Annotated[Float, Field(gt=0)]


class PatchEmbedSpec(Strict):
    """The patch embedding (VoRA, section 3.1)."""

    kind: Literal["patch_embed"] = "patch_embed"
    patch_size: Count = 14
    width: Count | None = Field(None, description="None: the width of init_from")
    grid: tuple[Count, Count] | None = Field(
        None, description="position table; None: that of init_from"
    )
    init_from: str | None = Field(
        None, description="a ViT whose patch embedding and positions start it"
    )

    @model_validator(mode="after")
    def _has_a_size(self) -> PatchEmbedSpec:
        if self.init_from is None and (self.width is None or self.grid is None):
            raise ValueError("set width and grid, or init_from")
        return self


class TowerSpec(Strict):
    """A pre-trained vision tower with a two-layer MLP behind it (LLaVA-1.5, section 3.3)."""

    kind: Literal["tower"] = "tower"
    patch_size: Count = Field(14, description="side of a patch in pixels, one token each")
    init_from: str = Field(description="the ViT: AIMv2, CLIP or SigLIP 2")
    layer: Int = Field(
        -2,
        description="which state is read: 0 the embedding, i block i - 1's output, or from the end",
    )


VisionSpec = Annotated[PatchEmbedSpec | TowerSpec, Field(discriminator="kind")]


class ImageSpec(Strict):
    """How pictures are cut; see ``OculiImageProcessor``."""

    mode: Literal["native", "square"] = "native"
    size: Count = 448
    min_patches: Count = 4
    max_patches: Count = 1024

    @model_validator(mode="after")
    def _limits_in_order(self) -> ImageSpec:
        if self.min_patches > self.max_patches:
            raise ValueError(
                f"min_patches {self.min_patches} is more than max_patches {self.max_patches}"
            )
        return self


class LoraSpec(Strict):
    """Vision LoRA: rank and the first blocks that get it; no alpha (VoRA, section 3.1)."""

    rank: Count
    blocks: Count
    targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    routed: bool = Field(
        False,
        description="on image tokens alone: text stays the LLM's to the bit, nothing is merged",
    )


class ModelSpec(Strict):
    """The model before any training."""

    llm: str = Field(
        description="folder or hub id of an AutoModelForCausalLM; testbed:NAME is shipped"
    )
    vision: VisionSpec
    images: ImageSpec = ImageSpec()
    lora: LoraSpec | None = None
    image_attention: Literal["causal", "bidirectional", "mutual"] = "bidirectional"
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flex_attention"] = "sdpa"

    @model_validator(mode="after")
    def _whole_patches(self) -> ModelSpec:
        check_patches(self.images, self.vision.patch_size, "images")
        return self


def check_patches(images: ImageSpec, patch: int, where: str) -> None:
    """Raises ValueError unless a square is made of whole patches."""
    if images.mode == "square" and images.size % patch:
        raise ValueError(
            f"{where}.size {images.size} is not a multiple of vision.patch_size {patch}"
        )


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


class PlayroomSource(Strict):
    """Samples drawn by the program; see docs/testbed.md. Without a size it is the level's own."""

    kind: Literal["playroom"] = "playroom"
    level: Int = Field(ge=1, le=5)
    samples: Count
    split: Literal["train", "test", "pairs"] = "train"
    size: tuple[Count, Count] | None = None
    weight: Weight = Field(1.0, description="as of a file")
    limit: Count | None = Field(None, description="as of a file")
    tag: str | None = Field(None, description="as of a file; drawn samples have none")


class LanguageSource(Strict):
    """Dialogues without pictures, written by the program: what the testbed's LLM was pre-trained on.

    They stand for the text that is mixed into pre-training (VoRA, section 4.2).
    """

    kind: Literal["language"] = "language"
    samples: Count
    split: Literal["train", "test"] = "train"
    weight: Weight = Field(1.0, description="as of a file")
    limit: Count | None = Field(None, description="as of a file")
    tag: str | None = Field(None, description="as of a file; dialogues have none")


SourceSpec = Annotated[FileSource | PlayroomSource | LanguageSource, Field(discriminator="kind")]


class LmSpec(Strict):
    """Cross-entropy on answer tokens (VoRA, equation 3)."""

    kind: Literal["lm"] = "lm"
    weight: Rate = 1.0


class DistillSpec(Strict):
    """Cosine alignment of vision tokens with a frozen ViT (VoRA, equations 1 and 2)."""

    kind: Literal["distill"] = "distill"
    weight: Rate = 1.0
    teacher: str
    mode: Literal["none", "last", "block"] = "block"
    align: Literal["output", "input", "released"] = "output"


ObjectiveSpec = Annotated[LmSpec | DistillSpec, Field(discriminator="kind")]


class Stage(Strict):
    """One stretch of training.

    ``trainable`` maps globs on canonical parameter names to learning rates (None: ``lr``); what no
    glob matches is frozen, the last match wins, a glob that matches nothing is an error.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    data: tuple[SourceSpec, ...] = Field(min_length=1)
    images: ImageSpec | None = Field(
        None,
        description="how pictures are cut from this stage on; None: as before, first as the model's",
    )
    steps: Count
    batch: Count = Field(description="samples of one optimizer step, over all ranks")
    length: Int = Field(ge=8, description="longest sample in tokens, images included")
    pack_length: Count | None = Field(None, description="tokens of a packed row; None: length")
    micro_rows: Count = Field(8, description="packed rows that go through the model at once")
    single_turns: Share = Field(
        0.0, description="share of draws that learn one turn with the images, without its history"
    )
    plain_turns: Share = Field(
        0.0, description="share of the draws that single_turns cuts out that drop the question too"
    )
    crop: Float = Field(
        0.0,
        ge=0,
        lt=1,
        description="most of a picture's width and height that is cut off at random",
    )
    objectives: tuple[ObjectiveSpec, ...] = (LmSpec(),)
    lr: Float = Field(gt=0)
    trainable: dict[str, Rate | None] = Field(min_length=1)
    warmup_steps: Int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: Rate = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    muon: tuple[str, ...] = Field(
        (), description="globs of trained matrices that Muon updates, AdamW the rest"
    )
    clip: Float | None = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="which activations are computed again instead of kept"
    )
    compile: bool = Field(True, description="torch.compile on an accelerator; never on a CPU")
    workers: Int = Field(1, ge=0)
    worker_timeout: Count = Field(
        300, description="seconds without a step's data after which loader workers count as hung"
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="what becomes of a step whose loss or gradient is NaN or infinite"
    )
    max_skips: Count = Field(3, description="steps in a row that non_finite=skip leaves out")
    log_every: Count = 10
    checkpoint_every: Count = 1000
    merge_lora: bool = Field(False, description="fold LoRA into the LLM when the stage is done")

    @property
    def answers(self) -> bool:
        """Whether it learns to answer, so that its model can be asked."""
        return any(isinstance(objective, LmSpec) for objective in self.objectives)

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        kinds = [objective.kind for objective in self.objectives]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"an objective occurs twice in {', '.join(kinds)}")
        return self


class EvalSpec(Strict):
    """A task to score at the end of every stage that learns to answer."""

    task: str
    limit: Count | None = None
    blind: bool = True


class Recipe(Strict):
    """Everything a run is: model, stages, evaluations."""

    name: str
    summary: str
    seed: Int = Field(0, ge=0, lt=2**63)
    model: ModelSpec
    stages: tuple[Stage, ...] = Field(min_length=1)
    evals: tuple[EvalSpec, ...] = ()
    shard: Count | None = Field(
        None,
        description="of several ranks, how many hold one copy of the model: None: all (FSDP), 1: each "
        "its own (data parallel)",
    )
    keep_last: Count | None = Field(
        None, description="how many of the newest checkpoints are kept; None: all"
    )
    keep_every: Count | None = Field(
        None, description="of older ones, those whose step is a multiple of it are kept as well"
    )

    @model_validator(mode="after")
    def _keeps_in_order(self) -> Recipe:
        if self.keep_every is not None and self.keep_last is None:
            raise ValueError("keep_every needs keep_last: without it every checkpoint is kept")
        return self

    @model_validator(mode="after")
    def _whole_patches(self) -> Recipe:
        for number, stage in enumerate(self.stages):
            if stage.images is not None:
                check_patches(stage.images, self.model.vision.patch_size, f"stages.{number}.images")
        return self

    def images_of(self, number: int) -> ImageSpec:
        """How stage ``number`` cuts pictures: as the last stage up to it that says so, or the model."""
        said = [s.images for s in self.stages[: number + 1] if s.images is not None]
        return said[-1] if said else self.model.images

    @model_validator(mode="after")
    def _merges_once(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name among {', '.join(names)}")
        merges = [stage.name for stage in self.stages if stage.merge_lora]
        if merges and self.model.lora is None:
            raise ValueError(f"stage {merges[0]} merges LoRA, but the model has none")
        if len(merges) > 1:
            raise ValueError(f"LoRA is merged twice, after {' and after '.join(merges)}")
        if merges and self.model.lora is not None and self.model.lora.routed:
            raise ValueError(
                f"stage {merges[0]} merges LoRA, but model.lora is routed: it acts on image tokens "
                "alone, and a merged weight would act on text as well; set merge_lora=false"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved recipe as text that ``load`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)


def validate(data: dict[str, Any], where: str) -> Recipe:
    """A recipe from plain data.

    Raises:
        RecipeError: one line with the first thing that is wrong and the nearest valid name.
    """
    from oculi.recipe_problems import first_problem  # it imports this module

    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {first_problem(error, data)}") from None


def load(path: Path) -> Recipe:
    """A recipe from ``recipe.yaml``; raises RecipeError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds no recipe: expected keys such as name, model and stages")
    return validate(data, str(path))


def override(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with ``dotted.key=value`` changes, values read as YAML.

    Raises:
        RecipeError: no ``=``, an unknown key (with the nearest valid one), or a value out of range.
    """
    data = recipe.model_dump(mode="json")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(
                f'"{assignment}" is no override: write key=value, as stages.0.lr=1e-4'
            )
        assign(data, key, text)
    return validate(data, "override " + " ".join(assignments)) if assignments else recipe
