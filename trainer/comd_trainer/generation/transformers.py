"""A model in this process, through transformers' `generate`: always there, on CPU and GPU."""

import inspect
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from comd_api.exit_codes import BadDataError
from comd_api.recipe import Decoding
from comd_trainer import metrics
from comd_trainer.data.images import BadImageError, Images
from comd_trainer.generation.base import OnDone, Reply, Request
from comd_trainer.generation.encoding import PromptEncoder
from comd_trainer.generation.sampling import GumbelSampler
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import Encoded, decode_answer, stack, stop_token_ids, to_device

LENGTH_BUCKET = 16
"""Prompts whose lengths fall into the same sixteen tokens go by image, so that an image's pixels are used while they
are at hand."""


class TransformersGenerator:
    """Answers in batches padded on the left.

    A row's answer does not depend on its batch but for rounding: matrix products of another shape may differ in the
    last bit, which in bf16 can turn a near tie. Batches are therefore planned from the requests alone, and a retry
    meets the same ones.
    """

    def __init__(
        self, loaded: LoadedModel, images: Images | None, device: str, *, check: Callable[[], None] = lambda: None
    ) -> None:
        """`check` is called at least every few seconds and may raise to end the work."""
        self.loaded, self.device = loaded, device
        # One for all batches: its clock runs on through many that are short.
        self._stopping = StoppingCriteriaList([_Check(check)])
        self.encoder = PromptEncoder(loaded, images)
        self.stop_tokens = stop_token_ids(loaded)
        # What a checkpoint suggests (temperatures, penalties) is not taken: the manifest says how to decode.
        # `generate` fills gaps of the config that it is given from the model's own, so that one is emptied.
        loaded.model.generation_config = self._config()
        self._accepted = accepted_inputs(loaded.model)

    def plan(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Request]]:
        """Longest first, so that a batch that does not fit in memory says so at once, and only the last batch is
        short."""

        def place(request: Request) -> tuple[bool, int, str, str]:
            return (
                request.image is None,
                -(self.encoder.num_tokens(request) // LENGTH_BUCKET),
                request.image or "",
                request.key,
            )

        ordered = sorted(requests, key=place)
        return [ordered[start : start + decoding.batch_size] for start in range(0, len(ordered), decoding.batch_size)]

    def generate(self, requests: Sequence[Request], decoding: Decoding, on_done: OnDone) -> None:
        """See `Generator.generate`. The next batch is made ready while the model answers. Raises BadDataError for a
        bad image."""
        batches = self.plan(requests, decoding)
        if not batches:
            return
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(self._inputs, batches[0])
            for index, batch in enumerate(batches):
                inputs = ready.result()
                if index + 1 < len(batches):
                    ready = pool.submit(self._inputs, batches[index + 1])
                on_done(self._answer(batch, inputs, decoding))

    def _inputs(self, batch: Sequence[Request]) -> Encoded:
        try:
            rows = self.encoder.encode(batch)
        except BadImageError as error:
            raise BadDataError(f"data.images: {error}; leave its rows out") from error
        kept = [{name: value for name, value in row.items() if name in self._accepted} for row in rows]
        return stack(kept, side="left", pad_token_id=self.loaded.pad_token_id)

    @torch.inference_mode()
    def _answer(self, batch: Sequence[Request], inputs: Encoded, decoding: Decoding) -> list[Reply]:
        length = inputs["input_ids"].shape[1]
        assert decoding.max_new_tokens is not None, "set by profile.resolve"
        sampler = (
            [
                GumbelSampler(
                    seeds=[request.seed for request in batch],
                    temperature=decoding.temperature,
                    top_p=decoding.top_p,
                    prompt_length=length,
                )
            ]
            if decoding.temperature
            else []
        )
        model: Any = self.loaded.model
        tokens: Tensor = model.generate(
            **to_device(inputs, device=self.device, dtype=model.dtype),
            generation_config=self._config(
                max_new_tokens=decoding.max_new_tokens, do_sample=False, num_beams=1, use_cache=True
            ),
            logits_processor=LogitsProcessorList(sampler),
            stopping_criteria=self._stopping,
        )
        return [self._reply(request, row) for request, row in zip(batch, tokens[:, length:].tolist(), strict=True)]

    def _config(self, **options: Any) -> GenerationConfig:
        make: Any = GenerationConfig
        config: GenerationConfig = make(
            eos_token_id=self.stop_tokens,
            pad_token_id=self.loaded.pad_token_id,
            bos_token_id=self.loaded.tokenizer.bos_token_id,
            **options,
        )
        return config

    def _reply(self, request: Request, tokens: list[int]) -> Reply:
        """`tokens`: the new ones, up to and with the first end mark; what comes after it is padding."""
        end = next((index for index, token in enumerate(tokens) if token in self.stop_tokens), None)
        metrics.add(metrics.GENERATED_TOKENS, len(tokens) if end is None else end + 1)
        text = decode_answer(self.loaded, tokens[:end])
        return Reply(key=request.key, text=text, finish="length" if end is None else "stop")


def accepted_inputs(model: Any) -> frozenset[str]:
    """Inputs that the model's forward pass names. Tokenizers add some that `generate` refuses (`token_type_ids`)."""
    return frozenset(inspect.signature(model.forward).parameters)


class _Check(StoppingCriteria):
    """Never stops a row; asks once a second whether the phase shall go on."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check, self.checked = check, time.monotonic()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # noqa: ARG002 - the interface's
        if time.monotonic() - self.checked > 1.0:
            self.checked = time.monotonic()
            self.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
