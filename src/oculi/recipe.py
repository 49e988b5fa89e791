"""A method is its recipe: typed, strict, printable, runnable from what it prints.

A recipe is built by a Python function, changed by ``key=value`` overrides, and written resolved into
every run as ``recipe.yaml``. Unknown keys are refused everywhere, with the nearest valid name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from oculi.errors import RecipeError
from oculi.recipe_overrides import assign
from oculi.recipe_problems import first_problem
from oculi.specs.base import Count as Count
from oculi.specs.base import Decay, Float, Int, Rate, Share, Strict
from oculi.specs.cognition import CognitionSpec
from oculi.specs.data import FileSource, LanguageSource, PlayroomSource, SourceSpec
from oculi.specs.model import (
    CompressSpec,
    ConvSpec,
    FusionSpec,
    ImageSpec,
    LoraSpec,
    MaxPoolSpec,
    MergeSpec,
    MlpSpec,
    PatchEmbedSpec,
    PerceiverSpec,
    TowerSpec,
    VisionSpec,
    check_patches,
    check_places,
)
from oculi.specs.objectives import DistillSpec, LmSpec, ObjectiveSpec, ReconstructSpec

__all__ = [
    "CompressSpec", "ConvSpec", "DistillSpec", "EvalSpec", "FileSource", "FusionSpec", "ImageSpec",
    "LanguageSource", "LmSpec", "LoraSpec", "MaxPoolSpec", "MergeSpec", "MlpSpec", "ModelSpec",
    "ObjectiveSpec", "PatchEmbedSpec", "PerceiverSpec", "PlayroomSource", "Recipe", "ReconstructSpec",
    "SourceSpec", "Stage", "TowerSpec", "VisionSpec", "check_patches", "load", "override", "validate",
]  # fmt: skip


class ModelSpec(Strict):
    """The model before any training."""

    llm: str = Field(
        description="folder or hub id of an AutoModelForCausalLM; testbed:NAME is shipped"
    )
    start: str | None = Field(
        None,
        description="a model that oculi has exported: training begins with all of it. What it is, llm, "
        "vision, compress, fusion and image_attention say; oculi train --start fills them in",
    )
    vision: VisionSpec = Field(description="what pixels go through before the LLM")
    images: ImageSpec = Field(ImageSpec(), description="how pictures are cut into patches")
    compress: CompressSpec | None = Field(
        None, description="what makes fewer tokens of the vision part's; None: a token a patch"
    )
    fusion: FusionSpec | None = Field(
        None, description="what lets text read the uncompressed tokens; None: nothing"
    )
    init: Literal["scaled", "normal"] = Field(
        "scaled",
        description="of a tower's connector, compressor and cross fusion: what keeps the scale of what "
        "goes through, or a standard normal",
    )
    lora: LoraSpec | None = Field(None, description="in the LLM; None: none")
    image_attention: Literal["causal", "bidirectional", "mutual"] = Field(
        "bidirectional",
        description="what an image's tokens see: those before, all of the image, or the prompt too",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights, but of those that a stage trains: float32"
    )
    attention: Literal["sdpa", "eager", "blocked", "flex_attention"] = Field(
        "sdpa",
        description="the LLM's kernel in training; blocked for CPUs, flex_attention for GPUs",
    )

    @model_validator(mode="after")
    def _start_is_whole(self) -> ModelSpec:
        if self.start is not None and self.init != "scaled":
            raise ValueError(
                f'init "{self.init}" is of new parts, and with start there are none: leave it out'
            )
        return self

    @model_validator(mode="after")
    def _whole_patches(self) -> ModelSpec:
        check_patches(self.images, self.vision.patch_size, "images")
        check_places(self.compress, self.images, self.vision.patch_size, "images")
        return self


class Stage(Strict):
    """One stretch of training.

    ``trainable`` maps globs on canonical parameter names to learning rates (None: ``lr``); what no
    glob matches is frozen, the last match wins, a glob that matches nothing is an error.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="of its folder; small letters, digits and -"
    )
    data: tuple[SourceSpec, ...] = Field(min_length=1, description="drawn from all, shuffled")
    images: ImageSpec | None = Field(
        None,
        description="how pictures are cut from this stage on; None: as before, first as the model's",
    )
    steps: Count = Field(description="of the optimizer")
    batch: Count = Field(description="samples of one optimizer step, over all ranks")
    length: Int = Field(ge=8, description="longest sample in tokens, images included")
    pack_length: Count | None = Field(None, description="tokens of a packed row; None: length")
    micro_rows: Count = Field(8, description="packed rows that go through the model at once")
    single_turns: Share = Field(
        0.0, description="share of draws that learn one turn with the images, without its history"
    )
    separate_turns: Share = Field(
        0.0,
        description="share of draws that learn every turn with the images and without the others: side "
        "by side, the images once",
    )
    plain_turns: Share = Field(
        0.0,
        description="share of the turns that single_turns and separate_turns part from the others that "
        "drop the question too",
    )
    crop: Float = Field(
        0.0,
        ge=0,
        lt=1,
        description="most of a picture's width and height that is cut off at random",
    )
    cognition: CognitionSpec | None = Field(
        None, description="turns about colours and codes that are put into conversations"
    )
    objectives: tuple[ObjectiveSpec, ...] = Field(
        (LmSpec(),), description="whose weighted sum is the loss"
    )
    lr: Float = Field(gt=0, description="learning rate after warm-up")
    trainable: dict[str, Rate | None] = Field(
        min_length=1,
        description="globs of parameter names to rates, None: lr. The last that matches counts, what "
        "none matches is frozen; a run's trainable-N-STAGE.txt lists what is trained",
    )
    warmup_steps: Int = Field(0, ge=0, description="in which the rate rises linearly")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the rate after that; cosine falls to 0"
    )
    weight_decay: Rate = Field(0.0, description="decoupled; of matrices alone")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's")
    muon: tuple[str, ...] = Field(
        (), description="globs of trained matrices that Muon updates, AdamW the rest"
    )
    clip: Float | None = Field(1.0, gt=0, description="largest norm of the gradient; None: any")
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="of products: autocast, or all in float32"
    )
    checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="which activations are computed again instead of kept"
    )
    compile: bool = Field(True, description="torch.compile on an accelerator; never on a CPU")
    workers: Int = Field(1, ge=0, description="processes that make batches; 0: none")
    worker_timeout: Count = Field(
        300, description="seconds without a step's data after which loader workers count as hung"
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="what becomes of a step whose loss or gradient is NaN or infinite"
    )
    max_skips: Count = Field(3, description="steps in a row that non_finite=skip leaves out")
    log_every: Count = Field(10, description="steps between records in metrics.jsonl")
    checkpoint_every: Count = Field(1000, description="steps; the last one is saved anyway")
    merge_lora: bool = Field(False, description="fold LoRA into the LLM when the stage is done")

    @property
    def answers(self) -> bool:
        """Whether it learns to answer, so that its model can be asked."""
        return any(isinstance(objective, LmSpec) for objective in self.objectives)

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        kinds = [objective.kind for objective in self.objectives]
        if not any(getattr(objective, "mode", "") != "none" for objective in self.objectives):
            raise ValueError(
                "objectives: there is none to learn from; name lm, distill or reconstruct"
            )
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"an objective occurs twice in {', '.join(kinds)}")
        if self.single_turns + self.separate_turns > 1:
            raise ValueError(
                f"single_turns {self.single_turns} and separate_turns {self.separate_turns} are shares "
                "of the same draws: together they are at most 1"
            )
        if self.plain_turns and not (self.single_turns or self.separate_turns):
            raise ValueError(
                "plain_turns is a share of the turns that single_turns and separate_turns part from the "
                "others: set one of these"
            )
        if self.cognition is not None and not self.answers:
            raise ValueError(
                "cognition asks for answers, which the objective lm learns; it lacks it"
            )
        return self


class EvalSpec(Strict):
    """A task to score at the end of every stage that learns to answer, or of the last one alone."""

    task: str = Field(description="as of oculi eval --task: playroom:1, mme:PATH, a data file")
    limit: Count | None = Field(None, description="the first so many questions; None: all")
    blind: bool = Field(True, description="ask without the pictures as well")
    only_at_end: bool = Field(False, description="not after stages before the last")


class Recipe(Strict):
    """Everything a run is: model, stages, evaluations."""

    name: str = Field(description="of the recipe")
    summary: str = Field(description="a line for oculi recipes and the model card")
    seed: Int = Field(0, ge=0, lt=2**63, description="of new weights, order and noise")
    model: ModelSpec = Field(description="what is trained")
    stages: tuple[Stage, ...] = Field(min_length=1, description="one after the other")
    evals: tuple[EvalSpec, ...] = Field((), description="what is asked after stages")
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
                patch, where = self.model.vision.patch_size, f"stages.{number}.images"
                check_patches(stage.images, patch, where)
                check_places(self.model.compress, stage.images, patch, where)
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

    @model_validator(mode="after")
    def _branches(self) -> Recipe:
        for number, stage in enumerate(self.stages):
            if stage.separate_turns and self.model.image_attention == "mutual":
                raise ValueError(
                    f'stages.{number}.separate_turns: under model.image_attention "mutual" an image '
                    "reads the question, and side by side there are several; use single_turns"
                )
        return self

    @model_validator(mode="after")
    def _distils_per_patch(self) -> Recipe:
        part, compress = self.model.vision, self.model.compress
        if isinstance(part, PerceiverSpec):
            other = f'model.vision.kind "{part.kind}"'
        elif compress is not None and not compress.patchwise:
            other = f'model.compress.kind "{compress.kind}"'
        else:
            return self
        for number, stage in enumerate(self.stages):
            if any(isinstance(o, DistillSpec) and o.mode != "none" for o in stage.objectives):
                raise ValueError(
                    f"stages.{number} distils patch by patch, but of {other} no token stands for a "
                    "patch: use another, or no distillation"
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
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {first_problem(error, data, Recipe)}") from None


def load(path: Path) -> Recipe:
    """A recipe from ``recipe.yaml``; raises RecipeError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
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
