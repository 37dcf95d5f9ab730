# The float net of the shapes with weights that are nearly uniform
_base_ = 'retinanet_shapes_float.py'

custom_hooks = [dict(type='mmmpq.ScaleClipHook', k=2)]
