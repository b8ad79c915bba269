# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Convert data sets of image files into bags: each importer lists frames, `dataset_frames` writes them."""
