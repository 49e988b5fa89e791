"""The vision-language model: a vision part, any ``AutoModelForCausalLM``, and a mask. No loss inside.

Shapes: B rows, T tokens, K keys, D the LLM's width, P patches, N images, R label rows, V vocabulary,
S vision tokens of the whole batch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_oculi import OculiConfig
from .masks_oculi import build_mask, mask_function, refuse_sliding_window
from .patch_embed_oculi import PatchEmbed
from .recompute_oculi import recomputing
from .rows_oculi import mask_of_rows, only_rows, pays
from .spans_oculi import key_spans
from .tower_oculi import VisionTower

Reducer = Callable[[Tensor], Any]

# What ``vision_config["kind"]`` may name: patches and grids in, tokens of the LLM's width out.
VISION_PARTS: dict[str, type[nn.Module]] = {"patch_embed": PatchEmbed, "tower": VisionTower}


@dataclass
class OculiOutput(ModelOutput):
    """Result of a forward pass.

    Attributes:
        logits: [B, T, V]; [1, R, V] when ``label_rows`` was given.
        past_key_values: the cache, when it is used.
        taps: what the reducers returned, by block.
    """

    logits: Tensor | None = None
    past_key_values: Cache | None = None
    taps: dict[int, Any] | None = None


class OculiForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """An LLM that reads patches. ``llm`` and ``vision`` are its only children."""

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
        self.post_init()

    @classmethod
    def assemble(cls, config: OculiConfig, llm: PreTrainedModel) -> "OculiForConditionalGeneration":
        """A model around an LLM that is loaded already, with a newly initialised vision part.

        The LLM is taken as it is, so nothing of its size is initialised or copied.
        """
        with torch.device("meta"):
            model = cls(config)
        model.llm = llm
        model.vision = model._new_vision()
        model.vision.init_weights()
        model.vision.to(llm.dtype)
        model.generation_config = llm.generation_config
        return model

    def _new_vision(self) -> Any:
        arguments = dict(self.config.vision_config)
        return VISION_PARTS[arguments.pop("kind")](self.width, **arguments)

    @property
    def width(self) -> int:
        """D, the LLM's width."""
        return int(self.llm.get_input_embeddings().weight.shape[1])

    def _init_weights(self, module: Any) -> None:
        if type(module) in VISION_PARTS.values():
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

    def get_image_features(self, pixel_values: Tensor, image_grids: Tensor) -> Tensor:
        """Vision tokens [S, D] of all images, in order; see the vision part for the arguments."""
        return self.vision(pixel_values, image_grids)

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
        label_rows: Tensor | None = None,
        taps: Mapping[int, Reducer] | None = None,
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
            label_rows: [R] int64 into B * T: the only positions that go through the LM head and, if
                that is less work and no tap reads the others, through the last block.
            taps: for block i, a function of its output on vision tokens [S, D]; what it returns is
                in ``Output.taps[i]`` and nothing else is kept: the backward pass calls it again.
                -1 is the input of block 0.

        Raises:
            ValueError: image positions and vision tokens differ in number.
        """
        vision_tokens = 0
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward needs input_ids or inputs_embeds")
            if image_ids is None:
                image_ids = self._image_ids(
                    input_ids, image_grids if pixel_values is not None else None
                )
            inputs_embeds, vision_tokens = self._embed(
                input_ids, image_ids, pixel_values, image_grids
            )
        elif pixel_values is not None:
            raise ValueError("images need input_ids: pass inputs_embeds or pixel_values, not both")
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
        tapped: dict[int, Any] = {}
        with ExitStack() as stack:
            if taps:
                assert image_ids is not None
                # The image positions, in order; how many there are is known, so the host need not wait.
                rows = (image_ids.flatten() < 0).int().argsort(stable=True)[:vision_tokens]
                stack.enter_context(self._tap(taps, blocks, rows, inputs_embeds, tapped))
            if label_rows is not None:
                last = blocks[-1] if chosen is not None else None
                head = self.llm.get_output_embeddings()
                stack.enter_context(only_rows(head, label_rows, last, mask_of_chosen))
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
            counts = self.vision.tokens_per_image(image_grids.to(input_ids.device))
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
    ) -> tuple[Tensor, int]:
        """Embeddings [B, T, D], and how many of them are vision tokens."""
        is_image = image_ids >= 0
        # The image token may lie outside of the table; its row is overwritten below in any case.
        embeds_BTD = self.llm.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if pixel_values is None or image_grids is None:
            return embeds_BTD, 0
        vision_SD = self.get_image_features(pixel_values, image_grids)
        vision_SD = vision_SD.to(embeds_BTD.dtype)
        return embeds_BTD.masked_scatter(is_image[..., None], vision_SD), len(vision_SD)

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

    @contextmanager
    def _tap(
        self,
        taps: Mapping[int, Reducer],
        blocks: nn.ModuleList,
        rows: Tensor,
        embeds: Tensor,
        results: dict[int, Any],
    ) -> Iterator[None]:
        """Hooks that hand a block's output on vision tokens to its reducer and keep only the result.

        The output itself is kept in any case, by the next block; the copy of its vision tokens and what
        the reducer makes of them is computed again, but for narrow products such as a head's.
        """

        def reduce(block: int, hidden_BTD: Tensor) -> Any:
            return taps[block](hidden_BTD.flatten(0, 1).index_select(0, rows))

        if torch.is_grad_enabled():
            reduce = recomputing(reduce, "selective")

        def hook(block: int) -> Callable[..., None]:
            def read(module: nn.Module, args: Any, output: Any) -> None:
                results[block] = reduce(block, output[0] if isinstance(output, tuple) else output)

            return read

        if -1 in taps:
            results[-1] = reduce(-1, embeds)
        handles = [blocks[i].register_forward_hook(hook(i)) for i in taps if i >= 0]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if inputs.get("prompt_mask") is not None and inputs.get("input_ids") is not None:
            # As long as the tokens of this call: a cache has cut those before it, and without one
            # the tokens generated so far, which are not prompt, have come behind it.
            length, total = inputs["input_ids"].shape[1], input_ids.shape[1]
            prompt = inputs["prompt_mask"]
            prompt = nn.functional.pad(prompt, (0, total - prompt.shape[1]))
            inputs["prompt_mask"] = prompt[:, total - length :]
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat rows for beams and samples, and the images of each row with it.

        transformers would repeat every patch instead, as if it were a row.
        """
        patches, grids = (model_kwargs.pop(key, None) for key in ("pixel_values", "image_grids"))
        if patches is not None and input_ids is not None and expand_size > 1:
            images_of_rows = [row[row >= 0].unique() for row in self._image_ids(input_ids, grids)]
            order = [i for images in images_of_rows for i in images.tolist() * expand_size]
            cut = patches.split(grids.prod(-1).tolist())
            patches, grids = torch.cat([cut[i] for i in order]), grids[order]
        expanded_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if patches is not None:
            model_kwargs |= {"pixel_values": patches, "image_grids": grids}
        return expanded_ids, model_kwargs

    def create_masks_for_generate(
        self, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor | None:
        """Leave the mask 2-D: ``forward`` builds it, with the images, for static caches as well."""
        return attention_mask
