# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The synthetic street: procedural driving video with exact labels, depth and optical flow.

Modelled on Virtual KITTI 2 (Cabon et al., 2020), with the same classes, five scenes and six of its variations.
"""
