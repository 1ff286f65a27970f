"""Start the server: find the crosscoders, explore them, load the models, and listen."""

import contextlib
import importlib.util
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import validate_two_models
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.explorer.page import explorer_page
from sae_lens_crosscoder.serving.config import ServeConfig
from sae_lens_crosscoder.serving.guard import is_loopback
from sae_lens_crosscoder.serving.live_models import LiveCrosscoder, LiveModels
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.saved_run import load_runner_config
from sae_lens_crosscoder.workflows.auditing.saved_audit import explore_audit, load_audit_config
from sae_lens_crosscoder.workflows.explore_folder import ReportConfig, explore_folder, validate_report_folders
from sae_lens_crosscoder.workflows.saved_crosscoders import crosscoder_folders, load_pair

logger = logging.getLogger(__name__)

_NEEDED = ("starlette", "uvicorn", "jsonschema")


@validate_arguments
def serve(cfg: ServeConfig, announce: Callable[[str], object] = print) -> None:
    """Serve the explorer of saved crosscoders with a panel that runs their models; returns on Ctrl-C.

    Whoever has the address can run the models. So it is made anew at every start, and only this machine can reach it
    unless `host` says otherwise.

    Args:
        announce: gets the address to open; by default it is printed.

    Raises:
        ValueError: for a folder that training did not write, crosscoders of different pairs or of more than two models,
            or if the extra `serve` is not installed.
    """
    validate_installed()
    with _listen(cfg) as listening:  # before the long work, so that a port in use is known at once
        models, page = prepare(cfg)
        token = secrets.token_urlsafe(24)
        if not is_loopback(cfg.host):
            logger.warning(
                "Listening on %s: everyone who reaches this machine and has the address can run the models.", cfg.host
            )
        announce(address(cfg.host, listening.getsockname()[1], token))
        with contextlib.suppress(KeyboardInterrupt):  # after which nothing is left to be done
            run_server(models, page, listening, token=token, host=cfg.host)


def address(host: str, port: int, token: str) -> str:
    """The address of the page.

    >>> address("::1", 8000, "secret")
    'http://[::1]:8000/?token=secret'
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={token}"


def run_server(models: LiveModels, page: str, listening: socket.socket, *, token: str, host: str) -> None:
    """Answer requests at a socket that listens, until Ctrl-C."""
    import uvicorn

    from sae_lens_crosscoder.serving.app import make_app

    app = make_app(models, page, token=token, host=host)
    # The access log would write the token of the address.
    options = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    with _pythons_own_ctrl_c():
        uvicorn.Server(options).run(sockets=[listening])


@contextlib.contextmanager
def _pythons_own_ctrl_c() -> Generator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: after a training in this process, SAELens's handler is in its place."""
    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _listen(cfg: ServeConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(cfg.host, cfg.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((cfg.host, cfg.port), family=family, backlog=256)
    except OSError as error:
        raise ValueError(
            f"Cannot listen on host={cfg.host!r}, port={cfg.port}: {error}. Pass another port, or 0 for a free one."
        ) from error


def validate_installed() -> None:
    """Raise a ValueError with the command that installs what the server needs."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"serve needs {' and '.join(missing)}. Run: pip install 'sae-lens-crosscoder[serve]'")


def prepare(cfg: ServeConfig) -> tuple[LiveModels, str]:
    """Load what is served: the models with their crosscoders, and the page."""
    audit = load_audit_config(cfg.crosscoder)
    report = ReportConfig(crosscoder=cfg.crosscoder, n_held_out_rows=cfg.n_held_out_rows, n_conversations=0)
    folders = validate_report_folders(report) if audit is None else crosscoder_folders(cfg.crosscoder)
    folders = folders if audit is None else dict(sorted(folders.items()))  # by seed
    crosscoders = {name: load(str(folder)) for name, folder in folders.items()}
    for crosscoder in crosscoders.values():
        validate_two_models(crosscoder, "serve")
    if audit is not None:
        audited, n_prompts = audit
        pair = load_pair(crosscoders, cfg.crosscoder, model_class_name=audited.model_class_name, dtype=audited.dtype)
        explorations = explore_audit(crosscoders, pair, audited, n_prompts, cfg.n_held_out_rows)
    else:
        explorations = {name: explore_folder(report, folder) for name, folder in folders.items()}
        run = load_runner_config(str(next(iter(folders.values()))))
        pair = _pair_of_run(crosscoders, cfg.crosscoder, run)
        crosscoders = {name: crosscoder.to(run.device) for name, crosscoder in crosscoders.items()}
    live = {name: LiveCrosscoder(crosscoder, explorations[name].table) for name, crosscoder in crosscoders.items()}
    models = LiveModels(pair, live, cfg.limits)
    return models, explorer_page(explorations, live=models.description())


def _pair_of_run(
    crosscoders: Mapping[str, InferenceCrosscoder], folder: str, run: CrosscoderRunnerConfig
) -> HookedModelPair:
    """The models on the devices and in the precision of the training run."""
    return load_pair(
        crosscoders,
        folder,
        device=run.llm_device or run.device,
        chat_device=run.chat_device,
        dtype=run.model_dtype,
        **(run.model_from_pretrained_kwargs or {}),
    )
