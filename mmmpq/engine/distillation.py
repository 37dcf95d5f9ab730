"""Distillation from a float teacher, as one more term of the toolbox's losses."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn import functional as F

from mmmpq.fileio import check_file
from mmmpq.layers import leaves
from mmmpq.models.loading import load_whole
from mmmpq.policy import near

CLASSIFIER = dict(head='soft_cross_entropy')
DETECTOR = dict(neck='l2', bbox_head='smooth_l1', rpn_head='smooth_l1')


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-mean_n Σ_k softmax(t_n)_k · log softmax(s_n)_k, of logits (N, K)."""
    targets = teacher.float().softmax(-1)
    return -(targets * student.float().log_softmax(-1)).sum(-1).mean()


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ (s - t)² / Σ t², so that the scale of features does not matter."""
    teacher = teacher.float()
    error = (student.float() - teacher).square().mean()
    return error / teacher.square().mean().clamp_min(1e-12)


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of d² / 2 where d = |s - t| is below 1, and d - ½ elsewhere."""
    return F.smooth_l1_loss(student.float(), teacher.float())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = dict(
    soft_cross_entropy=soft_cross_entropy, l2=l2, smooth_l1=smooth_l1
)


def check_match(match: Mapping[str, str] | None, key: str = 'match') -> None:
    """Raises ValueError, about ``key``, if nothing is compared, or by no loss."""
    if match is not None and not match:
        raise ValueError(
            f'{key}: found nothing to compare; accepted is a dict of modules and '
            "losses such as dict(head='l2')"
        )
    for name, loss in (match or {}).items():
        if loss not in LOSSES:
            raise ValueError(
                f'{key}: found {loss!r} for {name}; accepted are {", ".join(LOSSES)}'
            )


class Distillation:
    """Adds ``loss_distill`` to the losses of ``model`` for as long as it is attached.

    Outputs of modules of the same name are compared: a forward hook on the model runs
    the teacher on its preprocessed inputs, and hands the term over with the losses, to
    be summed, scaled and logged like the others. Outputs of several tensors (levels)
    contribute their mean. The teacher is no part of the model: neither its optimizer
    nor its checkpoints know it.

    Args:
        model: The student, unwrapped, on its device.
        teacher: ``config``, a file or a name such as 'mmdet::retinanet/…', and
            ``checkpoint`` of a model with the same data preprocessing.
        weight: Of the term.
        match: Module -> 'soft_cross_entropy', 'l2' or 'smooth_l1'. Default: the logits
            of a classifier by the first; of a detector ``neck`` by the second, and
            ``bbox_head`` and ``rpn_head``, whichever it has, by the third.

    Raises:
        KeyError: A key of ``teacher`` that does not exist or is missing.
        ValueError: A module or loss that does not exist; a checkpoint that is not the
            config's; outputs whose shapes differ, as with other classes.
        FileNotFoundError: A file is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Mapping[str, Any],
        weight: float = 1.0,
        match: Mapping[str, str] | None = None,
    ) -> None:
        self.weight = weight
        self.match = dict(match) if match is not None else _default_match(model)
        self.teacher = load_teacher(teacher).to(next(model.parameters()).device)
        self._inputs: Any = None
        self._wanted: dict[str, list[Tensor]] = {}
        self._seen: dict[str, list[Tensor]] = {}
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True),
        ]
        if not self.match:
            raise ValueError(
                f'match: found nothing of {type(model).__name__} to compare; accepted '
                "is a dict of modules and losses such as dict(head='l2')"
            )
        check_match(self.match)
        for name in self.match:
            own, other = _module(model, name), _module(self.teacher, name)
            _check_classes(name, own, other)
            for module, into in ((own, '_seen'), (other, '_wanted')):
                hook = self._take(into, name)
                self._handles.append(module.register_forward_hook(hook))

    def remove(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _take(self, into: str, name: str) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = [part for part in leaves(output) if isinstance(part, Tensor)]
            getattr(self, into).setdefault(name, []).extend(tensors)

        return hook

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self._seen = {}
        if not _is_training_pass(model, kwargs):
            return
        inputs = kwargs['inputs'] if 'inputs' in kwargs else args[0]
        if not _equal(inputs, self._inputs):
            self._inputs, self._wanted = inputs, {}
            with torch.no_grad():
                self.teacher(*args, **kwargs)

    def _end(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        outputs, self._seen = self._seen, {}
        if not _is_training_pass(model, kwargs):
            return output
        terms = []
        for name, loss in self.match.items():
            pairs = self._pairs(name, outputs.get(name, []))
            terms.append(torch.stack([LOSSES[loss](s, t) for s, t in pairs]).mean())
        return dict(output, loss_distill=self.weight * torch.stack(terms).sum())

    def _pairs(self, name: str, outputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        targets = self._wanted.get(name, [])
        shapes = [[tuple(t.shape) for t in ts] for ts in (outputs, targets)]
        if shapes[0] != shapes[1] or not outputs:
            raise ValueError(
                f'teacher: its {name} gives {shapes[1]}, that of the model '
                f'{shapes[0]}; accepted is a teacher with the same classes and shapes'
            )
        return list(zip(outputs, targets, strict=True))


def load_teacher(teacher: Mapping[str, Any]) -> nn.Module:
    """The float net of ``config`` with the weights of ``checkpoint``, to be evaluated.

    What computes a loss gives the outputs that it has in training.

    Raises:
        KeyError: Another key, or one of the two is missing.
        ValueError: The checkpoint is not one of the config's model.
        FileNotFoundError: A file is missing.
    """
    keys = ('config', 'checkpoint')
    if not isinstance(teacher, Mapping) or set(teacher) != set(keys):
        raise KeyError(
            f'teacher: found {teacher!r}; accepted is a dict with the keys config and '
            'checkpoint'
        )
    config, checkpoint = (teacher[key] for key in keys)
    if '::' in config:
        cfg = get_config(config)
    else:
        check_file(config, 'teacher.config')
        cfg = Config.fromfile(config)
    check_file(checkpoint, 'teacher.checkpoint')
    model = MODELS.build(cfg.model)
    loaded = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
    load_whole(model, loaded, checkpoint, 'teacher.checkpoint')
    model.requires_grad_(False).eval()
    for module in model.modules():
        if hasattr(module, 'loss'):  # mmdet's heads decode otherwise in evaluation
            module.training = True  # of itself alone, not of its layers
    return model


def _default_match(model: nn.Module) -> dict[str, str]:
    detector = hasattr(model, 'bbox_head') or hasattr(model, 'rpn_head')
    match = DETECTOR if detector else CLASSIFIER
    return {k: v for k, v in match.items() if getattr(model, k, None) is not None}


def _check_classes(name: str, student: nn.Module, teacher: nn.Module) -> None:
    own, other = (getattr(m, 'num_classes', None) for m in (student, teacher))
    if own != other:
        raise ValueError(
            f'teacher: its {name} has {other} classes; accepted are those of the '
            f'model, {own}'
        )


def _module(net: nn.Module, name: str) -> nn.Module:
    modules = dict(net.named_modules())
    if name not in modules:
        raise ValueError(
            f'match: the {type(net).__name__} has no module {name!r}; '
            f'{near(name, [n for n in modules if n])}'
        )
    return modules[name]


def _is_training_pass(model: nn.Module, kwargs: dict) -> bool:
    grad = torch.is_grad_enabled()  # a calibration has none
    return model.training and grad and kwargs.get('mode') == 'loss'


def _equal(inputs: Any, before: Any) -> bool:
    """Whether a batch is the one before, so that the teacher has seen it already."""
    if not isinstance(inputs, Tensor) or not isinstance(before, Tensor):
        return False
    return inputs is before or torch.equal(inputs, before)
