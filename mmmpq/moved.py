"""Names of version 0.1 that have moved; each works for one release, with a warning."""

import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    'mmmpq.costs.reference': 'mmmpq.costs.cost_at',
    'mmmpq.export.bits': 'mmmpq.export.packed.bits',
    'mmmpq.export.latency_bench': 'mmmpq.export.latency.bench',
    'mmmpq.export.latency_fused': 'mmmpq.export.latency.fused',
    'mmmpq.export.latency_graphs': 'mmmpq.export.latency.graphs',
    'mmmpq.export.latency_table': 'mmmpq.export.latency.table',
    'mmmpq.export.model_config': 'mmmpq.export.packed.config',
    'mmmpq.export.onnx_agreement': 'mmmpq.export.onnx.agreement',
    'mmmpq.export.onnx_cut': 'mmmpq.export.onnx.cut',
    'mmmpq.export.onnx_graph': 'mmmpq.export.onnx.graph',
    'mmmpq.export.onnx_levels': 'mmmpq.export.onnx.levels',
    'mmmpq.export.onnx_model': 'mmmpq.export.onnx.model',
    'mmmpq.export.onnx_qdq': 'mmmpq.export.onnx.qdq',
    'mmmpq.export.onnx_trace': 'mmmpq.export.onnx.trace',
    'mmmpq.export.packed_file': 'mmmpq.export.packed.file',
    'mmmpq.export.safetensors_file': 'mmmpq.export.packed.safetensors',
    'mmmpq.export.untrusted': 'mmmpq.export.packed.untrusted',
    'mmmpq.hooks': 'mmmpq.engine.hooks',
    'mmmpq.hooks.calibration_hook': 'mmmpq.engine.hooks.calibration',
    'mmmpq.hooks.choice': 'mmmpq.search.choose',
    'mmmpq.hooks.distillation': 'mmmpq.engine.distillation',
    'mmmpq.hooks.evaluation': 'mmmpq.engine.evaluation',
    'mmmpq.hooks.finite_hook': 'mmmpq.engine.hooks.finite',
    'mmmpq.hooks.held_out': 'mmmpq.engine.batches',
    'mmmpq.hooks.history': 'mmmpq.search.history',
    'mmmpq.hooks.joint': 'mmmpq.search.joint',
    'mmmpq.hooks.logits': 'mmmpq.search.logits',
    'mmmpq.hooks.records': 'mmmpq.engine.records',
    'mmmpq.hooks.reshape_hook': 'mmmpq.engine.hooks.scale_clip',
    'mmmpq.hooks.sandwich_hook': 'mmmpq.engine.hooks.sandwich',
    'mmmpq.hooks.schedule': 'mmmpq.search.schedule',
    'mmmpq.hooks.search_hook': 'mmmpq.engine.hooks.search',
    'mmmpq.hooks.search_result': 'mmmpq.engine.results',
    'mmmpq.hooks.subnet_evaluation': 'mmmpq.engine.subnet_evaluation',
    'mmmpq.hooks.subnet_metrics': 'mmmpq.engine.subnet_metrics',
    'mmmpq.hooks.subnet_results': 'mmmpq.subnets.results',
    'mmmpq.hooks.supernet': 'mmmpq.engine.supernet',
    'mmmpq.launch': 'mmmpq.engine.launch',
    'mmmpq.models.elastic.ofa_names': 'mmmpq.models.elastic.names',
    'mmmpq.quantizers.native': 'mmmpq.quantizers.kernels.native',
    'mmmpq.quantizers.triton_kernels': 'mmmpq.quantizers.kernels.triton_kernels',
    'mmmpq.search.baselines': 'mmmpq.baselines.choices',
    'mmmpq.search.evolution': 'mmmpq.subnets.evolution',
    'mmmpq.search.genes': 'mmmpq.subnets.code',
    'mmmpq.search.hessian': 'mmmpq.baselines.hessian',
    'mmmpq.search.hutchinson': 'mmmpq.baselines.hutchinson',
    'mmmpq.search.measurements': 'mmmpq.baselines.measurements',
    'mmmpq.search.predictor': 'mmmpq.subnets.predictor',
    'mmmpq.search.samples': 'mmmpq.subnets.measured',
    'mmmpq.search.sensitivity': 'mmmpq.baselines.sensitivity',
    'mmmpq.search.subnet_budgets': 'mmmpq.subnets.budgets',
    'mmmpq.search.subnet_costs': 'mmmpq.subnets.costs',
    'mmmpq.search.subnet_search': 'mmmpq.subnets.search',
    'mmmpq.search.subnets': 'mmmpq.subnets.space',
    'mmmpq.visualization.units': 'mmmpq.units',
}


class _Moved(MetaPathFinder, Loader):
    """Gives the module of the new name to whoever imports that of the old one."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MODULES[spec.name]
        _warn(spec.name, new)
        module = importlib.import_module(new)
        self.own = module.__spec__  # the import system is about to set another
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own


def install() -> None:
    """Lets the old names be imported; before other finders, which may come across what
    is left of an old folder."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())


def names(module: str, **moved: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module out of which names have moved.

    Args:
        module: Its name.
        **moved: Name -> the module that has it now, with ``:name`` where that is new.
    """

    def get(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        place, _, new = moved[name].partition(':')
        _warn(f'{module}.{name}', f'{place}.{new or name}')
        return getattr(importlib.import_module(place), new or name)

    return get


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f'{old} is now {new}; the old name goes with the next release',
        DeprecationWarning,
        stacklevel=3,
    )
