"""The HTML page: everything is there, and names are text, whatever they are."""

import base64
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import chromium
import pytest

from alexnet.inference import page
from alexnet.inference.page import PageRow, write_pages

HOSTILE = (
    "<script>alert(1)</script>.jpg",
    '"><img src=x onerror=alert(1)>.jpg',
    "' onfocus='alert(1)",
    "</ul></script><b>.jpg",
    "&lt;already&amp;.jpg",
    "line\nbreak\x1b[31m\x00.jpg",
    "$title ${body} $$.jpg",
    "\u202egpj.exe",
)


class Elements(HTMLParser):
    """All elements with their attributes, and the text inside each ``bdi``."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.paths: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag == "bdi"
        if self.inside:
            self.paths.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.paths[-1] += data


def parse(path: str | Path) -> Elements:
    parser = Elements()
    parser.feed(Path(path).read_text(encoding="utf-8"))
    parser.close()
    return parser


def row(path: str, name: str = "tench", probability: float = 0.5) -> PageRow:
    return PageRow(path, None, [name, "other"], [probability, 0.1], b"\xff\xd8jpeg")


def rejected(path: str, reason: str) -> PageRow:
    return PageRow(path, reason, [], [], b"\xff\xd8grey")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    rows = [row(name, name) for name in HOSTILE] + [rejected("a", name) for name in HOSTILE]
    path = write_pages(str(tmp_path), rows, len(rows), HOSTILE[0])
    assert path == str(tmp_path / "report.html")
    parsed = parse(path)
    visible = [n.replace("\x1b", r"\x1b").replace("\x00", r"\x00") for n in HOSTILE]
    assert parsed.paths == visible + ["a"] * len(HOSTILE)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == tags.count("h1") == tags.count("style") == 1
    assert tags.count("img") == len(rows)
    assert not {"b", "iframe", "object", "link"} & set(tags)
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    labels = [a["data-label"] for _, a in parsed.elements if "data-label" in a]
    assert labels == visible + [""] * len(HOSTILE)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    parsed = parse(write_pages(str(tmp_path), [row("a")], 1, "title"))
    sources = [a[key] for _, a in parsed.elements for key in ("src", "href") if key in a]
    assert sources == ["data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8jpeg").decode()]
    policies = [a["content"] for _, a in parsed.elements if "http-equiv" in a]
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert any(a.get("name") == "viewport" for _, a in parsed.elements)


def test_what_filters_and_orders_use_is_in_the_page(tmp_path: Path) -> None:
    rows = [row("a", "tench", 0.25), row("b", "goldfish", 1.0), rejected("c", "empty: no bytes")]
    parsed = parse(write_pages(str(tmp_path), rows, 3, "title"))
    data = [a for _, a in parsed.elements if "data-status" in a]
    assert [(a["data-status"], a["data-label"], a["data-confidence"]) for a in data] == [
        ("ok", "tench", "0.250000"),
        ("ok", "goldfish", "1.000000"),
        ("rejected", "", "0.000000"),
    ]
    assert all(a["tabindex"] == "0" for a in data)
    options = [a["value"] for tag, a in parsed.elements if tag == "option"]
    assert options[:3] == ["", "goldfish", "tench"]
    bars = [a["style"] for tag, a in parsed.elements if tag == "li" and "style" in a]
    assert bars[:2] == ["--p:25.00%", "--p:10.00%"]


def test_more_images_are_pages_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "PAGE_ROWS", 3)
    rows = [row(f"{number}.jpg") for number in range(7)] + [rejected("7.jpg", "empty")]
    write_pages(str(tmp_path), rows[:3], 3, "title")
    assert (tmp_path / "report.html").exists()
    index = write_pages(str(tmp_path), iter(rows), len(rows), "title")
    assert index == str(tmp_path / "report" / "index.html")
    assert not (tmp_path / "report.html").exists()
    links = [a["href"] for tag, a in parse(index).elements if tag == "a"]
    assert links == ["page-0001.html", "page-0002.html", "page-0003.html"]
    shown = [path for link in links for path in parse(tmp_path / "report" / link).paths]
    assert shown == [f"{number}.jpg" for number in range(8)]
    second = [a["href"] for tag, a in parse(tmp_path / "report" / links[1]).elements if tag == "a"]
    assert second == ["index.html", "page-0001.html", "page-0003.html"]


@pytest.mark.slow
@pytest.mark.skipif(chromium.program() is None, reason="no Chromium is installed")
def test_it_opens_and_filters_in_chromium(tmp_path: Path) -> None:
    """What the script has shown and hidden is in the document; an error would show nothing."""
    program = chromium.program()
    assert program
    rows = [row(name, "x") for name in HOSTILE] + [rejected("bad.jpg", "empty: no bytes")]
    path = Path(write_pages(str(tmp_path), rows, len(rows), "title"))
    text = path.read_text(encoding="utf-8")
    choose = "form.elements.status.value = 'rejected'; show();"
    path.write_text(text.replace("show();\n</script>", f"show();\n{choose}\n</script>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    command = [program, *options, f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"1 of {len(rows)} shown" in done.stdout
    assert done.stdout.count("hidden=") == len(HOSTILE)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_script_filters_and_orders(tmp_path: Path) -> None:
    """In a minimal document with the elements that the script uses."""
    script = (files("alexnet.inference") / "page.js").read_text(encoding="utf-8")
    (tmp_path / "test.js").write_text(DOCUMENT.replace("SCRIPT", script))
    done = subprocess.run(
        ["node", tmp_path / "test.js"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "0 1 2 3; 4 of 4 shown",
        "0 2; 2 of 4 shown",
        "3; 1 of 4 shown",
        "1 3; 2 of 4 shown",
        "3 2 0 1; 4 of 4 shown",
        "1 0 2 3; 4 of 4 shown",
    ]


DOCUMENT = """
const item = (index, status, label, confidence) =>
  ({ dataset: { index, status, label, confidence }, hidden: false });
const children = [item(0, "ok", "a", 0.5), item(1, "ok", "b", 0.9), item(2, "ok", "a", 0.2),
                  item(3, "rejected", "", 0)];
let ordered = children;
const value = (value) => ({ value });
const elements = { label: value(""), status: value(""), least: value("0"), most: value("100"),
                   order: value("listed") };
const listeners = {};
const listen = (name, function_) => { listeners[name] = function_; };
const nodes = {
  images: { children, append: (...items) => { ordered = items; }, addEventListener: listen },
  filters: { elements, addEventListener: listen },
  count: {},
};
globalThis.document = { getElementById: (id) => nodes[id] };
SCRIPT
function report(changes) {
  const defaults = { label: "", status: "", least: "0", most: "100", order: "listed" };
  for (const [name, v] of Object.entries({ ...defaults, ...changes })) elements[name].value = v;
  listeners.input();
  const shown = ordered.filter((i) => !i.hidden).map((i) => i.dataset.index).join(" ");
  console.log(`${shown}; ${nodes.count.textContent}`);
}
report({});
report({ label: "a" });
report({ status: "rejected" });
report({ least: "60" });
report({ order: "uncertain" });
report({ order: "certain" });
"""
