# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""report.json and report.html of a replay: what they hold, and that nothing outside is needed to read them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from vtseg_ros.evaluation.report import ReportData, write_report
from vtseg_ros.evaluation.score import Scores
from vtseg_ros.label_set import LabelSet

LABELS = LabelSet(("road", "<b>sky</b>", "car"), ((100, 60, 100), (90, 200, 255), (255, 127, 80)))
NS = 1_000_000_000


@pytest.fixture
def data():
    baseline = np.zeros((4, 8), np.uint8)
    scores = Scores(LABELS, keep=2, baseline=baseline)
    label = np.zeros((16, 32), np.uint8)
    label[:8] = 1
    for number, wrong in enumerate((0, 16, 32, 64)):
        mask = label.copy()
        mask.reshape(-1)[:wrong] = 0
        scores.update(NS + number * NS // 10, mask, label, np.full((16, 32, 3), 90, np.uint8))
    system = scores.as_system(name="segmenter", model="vtseg", checkpoint="c", window=4)
    return ReportData(
        "Drive", scores, [system], {"processed": 4, "dropped": 1}, [0.01, 0.02, 0.03], {"bag": "drive"}
    )


def test_json_by_hand(data, tmp_path):
    found = json.loads(write_report(tmp_path, data)[0].read_text())
    system = found["systems"][0]
    # 112 of 1024 sky pixels are called road: sky 912 / 1024, road 1024 / 1136; car is in no frame.
    assert system["iou"] == {
        "road": pytest.approx(100 * 1024 / 1136, abs=1e-3),
        "<b>sky</b>": pytest.approx(100 * 912 / 1024, abs=1e-3),
        "car": None,
    }
    assert system["pixel_accuracy"] == pytest.approx(100 * (2048 - 112) / 2048, abs=1e-3)
    assert found["baseline_miou"] == pytest.approx(25.0)  # all road: half of its union; sky nothing
    assert (found["processed"], found["dropped"], found["latency_p50_s"]) == (4, 1, 0.02)


def test_the_page_is_whole_and_escapes_names(data, tmp_path):
    page = write_report(tmp_path, data)[1].read_text()
    assert "<b>sky</b>" not in page and "&lt;b&gt;sky" in page
    assert page.count("data:image/") == 2 * 4  # the two worst frames: image, label, mask, wrong pixels
    assert not re.search(r'(src|href)="(?!data:)', page) and "@import" not in page
    assert "Confusion" in page and "Latency" in page and "baseline mIoU" in page


def test_the_worst_frames_are_kept_worst_first(data):
    assert [round(sample.accuracy, 1) for sample in data.scores.worst] == [87.5, 93.8]
