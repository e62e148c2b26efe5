"""Runs the phases of a stage in order, and outlives them: signals, `/metrics`, progress and the termination message are its own."""

import json
import logging
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from comd_api.exit_codes import ComdError, ExitCode, UserError
from comd_api.profile import resolve
from comd_api.stage import StageConfig, StageResult
from comd_api.stages import phases_of
from comd_api.status import ArtifactRef, Counts, ExitClass, PhaseName, PhaseTime, Score
from comd_trainer import launcher
from comd_trainer.context import PreemptedError
from comd_trainer.keys import phase_key, phase_prefix, stage_artifact_name
from comd_trainer.logs import configure
from comd_trainer.phases import phase_module
from comd_trainer.preflight import check, check_unchanged
from comd_trainer.server import StatusServer
from comd_trainer.store.artifacts import Artifact, open_artifact, open_ref, publish
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import Store, open_store
from comd_trainer.worker import OUT_OF_MEMORY, PhaseJob, describe_error

log = logging.getLogger(__name__)


class Supervisor:
    """One stage (or, with `execution: Phase`, one of its phases) from config to termination message."""

    def __init__(
        self,
        *,
        config: StageConfig,
        scratch: Path,
        termination_message: Path,
        progress_file: Path | None = None,
        address: str = "0.0.0.0",
        port: int | None = None,
        grace_seconds: float = 25.0,
    ) -> None:
        self.config = config.replace(spec=resolve(config.spec))
        self.scratch = scratch / config.stage
        self.cache = scratch / "cache"
        self.termination_message = termination_message
        self.grace_seconds = grace_seconds
        self.stop = threading.Event()
        self.artifacts: dict[str, Artifact] = {}
        self.times: list[PhaseTime] = []
        self.current: PhaseName | None = None
        self.server = StatusServer(config=self.config, progress_file=progress_file, address=address, port=port)

    def run(self) -> ExitCode:
        """Runs the stage, writes the termination message, and returns the exit code that goes with it."""
        configure(run=self.config.run, stage=self.config.stage, attempt=self.config.attempt)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self.server.start()
            self._run_phases()
            code, result = ExitCode.DONE, self._result("Done")
        except Exception as error:
            code, message = describe_error(error)
            if code == ExitCode.FAILED and not isinstance(error, ComdError):
                log.exception("the stage failed")
            else:
                log.error("%s", message)
            result = self._result(exit_class_of(code, error), message=message)
        finally:
            self.server.close()
        self._write_termination_message(result)
        return code

    def _run_phases(self) -> None:
        storage = self.config.spec.storage
        if storage is None:
            raise UserError("spec.storage is not set: give storage.uri, as s3://bucket/prefix or file:///folder")
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        if self.config.phases != ["preflight"]:
            launcher.warm_up()
        store = open_store(storage.uri, storage.s3)
        sources = Sources(storage, store, self.cache)
        for ref in self.config.inputs:
            self.artifacts[ref.name] = open_ref(ref, store=store, cache_dir=self.cache)
        if "preflight" in self.artifacts:
            check_unchanged(self.config.spec, self.artifacts["preflight"].meta["fingerprints"], sources)
        phases = phases_of(self.config.spec, self.config.stage)
        for phase in phases[: phases.index(self.config.phases[-1]) + 1]:
            if self.stop.is_set():
                raise PreemptedError("stopped by request between two phases")
            self._run_phase(phase, store=store, sources=sources)

    def _run_phase(self, phase: PhaseName, *, store: Store, sources: Sources) -> None:
        started = time.monotonic()
        self.current = phase
        self.server.begin(phase, self.times)
        if phase == "preflight":
            artifact = check(self.config, store=store, sources=sources, cache=self.cache, scratch=self.scratch)
            reused = False
        else:
            artifact, reused = self._find_or_run(phase, store=store)
        self.artifacts[phase] = artifact
        self.times.append(PhaseTime(name=phase, seconds=round(time.monotonic() - started, 2), reused=reused))
        log.info(
            "%s %s in %.1f s: %s",
            phase,
            "was there already, found" if reused else "finished",
            time.monotonic() - started,
            artifact.uri,
        )

    def _find_or_run(self, phase: PhaseName, *, store: Store) -> tuple[Artifact, bool]:
        module = phase_module(phase)
        preflight = self.artifacts.get("preflight")
        if preflight is None:
            raise UserError(f"stage {self.config.stage} has no artifact of the stage preflight among its inputs")
        fingerprints: dict[str, str] = preflight.meta["fingerprints"]
        inputs = {name: self.artifacts[name] for name in module.INPUTS if name in self.artifacts}
        recipe = module.recipe(self.config, fingerprints)
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        key = phase_key(phase=phase, recipe=recipe, inputs=digests)
        prefix = phase_prefix(self.config, phase, key)
        found = open_artifact(store, prefix, cache_dir=self.cache)
        if found is not None:
            return found, True
        if phase not in self.config.phases:
            raise UserError(
                f"phase {phase} of stage {self.config.stage} has not been run yet, and this Job is for {self.config.phases} alone"
            )
        folder = self.scratch / f"{phase}-{key[:16]}"
        # What an attempt that was killed left half done; its checkpoints and shards are in the store.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.server.watch(folder / "progress.json")
        job = PhaseJob(
            config=json.dumps(self.config.to_wire()),
            phase=phase,
            key=key,
            artifacts={name: artifact.ref(name).to_wire() for name, artifact in inputs.items()},
            fingerprints=fingerprints,
            folder=str(folder),
            cache=str(self.cache),
            partial=f"{prefix}/partial",
        )
        num_proc = self.config.spec.trainer.num_proc_per_node
        launcher.launch(job, num_proc=num_proc, stop=self.stop, grace_seconds=self.grace_seconds)
        meta_file = folder / "scratch" / "meta.json"
        meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
        # What the key was made from: seeds, decoding, models, pools (method section 12, row 30).
        meta |= {"recipe": recipe, "inputs": digests}
        artifact = publish(
            store, prefix=prefix, kind=phase, key=key, folder=folder / "out", meta=meta, cache_dir=self.cache
        )
        for leftover in list(store.list(job.partial)):
            store.delete(leftover.path)
        shutil.rmtree(folder, ignore_errors=True)
        return artifact, False

    def _result(self, exit_class: ExitClass, *, message: str = "") -> StageResult:
        refs: dict[str, ArtifactRef] = {}
        counts = Counts()
        scores: list[Score] = []
        stop = None
        for phase in phases_of(self.config.spec, self.config.stage):
            artifact = self.artifacts.get(phase)
            if artifact is None:
                continue
            name = stage_artifact_name(phase)
            if name is not None:
                refs[name] = artifact.ref(name)
            meta = artifact.meta
            counts = counts.replace(
                **Counts.model_validate(meta.get("counts", {})).model_dump(by_alias=False, exclude_none=True)
            )
            scores += [Score.model_validate(score) for score in meta.get("scores", [])]
            stop = meta.get("stop") or stop
        failed = exit_class != "Done"
        return StageResult(
            exit_class=exit_class,
            message=message[:1024],
            failed_phase=self.current if failed else None,
            stop=None if failed else stop,
            artifacts=list(refs.values()),
            phases=self.times,
            counts=counts if counts != Counts() else None,
            scores=scores,
        )

    def _write_termination_message(self, result: StageResult) -> None:
        text = result.to_termination_message()
        try:
            self.termination_message.parent.mkdir(parents=True, exist_ok=True)
            self.termination_message.write_text(text, encoding="utf-8")
        except OSError as error:
            log.error("the termination message could not be written to %s: %s", self.termination_message, error)
        log.info("result: %s", text)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        log.warning("got %s: asking phase %s to save and stop", signal.Signals(number).name, self.current)
        self.stop.set()


def exit_class_of(code: ExitCode, error: BaseException) -> ExitClass:
    """What the operator calls an end with this code."""
    if isinstance(error, (launcher.KilledError, MemoryError)) or str(error).startswith(OUT_OF_MEMORY):
        return "OutOfMemory"
    classes: dict[ExitCode, ExitClass] = {
        ExitCode.DONE: "Done",
        ExitCode.USER_ERROR: "UserError",
        ExitCode.BAD_DATA: "BadData",
        ExitCode.TRY_AGAIN: "TryAgain",
        ExitCode.FAILED: "Failed",
    }
    return classes[code]
