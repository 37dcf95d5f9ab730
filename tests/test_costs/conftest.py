import pytest
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope, init_default_scope


@pytest.fixture
def toolbox_model():
    """Build the model of a toolbox config by name, without pretrained weights."""
    scope = DefaultScope.get_current_instance()

    def build(name, **changes):
        cfg = get_config(name)
        cfg.merge_from_dict(changes)
        init_default_scope(name.split('::')[0])
        return MODELS.build(cfg.model)

    yield build
    if scope is not None:
        init_default_scope(scope.scope_name)


@pytest.fixture
def layer():
    """Make a LayerProfile of a 3x3 conv."""
    from mmmpq.costs import LayerProfile

    def make(name='conv', macs=1000, weights=9, activations=64, size=(8, 8), calls=1):
        shape = dict(
            in_channels=1,
            out_channels=1,
            kernel_size=[3, 3],
            stride=[1, 1],
            groups=1,
            input_size=size,
            input_sizes={size: calls},
        )
        return LayerProfile(name, 'Conv2d', macs, weights, activations, calls, shape)

    return make
