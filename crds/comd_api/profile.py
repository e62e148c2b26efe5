"""Fields that are not set take their value from `rounds.profile` and the role (method section 12)."""

from comd_api.recipe import Decoding
from comd_api.run import RunSpec

PROFILES = {
    "default": {"teacher_floor": 7.0, "replay_fraction": 0.25, "scope": "Image", "temperature": 0.2},
    "lion": {"teacher_floor": 1.0, "replay_fraction": 0.0, "scope": "Pool", "temperature": 0.7},
}
"""Rows 12, 17, 24 and 26 of method section 12: what we recommend, and what is closest to Lion."""


def resolve(spec: RunSpec) -> RunSpec:
    """The spec with every field set that its profile decides. Fields that are set stay as they are, so resolving twice changes nothing."""
    profile = PROFILES[spec.rounds.profile]
    rounds = spec.rounds
    rounds = rounds.replace(
        teacher_floor=_first(rounds.teacher_floor, profile["teacher_floor"]),
        replay_fraction=_first(rounds.replay_fraction, profile["replay_fraction"]),
        deduplication=rounds.deduplication.replace(scope=_first(rounds.deduplication.scope, profile["scope"])),
    )
    generation = spec.generation
    answering = profile["temperature"]
    generation = generation.replace(
        teacher=_decoding(generation.teacher, temperature=answering, max_new_tokens=1024),
        student=_decoding(generation.student, temperature=answering, max_new_tokens=1024),
        assessor=_decoding(generation.assessor, temperature=0.2, max_new_tokens=512),
        augmentor=_decoding(generation.augmentor, temperature=1.0, max_new_tokens=256),
        evaluation=_decoding(generation.evaluation, temperature=0.0, max_new_tokens=1024),
    )
    return spec.replace(rounds=rounds, generation=generation)


def _first(value: object, default: object) -> object:
    return default if value is None else value


def _decoding(decoding: Decoding, *, temperature: object, max_new_tokens: int) -> Decoding:
    return decoding.replace(
        temperature=_first(decoding.temperature, temperature),
        max_new_tokens=_first(decoding.max_new_tokens, max_new_tokens),
    )
