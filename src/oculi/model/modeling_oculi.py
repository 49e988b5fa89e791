"""The vision-language model: a vision part, any ``AutoModelForCausalLM``, and a mask. No loss inside.

Shapes: B rows, T tokens, K keys, D the LLM's width, P patches, N images, R label rows, V vocabulary,
S vision tokens of the whole batch.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel
from transformers.utils import can_return_tuple

from .blocked_attention_oculi import BLOCKED as BLOCKED  # importing it registers it
from .call_masks_oculi import masks_of_call, rows_of_last_block
from .compress_oculi import COMPRESSORS, new_compressor
from .configuration_oculi import OculiConfig
from .fusion_oculi import CrossBlock, new_fusion
from .generation_oculi import OculiGenerationMixin
from .masks_oculi import refuse_sliding_window
from .outputs_oculi import OculiOutput, Sight
from .patch_embed_oculi import PatchEmbed
from .perceiver_oculi import Perceiver
from .routed_oculi import Route, add_adapter
from .rows_oculi import only_rows
from .settings_oculi import called, chosen
from .taps_oculi import VISION, Seen, tapping
from .taps_oculi import Reducer as Reducer
from .tower_oculi import VisionTower
from .wide_rows_oculi import memory_of, wide_rows

# What ``vision_config["kind"]`` may name: patches and grids in, tokens of the LLM's width out.
VISION_PARTS: dict[str, type[nn.Module]] = {
    "patch_embed": PatchEmbed,
    "tower": VisionTower,
    "perceiver": Perceiver,
}

_NO_LOSS = (
    "this model computes no loss: leave labels out, and give the logits that it returns and the labels, "
    "shifted by one, to torch.nn.functional.cross_entropy"
)


class OculiForConditionalGeneration(PreTrainedModel, OculiGenerationMixin):
    """An LLM that reads patches: ``llm``, ``vision`` and, if any, ``compress`` and ``fusion``."""

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
        self.fusion = self._new_fusion()
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
        model.fusion = model._new_fusion()
        for part in filter(None, (model.vision, model.compress, model.fusion)):
            part.init_weights()
            part.to(llm.dtype)
        model._build_routed_lora()
        model.generation_config = llm.generation_config
        return model

    def _build_routed_lora(self) -> None:
        self.route = Route()
        for entry in self.config.routed_lora:
            called("routed_lora", add_adapter, self.llm, self.blocks, self.route, **entry)

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
        part, settings = chosen("vision_config", VISION_PARTS, self.config.vision_config)
        return called("vision_config", part, self.width, **settings)

    def _new_fusion(self) -> Any:
        settings = self.config.fuse_config
        return None if settings is None else new_fusion(settings, self.llm, self.blocks[0])

    @property
    def width(self) -> int:
        """D, the LLM's width."""
        return int(self.llm.get_input_embeddings().weight.shape[1])

    def _init_weights(self, module: Any) -> None:
        if type(module) in (*VISION_PARTS.values(), *COMPRESSORS.values(), CrossBlock):
            module.init_weights()
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.llm.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As transformers', and the image token, should the table now have it, is never generated.

        Its id stays what it is: image positions take no row of the table.
        """
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        image, settings = self.config.image_token_id, self.generation_config
        if image < embeddings.weight.shape[0] and image not in (settings.suppress_tokens or []):
            settings.suppress_tokens = [*(settings.suppress_tokens or []), image]
        return embeddings

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
        return self._see(pixel_values, image_grids).tokens

    def look(self, pixel_values: Tensor, image_grids: Tensor) -> Seen:
        """What the LLM is given of all images, in order; see the vision part for the arguments."""
        return self._seen(self._see(pixel_values, image_grids), image_grids)

    def _seen(self, sight: Sight, image_grids: Tensor) -> Seen:
        counts = tuple(self.tokens_per_image(image_grids).tolist())
        return Seen(sight.tokens, counts, sight.pooled)

    def _see(self, pixel_values: Tensor, image_grids: Tensor) -> Sight:
        made = self.vision(pixel_values, image_grids)
        whole, pooled = made if isinstance(made, tuple) else (made, None)
        if self.compress is None:
            return Sight(whole, pooled, None, whole)
        tokens, owners = self.compress(whole, self.vision.token_grids(image_grids))
        return Sight(tokens, pooled, owners, whole)

    @can_return_tuple  # type: ignore[untyped-decorator]
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
        branch_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        modality_ids: Tensor | None = None,
        label_rows: Tensor | None = None,
        labels_per_row: int | None = None,
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
            branch_ids: [B, T], turn of a token in a sample whose turns do not see one another, 0 for
                what all of them see; with ``segment_ids``.
            prompt_mask: [B, T] bool, for the mask policy ``mutual``.
            modality_ids: [B, T] int64, whose routed LoRA a token goes through: 0 for none, i for the
                i-th of ``config.routed_lora``. None: that of ``image`` for images, none for the rest.
            label_rows: [R] int64 into B * T: the only positions that go through the LM head and, if
                that is less work and no tap reads the others, through the last block.
            labels_per_row: the most of them in one row; None: it is counted, and a device waited for.
            taps: for block i, a function of its output on vision tokens [S, D]; what it returns is
                in ``Output.taps[i]`` and nothing else is kept: the backward pass calls it again.
                -1 is the input of block 0. Of a model that compresses, each patch's state [P, D]:
                that of the token it went into. ``"vision"`` is given a ``Seen``.

        Raises:
            ValueError: image positions and vision tokens differ in number or shape; or labels are given.
        """
        if kwargs.pop("labels", None) is not None:
            raise ValueError(_NO_LOSS)
        sight: Sight | None = None
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward needs input_ids or inputs_embeds")
            if image_ids is None:
                image_ids = self._image_ids(
                    input_ids, image_grids if pixel_values is not None else None
                )
            inputs_embeds, sight = self._embed(input_ids, image_ids, pixel_values, image_grids)
        elif pixel_values is not None:
            raise ValueError("images need input_ids: pass inputs_embeds or pixel_values, not both")
        tapped: dict[int | str, Any] = {}
        if taps and VISION in taps:
            assert image_grids is not None and sight is not None
            tapped[VISION] = taps[VISION](self._seen(sight, image_grids))
            taps = {block: reduce for block, reduce in taps.items() if block != VISION}
        if self.fusion is not None:
            if past_key_values is None and self._caches(use_cache):
                past_key_values = DynamicCache(config=self.config.text_config)
            inputs_embeds = self._fuse(
                inputs_embeds, sight, image_ids, image_grids, attention_mask, segment_ids,
                branch_ids, past_key_values,
            )  # fmt: skip
        # Looked for only where they are needed: decoding calls this for every token.
        blocks: Any = self.blocks if taps or label_rows is not None else ()
        chosen = rows_of_last_block(
            self.config.text_config, blocks, label_rows, labels_per_row, taps or (),
            past_key_values, inputs_embeds,
        )  # fmt: skip
        mask, row_mask = masks_of_call(
            self.config, inputs_embeds, image_ids if pixel_values is not None else None,
            attention_mask, segment_ids, branch_ids, prompt_mask, past_key_values, chosen,
        )  # fmt: skip
        with ExitStack() as stack:
            rows, seen = None, 0 if sight is None else len(sight.tokens)
            if image_ids is not None and (taps or (self.route.modalities and seen)):
                # The image positions, in order; how many there are is known, so the host need not wait.
                rows = (image_ids.flatten() < 0).int().argsort(stable=True)[:seen]
            dealt = self.route.deal(inputs_embeds, modality_ids, rows)
            stack.enter_context(self.route.to(dealt))
            if taps:
                assert rows is not None
                read = rows if sight is None or sight.owners is None else rows[sight.owners]
                stack.enter_context(tapping(taps, blocks, read, inputs_embeds, tapped))
            if label_rows is not None:
                stack.enter_context(only_rows(
                    self.llm.get_output_embeddings(), label_rows, blocks[-1], chosen, row_mask,
                    self.route.among,
                ))  # fmt: skip
            output = self.llm(
                inputs_embeds=inputs_embeds, attention_mask=mask, position_ids=position_ids,
                past_key_values=past_key_values, use_cache=use_cache,
                logits_to_keep=logits_to_keep, return_dict=True, **kwargs,
            )  # fmt: skip
        return OculiOutput(
            logits=output.logits, past_key_values=output.past_key_values, taps=tapped or None,
            hidden_states=output.hidden_states, attentions=output.attentions,
        )  # fmt: skip

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
    ) -> tuple[Tensor, Sight | None]:
        """Embeddings [B, T, D], and what ``_see`` says."""
        is_image = image_ids >= 0
        # The image token may lie outside of the table; its row is overwritten below in any case.
        embeds_BTD = self.llm.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if pixel_values is None or image_grids is None:
            return embeds_BTD, None
        sight = self._see(pixel_values, image_grids)
        vision_SD = sight.tokens.to(embeds_BTD.dtype)
        return embeds_BTD.masked_scatter(is_image[..., None], vision_SD), sight

    def _caches(self, use_cache: bool | None) -> bool:
        """Whether the LLM would make a cache by itself."""
        return bool(self.config.text_config.use_cache if use_cache is None else use_cache)

    def _fuse(
        self,
        embeds: Tensor,
        sight: Sight | None,
        image_ids: Tensor | None,
        image_grids: Tensor | None,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        branch_ids: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """The embeddings [B, T, D] with text that has read the uncompressed tokens of ``sight``."""
        if cache is None and sight is None:
            return embeds
        rows, length = embeds.shape[:2]
        whole, grids, counts = embeds.new_zeros(0, embeds.shape[2]), None, []
        if sight is not None and image_grids is not None:
            whole, grids = sight.whole, self.vision.token_grids(image_grids)
            counts = self.tokens_per_image(image_grids).tolist()
        if image_ids is None:
            image_ids = torch.full((rows, length), -1, device=embeds.device)
        valid = torch.ones_like(image_ids, dtype=torch.bool)
        if attention_mask is not None:
            valid = attention_mask[:, -length:].bool()
        memory = memory_of(cache, len(self.blocks))
        wide = wide_rows(image_ids, grids, counts, valid, segment_ids, branch_ids, memory.tokens)
        rotary = getattr(self.get_decoder(), "rotary_emb", None)
        fused: Tensor = self.fusion(
            embeds, whole, wide, memory, rotary, self.config.image_attention
        )
        return fused
