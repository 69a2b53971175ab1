"""A real Prometheus, with the shipped rules, that a test can ask."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

import dashboards
from tests.dashboards.processes import free_ports
from tests.dashboards.promtool import PROMETHEUS

PATIENCE_S = 30.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One that runs. ``url`` is where it listens."""

    url: str

    def get(self, path: str, **parameters: object) -> Any:
        """Return the data of an answer; an error of Prometheus is one here."""
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters, doseq=True)}"
        with urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310, our own
            document = json.load(answer)
        assert document["status"] == "success", document
        assert not document.get("warnings"), document
        return document["data"]

    def now(self, expression: str, at_s: float | None = None) -> list[Json]:
        """Return the series that an expression has, now or at a time."""
        data = self.get("query", query=expression, **({} if at_s is None else {"time": at_s}))
        return data["result"] if data["resultType"] == "vector" else [{"metric": {}, "value": data["result"]}]

    def over(self, expression: str, begin_s: float, end_s: float, step_s: float = 2.0) -> list[Json]:
        """Return the series that an expression has from one time to another, as a graph asks for them."""
        data = self.get("query_range", query=expression, start=begin_s, end=end_s, step=step_s)
        found: list[Json] = data["result"]
        return found

    def labels(self, name: str, begin_s: float) -> set[str]:
        """Return the labels that any series of this name has had since then."""
        return set(self.get("labels", start=begin_s, **{"match[]": name}))

    def wait_for(self, expression: str) -> list[Json]:
        """Return what comes back as soon as it is something."""
        due_at_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < due_at_s:
            with suppress(URLError, ConnectionError):
                if found := self.now(expression):
                    return found
            time.sleep(0.1)
        raise TimeoutError(f"nothing came back for {expression}")

    def wait_for_scrape(self, address: str) -> float:
        """Return when all that happened until now has been scraped from an address: a moment after that scrape."""
        up = f'up{{instance="{address}"}}'
        (series,) = self.wait_for(f"timestamp({up}) > {time.time()} and {up} == 1")
        return float(series["value"][1]) + 0.01


@contextmanager
def running_prometheus(folder: Path, targets: Sequence[str], *, is_patient: bool = False) -> Iterator[Prometheus]:
    """Run one until the end of the block; it scrapes all targets as one job, every second.

    The rules are the shipped ones, but that none waits for its group's own interval. Nor does an alert wait until what
    it sees has lasted, since a minute has to do for days; unless ``is_patient``.
    """
    assert PROMETHEUS
    (port,) = free_ports(1)
    files = dashboards.files(dashboards.Addresses(admin_address=targets[0]))
    for name in ("rules", "alerts"):
        groups = yaml.safe_load(files[f"prometheus/{name}.yaml"])["groups"]
        (folder / f"{name}.yaml").write_text(
            json.dumps({"groups": [_hurried(group, is_patient=is_patient) for group in groups]})
        )
    config = yaml.safe_load(files["prometheus/prometheus.yaml"])
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = list(targets)
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603, our own
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
                "--log.level=warn",
            ],
            stderr=log,
        )
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _hurried(group: Mapping[str, Any], *, is_patient: bool) -> Json:
    waits = set() if is_patient else {"for"}
    rules = [{name: value for name, value in rule.items() if name not in waits} for rule in group["rules"]]
    return {"name": group["name"], "rules": rules}
