"""Files of integers, as many bits each as a policy says, and models of them."""

from mmmpq.export.packed.model import load_from_packed, load_packed, save_packed

__all__ = ['load_from_packed', 'load_packed', 'save_packed']
