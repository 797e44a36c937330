"""How reports are drawn: templates of HTML, Markdown and plots, the dataset card."""
