# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Published weights by name: source, properties, and conversion into checkpoints of this package.

Only `vtseg_ros.published.download` connects to the Internet, and only for `vtseg weights get`.
"""
