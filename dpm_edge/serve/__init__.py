"""One engine and one gallery over HTTP, on one machine: `dpm-edge serve`."""
