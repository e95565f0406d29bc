"""Exports once, in segments of so many rows. No test.

python exporter.py STORAGE SEGMENT_ROWS
"""

import sys
from pathlib import Path

from bco_ray.storage import export as exporting
from bco_ray.storage.feedback_log import FeedbackLog

if __name__ == "__main__":
    exporting.SEGMENT_ROWS = int(sys.argv[2])
    exporting.export(FeedbackLog.open(Path(sys.argv[1])), Path(sys.argv[1]) / "feedback")
