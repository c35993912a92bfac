"""The camera application: video in, people with identities and events out. Needs the extra `watch`; no torch."""
