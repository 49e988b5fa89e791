"""A plan of routed LoRA: image tokens alone go through it."""

import json

from typer.testing import CliRunner

from oculi.cli import app


def lora(*changes: str) -> dict[str, int]:
    """Its parameters, and MACs of a sample of 64 image tokens and 32 of text, in stage 0."""
    size = ["--text-tokens", "32", "--json"]
    result = CliRunner().invoke(app, ["plan", "vora_tiny", *size, *changes])
    assert result.exit_code == 0, result.output
    stage = json.loads(result.stdout)["stages"][0]
    assert stage["tokens_per_image"] == 64
    return {"parameters": stage["parameters"]["lora"], **stage["macs"]["lora"]}


def test_a_multiply_accumulate_per_parameter_and_image_token() -> None:
    mergeable = lora()
    routed = lora(
        "model.lora.routed=true",
        "stages.0.merge_lora=false",
        'stages.1.trainable={"llm.*.lora_?": null}',
        "stages.1.muon=[]",
    )
    assert routed["parameters"] == mergeable["parameters"]
    assert mergeable["forward"] == mergeable["parameters"] * 96
    assert routed["forward"] == routed["parameters"] * 64
    assert routed["backward"] == 2 * routed["forward"]
