"""Peer (b): what one writes with PEFT and transformers' Trainer, as their manuals show it.

PEFT's model around the LLM, the mask of transformers (``block_sequence_ids``), ``labels`` for the LLM's
own loss, ``output_hidden_states`` for the distillation, Trainer's step and its fused AdamW. No mistake
is put in: what it costs beyond ours is what these defaults cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from oculi.bench.official import ConvEmbedding
from oculi.bench.shapes import Shapes
from oculi.errors import OculiError
from oculi.recipe import LoraSpec


class PeftVora(nn.Module):
    """The model and its distillation.

    Args:
        shapes: sizes; pictures all have ``shapes.grid``.
        llm: any causal LLM of transformers; PEFT wraps it.
    """

    def __init__(self, shapes: Shapes, llm: Any) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        self.shapes = shapes
        config = LoraConfig(
            r=shapes.rank,
            lora_alpha=shapes.rank,
            target_modules=list(LoraSpec(rank=1, blocks=1).targets),
            layers_to_transform=list(range(shapes.lora_blocks)),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # PEFT reads a name that is being replaced
            self.llm: Any = get_peft_model(llm, config)
        self.vision = ConvEmbedding(shapes).to(llm.device)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.RMSNorm(shapes.width, eps=1e-5),
                nn.Linear(shapes.width, shapes.teacher_width, bias=False),
            )
            for _ in range(shapes.teacher_blocks)
        ).to(llm.device)

    def load(self, ours: Mapping[str, Tensor]) -> None:
        """Take over what we train, by our canonical names."""
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in ours.items():
                if name.startswith("llm."):
                    path = name.removeprefix("llm.")
                    target = own[f"llm.base_model.model.{path}.default.weight"]
                else:
                    target = own[name.removeprefix("objectives.distill.")]
                target.copy_(value.view_as(target))

    def forward(
        self, images: Tensor, text: Tensor, vision: Tensor, labels: Tensor, states: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Loss of a batch, from entries of ``official_inputs`` and the teacher's states."""
        words = self.llm.get_input_embeddings()(text)
        seen = self.vision(images).to(words.dtype)
        before = self.shapes.text_before
        embeds = torch.cat([words[:, :before], seen, words[:, before:]], 1)
        mask = create_causal_mask(
            config=self.llm.config,
            inputs_embeds=embeds,
            attention_mask=None,
            past_key_values=None,
            block_sequence_ids=vision - 1,  # one picture a row: 0 inside of it, -1 for text
        )
        output = self.llm(
            inputs_embeds=embeds, attention_mask=mask, labels=labels, output_hidden_states=True
        )
        distill = embeds.new_zeros(())
        for block, head in enumerate(self.heads):
            hidden = output.hidden_states[block + 1][vision == 1]
            similarity = F.cosine_similarity(states[block + 1], head(hidden), dim=1)
            distill = distill + (1 - similarity).mean()
        return {"loss": output.loss + distill / len(self.heads)}


def trainer_step(
    model: PeftVora, inputs: dict[str, Any], folder: str, lr: float, bf16: bool = False
) -> Callable[[], Tensor]:
    """One optimizer step of a Trainer, by the parts that its loop calls.

    Args:
        model: already on its device.
        inputs: keyword arguments of its forward.
        folder: where Trainer may write.
        lr: learning rate.
        bf16: under autocast.

    Raises:
        OculiError: accelerate, which Trainer needs, is not installed.
    """
    from transformers import Trainer, TrainingArguments

    try:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=model.llm.device.type == "cpu",
            learning_rate=lr,
            optim="adamw_torch_fused",
            bf16=bf16,
            report_to=[],
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
        )
    except ImportError as error:
        raise OculiError(
            f"transformers' Trainer cannot run: {' '.join(str(error).split())} "
            "(pip install accelerate)"
        ) from None
    trainer = Trainer(model=model, args=arguments, train_dataset=[{}])
    trainer.create_optimizer_and_scheduler(num_training_steps=1_000_000)
    trainer.current_gradient_accumulation_steps = 1

    def step() -> Tensor:
        loss = trainer.training_step(model, dict(inputs))
        trainer.accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()
        return loss

    return step
