# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Measure networks: operations, latency, memory, and the time of each part."""
