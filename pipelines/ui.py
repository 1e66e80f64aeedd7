"""MLflow's UI for a workdir's runs: starts the server, prints the address, ends with Ctrl-C.

The address opens the runs as model training. The server listens on this computer only. With
--tracking-uri of a server, which runs already, its address is printed.

    alexnet ui --workdir /data/work
    alexnet ui --workdir /data/work --port 8080
"""

from typing import NoReturn

from alexnet import storage
from alexnet.errors import UserError
from pipelines.configuration.command_settings import UiSettings
from pipelines.console.cli import run_script
from pipelines.console.interrupt import Interrupted
from pipelines.console.log import stage_logger
from pipelines.results.command_results import UiResult
from pipelines.tracking.store import connect
from pipelines.tracking.ui_server import serve
from pipelines.workdir import Workdir

CTRL_C = 130
"""Exit status of a command that Ctrl-C interrupts; it is how this one ends as it should."""


def run(settings: UiSettings) -> UiResult:
    """Serve until Ctrl-C.

    Raises:
        UserError: there is nothing to show, the port is not free, or the server does not start.
    """
    workdir, log = Workdir(settings.workdir), stage_logger("ui")
    if settings.tracking_uri is None and not storage.is_file(workdir.database):
        raise UserError(
            f"{workdir.path}: contains no runs yet; run pipelines/full_run.py first, or check "
            "--workdir"
        )
    store = connect(settings)
    if store.has_server:
        log.info("%s", store.runs_address())
        return UiResult(address=store.runs_address())
    with serve(store, workdir, settings.port) as server:
        address = store.runs_address(server.address)
        log.info("%s (Ctrl-C ends the server)", address)
        try:
            server.wait()
        except Interrupted as interrupted:
            if interrupted.exit_status != CTRL_C:
                raise
            log.info("ended")
    return UiResult(address=address)


def main() -> NoReturn:
    """The command."""
    run_script(UiSettings, run, __doc__)


if __name__ == "__main__":
    main()
