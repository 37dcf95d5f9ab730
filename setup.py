"""What pyproject.toml cannot say: files that are installed elsewhere than they lie."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

root = Path(__file__).resolve().parent
# Read by Python at its start: lets mmcv find the operators that mmcv-lite lacks.
FINDER = root / 'mmmpq' / 'mmcv_ext' / 'mmmpq-mmcv-ext.pth'


class BuildWithConfigs(build_py):
    """Put configs, tools and the model index where OpenMMLab's `mim` looks for them.

    An editable install needs no copy: they lie in the clone.
    """

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        shutil.copy(FINDER, self.build_lib)
        target = Path(self.build_lib) / 'mmmpq' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        for name in ('configs', 'tools'):
            if (root / name).is_dir():
                shutil.copytree(root / name, target / name, ignore=ignore)
        shutil.copy(root / 'model-index.yml', target)


class EditableWithFinder(editable_wheel):
    """Adds the finder to `pip install -e .`; setuptools has no public way to."""

    def _run_build_commands(self, dist_name, unpacked_wheel, *folders):
        shutil.copy(FINDER, unpacked_wheel)
        return super()._run_build_commands(dist_name, unpacked_wheel, *folders)


setup(cmdclass={'build_py': BuildWithConfigs, 'editable_wheel': EditableWithFinder})
