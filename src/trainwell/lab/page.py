"""The frame of the lab's pages: self-contained, interactive, offline; a page forbids itself all that is not its own."""

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwell.files import write_atomically
from trainwell.lab.charts import TEMPLATE, Chart

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).parent


def write_page(path: Path, template: str, source: str, charts: Sequence[Chart], **content: Any) -> Path:
    """Writes a page and returns its path.

    Args:
        path: where.
        template: the file beside this one that says what stands in the frame, `page.html.jinja`.
        source: where the data are from; its last part is the page's name.
        charts: what the page's script draws, each into the box that `figure.html.jinja` makes for it.
        **content: what the template shows; of any page its `sentence`, `aside`, `key_facts` and `version`.
    """
    from plotly.offline import get_plotlyjs

    plotly_js, plotly_hash = _script(get_plotlyjs())
    draw_js, draw_hash = _script((HERE / "report.js").read_text("utf-8"))
    page = _template(template).render(
        name=source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or "a run",
        charts={"template": TEMPLATE, "charts": [asdict(chart) for chart in charts]},
        scripts=(plotly_js, draw_js),
        script_hashes=f"'{plotly_hash}' '{draw_hash}'",
        **content,
    )
    # File names that are no valid Unicode come as lone surrogates; a page cannot hold those.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _script(code: str) -> tuple[str, str]:
    """Returns code that can stand inside a `<script>` element, and the hash by which the page allows it."""
    code = code.replace("</script", "<\\/script")
    return code, "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


@functools.cache  # compiling it takes longer than filling it in
def _template(name: str) -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(HERE)
    return Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)
