import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent
version = {}
exec((root / 'mmmpq' / 'version.py').read_text(), version)
readme = root / 'README.md'


class BuildWithConfigs(build_py):
    """Put configs, tools and the model index where OpenMMLab's `mim` looks for them.

    An editable install needs no copy: they lie in the clone.
    """

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        target = Path(self.build_lib) / 'mmmpq' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        for name in ('configs', 'tools'):
            if (root / name).is_dir():
                shutil.copytree(root / name, target / name, ignore=ignore)
        shutil.copy(root / 'model-index.yml', target)


setup(
    name='mmmpq',
    version=version['__version__'],
    description='Mixed-precision quantization search for MMDetection and MMPretrain',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author='The mmmpq authors',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['mmmpq', 'mmmpq.*']),
    package_data={
        'mmmpq': [
            f'**/*.{kind}' for kind in ('json', 'yml', 'csv', 'html', 'css', 'cpp')
        ]
    },
    cmdclass={'build_py': BuildWithConfigs},
    # Wider than requirements.txt, which pins what is tested; importing mmmpq warns of
    # newer versions. mmdet 3.3 itself asks for mmcv < 2.2. mmengine reads
    # pkg_resources, which setuptools 82 dropped.
    install_requires=[
        'torch>=2.1',
        'torchvision',
        'mmengine>=0.10',
        'mmcv>=2.0.0',
        'mmdet>=3.0,<4',
        'mmpretrain>=1.0,<2',
        'setuptools<82',
        'numpy',
        'scipy>=1.9',
        'scikit-learn',
        'matplotlib',
        'rich',
        'safetensors',
    ],
    extras_require={
        'deploy': ['onnx', 'onnxruntime'],
        'qfa': ['pymoo'],
        'dev': ['pytest', 'pytest-xdist', 'hypothesis', 'ruff', 'pre-commit'],
    },
    zip_safe=False,
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
