"""What a saved model must be able to do before it is handed to a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import world
from numpy.typing import NDArray
from PIL import Image
from tinymodels import MAX_ANSWER, Lexicon
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """The chat template must make the very tokens that the models were trained on, and give an answer back as it
    was."""
    prompt, target = world.PHRASINGS["list"][0], "seven , two and five ."
    expected, before = Lexicon(tokenizer).sample([], prompt, target)
    asked = [{"role": "user", "content": prompt}]
    texts = [
        tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True),
        tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": target}], tokenize=False),
    ]
    got = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if got != [expected[:before], expected] or tokenizer.decode(expected[before:], skip_special_tokens=True) != target:
        raise AssertionError(f"the chat template and the training disagree: {texts}")


def ask(checkpoint: Path, pictures: Sequence[NDArray[np.uint8]], instructions: Sequence[str]) -> list[str]:
    """Open a saved checkpoint as a stranger would, and ask it one instruction about each picture, greedily."""
    opens: Any = AutoProcessor  # untyped in the library
    processor = opens.from_pretrained(checkpoint)
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint)
    model.train(False)
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
        )
        for text in instructions
    ]
    images = [Image.fromarray(picture) for picture in pictures]
    given = processor(text=prompts, images=images, padding=True, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        said = model.generate(**given, max_new_tokens=MAX_ANSWER, do_sample=False)
    return [
        str(text) for text in processor.batch_decode(said[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    ]
