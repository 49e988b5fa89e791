"""The vision-language model: a vision part, any ``AutoModelForCausalLM``, and a mask. No loss inside.

Shapes: B rows, T tokens, K keys, D the LLM's width, P patches, N images, R label rows, V vocabulary,
S vision tokens of the whole batch.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.utils import ModelOutput

from .compress_oculi import COMPRESSORS, new_compressor
from .configuration_oculi import OculiConfig
from .generation_oculi import OculiGenerationMixin
from .masks_oculi import build_mask, mask_function, refuse_sliding_window
from .patch_embed_oculi import PatchEmbed
from .perceiver_oculi import Perceiver
from .routed_oculi import Route, add_adapter
from .rows_oculi import mask_of_rows, only_rows, pays
from .spans_oculi import key_spans
from .taps_oculi import VISION, Seen, tapping
from .taps_oculi import Reducer as Reducer
from .tower_oculi import VisionTower

# What ``vision_config["kind"]`` may name: patches and grids in, tokens of the LLM's width out.
VISION_PARTS: dict[str, type[nn.Module]] = {
    "patch_embed": PatchEmbed,
    "tower": VisionTower,
    "perceiver": Perceiver,
}


@dataclass
class OculiOutput(ModelOutput):
    """Result of a forward pass.

    Attributes:
        logits: [B, T, V]; [1, R, V] when ``label_rows`` was given.
        past_key_values: the cache, when it is used.
        taps: what the reducers returned, by block or name.
    """

    logits: Tensor | None = None
    past_key_values: Cache | None = None
    taps: dict[int | str, Any] | None = None


class OculiForConditionalGeneration(PreTrainedModel, OculiGenerationMixin):
    """An LLM that reads patches. ``llm``, ``vision`` and, if any, ``compress`` are its only children."""

    config_class = OculiConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    def __init__(self, config: OculiConfig) -> None:
        super().__init__(config)
        refuse_sliding_window(config.text_config)
        self.llm = AutoModelForCausalLM.from_config(config.text_config)
        self.vision = self._new_vision()
        self.compress = new_compressor(config.compress_config, self.width)
        self.post_init()
        self._build_routed_lora()  # it has values of its own, which post_init would draw anew

    @classmethod
    def assemble(cls, config: OculiConfig, llm: PreTrainedModel) -> "OculiForConditionalGeneration":
        """A model around an LLM that is loaded already, with a newly initialised vision part.

        The LLM is taken as it is, so nothing of its size is initialised or copied.
        """
        with torch.device("meta"):
            model = cls(config)
        model.llm = llm
        model.vision = model._new_vision()
        model.compress = new_compressor(config.compress_config, model.width)
        for part in filter(None, (model.vision, model.compress)):
            part.init_weights()
            part.to(llm.dtype)
        model._build_routed_lora()
        model.generation_config = llm.generation_config
        return model

    def _build_routed_lora(self) -> None:
        self.route = Route()
        for entry in self.config.routed_lora:
            add_adapter(self.llm, self.blocks, self.route, **entry)

    def add_routed_lora(
        self, modality: str, rank: int, blocks: int, targets: Sequence[str]
    ) -> None:
        """LoRA that acts on tokens of one modality alone, as part of the model; see ``routed_oculi.py``.

        Args:
            modality: ``image``, or another one that ``modality_ids`` then tells by the order of adding.
            rank, blocks, targets: on the linears so named in the first ``blocks`` blocks.

        Raises:
            ValueError: the modality has one already, or there is no such block or linear.
        """
        entry = {"modality": modality, "rank": rank, "blocks": blocks, "targets": list(targets)}
        add_adapter(self.llm, self.blocks, self.route, **entry)  # type: ignore[arg-type]
        self.config.routed_lora = [*self.config.routed_lora, entry]

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        function = self.route.checkpointing(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, **kwargs)

    def _new_vision(self) -> Any:
        arguments = dict(self.config.vision_config)
        return VISION_PARTS[arguments.pop("kind")](self.width, **arguments)

    @property
    def width(self) -> int:
        """D, the LLM's width."""
        return int(self.llm.get_input_embeddings().weight.shape[1])

    def _init_weights(self, module: Any) -> None:
        if type(module) in (*VISION_PARTS.values(), *COMPRESSORS.values()):
            module.init_weights()
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.llm.get_decoder()

    @property
    def blocks(self) -> nn.ModuleList:
        """The LLM's transformer blocks, whatever its class calls them."""
        count = self.config.text_config.num_hidden_layers
        found = [
            module
            for module in self.llm.modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
        ]
        if len(found) != 1:
            raise ValueError(
                f"{type(self.llm).__name__} has {len(found)} lists of {count} modules, so its "
                "transformer blocks cannot be told"
            )
        return found[0]

    def tokens_per_image(self, image_grids: Tensor) -> Tensor:
        """Tokens that each image [N, 2] becomes in the LLM: [N], int64."""
        grids: Tensor = self.vision.token_grids(image_grids)
        return grids.prod(-1) if self.compress is None else self.compress.tokens_per_image(grids)

    def get_image_features(self, pixel_values: Tensor, image_grids: Tensor) -> Tensor:
        """Vision tokens [S, D] of all images, in order; see the vision part for the arguments."""
        tokens: Tensor = self._see(pixel_values, image_grids)[0]
        return tokens

    def look(self, pixel_values: Tensor, image_grids: Tensor) -> Seen:
        """What the LLM is given of all images, in order; see the vision part for the arguments."""
        tokens, pooled, _ = self._see(pixel_values, image_grids)
        return Seen(tokens, tuple(self.tokens_per_image(image_grids).tolist()), pooled)

    def _see(self, pixel_values: Tensor, image_grids: Tensor) -> tuple[Any, Any, Any]:
        """Vision tokens [S, D]; what the vision part says of each whole image, [N, D] or None; and the
        token of each patch [P], if a compressor made fewer."""
        made = self.vision(pixel_values, image_grids)
        tokens, pooled = made if isinstance(made, tuple) else (made, None)
        if self.compress is None:
            return tokens, pooled, None
        tokens, owners = self.compress(tokens, self.vision.token_grids(image_grids))
        return tokens, pooled, owners

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grids: Tensor | None = None,
        image_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        modality_ids: Tensor | None = None,
        label_rows: Tensor | None = None,
        taps: Mapping[Any, Reducer] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> OculiOutput:
        """Run the model.

        Args:
            input_ids: [B, T] int64; image positions hold ``config.image_token_id``.
            attention_mask: [B, K], 0 for padding. Not with ``segment_ids``, which says it too.
            position_ids: [B, T]; restart in every packed sample.
            past_key_values: a transformers cache.
            inputs_embeds: [B, T, D] instead of ``input_ids``; then no images.
            pixel_values, image_grids: patches [P, C] uint8 and grids [N, 2] of all images, in the
                order of their positions, row by row.
            image_ids: [B, T], image of a token or -1; a validated batch passes it, otherwise it is
                derived from ``input_ids`` and checked.
            segment_ids: [B, T], sample of a token in a packed row, -1 for padding.
            prompt_mask: [B, T] bool, for the mask policy ``mutual``.
            modality_ids: [B, T] int64, whose routed LoRA a token goes through: 0 for none, i for the
                i-th of ``config.routed_lora``. None: that of ``image`` for images, none for the rest.
            label_rows: [R] int64 into B * T: the only positions that go through the LM head and, if
                that is less work and no tap reads the others, through the last block.
            taps: for block i, a function of its output on vision tokens [S, D]; what it returns is
                in ``Output.taps[i]`` and nothing else is kept: the backward pass calls it again.
                -1 is the input of block 0. Of a model that compresses, each patch's state [P, D]:
                that of the token it went into. ``"vision"`` is given a ``Seen``.

        Raises:
            ValueError: image positions and vision tokens differ in number, or shapes do.
        """
        vision_tokens, pooled, owners = None, None, None
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward needs input_ids or inputs_embeds")
            if image_ids is None:
                image_ids = self._image_ids(
                    input_ids, image_grids if pixel_values is not None else None
                )
            inputs_embeds, (vision_tokens, pooled, owners) = self._embed(
                input_ids, image_ids, pixel_values, image_grids
            )
        elif pixel_values is not None:
            raise ValueError("images need input_ids: pass inputs_embeds or pixel_values, not both")
        tapped: dict[int | str, Any] = {}
        if taps and VISION in taps:
            assert image_grids is not None and vision_tokens is not None
            counts = self.tokens_per_image(image_grids).tolist()
            tapped[VISION] = taps[VISION](Seen(vision_tokens, tuple(counts), pooled))
            taps = {block: reduce for block, reduce in taps.items() if block != VISION}
        # Looked for only where they are needed: decoding calls this for every token.
        blocks: Any = self.blocks if taps or label_rows is not None else ()
        chosen = self._rows_of_last_block(blocks, label_rows, taps, past_key_values, inputs_embeds)
        mask, mask_of_chosen = self._masks(
            inputs_embeds,
            image_ids if pixel_values is not None else None,
            attention_mask,
            segment_ids,
            prompt_mask,
            past_key_values,
            chosen,
        )
        with ExitStack() as stack:
            rows, seen = None, 0 if vision_tokens is None else len(vision_tokens)
            if image_ids is not None and (taps or (self.route.modalities and seen)):
                # The image positions, in order; how many there are is known, so the host need not wait.
                rows = (image_ids.flatten() < 0).int().argsort(stable=True)[:seen]
            dealt = self.route.deal(inputs_embeds, modality_ids, rows)
            stack.enter_context(self.route.to(dealt))
            if taps:
                assert rows is not None
                read = rows if owners is None else rows[owners]
                stack.enter_context(tapping(taps, blocks, read, inputs_embeds, tapped))
            if label_rows is not None:
                last = blocks[-1] if chosen is not None else None
                head = self.llm.get_output_embeddings()
                around = partial(self.route.among, label_rows, inputs_embeds.shape[:2].numel())
                stack.enter_context(only_rows(head, label_rows, last, mask_of_chosen, around))
            output = self.llm(
                inputs_embeds=inputs_embeds,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        return OculiOutput(
            logits=output.logits, past_key_values=output.past_key_values, taps=tapped or None
        )

    def _image_ids(self, input_ids: Tensor, image_grids: Tensor | None) -> Tensor:
        """Image of each token [B, T], -1 for text: positions are dealt to images in order."""
        is_image = input_ids == self.config.image_token_id
        positions = int(is_image.sum())
        if image_grids is None:
            expected, counts = 0, None
        else:
            counts = self.tokens_per_image(image_grids.to(input_ids.device))
            expected = int(counts.sum())
        if positions != expected:
            raise ValueError(
                f"{positions} image positions in input_ids, but the images give {expected} vision "
                "tokens: build both with the same OculiProcessor"
            )
        if counts is None:
            return torch.full_like(input_ids, -1)
        order = is_image.flatten().cumsum(0) - 1
        image = torch.searchsorted(counts.cumsum(0), order.clamp(min=0), right=True)
        return torch.where(is_image, image.view_as(input_ids), -1)

    def _embed(
        self,
        input_ids: Tensor,
        image_ids: Tensor,
        pixel_values: Tensor | None,
        image_grids: Tensor | None,
    ) -> tuple[Tensor, tuple[Any, Any, Any]]:
        """Embeddings [B, T, D], and what ``_see`` returns."""
        is_image = image_ids >= 0
        # The image token may lie outside of the table; its row is overwritten below in any case.
        embeds_BTD = self.llm.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if pixel_values is None or image_grids is None:
            return embeds_BTD, (None, None, None)
        seen = self._see(pixel_values, image_grids)
        vision_SD = seen[0].to(embeds_BTD.dtype)
        return embeds_BTD.masked_scatter(is_image[..., None], vision_SD), seen

    def _rows_of_last_block(
        self,
        blocks: nn.ModuleList,
        label_rows: Tensor | None,
        taps: Mapping[int, Reducer] | None,
        cache: Cache | None,
        embeds: Tensor,
    ) -> Tensor | None:
        """The rows that the last block computes, None for all; see ``rows_oculi.py``."""
        last = len(blocks) - 1
        if label_rows is None or cache is not None or last in (taps or ()):
            return None
        if "flash" in self.config.text_config._attn_implementation:
            return None  # it takes no mask
        return label_rows if pays(blocks[last], len(label_rows), *embeds.shape) else None

    def _masks(
        self,
        embeds: Tensor,
        image_ids: Tensor | None,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        prompt_mask: Tensor | None,
        cache: Cache | None,
        chosen: Tensor | None,
    ) -> tuple[Any, Any]:
        """The 4-D or block masks, of all tokens and of ``chosen`` ones in the last block.

        This class builds them itself, so that no path can lose the images.
        """
        rows, length = embeds.shape[:2]
        offset = cache.get_seq_length() if cache is not None else 0
        kv_length, kv_offset = cache.get_mask_sizes(length, 0) if cache is not None else (length, 0)
        policy = self.config.image_attention if image_ids is not None else "causal"
        plain = policy == "causal" and segment_ids is None
        if image_ids is None:
            image_ids = torch.full((rows, length), -1, device=embeds.device)
        if segment_ids is not None and attention_mask is not None:
            raise ValueError("pass segment_ids or attention_mask, not both")
        build = partial(
            build_mask, self.config.text_config, dtype=embeds.dtype, device=embeds.device
        )
        function = mask_function(policy, image_ids, segment_ids, prompt_mask, offset)
        spans = None
        if cache is None and attention_mask is None:
            spans = partial(key_spans, policy, image_ids, segment_ids, prompt_mask)
        mask = build(
            function,
            attention_mask,
            shape_BT=(rows, length),
            kv_length=kv_length,
            q_offset=offset,
            kv_offset=kv_offset,
            plain=plain,
            spans=spans,
        )
        if chosen is None:
            return mask, None
        mask_of_chosen = build(
            mask_of_rows(function, chosen, length),
            None if attention_mask is None else attention_mask.reshape(1, -1),
            shape_BT=(1, len(chosen)),
            kv_length=rows * length,
            q_offset=0,
            kv_offset=0,
            plain=False,
            spans=spans and (lambda: spans().of_rows(chosen)),
        )
        return mask, mask_of_chosen
