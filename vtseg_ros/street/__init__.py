# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The synthetic street: procedural driving video with exact labels, depth and optical flow.

In the image of Virtual KITTI 2 (Cabon et al., 2020): its classes, five scenes and six of its variations.
"""
