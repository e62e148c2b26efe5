"""The stage `preflight`: what can be known before a model is loaded or a GPU is asked for, within a minute.

Bucket and rights, models and tokenizers, data and images, memory against the GPUs asked for, overlap with evaluation sets. Of models no
weights are fetched, of images a few. Its artifact carries the fingerprints that all later keys are made from and the commits that
`hf://` sources stand for, so that what changes under a running run does not silently change what the run is about.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from comd_api.exit_codes import UserError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.keys import phase_key, phase_prefix
from comd_trainer.outcome import facts_of
from comd_trainer.preflight import fit, overlap
from comd_trainer.preflight.examine import Examination, listings_by_source
from comd_trainer.preflight.named import NamedSource, named_sources
from comd_trainer.preflight.start import find_unchanged
from comd_trainer.preflight.summary import summarise
from comd_trainer.store.artifacts import Artifact, open_artifact, publish
from comd_trainer.store.listing import Listing
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import Store

log = logging.getLogger(__name__)


def check(config: StageConfig, *, store: Store, sources: Sources, cache: Path, scratch: Path) -> Artifact:
    """Checks everything and publishes the artifact `preflight`, whose `meta` has what was found and a `summary` of it. What fails is
    raised when all was looked at that could be, several problems as one error of the worst kind.

    Raises:
        UserError: a right or a source is missing, a model can't be used or does not fit, or the numbers ask for more than there is.
        BadDataError: a file's rows or images can't be used.
        TryAgainError: the store or the hub is unreachable.
    """
    seen = Examination(config, store=store, sources=sources, work=scratch / "preflight", scratch_folder=scratch.parent)
    seen.look()
    if seen.checks.errors:
        seen.weigh()  # All that is wrong is told at once.
    seen.checks.raise_any()
    fingerprints = take_fingerprints(list(named_sources(seen.spec)), sources, listings_by_source(seen.listings))
    written = _with_written(fingerprints, written=config.spec, read=seen.spec)
    facts = facts_of(config.replace(spec=seen.spec), fingerprints=written, written=config.spec)
    unchanged = find_unchanged(config, facts.content, store=store, cache_dir=cache)
    if unchanged is None:
        seen.weigh()
        seen.checks.raise_any()
    report: dict[str, Any] = {
        "facts": facts.to_wire(),
        "start": seen.start.report() if seen.start is not None else {},
        "rows": seen.rows.counts,
        "badRows": seen.rows.bad,
        "missingImages": seen.rows.missing,
        "evaluationOverlap": overlap.report(seen.shared),
        "memory": fit.report(seen.needs),
        "revisions": seen.revisions,
        "fingerprints": written,
    }
    if unchanged is not None:
        since = config.spec.skip_if_unchanged_since
        report["unchanged"] = unchanged.outcome.to_wire()
        report["stop"] = f"neither data nor recipe have changed since run {since}, whose student this is"
    summary = summarise(
        seen.spec,
        rows=seen.rows,
        images=seen.images,
        overlap=seen.shared,
        found=seen.needs,
        cautions=seen.checks.cautions(but=["images"]),
        start=seen.checks.told("start"),
    )
    log.info("%s", summary)
    key = phase_key(phase="preflight", recipe={"spec": _lasting(config), **report}, inputs={})
    artifact = _published(config, report, summary, key=key, store=store, cache=cache, out=scratch / "preflight" / "out")
    # What is said of this machine's clock and disk is as it is now, also when the artifact was there before.
    return replace(artifact, manifest=artifact.manifest.replace(meta=artifact.meta | {"summary": summary}))


def _published(
    config: StageConfig, report: dict[str, Any], summary: str, *, key: str, store: Store, cache: Path, out: Path
) -> Artifact:
    prefix = phase_prefix(config, "preflight", key)
    found = open_artifact(store, prefix, cache_dir=cache)
    if found is not None:
        return found
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
    meta = report | {"summary": summary}
    return publish(store, prefix=prefix, kind="preflight", key=key, folder=out, meta=meta, cache_dir=cache)


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


def changed_sources(spec: RunSpec, fingerprints: Mapping[str, str], sources: Sources) -> list[str]:
    """Files and folders that are not any more what `preflight` saw, each after its field. What the hub has is pinned."""
    here = [one for one in named_sources(spec) if not one.source.startswith("hf://")]
    now = take_fingerprints(here, sources)
    return [f"{one.field} ({one.source})" for one in here if now[one.source] != fingerprints[one.source]]


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
