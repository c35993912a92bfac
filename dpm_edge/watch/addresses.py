"""What an address of a camera is: a device, a file, a folder or a stream; and how to show it without its password."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from dpm_edge.errors import SourceError

STREAMS = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
"""Schemes of streams."""
SECRET_WORDS = re.compile(r"pass|pwd|secret|token|key|auth|sig|user|login", re.IGNORECASE)
"""Names of a query's values that are not shown."""
HIDDEN = "***"


def kind(address: str | int | Path) -> str:
    """Say what an address is: "device", "stream", "folder" or "file".

    Raises:
        SourceError: the address is empty, or has a scheme that is none of a stream.
    """
    text = str(address).strip()
    if not text:
        raise SourceError("expected the address of a camera, got nothing. Give a file, a folder, rtsp://… or a number")
    if text.isdigit() or re.fullmatch(r"/dev/video\d+", text):
        return "device"
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme:
        if scheme[1].lower() in STREAMS:
            return "stream"
        raise SourceError(
            f"expected a file, a folder, a number or {', '.join(f'{one}://' for one in STREAMS)}, got {scheme[1]}://. "
            "Check the address"
        )
    return "folder" if Path(text).is_dir() else "file"


def redacted(address: str | int | Path) -> str:
    """Show an address without user name, password, tokens and keys."""
    text = str(address)
    if "://" not in text:
        return text
    scheme, rest = text.split("://", 1)
    host = rest.split("/", 1)[0] if "@" not in rest else rest[: _end_of_host(rest)]
    if "@" in host:  # a password may hold "/", "@" or "#", so it ends at the last "@" before the path
        rest = f"{HIDDEN}@{host.rsplit('@', 1)[1]}{rest[len(host) :]}"
    parts = urlsplit(f"{scheme}://{rest}")
    if not parts.query:
        return f"{scheme}://{rest}"
    query = [(k, HIDDEN if SECRET_WORDS.search(k) else v) for k, v in parse_qsl(parts.query, keep_blank_values=True)]
    return urlunsplit(parts._replace(query=urlencode(query, safe="*/:")))


def without_secrets(message: str, address: str | int | Path) -> str:
    """Take an address, and the user name and password in it, out of a message of a library."""
    text = str(address)
    message = message.replace(text, redacted(text))
    if "://" in text and "@" in text:
        login = text.split("://", 1)[1].rsplit("@", 1)[0]
        for secret in sorted({login, *login.split(":", 1)}, key=len, reverse=True):
            if len(secret) >= 3:
                message = message.replace(secret, HIDDEN)
    return message


def _end_of_host(rest: str) -> int:
    """Where "user:password@host:port" ends."""
    after = rest.rindex("@")
    end = re.search(r"[/?#]", rest[after:])
    return len(rest) if end is None else after + end.start()
