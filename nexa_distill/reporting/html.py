"""The frame of the HTML reports, with styles for light, dark and print."""

from markupsafe import Markup

from nexa_distill.reporting.templates import render_template


def render_document(title: str, body: str) -> str:
    """A self-contained page. `title` is text, `body` HTML."""
    return render_template("page.html.j2", title=title, body=Markup(body))  # noqa: S704  the caller escapes
