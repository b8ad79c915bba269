# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Create labels: files of labelling tools, pseudo-labels of a teacher network, and the mask of the robot's own body."""
