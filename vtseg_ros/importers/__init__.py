# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of image files into bags: each importer says which files are which frame, `frames` writes them."""
