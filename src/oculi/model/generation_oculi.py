"""What ``generate`` must know of images: rows that are repeated, inputs that are cut, masks.

Shapes: B rows, T tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin


class OculiGenerationMixin(GenerationMixin):
    """``generate`` for a model that deals positions to images by ``_image_ids``."""

    _image_ids: Any

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        for key in ("prompt_mask", "modality_ids"):
            if inputs.get(key) is not None and inputs.get("input_ids") is not None:
                # As long as the tokens of this call: a cache has cut those before it, and without one
                # the tokens generated so far, text and no prompt, have come behind it.
                length, total = inputs["input_ids"].shape[1], input_ids.shape[1]
                padded = nn.functional.pad(inputs[key], (0, total - inputs[key].shape[1]))
                inputs[key] = padded[:, total - length :]
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
