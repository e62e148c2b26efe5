"""What a model lets us do to make it faster, found by trying it on the run's own rows: not looked up, for models differ by release."""

from typing import Any

import torch
from torch import Tensor

from comd_api.exit_codes import UserError
from comd_trainer.engine.batches import pack
from comd_trainer.engine.loss import plain_loss
from comd_trainer.models.load import LoadedModel
from comd_trainer.models.prompts import Encoded, to_device

MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""Of a packed row's loss against the row's alone, as a share: sums in another order. What matters more is asked exactly: see below."""


def check_packing(loaded: LoadedModel, first: Encoded, second: Encoded) -> None:
    """Makes sure that rows in one sequence don't know of each other: the second's loss is the one that it has alone, and its gradient
    with respect to the first's embeddings is exactly zero.

    Raises:
        UserError: the model mixes packed rows up, as those do whose positions or masks are made from the whole input.
    """
    model: Any = loaded.model
    device, dtype = loaded.device, model.dtype
    alone, together = (
        to_device(rows, device=device, dtype=dtype)
        for rows in (second, pack([_unsupervised(first), second], pad_token_id=loaded.pad_token_id))
    )
    seen: list[Tensor] = []

    def watch(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    problem = None
    with torch.no_grad():
        expected = float(plain_loss(model, alone))
    hook = model.get_input_embeddings().register_forward_hook(watch)
    try:
        loss = plain_loss(model, together)
        (gradient,) = torch.autograd.grad(loss, seen[:1])
        if bool(gradient[:, : first["input_ids"].shape[1]].any()):
            problem = "a row sees the one before it"
        elif abs(float(loss) - expected) > MAX_ERROR[dtype] * abs(expected):
            problem = f"a row's loss is {float(loss):.4f}, and {expected:.4f} alone"
    except (ValueError, RuntimeError, IndexError) as error:
        problem = str(error).splitlines()[0]
    finally:
        hook.remove()
    if problem is not None:
        raise UserError(
            f"spec.training.packing is set, and {type(model).__name__} can't be trained on packed rows ({problem}); leave it out: "
            "rows of similar length go together anyway"
        )


def _unsupervised(row: Encoded) -> Encoded:
    return {**row, "labels": torch.full_like(row["labels"], -100)}
