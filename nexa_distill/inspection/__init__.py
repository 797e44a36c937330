"""Inside `ui_inspect`: rows on demand, filters, decisions, the data of a run."""
