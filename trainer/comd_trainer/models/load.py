"""Opens checkpoints in Hugging Face layout: safetensors only, every weight accounted for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils.logging import disable_progress_bar

from comd_api.exit_codes import UserError

# A stage's log is JSON lines; bars of libraries would be noise in it.
disable_progress_bar()  # type: ignore[no-untyped-call]

Kind = Literal["image-text-to-text", "causal-lm"]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model and what turns rows into its inputs."""

    model: PreTrainedModel
    processor: Any
    """`ProcessorMixin` of an image-text-to-text model; a tokenizer of a causal one."""
    kind: Kind
    field: str = "the model"
    """Field of the manifest that named it, for messages."""

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer if self.kind == "image-text-to-text" else self.processor

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def image_token(self) -> str | None:
        """What stands for an image in the text; None where the template alone knows, and for text-only models."""
        return getattr(self.processor, "image_token", None) if self.kind == "image-text-to-text" else None

    @property
    def image_token_id(self) -> int | None:
        return getattr(self.model.config, "image_token_id", None)

    @property
    def pad_token_id(self) -> int:
        """What fills short rows. Always masked, so it only must not be the image token, which LLaVA counts even where it is masked."""
        tokenizer = self.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def load_model(
    folder: Path, *, dtype: torch.dtype | str, device: str, trust_remote_code: bool = False, field: str
) -> LoadedModel:
    """Loads the checkpoint in `folder`, in evaluation mode, onto `device`.

    `dtype` may be "auto": as stored. `field` is the manifest's field, named in the `UserError` of a folder that holds no model,
    pickled weights, weights that are missing or torn, or code of its own while `trust_remote_code` is off.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code, field=field)
    check_safetensors(folder, field=field)
    kind: Kind = "image-text-to-text" if _sees_images(config) else "causal-lm"
    auto_class: Any = AutoModelForImageTextToText if kind == "image-text-to-text" else AutoModelForCausalLM
    processor_class: Any = AutoProcessor if kind == "image-text-to-text" else AutoTokenizer
    try:
        model, report = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
        processor = processor_class.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{field}: the checkpoint in {folder.name} can't be opened: {_first_line(error)}") from error
    refuse_missing(report, folder=folder, field=field)
    return LoadedModel(model=model.to(device).eval(), processor=processor, kind=kind, field=field)


def load_config(folder: Path, *, trust_remote_code: bool = False, field: str) -> Any:
    """The model's config. Never asks on the terminal whether code may run: off means refused."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{field}: {folder.name} has no config.json; it must be a folder in Hugging Face layout")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        hint = "; set trustRemoteCode to run the code that it ships" if "trust_remote_code" in str(error) else ""
        raise UserError(f"{field}: config.json of {folder.name} can't be used: {_first_line(error)}{hint}") from error


def check_safetensors(folder: Path, *, field: str) -> None:
    """Refuses a folder whose weights are pickled, for unpickling runs code."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    found = f"only {pickled[0]}" if pickled else "no weights"
    raise UserError(
        f"{field}: {folder.name} holds {found}, and weights are read from *.safetensors alone; convert the checkpoint"
    )


def refuse_missing(report: dict[str, Any], *, folder: Path, field: str) -> None:
    """transformers only warns of weights that a checkpoint lacks, and draws them at random."""
    missing = sorted(report.get("missing_keys", ()))
    mismatched = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing or mismatched:
        first = (missing + mismatched)[0]
        raise UserError(
            f"{field}: {folder.name} lacks {len(missing) + len(mismatched)} of the model's weights, such as {first}; "
            "give a whole checkpoint"
        )


def _sees_images(config: Any) -> bool:
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return True
    return "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
