"""The alerts, by Prometheus' own means of testing them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from support.prometheus import needs_prometheus

CASES = Path(__file__).with_name("alerts.yaml")


@needs_prometheus
def test_alerts_come_when_they_should() -> None:
    """Each alert comes for the series that it is made for, with its words, and neither early nor for other series."""
    check = subprocess.run(["promtool", "test", "rules", CASES], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_alert_is_tried() -> None:
    """No alert is without a case in which it comes and one in which it does not."""
    cases = yaml.safe_load(CASES.read_text())
    (file,) = cases["rule_files"]
    (group,) = yaml.safe_load((CASES.parent / file).read_text())["groups"]
    tried = {(c["alertname"], bool(c["exp_alerts"])) for case in cases["tests"] for c in case["alert_rule_test"]}
    assert tried == {(rule["alert"], comes) for rule in group["rules"] for comes in (True, False)}
