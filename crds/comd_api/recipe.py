"""How a run learns: pre-training, rounds, training numbers, decoding. Defaults are those of method section 12."""

from typing import Annotated, Literal

from pydantic import Field

from comd_api.base import ApiModel, Fraction, Name, Rule, Text

Component = Literal["VisionTower", "Projector", "LanguageModel"]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Epochs = Annotated[float, Field(gt=0.0, le=1000.0)]
Components = Annotated[
    list[Component], Field(min_length=1, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"})
]


def _projector() -> list[Component]:
    return ["Projector"]


def _projector_and_language_model() -> list[Component]:
    return ["Projector", "LanguageModel"]


class Pretraining(ApiModel):
    """Stage 1: the projector learns to speak the language model's embeddings (method section 3)."""

    learning_rate: LearningRate = 2e-3
    batch_size: BatchSize = 128
    """Rows per optimizer step, over all ranks."""
    epochs: Epochs = 1.0
    max_steps: Steps | None = None
    """Optimizer steps, in place of `epochs`."""
    trainable: Components = Field(default_factory=_projector)
    instructions: Annotated[list[Text], Field(max_length=64)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Questions that captions answer, one drawn for each pair. Empty: image, then caption, and no question (LLaVA's "plain")."""


class FirstRound(ApiModel):
    """What differs in round 1, whose train pool is the whole seed (method section 12, row 8). Unset fields are those of `training`."""

    learning_rate: LearningRate | None = None
    batch_size: BatchSize | None = 128
    epochs: Epochs | None = None
    max_steps: Steps | None = None


class DeepSpeed(ApiModel):
    """The part of DeepSpeed's configuration that is a choice; the rest is derived from it."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """What the ranks share: nothing (0), optimizer state (1), gradients too (2), parameters too (3)."""


class Packing(ApiModel):
    """Rows are joined end to end and attend to themselves alone, so that no padding is computed. Losses stay what they are."""

    max_tokens: Annotated[int, Field(ge=8, le=1_048_576)] = 4096
    """Tokens of one forward pass on one rank, image tokens included; `microBatchSize` is not looked at. Memory depends on it."""


class Training(ApiModel):
    """Numbers of every `tune` phase; precision, optimizer and sharding are those of `pretrain` as well."""

    learning_rate: LearningRate = 2e-5
    batch_size: BatchSize = 32
    """Rows per optimizer step, over all ranks."""
    micro_batch_size: BatchSize = 4
    """Rows per forward pass on one rank. Memory and speed depend on it, losses do not."""
    epochs: Epochs = 3.0
    max_steps: Steps | None = None
    """Optimizer steps, in place of `epochs`."""
    first_round: FirstRound = Field(default_factory=FirstRound)
    trainable: Components = Field(default_factory=_projector_and_language_model)
    scheduler: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    min_learning_rate_ratio: Fraction = 0.0
    """Where the schedule ends, as a share of the learning rate."""
    warmup_ratio: Fraction = 0.03
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    max_grad_norm: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """Tokens of one row, image tokens included. A longer row loses the end of its answer; one without room for an answer is dropped."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of the forward and backward pass. Master weights and optimizer state are fp32."""
    packing: Packing | None = None
    """Unset: rows of similar length are padded to the longest of their forward pass."""
    gradient_checkpointing: bool = False
    checkpoint_steps: Steps = 200
    """Steps between checkpoints; a retry loses no more than these."""
    deepspeed: DeepSpeed = Field(default_factory=DeepSpeed)

    rules = (
        Rule(
            "self.batchSize % self.microBatchSize == 0",
            "batchSize must be a multiple of microBatchSize",
        ),
        Rule(
            "!has(self.packing) || self.packing.maxTokens >= self.maxLength",
            "packing.maxTokens must be at least maxLength, so that every row has a place",
        ),
    )


class Assessment(ApiModel):
    sample_size: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Items of the cache pool that are compared in a round, drawn without replacement; the last round's new items are always
    among them (method section 12, row 11)."""
    fresh_items: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Items of `data.bank` that are compared besides. The student was never trained on them, so that they show what it does not
    know; their teacher answers are paid for, so they join the next train pool and the cache pool. The last round draws none."""


class Augmentation(ApiModel):
    hard_items: Annotated[int, Field(ge=0, le=10_000_000)] = 3000
    """New items made from hard ones."""
    easy_items: Annotated[int, Field(ge=0, le=10_000_000)] = 3000
    """New items made from easy ones, against forgetting; 0 for hard only."""
    seed_order: Literal["Cycle", "Gap"] = "Cycle"
    """Which hard item comes next: `Cycle` goes through all in shuffled order before one comes twice; `Gap` draws by the size of the gap."""
    easy_candidates: Annotated[int, Field(ge=1, le=1024)] = 8
    """`Retrieval` looks at this many unused bank items for an easy one and keeps the one whose instruction is rarest in the cache pool."""


class Deduplication(ApiModel):
    rouge_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    """A new instruction whose ROUGE-L F-measure with an older one is above this is dropped (`augmentor.type: Chat`)."""
    scope: Literal["Image", "Pool"] | None = None
    """What it is compared with: instructions on the same image, or all. By profile: `Image` (default), `Pool` (lion)."""
    max_repeats: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """How often the same instruction may stand in the pool over all images (`augmentor.type: Chat`)."""


class EarlyStop(ApiModel):
    """End before `rounds.count` when an evaluation no longer gains."""

    evaluation: Name
    """Name of an entry of `data.evaluation`."""
    patience: Annotated[int, Field(ge=1, le=100)] = 2
    """Rounds without a gain before the run ends."""
    min_gain: Fraction = 0.0
    """What counts as a gain, in accuracy."""


class Rounds(ApiModel):
    """Stage 2: the competition (method sections 4 to 7)."""

    profile: Literal["default", "lion"] = "default"
    """Which values the fields marked "by profile" have when they are not set: what we recommend, or closest to Lion."""
    count: Annotated[int, Field(ge=1, le=32)] = 4
    """Tuning phases, the seed's included (method section 12, row 27)."""
    threshold: Annotated[float, Field(gt=0.0, le=9.0)] = 1.0
    """An item is hard when teacher score minus student score is at least this. Scores run from 1 to 10, so a gap is at most 9."""
    teacher_floor: Annotated[float, Field(ge=1.0, le=10.0)] | None = None
    """A hard item needs a teacher score of at least this. By profile: 7 (default), 1 (lion: no floor)."""
    hard_items_floor: Annotated[int, Field(ge=0, le=10_000_000)] = 50
    """Fewer hard items than this are too few to go on with."""
    below_floor: Literal["Stop", "Fail"] = "Stop"
    """What happens then: the run ends well with the student it has, or fails. The threshold is never lowered in silence."""
    replay_fraction: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """Earlier train items kept in the next train pool, per new or fresh item. By profile: 0.25 (default), 0 (lion)."""
    assessment: Assessment = Field(default_factory=Assessment)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    deduplication: Deduplication = Field(default_factory=Deduplication)
    early_stop: EarlyStop | None = None


class Decoding(ApiModel):
    """How one role answers."""

    temperature: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """0 is greedy. Sampling draws from the run's seed and the item, so that it repeats."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] | None = None
    batch_size: BatchSize = 16
    """Prompts answered at once on one rank. Speed depends on it, answers do not."""


class Generation(ApiModel):
    """Decoding by role. Temperature and length, when not set: teacher and student 0.2 (lion 0.7) and 1024 tokens, assessor 0.2 and 512,
    augmentor 1.0 and 256, evaluation 0 and 1024 (method section 12, rows 12, 14, 22)."""

    teacher: Decoding = Field(default_factory=Decoding)
    student: Decoding = Field(default_factory=Decoding)
    assessor: Decoding = Field(default_factory=Decoding)
    augmentor: Decoding = Field(default_factory=Decoding)
    evaluation: Decoding = Field(default_factory=Decoding)
