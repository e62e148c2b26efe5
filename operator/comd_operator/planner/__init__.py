"""From a manifest to stages, phases and Jobs, and on to Kubernetes' objects. Pure."""

from comd_operator.planner.configs import stage_config
from comd_operator.planner.content import content_mark
from comd_operator.planner.defaults import ClusterDefaults, fill
from comd_operator.planner.jobs import JobPlan, jobs_of, plan_job, plan_run
from comd_operator.planner.manifests import job_manifest, num_nodes, service
from comd_operator.planner.problems import problem, problems

__all__ = [
    "ClusterDefaults",
    "JobPlan",
    "content_mark",
    "fill",
    "job_manifest",
    "jobs_of",
    "num_nodes",
    "plan_job",
    "plan_run",
    "problem",
    "problems",
    "service",
    "stage_config",
]
