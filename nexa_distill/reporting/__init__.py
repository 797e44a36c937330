"""How reports are drawn: HTML, Markdown, SVG charts, the dataset card."""
