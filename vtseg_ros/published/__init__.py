# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Published weights by name: where they are, what they are, and their conversion into checkpoints of this package.

Only `vtseg_ros.published.download` uses the network, and only for `vtseg weights get`.
"""
