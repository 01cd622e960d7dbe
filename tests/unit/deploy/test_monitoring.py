"""Rules, dashboard and scrape config: they fit Prometheus, the code, and the operator's book."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.contract import EDGES, PORTS
from tests.unit.deploy.exported import FOREIGN, exported
from tests.unit.deploy.promql import named

FOLDER = Path(__file__).parents[3] / "deploy" / "monitoring"
RULES, TESTS = FOLDER / "rules" / "vlmir.yml", FOLDER / "rules" / "vlmir_test.yml"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "vlmir.json"
BOOK = FOLDER.parent / "OPERATIONS.md"
TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""
REPLICA = {"application", "deployment", "replica"}
"""Labels that Ray adds."""
UNITS = {"bytes", "none", "ops", "percentunit", "reqps", "s", "short", "µs"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on the PATH"
)


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Metric → labels."""
    return {**exported(), **FOREIGN}


def rules(text: str | None = None) -> list[dict[str, Any]]:
    groups = yaml.safe_load(text or RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return loaded


def queries(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (one["expr"] for one in board["annotations"]["list"])


def promtool(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def misnamed(expression: str, known: Mapping[str, set[str]]) -> list[str]:
    """What an expression names and nobody exports."""
    metrics, grouped = named(expression)
    faults = [f"no metric {name}" for name, _ in metrics if name not in known]
    for name, labels in metrics:
        odd = labels - known.get(name, labels) - TARGET - REPLICA
        faults += [f"{name} has no label {label}" for label in sorted(odd)]
    all_labels = set[str]().union(*(known.get(name, set()) for name, _ in metrics))
    odd = grouped - all_labels - TARGET - REPLICA
    return faults + [f"nothing has the label {label}" for label in sorted(odd)]


def with_recorded(known: dict[str, set[str]]) -> dict[str, set[str]]:
    """With the metrics that rules record."""
    return known | {
        rule["record"]: named(rule["expr"]).grouped - {"le"} for rule in rules() if "record" in rule
    }


def anchors(book: str) -> set[str]:
    """Those that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", book, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- what Prometheus says


@needs_promtool
def test_prometheus_takes_config_and_rules() -> None:
    code, said = promtool("check", "config", FOLDER / "prometheus.yml")
    assert code == 0, said
    assert f"SUCCESS: {len(rules())} rules found" in said


@needs_promtool
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("for: 1m", "fro: 1m"),
        ("expr: vlmir_releases == 0", "expr: vlmir_releases == )"),
        ("for: 1m", "for: soon"),
    ],
)
def test_broken_rules_are_noticed(tmp_path: Path, right: str, wrong: str) -> None:
    text = RULES.read_text("utf-8")
    assert right in text
    (tmp_path / "broken.yml").write_text(text.replace(right, wrong, 1), "utf-8")
    assert promtool("check", "rules", tmp_path / "broken.yml")[0] != 0


@needs_promtool
def test_a_broken_config_is_noticed(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yml").read_text("utf-8")
    (tmp_path / "prometheus.yml").write_text(text.replace("job_name:", "jobname:", 1), "utf-8")
    assert promtool("check", "config", "--syntax-only", tmp_path / "prometheus.yml")[0] != 0


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    code, said = promtool("test", "rules", TESTS)
    assert code == 0, said


@needs_promtool
@pytest.mark.parametrize("always", ["vector(1)", "vector(1) < 0"], ids=["always", "never"])
def test_an_alert_that_looks_at_nothing_fails_its_test(tmp_path: Path, always: str) -> None:
    groups = yaml.safe_load(RULES.read_text("utf-8"))
    for group in groups["groups"]:
        for rule in group["rules"]:
            rule["expr"] = always if "alert" in rule else rule["expr"]
    (tmp_path / "vlmir.yml").write_text(yaml.safe_dump(groups), "utf-8")
    shutil.copy(TESTS, tmp_path)
    code, said = promtool("test", "rules", tmp_path / TESTS.name)
    assert code != 0
    noticed = set(re.findall(r"alertname: ?(\w+)", said))
    assert noticed >= {rule["alert"] for rule in alerts()}


def test_each_alert_is_tested_both_ways() -> None:
    fires, silent = set(), set()
    for test in yaml.safe_load(TESTS.read_text("utf-8"))["tests"]:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
    assert fires == silent == {rule["alert"] for rule in alerts()}


# --- what the code says


def test_rules_name_what_is_exported(known: dict[str, set[str]]) -> None:
    every = with_recorded(known)
    faults = {
        rule.get("alert", rule.get("record")): misnamed(rule["expr"], every) for rule in rules()
    }
    assert not {name: found for name, found in faults.items() if found}


def test_summaries_name_labels_that_are_left(known: dict[str, set[str]]) -> None:
    every = with_recorded(known)
    for rule in alerts():
        metrics, grouped = named(rule["expr"])
        aggregated = bool(grouped) or re.match(r"(sum|count|min|max|avg|absent)\b", rule["expr"])
        left = grouped if aggregated else {"job", "instance"}.union(*(every[m] for m, _ in metrics))
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert used <= left, rule["alert"]


def test_the_dashboard_names_what_is_exported(known: dict[str, set[str]]) -> None:
    every = with_recorded(known)
    faults = {query: misnamed(query, every) for query in queries(dashboard())}
    assert not {query: found for query, found in faults.items() if found}


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rate(vlmir_request_total[5m])", "no metric vlmir_request_total"),
        ('vlmir_requests_total{status="OK"}', "vlmir_requests_total has no label status"),
        ("sum by (stages) (vlmir_stage_seconds_sum)", "nothing has the label stages"),
        ("vlmir_steps_total and nothing", "no metric nothing"),
    ],
)
def test_misnamed_metrics_and_labels_are_noticed(
    known: dict[str, set[str]], expression: str, fault: str
) -> None:
    assert misnamed(expression, known) == [fault]


def test_expressions_are_read_as_meant() -> None:
    metrics, grouped = named(
        "histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{x=~\"b(c)[-/]\", y!='by'}[5m]))) "
        "or b:c:rate5m offset 5m > bool 1e6 * on (z) group_left () d"
    )
    assert metrics == [("a_bucket", {"x", "y"}), ("b:c:rate5m", set()), ("d", set())]
    assert grouped == {"le", "job", "z"}


def test_names_follow_the_convention(known: dict[str, set[str]]) -> None:
    ours = {name for name in known if name.startswith("vlmir_")}
    assert len(ours) > 25
    wrong = re.compile(r"[A-Z]|_(ms|milliseconds|kb|mb|percent|minutes)(_|$)|__")
    assert not [name for name in ours if wrong.search(name)]


def test_ports_and_jobs_are_those_of_the_contract() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    watched = {server for client, server in EDGES if client == "prometheus"}
    assert set(jobs) == watched | {"prometheus"}
    ports = {name: numbers.get("metrics") for name, numbers in PORTS.items()}
    ports |= {"restorer": PORTS["ray"]["metrics"], "minio": PORTS["minio"]["s3"]}
    for name in watched:
        (found,) = jobs[name]["dns_sd_configs"]
        assert (found["names"], found["port"]) == ([name], ports[name])
    assert jobs["prometheus"]["static_configs"] == [
        {"targets": [f"localhost:{PORTS['prometheus']['http']}"]}
    ]


def test_rules_know_the_jobs_of_compose_and_of_kubernetes() -> None:
    patterns = [
        found for rule in rules() for found in re.findall(r'job=~"([^"]+)"', str(rule["expr"]))
    ]
    assert len(patterns) > 4
    for pattern in patterns:
        assert re.fullmatch(pattern, "gateway")
        assert re.fullmatch(pattern, "vlmir-gateway")
        assert re.fullmatch(pattern, "vlmir/vlmir-gateway")
        assert not re.fullmatch(pattern, "thegateway")


def test_the_replicas_metrics_get_the_names_of_the_others(known: dict[str, set[str]]) -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "restorer")
    rename = job["metric_relabel_configs"][0]
    assert rename["source_labels"] == ["__name__"] and rename["target_label"] == "__name__"
    match = re.fullmatch(rename["regex"], "ray_vlmir_requests_total")
    assert match and match[1] in known and rename["replacement"] == "$1"
    assert not re.fullmatch(rename["regex"], "ray_serve_deployment_queued_queries")


# --- the dashboard itself


def flaws(board: dict[str, Any]) -> list[str]:
    panels = board["panels"]
    shown = [panel for panel in panels if panel["type"] != "row"]
    found = []
    if len({panel["id"] for panel in panels}) < len(panels):
        found.append("two panels have the same id")
    if not any(one["type"] == "datasource" for one in board["templating"]["list"]):
        found.append("there is no variable for the data source")
    for panel in shown:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        if any(source["uid"] != "${datasource}" for source in sources):
            found.append(f"{panel['title']} has a data source of its own")
        if panel["fieldConfig"]["defaults"].get("unit") not in UNITS:
            found.append(f"{panel['title']} has no unit")
        if not panel.get("description"):
            found.append(f"{panel['title']} does not say what it shows")
        if len({target["refId"] for target in panel["targets"]}) < len(panel["targets"]):
            found.append(f"{panel['title']} has two queries of one name")
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    if len(set(places)) < len(places) or max(x for x, _ in places) >= 24:
        found.append("panels overlap")
    return found


def test_the_dashboard_is_sound() -> None:
    assert flaws(dashboard()) == []


@pytest.mark.parametrize(
    ("spoil", "flaw"),
    [
        (lambda b: b["panels"][1].update(id=b["panels"][2]["id"]), "same id"),
        (lambda b: b["templating"].update(list=[]), "variable"),
        (lambda b: b["panels"][1]["fieldConfig"]["defaults"].pop("unit"), "no unit"),
        (lambda b: b["panels"][1]["datasource"].update(uid="abc"), "data source of its own"),
        (lambda b: b["panels"][2]["gridPos"].update(x=0), "overlap"),
        (lambda b: b["panels"][2]["targets"][0].update(refId="B"), "one name"),
    ],
)
def test_flaws_of_a_dashboard_are_noticed(spoil: Any, flaw: str) -> None:
    board = copy.deepcopy(dashboard())
    spoil(board)
    assert any(flaw in found for found in flaws(board))


def test_the_dashboard_shows_what_was_asked_for() -> None:
    shown = {name for query in queries(dashboard()) for name, _ in named(query).metrics}
    assert shown >= {
        "vlmir_requests_total",
        "vlmir_stage_seconds_bucket",
        "vlmir:batch_items:mean_rate5m",
        "vlmir_queue_depth",
        "vlmir_steps_total",
        "vlmir_gpu_memory_reserved_bytes",
        "vlmir_release_info",
        "vlmir_promotions_total",
    }
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = shown | {name for rule in alerts() for name, _ in named(rule["expr"]).metrics}
    inner = {
        name for rule in rules() if "record" in rule for name, _ in named(rule["expr"]).metrics
    }
    assert recorded <= used | inner, "a rule records what nobody looks at"


@needs_promtool
def test_prometheus_can_read_the_dashboards_queries(tmp_path: Path) -> None:
    replaced = {"$__rate_interval": "5m", "$__range": "3h", "$job": ".*"}

    def check(expressions: list[str]) -> int:
        group = {
            "name": "dashboard",
            "rules": [{"record": f"q{i}", "expr": e} for i, e in enumerate(expressions)],
        }
        (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [group]}), "utf-8")
        return promtool("check", "rules", tmp_path / "queries.yml")[0]

    expressions = []
    for query in queries(dashboard()):
        for variable, value in replaced.items():
            query = query.replace(variable, value)
        assert "$" not in query
        expressions.append(query)
    assert check(expressions) == 0
    assert check([*expressions, "sum by (x vlmir_steps_total"]) != 0


def test_grafana_finds_its_source_and_its_dashboards() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == f"http://prometheus:{PORTS['prometheus']['http']}"
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert ("grafana", "prometheus") in EDGES
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "vlmir.yml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file" and provider["options"]["path"].startswith("/var/lib/grafana")


# --- the operator's book


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    known = anchors(BOOK.read_text("utf-8"))
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith("/deploy/OPERATIONS.md")
        assert anchor == rule["alert"].lower()
        assert anchor in known, f"OPERATIONS.md has no section {rule['alert']}"


def test_anchors_are_those_of_headings() -> None:
    assert anchors("# One: two\n## `make up`, and more\ntext\n### VlmirSlow\n") == {
        "one-two",
        "make-up-and-more",
        "vlmirslow",
    }
    assert "vlmirslow" not in anchors("VlmirSlow\n")
