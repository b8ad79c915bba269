# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels without a person: pseudo-labels of a teacher network and the mask of the robot's own body."""
