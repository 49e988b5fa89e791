"""Routed LoRA: text is the base LLM's to the bit, images are not, and nothing is merged."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oculi.bench.counters import Watch
from oculi.model import call_masks_oculi
from oculi.model.lora import canonical_name, has_lora, merge_lora
from oculi.model.routed_oculi import Adapter, Among, RoutedLinear, Rows
from oculi.model.rows_oculi import Chosen
from oculi.training.checkpoint import tensor_hashes
from routed import TARGETS, fill, same_bits, with_routed

PROMPTS = 1000
DTYPES = [torch.float32, torch.bfloat16]
FAMILIES = ["qwen2", "llama", "olmo2", "qwen3"]


def prompts(vocab_size: int, count: int = PROMPTS) -> list[list[int]]:
    """Token ids of different lengths, drawn once."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 13, (count,), generator=draw).tolist()
    return [torch.randint(0, vocab_size, (n,), generator=draw).tolist() for n in lengths]


def of_llm(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What ``model`` gives its LLM for these inputs."""
    given: dict[str, Any] = {}
    handle = model.llm.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return given


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thousand_prompts_alone(make_model: Any, vocab_size: int, dtype: torch.dtype) -> None:
    """Against the LLM by itself: its own forward, its own mask."""
    plain, model = with_routed(make_model, blocks=1, dtype=dtype, num_hidden_layers=1)
    for prompt in prompts(vocab_size):
        ids = torch.tensor([prompt])
        found = model(input_ids=ids, use_cache=False).logits
        assert same_bits(found, plain.llm(input_ids=ids, use_cache=False).logits), prompt


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thousand_prompts_in_padded_batches_with_images(
    make_model: Any, make_inputs: Any, vocab_size: int, dtype: torch.dtype
) -> None:
    """Against the LLM by itself on the same embeddings: it makes the mask from the padding."""
    plain, model = with_routed(make_model, dtype=dtype)
    texts = prompts(vocab_size)
    for start in range(0, PROMPTS, 40):
        rows = texts[start : start + 40]
        inputs = make_inputs([[5, (2, 3), 7], *rows, [(1, 2), 9, (2, 2), 3]], seed=start)
        found = model(**inputs).logits
        embeds, mask = of_llm(plain, inputs)["inputs_embeds"], inputs["attention_mask"]
        wanted = plain.llm(inputs_embeds=embeds, attention_mask=mask).logits
        text = mask.bool()
        text[[0, -1]] = False
        assert same_bits(found[text], wanted[text]), start
        for image in (0, -1):
            assert (found[image] - wanted[image]).abs().max() > 0.1


def packed(vocab_size: int, texts: list[list[int]], seed: int) -> dict[str, Tensor]:
    """Rows in which ten prompts and a sample with an image stand side by side."""
    grid = (2, 3)
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    for image, start in enumerate(range(0, len(texts), 10)):
        samples = texts[start : start + 10]
        samples.insert(image % 10, [4, *[vocab_size] * 6, 8, 9])
        ids, segments, places, images = [], [], [], []
        for number, sample in enumerate(samples):
            ids += sample
            segments += [number] * len(sample)
            places += range(len(sample))
            images += [image if token == vocab_size else -1 for token in sample]
        rows.append((ids, segments, places, images))
    width = max(len(ids) for ids, *_ in rows)

    def column(index: int, padding: int) -> Tensor:
        return torch.tensor([row[index] + [padding] * (width - len(row[0])) for row in rows])

    draw = torch.Generator().manual_seed(seed)
    patches = (len(rows) * 6, 48)
    return {
        "input_ids": column(0, 0),
        "segment_ids": column(1, -1),
        "position_ids": column(2, 0),
        "image_ids": column(3, -1),
        "pixel_values": torch.randint(0, 256, patches, dtype=torch.uint8, generator=draw),
        "image_grids": torch.tensor([grid] * len(rows)),
    }


def text_samples(inputs: dict[str, Tensor]) -> Tensor:
    """Tokens [B, T] of samples that hold no image."""
    text = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, segments in enumerate(inputs["segment_ids"]):
        (seeing,) = segments[inputs["image_ids"][row] >= 0].unique()
        text[row] = (segments >= 0) & (segments != seeing)
    return text


def packs(vocab_size: int) -> Iterator[dict[str, Tensor]]:
    texts = prompts(vocab_size)
    for start in range(0, PROMPTS, 50):
        yield packed(vocab_size, texts[start : start + 50], start)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thousand_prompts_packed_beside_images(
    make_model: Any, vocab_size: int, dtype: torch.dtype
) -> None:
    plain, model = with_routed(make_model, dtype=dtype)
    seen = 0
    for inputs in packs(vocab_size):
        text = text_samples(inputs)
        found, wanted = model(**inputs).logits, plain.llm(**of_llm(plain, inputs)).logits
        assert same_bits(found[text], wanted[text])
        assert not torch.equal(found[~text], wanted[~text])
        seen += int(((inputs["position_ids"] == 0) & text).sum())
    assert seen == PROMPTS


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_label_rows_of_text_too(
    make_model: Any, vocab_size: int, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """As training computes them, with the last block on label rows alone, in any order."""
    monkeypatch.setattr(call_masks_oculi, "pays", lambda *arguments: True)
    plain, model = with_routed(make_model, dtype=dtype)
    for inputs in packs(vocab_size):
        places = (inputs["segment_ids"].flatten() >= 0).nonzero()[:, 0]
        rows = places[torch.randperm(len(places))[: len(places) // 3]]
        batch = {**inputs, "label_rows": rows, "use_cache": False}
        found, wanted = (each(**batch).logits[0] for each in (model, plain))
        text = text_samples(inputs).flatten()[rows]
        assert same_bits(found[text], wanted[text])
        assert not torch.equal(found[~text], wanted[~text])


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_the_family(
    make_model: Any, make_inputs: Any, family: str, attention: str
) -> None:
    settings = {"head_dim": 8} if family == "qwen3" else {}
    plain, model = with_routed(make_model, family, blocks=2, **settings)
    for each in (plain, model):
        each.llm.set_attn_implementation(attention)
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, 7, 1], [9, (1, 2), 3, 4, (2, 2)]])
    found, wanted = model(**inputs).logits, plain(**inputs).logits
    assert same_bits(found[1], wanted[1])
    assert (found[[0, 2]] - wanted[[0, 2]]).abs().amax((1, 2)).min() > 0.1


@pytest.mark.usefixtures("no_grad")
def test_init_changes_no_bit(make_model: Any, make_inputs: Any) -> None:
    model = make_model()
    inputs = make_inputs([[5, (2, 3), 7, 8]])
    before = model(**inputs).logits
    model.add_routed_lora("image", 4, 3, TARGETS)
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("kind", [Rows, Among])
def test_nothing_is_added_to_text(kind: Any) -> None:
    """Not even a zero: -0.0 + 0.0 is 0.0. Nor does what text would have added matter."""
    adapter = Adapter(nn.Linear(4, 6), 2)
    adapter.lora_B.weight.fill_(1.0)
    x, y = torch.ones(1, 5, 4), torch.full((1, 5, 6), -0.0)
    x[0, 3] = torch.inf
    chosen: Any = Rows(torch.tensor([4, 2]))
    if kind is Among:
        chosen = chosen.among(Chosen.of(torch.arange(5), batch=1, length=5, most=5))
    found = chosen.add(y, x, adapter)
    assert same_bits(found[0, [0, 1, 3]], y[0, [0, 1, 3]])
    assert found[0, [2, 4]].abs().min() > 0 and found.isfinite().all()


class Reference(nn.Module):
    """The definition: the product of every token, times one for images and zero for text."""

    def __init__(self, routed: RoutedLinear, is_image: list[Tensor]) -> None:
        super().__init__()
        self.routed, self.is_image = routed, is_image

    def forward(self, x: Tensor) -> Tensor:
        layer, adapter = self.routed, self.routed.routed["image"]
        y = nn.functional.linear(x, layer.weight, layer.bias)
        mask = self.is_image[0].to(x.dtype).view(*x.shape[:-1], 1)
        added: Tensor = mask * (x @ adapter.lora_A.weight.T @ adapter.lora_B.weight.T)  # type: ignore[union-attr, operator]
        return y + added


def referred(model: Any, is_image: list[Tensor]) -> Any:
    """A copy of the model in which every routed layer is the definition, with the same names."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, RoutedLinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Reference(layer, is_image))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("base_trained", [False, True])
def test_values_and_gradients_are_the_definitions(
    make_model: Any, make_inputs: Any, family: str, base_trained: bool
) -> None:
    settings = {"head_dim": 8} if family == "qwen3" else {}
    _, model = with_routed(make_model, family, blocks=2, **settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(base_trained or ".lora_" in name or name.startswith("vision."))
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, 7, 1], [9, (1, 2), 3, 4, (2, 2)]])
    image = inputs["input_ids"] == model.config.image_token_id
    reference = referred(model, [image])
    found, wanted = model(**inputs).logits, reference(**inputs).logits
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    found.logsumexp(-1).sum().backward()
    wanted.logsumexp(-1).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any(".lora_A" in name for name in gradients)
    definitions = {
        name.replace(".routed", "", 1): p.grad
        for name, p in reference.named_parameters()
        if p.grad is not None
    }
    assert definitions.keys() == gradients.keys()
    for name, gradient in definitions.items():
        bound = 1e-5 * max(1.0, float(gradient.abs().max()))
        assert (gradients[name] - gradient).abs().max() <= bound, name


def test_under_autocast_it_is_as_exact(make_model: Any, make_inputs: Any) -> None:
    """Text as the base under autocast, to the bit; gradients reach float32 parameters in float32."""
    plain, model = with_routed(make_model)
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, 7, 1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = model(**inputs).logits, plain(**inputs).logits
    assert found.dtype == torch.bfloat16 and same_bits(found[1], wanted[1])
    found.float().logsumexp(-1).sum().backward()
    low = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(**inputs).logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert low[name].dtype == torch.float32
            assert (low[name] - parameter.grad).norm() <= 0.1 * parameter.grad.norm(), name


def test_text_alone_gives_adapters_zeros(make_model: Any, make_inputs: Any) -> None:
    """A micro-batch without images has a gradient: without one, backward would fail, and ranks wait."""
    _, model = with_routed(make_model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    model(**make_inputs([[5, 6], [7]])).logits.sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == 42 and all(g is not None and not g.any() for g in grads)


@pytest.mark.usefixtures("no_grad")
def test_decoding_costs_nothing(make_model: Any, make_inputs: Any) -> None:
    """After the prefill, the same operations as without LoRA; there, some more."""
    plain, model = with_routed(make_model)
    inputs = make_inputs([[5, (2, 3), 7, 8]])

    def operations(each: Any) -> list[dict[str, int]]:
        counted = []
        with Watch() as watch:
            cache = each(**inputs, use_cache=True).past_key_values
        counted.append(dict(watch.ops))
        mask = nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        with Watch() as watch:
            each(input_ids=torch.tensor([[3]]), attention_mask=mask, past_key_values=cache)
        return [*counted, dict(watch.ops)]

    (prefill, decode), (base_prefill, base_decode) = operations(model), operations(plain)
    assert decode == base_decode
    assert sum(prefill.values()) > sum(base_prefill.values())


@pytest.mark.usefixtures("no_grad")
def test_generated_text_is_the_llms(make_model: Any, make_inputs: Any) -> None:
    plain, model = with_routed(make_model)
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    for prompt in ([5, 6, 7], [9], [1, 2, 3, 4, 5]):
        inputs = make_inputs([prompt])
        assert torch.equal(
            model.generate(**inputs, **settings), plain.llm.generate(**inputs, **settings)
        )


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("cache", [None, "static"])
def test_decoding_with_images_equals_one_full_forward(
    make_model: Any, make_inputs: Any, cache: str | None
) -> None:
    _, model = with_routed(make_model)
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, 7, 1]])
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False, cache_implementation=cache)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(4):
        whole = {**inputs, "input_ids": ids, "attention_mask": mask}
        token = model(**whole, use_cache=False).logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, token], 1), nn.functional.pad(mask, (0, 1), value=1)
    assert torch.equal(made, ids)


def test_names_are_the_bases_and_some_more(make_model: Any) -> None:
    """The exported LLM is found under its own names; globs and hashes of a base know LoRA's."""
    plain, model = with_routed(make_model, blocks=1)
    base, names = set(plain.state_dict()), set(model.state_dict())
    block = "llm.model.layers.0"
    assert base < names and len(names - base) == 14
    assert f"{block}.self_attn.q_proj.routed.image.lora_A.weight" in names
    canonical = {canonical_name(name) for name in names - base}
    assert f"{block}.mlp.up_proj.routed.image.lora_B" in canonical
    assert all(name.endswith((".lora_A", ".lora_B")) for name in canonical)
    assert tensor_hashes(model.llm) == tensor_hashes(plain.llm)


def test_a_merge_is_refused(make_model: Any) -> None:
    _, model = with_routed(make_model)
    assert not has_lora(model)  # none that waits for a merge: a stage exports it as it is
    with pytest.raises(ValueError, match=r"routed.*text as well"):
        merge_lora(model.llm)


def test_what_cannot_be_routed_is_named(make_model: Any) -> None:
    model = make_model()
    for blocks, targets, message in (
        (2, ("qkv_proj",), "LoRA targets qkv_proj are no linear"),
        (4, TARGETS, "first 4 blocks, but the LLM has 3"),
        (2, (), "no target"),
    ):
        with pytest.raises(ValueError, match=message):
            model.add_routed_lora("image", 4, blocks, targets)
    assert not model.config.routed_lora and not model.route.modalities

    class Quantised(nn.Linear):
        pass

    model.llm.model.layers[1].mlp.up_proj.__class__ = Quantised
    with pytest.raises(ValueError, match=r"mlp\.up_proj is a Quantised"):
        model.add_routed_lora("image", 4, 2, TARGETS)
    assert not any(isinstance(module, RoutedLinear) for module in model.modules())


def test_the_llm_alone_is_text_and_is_not_trained_by_mistake(
    make_model: Any, make_inputs: Any
) -> None:
    plain, model = with_routed(make_model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert same_bits(model.llm(input_ids=ids).logits, plain.llm(input_ids=ids).logits)
    with pytest.raises(RuntimeError, match="not told which tokens are images"):
        model.llm(input_ids=ids)


@pytest.mark.usefixtures("no_grad")
def test_a_copy_has_a_route_of_its_own(make_model: Any, make_inputs: Any) -> None:
    _, model = with_routed(make_model)
    inputs = make_inputs([[5, (2, 3), 7, 8]])
    other = copy.deepcopy(model)
    assert other.route is not model.route
    assert torch.equal(other(**inputs).logits, model(**inputs).logits)
    fill(other, seed=6)
    assert not torch.equal(other(**inputs).logits, model(**inputs).logits)
