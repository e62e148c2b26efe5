"""What the operator can be told, by an option of `comd operator` or, in a pod and under `kopf run`, by a variable."""

import math
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from comd_api.base import FORMS, NAME_FORM, REGION_FORM, STORE_FORM, URL_FORM
from comd_api.exit_codes import UserError
from comd_api.pods import IMAGE_FORM, POD_FORMS, SUBDOMAIN_FORM
from comd_operator.planner import ClusterDefaults
from comd_operator.shell.s3_options import read_s3
from comd_operator.shell.tolerations import read_tolerations

MAX_PORT = 65_535


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Each field is `--field-name` and `COMD_OPERATOR_FIELD_NAME`."""

    namespaces: str = _option("", "namespaces to work in, separated by commas; all of them when empty")
    trainer_image: str = _option("", "image of runs that name none in spec.trainer.image")
    storage_uri: str = _option("", "where artifacts of runs without spec.storage live: s3://bucket/prefix")
    storage_endpoint: str = _option("", "URL of the S3 service of runs that name none in spec.storage.s3.endpoint")
    storage_region: str = _option("", "region of runs that name none in spec.storage.s3.region")
    storage_secret: str = _option(
        "", "Secret, in a run's own namespace, of runs that name none in spec.storage.s3.secretRef"
    )
    storage_s3: str = _option(
        "", "further fields of spec.storage.s3, as a JSON object, of runs that leave them out, such as caBundle"
    )
    queue: str = _option("", "LocalQueue of Kueue, in a run's own namespace, of runs that name none in spec.queue")
    tolerations: str = _option(
        "", "tolerations, as a JSON list, of runs that have none in spec.trainer.podTemplate.spec.tolerations"
    )
    workers: int = _option(10, "runs that are worked on at once")
    qps: float = _option(50.0, "requests per second to the API server; 0 for no limit")
    burst: int = _option(100, "requests that may be made at once before the limit holds")
    address: str = _option("", "address of /metrics, /healthz and /readyz (default: all, of IPv4 and IPv6)")
    port: int = _option(8080, "port of /metrics, /healthz and /readyz; 0 for none")
    leader_election: bool = _option(True, "work only while holding the Lease, so that several replicas can stand by")
    lease_namespace: str = _option("", "namespace of the Lease (default: the pod's, else default)")
    lease_name: str = _option("comd-operator", "name of the Lease")
    lease_seconds: float = _option(15.0, "how long the Lease holds after it was last renewed")
    identity: str = _option("", "what the Lease calls us (default: the host's name and the process)")
    resync_seconds: float = _option(600.0, "how often everything is listed anew")
    progress_seconds: float = _option(30.0, "how often a running trainer is asked how far it is")
    start_patience_seconds: float = _option(
        300.0,
        "how long pods that no node could take are waited for, before their Job is given up and tried again later",
    )
    log_format: str = _option("auto", "plain, json, or auto: plain on a terminal")
    log_level: str = _option("info", "debug, info, warning or error")
    context: str = _option("", "context of the kubeconfig, where there is no service account")

    @property
    def defaults(self) -> ClusterDefaults:
        """What runs leave out."""
        return ClusterDefaults(
            trainer_image=self.trainer_image or None,
            storage_uri=self.storage_uri or None,
            storage_endpoint=self.storage_endpoint or None,
            storage_region=self.storage_region or None,
            storage_secret=self.storage_secret or None,
            storage_s3=read_s3(self.storage_s3, option="--storage-s3"),
            queue=self.queue or None,
            tolerations=read_tolerations(self.tolerations, option="--tolerations"),
        )

    @property
    def namespace_list(self) -> list[str]:
        return [name.strip() for name in self.namespaces.split(",") if name.strip()]


def variable_of(name: str) -> str:
    return f"COMD_OPERATOR_{name.upper()}"


def from_environment(environment: Mapping[str, str] = os.environ, **given: Any) -> Options:
    """Options that were given win over variables, variables over defaults.

    Raises:
        UserError: a value can't be read; it names the variable and what would be right.
    """
    values: dict[str, Any] = {}
    for option in fields(Options):
        variable = variable_of(option.name)
        if given.get(option.name) is not None:
            values[option.name] = given[option.name]
        elif variable in environment:
            values[option.name] = _read(variable, environment[variable], kind=type(option.default))
    options = Options(**values)
    _check(options)
    return options


def _read(variable: str, text: str, *, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{variable}: {text!r} is neither true nor false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{variable}: {text!r} is not {'a whole number' if kind is int else 'a number'}") from None


_KNOWN = {"log_format": ("auto", "plain", "json"), "log_level": ("debug", "info", "warning", "error")}
_LEAST = {
    "workers": 1, "qps": 0, "burst": 1, "port": 0, "lease_seconds": 3, "resync_seconds": 1, "progress_seconds": 1,
    "start_patience_seconds": 0,
}  # fmt: skip
_FORMS = {
    "trainer_image": IMAGE_FORM,
    "storage_uri": STORE_FORM,
    "storage_endpoint": URL_FORM,
    "storage_region": REGION_FORM,
    "storage_secret": SUBDOMAIN_FORM,
    "queue": NAME_FORM,
}
_WORDS = {**FORMS, **POD_FORMS}


def _check(options: Options) -> None:
    """What would else be found out by every run, or by none."""
    for name, known in _KNOWN.items():
        value = getattr(options, name)
        if value not in known:
            raise UserError(f"{_flag(name)}: {value!r} is not known; right would be {', '.join(known)}")
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if not math.isfinite(value):
            raise UserError(f"{_flag(name)}: {value} is no number of seconds or requests")
        if value < least:
            raise UserError(f"{_flag(name)}: {value:g} is less than {least}")
    if options.port > MAX_PORT:
        raise UserError(f"--port: {options.port} is more than {MAX_PORT}")
    for name, form in _FORMS.items():
        _check_form(name, getattr(options, name), form)
    for namespace in options.namespace_list:
        _check_form("namespaces", namespace, NAME_FORM)
    read_tolerations(options.tolerations, option=_flag("tolerations"))
    s3 = read_s3(options.storage_s3, option=_flag("storage_s3"))
    if s3.ca_bundle is not None and options.storage_endpoint.startswith("http://"):
        raise UserError("--storage-s3: caBundle is for an endpoint with https://, and --storage-endpoint has http://")


def _check_form(name: str, value: str, form: str) -> None:
    if value and not re.fullmatch(form, value):
        raise UserError(f"{_flag(name)}: {value!r} is not {_WORDS[form]}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def own_identity() -> str:
    """No other process that lives may have it: a pod's name comes back, and every container has a process 1."""
    return f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
