"""The report: runs and what was computed of them as a folder of pages that open from a file, with no server."""

from visualize.report.subject import Subject, Words
from visualize.report.write import Written, write_report

__all__ = ["Subject", "Words", "Written", "write_report"]
