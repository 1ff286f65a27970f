"""Check this machine: versions, devices, access to models, disk, and the command to run next."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import auth_check, get_token, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from packaging.requirements import Requirement

from sae_lens_crosscoder.models.devices import memory_of

DISTRIBUTION = "sae-lens-crosscoder"
PAPER_PAIR = ("google/gemma-2-2b", "google/gemma-2-2b-it")
_GIB = 2**30
# Both Gemma 2 2B models in float32 as the Hub stores them, and a crosscoder with its checkpoints.
_DISK_FOR_THE_PAPER = 40 * _GIB


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    status: Literal["ok", "note", "missing"]
    """`missing` must be fixed before anything runs; a `note` only limits what can run."""
    name: str
    result: str
    fix: str = ""


def examine() -> list[Finding]:
    """Check versions, devices, the Hub and the disk. Only the Hub check uses the network, and it sends no data."""
    return [*_packages(), *_devices(), *_models(), *_disks()]


def next_command(findings: list[Finding]) -> str:
    """Return the command that this machine is ready for."""
    if missing := [finding for finding in findings if finding.status == "missing"]:
        return missing[0].fix
    if any(finding.status == "note" for finding in findings):
        return "sae-lens-crosscoder demo"
    return "sae-lens-crosscoder plan --device cuda --d_model 2304 --d_sae 73728 --k 100"


def _packages() -> Iterator[Finding]:
    try:
        required = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        yield Finding("note", DISTRIBUTION, "not installed, runs from its source tree", "pip install -e .")
        return
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue  # belongs to an extra
        fix = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("missing", requirement.name, "not installed", fix)
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        supported = "" if fits else f", but {requirement.specifier} is supported"
        yield Finding("ok" if fits else "missing", requirement.name, installed + supported, "" if fits else fix)


def _devices() -> Iterator[Finding]:
    memory = memory_of("cpu")
    described = "" if memory is None else f", {memory / _GIB:.0f} GiB"
    yield Finding("ok", "CPU", f"{os.cpu_count()} cores{described}, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("note", "GPU", "none visible to torch", "The built-in pair needs none; Gemma 2 2B does.")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"cuda:{index}", f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    if torch.cuda.is_available() and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        yield Finding("note", "C compiler", "none, but Triton's kernels need one", "apt install gcc python3-dev")


def _models() -> Iterator[Finding]:
    for name in PAPER_PAIR:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            yield Finding("ok", name, "in the local cache")
            continue
        page = f"https://huggingface.co/{name}"
        try:
            auth_check(name)
        except GatedRepoError:
            fix = f"accept its licence at {page}" + ("" if get_token() else ", then: hf auth login")
            yield Finding("note", name, "gated, and this account has no access", fix)
        except RepositoryNotFoundError:
            yield Finding("note", name, "not visible to this account on the Hub", "hf auth login")
        except Exception as error:  # any failure to reach the Hub is the finding
            result = f"the Hub cannot be reached ({type(error).__name__})"
            yield Finding("note", name, result, "Models in local folders and the built-in pair work without it.")
        else:
            yield Finding("ok", name, "can be downloaded")


def _disks() -> Iterator[Finding]:
    for name, path in {"disk here": Path.cwd(), "disk of the Hub's cache": Path(HF_HUB_CACHE)}.items():
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        enough = free >= _DISK_FOR_THE_PAPER
        fix = f"The paper's setting takes about {_DISK_FOR_THE_PAPER / _GIB:.0f} GiB; `plan` says how much yours takes."
        yield Finding("ok" if enough else "note", name, f"{free / _GIB:.0f} GiB free", "" if enough else fix)
