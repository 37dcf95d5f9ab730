"""The command ``mmmpq``: a file for each of its verbs, imported when it is called."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    'run': 'all of it: search, fine-tune, test, export, report',
    'train': 'train, search or fine-tune',
    'test': 'test a checkpoint with the evaluator of a config',
    'cost': "what a config's model costs, layer by layer",
    'baseline': 'a policy without a gradient search, to compare with',
    'ptq': 'mixed precision without training, in minutes',
    'diagnose': 'where a quantized net leaves the float one, and what to do',
    'pareto': 'policies for many budgets from one finished search',
    'qfa-search': 'the best subnets of a trained supernet inside budgets',
    'export': 'a fine-tuned net as a packed or an ONNX file',
    'check': 'whether a target computes each layer in integers, and why not',
    'test-onnx': 'test an ONNX file with the evaluator of a config',
    'verify-integer': 'recompute every quantized layer with integers and compare',
    'profile-latency': 'time layers, or whole ONNX files, in ONNX Runtime',
    'report': 'the report of a search again, from its work_dir',
    'data digits': 'make the digits set',
    'data shapes': 'make the shapes set',
    'data fashion': 'fetch Fashion-MNIST: 70,000 photos of clothes',
    'data stamps': 'fetch cut-outs and photographs, make the stamps set',
    'data lite0': 'fetch the ImageNet weights of EfficientNet-Lite0',
    'demo': 'search, fine-tune, test and export a small RetinaNet',
    'qfa-demo': 'train one elastic net, take three nets out of it',
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the verb that comes first; ``mmmpq VERB --help`` has its flags."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ('-h', '--help'):
        print(_usage())
        return
    if words[0] == '--version':
        from mmmpq.version import __version__

        print(__version__)
        return
    for count in (2, 1):
        verb = ' '.join(words[:count])
        if verb in COMMANDS:
            command(verb, words[count:])
            return
    near = [v for v in COMMANDS if v.split()[0] == words[0]]
    if not near:
        from difflib import get_close_matches

        near = get_close_matches(words[0], COMMANDS, cutoff=0.4)
    print(
        f'mmmpq: found {words[0]!r}; accepted are {", ".join(COMMANDS)}'
        + (f'; near: {", ".join(near)}' if near else ''),
        file=sys.stderr,
    )
    sys.exit(2)


def command(verb: str, argv: Sequence[str] | None = None) -> None:
    """Run one verb; what the user did wrong ends as one line and status 2."""
    sys.argv = [f'mmmpq {verb}', *(sys.argv[1:] if argv is None else argv)]
    module = verb.replace('-', '_').replace(' ', '.')
    # Wrong flags, and --help, end here, before what takes seconds to import.
    import_module(f'mmmpq.cli.flags.{module}').parse_args()
    from mmmpq import compat

    # MMEngine's, and nothing that a user of ours can mend.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
    compat.prepare()
    from mmmpq.engine.launch import run

    run(import_module(f'mmmpq.cli.{module}').main)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    verbs = '\n'.join(f'  {verb:<{width}}  {text}' for verb, text in COMMANDS.items())
    return (
        'usage: mmmpq VERB [flags]\n\n'
        'Mixed-precision quantization search for MMDetection, MMPretrain and '
        'MMSegmentation.\n\n'
        f'{verbs}\n\nmmmpq VERB --help: its flags, with examples'
    )
