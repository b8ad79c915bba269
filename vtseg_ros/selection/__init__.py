"""Choice of the frames to label next: per-frame scores of uncertainty and diversity of features."""

from vtseg_ros.selection.diversity import choose, combined_score
from vtseg_ros.selection.scores import SCORES, FrameScorer, frame_scores

__all__ = ["SCORES", "FrameScorer", "choose", "combined_score", "frame_scores"]
