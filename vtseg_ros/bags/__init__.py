# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bags without ROS: storage, messages, topics and the images in them; imports no torch."""
