#!/usr/bin/env bash
# Run the arguments with ROS 2, the virtual environment and the workspace on the path.
set -eo pipefail
. /opt/ros/jazzy/setup.bash
. /ws/.venv/bin/activate
. /ws/install/setup.bash
exec "$@"
