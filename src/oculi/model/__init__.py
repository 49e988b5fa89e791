"""The vision-language model and its processor: what is exported and served.

The files named ``*_oculi.py`` and what they import from this folder are copied into every exported
checkpoint (``auto_map``), so this package is flat and imports nothing from the rest of oculi.
``lora.py`` and ``lora_linear.py`` never travel: an exported model is merged, or its LoRA is routed.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from .configuration_oculi import OculiConfig
from .image_processing_oculi import OculiImageProcessor
from .modeling_oculi import OculiForConditionalGeneration
from .outputs_oculi import OculiOutput
from .processing_oculi import OculiProcessor

__all__ = [
    "OculiConfig",
    "OculiForConditionalGeneration",
    "OculiImageProcessor",
    "OculiOutput",
    "OculiProcessor",
]

# With oculi imported, the Auto classes need no trust_remote_code; without it, auto_map serves them.
AutoConfig.register("oculi", OculiConfig, exist_ok=True)
AutoModelForImageTextToText.register(OculiConfig, OculiForConditionalGeneration, exist_ok=True)
AutoProcessor.register(OculiConfig, OculiProcessor, exist_ok=True)
AutoImageProcessor.register(
    OculiConfig, slow_image_processor_class=OculiImageProcessor, exist_ok=True
)

OculiConfig.register_for_auto_class()
OculiForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
OculiProcessor.register_for_auto_class("AutoProcessor")
OculiImageProcessor.register_for_auto_class("AutoImageProcessor")
