"""One self-contained HTML page about a result."""

from deepfeat.report.page import write_report

__all__ = ["write_report"]
