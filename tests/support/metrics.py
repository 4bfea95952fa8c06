"""Reading metrics as a scraper does."""

import http.client
import socket
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset], float]


class Metrics:
    """The samples of one scrape.

    metrics["imgvol_layers", "state=lazy"] -> 2.0
    """

    def __init__(self, text: str):
        self.families = list(text_string_to_metric_families(text))
        self._samples = {
            (sample.name, frozenset(f"{k}={v}" for k, v in sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __getitem__(self, wanted: str | tuple[str, ...]) -> float:
        name, *labels = [wanted] if isinstance(wanted, str) else wanted
        return self._samples[name, frozenset(labels)]

    def get(self, *wanted: str) -> float:
        """The same, 0 for what is not there yet."""
        name, *labels = wanted
        return self._samples.get((name, frozenset(labels)), 0.0)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def scrape(path: Path, timeout: float = 5.0) -> Metrics:
    """Asks a daemon's socket."""
    connection = _Connection(path, timeout)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, body
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return Metrics(body)
    finally:
        connection.close()
