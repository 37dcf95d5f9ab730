"""Pictures of a search: its figures and the page that explains them."""

from mmmpq.visualization.report import write_report

__all__ = ['write_report']
