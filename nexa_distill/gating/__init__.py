"""Inside `filter_pairs` and `sample_gate`: the rules, the checks tables, the funnel report."""
