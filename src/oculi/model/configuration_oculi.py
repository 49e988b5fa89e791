"""Configuration of an oculi vision-language model: an LLM, a vision part, and how images attend."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from .masks_oculi import POLICIES


class OculiConfig(PreTrainedConfig):
    """What it takes to rebuild the model without its weights.

    Args:
        text_config: configuration of any ``AutoModelForCausalLM``, as an object or a dictionary
            with its ``model_type``.
        vision_config: keyword arguments of the vision part; ``kind`` names it. ``patch_embed`` takes
            ``patch_size``, ``width``, ``grid`` (rows and columns of the position table),
            ``image_mean``, ``image_std`` and ``eps``; ``tower`` takes ``tower`` (its configuration),
            ``patch_size``, ``layer``, ``image_mean`` and ``image_std``.
        compress_config: keyword arguments of what makes fewer tokens of the vision part's; ``kind``
            names it (``compress_oculi.py``). None: a token a patch.
        fuse_config: ``kind`` and ``layers`` of what lets text read the uncompressed tokens
            (``fusion_oculi.py``); transformers has taken ``fusion_config``. None: nothing does.
        image_token_id: the id that marks an image position. It is never looked up in the embedding
            table, so it may lie outside of it.
        image_attention: ``causal``, ``bidirectional`` or ``mutual``; see ``masks_oculi.py``.
        routed_lora: for each modality that has LoRA of its own, its ``modality``, ``rank``, ``blocks``
            and ``targets``; see ``routed_oculi.py``. A list, because its order tells ``modality_ids``.

    Raises:
        ValueError: the policy is unknown.
    """

    model_type = "oculi"
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        vision_config: dict[str, Any] | None = None,
        image_token_id: int = 0,
        image_attention: str = "bidirectional",
        routed_lora: list[dict[str, Any]] | None = None,
        compress_config: dict[str, Any] | None = None,
        fuse_config: dict[str, Any] | None = None,
        **kwargs: Any,  # transformers passes its own keys (architectures, dtype, ...) this way
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        if image_attention not in POLICIES:
            raise ValueError(
                f'image_attention "{image_attention}" is none of {", ".join(POLICIES)}'
            )
        self.text_config = text_config if text_config is not None else AutoConfig.for_model("qwen2")
        self.vision_config = vision_config or {"kind": "patch_embed", "patch_size": 14}
        self.compress_config = compress_config
        self.fuse_config = fuse_config
        self.image_token_id = image_token_id
        self.image_attention = image_attention
        self.routed_lora = routed_lora or []
        # vLLM's switch for bidirectional image spans in its transformers backend.
        self.is_mm_prefix_lm = image_attention == "bidirectional"
        kwargs.setdefault("tie_word_embeddings", False)  # the LLM ties its own
        kwargs.pop("is_mm_prefix_lm", None)
        super().__init__(**kwargs)
