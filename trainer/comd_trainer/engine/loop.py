"""The training loop: DeepSpeed's engine driven directly, from batch to checkpoint on one screen."""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from PIL.Image import Image

from comd_api.exit_codes import BadDataError
from comd_api.recipe import Training
from comd_trainer.context import PhaseContext, PreemptedError
from comd_trainer.data.seeds import derive
from comd_trainer.engine.batches import Collator, Example, MicroBatch, check_share
from comd_trainer.engine.checkpoint import Checkpoints, TrainState
from comd_trainer.engine.deepspeed_config import deepspeed_config
from comd_trainer.engine.feed import MAX_THREADS, Feed, step_maker
from comd_trainer.engine.flops import cost_of
from comd_trainer.engine.loss import LossModel, takes_hidden_states
from comd_trainer.engine.order import Order
from comd_trainer.engine.proofs import check_packing
from comd_trainer.engine.report import Report, StepSize, size_of
from comd_trainer.engine.schedule import learning_rate
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import to_device

TRIED_ROWS = 8
"""How many rows are looked at for two that show what the model allows."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers of one training phase; `training` gives those that all phases share."""

    training: Training
    learning_rate: float
    batch_size: int
    epochs: float
    max_steps: int | None
    seed: int
    max_bad_row_fraction: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Outcome:
    engine: Any
    """DeepSpeed's, with the trained weights (partitioned with ZeRO-3)."""
    state: TrainState
    """`dropped` is of all ranks."""


def train(
    ctx: PhaseContext,
    *,
    loaded: LoadedModel,
    parameters: Sequence[tuple[str, torch.nn.Parameter]],
    examples: Sequence[Example],
    open_image: Callable[[str], Image],
    plan: Plan,
) -> Outcome:
    """Trains `parameters` of `loaded.model` on `examples`, in all ranks together, from the last checkpoint where there is one.

    Raises PreemptedError after saving when any rank was asked to stop; BadDataError when the loss is no longer finite (weights are
    not stepped, the rows are named) or when too many rows can't be used.
    """
    training = plan.training
    order = Order(num_rows=len(examples), batch_size=plan.batch_size, seed=plan.seed)
    num_steps = order.num_steps(epochs=plan.epochs, max_steps=plan.max_steps)
    collate = Collator(loaded=loaded, open_image=open_image, max_length=training.max_length)
    loss_model = try_out(loaded, collate, examples, training=training)
    torch.manual_seed(derive(plan.seed, "dropout", ctx.rank))
    cost = cost_of(loaded.model)
    engine = start_engine(ctx, loss_model, parameters, plan)
    checkpoints = Checkpoints(ctx, zero_stage=training.deepspeed.zero_stage)
    state = checkpoints.resume(engine)
    ctx.progress.start(total=num_steps, unit="steps", done=state.step)
    report = Report(ctx, num_steps=num_steps, cost=cost, device=engine.device)

    make_step = step_maker(collate, examples, order=order, training=training, rank=ctx.rank, world_size=ctx.world_size)
    num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // ctx.num_local_ranks))

    with Feed(make_step, first=state.step, last=num_steps, num_threads=num_threads) as feed:
        while state.step < num_steps:
            began = time.monotonic()
            batches = feed.take()
            report.waited(time.monotonic() - began)
            own = size_of(batches, image_token_id=loaded.image_token_id)
            of_ranks = gathered(engine.device, *own.numbers(), int(ctx.stop_asked()), len(batches))
            *numbers, stops, _ = of_ranks.sum(dim=0).tolist()
            batches += [collate.blank_batch()] * (int(of_ranks[:, -1].max()) - len(batches))
            size = StepSize.of_numbers(numbers)
            if stops:
                checkpoints.save(engine, state)
                # The first rank that ends makes the launcher kill the others, after a while: nobody ends before all shares are there.
                dist.barrier()
                raise PreemptedError(
                    f"stopped by request after step {state.step} of {num_steps}; the next attempt goes on from there"
                )

            rate = learning_rate(
                state.step,
                num_steps=num_steps,
                peak=plan.learning_rate,
                scheduler=training.scheduler,
                warmup_ratio=training.warmup_ratio,
                min_ratio=training.min_learning_rate_ratio,
            )
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
            sums = []
            for number, batch in enumerate(batches, start=1):
                engine.set_gradient_accumulation_boundary(number == len(batches))
                loss_sum = engine(to_device(batch.inputs, device=engine.device, dtype=loaded.model.dtype))
                # DeepSpeed averages gradients over the ranks; the loss is a mean over the tokens of all of them.
                engine.backward(loss_sum * (ctx.world_size / max(1, size.supervised)), scale_wrt_gas=False)
                sums.append(loss_sum.detach())
            own_loss = float(torch.stack(sums).sum())
            loss = float(gathered(engine.device, own_loss).sum()) / max(1, size.supervised)
            refuse_non_finite("loss", loss, step=state.step, batches=batches, sums=sums)
            plain_norm = gradient_norm(parameters) if engine.optimizer is engine.basic_optimizer else None
            engine.step()
            grad_norm = plain_norm if plain_norm is not None else float(engine.get_global_grad_norm() or 0.0)
            if (
                training.precision != "fp16"
            ):  # There an overflow is expected: DeepSpeed skips the step and scales the loss down.
                refuse_non_finite("gradient norm", grad_norm, step=state.step, batches=batches, sums=sums)

            state.step += 1
            state.losses.append(loss)
            state.num_tokens += int(size.supervised)
            state.num_dropped += int(size.dropped)
            for batch in batches:
                state.dropped.update(batch.dropped)
            check_share(
                num_dropped=state.num_dropped,
                num_seen=order.num_seen(state.step),
                num_rows=order.num_rows,
                max_fraction=plan.max_bad_row_fraction,
                reasons=state.dropped,
            )
            report(state, size, loss=loss, rate=rate, grad_norm=grad_norm)
            if state.step % training.checkpoint_steps == 0 and state.step < num_steps:
                checkpoints.save(engine, state)

    state.dropped = merged(state.dropped)
    return Outcome(engine=engine, state=state)


def try_out(loaded: LoadedModel, collate: Collator, examples: Sequence[Example], *, training: Training) -> LossModel:
    """The model with the loss that it allows, as the first rows show it; packing is refused where they must not be packed."""
    made = [collate.make(example).encoded for example in examples[:TRIED_ROWS]]
    first, second, *_ = [*[row for row in made if row is not None], collate.blank, collate.blank]
    if training.packing is not None:
        check_packing(loaded, first, second)
    batch = to_device(first, device=loaded.device, dtype=loaded.model.dtype)
    return LossModel(loaded.model, chunked=takes_hidden_states(loaded.model, batch))


def start_engine(
    ctx: PhaseContext, loss_model: LossModel, parameters: Sequence[tuple[str, torch.nn.Parameter]], plan: Plan
) -> Any:
    """DeepSpeed's engine around the model, in training mode. Only `parameters` learn; matrices alone are decayed."""
    training = plan.training
    # Else DeepSpeed compiles a shared-memory operation on CPUs at every first start: half a minute, for nothing that gloo lacks.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if training.gradient_checkpointing:
        loss_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    groups = [
        {"params": [value for _, value in parameters if value.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [value for _, value in parameters if value.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,  # Set at each step; until then DeepSpeed steps on zero gradients to allocate the state, which must decay nothing.
        betas=(training.adam_beta1, training.adam_beta2),
        eps=1e-8,
    )
    engine, *_ = deepspeed.initialize(
        model=loss_model,
        optimizer=optimizer,
        config=deepspeed_config(training, batch_size=plan.batch_size, world_size=ctx.world_size),
        dist_init_required=False,
    )
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        # Stage 0 in half precision keeps what that step counted, and Adam's first updates would be a quarter too small.
        engine.basic_optimizer.state.clear()
    engine.train()
    return engine


def gradient_norm(parameters: Sequence[tuple[str, torch.nn.Parameter]]) -> float:
    """Of the gradients as they are before clipping, for DeepSpeed's one mode that does not tell it (stage 0 in fp32)."""
    squares = [value.grad.double().square().sum() for _, value in parameters if value.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def gathered(device: torch.device, *values: float) -> torch.Tensor:
    """Numbers of all ranks, in one collective: (ranks, values), on the CPU. Exact for counts up to 2**53."""
    own = torch.tensor(values, dtype=torch.float64, device=device)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.stack(parts).cpu()


def merged(dropped: dict[str, str]) -> dict[str, str]:
    """What all ranks dropped, sorted by id."""
    parts: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, dropped)
    return dict(sorted((row, reason) for part in parts for row, reason in part.items()))


def refuse_non_finite(
    what: str, value: float, *, step: int, batches: Sequence[MicroBatch], sums: Sequence[torch.Tensor]
) -> None:
    """Collective when `value`, equal on all ranks, is not finite: names the rows whose loss is not, else all of the batch."""
    if math.isfinite(value):
        return
    bad = [
        row for batch, part in zip(batches, sums, strict=True) if not math.isfinite(float(part)) for row in batch.rows
    ]
    named = merged(dict.fromkeys(bad, "")) or merged(
        dict.fromkeys((row for batch in batches for row in batch.rows), "")
    )
    listed = ", ".join(list(named)[:8]) + (" …" if len(named) > 8 else "")
    raise BadDataError(
        f"the {what} of step {step + 1} is {value}; rows of that step: {listed}; look at these rows, or lower the learning rate"
    )
