"""The objects of a run on Kubernetes, as plain JSON. Pure: the reconciler creates what `comd plan --kubernetes` prints.

One Job for each attempt of a stage. Its first failed pod ends it (`backoffLimit: 0`, and rules that say which end it was even
when no pod is left to ask), for the processes of a stage can't go on without each other; whether and when to try again is the
operator's decision, not the Job controller's.
"""

import hashlib
import json
from typing import Any

from comd_api import API_VERSION
from comd_api.exit_codes import ExitCode
from comd_api.roles import SecretKeyRef
from comd_api.run import CABundleSource, DistillationRun, RunSpec
from comd_api.stage import StageConfig
from comd_api.stages import needs_no_gpu
from comd_operator.planner import labels
from comd_operator.planner.content import content_mark
from comd_operator.planner.defaults import RENDEZVOUS_PORT, TRAINER_PORT
from comd_operator.planner.jobs import JobPlan

CONTAINER = "trainer"
USER = 65_532
SCRATCH = "/scratch"
OWN_VOLUMES = {"scratch": SCRATCH, "shared-memory": "/dev/shm", "tmp": "/tmp"}
"""Volumes of every pod, and where they are mounted."""
CA_VOLUME, CA_FOLDER, CA_FILE = "s3-ca-bundle", "/etc/comd/s3", "ca.crt"
"""The certificates of `spec.storage.s3.caBundle`, in pods of runs that have them."""
SAVING_MARGIN_SECONDS = 10
"""Of the pod's grace period, kept for the end of the trainer itself."""
POLICY_CODES = (ExitCode.USER_ERROR, ExitCode.BAD_DATA, ExitCode.TRY_AGAIN)
SIGTERM_CODE = 143
"""Of a trainer that was asked to end before it could listen. It means the same as `TRY_AGAIN`."""
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
PLACES = ("nodeSelector", "affinity", "runtimeClassName")
"""Fields of a pod's spec that say which nodes a stage's GPUs are on."""
MAX_SERVICE_NAME = 63
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
OPTIONAL_KEYS = ("AWS_SESSION_TOKEN",)


def owner(run: DistillationRun) -> dict[str, Any]:
    """Kubernetes deletes what a run owns when the run is gone. No finalizer is needed for that."""
    return {
        "apiVersion": API_VERSION,
        "kind": "DistillationRun",
        "name": run.metadata.name,
        "uid": run.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def service_name(run: DistillationRun) -> str:
    """One Service for the pods of all of a run's Jobs. It may not begin with a digit, which a run's name may."""
    name = f"run-{run.metadata.name}"
    if len(name) <= MAX_SERVICE_NAME:
        return name
    mark = hashlib.sha256(run.metadata.name.encode()).hexdigest()[:10]
    return f"{name[: MAX_SERVICE_NAME - 11].rstrip('-')}-{mark}"


def num_nodes(run: DistillationRun, job: JobPlan) -> int:
    """Pods of a Job. `preflight` and `promote` compute nothing."""
    return 1 if needs_no_gpu(job.stage) else run.spec.trainer.num_nodes


def service(run: DistillationRun) -> dict[str, Any]:
    """A headless Service, which gives pods of an Indexed Job names: `JOB-INDEX.SERVICE`. Known before a pod is ready, for
    they become ready together."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(run),
            "namespace": run.metadata.namespace,
            "labels": labels.of_run(run),
            "ownerReferences": [owner(run)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {labels.RUN_UID: run.metadata.uid},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def job_manifest(run: DistillationRun, job: JobPlan, config: StageConfig) -> dict[str, Any]:
    """The Job of an attempt, or with `execution: Phase` of one of its phases."""
    nodes = num_nodes(run, job)
    own = labels.of_job(run, job)
    queue = run.spec.queue
    queueing = {QUEUE_LABEL: queue.name} if queue is not None else {}
    if queue is not None and queue.priority_class is not None:
        queueing[PRIORITY_LABEL] = queue.priority_class
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job.name,
            "namespace": run.metadata.namespace,
            "labels": {**own, **queueing},
            "annotations": {
                labels.GENERATION: str(run.metadata.generation),
                labels.CONTENT: content_mark(run.spec),
            },
            "ownerReferences": [owner(run)],
        },
        "spec": {
            # Until Kueue admits it; where there is no Kueue it must not run past the queue.
            **({"suspend": True} if queue is not None else {}),
            "parallelism": nodes,
            "completions": nodes,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": _pod_template(run, job, config, own=own, nodes=nodes),
        },
    }


def _failure_rules() -> list[dict[str, Any]]:
    """All of them fail the Job, as any failure does; what they add is their place in its message."""
    disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [disrupted] + [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": CONTAINER,
                "operator": "In",
                "values": [int(code), SIGTERM_CODE] if code == ExitCode.TRY_AGAIN else [int(code)],
            },
        }
        for code in POLICY_CODES
    ]


def _pod_template(
    run: DistillationRun,
    job: JobPlan,
    config: StageConfig,
    *,
    own: dict[str, str],
    nodes: int,
) -> dict[str, Any]:
    given = run.spec.trainer.pod_template
    user: dict[str, Any] = given.spec.to_wire()
    if needs_no_gpu(job.stage):
        # It needs no GPU, so it waits for no node that has one.
        user = {key: value for key, value in user.items() if key not in PLACES}
    volumes = user.pop("volumes", [])
    security = user.pop("securityContext", None) or {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    metadata: dict[str, Any] = {"labels": {**(given.metadata.labels or {}), **own}}
    if given.metadata.annotations:
        metadata["annotations"] = dict(given.metadata.annotations)
    return {
        "metadata": metadata,
        "spec": {
            **{key: value for key, value in user.items() if value != []},
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": security,
            **({"subdomain": service_name(run)} if nodes > 1 else {}),
            "containers": [_container(run, job, config, nodes=nodes)],
            "volumes": [_scratch(run), _memory(), {"name": "tmp", "emptyDir": {}}, *_certificates(run.spec), *volumes],
        },
    }


def _container(run: DistillationRun, job: JobPlan, config: StageConfig, *, nodes: int) -> dict[str, Any]:
    trainer = run.spec.trainer
    asks = trainer.preflight_resources if needs_no_gpu(job.stage) else trainer.resources_per_node
    grace = trainer.pod_template.spec.termination_grace_period_seconds - SAVING_MARGIN_SECONDS
    assert trainer.image is not None, "a run without an image has a problem, and no Job"
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": trainer.image,
        "command": ["comd-trainer"],
        "args": ["run", "--port", str(TRAINER_PORT), "--scratch", SCRATCH, "--grace-seconds", str(grace)],
        "env": _environment(run, job, config, nodes=nodes),
        "ports": [{"name": "metrics", "containerPort": TRAINER_PORT}],
        "resources": asks.to_wire(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            *({"name": name, "mountPath": path} for name, path in OWN_VOLUMES.items()),
            *({"name": volume["name"], "mountPath": CA_FOLDER, "readOnly": True} for volume in _certificates(run.spec)),
            *(mount.to_wire() for mount in trainer.volume_mounts),
        ],
    }
    if trainer.image_pull_policy is not None:
        container["imagePullPolicy"] = trainer.image_pull_policy
    return container


def _environment(run: DistillationRun, job: JobPlan, config: StageConfig, *, nodes: int) -> list[dict[str, Any]]:
    """The user's variables and ours, which win over those of the same name."""
    # Whatever libraries keep in the home folder goes to the disk that is there for it; the root file system is read-only.
    variables: list[dict[str, Any]] = [
        {"name": "HOME", "value": SCRATCH},
        {"name": "COMD_STAGE_CONFIG", "value": without_expansion(json.dumps(config.to_wire(), separators=(",", ":")))},
    ]
    if nodes > 1:
        first = f"{job.name}-0.{service_name(run)}"
        variables.append({"name": "COMD_RENDEZVOUS", "value": f"{first}:{RENDEZVOUS_PORT}"})
    if run.spec.storage is not None and run.spec.storage.s3.secret_ref is not None:
        name = run.spec.storage.s3.secret_ref.name
        variables += [_from_secret(key, name=name, key=key, optional=key in OPTIONAL_KEYS) for key in S3_KEYS]
    if ca_bundle(run.spec) is not None:
        variables.append({"name": "COMD_S3_CA_BUNDLE", "value": f"{CA_FOLDER}/{CA_FILE}"})
    keys = {variable_of(ref): ref for ref in endpoint_key_refs(run.spec)}
    variables += [_from_secret(variable, name=ref.name, key=ref.key) for variable, ref in keys.items()]
    taken = {variable["name"] for variable in variables}
    return [variable.to_wire() for variable in run.spec.trainer.env if variable.name not in taken] + variables


def without_expansion(text: str) -> str:
    """Kubernetes replaces `$(NAME)` in values of variables, and `$$` by `$`; a text must arrive as it is."""
    return text.replace("$", "$$")


def endpoint_key_refs(spec: RunSpec) -> list[SecretKeyRef]:
    """The Secrets that endpoints' keys are kept in."""
    models = [spec.teacher, spec.assessor.model, spec.augmentor.model]
    refs = [model.endpoint.api_key_secret_ref for model in models if model is not None and model.endpoint is not None]
    return [ref for ref in refs if ref is not None]


def variable_of(ref: SecretKeyRef) -> str:
    """The name by which the trainer reads a key of a Secret."""
    return f"COMD_SECRET_{ref.name}_{ref.key}".upper().replace("-", "_").replace(".", "_")


def _from_secret(variable: str, *, name: str, key: str, optional: bool = False) -> dict[str, Any]:
    selector: dict[str, Any] = {"name": name, "key": key, **({"optional": True} if optional else {})}
    return {"name": variable, "valueFrom": {"secretKeyRef": selector}}


def _scratch(run: DistillationRun) -> dict[str, Any]:
    scratch = run.spec.trainer.scratch
    if scratch.storage_class_name is None:
        limit = {} if scratch.size_limit is None else {"sizeLimit": scratch.size_limit}
        return {"name": "scratch", "emptyDir": limit}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": scratch.storage_class_name,
        "resources": {"requests": {"storage": scratch.size_limit}},
    }
    return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def ca_bundle(spec: RunSpec) -> CABundleSource | None:
    """Where the certificates of the bucket's endpoint are kept, if it has its own."""
    return spec.storage.s3.ca_bundle if spec.storage is not None else None


def _certificates(spec: RunSpec) -> list[dict[str, Any]]:
    """The volume with them, under one name wherever they are kept."""
    source = ca_bundle(spec)
    if source is None:
        return []
    if source.config_map_key_ref is not None:
        ref = source.config_map_key_ref
        return [{"name": CA_VOLUME, "configMap": {"name": ref.name, "items": [{"key": ref.key, "path": CA_FILE}]}}]
    assert source.secret_key_ref is not None, "a rule of the contract"
    key = source.secret_key_ref
    return [{"name": CA_VOLUME, "secret": {"secretName": key.name, "items": [{"key": key.key, "path": CA_FILE}]}}]


def _memory() -> dict[str, Any]:
    """NCCL and data loaders hand data over in /dev/shm, of which a container otherwise gets 64 MiB. It counts as memory."""
    return {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
