# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Commands of the `vtseg` program, one module each with HELP, `add_arguments` and `run`."""
