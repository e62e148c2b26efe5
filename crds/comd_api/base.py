"""What every type of the contract is made of: strict, frozen, camelCase on the wire, with its CEL rules beside it."""

from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class Rule(NamedTuple):
    """One validation rule in CEL, evaluated by the API server (`x-kubernetes-validations`) and offline by
    `comd validate`. A rule that mentions `oldSelf` is a transition rule: it is asked on updates only."""

    rule: str
    message: str


class ApiModel(BaseModel):
    """Base of every type on the wire.

    Strict, so that `"3"` is not taken for `3` here and refused by the API server there; unknown fields are errors;
    frozen, so that a decision can't change what it was given.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,  # JSON has neither, and the API server would refuse them.
        frozen=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    def to_wire(self) -> dict[str, Any]:
        """The JSON object as Kubernetes would hold it: camelCase, without fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields (Python names) changed."""
        unknown = changes.keys() - type(self).model_fields.keys()
        assert not unknown, f"{type(self).__name__} has no fields {sorted(unknown)}"
        return self.model_copy(update=changes)


NAME_FORM = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SOURCE_FORM = r"^((s3|hf)://[A-Za-z0-9].*|file:///.*|[A-Za-z0-9_][^:]*)$"
STORE_FORM = r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?|file:///.*)$"
URL_FORM = r"^https?://[^\s@]+$"
REGION_FORM = r"^[a-z0-9-]+$"
KMS_KEY_FORM = r"^[A-Za-z0-9][A-Za-z0-9:/_.-]*$"
FORMS = {
    NAME_FORM: "lower-case letters, digits and -, with a letter or digit at both ends",
    SOURCE_FORM: "s3://bucket/path, file:///absolute/path, hf://owner/name[@revision], or a path below spec.storage.uri",
    STORE_FORM: "s3://bucket/prefix or file:///absolute/folder, the bucket with 3 to 63 lower-case letters, digits, '-' and '.'",
    URL_FORM: "http://host:port/path or https://host/path, without user and password",
    REGION_FORM: "lower-case letters, digits and -",
    KMS_KEY_FORM: "a key's id, alias/name, or its ARN",
}
"""What a pattern asks for, in words, for error messages."""

# The API server charges a CEL rule for the largest value it could meet, so every string and list has a bound.
Name = Annotated[str, StringConstraints(pattern=NAME_FORM, max_length=63)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=16384)]
Source = Annotated[
    str,
    StringConstraints(
        pattern=SOURCE_FORM,
        min_length=1,
        max_length=1024,
    ),
]
"""Where something is read from: `s3://bucket/key`, `file:///absolute/path`, `hf://owner/name[@revision]`, or a path
relative to `spec.storage.uri`, so that one manifest serves a laptop's folder and a cluster's bucket."""

StoreUri = Annotated[str, StringConstraints(pattern=STORE_FORM, max_length=1024)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"}, max_length=64)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""Of things. The bound is what every reader of JSON keeps exactly; the API server refuses what has more than 64 bits."""
