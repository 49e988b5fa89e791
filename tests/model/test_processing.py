"""Conversations and pictures to model inputs, the same way in training and in serving."""

import base64
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import processors

from oculi.data.images import load_image
from oculi.data.sample import ImageRef
from oculi.model import OculiProcessor
from oculi.model.processing_oculi import IMAGE_TOKEN, parse_content

SPELLINGS = ["<image>", "<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"]


@pytest.fixture
def processor(make_processor: Any) -> Any:
    return make_processor()


def chat_of(*content: Any) -> list[dict[str, Any]]:
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in content
    ]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_control_tokens_stay_text_end_to_end(
    processor: Any, make_picture: Any, spelling: str
) -> None:
    text = f"is {spelling} here?{spelling}"
    picture = make_picture(8, 8)
    encoded = processor.encode([("user", [picture, text]), ("assistant", [text])])
    assert encoded.input_ids.count(processor.image_token_id) == 4
    assert encoded.input_ids.count(1) == encoded.input_ids.count(2) == 2
    assert encoded.image_spans[0][1] == 4
    answer = [label for label in encoded.labels if label != -100]
    assert processor.tokenizer.decode(answer) == f"{text}<|im_end|>"
    ids = processor.apply_chat_template(
        chat_of(picture, text), tokenize=True, add_generation_prompt=True, return_dict=True
    )["input_ids"][0].tolist()
    assert (ids.count(processor.image_token_id), ids.count(2), ids.count(1)) == (4, 1, 2)
    seen = [token_id for token_id in ids if token_id != processor.image_token_id]
    assert text in processor.tokenizer.decode(seen)


@settings(max_examples=100, deadline=None)
@given(text=st.text(), answer=st.text())
def test_any_conversation_is_its_text(make_processor: Any, text: str, answer: str) -> None:
    processor = make_processor()
    ids = processor.encode([("user", [text]), ("assistant", [answer])]).input_ids
    assert processor.tokenizer.decode(ids) == (
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    )
    assert [ids.count(control) for control in (0, 1, 2, processor.image_token_id)] == [0, 2, 2, 0]


def test_encoded_lies_in_step(processor: Any, make_picture: Any) -> None:
    pictures = [make_picture(8, 12), make_picture(4, 8, seed=1)]
    messages = [
        ("system", ["Be short."]),
        ("user", ["First ", pictures[0], pictures[1], " last?"]),
        ("assistant", ["Red."]),
    ]
    encoded = processor.encode(messages)
    assert encoded.grids == [(3, 2), (2, 1)]
    assert [len(patches) for patches in encoded.pixel_values] == [6, 2]
    for picture, patches in zip(pictures, encoded.pixel_values, strict=True):
        assert np.array_equal(patches, processor.image_processor.patches(picture)[0])
    (first, n), (second, m) = encoded.image_spans
    assert (n, m) == (6, 2) and second == first + 6
    assert len(encoded.labels) == len(encoded.input_ids)
    assert encoded.labels[: encoded.prompt_length] == [-100] * encoded.prompt_length
    assert encoded.labels[encoded.prompt_length] == encoded.input_ids[encoded.prompt_length]


def test_a_prompt_is_all_prompt(processor: Any) -> None:
    encoded = processor.encode([("user", ["Who?"])], add_generation_prompt=True)
    assert encoded.prompt_length == len(encoded.input_ids)
    assert set(encoded.labels) == {-100}


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=3),
    text=st.text(max_size=20),
    mode=st.sampled_from(["native", "square"]),
)
def test_length_needs_only_sizes(
    make_processor: Any, make_picture: Any, sizes: Any, text: str, mode: str
) -> None:
    processor = make_processor(mode=mode, size=12)
    by_size = [("user", [*sizes, text]), ("assistant", ["Yes."])]
    by_picture = [("user", [*(make_picture(*size) for size in sizes), text]), by_size[1]]
    assert processor.length(by_size) == len(processor.encode(by_picture).input_ids)


def test_collate_pads_on_the_left(processor: Any, make_picture: Any) -> None:
    prompts = [
        [("user", ["Who?"])],
        [("user", [make_picture(8, 8), make_picture(4, 4), "How many?"])],
    ]
    short, long = (processor.encode(each, add_generation_prompt=True) for each in prompts)
    batch = processor.collate([short, long])
    gap = len(long.input_ids) - len(short.input_ids)
    assert batch["input_ids"].shape == (2, len(long.input_ids))
    assert batch["input_ids"][0].tolist() == [0] * gap + short.input_ids
    assert batch["input_ids"][1].tolist() == long.input_ids
    assert batch["attention_mask"].sum(1).tolist() == [len(short.input_ids), len(long.input_ids)]
    assert not batch["attention_mask"][0, :gap].any()
    assert torch.equal(batch["prompt_mask"], batch["attention_mask"])
    assert batch["image_grids"].tolist() == [[2, 2], [1, 1]]
    assert batch["pixel_values"].shape == (5, 48) and batch["pixel_values"].dtype == torch.uint8


def test_the_prompt_mask_ends_where_the_answer_begins(processor: Any) -> None:
    encoded = processor.encode(
        [("user", ["Who?"]), ("assistant", ["The"])], continue_final_message=True
    )
    mask = processor.collate([encoded])["prompt_mask"][0]
    answer = processor.chat.encode_text("The")
    assert mask.tolist() == [1] * (len(encoded.input_ids) - len(answer)) + [0] * len(answer)


def test_text_alone_has_no_pixels(processor: Any) -> None:
    batch = processor.collate([processor.encode([("user", ["Who?"])])])
    assert set(batch) == {"input_ids", "attention_mask", "prompt_mask"}


def test_chat_template_equals_encode(processor: Any, make_picture: Any) -> None:
    picture = make_picture(8, 12)
    expected = processor.collate(
        [processor.encode([("user", [picture, "What?"])], add_generation_prompt=True)]
    )
    found = processor.apply_chat_template(
        chat_of(picture, "What?"), tokenize=True, add_generation_prompt=True, return_dict=True
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    ids = processor.apply_chat_template(
        chat_of(picture, "What?"), tokenize=True, add_generation_prompt=True
    )
    assert torch.equal(ids, expected["input_ids"])
    several = processor.apply_chat_template(
        [chat_of("a"), chat_of(picture, "b")], tokenize=True, return_dict=True
    )
    assert several["input_ids"].shape[0] == 2 and several["image_grids"].tolist() == [[3, 2]]


def test_rendered_text_has_one_image_token_per_image(processor: Any, make_picture: Any) -> None:
    conversation = chat_of("a ", make_picture(8, 8), make_picture(8, 8), " b")
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    assert text == (
        f"<|im_start|>user\na {IMAGE_TOKEN}{IMAGE_TOKEN} b<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template([conversation]) == [text.removesuffix(
        "<|im_start|>assistant\n"
    )]  # fmt: skip


def test_raw_text_takes_image_tokens(processor: Any, make_picture: Any) -> None:
    """The way of transformers: the string is the prompt, control tokens included."""
    pictures = [make_picture(8, 8), make_picture(4, 8)]
    conversation = chat_of("a ", *pictures, " b")
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    expected = processor.apply_chat_template(
        conversation, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    found = processor(images=pictures, text=text, return_tensors="pt")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    nested = processor(images=[[pictures[0]], [pictures[1]]], text=[f"{IMAGE_TOKEN}a"] * 2)
    assert nested["image_grids"].tolist() == [[2, 2], [2, 1]]


def test_raw_text_begins_as_a_conversation_does(
    make_tokenizer: Any, make_processor: Any, make_picture: Any
) -> None:
    """Without a template: with what the tokenizer puts before a text, once."""
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    processor = make_processor(tokenizer)
    picture, settings = make_picture(8, 8), {"add_generation_prompt": True}
    wanted = processor.apply_chat_template(chat_of(picture, "Who?"), tokenize=True, **settings)
    text = processor.apply_chat_template(chat_of(picture, "Who?"), **settings)
    assert text == f"<|endoftext|>user: {IMAGE_TOKEN}Who?\nassistant: "
    for prompt in (text, text.removeprefix("<|endoftext|>")):
        assert torch.equal(processor(images=picture, text=prompt)["input_ids"], wanted)
    begun = processor(images=picture, text=IMAGE_TOKEN)
    assert begun["input_ids"].tolist() == [[0, *[processor.image_token_id] * 4]]


def test_image_tokens_and_pictures_must_agree(processor: Any, make_picture: Any) -> None:
    with pytest.raises(ValueError, match=r"2 times .* in the text, but 1 images"):
        processor(images=make_picture(8, 8), text=IMAGE_TOKEN * 2)
    with pytest.raises(ValueError, match="needs text"):
        processor(images=make_picture(8, 8))


def test_pictures_in_lists_belong_to_their_text(processor: Any, make_picture: Any) -> None:
    """Three tokens and three pictures, and yet the second text would get a picture of the first."""
    a, b, c = (make_picture(8, 8, seed=seed) for seed in range(3))
    texts = [IMAGE_TOKEN, IMAGE_TOKEN * 2]
    found = processor(images=[[a], [b, c]], text=texts)
    flat = processor(images=[a, b, c], text=texts)
    assert torch.equal(found["pixel_values"], flat["pixel_values"])
    with pytest.raises(ValueError, match=r"text 0 has 1 times .*, but its list holds 2 images"):
        processor(images=[[a, b], [c]], text=texts)
    with pytest.raises(ValueError, match="3 lists of images for 2 texts"):
        processor(images=[[a], [b], [c]], text=texts)
    assert processor(images=[[a], None], text=[IMAGE_TOKEN, "b"])["image_grids"].shape == (1, 2)


def test_contents_of_transformers(tmp_path: Any) -> None:
    picture = Image.new("RGB", (3, 2), "red")
    picture.save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    text64 = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    sources = {"image": picture, "url": path, "path": path, "base64": text64}
    for key, value in [*sources.items(), ("url", f"data:image/png;base64,{text64}")]:
        text, found = parse_content(
            [{"type": "text", "text": "What?"}, {"type": "image", key: value}]
        )
        assert text == "What?" and isinstance(found, Image.Image)
        assert found.size == (3, 2) and found.getpixel((0, 0)) == (255, 0, 0)
    assert parse_content("plain") == ["plain"]
    with pytest.raises(ValueError, match='"video" is neither text nor image'):
        parse_content([{"type": "video", "video": path}])
    with pytest.raises(ValueError, match="an image part needs"):
        parse_content([{"type": "image"}])
    for nothing in (str(tmp_path / "b.png"), "", 7):
        with pytest.raises(ValueError, match="is no picture, and no URL, path or base64 of one"):
            parse_content([{"type": "image", "path": nothing}])


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA"])
def test_a_file_keeps_what_its_pixels_mean(processor: Any, tmp_path: Any, mode: str) -> None:
    """Of 16-bit grey and of alpha a plain conversion to RGB would leave nothing to go by."""
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)).save(path)
    else:
        Image.new(mode, (8, 8), 0).save(path)
    wanted = processor.image_processor.patches(load_image(ImageRef(path=path)))[0]
    conversation = [{"role": "user", "content": [{"type": "image", "path": str(path)}]}]
    chat = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    raw = processor(images=str(path), text=IMAGE_TOKEN)
    for found in (chat, raw):
        assert np.array_equal(found["pixel_values"].numpy(), wanted)


def test_a_role_cannot_open_a_turn(processor: Any) -> None:
    with pytest.raises(ValueError, match="not a plain word"):
        processor.apply_chat_template([{"role": "user<|im_end|>", "content": "x"}], tokenize=True)


def test_the_image_token_leaves_the_other_tokens_alone(
    make_tokenizer: Any, make_processor: Any
) -> None:
    tokenizer = make_tokenizer(additional_special_tokens=["<|keep|>"])
    before = dict(tokenizer.added_tokens_decoder), list(tokenizer.all_special_tokens)
    processor = make_processor(tokenizer)
    assert (
        processor.image_token_id
        == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        == len(tokenizer) - 1
    )
    assert set(before[0]) < set(tokenizer.added_tokens_decoder)
    assert set(before[1]) <= set(tokenizer.all_special_tokens)
    assert tokenizer.decode([processor.image_token_id, 2], skip_special_tokens=True) == ""
    again = make_processor(tokenizer)
    assert again.image_token_id == processor.image_token_id


def test_a_tokenizer_without_padding_gets_some(make_tokenizer: Any, make_processor: Any) -> None:
    processor = make_processor(make_tokenizer(pad_token=None))
    assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id
    assert processor.tokenizer.padding_side == "left"


def test_there_is_one_chat_template(make_processor: Any, tmp_path: Any) -> None:
    """Set on the processor or on its tokenizer, it is used and saved."""
    processor = make_processor()
    for i, owner in enumerate((processor, processor.tokenizer)):
        owner.chat_template = f"{i}{{{{ messages[0]['content'] }}}}"
        ids = processor.encode([("user", ["a"])]).input_ids
        assert processor.tokenizer.decode(ids) == f"{i}a"
        processor.save_pretrained(tmp_path / str(i))
        again = OculiProcessor.from_pretrained(tmp_path / str(i))
        assert again.encode([("user", ["a"])]).input_ids == ids
    given = OculiProcessor(
        processor.image_processor,
        processor.tokenizer,
        chat_template="{{ messages[0]['content'] }}!",
    )
    assert given.tokenizer.decode(given.encode([("user", ["a"])]).input_ids) == "a!"
    with pytest.raises(ValueError, match="chat_template"):
        processor.apply_chat_template(chat_of("a"), chat_template="x")


@pytest.mark.parametrize("template", [True, False])
def test_a_folder_gives_the_processor_back(
    make_tokenizer: Any, make_processor: Any, make_picture: Any, tmp_path: Any, template: bool
) -> None:
    tokenizer = make_tokenizer() if template else make_tokenizer(chat_template=None)
    processor = make_processor(tokenizer, max_patches=9, min_patches=2)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists() == template
    again = OculiProcessor.from_pretrained(tmp_path)
    messages = [("user", [make_picture(60, 30), "<|im_end|> ?"]), ("assistant", ["b"])]
    expected, found = processor.encode(messages), again.encode(messages)
    assert (found.input_ids, found.labels, found.grids) == (
        expected.input_ids, expected.labels, expected.grids,
    )  # fmt: skip
    assert np.array_equal(found.pixel_values[0], expected.pixel_values[0])
    assert again.image_token_id == processor.image_token_id
    assert again.chat_template == (processor.chat_template if template else None)


def test_it_travels_to_a_worker(processor: Any, make_picture: Any) -> None:
    messages = [("user", [make_picture(8, 8), "a"])]
    expected = processor.encode(messages)
    found = pickle.loads(pickle.dumps(processor)).encode(messages)
    assert found.input_ids == expected.input_ids
    assert np.array_equal(found.pixel_values[0], expected.pixel_values[0])
