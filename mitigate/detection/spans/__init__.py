"""From token scores to spans: by a threshold, or by a detector calibrated on shadows."""
