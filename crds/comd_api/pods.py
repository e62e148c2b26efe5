"""The pods that a stage runs in: image, nodes, resources, and the part of the pod that a user may shape. `comd run` needs
none of it but the number of processes."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from comd_api.base import ApiModel, Name, Rule

QUANTITY_FORM = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
LABEL_KEY_FORM = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE_FORM = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
SUBDOMAIN_FORM = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
IMAGE_FORM = (
    r"^([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?[a-z0-9]+(([._]|__|-+|/)[a-z0-9]+)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha(256:[0-9a-f]{64}|512:[0-9a-f]{128}))?$"
)
"""As the kubelet takes it, which calls all else InvalidImageName."""
MOUNT_FORM = r"^/[^:]*$"

SUFFIXES = {
    "m": 1e-3,
    **{name: 1000.0 ** (power + 1) for power, name in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{name: 1024.0 ** (power + 1) for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    StringConstraints(pattern=QUANTITY_FORM, max_length=32),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_FORM, "maxLength": 32}),
]
"""An amount as Kubernetes writes it: `8`, `500m`, `64Gi`."""


def amount(quantity: str) -> float:
    """`64Gi` → 68719476736.0."""
    suffix = quantity.lstrip("0123456789.")
    return float(quantity.removesuffix(suffix)) * SUFFIXES.get(suffix, 1.0)


LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY_FORM, max_length=317)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE_FORM, max_length=63)]
SubdomainName = Annotated[str, StringConstraints(pattern=SUBDOMAIN_FORM, max_length=253)]
AnyObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""What Kubernetes itself checks: its schema would be larger than all of ours."""
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=64)]
Annotations = Annotated[
    dict[LabelKey, Annotated[str, StringConstraints(max_length=4096)]],
    Field(max_length=64),
]
Amounts = Annotated[dict[LabelKey, Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """As a container's `resources`."""

    limits: Amounts | None = None
    requests: Amounts | None = None


class LocalObjectReference(ApiModel):
    """Something in the run's namespace, by name."""

    name: SubdomainName


class SecretKeySelector(ApiModel):
    """One key of a Secret in the run's namespace."""

    name: SubdomainName
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]


class ConfigMapKeySelector(ApiModel):
    """One key of a ConfigMap in the run's namespace."""

    name: SubdomainName
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]


class EnvVarSource(ApiModel):
    secret_key_ref: SecretKeySelector


class EnvVar(ApiModel):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    value_from: EnvVarSource | None = None
    """From a Secret: the operator never reads it, the kubelet does."""

    rules = (
        Rule("has(self.value) != has(self.valueFrom)", "set exactly one of value and valueFrom"),
        Rule(
            "!self.name.startsWith('COMD_')",
            "name may not begin with COMD_, which is how the operator's own variables begin",
        ),
    )


class Toleration(ApiModel):
    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None


class VolumeMount(ApiModel):
    name: Name
    """A volume of `podTemplate.spec.volumes`."""
    mount_path: Annotated[str, StringConstraints(pattern=MOUNT_FORM, max_length=1024)]
    sub_path: Annotated[str, StringConstraints(max_length=1024)] | None = None
    read_only: bool = False


class PodMetadata(ApiModel):
    """Added to the pods' own; keys of the operator's win."""

    labels: Labels | None = None
    annotations: Annotations | None = None


class PodSpec(ApiModel):
    """The fields of a pod's spec that a user may set; all others are the operator's. The pod of `preflight`, which needs no GPU, has
    all of them but those that say where GPUs are: node selector, affinity and runtime class."""

    node_selector: Labels | None = None
    """Of every stage but `preflight`."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Taints that the pods may stand."""
    affinity: AnyObject | None = None
    """Of every stage but `preflight`."""
    priority_class_name: SubdomainName | None = None
    service_account_name: SubdomainName | None = None
    """Whose rights to the bucket the pods have (IRSA, workload identity). They get no token for the Kubernetes API."""
    scheduler_name: SubdomainName | None = None
    runtime_class_name: SubdomainName | None = None
    """Of every stage but `preflight`."""
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Secrets that the kubelet pulls the image with."""
    security_context: AnyObject | None = None
    """Takes the place of the pod's own: user, group and file system group 65532, the runtime's seccomp profile."""
    volumes: Annotated[list[AnyObject], Field(max_length=32)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """Further volumes, mounted by `trainer.volumeMounts`."""
    termination_grace_period_seconds: Annotated[int, Field(ge=15, le=3600)] = 120
    """How long the trainer may save after SIGTERM, before it is killed."""


class PodTemplate(ApiModel):
    metadata: PodMetadata = Field(default_factory=PodMetadata)
    spec: PodSpec = Field(default_factory=PodSpec)


class Scratch(ApiModel):
    """The disk for what may be lost: copies of models and images, checkpoints under way."""

    size_limit: Quantity | None = None
    """A pod that writes more is evicted, which counts as a failure."""
    storage_class_name: SubdomainName | None = None
    """A volume of this class and of `sizeLimit`, made for each pod, in place of the node's own disk."""

    rules = (
        Rule(
            "!has(self.storageClassName) || has(self.sizeLimit)",
            "storageClassName needs sizeLimit, the size of the volume to make",
        ),
    )


class Trainer(ApiModel):
    """The processes that a stage consists of."""

    image: Annotated[str, StringConstraints(pattern=IMAGE_FORM, max_length=1024)] | None = None
    """Image with `comd-trainer`; the operator's `--trainer-image` when left out."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    num_nodes: Annotated[int, Field(ge=1, le=256)] = 1
    """Pods of a stage, each on GPUs of its own, together one process group. `preflight` has one."""
    num_proc_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks on a node: one for each GPU."""
    resources_per_node: Resources = Field(default_factory=Resources)
    """What a pod of every stage but `preflight` and `promote` asks for."""
    preflight_resources: Resources = Field(default_factory=Resources)
    """What the pods of `preflight` and `promote` ask for, which need no GPU."""
    gpu_memory: Quantity | None = None
    """Memory of one GPU, such as `80Gi`. With it, `preflight` refuses models that can't fit before a GPU is asked for."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Variables of the container, such as `HF_TOKEN` or `NCCL_DEBUG`."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]},
    )
    """Where the volumes of `podTemplate.spec.volumes` are seen."""
    scratch: Scratch = Field(default_factory=Scratch)
    pod_template: PodTemplate = Field(default_factory=PodTemplate)

    @property
    def num_ranks(self) -> int:
        """Ranks of the whole process group."""
        return self.num_nodes * self.num_proc_per_node


def gpu_count(resources: Resources) -> float:
    """GPUs that a pod asks for, of whichever maker."""
    return sum(_gpus(resources).values())


def gpu_problem(trainer: Trainer) -> str | None:
    """Why the processes of a node can't have a GPU each, in one sentence. None when they can, or when no GPU is asked for: then they
    run on CPUs, or on parts of GPUs, whose names don't say how many make a whole one."""
    count = gpu_count(trainer.resources_per_node)
    if count in (0, trainer.num_proc_per_node):
        return None
    return (
        f"spec.trainer.resourcesPerNode.limits asks for {count:g} GPU{'s' if count != 1 else ''} "
        f"({', '.join(_gpus(trainer.resources_per_node))}), but spec.trainer.numProcPerNode is {trainer.num_proc_per_node}; "
        "one process runs on each GPU, so make them equal"
    )


def _gpus(resources: Resources) -> dict[str, float]:
    asked = {key: amount(value) for key, value in (resources.limits or {}).items() if key.endswith("/gpu")}
    return {key: count for key, count in asked.items() if count}


class Queue(ApiModel):
    """Kueue's queue for every Job of the run. Each stage is queued by itself."""

    name: Name
    """LocalQueue in the run's namespace."""
    priority_class: Annotated[str, StringConstraints(pattern=SUBDOMAIN_FORM, max_length=63)] | None = None
    """WorkloadPriorityClass: who is admitted first, and who is preempted."""


POD_FORMS = {
    QUANTITY_FORM: "a number with an optional suffix, such as 8, 500m or 64Gi",
    LABEL_KEY_FORM: "a key as Kubernetes takes it, such as app or example.com/app",
    LABEL_VALUE_FORM: "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    SUBDOMAIN_FORM: "lower-case letters, digits, '-' and '.', with a letter or digit at both ends and beside each '.'",
    IMAGE_FORM: "an image, such as registry.example.com/comd/trainer:1.0",
    MOUNT_FORM: "an absolute path without ':'",
}
"""What a pattern asks for, in words, for error messages."""
