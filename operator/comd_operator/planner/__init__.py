"""From a manifest to stages, phases and Jobs. Pure."""

from comd_operator.planner.configs import stage_config
from comd_operator.planner.jobs import JobPlan, jobs_of, plan_job, plan_run

__all__ = ["JobPlan", "jobs_of", "plan_job", "plan_run", "stage_config"]
