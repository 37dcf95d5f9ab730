"""Time and peak memory of a step, as :mod:`step_time` has them, one net at a time.

Each variant takes turns with the float net, and is gone before the next one is built:
what is alive is then its memory, and a run cut short has whole rows. The peak is that
of the caching allocator over what was allocated before the variant was built; there is
none on a CPU. 'graph' is the same step replayed as one CUDA graph, without the host.
"""

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict
from statistics import median

import torch
from gpu_records import Records, Settings, last_line
from step_models import JOINT, QAT, Step, is_detector
from step_time import DTYPES, Variant

# What tells most first: variant, candidates, steps.
PLANS = (
    ('W4A4', 1, ('weight',)),
    ('composite', JOINT, ('weight', 'iteration')),
    ('composite', 12, ('weight', 'iteration')),
    ('composite', 2, ('weight',)),
    ('composite', 4, ('weight', 'iteration')),
    (QAT, 1, ('weight',)),
    ('outputs', 4, ('weight', 'iteration')),
)
SHORT = (PLANS[0], PLANS[1])
TINY = (PLANS[0], ('composite', 4, ('weight', 'iteration')))
SIZES = dict(
    resnet18=(64, 224, 224),
    resnet50=(64, 224, 224),
    mobilenet_v2=(64, 224, 224),
    retinanet_r50=(2, 800, 1333),
    faster_rcnn_r50=(2, 800, 1333),
)
TINY_MODELS = dict(
    resnet18=('resnet18', (2, 32, 32)),
    resnet50=('resnet18', (2, 32, 32)),
    mobilenet_v2=('mobilenet_v2', (2, 32, 32)),
    retinanet_r50=('retinanet_shapes', (1, 64, 64)),
)


class Model:
    """A toolbox model at one size and precision, and its float step to compare with."""

    def __init__(self, name: str, dtype: str, settings: Settings) -> None:
        self.settings, self.dtype = settings, dtype
        self.name, self.size = name, SIZES[name]
        self.repeats, self.warmup = 10, 3
        if settings.tiny:
            self.name, self.size = TINY_MODELS[name]
            self.repeats = self.warmup = 1
        if settings.device == 'cuda':
            self.build(Variant('float', 'weight', 1))()  # what libraries allocate once
            self._free()
        before = self._allocated()
        self.float = self.build(Variant('float', 'weight', 1))
        self.float_memory = self._peak(self.float, before)

    def build(self, variant: Variant) -> Step:
        return Step(
            self.name,
            variant.variant,
            variant.step,
            self.size,
            variant.candidates,
            self.settings.device,
            DTYPES[self.dtype],
        )

    def measure(self, variant: Variant, step: Step, before: int) -> dict:
        """The record of a variant."""
        memory = self._peak(step, before)
        for _ in range(self.warmup):
            step()
        rounds = [(step(), self.float()) for _ in range(self.repeats)]

        def ratio(part: str) -> float:
            return round(median(a[part] / b[part] for a, b in rounds), 3)

        record = dict(
            model=self.name,
            dtype=self.dtype,
            input=list(self.size),
            **asdict(variant),
            time_ratio=ratio('total'),
            forward_ratio=ratio('forward'),
            backward_ratio=ratio('backward'),
            ms=round(median(a['total'] for a, _ in rounds) * 1e3, 3),
        )
        if memory:
            record.update(
                memory_ratio=round(memory / self.float_memory, 3),
                memory_mib=round(memory / 2**20, 1),
            )
        return record

    def records(self, plans: tuple) -> Iterator[dict]:
        """The records of a plan, the float net's first."""
        yield self.measure(Variant('float', 'weight', 1), self.float, 0) | (
            dict(memory_ratio=1.0, memory_mib=round(self.float_memory / 2**20, 1))
            if self.float_memory
            else {}
        )
        for name, candidates, kinds in plans:
            if name == QAT and is_detector(self.name):
                continue  # torch.fx cannot trace them
            self._free()
            before = self._allocated()
            step = None
            try:
                step = self.build(Variant(name, kinds[0], candidates))
                first = self._first(step)
                for kind in kinds:
                    step.step = kind
                    found = self.measure(Variant(name, kind, candidates), step, before)
                    yield found | dict(first_seconds=first)
            except Exception as error:  # out of memory, or not to be traced
                yield self.failed(name, kinds[0], candidates, error)
            del step

    def graphs(self) -> Iterator[dict]:
        """Records of the same steps without the host, where they can be captured."""
        base = None
        for name, candidates in (('float', 1), ('W4A4', 1), ('composite', 12)):
            self._free()
            step = self.build(Variant(name, 'weight', candidates))
            try:
                ms = graph_ms(step, self.repeats)
            except Exception as error:  # of any kind, from a capture
                yield self.failed(f'{name}, graph', 'weight', candidates, error)
                if base is None:
                    return
                continue
            base = base or ms
            yield dict(
                model=self.name,
                dtype=self.dtype,
                input=list(self.size),
                variant=f'{name}, graph',
                step='weight',
                candidates=candidates,
                time_ratio=round(ms / base, 3),
                ms=round(ms, 3),
            )
            del step

    def failed(self, name: str, step: str, candidates: int, error: Exception) -> dict:
        return dict(
            model=self.name,
            dtype=self.dtype,
            variant=name,
            step=step,
            candidates=candidates,
            note=last_line(error),
        )

    def _peak(self, step: Step, before: int) -> int:
        if self.settings.device == 'cuda':
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(1 if self.settings.tiny else 3):
            step()
        if self.settings.device != 'cuda':
            return 0
        return torch.cuda.max_memory_allocated() - before

    def _first(self, step: Step) -> float:
        """Seconds of the first step, in which kernels are compiled."""
        start = time.perf_counter()
        step()
        return round(time.perf_counter() - start, 2)

    def _allocated(self) -> int:
        on_gpu = self.settings.device == 'cuda'
        return torch.cuda.memory_allocated() if on_gpu else 0

    def _free(self) -> None:
        gc.collect()
        if self.settings.device == 'cuda':
            torch.cuda.empty_cache()


def graph_ms(step: Step, repeats: int) -> float:
    """Milliseconds of a step as one CUDA graph."""
    data = step.data()

    def once() -> None:
        for kind in step.kinds:
            step.backward(kind, step.forward(kind, data))
            step.update(kind)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


def run(records: Records, settings: Settings, models: tuple) -> None:
    """The stage: (name, dtype, 'all', 'short' or 'graphs') of every model."""
    for name, dtype, what in models:
        if what == 'graphs' and settings.device == 'cpu':
            records.add(skipped=f'{name}: graphs need CUDA')
            continue
        if settings.tiny and name not in TINY_MODELS:
            records.add(skipped=f'{name}: takes long to build')
            continue
        model = Model(name, dtype, settings)
        plans = TINY if settings.tiny else PLANS if what == 'all' else SHORT
        rows = model.graphs() if what == 'graphs' else model.records(plans)
        for row in rows:
            records.add(**row)
        del model, rows


def run_compiled(records: Records, settings: Settings) -> None:
    """The stage: torch.compile of the backbone; on a CPU without a code generator."""
    model = Model('resnet18', 'bfloat16', settings)
    backend = 'inductor' if settings.device == 'cuda' else 'eager'
    compiled = None
    variants = (('float', 1), ('W4A4', 1), ('composite', 4))
    for name, candidates in variants[: 1 if settings.tiny else None]:
        torch._dynamo.reset()
        step = model.build(Variant(name, 'weight', candidates))
        step.model.backbone = torch.compile(step.model.backbone, backend=backend)
        variant = Variant(name, 'weight', candidates)
        try:
            first = model._first(step)
            row = model.measure(variant, step, model._allocated())
        except Exception as error:  # of any kind, from a compiler
            records.add(**model.failed(f'{name}, compiled', 'weight', 1, error))
            continue
        compiled = compiled or row['ms']
        row.update(
            variant=f'{name}, compiled',
            first_seconds=first,
            to_compiled_float=round(row['ms'] / compiled, 3),
        )
        records.add(**row)
