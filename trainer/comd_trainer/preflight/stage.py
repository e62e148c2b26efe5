"""The stage `preflight`: what can be known before a model is loaded or a GPU is asked for, within a minute.

Bucket and rights, models and tokenizers, data and images, memory against the GPUs asked for, overlap with evaluation sets. Of models no
weights are fetched, of images a few. Its artifact carries the fingerprints that all later keys are made from and the commits that
`hf://` sources stand for, so that what changes under a running run does not silently change what the run is about.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from comd_api.exit_codes import UserError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.generation.endpoint import read_key
from comd_trainer.keys import phase_key, phase_prefix
from comd_trainer.preflight import fit, overlap
from comd_trainer.preflight.folders import look_at_model
from comd_trainer.preflight.images import look_at_sample
from comd_trainer.preflight.named import (
    BANK_FIELD,
    IMAGES_FIELD,
    SEED_FIELD,
    NamedSource,
    answering_models,
    find_revisions,
    named_sources,
    pinned,
)
from comd_trainer.preflight.rows import check_known_answers, check_numbers, read_data
from comd_trainer.preflight.summary import summarise
from comd_trainer.preflight.weights import Weights
from comd_trainer.store.artifacts import Artifact, open_artifact, publish
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.listing import Listing
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import Store

log = logging.getLogger(__name__)

MODELS_AT_ONCE = 4


def check(config: StageConfig, *, store: Store, sources: Sources, cache: Path, scratch: Path) -> Artifact:
    """Checks everything and publishes the artifact `preflight`, whose `meta` has what was found and a `summary` of it.

    Raises:
        UserError: a right or a source is missing, a model can't be used or does not fit, or the numbers ask for more than there is.
        BadDataError: a file's rows or images can't be used.
        TryAgainError: the store or the hub is unreachable.
    """
    store.probe(f"{config.namespace}/{config.run}/preflight")
    fit.check_gpu_counts(config.spec.trainer)
    for field, model in answering_models(config.spec):
        if model.endpoint is not None:
            read_key(model.endpoint, field=f"{field}.endpoint")
    revisions = find_revisions(config.spec)
    spec = pinned(config.spec, {"revisions": revisions})
    weights, listings = look_at_models(spec, sources)
    rows, images = read_data(
        spec, sources, lambda marks: sources.listing(spec.data.images, field=IMAGES_FIELD, marks=marks)
    )
    listings[spec.data.images] = images
    for field in (SEED_FIELD, BANK_FIELD):
        check_known_answers(spec, rows.items.get(field, ()), field=field)
    sample = scratch / "preflight" / "images"
    seen = look_at_sample(spec, rows.images(), images, scratch=sample)
    shutil.rmtree(sample, ignore_errors=True)
    shared = overlap.find_overlap(spec, rows, images)
    left = {field: len(items) - (shared[field].rows if field in shared else 0) for field, items in rows.items.items()}
    check_numbers(spec, bank_rows=left.get(BANK_FIELD), seed_rows=left[SEED_FIELD])
    needs = fit.needs(spec, weights, on_gpu=spec.trainer.gpu_memory is not None or fit.asks_for_gpus(spec.trainer))
    fit.check_memory(spec, needs)
    report: dict[str, Any] = {
        "rows": rows.counts,
        "badRows": rows.bad,
        "missingImages": rows.missing,
        "evaluationOverlap": overlap.report(shared),
        "memory": fit.report(needs),
        "revisions": revisions,
        "fingerprints": _with_written(
            take_fingerprints(list(named_sources(spec)), sources, listings), written=config.spec, read=spec
        ),
    }
    summary = summarise(spec, rows=rows, images=seen, overlap=shared, found=needs)
    log.info("%s", summary)
    key = phase_key(phase="preflight", recipe={"spec": _lasting(config), **report}, inputs={})
    prefix = phase_prefix(config, "preflight", key)
    found = open_artifact(store, prefix, cache_dir=cache)
    if found is not None:
        return found
    out = scratch / "preflight" / "out"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
    meta = report | {"summary": summary}
    return publish(store, prefix=prefix, kind="preflight", key=key, folder=out, meta=meta, cache_dir=cache)


def look_at_models(spec: RunSpec, sources: Sources) -> tuple[dict[str, Weights], dict[str, Listing]]:
    """Looks through all model folders, several at a time: their weights by field, and what was listed by source. The first error in
    the manifest's order is raised."""
    models = [one for one in named_sources(spec) if one.is_model]
    composed = spec.student.composed
    template_given = composed is not None and composed.language_model.chat_template is not None

    def look(one: NamedSource) -> tuple[Weights, Listing]:
        listing = sources.listing(one.source, field=one.field)
        given = one.kind == "language-model" and template_given
        return look_at_model(one, listing, template_given=given), listing

    found = dict(zip(models, in_parallel(look, models, threads=MODELS_AT_ONCE), strict=True))
    return (
        {one.field: weights for one, (weights, _) in found.items()},
        {one.source: listing for one, (_, listing) in found.items()},
    )


def take_fingerprints(
    wanted: Sequence[NamedSource], sources: Sources, listings: Mapping[str, Listing] | None = None
) -> dict[str, str]:
    """Content digest by source, several at a time. `listings` of folders that were listed already."""
    listed = listings or {}
    by_source = {one.source: one.field for one in wanted}

    def take(source: str) -> str:
        if source in listed:
            return listed[source].fingerprint()
        return sources.fingerprint(source, field=by_source[source])

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(by_source, pool.map(take, by_source), strict=True))


def check_unchanged(spec: RunSpec, fingerprints: Mapping[str, str], sources: Sources) -> None:
    """Refuses a stage whose files of rows are not those that `preflight` saw: what is made of others would get the keys of these.
    Folders (images, models) are not hashed again for every stage, and a file on the hub can't change: it is pinned.

    Raises:
        UserError: a file was changed since.
    """
    for one in named_sources(spec):
        if one.kind != "file" or one.source.startswith("hf://"):
            continue
        if sources.fingerprint(one.source, field=one.field) != fingerprints[one.source]:
            raise UserError(
                f"{one.field} ({one.source}) was changed after the stage preflight had looked at it; "
                "put it back, or start a new run under another name"
            )


def _with_written(fingerprints: dict[str, str], *, written: RunSpec, read: RunSpec) -> dict[str, str]:
    """The fingerprints under the names that the manifest has for pinned sources as well."""
    names = zip(named_sources(written), named_sources(read), strict=True)
    return fingerprints | {one.source: fingerprints[other.source] for one, other in names}


def _lasting(config: StageConfig) -> Mapping[str, object]:
    """The part of the spec that says what the run is about."""
    wire = config.spec.to_wire()
    for name in RunSpec.MUTABLE:
        wire.pop(RunSpec.model_fields[name].alias or name, None)
    return wire
