"""The inspection room behind `ui_inspect.py`: rows on demand, decisions, figures, pages."""
