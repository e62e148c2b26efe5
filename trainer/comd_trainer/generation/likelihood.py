"""How likely a model finds given answers: for the assessor `Likelihood` and the metric `ChoiceLikelihood` (method
section 8.2)."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from comd_api.exit_codes import BadDataError
from comd_api.roles import Checkpoint
from comd_trainer.context import PhaseContext
from comd_trainer.data.images import BadImageError, Images
from comd_trainer.data.rows import Item
from comd_trainer.generation.base import PROMPT_FORMAT, Request
from comd_trainer.generation.calls import digest_of, image_digest
from comd_trainer.generation.encoding import PromptEncoder
from comd_trainer.generation.group import from_first
from comd_trainer.generation.open import load_on_device, open_images
from comd_trainer.generation.sharing import OnResults, complete
from comd_trainer.generation.transformers import accepted_inputs
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import Encoded, encode_answer, stack, to_device
from comd_trainer.store.calls import CallCache

DECIMALS = 6
"""Scores are rounded to these before anything is decided by them, so that the last bits of a sum are not part of a
result."""


def score_answers(
    ctx: PhaseContext,
    *,
    checkpoint: Checkpoint | Path,
    fingerprint: str,
    rows: Sequence[tuple[Item, str]],
    field: str,
    batch_size: int | None = None,
) -> list[float]:
    """Mean log-probability (natural, at most 0) of the tokens of each answer and its end mark, given the item; on
    every rank.

    All ranks call it with the same rows. Cached like answers. `batch_size` is that of `generation.assessor` when left
    out. Raises BadDataError for an image that can't be read and for a model that gives no number.
    """
    images = open_images(ctx) if any(item.image is not None for item, _ in rows) else None
    scope = digest_of(
        {
            "kind": "likelihood",
            "model": fingerprint,
            "precision": ctx.spec.training.precision,
            "promptFormat": PROMPT_FORMAT,
        }
    )
    keys = from_first(ctx, lambda: [_key(scope, item, answer, images) for item, answer in rows])
    jobs = {
        key: _Job(request=Request(key=key, turns=item.turns, image=item.image, seed=0), answer=answer)
        for key, (item, answer) in zip(keys, rows, strict=True)
    }
    size = batch_size or ctx.spec.generation.assessor.batch_size
    results, _ = complete(
        ctx,
        cache=CallCache(ctx.store, f"cache/likelihoods/{scope[:32]}"),
        keys=list(jobs),
        label="likelihood",
        role="likelihood",
        open_worker=lambda: AnswerScorer(load_on_device(ctx, checkpoint, field=field), images, jobs, batch_size=size),
    )
    return [float(results[key]["value"]) for key in keys]


@dataclass(frozen=True, kw_only=True)
class _Job:
    request: Request
    answer: str


class AnswerScorer:
    """One forward pass over prompt and answer, padded on the right."""

    def __init__(
        self, loaded: LoadedModel, images: Images | None, jobs: Mapping[str, _Job], *, batch_size: int
    ) -> None:
        self.loaded, self.jobs, self.batch_size = loaded, jobs, batch_size
        self.encoder = PromptEncoder(loaded, images)
        self._accepted = accepted_inputs(loaded.model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters

    def plan(self, keys: Sequence[str]) -> list[list[str]]:
        """Rows of similar length together, the longest first; equal prompts stay neighbours."""

        def place(key: str) -> tuple[bool, int, str, str]:
            job = self.jobs[key]
            length = self.encoder.num_tokens(job.request) + len(encode_answer(self.loaded, job.answer))
            return job.request.image is None, -(length // 16), job.request.image or "", key

        ordered = sorted(keys, key=place)
        return [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]

    def run(self, keys: Sequence[str], on_results: OnResults) -> None:
        for batch in self.plan(keys):
            values = self.score([self.jobs[key] for key in batch])
            on_results([(key, {"value": value}) for key, value in zip(batch, values, strict=True)])

    @torch.inference_mode()
    def score(self, jobs: Sequence[_Job]) -> list[float]:
        """Mean log-probability of each answer's tokens, rounded. Logits exist for the places from the shortest
        prompt's end on only: at a vocabulary of 150,000 those of whole rows would take gigabytes."""
        rows, spans = self._rows(jobs)
        batch = stack(rows, side="right", pad_token_id=self.loaded.pad_token_id)
        length = batch["input_ids"].shape[1]
        # The logits at place i are about token i + 1.
        first = min(start for start, _ in spans) - 1
        kept = {"logits_to_keep": length - first} if self._keeps_logits else {}
        inputs = to_device(batch, device=self.loaded.device, dtype=self.loaded.model.dtype)
        logits: Tensor = self.loaded.model(**inputs, use_cache=False, **kept).logits
        offset = length - logits.shape[1]
        values = []
        for index, (start, end) in enumerate(spans):
            log_probabilities = logits[index, start - 1 - offset : end - 1 - offset].float().log_softmax(dim=-1)
            wanted = inputs["input_ids"][index, start:end]
            values.append(float(log_probabilities.gather(1, wanted[:, None]).double().mean()))
        return [self._checked(value, job) for value, job in zip(values, jobs, strict=True)]

    def _rows(self, jobs: Sequence[_Job]) -> tuple[list[Encoded], list[tuple[int, int]]]:
        """Inputs of prompt and answer, and where each answer with its end mark starts and ends."""
        try:
            prompts = self.encoder.encode([job.request for job in jobs])
        except BadImageError as error:
            raise BadDataError(f"data.images: {error}; leave its rows out") from error
        rows: list[Encoded] = []
        spans = []
        for prompt, job in zip(prompts, jobs, strict=True):
            answer = torch.tensor([encode_answer(self.loaded, job.answer)], dtype=prompt["input_ids"].dtype)
            start = prompt["input_ids"].shape[1]
            spans.append((start, start + answer.shape[1]))
            row = {name: value for name, value in prompt.items() if name in self._accepted}
            for name, value in row.items():
                if value.shape[:2] == prompt["input_ids"].shape:
                    # Attention is on over the answer, and it belongs to no image.
                    more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}.get(
                        name, torch.zeros_like(answer)
                    )
                    row[name] = torch.cat([value, more.to(value.dtype)], dim=1)
            rows.append(row)
        return rows, spans

    def _checked(self, value: float, job: _Job) -> float:
        if math.isnan(value):
            raise BadDataError(
                f"{self.loaded.field}: the model gives no number for an answer to {job.request.turns[-1].text[:80]!r}; "
                "its weights or training.precision do not fit"
            )
        return round(value, DECIMALS)


def _key(scope: str, item: Item, answer: str, images: Images | None) -> str:
    return digest_of(
        {
            "scope": scope,
            "image": image_digest(item.image, images),
            "turns": [[turn.role, turn.text] for turn in item.turns],
            "answer": answer,
        }
    )
