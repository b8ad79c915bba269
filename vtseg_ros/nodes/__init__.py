# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes: segmenter, evaluator, trainer, labelled point clouds, bag player and recorder."""
