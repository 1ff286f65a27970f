"""What this machine can do: versions, devices, access to models, disk, and the command to run next."""

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
    """One thing that was looked at."""

    status: Literal["ok", "note", "missing"]
    """`missing` is what has to change before anything runs; a `note` only limits what can run."""
    what: str
    found: str
    way_out: str = ""


def examine() -> list[Finding]:
    """Look at versions, devices, the Hub and the disk; only the Hub check uses the network, without sending data."""
    return [*_packages(), *_devices(), *_models(), *_disks()]


def next_command(findings: list[Finding]) -> str:
    """The command that this machine is ready for."""
    if missing := [finding for finding in findings if finding.status == "missing"]:
        return missing[0].way_out
    if any(finding.status == "note" for finding in findings):
        return "sae-lens-crosscoder demo"
    return "sae-lens-crosscoder plan --device cuda --d_model 2304 --d_sae 73728 --k 100"


def _packages() -> Iterator[Finding]:
    for line in requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue  # of an extra
        way_out = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("missing", requirement.name, "not installed", way_out)
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        supported = "" if fits else f", but {requirement.specifier} is supported"
        yield Finding("ok" if fits else "missing", requirement.name, found + supported, "" if fits else way_out)


def _devices() -> Iterator[Finding]:
    memory = memory_of("cpu")
    described = "" if memory is None else f", {memory / _GIB:.0f} GiB"
    yield Finding("ok", "CPU", f"{os.cpu_count()} cores{described}, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("note", "GPU", "none that torch sees", "The built-in pair needs none; Gemma 2 2B does.")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"cuda:{index}", f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")
    if torch.cuda.is_available() and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        yield Finding("note", "C compiler", "none, and Triton's kernels want one", "apt install gcc python3-dev")


def _models() -> Iterator[Finding]:
    for name in PAPER_PAIR:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            yield Finding("ok", name, "in the local cache")
            continue
        page = f"https://huggingface.co/{name}"
        try:
            auth_check(name)
        except GatedRepoError:
            way_out = f"accept its licence at {page}" + ("" if get_token() else ", then: hf auth login")
            yield Finding("note", name, "gated, and this account has no access", way_out)
        except RepositoryNotFoundError:
            yield Finding("note", name, "the Hub does not show it to this account", "hf auth login")
        except Exception as error:  # whatever keeps the Hub from answering is the finding
            found = f"the Hub cannot be reached ({type(error).__name__})"
            yield Finding("note", name, found, "Models in local folders and the built-in pair work without it.")
        else:
            yield Finding("ok", name, "may be downloaded")


def _disks() -> Iterator[Finding]:
    for what, path in {"disk here": Path.cwd(), "disk of the Hub's cache": Path(HF_HUB_CACHE)}.items():
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        enough = free >= _DISK_FOR_THE_PAPER
        way_out = (
            f"The paper's setting takes about {_DISK_FOR_THE_PAPER / _GIB:.0f} GiB; `plan` says how much yours takes."
        )
        yield Finding("ok" if enough else "note", what, f"{free / _GIB:.0f} GiB free", "" if enough else way_out)
