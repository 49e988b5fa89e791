"""Several modalities side by side in one LLM, each with LoRA of its own (VoRA, section 7)."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.model.routed_oculi import RoutedLinear
from routed import TARGETS, fill, same_bits

TEXT, IMAGE, SOUND = range(3)
IDS = torch.tensor(
    [
        [TEXT, IMAGE, IMAGE, TEXT, SOUND, TEXT],
        [TEXT, TEXT, TEXT, TEXT, TEXT, TEXT],
        [SOUND, SOUND, TEXT, IMAGE, TEXT, TEXT],
    ]
)

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def models(make_model: Any) -> tuple[Any, Any]:
    """A plain model, and one with two modalities of different ranks, blocks and targets."""
    plain = make_model()
    both = copy.deepcopy(plain)
    both.add_routed_lora("image", 4, 3, TARGETS)
    both.add_routed_lora("sound", 2, 2, ("v_proj", "up_proj"))
    fill(both)
    return plain, both


@pytest.fixture
def embeds(models: Any) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(*IDS.shape, models[0].width)


def test_text_beside_both_is_the_llms(models: Any, embeds: Tensor) -> None:
    plain, both = models
    found = both(inputs_embeds=embeds, modality_ids=IDS).logits
    wanted = plain.llm(inputs_embeds=embeds).logits
    assert same_bits(found[1], wanted[1])
    assert same_bits(found[0, 0], wanted[0, 0])  # before any image or sound
    assert (found - wanted).abs()[[0, 2]].amax(-1)[:, 1:].min() > 1e-3


def test_each_token_goes_through_its_own(models: Any, embeds: Tensor) -> None:
    both = models[1]
    layer = both.llm.model.layers[0].self_attn.v_proj
    x = embeds.flatten(0, 1)
    with both.route.to(both.route.deal(embeds, IDS, None)):
        found = layer(embeds).flatten(0, 1)
    for row, modality in enumerate(IDS.flatten().tolist()):
        wanted = nn.functional.linear(x[row], layer.weight, layer.bias)
        if modality != TEXT:
            part = layer.routed["image" if modality == IMAGE else "sound"]
            wanted = wanted + part.lora_B.weight @ (part.lora_A.weight @ x[row])
        torch.testing.assert_close(found[row], wanted, rtol=1e-5, atol=1e-5)


def test_adding_one_leaves_the_other_as_it_is(
    make_model: Any, make_inputs: Any, models: Any
) -> None:
    """A model that sees learns to hear: pictures give what they gave, to the bit."""
    both, inputs = models[1], make_inputs([[5, (2, 3), 7, 8], [6, 7, 1]])
    one = make_model()
    one.add_routed_lora("image", 4, 3, TARGETS)
    own = one.state_dict()
    one.load_state_dict({name: value for name, value in both.state_dict().items() if name in own})
    assert same_bits(one(**inputs).logits, both(**inputs).logits)
    before = one(**inputs).logits
    one.add_routed_lora("sound", 2, 2, ("v_proj", "up_proj"))
    fill(one, seed=8)
    one.load_state_dict(both.state_dict())
    assert same_bits(one(**inputs).logits, before)


def test_ids_say_the_same_as_images(models: Any, make_inputs: Any) -> None:
    both, inputs = models[1], make_inputs([[5, (2, 3), 7, 8], [6, 7, 1]])
    ids = (inputs["input_ids"] == both.config.image_token_id).long()
    assert same_bits(both(**inputs, modality_ids=ids).logits, both(**inputs).logits)
    assert not torch.equal(both(**inputs, modality_ids=2 * ids).logits, both(**inputs).logits)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_knows_them_at_every_step(
    models: Any, make_inputs: Any, use_cache: bool
) -> None:
    both, inputs = models[1], make_inputs([[5, 6, 7, 8], [9, 4]])
    ids = torch.tensor([[0, 2, 2, 0], [0, 0, 1, 2]])
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "use_cache": use_cache}
    made = both.generate(**inputs, modality_ids=ids, **settings)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(4):
        logits = both(input_ids=tokens, attention_mask=mask, modality_ids=ids).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
        mask, ids = (nn.functional.pad(t, (0, 1), value=v) for t, v in ((mask, 1), (ids, 0)))
    assert torch.equal(made, tokens)


def test_what_does_not_fit_is_refused(models: Any, embeds: Tensor) -> None:
    both = models[1]
    with pytest.raises(ValueError, match=r"modality_ids is \(3, 5\), the tokens \(3, 6\)"):
        both(inputs_embeds=embeds, modality_ids=IDS[:, 1:])
    for name in ("image", "a name"):
        with pytest.raises(ValueError, match="no name for a modality, or has routed LoRA already"):
            both.add_routed_lora(name, 2, 1, TARGETS)


def test_a_folder_keeps_both_and_their_order(models: Any, embeds: Tensor, tmp_path: Any) -> None:
    both = models[1]
    both.save_pretrained(tmp_path)
    again, report = OculiForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert again.route.modalities == ["image", "sound"]
    found = again(inputs_embeds=embeds, modality_ids=IDS).logits
    assert same_bits(found, both(inputs_embeds=embeds, modality_ids=IDS).logits)


def test_a_configuration_alone_builds_them(models: Any, make_llm_config: Any) -> None:
    """New adapters add nothing, whether the LLM is new or was there before."""
    plain, both = models
    config = OculiConfig.from_dict(both.config.to_dict())
    torch.manual_seed(0)
    new = OculiForConditionalGeneration(config)
    assembled = OculiForConditionalGeneration.assemble(config, copy.deepcopy(plain.llm))
    for model in (new, assembled):
        assert model.route.modalities == ["image", "sound"]
        layers = [m for m in model.modules() if isinstance(m, RoutedLinear)]
        assert len(layers) == 21 and all(layer.route is model.route for layer in layers)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                assert not parameter.is_meta and bool(parameter.any()) == (".lora_A" in name)
