"""What a run reads: pre-training pairs, seed instructions, bank, images, evaluation sets.

Rows are JSON Lines. Instruction rows: `id`, `image` (path below `data.images`), `instruction`, and optionally `answer` (the known
answer) and `group` (what scores are broken down by). LLaVA's `conversations` are taken as well; several turns become one
item per turn (method section 12, row 4). Pre-training rows: `id`, `image`, `caption`. Annotation rows: `image`, `captions`, `boxes`.
"""

from typing import Annotated, Literal

from pydantic import Field

from comd_api.base import ApiModel, Fraction, Name, Rule, Source


class SeedData(ApiModel):
    instructions: Source
    """The instructions that round 1 starts from: its train pool and its cache pool."""
    targets: Literal["Teacher", "Original"] = "Teacher"
    """Whose answers the student imitates in round 1: the teacher's, or the rows' own (method section 12, row 5)."""


class EvaluationSet(ApiModel):
    """Held-out questions with known answers. Their images and instructions are kept out of every pool."""

    name: Name
    items: Source
    metric: Literal["ExactMatch", "MultipleChoice", "ChoiceLikelihood"] = "ExactMatch"
    """`ExactMatch`: the whole answer, case and white space aside. `MultipleChoice`: ScienceQA's reading of a generated letter
    (method section 8.1). `ChoiceLikelihood`: the option with the highest mean log-probability, as SEED-Bench (section 8.2);
    the last two need a row's `choices`, and its `answer` is the letter."""


class Data(ApiModel):
    images: Source
    """Folder that the rows' `image` paths start from."""
    seed: SeedData
    pretraining: Source | None = None
    """Image and caption pairs for the stage `pretrain`."""
    bank: Source | None = None
    """Unlabelled instructions: what the augmentors `Retrieval` and `Random` and `rounds.assessment.freshItems` draw from."""
    annotations: Source | None = None
    """Captions and object boxes of images, for a judge that can't see and for `augmentor.chat.image: Overlapping`."""
    evaluation: Annotated[list[EvaluationSet], Field(max_length=8)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    max_bad_row_fraction: Fraction = 0.05
    """Rows that can't be used (an image that does not decode, an empty instruction) are dropped, named and counted; a larger
    share than this fails the phase."""

    rules = (
        Rule(
            "self.evaluation.all(a, self.evaluation.filter(b, b.name == a.name).size() == 1)",
            "names in evaluation must differ",
        ),
    )
