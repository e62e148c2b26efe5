"""Model folders: looked through without loading or fetching them. Layout, weights without pickle, tokenizer, chat template."""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from comd_api.exit_codes import UserError
from comd_trainer.preflight.named import NamedSource
from comd_trainer.preflight.weights import INDEX, Tensor, Weights, read_header, shards, weigh
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.listing import Listing

log = logging.getLogger(__name__)

FILES_AT_ONCE = 8
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
WHOLE = "put a whole copy of the checkpoint there"


def look_at_model(one: NamedSource, listing: Listing, *, template_given: bool = False) -> Weights:
    """Looks through a model's folder, and says what its weights are. Of the weights only headers are read.

    Raises:
        UserError: the folder can't be used as the model that it is named as.
    """
    if "config.json" not in listing.files:
        raise UserError(f"{one.field} ({one.source}) has no config.json; it must be a folder in Hugging Face layout")
    values = read_json(one, listing)
    if not any(name.endswith(".safetensors") for name in listing.names):
        raise UserError(
            f"{one.field} ({one.source}) has no *.safetensors; pickled weights are not loaded, convert them with save_pretrained"
        )
    tensors = read_tensors(one, listing, values.get(INDEX))
    if one.kind != "vision-tower" and not _any(TOKENIZERS, listing):
        raise UserError(f"{one.field} ({one.source}) has no tokenizer (tokenizer.json or tokenizer.model)")
    if one.kind != "vision-tower" and not template_given and not has_chat_template(listing, values):
        mend = (
            "set student.composed.languageModel.chatTemplate"
            if one.kind == "language-model"
            else "add a chat_template.jinja to the folder"
        )
        raise UserError(f"{one.field} ({one.source}) has a tokenizer without a chat template; {mend}")
    if one.kind != "language-model" and not _any(PROCESSORS, listing):
        if one.kind == "vision-tower" or one.field.startswith("spec.student."):
            raise UserError(f"{one.field} ({one.source}) has no image processor (preprocessor_config.json)")
        log.info("%s has no image processor: it is taken for a model of text alone", one.field)
    return weigh(tensors, values["config.json"], kind=one.kind)


def read_json(one: NamedSource, listing: Listing) -> dict[str, Any]:
    """Every JSON file of the folder, by name. Each must be some: a torn download shows here, and not hours later."""
    names = [name for name in listing.names if name.endswith(".json")]
    values: dict[str, Any] = {}
    for name, data in zip(names, in_parallel(listing.read, names, threads=FILES_AT_ONCE), strict=True):
        try:
            values[name] = json.loads(data)
        except ValueError as error:
            raise UserError(f"{one.field} ({one.source}): {name} is not JSON ({error}); {WHOLE}") from None
        if name.endswith("config.json") and not isinstance(values[name], dict):
            raise UserError(f"{one.field} ({one.source}): {name} holds no JSON object; {WHOLE}")
    return values


def read_tensors(one: NamedSource, listing: Listing, index: Any) -> list[Tensor]:
    """Of the files that will be loaded. Errors: UserError for one that is torn or, by the index, not there."""
    loaded = shards(listing, index if isinstance(index, dict) else None)
    for name in loaded:
        if name not in listing.files:
            raise UserError(f"{one.field} ({one.source}): {name} is not there, and {INDEX} names it; {WHOLE}")
    names = sorted({*loaded, *(name for name in listing.names if name.endswith(".safetensors"))})
    headers = dict(
        zip(names, in_parallel(lambda name: read_header(listing, name), names, threads=FILES_AT_ONCE), strict=True)
    )
    tensors: list[Tensor] = []
    for name, header in headers.items():
        if header is None:
            raise UserError(
                f"{one.field} ({one.source}): {name} is torn, it is shorter or longer than its header says; {WHOLE}"
            )
        tensors += header if name in loaded else []
    return tensors


def has_chat_template(listing: Listing, values: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's tokenizer or processor brings a chat template. `values`: its JSON files."""
    if _any(("chat_template.jinja", "chat_template.json"), listing):
        return True
    return any(
        bool(values[name].get("chat_template"))
        for name in ("tokenizer_config.json", "processor_config.json")
        if name in values
    )


def _any(names: Iterable[str], listing: Listing) -> bool:
    return any(name in listing.files for name in names)
