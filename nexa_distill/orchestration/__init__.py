"""Inside `pipeline`: the order of the stages, the plan, stale outputs, run folders, orphans."""
