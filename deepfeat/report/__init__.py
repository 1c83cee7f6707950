"""One self-contained HTML page about a result."""

from deepfeat.report.page import check_page, write_report

__all__ = ["check_page", "write_report"]
