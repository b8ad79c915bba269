# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training: configuration, samples, stages, validation and the resumable state of a run."""
