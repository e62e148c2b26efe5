"""A run so small that a whole one takes seconds: tiny random models, noise for images, two rounds. What it learns means nothing; that it
comes to the same end however often it is interrupted is the point."""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import save_tiny_language_model, save_tiny_llava, save_tiny_vision_tower, tiny_image

COLORS = ("red", "blue", "green", "white", "black", "yellow", "brown", "pink")
QUESTIONS = ("what is the color of this image?", "is it {}?", "does {} stand in it?", "how {} is this image?")


def make_inputs(folder: Path) -> Path:
    """Data and models, as `spec.storage.uri` + `/inputs` would hold them."""
    images = folder / "images"
    images.mkdir(parents=True)
    for number in range(40):
        tiny_image(number).save(images / f"{number}.png")

    def question(number: int) -> str:
        return QUESTIONS[number % 4].format(COLORS[(number // 4 + number // 24) % 8])

    def rows(name: str, first: int, count: int, *, image_from: int, image_count: int) -> None:
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(first, first + count):
                row = {
                    "id": f"{name}-{number}",
                    "image": f"{image_from + number % image_count}.png",
                    "instruction": question(number),
                }
                file.write(json.dumps({**row, "answer": COLORS[number % 8], "group": f"q{number % 4}"}) + "\n")

    rows("seed", 0, 24, image_from=0, image_count=16)
    rows("bank", 100, 90, image_from=8, image_count=24)
    rows("eval", 500, 8, image_from=32, image_count=8)
    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(16):
            file.write(
                json.dumps({"id": f"p{number}", "image": f"{number}.png", "caption": f"a {COLORS[number % 8]} square"})
                + "\n"
            )
    save_tiny_vision_tower(folder / "models" / "vision-tower")
    save_tiny_language_model(folder / "models" / "language-model")
    save_tiny_llava(folder / "models" / "parts", seed=7).rename(folder / "models" / "teacher")
    return folder


def manifest(name: str = "tiny", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "comd.dev/v1alpha1",
        "kind": "DistillationRun",
        "metadata": {"name": name},
        "spec": {
            "student": {
                "composed": {
                    "visionTower": {"source": "inputs/models/vision-tower"},
                    "projector": {"type": "MLP"},
                    "languageModel": {"source": "inputs/models/language-model"},
                }
            },
            "teacher": {"checkpoint": {"source": "inputs/models/teacher"}},
            "assessor": {"type": "Likelihood"},
            "augmentor": {"type": "Retrieval"},
            "data": {
                "images": "inputs/images",
                "pretraining": "inputs/pairs.jsonl",
                "seed": {"instructions": "inputs/seed.jsonl"},
                "bank": "inputs/bank.jsonl",
                "evaluation": [{"name": "held-out", "items": "inputs/eval.jsonl"}],
            },
            "pretraining": {"batchSize": 4, "maxSteps": 6, "learningRate": 0.001},
            "rounds": {
                "count": 2,
                "threshold": 0.0001,
                "teacherFloor": 1.0,
                "hardItemsFloor": 1,
                "assessment": {"sampleSize": 16, "freshItems": 6},
                "augmentation": {"hardItems": 8, "easyItems": 6},
            },
            "training": {
                "batchSize": 4,
                "microBatchSize": 2,
                "learningRate": 0.002,
                "maxSteps": 8,
                "firstRound": {"batchSize": 4},
                "precision": "fp32",
                "checkpointSteps": 2,
                "deepspeed": {"zeroStage": 1},
            },
            "generation": {
                role: {"temperature": 0.7 if role == "student" else 0.0, "maxNewTokens": 8, "batchSize": 4}
                for role in ("teacher", "student", "evaluation")
            },
            "retry": {"limit": 100, "backoffSeconds": 0},
            **spec,
        },
    }


def write_manifest(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
