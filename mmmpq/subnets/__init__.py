"""Subnets of a once-for-all supernet: space, costs, search and results."""

from mmmpq.subnets.space import Subnet, SubnetSpace

__all__ = ['Subnet', 'SubnetSpace']
