"""The report is one page that needs nothing else and shows what it was given as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from exporter.manifest import BuiltEngine, Engines, Manifest
from exporter.report import html, readme
from exporter.verify import read_manifest

LEFT_OPEN = {"meta"}  # elements that have no end
NASTY = "<script>alert('a')</script> & \"co\""


class Page(HTMLParser):
    """Elements, attributes and text of a page; elements must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in LEFT_OPEN:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(params=["float", "failed", "reference"])
def manifest(
    request: pytest.FixtureRequest,
    float_bundles: dict[str, Path],
    quick_bundle: Path,
    reference_bundle: Path,
) -> Manifest:
    bundles = {"float": float_bundles["dream"], "failed": quick_bundle}
    return read_manifest(bundles.get(request.param, reference_bundle))


def test_the_page_is_whole_and_needs_nothing_else(manifest: Manifest) -> None:
    page = Page(html(manifest))
    assert not {"script", "link", "img", "iframe", "object"} & {*page.tags}
    assert not {"href", "src", "srcset", "data"} & {name for name, _ in page.attributes}
    assert "http" not in html(manifest) and "url(" not in html(manifest)
    assert page.tags.count("title") >= 1 and page.tags.count("h1") == 1


def test_the_page_shows_gate_and_passes(manifest: Manifest) -> None:
    text, gate = Page(html(manifest)).text, manifest.gate
    assert gate is not None
    assert ("passed" if gate.passed else "failed") in text
    assert f"{gate.argmax_agreement:.2%}" in text and f"{gate.kl:.2g}" in text
    assert manifest.recipe in text and manifest.target in text
    for record in manifest.passes:
        assert record.where == "calibration" or record.step in text
    for name, value in manifest.decode.model_dump().items():
        assert re.search(rf"{name}\s*{re.escape(str(value))}", text)
    blocks = [p for p in manifest.passes if "rtn_error" in p.stats]
    assert html(manifest).count("<rect") == 2 * len(blocks)


def test_names_are_shown_as_they_are(manifest: Manifest) -> None:
    model = manifest.model.model_copy(update={"name": NASTY, "family": NASTY})
    update: dict[str, object] = {"model": model, "recipe": NASTY, "target": NASTY}
    if manifest.calibration is not None:
        update["calibration"] = manifest.calibration.model_copy(
            update={"source": NASTY, "counts": {NASTY: 1.0}}
        )
    records = [record.model_copy(update={"step": NASTY}) for record in manifest.passes]
    page = Page(html(manifest.model_copy(update={**update, "passes": records})))
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 5


def test_the_page_is_written_before_the_gate_is_known_too(manifest: Manifest) -> None:
    blank = manifest.model_copy(update={"gate": None, "calibration": None, "passes": []})
    assert "Calibration" in Page(html(blank)).text
    assert "held-out" not in readme(blank)


def test_the_bundle_holds_report_and_readme(reference_bundle: Path) -> None:
    manifest = read_manifest(reference_bundle)
    built = manifest.model_copy(update={"files": []})  # it is written before files are listed
    assert (reference_bundle / "report.html").read_text(encoding="utf-8") == html(built)
    text = (reference_bundle / "README.md").read_text(encoding="utf-8")
    assert text == readme(manifest)
    assert "decode.py --prompt" in text and "pip install" in text


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("plugins", [None, "0" * 64])
def test_the_readme_leads_from_the_folder_to_an_answer(
    manifest: Manifest, built: bool, plugins: str | None
) -> None:
    one = BuiltEngine(
        graph="full", path="engines/full.plan", sha256="e", graph_sha256="g", weights_sha256="w",
        runtime="tensorrt-rtx", version="1.7.1.116", sm=[89],
    )  # fmt: skip
    engines = Engines(
        runtime="tensorrt-rtx", sm=[89], precision="fp16", batch=1, plans=[], plugins=plugins,
        built=[one] * built,
    )  # fmt: skip
    text = readme(manifest.model_copy(update={"engines": engines}))
    steps = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert steps[0].startswith("pip install") and "cuda-python" in steps[0]
    assert ("tensorrt-rtx-cu13-libs==1.7.1.116" in steps[0]) == built
    assert ("python build_engine.py" in steps) == (not built)
    assert 'python decode.py --prompt "…"' in steps
    assert ("plugins/trt_plugins/build.py --sm 89" in text) == (plugins is not None)
