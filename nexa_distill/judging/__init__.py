"""Inside `judge`: rubrics, judges, how their replies are read, calibration against people."""
