import pytest
import torch


def test_weights_stay_within_their_scale_clip(make):
    runner = make(
        hooks=[dict(type='mmmpq.ScaleClipHook', k=1.5)],
        model=dict(_delete_=True, type='TinyNet'),
        train_cfg=dict(max_epochs=1),
    )
    runner.model.convs[0].weight.requires_grad_(False)
    frozen = runner.model.convs[0].weight.clone()
    runner.train()
    assert torch.equal(runner.model.convs[0].weight, frozen)
    for layer in (*runner.model.convs[1:], runner.model.fc):
        # each step's T is that of the weights before they are clipped
        assert layer.weight.abs().max() <= 1.75 * layer.weight.abs().mean()


@pytest.mark.parametrize('k', [0, -1])
def test_k_is_positive(make, k):
    with pytest.raises(ValueError, match=rf'ScaleClipHook\.k: found {k}'):
        make(hooks=[dict(type='mmmpq.ScaleClipHook', k=k)])
