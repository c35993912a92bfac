"""How a browser gets onto the page: the form that asks for the token, and what the browser may load."""

from __future__ import annotations

from dpm_edge.web.access import AccessRules

FORM = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dpm-edge watch</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/static/style.css"></head><body class="sign-in"><main><h1>dpm-edge watch</h1>
<form method="get" action="/"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></form>
<p>The command <code>dpm-edge watch</code> printed it when it started.</p></main></body></html>"""

RULES = AccessRules(
    open_paths=("/static/style.css", "/healthz"),
    headers={
        "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
        "script-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    },
    sign_in=FORM,
)
