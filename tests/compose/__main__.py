"""`make compose-test`: the project's own images and compose file, run for real in containers.

Ends with 0 if every figure was reached, 1 if one was not or a step failed, 2 if containers cannot run here at all.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.compose.engine import CannotRun, CommandFailed, Engine
from tests.compose.images import assert_containers_run, build_images, make_base_images
from tests.compose.scenario import change_under_load, segment_a_photograph
from tests.compose.stack import PROJECT
from tests.compose.table import COLUMNS, Row, write_into


def main() -> int:
    """Run the whole scenario, clean up whatever happens, and return the exit status."""
    arguments = _arguments()
    # A SIGTERM cleans up, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows: list[Row] = []
    failure = ""
    try:
        engine = Engine(arguments.folder.expanduser())
        try:
            _run(engine, arguments.mirror, rows)
        finally:
            _clean_up(engine, forget=arguments.forget)
    except CannotRun as error:
        print(f"Containers cannot run here, so nothing was tested: {error}", file=sys.stderr)
        return 2
    except (CommandFailed, KeyboardInterrupt) as error:
        failure = str(error) or "interrupted"
    _print(rows)
    if arguments.table and not failure:
        write_into(arguments.table, rows, _note())
    broken = [row for row in rows if not row.held]
    if failure:
        print(f"It ended early, which is a failure: {failure}", file=sys.stderr)
    elif broken:
        print(f"{len(broken)} of {len(rows)} figures were not reached.", file=sys.stderr)
    return 1 if failure or broken else 0


def _run(engine: Engine, mirror: str, rows: list[Row]) -> None:
    def report(row: Row) -> None:
        rows.append(row)
        print(f"{'ok  ' if row.held else 'FAIL'} {row.done}: {row.seen} (required: {row.required})", flush=True)

    engine.clean_up()
    make_base_images(engine, mirror=mirror)
    assert_containers_run(engine)
    log = engine.folder / "build.log"
    log.unlink(missing_ok=True)
    build_images(engine, PROJECT, log)
    with tempfile.TemporaryDirectory() as folder:
        segment_a_photograph(engine, Path(folder), report)
    asyncio.run(change_under_load(engine, report))


def _clean_up(engine: Engine, *, forget: bool) -> None:
    print("Cleaning up", flush=True)
    # Once begun, it is gone through with.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    engine.clean_up()
    if forget:
        engine.forget_images()
    else:
        print(f"Images are kept in {engine.folder} for the next run; ARGS=--forget removes them at the end.")
    engine.close()


def _arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    parser = argparse.ArgumentParser(prog="make compose-test", description=__doc__)
    parser.add_argument("--table", type=Path, metavar="FILE", help="a Markdown file to write the table into")
    parser.add_argument(
        "--mirror", default=os.environ.get("DEBIAN_MIRROR", ""), metavar="URL", help="a mirror of Debian"
    )
    parser.add_argument("--forget", action="store_true", help="remove the images as well at the end, about 6 GB")
    parser.add_argument(
        "--folder",
        type=Path,
        default=cache / "samovar-compose-test",
        help="where images are kept (default: %(default)s)",
    )
    return parser.parse_args()


def _note() -> str:
    machine = f"{os.cpu_count()} cores, on average {os.getloadavg()[2]:.0f} processes that wanted them"
    return f"Run of {datetime.date.today():%d %B %Y}: {machine}, Linux {platform.release()}."


def _print(rows: list[Row]) -> None:
    table = Table(*COLUMNS, title="The compose file in containers", show_lines=True)
    for row in rows:
        table.add_row(*row.cells())
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(main())
