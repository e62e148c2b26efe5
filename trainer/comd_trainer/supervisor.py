"""Runs the phases of a stage in order, and outlives them: signals, `/metrics`, progress and the termination message are its own."""

import json
import logging
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from comd_api.exit_codes import ComdError, ExitCode, UserError
from comd_api.profile import resolve
from comd_api.stage import StageConfig, StageResult
from comd_api.stages import needs_no_gpu, phases_of
from comd_api.status import Counts, ExitClass, PhaseName, PhaseTime
from comd_trainer import launcher, metrics, reuse
from comd_trainer.context import PreemptedError
from comd_trainer.handover import Found, leave, look_back
from comd_trainer.keys import phase_prefix
from comd_trainer.phases import phase_module
from comd_trainer.preflight import changed_sources, check, check_unchanged, pinned
from comd_trainer.promotion.stage import promote
from comd_trainer.server import StatusServer
from comd_trainer.store.artifacts import Artifact, CorruptArtifactError, open_artifact, open_ref, publish
from comd_trainer.store.errors import SCRATCH_FIELD, local_errors
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import Store, open_store
from comd_trainer.worker import PhaseJob, describe_error

if TYPE_CHECKING:
    from comd_trainer.nodes import Nodes

log = logging.getLogger(__name__)


def count_round(counts: Counts) -> None:
    """What a phase has found, whether it has run now or was there already."""
    for kind, number in counts.model_dump(by_alias=False, exclude_none=True).items():
        metrics.put(metrics.ROUND_ITEMS, number, kind=kind)


class Supervisor:
    """One stage (or, with `execution: Phase`, one of its phases) from config to termination message."""

    def __init__(
        self,
        *,
        config: StageConfig,
        scratch: Path,
        termination_message: Path,
        progress_file: Path | None = None,
        address: str = "::",
        port: int | None = None,
        grace_seconds: float = 25.0,
        node_rank: int = 0,
        rendezvous: str | None = None,
    ) -> None:
        """`node_rank` and `rendezvous` (`host:port` of node 0) count where `spec.trainer.numNodes` is above 1. Without a rendezvous this
        node is alone."""
        self.config = config.replace(spec=resolve(config.spec))
        self.scratch = scratch / config.stage
        self.cache = scratch / "cache"
        self.termination_message = termination_message
        self.grace_seconds = grace_seconds
        self.stop = threading.Event()
        self.artifacts: dict[str, Artifact] = {}
        self.times: list[PhaseTime] = []
        self.found = Found({}, [])
        """By `preflight`."""
        self.current: PhaseName | None = None
        self.node_rank, self.rendezvous = node_rank, rendezvous
        self.nodes: Nodes | None = None
        self.server = StatusServer(config=self.config, progress_file=progress_file, address=address, port=port)

    def run(self) -> ExitCode:
        """Runs the stage, writes the termination message, and returns the exit code that goes with it. Logs are configured and, but for
        `preflight`, the launcher is warm."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self.server.start()
            self._run_phases()
            code, result = ExitCode.DONE, self._result("Done")
        except Exception as own:
            error = own if self.nodes is None else self._settled(self.nodes, own)
            code, message = describe_error(error)
            if code == ExitCode.FAILED and not isinstance(error, ComdError):
                log.error("the stage failed", exc_info=error)
            else:
                log.error("%s", message)
            result = self._result(launcher.exit_class_of(code, error), message=message)
        finally:
            self.server.close()
            if self.nodes is not None:
                self.nodes.close()
        self._write_termination_message(result)
        return code

    def _run_phases(self) -> None:
        self._meet()
        storage = self.config.spec.storage
        if storage is None:
            raise UserError("spec.storage is not set: give storage.uri, as s3://bucket/prefix or file:///folder")
        for folder in (self.scratch, self.cache):
            with local_errors(folder, field=SCRATCH_FIELD):
                folder.mkdir(parents=True, exist_ok=True)
        store = open_store(storage.uri, storage.s3, check=self._raise_if_stopped)
        sources = Sources(storage, store, self.cache, self._raise_if_stopped)
        for ref in self.config.inputs:
            self.artifacts[ref.name] = open_ref(ref, store=store, cache_dir=self.cache)
        if "preflight" in self.artifacts:
            if not needs_no_gpu(self.config.stage):
                check_unchanged(self.config.spec, self.artifacts["preflight"].meta["fingerprints"], sources)
            self.config = self.config.replace(spec=pinned(self.config.spec, self.artifacts["preflight"].meta))
        if self.nodes is not None:
            self.nodes.wait_for_all()
        phases = phases_of(self.config.spec, self.config.stage)
        for phase in phases[: phases.index(self.config.phases[-1]) + 1]:
            if self.stop.is_set() and self.decides:
                raise PreemptedError("stopped by request between two phases")
            self._run_phase(phase, store=store, sources=sources)
        if self.decides:
            self._leave_outcome(store)
        if self.nodes is not None:
            self.nodes.finish()
        if self.decides and self._run_here():
            self._offer(store=store, sources=sources)

    def _raise_if_stopped(self) -> None:
        """While something is fetched."""
        if self.stop.is_set():
            raise PreemptedError("stopped by request while inputs were fetched")

    @property
    def decides(self) -> bool:
        """Whether this node says what is done; the others do as it says."""
        return self.nodes is None or self.nodes.is_first

    def _meet(self) -> None:
        """Begins to look for the other nodes, where there are any."""
        num_nodes = self.config.spec.trainer.num_nodes
        if num_nodes > 1 and self.rendezvous and not needs_no_gpu(self.config.stage):
            from comd_trainer.nodes import Nodes

            self.nodes = Nodes(rank=self.node_rank, num=num_nodes, rendezvous=self.rendezvous, stop=self.stop)
            self.nodes.start()

    def _settled(self, nodes: "Nodes", own: Exception) -> Exception:
        """What this node says of an end that may be another one's doing."""
        error = nodes.settle(own)
        if error is not own:
            log.warning("this node's own account: %s", describe_error(own)[1])
        return error

    def _run_phase(self, phase: PhaseName, *, store: Store, sources: Sources) -> None:
        started = time.monotonic()
        self.current = phase
        self.server.status.begin(phase, self.times)
        if phase == "preflight":
            artifact = check(self.config, store=store, sources=sources, cache=self.cache, scratch=self.scratch)
            reused = False
            self.found = look_back(self.config, artifact, store=store, cache_dir=self.cache)
        elif phase == "promote":
            artifact, reused = promote(
                self.config, student=self.artifacts["student"], store=store, cache=self.cache, scratch=self.scratch
            )
        else:
            artifact, reused = self._find_or_run(phase, store=store)
        self.artifacts[phase] = artifact
        if self.decides:
            count_round(reuse.account(self._made(), self.config).counts or Counts())
        self.times.append(PhaseTime(name=phase, seconds=round(time.monotonic() - started, 2), reused=reused))
        log.info(
            "%s %s in %.1f s: %s",
            phase,
            "was there already, found" if reused else "finished",
            time.monotonic() - started,
            artifact.uri,
        )

    def _leave_outcome(self, store: Store) -> None:
        preflight = self.artifacts["preflight"]
        given = {name: artifact for name, artifact in self.artifacts.items() if name in ("student", "pools")}
        leave(self.config, preflight, made=self._made(), given=given, store=store, cache_dir=self.cache)

    def _find_or_run(self, phase: PhaseName, *, store: Store) -> tuple[Artifact, bool]:
        module = phase_module(phase)
        preflight = self.artifacts.get("preflight")
        if preflight is None:
            raise UserError(f"stage {self.config.stage} has no artifact of the stage preflight among its inputs")
        fingerprints: dict[str, str] = preflight.meta["fingerprints"]
        inputs = {name: self.artifacts[name] for name in module.INPUTS if name in self.artifacts}
        key, made_from = reuse.key_of(self.config, phase, fingerprints=fingerprints, inputs=inputs)
        prefix = phase_prefix(self.config, phase, key)
        found = self._find(phase, key=key, store=store)
        if found is not None:
            return found, True
        folder = self.scratch / f"{phase}-{key[:16]}"
        # What an attempt that was killed left half done; its checkpoints and shards are in the store.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.server.status.watch(folder)
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
        try:
            launcher.launch(
                job, layout=self._layout(phase), stop=self.stop, grace_seconds=self.grace_seconds, peers=self.nodes
            )
        finally:
            self.server.status.settle()
        artifact = self._publish(phase, key=key, prefix=prefix, folder=folder, made_from=made_from, store=store)
        shutil.rmtree(folder, ignore_errors=True)
        return artifact, False

    def _find(self, phase: PhaseName, *, key: str, store: Store) -> Artifact | None:
        """The phase's artifact if there is one already, as the first node sees it: nodes that look for themselves, one a moment later
        than the other, could come to different answers."""
        if self.nodes is not None and not self.nodes.is_first:
            word = self.nodes.hear(phase)
            if word["key"] != key:
                raise UserError(
                    f"phase {phase} has another content key here than on node 0; give all nodes the same image and the same data"
                )
            return self._open_made(word["found"], store=store) if word["found"] else None
        earlier = phase not in self.config.phases
        found = reuse.find(self.config, phase, key=key, store=store, cache_dir=self.cache, noted_only=earlier)
        if found is None and earlier:
            lost = reuse.lost(self.config, phase, key=key, store=store)
            if lost is not None:
                raise CorruptArtifactError(
                    f"phase {phase} of stage {self.config.stage} was taken over from {lost}, which is gone or damaged; delete the run "
                    "and apply it again, so that it is made anew"
                )
            raise UserError(
                f"phase {phase} of stage {self.config.stage} has not been run yet, and this Job is for {self.config.phases} alone"
            )
        if self.nodes is not None:
            self.nodes.say(phase, {"key": key, "found": found.prefix if found is not None else None})
        return found

    def _publish(
        self, phase: PhaseName, *, key: str, prefix: str, folder: Path, made_from: dict[str, Any], store: Store
    ) -> Artifact:
        """Makes what rank 0 has left the phase's artifact. Rank 0 is the first node's; the others wait for it."""
        if self.nodes is not None and not self.nodes.is_first:
            self.nodes.hear(f"{phase}/published")
            return self._open_made(prefix, store=store)
        meta_file = folder / "scratch" / "meta.json"
        meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
        artifact = publish(
            store,
            prefix=prefix,
            kind=phase,
            key=key,
            folder=folder / "out",
            meta=meta | made_from,
            cache_dir=self.cache,
        )
        reuse.clear_partial(prefix, store=store)
        if self.nodes is not None:
            self.nodes.say(f"{phase}/published", True)
        return artifact

    def _offer(self, *, store: Store, sources: Sources) -> None:
        """Lets other runs find what this one has just made, unless it may have been made of something else than `preflight` saw: folders
        are looked at once more, which a stage's beginning spares. No stage fails for it, nor does any wait for it when it is to stop."""
        made = {phase: artifact for phase, artifact in self._made().items() if phase in self._run_here()}

        def offer() -> None:
            new = {
                phase: artifact
                for phase, artifact in made.items()
                if not reuse.is_offered(phase, key=artifact.manifest.key, store=store, cache_dir=self.cache)
            }
            if not new:
                return
            changed = changed_sources(self.config.spec, self.artifacts["preflight"].meta["fingerprints"], sources)
            if changed:
                log.warning(
                    "changed since preflight, so that no other run takes this stage over: %s", ", ".join(changed)
                )
                return
            for phase, artifact in new.items():
                reuse.offer(artifact, phase=phase, key=artifact.manifest.key, store=store)

        def try_to() -> None:
            try:
                offer()
            except (ComdError, OSError) as error:
                log.warning("other runs do not find what this stage has made: %s", error)

        thread = threading.Thread(target=try_to, name="offer", daemon=True)
        thread.start()
        while thread.is_alive() and not self.stop.is_set():
            thread.join(timeout=0.2)

    def _run_here(self) -> set[PhaseName]:
        """Phases that this Job has not found but run, and others could take over."""
        return {time.name for time in self.times if not time.reused and time.name not in ("preflight", "promote")}

    def _made(self) -> dict[PhaseName, Artifact]:
        """The stage's phases that are done, in order."""
        phases = phases_of(self.config.spec, self.config.stage)
        return {phase: self.artifacts[phase] for phase in phases if phase in self.artifacts}

    def _open_made(self, prefix: str, *, store: Store) -> Artifact:
        """What the first node has found or made."""
        artifact = open_artifact(store, prefix, cache_dir=self.cache)
        if artifact is None:
            raise UserError(
                f"spec.storage.uri: this node does not see {store.uri_of(prefix)}, which node 0 does; use s3:// or a folder that all "
                "nodes share"
            )
        return artifact

    def _layout(self, phase: PhaseName) -> launcher.Layout:
        num_proc = self.config.spec.trainer.num_proc_per_node
        if self.nodes is None:
            return launcher.Layout(num_proc=num_proc)
        number = phases_of(self.config.spec, self.config.stage).index(phase)
        return launcher.Layout(
            num_proc=num_proc, node=self.nodes.rank, num_nodes=self.nodes.num, meeting=self.nodes.meeting(number)
        )

    def _result(self, exit_class: ExitClass, *, message: str = "") -> StageResult:
        """Of several nodes the first tells what was made; the others only how they ended."""
        failed = exit_class != "Done"
        failed_phase = self.current if failed else None
        if not self.decides:
            return StageResult(exit_class=exit_class, message=message[:1024], failed_phase=failed_phase)
        made = self._made()
        told = reuse.account(made, self.config)
        if not failed:
            message = message or next((each.meta["summary"] for each in made.values() if "summary" in each.meta), "")
        return StageResult(
            exit_class=exit_class,
            message=message[:1024],
            failed_phase=failed_phase,
            stop=None if failed else told.stop,
            promoted=made["promote"].meta["promoted"] if "promote" in made else None,
            artifacts=[*told.artifacts, *(artifact.ref(name) for name, artifact in self.found.start.items())],
            phases=self.times,
            counts=told.counts,
            scores=told.scores,
            reused=[] if failed else self.found.reused,
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
