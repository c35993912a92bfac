"""`dpm-edge models`."""

from __future__ import annotations

import click

from dpm_edge.cli.options import as_json


@click.command("models", short_help="The models that ship: accuracy, speed, size, licence.")
@as_json
def command(as_json: bool) -> None:
    """List the models that ship, by the names that `build`, `adapt` and `train` take.

    mAP in percent, plain / masked metric, of 100 real people whom no model saw in training: whole queries, and queries
    with 20, 40 and 60 % of the picture covered (mean). Crops a second of one thread are the measuring machine's.

    \b
    Example:
      dpm-edge models
      dpm-edge build dpm-n -o engine
    """
    import json

    from dpm_edge import shipped

    cards = [shipped.card(name) for name in shipped.MODELS]
    if as_json:
        click.echo(json.dumps(cards, indent=2))
        return
    head = ("model", "input", "whole", "covered", "crops/s", "MB", "licence")
    rows = [
        (
            card["name"] + (" (default)" if card["name"] == shipped.DEFAULT else ""),
            "×".join(map(str, card["input"])),
            f"{card['whole']['plain']:.1f} / {card['whole']['masked']:.1f}",
            f"{card['covered']['plain']:.1f} / {card['covered']['masked']:.1f}",
            f"{card['crops_per_second']:.0f}",
            f"{card['bytes'] / 1e6:.1f}",
            card["licence"],
        )
        for card in cards
    ]
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for card in cards:
        click.echo(f"{card['name']}: {card['data']}")
    click.echo(
        f"Measured on {cards[0]['machine']}, {cards[0]['date']}; crops/s: OpenVINO float32, one thread, batch 16."
    )
