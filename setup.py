"""Package metadata; the build system and the tools' settings are in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "ssql_det/__init__.py").read_text("utf-8")).group(1)

DEPLOY = ["onnx>=1.16", "onnxscript>=0.5", "onnxruntime>=1.19"]  # export, and run what was exported


class BuildWithConfigs(build_py):
    """Puts the repository's configs/ into the wheel as ssql_det/configs, where core/config_files.py looks for them."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "ssql_det/configs"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(HERE / "configs", target)


setup(
    name="ssql_det",
    version=VERSION,
    description="Pretrain a ResNet that survives quantization and measure its detector at every bit-width",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["ssql_det", "ssql_det.*"]),
    package_data={"ssql_det": ["py.typed"], "ssql_det.report": ["published/*.json"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0",
        "numpy>=1.26",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "pycocotools>=2.0.7",
        "opencv-python-headless>=4.8",
        "pillow>=10.1",
        "pyyaml>=6.0",
        "rich>=13.0",
        "tabulate>=0.9",
        "termcolor>=2.0",
        "tensorboard>=2.15",
        "scikit-learn>=1.4",
        "scipy>=1.9",
        "threadpoolctl>=3.1",
        "safetensors>=0.4.3",
    ],
    extras_require={
        "completion": ["argcomplete>=3.1"],
        "deploy": DEPLOY,
        "openvino": ["openvino>=2024.4"],
        "dev": [
            *DEPLOY,
            *("argcomplete>=3.1", "hypothesis>=6.100", "matplotlib>=3.8", "mypy>=1.11", "pytest>=8.0"),
            *("pytest-xdist>=3.5", "ruff>=0.6", "types-PyYAML"),
        ],
    },
    entry_points={"console_scripts": ["ssql-det = ssql_det.cli.main:main"]},
)
