# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames of bags for training and evaluation: index, pixels, windows, augmentation, flow, corruptions."""
