"""`dpm-edge trust`."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json


@click.command("trust", short_help="Vouch for a TensorRT plan, so that it may be opened here.")
@click.argument("engine", type=PATH, required=False)
@click.option("--list", "as_list", is_flag=True, help="List the plans that are trusted.")
@click.option("--remove", is_flag=True, help="Trust the plan of ENGINE no longer.")
@as_json
def command(engine: Path | None, as_list: bool, remove: bool, as_json: bool) -> None:
    """Put the plan of the engine directory ENGINE on the list of those that may be opened here.

    A TensorRT plan is code: it is opened only where it was built, or where somebody vouched for it. The list holds
    sha256 sums, so that a plan that is replaced is no longer trusted. It lies in the file that $DPM_EDGE_TRUST names,
    or in dpm-edge/trusted.json in your configuration folder.

    \b
    Example:
      dpm-edge trust engine-from-the-lab
      dpm-edge trust --list
    """
    import dataclasses
    import json

    from dpm_edge.runtime import trust

    if (engine is None) != as_list or (as_list and remove):
        raise click.UsageError("either ENGINE (with or without --remove) or --list is wanted")
    if engine is None:
        known = trust.listed()
        if as_json:
            rows = [dataclasses.asdict(one) for one in known]
            click.echo(json.dumps({"file": str(trust.place()), "trusted": rows}, indent=2))
            return
        for one in known:
            click.echo(f"{one.sha256[:16]}  {one.date}  {one.folder}")
        click.echo(f"{len(known)} trusted, in {trust.place()}", err=True)
        return
    changed = trust.remove(engine) if remove else bool(trust.add(engine))
    words = ("no longer trusted" if changed else "was not trusted") if remove else "trusted"
    if as_json:
        click.echo(json.dumps({"engine": str(engine), "state": words, "file": str(trust.place())}, indent=2))
    else:
        click.echo(f"{engine}: {words}")
