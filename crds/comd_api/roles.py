"""The four model roles of the method: student, teacher, assessor, augmentor (method section 1)."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from comd_api.base import URL_FORM, ApiModel, Fraction, LongText, Name, Rule, Source, Text


class Checkpoint(ApiModel):
    """A model in Hugging Face layout: config, safetensors, tokenizer or processor."""

    source: Source
    """Folder with the checkpoint: `s3://`, `file://`, `hf://owner/name[@revision]` or relative to `spec.storage.uri`."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint ships. Off: such a checkpoint is refused."""


class SecretKeyRef(ApiModel):
    """One key of a Secret in the run's namespace. `comd run` reads it from the environment instead: `COMD_SECRET_<NAME>_<KEY>`,
    upper case, `-` and `.` as `_`."""

    name: Name
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]


class Endpoint(ApiModel):
    """An OpenAI-compatible chat completions service (vLLM, SGLang, or any other)."""

    url: Annotated[str, StringConstraints(pattern=URL_FORM, max_length=1024)]
    """Base URL up to and including the version, such as `http://vllm.models:8000/v1`. No `user:password@`: it would be told in messages."""
    model: Text
    """Name of the model as the service knows it."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Where the key is kept; left out for a service that asks for none."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests under way at once, over all ranks together."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    """How long one request may take."""


EXACTLY_ONE_MODEL = Rule(
    "has(self.checkpoint) != has(self.endpoint)",
    "set exactly one of checkpoint and endpoint",
)


class Model(ApiModel):
    """A model that only answers: a checkpoint that the trainer loads, or an endpoint that it asks."""

    checkpoint: Checkpoint | None = None
    endpoint: Endpoint | None = None

    rules = (EXACTLY_ONE_MODEL,)


class Projector(ApiModel):
    """What maps image features into the language model's embedding space. Its weights start at random."""

    type: Literal["Linear", "MLP"] = "Linear"
    """`Linear`: one matrix, as LLaVA v1 and the paper's ancestors. `MLP`: two layers with GELU, as LLaVA 1.5."""


class VisionTower(ApiModel):
    source: Source
    """Folder with a CLIP or SigLIP vision model and its image processor."""
    feature_layer: Annotated[int, Field(ge=-64, le=64)] = -2
    """Hidden layer whose features are used, counted from the end when negative (method section 12, row 1)."""
    features: Literal["Patch", "Full"] = "Patch"
    """`Patch` drops the class token; `Full` keeps every token."""


class LanguageModel(ApiModel):
    source: Source
    """Folder with a causal language model and its tokenizer."""
    chat_template: LongText | None = None
    """Jinja chat template, for a tokenizer that has none."""


class ComposedStudent(ApiModel):
    """A student put together the LLaVA way: vision tower, projector, language model."""

    vision_tower: VisionTower
    projector: Projector
    language_model: LanguageModel


class Student(ApiModel):
    """The model that learns. Composed of parts, or an existing image-text-to-text checkpoint; never an endpoint."""

    composed: ComposedStudent | None = None
    checkpoint: Checkpoint | None = None

    rules = (
        Rule(
            "has(self.composed) != has(self.checkpoint)",
            "set exactly one of composed and checkpoint",
        ),
    )


class JudgeOptions(ApiModel):
    """A prompted assessor: both answers in both orders, one score from 1 to 10 each (method section 12, rows 13-16)."""

    evidence: Literal["Auto", "Image", "Annotations"] = "Auto"
    """What the judge sees of the image. `Auto`: the annotations of images that have some, else the image itself."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """How often a reply that does not parse is asked for before the item is dropped and counted."""
    max_drop_fraction: Fraction = 0.05
    """Largest share of assessed items that may be dropped before the round fails."""


class Assessor(ApiModel):
    """Scores teacher and student on the scale 1 to 10. Items whose two answers are equal have gap 0 and are not asked about."""

    type: Literal["Judge", "Likelihood", "Reference"] = "Judge"
    """`Judge`: a prompted model. `Likelihood`: `1 + 9 * exp(mean log-probability)` of each answer under a model.
    `Reference`: 10 for an answer equal to the item's known answer, else 1."""
    model: Model | None = None
    """The model that judges; the teacher when left out. Never the student."""
    judge: JudgeOptions = Field(default_factory=JudgeOptions)

    rules = (
        Rule(
            "self.type != 'Likelihood' || !has(self.model) || has(self.model.checkpoint)",
            "type Likelihood needs log-probabilities, which only model.checkpoint gives; use type Judge with an endpoint",
        ),
        Rule(
            "self.type != 'Reference' || !has(self.model)",
            "type Reference compares with known answers and takes no model",
        ),
    )


class ChatOptions(ApiModel):
    """A prompted augmentor: one seed instruction in, one new instruction out (method section 12, rows 19-25)."""

    image: Literal["Same", "Overlapping"] = "Same"
    """`Same`: the new instruction is about the seed's image. `Overlapping`: about another image of the pool whose annotated objects
    overlap the most."""
    max_attempts_factor: Annotated[float, Field(ge=1.0, le=100.0)] = 3.0
    """The phase gives up after this many times the wanted number of candidates, rather than looping for ever."""
    check_answerable: bool = False
    """Ask the assessor's model whether the image supports the question, and drop the candidate when it says no."""


class Augmentor(ApiModel):
    """Makes the next round's new instructions.

    `Chat` and `Retrieval` are the method's. `Random` and `Repeat` are its controls: they compare nothing, so the phases
    `answer` and `assess` are left out.
    """

    type: Literal["Chat", "Retrieval", "Random", "Repeat"] = "Chat"
    """`Chat`: a prompted model writes them. `Retrieval`: the most similar, not yet used instructions of `data.bank`.
    `Random`: any not yet used instructions of `data.bank`, as many as the competition would pay teacher answers for.
    `Repeat`: none, the train pool stays as it is."""
    model: Model | None = None
    """The model that writes (`Chat` only); the teacher when left out. Never the student."""
    chat: ChatOptions = Field(default_factory=ChatOptions)

    rules = (
        Rule(
            "self.type == 'Chat' || !has(self.model)",
            "model is asked by type Chat only; remove it",
        ),
    )
