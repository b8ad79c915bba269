# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Jobs over many bags, in this process or on a Ray cluster."""

from vtseg_ros.fleet.bag_cache import BagCache
from vtseg_ros.fleet.driver import run_here, run_in_parts
from vtseg_ros.fleet.jobs import Job, Outcome, SplitJob, Task, Watch
from vtseg_ros.fleet.ray_pool import RayOptions, run_on_ray
from vtseg_ros.fleet.task_plan import expand_inputs, plan_tasks
from vtseg_ros.fleet.urls import Place, Url, parse_place, result_name

__all__ = [
    "BagCache",
    "Job",
    "Outcome",
    "Place",
    "RayOptions",
    "SplitJob",
    "Task",
    "Url",
    "Watch",
    "expand_inputs",
    "parse_place",
    "plan_tasks",
    "result_name",
    "run_here",
    "run_in_parts",
    "run_on_ray",
]
