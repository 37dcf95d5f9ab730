"""Pictures of a search: its figures and the page that explains them."""

from .report import write_report

__all__ = ['write_report']
