# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What networks cost: counted operations, measured times, and where the time of a frame goes."""
