"""The modules of each stage, of the classes that training builds, on the meta device: shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from oculi.errors import RecipeError
from oculi.hub import readable
from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.model.lora import has_lora, merge_lora
from oculi.objectives import Distill, Objective, Reconstruct, build_objectives
from oculi.objectives.latents import DENOISER, VAE, Autoencoder, diffusers_class
from oculi.objectives.teacher import Teacher
from oculi.plan.configs import diffusers_config, llm_config, tower_config
from oculi.recipe import (
    DistillSpec,
    ModelSpec,
    ObjectiveSpec,
    PerceiverSpec,
    Recipe,
    ReconstructSpec,
    Stage,
    TowerSpec,
    VisionSpec,
)
from oculi.training.build import (
    DTYPES,
    add_lora,
    add_routed_lora,
    cast,
    compress_config,
    fuse_config,
)
from oculi.training.module import TrainModule, canonical_parameters, freeze, learning_rates
from oculi.training.optim import muon_matrices
from oculi.training.precision import compute_in
from oculi.training.start import check_start
from oculi.training.vision import check_perceiver, own_settings

DEFAULT_GRID = (32, 32)  # of a position table that no ViT starts, as training/vision.py has it


@dataclass(frozen=True)
class MetaStage:
    """One stage as it stands before its first step.

    Attributes:
        trained: the parameters that the stage trains, by canonical name; float32, as in training.
        muon: names of those that Muon updates; AdamW has the rest.
    """

    stage: Stage
    module: TrainModule
    trained: Mapping[str, nn.Parameter]
    muon: frozenset[str]

    @property
    def teachers(self) -> dict[str, nn.Module]:
        """What objectives hold outside of the module and no stage trains, by objective."""
        return {t.name: t.frozen for t in self.module.terms() if t.frozen is not None}


def meta_stages(recipe: Recipe) -> Iterator[MetaStage]:
    """The stages of a recipe, one after the other: use each before the next is asked for.

    Raises:
        CheckpointError: a configuration is not there.
        RecipeError: parts do not fit, or a glob matches nothing.
    """
    spec = recipe.model
    model = meta_model(spec)
    if spec.lora is not None:
        with torch.device("meta"):
            add_lora(model, spec, recipe.seed)
    for number, stage in enumerate(recipe.stages):
        module = TrainModule(model, meta_objectives(stage.objectives, model), stage.checkpointing)
        parameters = canonical_parameters(module)
        where = f"stages.{number}"
        rates = learning_rates(list(parameters), stage.trainable, stage.lr, f"{where}.trainable")
        muon = muon_matrices(parameters, list(rates), stage, f"{where}.muon")
        trained = freeze(module, rates)
        compute_in(stage, model)
        module.place(torch.device("meta"), DTYPES[stage.precision], compiled=False)
        yield MetaStage(stage, module.train(), trained, frozenset(muon))
        if stage.merge_lora:
            merge_lora(model.llm)
        if not has_lora(model):  # exported, and read again by the next stage
            cast(model, DTYPES[spec.dtype])


def meta_model(spec: ModelSpec) -> OculiForConditionalGeneration:
    """The recipe's model without mergeable LoRA, in the recipe's dtype, on the meta device.

    Raises:
        CheckpointError: a configuration is not there.
        RecipeError: the vision part does not fit what starts it, or the LLM has blocks that cannot see
            or no place for routed LoRA.
    """
    config = _config(spec)
    with torch.device("meta"):
        try:
            model = OculiForConditionalGeneration(config)
        except ValueError as error:
            raise RecipeError(f"model.llm: {error}") from None
        add_routed_lora(model, spec, seed=0)
    model.llm.set_attn_implementation("sdpa")  # as many products as flex attention's
    cast(model, DTYPES[spec.dtype])
    return model


def _config(spec: ModelSpec) -> OculiConfig:
    if spec.start is not None:
        folder = check_start(spec)
        with readable(str(folder)):
            started: OculiConfig = OculiConfig.from_pretrained(folder)
        return started
    return OculiConfig(
        llm_config(spec.llm),
        _vision_config(spec.vision),
        image_attention=spec.image_attention,
        compress_config=compress_config(spec),
        fuse_config=fuse_config(spec),
    )


def meta_objectives(
    specs: Sequence[ObjectiveSpec], model: OculiForConditionalGeneration
) -> list[Objective]:
    """``build_objectives`` with teachers that have no weights.

    Raises:
        CheckpointError: a teacher's configuration is not there.
        RecipeError: a teacher has more blocks than the LLM.
    """
    built: list[Objective] = []
    for spec in specs:
        with torch.device("meta"):
            if isinstance(spec, DistillSpec) and spec.mode != "none":
                teacher = Teacher(_tower(spec.teacher))
                built.append(Distill(spec, teacher, model.width, len(model.blocks)))
            elif isinstance(spec, ReconstructSpec):
                autoencoder = Autoencoder(_part(spec.vae, VAE))
                built.append(
                    Reconstruct(spec, _part(spec.denoiser, DENOISER), autoencoder, model.width)
                )
            else:
                built += build_objectives([spec], model)
    return built


def _tower(name: str) -> nn.Module:
    config = tower_config(name)
    with torch.device("meta"):
        return AutoModel.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def _part(name: str, part: str) -> Any:
    cls, config = diffusers_class(part), diffusers_config(name, part)
    return cls.from_config(config)


def _vision_config(spec: VisionSpec) -> dict[str, Any]:
    """``vision_config`` of the model, as ``training/vision.py`` makes it from the weights."""
    config = {"kind": spec.kind, "patch_size": spec.patch_size}
    if isinstance(spec, TowerSpec | PerceiverSpec):
        tower = tower_config(spec.init_from)
        states = tower.num_hidden_layers + 1
        if not -states <= spec.layer < states:
            raise RecipeError(
                f"model.vision.layer: {spec.init_from} has states {-states} to {states - 1}, none "
                f"at {spec.layer}"
            )
        if isinstance(spec, PerceiverSpec):
            check_perceiver(spec, tower.to_dict())
        return config | {"tower": tower.to_dict(), "layer": spec.layer} | own_settings(spec)
    if spec.init_from is None:
        return config | {"width": spec.width, "grid": spec.grid}
    teacher = Teacher(_tower(spec.init_from))
    grid = _table(teacher) or spec.grid or DEFAULT_GRID
    patch = spec.patch_size if spec.patch_size % teacher.patch_size == 0 else teacher.patch_size
    made = {"patch_size": patch, "width": teacher.width, "grid": grid}
    wanted = {"patch_size": spec.patch_size, "width": spec.width, "grid": spec.grid}
    for key, value in wanted.items():
        if value is not None and value != made[key]:
            raise RecipeError(
                f"model.vision.{key}: {value} here but {made[key]} in {spec.init_from}: take its "
                "patch_size or a multiple, its width and grid, or no init_from"
            )
    return config | made


def _table(teacher: Teacher) -> tuple[int, int] | None:
    """Rows and columns of a ViT's own position table, or None if it has none."""
    if teacher.grid is not None:
        return teacher.grid
    patches = getattr(teacher.model.config, "num_patches", None)  # SigLIP 2 NaFlex
    side = round((patches or 0) ** 0.5)
    return (side, side) if patches else None
